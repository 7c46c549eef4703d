"""The image operations of RandAugment and TrivialAugment, on whole batches.

torchvision applies one operation of one strength to all images of a batch, or to one image at a
time. Here, every image has its own: images are grouped by operation, and each group is changed at
once, which takes a fraction of the time for small images. Results are those of torchvision, and
do not depend on the other images of a batch: sums are exact, in integers or float64.

Dims     G images of a group   B batch   C channels   H height   W width
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from associative_transformer.data.augmentation import NUM_LEVELS

LUMA = (0.2989, 0.587, 0.114)
WHITE = 255
Images = UInt8[Tensor, "G C H W"]
Values = Float[Tensor, " G"]


def apply_operations(
    images: UInt8[Tensor, "B C H W"], operation: Int[Tensor, " B"], value: Float[Tensor, " B"]
) -> UInt8[Tensor, "B C H W"]:
    """Apply to each image the operation of this index in `OPERATIONS`, with its value.

    `operation` and `value` are on the CPU, so that grouping does not wait for a GPU.
    """
    changed, start = images.clone(), 0
    order = operation.argsort(stable=True)  # those of the same operation next to each other
    counts = operation.bincount(minlength=len(OPERATIONS)).tolist()
    rows, values = (each.to(images.device, non_blocking=True) for each in (order, value[order]))
    for apply, count in zip(OPERATIONS.values(), counts, strict=True):
        group = slice(start, start := start + count)
        if count and apply is not identity:
            changed[rows[group]] = apply(images[rows[group]], values[group])
    return changed


def identity(images: Images, value: Values) -> Images:
    """Change nothing."""
    return images


def shear_x(images: Images, tangent: Values) -> Images:
    """Shift each row by a multiple of its distance from the top."""
    zero, one = torch.zeros_like(tangent), torch.ones_like(tangent)
    # the upper edge, half of the height above the center, does not move
    return _affine(images, (one, tangent, tangent * images.shape[2] / 2), (zero, one, zero))


def shear_y(images: Images, tangent: Values) -> Images:
    """Shift each column by a multiple of its distance from the left."""
    zero, one = torch.zeros_like(tangent), torch.ones_like(tangent)
    return _affine(images, (one, zero, zero), (tangent, one, tangent * images.shape[3] / 2))


def translate_x(images: Images, pixels: Values) -> Images:
    """Shift to the right by whole pixels."""
    zero, one = torch.zeros_like(pixels), torch.ones_like(pixels)
    return _affine(images, (one, zero, -pixels.trunc()), (zero, one, zero))


def translate_y(images: Images, pixels: Values) -> Images:
    """Shift down by whole pixels."""
    zero, one = torch.zeros_like(pixels), torch.ones_like(pixels)
    return _affine(images, (one, zero, zero), (zero, one, -pixels.trunc()))


def rotate(images: Images, degrees: Values) -> Images:
    """Turn counterclockwise about the center."""
    angle = degrees.double().deg2rad()
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    return _affine(images, (cos, -sin, zero), (sin, cos, zero))


def brightness(images: Images, factor: Values) -> Images:
    """Multiply by a factor: 0 is black."""
    return _to_uint8(images * _spread(factor))


def saturation(images: Images, factor: Values) -> Images:
    """Blend with the gray version: 0 is gray."""
    return _blend(images, _gray(images), factor)


def contrast(images: Images, factor: Values) -> Images:
    """Blend with the mean gray: 0 is one gray."""
    mean = _gray(images).mean(dim=(1, 2, 3), keepdim=True, dtype=torch.float64)
    return _blend(images, mean.float(), factor)


def sharpness(images: Images, factor: Values) -> Images:
    """Blend with a version that is blurred, except for the border: 0 is blurred."""
    if min(images.shape[2:]) <= 2:
        return images
    wide = images.to(torch.int16)
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * wide[:, :, 1:-1, 1:-1]
    blurred = images.clone()
    # the weights are 5/13 in the middle and 1/13 around it; there are no ties to round
    blurred[:, :, 1:-1, 1:-1] = (total + 6).div(13, rounding_mode="floor").to(torch.uint8)
    return _to_uint8(images + (1 - _spread(factor)) * (blurred.float() - images))


def posterize(images: Images, bits: Values) -> Images:
    """Keep only the top bits of each value."""
    lowest = 2.0 ** (8 - bits)
    return images & _spread(WHITE + 1 - lowest).to(torch.uint8)


def solarize(images: Images, threshold: Values) -> Images:
    """Invert the values from the threshold on."""
    return torch.where(images >= _spread(threshold), WHITE - images, images)


def autocontrast(images: Images, value: Values) -> Images:
    """Stretch each channel to the full range."""
    from torchvision.transforms.v2 import functional as v2

    return v2.autocontrast(images)


def equalize(images: Images, value: Values) -> Images:
    """Make each channel's values equally frequent."""
    from torchvision.transforms.v2 import functional as v2

    return v2.equalize(images)


OPERATIONS: dict[str, Callable[[Images, Values], Images]] = {
    "Identity": identity,
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
    "Rotate": rotate,
    "Brightness": brightness,
    "Color": saturation,
    "Contrast": contrast,
    "Sharpness": sharpness,
    "Posterize": posterize,
    "Solarize": solarize,
    "AutoContrast": autocontrast,
    "Equalize": equalize,
}
"""All operations, under their names in torchvision."""

NAMES = tuple(OPERATIONS)
FACTORS = tuple(NAMES.index(name) for name in ("Brightness", "Color", "Contrast", "Sharpness"))
JITTERED = tuple(NAMES.index(name) for name in ("Brightness", "Contrast", "Color"))
SIGNED = torch.tensor([1 <= code <= NAMES.index("Sharpness") for code in range(len(NAMES))])


def list_levels(policy: str, height: int, width: int) -> Float[Tensor, "14 31"]:
    """Return how far each operation goes at each level, before its sign, as torchvision does."""
    is_wide = policy == "trivialaugment"
    shear, degrees, factor, bits = (0.99, 135.0, 0.99, 6) if is_wide else (0.3, 30.0, 0.9, 4)
    shifts = (32.0, 32.0) if is_wide else (150 / 331 * width, 150 / 331 * height)
    furthest = [0.0, shear, shear, *shifts, degrees, *[factor] * 4]
    levels = [torch.linspace(0.0, last, NUM_LEVELS) for last in furthest]
    kept = (8 - torch.arange(NUM_LEVELS) / ((NUM_LEVELS - 1) / bits)).round()
    none = torch.zeros(NUM_LEVELS)
    levels += [kept, WHITE * torch.linspace(1.0, 0.0, NUM_LEVELS), none, none]
    return torch.stack(levels)


def to_values(
    operation: Int[Tensor, "..."], level: Float[Tensor, "..."], is_negative: Bool[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """Return the values of operations from how far they go, with the sign of those that have one.

    An operation that blends takes a factor of 1 plus or minus its level.
    """
    signed = torch.where(is_negative & SIGNED[operation], -level, level)
    is_factor = torch.isin(operation, torch.tensor(FACTORS))
    return torch.where(is_factor, 1 + signed, signed)


def _affine(
    images: Images, to_x: tuple[Values, Values, Values], to_y: tuple[Values, Values, Values]
) -> Images:
    """Take each pixel from (a x + b y + c, d x + e y + f), the nearest one; black outside.

    Coordinates are relative to the center of the image.
    """
    height, width = images.shape[2:]
    device, middle_x, middle_y = images.device, (width - 1) / 2, (height - 1) / 2
    x = torch.arange(width, device=device, dtype=torch.float64) - middle_x
    y = (torch.arange(height, device=device, dtype=torch.float64) - middle_y)[:, None]
    a, b, c, d, e, f = (value.double()[:, None, None] for value in (*to_x, *to_y))
    column = (a * x + b * y + (c + middle_x)).round().long()  # (G, H, W)
    row = (d * x + e * y + (f + middle_y)).round().long()
    is_inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    source = (row * width + column) * is_inside  # (G, H, W)
    index = source.flatten(1)[:, None].expand(-1, images.shape[1], -1)
    moved = images.flatten(2).gather(2, index).view_as(images)
    return moved * is_inside[:, None]


def _gray(images: Images) -> Float[Tensor, "G 1 H W"]:
    red, green, blue = images.float().unbind(dim=1)
    return (red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]).floor()[:, None]


def _blend(
    images: Images, other: UInt8[Tensor, "G _ _ _"] | Float[Tensor, "G _ _ _"], factor: Values
) -> Images:
    share = _spread(factor)
    return _to_uint8(images * share + other * (1 - share))


def _to_uint8(values: Float[Tensor, "G C H W"]) -> Images:
    return values.clamp(0, WHITE).to(torch.uint8)


def _spread(value: Values) -> Float[Tensor, "G 1 1 1"]:
    return value[:, None, None, None]
