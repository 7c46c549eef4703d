"""Which augmentation training images get: a preset, and single settings that replace its own."""

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from associative_transformer.interface import ADDED_LATER

Preset = Literal["none", "crop", "resized_crop", "strong"]
Flip = Literal["none", "horizontal"]
Policy = Literal["none", "randaugment", "trivialaugment"]

SMALL = 64
"""The largest image size in pixels at which "strong" pads and crops instead of zooming in."""
NUM_LEVELS = 31
"""Strengths of an operation, as in torchvision."""


class Augmentation(NamedTuple):
    """What happens to training images, with a value for every setting."""

    crop_padding: int = 0  # black pixels added to each side before cropping to the old size
    scale: tuple[float, float] | None = None  # areas of a random resized crop; None: no such crop
    flip: Flip = "none"
    color_jitter: float = 0.0
    policy: Policy = "none"
    num_ops: int = 2
    magnitude: int = 9
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 1.0

    @property
    def is_mixed(self) -> bool:
        """Whether images are mixed with others, so that their labels are probabilities."""
        return self.mix_probability > 0 and (self.mixup > 0 or self.cutmix > 0)


PRESETS: dict[Preset, Augmentation] = {
    "none": Augmentation(),
    "crop": Augmentation(flip="horizontal"),
    "resized_crop": Augmentation(scale=(0.08, 1.0), flip="horizontal"),
    # torchvision's training recipe of 2021 ("How to train state-of-the-art models")
    "strong": Augmentation(
        flip="horizontal",
        policy="trivialaugment",
        erase=0.1,
        mixup=0.2,
        cutmix=1.0,
        mix_probability=1.0,
    ),
}


@dataclass(frozen=True)
class AugmentationConfig:
    """Single settings of the augmentation; None keeps that of the preset `augment`."""

    flip: Flip | None = field(default=None, metadata=ADDED_LATER)
    """Mirror half of the images; set it to none for images in which left and right matter."""
    scale: tuple[float, float] | None = field(default=None, metadata=ADDED_LATER)
    """Crop a random area between these shares of the image, and resize it; decodes each epoch."""
    color_jitter: float | None = field(default=None, metadata=ADDED_LATER)
    """Change brightness, contrast and saturation by a factor of up to 1 plus or minus this."""
    policy: Policy | None = field(default=None, metadata=ADDED_LATER)
    """Apply random operations, such as rotations or posterization, to each image."""
    num_ops: int | None = field(default=None, metadata=ADDED_LATER)
    """Operations that randaugment applies to each image; None: 2."""
    magnitude: int | None = field(default=None, metadata=ADDED_LATER)
    """Strength of the operations of randaugment, from 0 to 30; None: 9."""
    erase: float | None = field(default=None, metadata=ADDED_LATER)
    """Probability of covering a random rectangle of 2 to 33 % of an image with the mean color."""
    mixup: float | None = field(default=None, metadata=ADDED_LATER)
    """Blend pairs of images and their labels; alpha of MixUp, 0: off."""
    cutmix: float | None = field(default=None, metadata=ADDED_LATER)
    """Paste a rectangle of one image into another, and mix labels by area; alpha of CutMix."""
    mix_probability: float | None = field(default=None, metadata=ADDED_LATER)
    """Probability of mixing the images of a batch; if mixup and cutmix are on, each has half."""

    def __post_init__(self) -> None:
        for name in ("erase", "mix_probability"):
            _require(self, name, 1.0, "between 0 and 1")
        for name in ("color_jitter", "mixup", "cutmix"):
            _require(self, name, math.inf, "at least 0 and finite")
        if self.num_ops is not None and self.num_ops < 1:
            raise ValueError(f"num_ops must be at least 1, got {self.num_ops}")
        if self.magnitude is not None and not 0 <= self.magnitude < NUM_LEVELS:
            raise ValueError(f"magnitude must be from 0 to {NUM_LEVELS - 1}, got {self.magnitude}")
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(
                "scale must be the smallest and the largest area, above 0 and at most 1, got "
                f"{self.scale}"
            )

    def resolve(self, preset: Preset, crop_padding: int, image_size: int) -> Augmentation:
        """Return the preset with these settings in place of its own.

        Raises ValueError if a setting would have no effect.
        """
        full = PRESETS[preset]
        if preset == "strong" and image_size > SMALL:
            full = full._replace(scale=PRESETS["resized_crop"].scale)
        elif preset in ("crop", "strong"):
            full = full._replace(crop_padding=crop_padding)
        given = {name: value for name, value in vars(self).items() if value is not None}
        full = full._replace(**given)
        if full.scale is not None:
            full = full._replace(crop_padding=0)
        if full.policy != "randaugment" and {"num_ops", "magnitude"} & given.keys():
            raise ValueError(
                f"augmentation.num_ops and magnitude have no effect on policy {full.policy}: set "
                "augmentation.policy to randaugment, or omit them"
            )
        if given.get("mix_probability") and not full.is_mixed:
            raise ValueError(
                "augmentation.mix_probability has no effect without mixing: set "
                "augmentation.mixup or cutmix, or omit it"
            )
        return full


def _require(config: AugmentationConfig, name: str, largest: float, condition: str) -> None:
    """Raise ValueError if a setting is given but not from 0 to `largest`, and finite."""
    value = getattr(config, name)
    if value is not None and not (0 <= value <= largest and value < math.inf):
        raise ValueError(f"{name} must be {condition}, got {value}")
