"""What passes through the layers of a model, for analysis: no gradients, no memory moved.

Dims     B batch   N tokens per image   E token width   H heads of the self-attention
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from associative_transformer.interface import PADDING, Batch, UserError
from associative_transformer.models import AiT, ViT
from associative_transformer.models.layers import SelfAttention
from associative_transformer.models.pretrained import PretrainedModel
from associative_transformer.workspace import GlobalWorkspace


@dataclass(frozen=True)
class LayerTrace:
    """One layer, while a batch passes it."""

    seen: Float[Tensor, "B N E"] | None  # what the self-attention sees; None without one
    self_attention: SelfAttention | None
    handed: Float[Tensor, "B N E"] | None  # u, what the tokens hand to the workspace
    workspace: GlobalWorkspace | None  # with its frozen memory; None without one

    @property
    @torch.no_grad()
    def attention(self) -> Float[Tensor, "B H N N"] | None:
        """Give the attention of each token, by row; None without self-attention.

        It is computed anew each time: that of all layers at once may not fit into the memory.
        """
        if self.self_attention is None or self.seen is None:
            return None
        return self.self_attention.scores(self.seen)


@dataclass(frozen=True)
class ModelTrace:
    """A batch without its padding, and all layers that it has passed.

    Tokens are ordered class token, question, patches in raster order.
    """

    images: Float[Tensor, "B C H W"]
    labels: Int[Tensor, " B"]
    layers: list[LayerTrace]
    logits: Float[Tensor, "B O"]
    num_patches: int  # the last tokens of an image; those before are class token and question


@torch.no_grad()
def trace(model: PretrainedModel, batch: Batch) -> ModelTrace:
    """Pass a batch through an AiT or a ViT in evaluation mode and keep what its layers do.

    The model is in its own mode again afterwards. Raises UserError for other models, which have
    no self-attention among the tokens of a layer.
    """
    if not isinstance(model, AiT | ViT):
        raise UserError(f"there is no trace of a {type(model).__name__}: take a run of AiT or ViT")
    was_training = model.training
    model.eval()
    real = batch.labels != PADDING
    images = batch.images[real]
    questions = None if batch.questions is None else batch.questions[real]
    x, layers = model.embed(images, questions), []
    for block in cast(Iterable[Any], model.blocks):
        seen = None if block.attention is None else block.norm1(x)
        if isinstance(model, AiT):
            x, u = block.think(x)
            layers.append(LayerTrace(seen, block.attention, u, block.workspace))
            x = x + u + block.workspace(u).read
        else:
            layers.append(LayerTrace(seen, block.attention, None, None))
            x = block(x)
    logits = model.head(x)
    model.train(was_training)
    return ModelTrace(images, batch.labels[real], layers, logits, model.embed.num_patches)


def trace_all(model: PretrainedModel, batches: Iterable[Batch]) -> Iterator[ModelTrace]:
    """Trace one batch after another; nothing of one is kept for the next."""
    return (trace(model, batch) for batch in batches)
