"""Checks of the sizes, factors and shapes that callers pass to configurations and modules."""

import torch
from jaxtyping import Shaped
from torch import Tensor

MAX_FACTOR = 1e6
"""Largest inverse temperature, far beyond the point where each token retrieves one attractor, and
largest weight of a loss. Results of much larger ones are not finite."""
MAX_STEPS = 1_000
"""Largest number of times that a layer may repeat the same step."""
LOST_MEMORY = (
    "nn.DataParallel would lose the memory, because its replicas move copies that are thrown away "
    "after each step: use DistributedDataParallel, with one process for each GPU"
)
"""Error message for `nn.DataParallel`, which would lose the memory of a workspace."""


def image_shape(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Return height and width; a single number is the side of a square."""
    return (image_size, image_size) if isinstance(image_size, int) else image_size


def check_count(name: str, value: int | float, minimum: int = 1) -> None:
    """Raise ValueError if a count or a width is not an integer of at least `minimum`."""
    if not isinstance(value, int):
        raise ValueError(f"{name} must be an integer, not {value}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, not {value}")


def check_factor(name: str, value: float) -> None:
    """Raise ValueError if a factor is not positive, or larger than `MAX_FACTOR`."""
    if not 0 < value <= MAX_FACTOR:
        raise ValueError(f"{name} must be positive and at most {MAX_FACTOR:g}, not {value}")


def check_shape(name: str, x: Shaped[Tensor, "*any"], *sizes: int | str) -> None:
    """Raise ValueError if a tensor is empty, holds integers, or does not have the given sizes.

    A letter stands for any size.
    """
    shape, wanted = tuple(x.shape), f"({', '.join(map(str, sizes))})"
    pairs = zip(shape, sizes, strict=False)
    if len(shape) != len(sizes) or any(isinstance(b, int) and a != b for a, b in pairs):
        remedy = f": pass {name}[None]" if len(shape) == len(sizes) - 1 else ""
        raise ValueError(f"{name} must have shape {wanted}, not {shape}{remedy}")
    if 0 in shape:
        raise ValueError(f"{name} must not be empty: shape {wanted} is expected, not {shape}")
    if not x.is_floating_point():
        raise ValueError(
            f"{name} must be floating-point numbers of shape {wanted}, not {x.dtype} {shape}"
        )


def check_tokens(
    tokens: Shaped[Tensor, "*any"],
    width: int,
    padding: Shaped[Tensor, "*mask"] | None,
) -> None:
    """Raise ValueError if tokens, or the mask that says which of them are padding, do not fit."""
    check_shape("tokens", tokens, "B", "N", width)
    if padding is None:
        return
    shape, given = tuple(tokens.shape[:2]), tuple(padding.shape)
    if padding.dtype != torch.bool or given != shape:
        raise ValueError(
            f"key_padding_mask must be a bool tensor of shape {shape}, True for padding, not "
            f"{padding.dtype} {given}"
        )
