"""Silenced priors: planted ones, and real ones compared with the slow twins."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from associative_transformer.analysis.silencing import Silencing, measure_silencing, silence
from associative_transformer.analysis.storage import load_result, save_result
from associative_transformer.interface import PADDING, Batch, UserError
from associative_transformer.models.ait import AiT
from associative_transformer.models.vit import ViT, ViTConfig
from making.image_memory import (
    SHARED,
    TINY,
    images_of,
    make_batches,
    make_model,
    planted,
    weights_of,
    with_workspace,
)
from twins import naive, naive_image

CLASSES = ["a", "b", "c"]


@torch.no_grad()
def logits_without(model: AiT, batch: Batch, layer: int | None, prior: int = 0) -> Tensor:
    """Return the logits of a model whose tokens cannot read from a prior of a layer."""
    x = model.embed(batch.images, batch.questions)
    for number, block in enumerate(model.blocks):
        if block.attention is not None:
            x = x + block.attention(block.norm1(x))
        u = block.norm3(block.feed_forward(block.norm2(x)))
        kept = [m for m in range(4) if (number, m) != (layer, prior)]
        read = naive_read(block.workspace, u, kept)
        x = x + u + read.to(x)
    return model.head(x)


def naive_read(workspace: Any, u: Tensor, kept: list[int]) -> Tensor:  # noqa: ANN401
    """Return what the tokens read from some of the priors."""
    c, exact = workspace.config, u.double()
    linear = (workspace.to_attractor.weight.double(), workspace.to_attractor.bias.double())
    if c.scope == "batch":
        attractors = naive.linear(workspace.priors.double(), *linear)[kept]
        return torch.stack(
            [naive.hopfield_retrieve(x, attractors, c.beta, c.num_steps) for x in exact]
        )
    weights, settings = weights_of(workspace)
    memories = naive_image.workspace_step(exact, weights, settings).priors
    attractors = torch.stack([naive.linear(memory, *linear)[kept] for memory in memories])
    read = naive_image.retrieve(exact, attractors, c.beta, c.image.read_head_dim, c.num_steps)
    norm = (weights.read_norm_weight, weights.read_norm_bias, 1e-5)
    return torch.stack([naive.layer_norm(rows, *norm) for rows in read])


MODELS: dict[str, Callable[[], AiT]] = {
    "image": make_model,
    "image, without attention": lambda: make_model(replace(TINY, use_self_attention=False)),
    "image, several steps": lambda: make_model(with_workspace(beta=2.0, num_steps=2)),
    "image, question": lambda: make_model(replace(TINY, question_dim=5, head="question")),
    "batch": lambda: AiT(SHARED).eval(),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_silenced_models_agree_with_loops(make: Callable[[], AiT]) -> None:
    model = make()
    batches = make_batches(3, 2, question_dim=model.config.question_dim)
    result = measure_silencing(model, batches, CLASSES)
    labels = torch.cat([batch.labels for batch in batches])
    whole = torch.cat([logits_without(model, batch, None) for batch in batches]).double()
    assert result.num_images == 5
    right = whole.argmax(dim=-1) == labels
    assert result.accuracy == pytest.approx(right.double().mean().item())
    for layer in range(2):
        for prior in range(4):
            silenced = torch.cat([logits_without(model, b, layer, prior) for b in batches])
            change = silenced.double() - whole
            assert result.logit_change[layer, prior] == pytest.approx(
                change.mean(dim=0).numpy(), rel=1e-3, abs=1e-5
            )
            shift = sum(abs(x) for x in change.flatten().tolist()) / change.numel()
            assert result.shift[layer, prior] == pytest.approx(shift, rel=1e-3, abs=1e-5)
            answers = silenced.argmax(dim=-1)
            correct = (answers == labels).double().mean().item()
            assert result.silenced_accuracy[layer, prior] == pytest.approx(correct)
            changed = (answers != whole.argmax(dim=-1)).double().mean().item()
            assert result.changed[layer, prior] == pytest.approx(changed)
    assert (result.shift > 1e-4).all()


# --- planted priors ---


@torch.no_grad()
def planted_classifier(attractors: Tensor) -> AiT:
    """Return a model that answers with the largest of the first channels of what tokens read."""
    model = planted(len(attractors), num_classes=len(attractors))
    block = model.blocks[0]
    block.workspace.read_norm = torch.nn.Identity()
    block.workspace.to_attractor.weight.copy_(attractors.T.repeat(3, 1))
    model.head.norm = torch.nn.Identity()
    model.head.to_logits.weight.zero_()
    model.head.to_logits.bias.zero_()
    model.head.to_logits.weight[:, : len(attractors)] = torch.eye(len(attractors))
    return model


def test_without_the_prior_of_a_class_no_image_of_the_class_is_recognized() -> None:
    """The tokens of class i read attractor i, which decides the answer."""
    model = planted_classifier(20 * torch.eye(3))
    labels = [0, 1, 2, 0, 1, 0, 0, 0]
    write = torch.zeros(8, 4, 3)
    write[torch.arange(8), :, torch.tensor(labels)] = 1.0
    images = images_of(write)
    result = measure_silencing(model, [Batch(images, None, torch.tensor(labels))], CLASSES)
    assert result.accuracy == 1
    assert result.silenced_accuracy[0].tolist() == [3 / 8, 6 / 8, 7 / 8]
    assert result.changed[0].tolist() == [5 / 8, 2 / 8, 1 / 8]
    loss = result.logit_change[0, 0, 0]  # of class a without its prior, on 5 of 8 images
    assert loss == pytest.approx(-20 * 5 / 8, rel=0.02)


def test_one_of_two_equal_priors_can_be_silenced_without_a_change() -> None:
    attractors = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 2.0, 0]])
    model = planted_classifier(attractors)
    lone = planted_classifier(attractors[:1].repeat(3, 1))
    batch = Batch(images_of(torch.rand(6, 4, 3)), None, torch.zeros(6).long())
    assert not measure_silencing(lone, [batch], CLASSES).shift.any()
    shift = measure_silencing(model, [batch], CLASSES).shift[0]
    assert shift[0] == pytest.approx(shift[1]) and (shift > 0).all()


def test_without_its_only_prior_a_memory_is_not_read() -> None:
    model = make_model(with_workspace(num_priors=1))
    (batch,) = make_batches(4)
    result = measure_silencing(model, [batch], CLASSES)
    block, after = model.blocks
    with torch.no_grad():
        whole = model(batch.images).logits
        block.workspace.to_attractor.weight.zero_()
        block.workspace.to_attractor.bias.zero_()
        x = block(model.embed(batch.images)).tokens
        change = model.head(after(x).tokens) - whole
    assert result.logit_change[0, 0] == pytest.approx(change.mean(dim=0).numpy(), abs=1e-5)


def test_a_prior_is_heard_again_afterwards() -> None:
    model, u = make_model(), torch.randn(2, 4, 12)
    workspace = model.blocks[0].workspace
    with torch.no_grad():
        before = workspace(u).read
        with silence(workspace, 1):
            assert not torch.allclose(workspace(u).read, before)
        assert torch.equal(workspace(u).read, before)


# --- which images ---


def test_the_number_of_images_follows_from_the_number_of_models(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("associative_transformer.analysis.silencing.MAX_ANSWERS", 50)
    model, batches = make_model(), make_batches(4, 4, 4)
    batches[0].labels[1] = PADDING
    result = measure_silencing(model, iter(batches), CLASSES)
    assert result.num_images == 6  # 50 answers of 2 x 4 models
    first = [batch.images[batch.labels != PADDING] for batch in batches]
    images, labels = (
        torch.cat(first)[:6],
        torch.cat([b.labels[b.labels >= 0] for b in batches])[:6],
    )
    again = measure_silencing(model, [Batch(images, None, labels)], CLASSES, num_images=99)
    assert again.num_images == 6
    assert again.logit_change == pytest.approx(result.logit_change, rel=1e-3, abs=1e-6)
    monkeypatch.setattr("associative_transformer.analysis.silencing.MAX_ANSWERS", 1)
    assert measure_silencing(model, batches, CLASSES).num_images == 1


def test_no_more_batches_are_read_than_needed() -> None:
    batches = iter(make_batches(4, 4, 4))
    assert measure_silencing(make_model(), batches, CLASSES, num_images=8).num_images == 8
    assert len(list(batches)) == 1


# --- the result ---


def test_the_model_does_not_change() -> None:
    model = AiT(SHARED).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure_silencing(model, make_batches(3), CLASSES)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not model.blocks[0].workspace.to_attractor._forward_hooks


def test_the_description_names_the_prior_that_is_missed_most() -> None:
    result = Silencing(
        num_images=8,
        classes=CLASSES,
        accuracy=0.5,
        silenced_accuracy=np.array([[0.5, 0.25, 0.75]]),
        changed=np.array([[0.0, 0.3, 0.6]]),
        shift=np.zeros((1, 3)),
        logit_change=np.zeros((1, 3, 3)),
    )
    assert list(result.describe()) == [
        "if a prior is silenced (8 items, 50.00 % correct):",
        "  layer 1: 30.00 % of the answers change on average; lowest accuracy 25.00 %, without "
        "prior 2",
    ]


def test_the_result_can_be_saved_and_read_back(tmp_path: Path) -> None:
    result = measure_silencing(make_model(), make_batches(3), CLASSES)
    save_result(result, tmp_path, "silencing")
    again = load_result(Silencing, tmp_path, "silencing")
    for name, value in vars(result).items():
        assert np.array_equal(getattr(again, name), value), name


def test_models_that_read_no_priors_and_empty_splits_are_refused() -> None:
    vit = ViT(ViTConfig(image_size=16, patch_size=8, embed_dim=12, num_heads=2, head_dim=8))
    for model in (vit, AiT(replace(SHARED, read="none"))):
        with pytest.raises(UserError, match="reads no priors to silence: use a run of AiT"):
            measure_silencing(model, make_batches(2), CLASSES)
    with pytest.raises(ValueError, match="no images"):
        measure_silencing(make_model(), [], CLASSES)
