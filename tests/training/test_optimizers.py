"""Every optimizer: its weights, its checkpoints, and steps that must change nothing."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from associative_transformer.interface import UserError
from associative_transformer.models import build_model
from associative_transformer.runs.checkpoint import (
    TrainingState,
    restore_checkpoint,
    save_checkpoint,
)
from associative_transformer.training import optimizers
from associative_transformer.training.parameters import parameter_groups
from making.steps import make_batch, make_step, same, snapshot, spoil
from making.tiny import TINY

TRAINING: dict[str, dict[str, Any]] = {
    "adamw": {},
    "muon": {"optimizer": "muon"},
    "lion": {"optimizer": "lion", "lr": 1e-3},
    "averaged": {"ema_decay": 0.9},
    "averaged muon": {"optimizer": "muon", "ema_decay": 0.9},
}
every_optimizer = pytest.mark.parametrize(
    "train",
    [
        pytest.param(train, marks=[pytest.mark.interop] * ("lion" in name), id=name)
        for name, train in TRAINING.items()
    ],
)


@every_optimizer
def test_a_bad_step_changes_nothing(train: dict[str, Any]) -> None:
    step = make_step(**train)
    for _ in range(2):
        step(make_batch())
    before = snapshot(step)
    sums = step(spoil(make_batch()))
    assert same(snapshot(step), before)
    assert not sums.any()
    assert step.skipped.total == 1
    step(make_batch())
    assert not same(snapshot(step), before)


@every_optimizer
def test_a_step_from_a_checkpoint_is_the_same_bit_for_bit(
    train: dict[str, Any], tmp_path: Path
) -> None:
    ours, batches = make_step(**train), [make_batch() for _ in range(4)]
    for batch in batches[:2]:
        ours(batch)
    save_checkpoint(tmp_path, ours.model, ours, asdict(TrainingState()))
    theirs = make_step(**train)
    assert restore_checkpoint(tmp_path, theirs.model, theirs) is not None
    for step in (ours, theirs):
        for batch in batches[2:]:
            step(batch)
    assert same(snapshot(ours), snapshot(theirs))


@every_optimizer
def test_the_loss_of_one_batch_goes_down(train: dict[str, Any]) -> None:
    torch.manual_seed(0)
    step, batch = make_step(**train), make_batch()
    losses = [step(batch)[0].item() for _ in range(15)]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(("saved", "current"), [("adamw", "muon"), ("adamw", "averaged")])
def test_a_checkpoint_of_another_optimizer_is_not_used(
    saved: str, current: str, tmp_path: Path
) -> None:
    step = make_step(**TRAINING[saved])
    step(make_batch())
    save_checkpoint(tmp_path, step.model, step, asdict(TrainingState()))
    other = make_step(**TRAINING[current])
    with pytest.raises(UserError, match="every checkpoint"):
        restore_checkpoint(tmp_path, other.model, other)


def test_muon_trains_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    step = make_step(optimizer="muon")
    muon, adamw = step.optimizer.parts
    names = {id(p): name for name, p in step.model.named_parameters()}
    by_muon = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    by_adamw = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    matrices = {
        f"{name}.weight"
        for name, module in step.model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("blocks.")
    }
    assert by_muon == matrices
    assert by_muon | by_adamw == set(names.values())
    assert not by_muon & by_adamw


def test_muon_moves_a_matrix_orthogonally() -> None:
    """Its update has nearly equal singular values, of root mean square 0.2 lr as AdamW's."""
    step = make_step(optimizer="muon", weight_decay=0.0)
    weight = step.model.get_parameter("blocks.0.feed_forward.0.weight")
    before = weight.detach().clone()
    step(make_batch())
    update = (weight.detach() - before) / step.train.lr
    values = torch.linalg.svdvals(update)
    assert values.quantile(0.1) > 0.5 * values.max()  # Newton-Schulz is not exact
    assert update.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.3)


def test_muon_refuses_a_model_without_blocks() -> None:
    with pytest.raises(UserError, match=r"--train\.optimizer muon: BRIMs has no matrices"):
        make_step(build_model(TINY["brims"]), optimizer="muon")


def test_lion_without_timm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="lion needs timm: pip install timm"):
        make_step(optimizer="lion")


@pytest.mark.parametrize("name", TINY)
def test_weight_decay_of_matrices_only_leaves_vectors_out(name: str) -> None:
    model = build_model(TINY[name])
    groups = parameter_groups(model, decay_on="matrices")
    exempt = model.no_weight_decay()
    names = {id(p): name for name, p in model.named_parameters()}
    for group in groups:
        is_decayed = "weight_decay" not in group
        for parameter in group["params"]:
            assert is_decayed == (parameter.ndim >= 2 and names[id(parameter)] not in exempt)
    assert sum(len(group["params"]) for group in groups) == len(names)
