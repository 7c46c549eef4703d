"""Attached balance losses: gradients equal those of the explicit sum."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from associative_transformer import AiT
from associative_transformer.balance import (
    LogitsOnly,
    attach_loss,
    collect_balance_loss,
    store_balance_loss,
)
from associative_transformer.models import build_model
from making.tiny import TINY

CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def inputs(batch: int = 6) -> tuple[Tensor, Tensor]:
    config = TINY["ait"]
    size, labels = config.image_size, torch.arange(batch) % config.num_classes
    return torch.randn(batch, config.num_channels, size, size).double(), labels


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_the_value_stays_and_the_gradient_of_the_loss_is_added() -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, dtype=torch.float64, requires_grad=True)
    attached = attach_loss(x, (x @ w).square().mean(), 0.5)
    assert torch.equal(attached, x)
    ours = torch.autograd.grad(attached.sin().sum(), (x, w))
    theirs = torch.autograd.grad(x.sin().sum() + 0.5 * (x @ w).square().mean(), (x, w))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, **CLOSE)


@pytest.mark.parametrize("scale", [1.0, 1024.0, 1 / 3])
def test_a_model_that_returns_logits_alone_has_the_gradients_of_the_explicit_sum(
    scale: float,
) -> None:
    ours = build_model(TINY["ait"]).double()
    theirs = copy.deepcopy(ours)
    images, labels = inputs()
    torch.manual_seed(1)
    logits = LogitsOnly(ours, lambda: scale)(images)
    (scale * cross_entropy(logits, labels)).backward()
    torch.manual_seed(1)
    expected, aux_loss = theirs(images)
    (scale * (cross_entropy(expected, labels) + aux_loss)).backward()
    assert torch.equal(logits, expected)
    assert aux_loss > 0
    for mine, other in zip(gradients(ours), gradients(theirs), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12 * scale)
    assert len(gradients(ours)) == len(list(ours.parameters()))


def test_gradients_accumulate_over_micro_batches() -> None:
    ours = build_model(TINY["ait"]).double()
    theirs = copy.deepcopy(ours)
    wrapped = LogitsOnly(ours, 1 / 2)
    batches = [inputs(), inputs()]
    for model in (wrapped, theirs):
        torch.manual_seed(1)
        for images, labels in batches:
            output = model(images)
            logits, aux_loss = (output, 0.0) if isinstance(output, Tensor) else output
            ((cross_entropy(logits, labels) + aux_loss) / 2).backward()
    for mine, other in zip(gradients(ours), gradients(theirs), strict=True):
        torch.testing.assert_close(mine, other, **CLOSE)


def test_without_gradients_and_in_evaluation_the_logits_are_those_of_the_model() -> None:
    model = build_model(TINY["ait"]).double()
    images, _ = inputs()
    wrapped = LogitsOnly(model)
    with torch.no_grad():
        assert not wrapped(images).requires_grad
    wrapped.eval()
    assert not model.training
    assert torch.equal(wrapped(images), model(images).logits)


def test_a_model_wraps_itself() -> None:
    model = build_model(TINY["ait"])
    assert isinstance(model, AiT)
    wrapped = model.logits_only(loss_scale=2.0)
    assert wrapped.model is model
    assert wrapped.loss_scale == 2.0


def test_a_model_with_a_stored_loss_can_be_copied_and_the_copy_has_none() -> None:
    layer = nn.Linear(2, 2)
    store_balance_loss(layer, layer.weight.sum())
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        with pytest.raises(RuntimeError, match="no balance loss to collect"):
            collect_balance_loss(other)
    assert collect_balance_loss(layer) == layer.weight.sum()


def test_a_loss_that_reentrant_checkpointing_has_stored_is_refused() -> None:
    model, c = build_model(TINY["ait"]).train(), TINY["ait"]
    shape = (4, c.num_channels, c.image_size, c.image_size)
    checkpoint(model.forward_features, torch.randn(shape, requires_grad=True), use_reentrant=True)
    with pytest.raises(RuntimeError, match=r"pass use_reentrant=False, or use logits_only"):
        collect_balance_loss(model)
