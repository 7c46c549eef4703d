"""Which parameters are trained, and how fast."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from associative_transformer.interface import UserError
from associative_transformer.models import build_model
from associative_transformer.models.ait import AiT
from associative_transformer.training.parameters import (
    freeze,
    parameter_groups,
    set_training_mode,
)
from associative_transformer.workspace import GlobalWorkspace
from making.steps import CONFIG as BATCH
from making.steps import make_batch, make_step, same, snapshot
from making.tiny import TINY
from making.trained import PER_IMAGE

IMAGE: Any = replace(PER_IMAGE.model, depth=2)
both = pytest.mark.parametrize("config", [BATCH, IMAGE], ids=["batch", "image"])


def trained(model: nn.Module) -> set[str]:
    return {name for name, value in model.named_parameters() if value.requires_grad}


@pytest.mark.parametrize("name", TINY)
def test_a_linear_probe_trains_the_last_linear_map_of_the_head(name: str) -> None:
    model = build_model(TINY[name])
    if not hasattr(model, "head"):
        with pytest.raises(UserError, match="has no head to train alone"):
            freeze(model, "backbone")
        return
    freeze(model, "backbone")
    weights = trained(model)
    assert len(weights) == 2
    assert all(each.startswith("head.") for each in weights)
    (matrix,) = (value for value in model.parameters() if value.requires_grad and value.ndim == 2)
    assert matrix.shape[0] == TINY[name].num_classes


@both
def test_a_frozen_backbone_is_in_evaluation_mode(config: Any) -> None:  # noqa: ANN401
    model = AiT(config)
    set_training_mode(model, "backbone")
    assert {name for name, module in model.named_modules() if module.training} == {"head.2"}
    set_training_mode(model, "none")
    assert all(module.training for module in model.modules())


@both
def test_a_frozen_memory_stays_while_everything_else_is_trained(config: Any) -> None:  # noqa: ANN401
    model = AiT(config)
    step = make_step(model, freeze="memory", weight_decay=0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(2):
        step.set_training_mode()
        step(make_batch())
    kept = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    if config is IMAGE:
        assert kept == {name for name in before if name.endswith("workspace.priors")}
        return
    of_write = ("priors", "to_q.", "to_k.", "to_v.", "to_prior.", "norm.")
    written = [f"workspace.{part}" for part in of_write]
    assert kept == {name for name in before if any(part in name for part in written)}


def test_a_memory_that_is_reset_each_epoch_is_not_reset_if_it_is_frozen() -> None:
    workspace = replace(BATCH.workspace, reset_each_epoch=True)
    step = make_step(AiT(replace(BATCH, workspace=workspace)), freeze="memory")
    before = snapshot(step)
    step.reset_memories(0)
    assert same(before, snapshot(step))


def test_a_model_without_that_part_is_refused() -> None:
    for setting, name, sentence in (
        ("memory", "vit", "ViT has no memory"),
        ("backbone", "relation-network", "RelationNetwork has no head"),
    ):
        with pytest.raises(UserError, match=sentence):
            freeze(build_model(TINY[name]), setting)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="Perceiver has no list of blocks"):
        parameter_groups(build_model(TINY["perceiver"]), 0.5)


@both
def test_the_learning_rate_decays_from_the_head_to_the_embedding(config: Any) -> None:  # noqa: ANN401
    model = AiT(config)
    scales: dict[str, float] = {}
    names = {value: name for name, value in model.named_parameters()}
    for group in parameter_groups(model, 0.5):
        for value in group["params"]:
            scales[names[value]] = group["lr_scale"]
    assert scales.keys() == dict(model.named_parameters()).keys()
    expected = {"embed": 0.125, "blocks.0": 0.25, "blocks.1": 0.5, "head": 1.0}
    for name, scale in scales.items():
        (part,) = (each for each in expected if name.startswith(f"{each}."))
        assert scale == expected[part], name


def test_the_step_uses_the_decayed_rates_and_reports_that_of_the_head() -> None:
    step = make_step(AiT(BATCH), layer_decay=0.5, lr=0.01)
    step.set_learning_rate(50, 0, 10)
    plain = make_step(AiT(BATCH), lr=0.01)
    plain.set_learning_rate(50, 0, 10)
    assert step.learning_rate == plain.learning_rate
    rates = sorted({group["lr"] / step.learning_rate for group in step.optimizer.param_groups})
    assert rates == [0.125, 0.25, 0.5, 1.0]


def test_weight_decay_and_layer_decay_go_together() -> None:
    model = AiT(IMAGE)
    exempt = model.no_weight_decay()
    names = {value: name for name, value in model.named_parameters()}
    for decay in (None, 0.5):
        groups = parameter_groups(model, decay)
        for group in groups:
            is_exempt = {names[value] in exempt for value in group["params"]}
            assert is_exempt == {group.get("weight_decay") == 0.0}


def test_frozen_workspaces_do_not_add_a_balance_loss() -> None:
    model = AiT(BATCH)
    freeze(model, "memory")
    set_training_mode(model, "memory")
    assert model(make_batch().images).aux_loss == 0
    assert all(m.is_frozen for m in model.modules() if isinstance(m, GlobalWorkspace))
