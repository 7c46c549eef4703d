"""The health of memories in training: recorded, resumed, and named once if they collapse."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from associative_transformer.cli.options import parse
from associative_transformer.cli.train import TrainOptions
from associative_transformer.functional import effective_rank
from associative_transformer.health import MemoryHealth, count_distinct
from associative_transformer.models import build_model
from associative_transformer.recipes import RECIPES
from associative_transformer.runs import checkpoint
from associative_transformer.runs.checkpoint import TrainingState
from associative_transformer.training import memories
from associative_transformer.training.loop import TrainingRun, train
from associative_transformer.training.memories import report_collapse
from associative_transformer.training.signals import Interrupted
from associative_transformer.training.step import TrainingStep
from associative_transformer.workspace import GlobalWorkspace
from associative_transformer.workspace_config import ImageMemoryConfig, WorkspaceConfig
from making.trained import (
    EXPERIMENT,
    STEPS,
    VARIATIONS,
    Steps,
    assert_same_outcome,
    outcome,
    train_to_the_end,
    vary,
)

NAMES = ["effective_rank", "distinct", "overlap", "tokens_used", "priors_winning"]
COLLAPSED = MemoryHealth(1.2, 1.0, 8, 0.9, 0.1, 0.125)
HEALTHY = MemoryHealth(5.0, 8.0, 8, 0.1, 0.9, 1.0)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# --- what is recorded ---


def test_each_epoch_records_the_health_of_its_memory(undisturbed: Path) -> None:
    with np.load(undisturbed / "memory.npz") as saved:
        history = torch.from_numpy(saved["priors"])
    for row, priors in zip(rows_of(undisturbed), history, strict=True):
        (health,) = row["health"]
        assert list(health) == NAMES
        assert health["effective_rank"] == pytest.approx(effective_rank(priors[0]), abs=1e-6)
        assert health["distinct"] == count_distinct(priors[0])
        assert 0 <= health["overlap"] <= 1
        assert 0 < health["tokens_used"] <= 1 and 0 < health["priors_winning"] <= 1


def test_learned_contents_of_the_memories_of_images_are_recorded_too(tmp_path: Path) -> None:
    experiment = VARIATIONS["memory per image"]
    train(experiment, tmp_path / "run")
    with np.load(tmp_path / "run" / "memory.npz") as saved:
        history = torch.from_numpy(saved["priors"])
    rows = rows_of(tmp_path / "run")
    for row, priors in zip(rows, history, strict=True):
        (health,) = row["health"]
        assert health["effective_rank"] == pytest.approx(effective_rank(priors[0]), abs=1e-6)
        assert health["overlap"] is not None
    last = load_file(tmp_path / "run" / "model.safetensors")["blocks.0.workspace.priors"]
    assert torch.equal(history[-1, 0], last)
    assert not torch.equal(history[0], history[1])


def test_recording_more_often_changes_nothing_else(tmp_path: Path, undisturbed: Path) -> None:
    train(vary(log_every=1), tmp_path / "run")
    assert_same_outcome(tmp_path / "run", undisturbed)


def test_the_memory_is_measured_only_when_a_step_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, measured = Steps().install(monkeypatch), []
    measure = memories.measure_health

    def watched(model: torch.nn.Module) -> list[memories.Row]:
        measured.append(steps.count)
        return measure(model)

    monkeypatch.setattr(memories, "measure_health", watched)
    train(vary(log_every=3), tmp_path / "run")
    assert measured == [3, 4, 7, 8, 11, 12]  # and at the end of each epoch


def test_values_that_are_not_finite_or_unknown_are_recorded_as_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planted = [MemoryHealth(math.nan, 3.0, 4), MemoryHealth(1.23456789, 2.0, 4, 0.5, 1.0, 0.25)]
    monkeypatch.setattr(memories, "memory_health", lambda model, over_ranks: planted)
    rows = memories.measure_health(torch.nn.Identity())
    assert list(rows[0].values()) == [None, 3.0, None, None, None]
    assert list(rows[1].values()) == [1.234568, 2.0, 0.5, 1.0, 0.25]
    assert memories.name_by_layer(rows) == {
        "layer1/distinct": 3.0,
        "layer2/effective_rank": 1.234568,
        "layer2/distinct": 2.0,
        "layer2/overlap": 0.5,
        "layer2/tokens_used": 1.0,
        "layer2/priors_winning": 0.25,
    }
    lines = report_collapse(TrainingState(health=rows), [GlobalWorkspace(8)] * 2)
    assert "layer 1 has collapsed: 3 of 32 priors are distinct" in lines[0]


# --- resumed runs ---


def test_a_run_stopped_after_the_last_step_of_an_epoch_keeps_what_that_step_took(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Steps(interrupts={STEPS}).install(monkeypatch)
    with pytest.raises(Interrupted):
        train(EXPERIMENT, tmp_path / "run")
    state = json.loads((tmp_path / "run" / "checkpoint" / "last" / "state.json").read_text())
    assert (state["epoch"], state["step"]) == (0, STEPS)
    assert state["health"] == rows_of(undisturbed)[0]["health"]
    train(EXPERIMENT, tmp_path / "run", resume=True)
    assert_same_outcome(tmp_path / "run", undisturbed)


def test_a_checkpoint_without_health_is_resumed(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Steps(interrupts={STEPS}).install(monkeypatch)
    with pytest.raises(Interrupted):
        train(EXPERIMENT, tmp_path / "run")
    path = tmp_path / "run" / "checkpoint" / "last" / "state.json"
    state = json.loads(path.read_text())
    for name in ("digest", "health", "collapsed"):
        del state[name]
    path.write_text(json.dumps({**state, "digest": checkpoint._digest(state)}))
    train(EXPERIMENT, tmp_path / "run", resume=True)
    ours, theirs = outcome(tmp_path / "run"), outcome(undisturbed)
    assert "health" not in ours["metrics"][0]
    del theirs["metrics"][0]["health"]
    assert ours == theirs


# --- collapse ---


def plant(patch: pytest.MonkeyPatch, by_epoch: list[list[MemoryHealth]]) -> None:
    """Let the memories of each epoch have the given health."""
    end_epoch, epoch = TrainingRun._end_epoch, 0

    def count(run: TrainingRun, *arguments: Any) -> None:  # noqa: ANN401
        nonlocal epoch
        end_epoch(run, *arguments)
        epoch += 1

    patch.setattr(TrainingRun, "_end_epoch", count)
    patch.setattr(memories, "memory_health", lambda model, over_ranks: by_epoch[epoch])


@pytest.mark.parametrize("stops", [set(), {2, STEPS, STEPS + 1, 2 * STEPS + 2}], ids=str)
def test_a_collapsed_memory_is_named_once_per_layer_and_run(
    stops: set[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plant(monkeypatch, [[HEALTHY, HEALTHY], [COLLAPSED, HEALTHY], [COLLAPSED, COLLAPSED]])
    Steps(interrupts=stops).install(monkeypatch)
    narrow = vary(workspace={"num_priors": 8})
    experiment = replace(narrow, model=replace(narrow.model, depth=2))
    assert train_to_the_end(experiment, tmp_path / "run") == len(stops)
    lines = capsys.readouterr().err.splitlines()
    named = [i for i, line in enumerate(lines) if "has collapsed" in line]
    assert [lines[i - 1].split("  ")[0] for i in named] == ["epoch 2/3", "epoch 3/3"]
    assert [lines[i].partition(" has ")[0] for i in named] == [
        "the memory of layer 1",
        "the memory of layer 2",
    ]


HELP = ["--model.workspace.dropout", "--model.workspace.competition", "--model.workspace.center"]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"dropout": 0.0}, [True, True, True]),
        ({}, [False, True, True]),
        ({"competition": "priors"}, [False, False, True]),
        ({"competition": "priors", "center_values": True}, [False, False, False]),
        (
            {"scope": "image", "image": ImageMemoryConfig(8), "bottleneck": 4},
            [False, False, False],
        ),
    ],
    ids=str,
)
def test_the_line_names_layer_and_numbers_and_the_settings_that_help(
    config: dict[str, Any], expected: list[bool]
) -> None:
    workspaces = [GlobalWorkspace(8, WorkspaceConfig(num_priors=8, **config)) for _ in range(2)]
    row = memories._write_row(COLLAPSED)
    state = TrainingState(health=[memories._write_row(HEALTHY), row])
    (line,) = report_collapse(state, workspaces)
    assert line.startswith(
        "the memory of layer 2 has collapsed: 1 of 8 priors are distinct, with an effective rank "
        "of 1.2"
    )
    assert [name in line for name in HELP] == expected
    assert ("--model.workspace.num-priors" in line) == ("scope" in config)
    assert state.collapsed == [2]
    assert report_collapse(state, workspaces) == []


def test_the_settings_that_help_are_options_of_the_command(tmp_path: Path) -> None:
    row = memories._write_row(COLLAPSED)
    config = WorkspaceConfig(num_priors=8, dropout=0.0)
    (line,) = report_collapse(TrainingState(health=[row]), [GlobalWorkspace(8, config)])
    flags = line.partition("start a new run with ")[2].replace(" or ", " ").split()
    options = parse(TrainOptions, flags, "train", TrainOptions(RECIPES["cifar10-ait-tiny"]))
    changed = options.experiment.model.workspace
    assert (changed.dropout, changed.competition, changed.center_values) == (0.1, "priors", True)


def test_a_memory_whose_priors_are_equal_is_named_after_the_first_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    take_step = TrainingStep.__call__

    def level(step: TrainingStep, batch: Any) -> torch.Tensor:  # noqa: ANN401
        for workspace in step.workspaces:
            workspace.priors.copy_(workspace.priors[:1].expand_as(workspace.priors))
        return take_step(step, batch)

    monkeypatch.setattr(TrainingStep, "__call__", level)
    train(vary(workspace={"dropout": 0.0}), tmp_path / "run")
    lines = [x for x in capsys.readouterr().err.splitlines() if not x.startswith("float32")]
    assert lines[0].startswith("epoch 1/3")
    assert "the memory of layer 1 has collapsed: 1 of 4 priors" in lines[1]
    assert len(lines) == 4
    assert rows_of(tmp_path / "run")[0]["health"][0]["overlap"] == 1


def test_the_priors_of_all_layers_are_copied() -> None:
    model = build_model(EXPERIMENT.model)
    workspaces = [m for m in model.modules() if isinstance(m, GlobalWorkspace)]
    copied = memories.copy_priors(workspaces)
    assert copied.shape == (1, 4, 8)
    workspaces[0].priors.zero_()
    assert copied.any()
    assert memories.copy_priors([]).shape == (0,)
