"""Toy: a model that the tests add to the package, as CONTRIBUTING.md describes.

Dims     B batch   C channels   H W image side   Q question features
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import ConfigDict, with_config
from torch import Tensor

from associative_transformer.interface import ModelOutput
from associative_transformer.models.heads import FlattenHead
from associative_transformer.models.layers import LinearTokenEmbed, check_sizes
from associative_transformer.models.pretrained import PretrainedModel


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class ToyConfig:
    """Sizes of a toy."""

    kind: Literal["toy"] = "toy"
    """Name of the model in saved configurations."""
    image_size: int = 32
    """Height and width of the images in pixels."""
    patch_size: int = 8
    """Height and width of a patch in pixels; divides image_size."""
    num_channels: int = 3
    """C: channels of the images."""
    num_classes: int = 10
    """Number of classes."""
    question_dim: int = 0
    """Q: features of a question about the image; 0: no question."""
    embed_dim: int = 16
    """Token width."""

    def __post_init__(self) -> None:
        check_sizes(self)


class Toy(PretrainedModel, tags=["toy"]):
    """Image classifier of linear patch embeddings.

    >>> images = torch.randn(2, 3, 32, 32)
    >>> logits, _ = Toy(TOY)(images)
    """

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        c = self.config = config
        self.embed = LinearTokenEmbed(
            c.image_size, c.patch_size, c.num_channels, c.embed_dim, c.question_dim
        )
        self.head = FlattenHead(self.embed.num_tokens, c.embed_dim, c.num_classes)

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        questions: Float[Tensor, "B Q"] | None = None,
    ) -> ModelOutput:
        logits = self.head(self.embed(images, questions))
        return ModelOutput(logits, torch.zeros((), device=images.device))


TOY = ToyConfig()
