"""What AiT and ViT have in common: sizes, tokens and head."""

from dataclasses import dataclass
from typing import Any

from associative_transformer.models.heads import HeadKind
from associative_transformer.models.layers import Positions, TokenEmbed, check_sizes


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a transformer for images; the defaults are those of the paper's small models."""

    kind: Any = ""
    """Name of the model in saved configurations."""
    image_size: int = 32
    """Height and width of the images in pixels."""
    patch_size: int = 4
    """Height and width of a patch in pixels; divides image_size."""
    num_channels: int = 3
    """C: channels of the images."""
    num_classes: int = 10
    """Number of classes."""
    question_dim: int = 0
    """Q: features of a question about the image, which becomes a token; 0: no question."""
    pos: Positions = "none"
    """Position embedding; the paper's models have none, so that only a flattened head
    distinguishes positions."""
    embed_dim: int = 768
    """E: token width."""
    depth: int = 2
    """L: number of blocks."""
    num_heads: int = 12
    """Heads of the self-attention."""
    head_dim: int = 64
    """Width of each head."""
    mlp_ratio: float = 4.0
    """Hidden width of the feed-forward, as a multiple of the token width."""
    head: HeadKind = "flatten"
    """Classify from all tokens, concatenated (flatten), from their mean, from a class token (cls)
    or from the token of the question; flatten is the paper's."""

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.head == "question" and not self.question_dim:
            raise ValueError(
                'head="question" needs questions: set question_dim, or choose another head'
            )


def build_embed(config: TransformerConfig) -> TokenEmbed:
    """Return the token embedding of a model, with a class token if its head needs one."""
    c = config
    return TokenEmbed(
        c.image_size,
        c.patch_size,
        c.num_channels,
        c.embed_dim,
        c.question_dim,
        c.pos,
        use_class_token=c.head == "cls",
    )
