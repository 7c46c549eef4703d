"""What AiT and ViT have in common: sizes, tokens and head, and timm's names for using them.

Dims     B batch   C channels   H W image side   N tokens   E token width   Q question features
         F features of an image   O classes
"""

from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from associative_transformer.balance import store_balance_loss
from associative_transformer.interface import ADDED_LATER, ModelOutput
from associative_transformer.models.heads import Head, HeadKind, build_classifier, build_head
from associative_transformer.models.layers import Positions, TokenEmbed, check_sizes
from associative_transformer.models.pretrained import PretrainedModel
from associative_transformer.models.regularization import Regularization
from associative_transformer.models.stem import StemConfig, check_stem


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a transformer for images; the defaults are those of the paper's small models."""

    kind: Any = ""
    """Name of the model in saved configurations."""
    image_size: int | tuple[int, int] = 32
    """Side of square images in pixels, or their height and width."""
    patch_size: int = 4
    """Height and width of a patch in pixels; divides image_size."""
    num_channels: int = 3
    """C: channels of the images."""
    num_classes: int = 10
    """Number of classes; 0: return the features of the image instead of logits."""
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
    stem: StemConfig = field(default_factory=StemConfig, metadata=ADDED_LATER)
    """How an image becomes tokens."""
    regularization: Regularization = field(default_factory=Regularization, metadata=ADDED_LATER)
    """Dropout and stochastic depth in training; off in the paper."""

    def __post_init__(self) -> None:
        if isinstance(self.image_size, tuple) and len(set(self.image_size)) == 1:
            object.__setattr__(self, "image_size", self.image_size[0])  # equal to the number
        check_sizes(self, may_be_zero=("num_classes",))
        check_stem(self.stem, self.patch_size)
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
        stem=c.stem,
    )


class TransformerModel(PretrainedModel):
    """Base of AiT and ViT: the parts of the model, under the names that timm uses."""

    config: Any
    embed: TokenEmbed
    head: Head

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        questions: Float[Tensor, "B Q"] | None = None,
    ) -> ModelOutput:
        x, aux_loss = self.encode(images, questions)
        return ModelOutput(self.head(x), aux_loss)

    def encode(
        self,
        images: Float[Tensor, "B C H W"],
        questions: Float[Tensor, "B Q"] | None = None,
    ) -> tuple[Float[Tensor, "B N E"], Float[Tensor, ""]]:
        """Return the tokens after the last block, and the sum of the balance losses."""
        raise NotImplementedError

    @property
    def num_features(self) -> int:
        """E: width of the tokens that `forward_features` returns."""
        return int(self.config.embed_dim)

    @property
    def head_hidden_size(self) -> int:
        """F: number of features that `forward_head(x, pre_logits=True)` returns."""
        return self.head.width

    def forward_features(
        self,
        images: Float[Tensor, "B C H W"],
        questions: Float[Tensor, "B Q"] | None = None,
    ) -> Float[Tensor, "B N E"]:
        """Return the tokens after the last block, which the head normalizes.

        In training, `balance.collect_balance_loss(model)` then returns the balance loss.
        """
        x, aux_loss = self.encode(images, questions)
        if self.training:
            store_balance_loss(self, aux_loss)
        return x

    def forward_head(
        self, x: Float[Tensor, "B N E"], pre_logits: bool = False
    ) -> Float[Tensor, "B F"]:
        """Return the logits of tokens, or the features that the classifier takes."""
        return self.head.pool(x) if pre_logits else self.head(x)

    def get_classifier(self) -> nn.Module:
        """Return the linear map to the logits, or the identity if there are no classes."""
        return self.head.classifier

    def reset_classifier(self, num_classes: int, global_pool: HeadKind | None = None) -> None:
        """Draw a new classifier, or remove it with `num_classes` 0.

        `global_pool` also changes the kind of head. Raises ValueError if the model lacks the token
        that this kind needs (`question`), or if the change is from or to `cls`, since only models
        built with that head have a class token.
        """
        c = self.config
        kind = c.head if global_pool is None else global_pool
        if (kind == "cls") != (c.head == "cls"):
            raise ValueError(
                f"a model with head {c.head!r} cannot change to {kind!r}, since only models with "
                f"head 'cls' have a class token: build a new model with head={kind!r}"
            )
        config = replace(c, num_classes=num_classes, head=kind)  # checks both
        device = next(self.head.parameters()).device
        if kind == c.head:
            classifier = build_classifier(self.head.width, num_classes)
            self.head.set_classifier(classifier.to(device))
        else:
            tokens = self.embed.num_tokens
            self.head = build_head(kind, tokens, c.embed_dim, num_classes).to(device)
        self.replace_config(config)
        self.class_names = None
