"""Balance losses in code that only computes `loss(model(x), y)`, and in loops of one's own.

`attach_loss` adds the gradient of a balance loss in the backward pass of a tensor, as libraries
for mixtures of experts do. `LogitsOnly` does so for a whole model. Both leave the values alone.
`collect_balance_loss` returns the losses that modules have stored instead.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from associative_transformer.recomputation import is_recomputing

LossScale = float | Callable[[], float]
"""The factor by which the caller multiplies its loss before the backward pass, or a function that
returns it."""


def attach_loss(
    x: Float[Tensor, "..."], loss: Float[Tensor, ""], loss_scale: LossScale = 1.0
) -> Float[Tensor, "..."]:
    """Return x; its backward pass also computes the gradient of `loss_scale * loss`.

    The gradients are those of the sum of the caller's loss and this one, if x takes part in the
    caller's loss. If that loss is scaled before the backward pass, pass the same scale, such as
    `scaler.get_scale` of a gradient scaler, or 1 / n with n micro-batches whose losses are divided
    by n.

    >>> x = torch.ones(2, requires_grad=True)
    >>> attach_loss(x, x.square().sum()).sum().backward()
    >>> x.grad  # 1 from the sum, 2 from the squares
    tensor([3., 3.])
    """
    if not (loss.requires_grad and torch.is_grad_enabled()):
        return x
    scale = loss_scale() if callable(loss_scale) else loss_scale
    attached: Tensor = _AttachLoss.apply(x, loss, scale)
    return attached


class _AttachLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Float[Tensor, "..."], loss: Float[Tensor, ""], scale: float
    ) -> Float[Tensor, "..."]:
        return x.view_as(x)

    @staticmethod
    def setup_context(
        ctx: Any,  # noqa: ANN401
        inputs: tuple[Any, ...],
        output: Float[Tensor, "..."],
    ) -> None:
        _, loss, ctx.scale = inputs
        ctx.save_for_backward(loss)

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        slope: Float[Tensor, "..."],
    ) -> tuple[Float[Tensor, "..."], Float[Tensor, ""], None]:
        (loss,) = ctx.saved_tensors
        return slope, torch.full_like(loss, ctx.scale), None


class LogitsOnly(nn.Module):
    """A model of this package that returns only its logits, to which its loss is attached.

    >>> from associative_transformer import AIT_SMALL, AiT
    >>> model = LogitsOnly(AiT(AIT_SMALL))
    >>> loss = nn.CrossEntropyLoss()(model(torch.randn(2, 3, 32, 32)), torch.tensor([3, 7]))

    `loss_scale` is the one of `attach_loss`.
    """

    def __init__(self, model: nn.Module, loss_scale: LossScale = 1.0) -> None:
        super().__init__()
        self.model, self.loss_scale = model, loss_scale

    def forward(self, *inputs: Float[Tensor, "..."]) -> Float[Tensor, "B O"]:
        logits, aux_loss = self.model(*inputs)
        return attach_loss(logits, aux_loss, self.loss_scale)


def store_balance_loss(module: nn.Module, loss: Float[Tensor, ""]) -> None:
    """Keep the loss of a training forward pass on a module until it is collected.

    Warns if the loss of an earlier forward pass has not been collected; Python shows the warning
    once.
    """
    if is_recomputing():  # activation checkpointing repeats a pass whose loss has been stored
        return
    if _stored(module) is not None:
        warnings.warn(
            "the balance loss of an earlier forward pass was not used: call "
            "collect_balance_loss(model) after each one",
            stacklevel=3,
        )
    module.stored_balance_loss = StoredLoss(loss)  # type: ignore[assignment]


def collect_balance_loss(model: nn.Module) -> Float[Tensor, ""]:
    """Return the sum of the balance losses that the last training forward pass has stored.

    Add it to the loss. The losses are then gone: a second call without a forward pass raises
    RuntimeError, and so does a call after a forward pass in evaluation mode, which has none.
    """
    holders = [m for m in model.modules() if _stored(m) is not None]
    if not holders:
        raise RuntimeError(
            "there is no balance loss to collect: run a forward pass in training mode first"
        )
    total = torch.stack([loss for m in holders if (loss := _stored(m)) is not None]).sum()
    if torch.is_grad_enabled() and not total.requires_grad and total:
        raise RuntimeError(
            "the balance loss has no gradient, because reentrant activation checkpointing has "
            "computed it: pass use_reentrant=False, or use logits_only()"
        )
    for holder in holders:
        holder.stored_balance_loss = StoredLoss()  # type: ignore[assignment]
    return total


class StoredLoss:
    """A loss that a module keeps; copies and pickles of the module do not have it."""

    def __init__(self, loss: Float[Tensor, ""] | None = None) -> None:
        self.loss = loss

    def __reduce__(self) -> tuple[type["StoredLoss"], tuple[()]]:
        return StoredLoss, ()


def _stored(module: nn.Module) -> Float[Tensor, ""] | None:
    stored = getattr(module, "stored_balance_loss", None)
    return stored.loss if isinstance(stored, StoredLoss) else None
