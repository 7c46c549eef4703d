"""Run folders like those that training writes, made without training."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from associative_transformer.data.known import KNOWN_DATA_SETS
from associative_transformer.experiment import Experiment, fingerprint, save_experiment
from associative_transformer.models import build_model
from associative_transformer.runs.folder import prepare_folder
from associative_transformer.runs.plan import PlannedRun
from associative_transformer.runs.result import RunResult, read_result

DEVICE = "x86_64"


def result_of(experiment: Experiment, accuracy: float = 80.0, **changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return the content of `result.json` of a run without questions, with some changes."""
    timing = {"seconds": 9.0, "samples_per_second": 5.0, "finished": "2026-11-24"}
    known = KNOWN_DATA_SETS.get(experiment.data.display_name)
    is_real = known is not None and experiment.model.num_classes == len(known.classes)
    numbered = [f"class {i}" for i in range(experiment.model.num_classes)]
    return {
        "name": experiment.name,
        "seed": experiment.train.seed,
        "question_types": [],
        "test_accuracy": accuracy,
        "test_loss": 0.5,
        "test_images": known.test_images if is_real else 200,
        "best_validation": None,
        "model": "last epoch",
        "epochs": experiment.train.epochs,
        "skipped_steps": 0,
        "skipped_images": 0,
        "data": "digest",
        "precision": "float32",
        "live_parameters": 5,
        "total_parameters": 6,
        "classes": list(known.classes) if is_real else numbered,
        "timing": timing,
        **changes,
    }


def answers_of(
    experiment: Experiment,
    binary: float = 70.0,
    other: float = 90.0,
    **changes: Any,  # noqa: ANN401
) -> dict[str, Any]:
    """Return the content of `result.json` of a run with questions, with some changes."""
    types = experiment.data.question_types
    scores = {"non-relational": (other, 49.6), "binary": (binary, 42.7)}
    kinds = [
        kind_of(name + subtype, accuracy - len(subtype), guess)
        for name, (accuracy, guess) in scores.items()
        if name in types
        for subtype in ("", "/shape")
    ]
    asked = {"question_types": list(types), "test_questions": 4_000, "test_kinds": kinds}
    return result_of(experiment, (binary + other) / 2, **asked | changes)


def kind_of(name: str, accuracy: float, guess: float) -> dict[str, Any]:
    """Return the score of one kind of question, as in `result.json`."""
    return {
        "name": name,
        "accuracy": accuracy,
        "interval": [accuracy - 10, accuracy + 10],
        "guess": guess,
        "questions": 2_000,
        "images": 200,
    }


def put_result(folder: Path, result: dict[str, Any]) -> RunResult:
    """Write a result to a run folder and return it as read by the package."""
    (folder / "result.json").write_text(json.dumps(result))
    read = read_result(folder)
    assert read is not None
    return read


def put_run(
    root: Path,
    experiment: Experiment,
    seed: int = 0,
    result: dict[str, Any] | None = None,
    folder: str | None = None,
    device: str = DEVICE,
) -> Path:
    """Write the folder of a run; the run is complete if `result` is given."""
    experiment = replace(experiment, train=replace(experiment.train, seed=seed))
    path = root / (folder or experiment.name) / str(seed)
    path.mkdir(parents=True)
    save_experiment(experiment, path / "experiment.yaml")
    environment = {"python": "3.11.7", "device": device, "cuda": None, "threads": 1}
    (path / "environment.json").write_text(json.dumps(environment))
    if result is not None:
        (path / "result.json").write_text(json.dumps(result))
    return path


def complete_planned(run: PlannedRun) -> int:
    """Complete a planned run without training, with scores that depend on it; return 0."""
    digits = int(fingerprint(run.experiment), 16) % 5_000 / 100 + run.experiment.train.seed
    scores = {"test_accuracy": 90 - digits, "test_loss": 0.5, "test_images": 200}
    best = {"epoch": 1, "validation_accuracy": 20 + digits, **scores}
    scored = best if getattr(run.experiment.data, "val_fraction", 0.0) else None
    run.folder.mkdir(parents=True, exist_ok=True)
    save_experiment(run.experiment, run.folder / "experiment.yaml")
    put_result(run.folder, result_of(run.experiment, 90 - digits, best_validation=scored))
    return 0


def make_complete_run(folder: Path, experiment: Experiment) -> Path:
    """Write a complete run on Triangle, whose model has random weights."""
    prepare_folder(folder, experiment, torch.device("cpu"), resume=False)
    build_model(experiment.model).save_pretrained(folder)
    put_result(folder, result_of(experiment, classes=["equilateral", "other"]))
    return folder
