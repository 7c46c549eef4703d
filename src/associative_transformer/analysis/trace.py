"""What the layers of a model receive, recorded by hooks during its forward pass.

Dims     B batch   N tokens per image   E token width   H heads of the self-attention   I images
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from associative_transformer.interface import PADDING, Batch
from associative_transformer.models.layers import SelfAttention
from associative_transformer.models.pretrained import PretrainedModel
from associative_transformer.workspace import GlobalWorkspace


@dataclass(frozen=True)
class LayerTrace:
    """What one layer receives; None for a module that it does not have."""

    self_attention: SelfAttention | None = None
    attention_input: Float[Tensor, "B N E"] | None = None  # tokens after the norm
    workspace: GlobalWorkspace | None = None
    workspace_input: Float[Tensor, "B N E"] | None = None  # u

    @property
    @torch.no_grad()
    def attention(self) -> Float[Tensor, "B H N N"] | None:
        """The attention of each token to all tokens, a row per token.

        It is computed at each access, because the attention of all layers may not fit into memory.
        """
        if self.self_attention is None or self.attention_input is None:
            return None
        return self.self_attention.scores(self.attention_input)


@dataclass(frozen=True)
class ModelTrace:
    """One batch without its padding, and what each layer received, in the order of the calls.

    The tokens of a layer are the class token, the question, and the patches in raster order.
    """

    images: Float[Tensor, "B C H W"]
    labels: Int[Tensor, " B"]
    layers: list[LayerTrace]
    logits: Float[Tensor, "B O"]


@torch.no_grad()
def trace(model: PretrainedModel, batch: Batch) -> ModelTrace:
    """Run a model on a batch in evaluation mode and record what its layers receive.

    A layer is one call of a module in `model.blocks`; a model without `blocks` has no layers.
    The inputs of its `SelfAttention` and its `GlobalWorkspace` are recorded. Afterwards the hooks
    are removed and the model is in the same mode as before.
    """
    is_real = batch.labels != PADDING
    images = batch.images[is_real]
    questions = None if batch.questions is None else batch.questions[is_real]
    layers: list[LayerTrace] = []
    with ExitStack() as cleanup:
        cleanup.enter_context(in_evaluation(model))
        for handle in _register_hooks(model, layers):
            cleanup.enter_context(handle)
        logits = model(images, questions).logits
    return ModelTrace(images, batch.labels[is_real], layers, logits)


def trace_all(model: PretrainedModel, batches: Iterable[Batch]) -> Iterator[ModelTrace]:
    """Trace one batch after another, without keeping earlier traces."""
    return (trace(model, batch) for batch in batches)


def first_images(
    model: PretrainedModel, batches: Iterable[Batch], num_images: int
) -> list[Float[Tensor, "I N E"]]:
    """Return the tokens that the workspace of each layer receives for the first images.

    Raises ValueError if there are no images. Later batches are not read.
    """
    layers: list[list[Tensor]] = []
    num_missing = num_images
    for traced in trace_all(model, batches):
        tokens = [cast(Tensor, layer.workspace_input)[:num_missing] for layer in traced.layers]
        layers.append(tokens)
        num_missing -= len(tokens[0])
        if num_missing == 0:
            break
    if not layers:
        raise ValueError("there are no images, and so no tokens to retrieve")
    return [torch.cat(tokens) for tokens in zip(*layers, strict=True)]


@contextmanager
def in_evaluation(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and back into its own afterwards."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


def _register_hooks(model: nn.Module, layers: list[LayerTrace]) -> Iterator[RemovableHandle]:
    """Make each block append a `LayerTrace` to `layers`, and its modules fill it in."""

    def start_layer(*_: object) -> None:
        layers.append(LayerTrace())

    def keep_attention(module: SelfAttention, inputs: tuple[Any, ...]) -> None:
        layers[-1] = replace(layers[-1], self_attention=module, attention_input=inputs[0])

    def keep_workspace(module: GlobalWorkspace, inputs: tuple[Any, ...]) -> None:
        layers[-1] = replace(layers[-1], workspace=module, workspace_input=inputs[0])

    for block in getattr(model, "blocks", nn.ModuleList()).children():
        yield block.register_forward_pre_hook(start_layer)
        for module in block.modules():
            if isinstance(module, SelfAttention):
                yield module.register_forward_pre_hook(keep_attention)
            elif isinstance(module, GlobalWorkspace):
                yield module.register_forward_pre_hook(keep_workspace)
