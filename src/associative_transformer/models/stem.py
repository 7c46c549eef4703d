"""A convolutional stem: tokens from a few convolutions instead of a linear map of each patch.

Dims     C channels   E token width
"""

import math
from dataclasses import dataclass
from typing import Literal

from torch import nn

from associative_transformer.arguments import check_count

NORM_GROUPS = 8


@dataclass(frozen=True)
class StemConfig:
    """How an image becomes tokens."""

    kind: Literal["patch", "conv"] = "patch"
    """A linear map of each patch (patch), or convolutions that overlap the patches (conv), which
    learn faster on small data sets. The paper's models use patch."""
    width: int = 48
    """Channels of the first stage of a convolutional stem; each stage has twice as many as the
    one before."""
    depth: int = 1
    """Convolutions of each stage; the first one halves the height and the width."""

    def __post_init__(self) -> None:
        check_count("stem.width", self.width)
        check_count("stem.depth", self.depth)
        if self.width % NORM_GROUPS:
            raise ValueError(f"stem.width must be a multiple of {NORM_GROUPS}, not {self.width}")


PATCHES = StemConfig()


def check_stem(stem: StemConfig, patch_size: int) -> None:
    """Raise ValueError if a convolutional stem cannot make tokens of this patch size."""
    is_power = patch_size >= 2 and math.log2(patch_size).is_integer()
    if stem.kind == "conv" and not is_power:
        raise ValueError(
            f"stem.kind conv halves the image once per stage: patch_size must be a power of 2 "
            f"from 2, not {patch_size}"
        )


class ConvStem(nn.Sequential):
    """3x3 convolutions, each with GroupNorm and GELU, then a linear map to the token width.

    There are log2(patch_size) stages, each of which halves the height and the width, so that there
    are as many tokens as patches (Xiao et al. 2021, "Early Convolutions Help Transformers See
    Better", arXiv 2106.14881). GroupNorm instead of their BatchNorm keeps the logits of an image
    independent of its batch.
    """

    def __init__(
        self, num_channels: int, embed_dim: int, patch_size: int, config: StemConfig
    ) -> None:
        layers: list[nn.Module] = []
        in_dim = num_channels
        for stage in range(round(math.log2(patch_size))):
            out_dim = config.width * 2**stage
            for layer in range(config.depth):
                stride = 2 if layer == 0 else 1
                layers += [
                    nn.Conv2d(in_dim, out_dim, 3, stride, padding=1, bias=False),
                    nn.GroupNorm(NORM_GROUPS, out_dim),
                    nn.GELU(),
                ]
                in_dim = out_dim
        super().__init__(*layers, nn.Conv2d(in_dim, embed_dim, 1))
