"""A residual network for small images (He et al. 2016, arXiv 1512.03385, section 4.2).

It is not part of the paper's comparison: it stands for what one would otherwise train on images of
32 pixels.

Dims     B batch   C channels   H W image side
Sizes    ResNet-20: three stages of three blocks with 16, 32 and 64 channels
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import ConfigDict, with_config
from torch import Tensor, nn
from torch.nn.functional import relu

from associative_transformer.float32 import Float32Linear
from associative_transformer.interface import ModelOutput
from associative_transformer.models.layers import check_inputs, check_sizes
from associative_transformer.models.pretrained import PretrainedModel

NUM_STAGES = 3


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class ResNetConfig:
    """Sizes of a residual network; the defaults are those of ResNet-20."""

    kind: Literal["resnet"] = "resnet"
    """Name of the model in saved configurations."""
    image_size: int = 32
    """Height and width of the images in pixels."""
    num_channels: int = 3
    """C: channels of the images."""
    num_classes: int = 10
    """Number of classes."""
    conv_dim: int = 16
    """Channels of the first stage; each stage has twice as many as the one before."""
    num_blocks: int = 3
    """Blocks of two convolutions in each of the three stages."""

    def __post_init__(self) -> None:
        check_sizes(self)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm, added to a shortcut.

    If the block changes the number of channels, it halves the image, and the shortcut is a 1x1
    convolution (option B of He et al., whose networks for CIFAR-10 pad with zeros instead).
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        stride = 1 if in_dim == out_dim else 2
        self.conv1 = nn.Conv2d(in_dim, out_dim, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_dim)
        self.conv2 = nn.Conv2d(out_dim, out_dim, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_dim)
        self.shortcut = (
            nn.Identity()
            if stride == 1
            else nn.Sequential(
                nn.Conv2d(in_dim, out_dim, 1, stride, bias=False), nn.BatchNorm2d(out_dim)
            )
        )

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        residual = self.norm2(self.conv2(relu(self.norm1(self.conv1(x)))))
        return relu(self.shortcut(x) + residual)


class ResNet(PretrainedModel, tags=["resnet"]):
    """Convolutional classifier with residual connections.

    >>> images = torch.randn(2, 3, 32, 32)
    >>> logits, _ = ResNet(RESNET_20)(images)
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        c = self.config = config
        dims = [c.conv_dim * 2**stage for stage in range(NUM_STAGES)]
        self.stem = nn.Sequential(
            nn.Conv2d(c.num_channels, dims[0], 3, padding=1, bias=False),
            nn.BatchNorm2d(dims[0]),
            nn.ReLU(),
        )
        blocks: list[nn.Module] = []
        in_dim = dims[0]
        for dim in dims:
            for _ in range(c.num_blocks):
                blocks.append(ResidualBlock(in_dim, dim))
                in_dim = dim
        self.residual_blocks = nn.ModuleList(blocks)
        self.head = Float32Linear(in_dim, c.num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        questions: Float[Tensor, "B Q"] | None = None,
    ) -> ModelOutput:
        c = self.config
        check_inputs(images, questions, c.image_size, c.num_channels)
        x = self.stem(images)
        for block in self.residual_blocks:
            x = block(x)
        logits = self.head(x.mean(dim=(2, 3)))
        return ModelOutput(logits, torch.zeros((), device=images.device))


RESNET_20 = ResNetConfig()
