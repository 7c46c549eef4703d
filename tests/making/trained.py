"""Tiny experiments, ways to stop or crash their runs, and what a run leaves behind."""

import json
import os
import signal
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from associative_transformer.data import SortOfClevrConfig, TriangleConfig
from associative_transformer.experiment import Experiment, TrainConfig
from associative_transformer.interface import Batch
from associative_transformer.models import MODELS, ModelConfig
from associative_transformer.models.ait import AiTConfig
from associative_transformer.models.regularization import Regularization
from associative_transformer.models.relation_network import RelationNetworkConfig
from associative_transformer.models.stem import StemConfig
from associative_transformer.optimization import LossConfig, Schedule
from associative_transformer.training.loop import train
from associative_transformer.training.signals import Interrupted
from associative_transformer.training.step import TrainingStep
from associative_transformer.workspace_config import ImageMemoryConfig, WorkspaceConfig
from making.tiny import tiny

CPU = torch.device("cpu")
STEPS = 4
"""Steps per epoch in all experiments of this file."""

WORKSPACE = WorkspaceConfig(num_priors=4, prior_dim=8, num_heads=2, bottleneck=16)
MODEL = AiTConfig(
    image_size=64,
    patch_size=32,
    embed_dim=16,
    depth=1,
    num_heads=2,
    head_dim=8,
    num_classes=2,
    workspace=WORKSPACE,
)
EXPERIMENT = Experiment(
    "tiny",
    TriangleConfig(num_train=64, num_test=60),
    MODEL,
    TrainConfig(
        epochs=3,
        batch_size=16,
        lr=0.01,
        device="cpu",
        schedule=Schedule(warmup_epochs=1, warmup_lr=0.005),
    ),
)
PER_IMAGE = replace(
    EXPERIMENT,
    name="tiny-per-image",
    model=replace(
        MODEL,
        patch_size=16,
        depth=2,
        workspace=WorkspaceConfig(
            num_priors=4,
            prior_dim=8,
            num_heads=2,
            bottleneck=0.5,
            scope="image",
            image=ImageMemoryConfig(read_head_dim=8),
        ),
    ),
)
"""A memory for each image, whose tokens are 4 x 4 patches."""
WITH_QUESTIONS = replace(
    EXPERIMENT,
    data=SortOfClevrConfig(num_train=16, num_test=6, num_questions=2),
    model=replace(MODEL, image_size=75, patch_size=25, num_classes=10, question_dim=18),
)
RELATIONS = replace(
    WITH_QUESTIONS,
    data=replace(WITH_QUESTIONS.data, val_fraction=0.25),
    model=RelationNetworkConfig(conv_dim=4, hidden_dim=8, num_relation_layers=2),
    train=replace(EXPERIMENT.train, batch_size=12),
)

FOR_TRIANGLES: dict[str, Any] = {  # used for the fields that a configuration has
    "image_size": 64,
    "num_classes": 2,
    "patch_size": 32,
    "embed_dim": 12,
    "num_convs": 4,
    "resolution": 3,
    "module_dim": 3,
    "tie": "after_first",
    "dropout": 0.1,
}


def on_triangles(config_class: type[Any]) -> ModelConfig:
    names = {field.name for field in fields(config_class)}
    return tiny(config_class, **{k: v for k, v in FOR_TRIANGLES.items() if k in names})


ON_TRIANGLES = {config.kind: config for config in map(on_triangles, MODELS)}


def vary(
    data: dict[str, Any] | None = None,
    workspace: dict[str, Any] | None = None,
    **config: Any,  # noqa: ANN401
) -> Experiment:
    """Return `EXPERIMENT` with some fields of its data, workspace and training replaced."""
    e = EXPERIMENT
    model = replace(MODEL, workspace=replace(WORKSPACE, **workspace or {}))
    return Experiment(e.name, replace(e.data, **data or {}), model, replace(e.train, **config))


@dataclass
class Steps:
    """Counts the steps of a test, from 1; some get a signal, an infinite image, or crash."""

    interrupts: set[int] = field(default_factory=set)
    bad: set[int] = field(default_factory=set)
    crashes: set[int] = field(default_factory=set)
    signum: int = signal.SIGINT
    count: int = 0

    def install(self, patch: pytest.MonkeyPatch) -> "Steps":
        take_step = TrainingStep.__call__

        def counted(step: TrainingStep, batch: Batch) -> torch.Tensor:
            self.count += 1
            if self.count in self.interrupts:
                os.kill(os.getpid(), self.signum)
            if self.count in self.crashes:
                raise Crash
            if self.count in self.bad:
                batch = batch._replace(images=batch.images * torch.inf)
            return take_step(step, batch)

        patch.setattr(TrainingStep, "__call__", counted)
        return self


class Crash(BaseException):
    """Simulates the sudden end of a process."""


def train_to_the_end(experiment: Experiment, folder: Path) -> int:
    """Train, resuming after each stop, and return the number of stops."""
    num_stops = 0
    while num_stops < 20:
        try:
            train(experiment, folder, resume=num_stops > 0)
            return num_stops
        except (Interrupted, Crash):
            num_stops += 1
    pytest.fail("the run was stopped 20 times")


def without_timing(row: dict[str, Any]) -> dict[str, Any]:
    assert "timing" in row
    return {key: value for key, value in row.items() if key != "timing"}


def outcome(folder: Path) -> dict[str, Any]:
    """Return everything that a run leaves behind, except values that depend on the clock."""
    metrics = (folder / "metrics.jsonl").read_text().splitlines()
    with np.load(folder / "memory.npz") as saved:
        memory = saved["priors"].tobytes()
    optimizer = torch.load(folder / "checkpoint" / "last" / "optimizer.pt", weights_only=True)
    best = folder / "checkpoint" / "best" / "model.safetensors"
    state = json.loads((folder / "checkpoint" / "last" / "state.json").read_text())
    return {
        "model": (folder / "model.safetensors").read_bytes(),
        "last": (folder / "checkpoint" / "last" / "model.safetensors").read_bytes(),
        "best": best.read_bytes() if best.exists() else None,
        "moments": [
            leaf.numpy().tobytes() for leaf in tree_leaves(optimizer) if isinstance(leaf, Tensor)
        ],
        "state": {k: v for k, v in state.items() if k != "timing" and "digest" not in k},
        "memory": memory,
        "metrics": [without_timing(json.loads(row)) for row in metrics],
        "result": without_timing(json.loads((folder / "result.json").read_text())),
    }


def assert_same_outcome(ours: Path, theirs: Path) -> None:
    a, b = outcome(ours), outcome(theirs)
    assert [key for key in a if a[key] != b[key]] == []


VARIATIONS = {
    **{  # only four images per step, since some models are slow
        kind: replace(
            EXPERIMENT,
            data=TriangleConfig(num_train=16, num_test=8),
            model=model,
            train=replace(EXPERIMENT.train, batch_size=4),
        )
        for kind, model in ON_TRIANGLES.items()
    },
    "batch statistics, dropout and validation": RELATIONS,
    "validation": vary(data={"val_fraction": 0.25}, batch_size=12),
    "dropout in the write": vary(workspace={"dropout": 0.5, "reset_each_epoch": True}),
    "accumulation": vary(accumulation_steps=4, clip_norm=0.5, checkpoint_every=1, log_every=1),
    "muon, averaged weights and validation": vary(
        data={"val_fraction": 0.25},
        batch_size=12,
        optimizer="muon",
        ema_decay=0.9,
        decay_on="matrices",
        loss=LossConfig(label_smoothing=0.1, class_weights="balanced"),
    ),
    "convolutional stem, dropout and stochastic depth": replace(
        EXPERIMENT,
        model=replace(
            MODEL,
            depth=2,
            stem=StemConfig("conv", width=8),
            regularization=Regularization(dropout=0.1, stochastic_depth=0.3),
        ),
    ),
    "learning rate per step": vary(schedule=Schedule(1, 0.0, shape="one_cycle", per="step")),
    "memory per image": vary(
        workspace={"scope": "image", "image": ImageMemoryConfig(8), "dropout": 0.2}, log_every=3
    ),
}
"""Every model, and every way of training that a resumed run has to continue."""
