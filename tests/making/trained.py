"""Tiny experiments, and what their runs leave behind."""

import json
import os
import signal
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from associative_transformer.data import (
    SortOfClevrConfig,
    TriangleConfig,
)
from associative_transformer.experiment import Experiment, Schedule, TrainConfig
from associative_transformer.interface import Batch
from associative_transformer.models.ait import AiTConfig
from associative_transformer.models.brims import BRIMsConfig
from associative_transformer.models.coordination import CoordinationConfig, SlotsConfig
from associative_transformer.models.luna import LunaConfig
from associative_transformer.models.perceiver import FourierConfig, PerceiverConfig
from associative_transformer.models.relation_network import RelationNetworkConfig
from associative_transformer.models.set_transformer import SetTransformerConfig
from associative_transformer.models.vit import ViTConfig
from associative_transformer.training.loop import train
from associative_transformer.training.signals import Interrupted
from associative_transformer.training.step import TrainingStep
from associative_transformer.workspace import WorkspaceConfig

CPU = torch.device("cpu")


WORKSPACE = WorkspaceConfig(num_priors=4, prior_dim=8, num_heads=2, bottleneck=16)


EXPERIMENT = Experiment(
    "tiny",
    TriangleConfig(num_train=64, num_test=60),
    AiTConfig(
        image_size=64,
        patch_size=32,
        embed_dim=16,
        depth=1,
        num_heads=2,
        head_dim=8,
        num_classes=2,
        workspace=WORKSPACE,
    ),
    TrainConfig(
        epochs=3,
        batch_size=16,
        lr=0.01,
        device="cpu",
        schedule=Schedule(warmup_epochs=1, warmup_lr=0.005),
    ),
)


STEPS = 4  # an epoch


VIT = replace(
    EXPERIMENT,
    model=ViTConfig(
        image_size=64,
        patch_size=32,
        embed_dim=16,
        depth=1,
        num_heads=2,
        head_dim=8,
        num_classes=2,
    ),
)


ASKED = replace(
    EXPERIMENT,
    data=SortOfClevrConfig(num_train=16, num_test=6, num_questions=2),
    model=AiTConfig(
        image_size=75,
        patch_size=25,
        embed_dim=16,
        depth=1,
        num_heads=2,
        head_dim=8,
        num_classes=10,
        question_dim=18,
        workspace=WORKSPACE,
    ),
)


RELATIONS = replace(
    ASKED,
    data=replace(ASKED.data, val_fraction=0.25),
    model=RelationNetworkConfig(conv_dim=4, hidden_dim=8, num_relation_layers=2),
    train=replace(EXPERIMENT.train, batch_size=12),
)


TRIANGLE_SIZES = {"image_size": 64, "num_classes": 2}


COMPARED = {  # by name, each with dropout where it has it
    "coordination": CoordinationConfig(
        **TRIANGLE_SIZES, patch_size=32, embed_dim=16, slots=SlotsConfig(num_slots=3)
    ),
    "perceiver": PerceiverConfig(
        **TRIANGLE_SIZES,
        fourier=FourierConfig(num_bands=2),
        num_latents=3,
        latent_dim=8,
        depth=2,
        tie="after_first",
        dropout=0.1,
    ),
    "set transformer": SetTransformerConfig(
        **TRIANGLE_SIZES, patch_size=32, embed_dim=16, hidden_dim=16, depth=1, num_inducing=2
    ),
    "brims": BRIMsConfig(
        **TRIANGLE_SIZES, resolution=3, embed_dim=12, num_modules=6, module_dim=2
    ),
    "luna": LunaConfig(
        **TRIANGLE_SIZES, patch_size=32, embed_dim=16, num_heads=2, num_packed=2, dropout=0.1
    ),
}


def vary(
    data: dict[str, Any] | None = None,
    workspace: dict[str, Any] | None = None,
    **config: Any,  # noqa: ANN401
) -> Experiment:
    e = EXPERIMENT
    model = replace(e.model, workspace=replace(WORKSPACE, **workspace or {}))
    return Experiment(e.name, replace(e.data, **data or {}), model, replace(e.train, **config))


@dataclass
class Steps:
    """Counts the steps of a test; signals, spoils or crashes at some of them, from 1."""

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
    """The process ends here."""


def train_to_the_end(experiment: Experiment, folder: Path) -> int:
    """Train, resuming as often as it is stopped; return how often that was."""
    num_stops = 0
    while num_stops < 20:
        try:
            train(experiment, folder, resume=num_stops > 0)
            return num_stops
        except (Interrupted, Crash):
            num_stops += 1
    pytest.fail("the run never ended")


def without_timing(row: dict[str, Any]) -> dict[str, Any]:
    assert "timing" in row
    return {key: value for key, value in row.items() if key != "timing"}


def outcome(folder: Path) -> dict[str, Any]:
    """All that a run leaves behind and that does not depend on the clock."""
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
            tensor.numpy().tobytes()
            for moments in optimizer["state"].values()
            for tensor in moments.values()
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
    "plain": EXPERIMENT,
    "vit": VIT,
    "relation network with batch statistics and dropout": RELATIONS,
    "validation": vary(data={"val_fraction": 0.25}, batch_size=12),
    "dropout in the write": vary(workspace={"dropout": 0.5, "reset_each_epoch": True}),
    "accumulation": vary(accumulation_steps=4, clip_norm=0.5, checkpoint_every=1, log_every=1),
    **{name: replace(EXPERIMENT, model=model) for name, model in COMPARED.items()},
}
