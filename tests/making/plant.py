"""Folders of runs as training leaves them, without training."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from associative_transformer.experiment import Experiment, save_experiment

DEVICE = "x86_64"


def result_of(experiment: Experiment, accuracy: float = 80.0, **more: Any) -> dict[str, Any]:  # noqa: ANN401
    """Write down the result of a run without questions."""
    timing = {"seconds": 9.0, "samples_per_second": 5.0, "finished": "2026-11-24"}
    return {
        "name": experiment.name,
        "seed": experiment.train.seed,
        "epochs": experiment.train.epochs,
        "precision": "float32",
        "question_types": [],
        "test_kinds": [],
        "test_accuracy": accuracy,
        "best_validation": None,
        "timing": timing,
        **more,
    }


def answers_of(
    experiment: Experiment,
    binary: float = 70.0,
    other: float = 90.0,
    **more: Any,  # noqa: ANN401
) -> dict[str, Any]:
    """Write down the result of a run with questions."""
    types = experiment.data.question_types
    scores = {"non-relational": (other, 49.6), "binary": (binary, 42.7)}
    kinds = [
        {
            "name": name + subtype,
            "accuracy": accuracy - len(subtype),
            "interval": [0.0, 100.0],
            "guess": guess,
            "questions": 2_000,
            "images": 200,
        }
        for name, (accuracy, guess) in scores.items()
        if name in types
        for subtype in ("", "/shape")
    ]
    asked = {"question_types": list(types), "test_kinds": kinds}
    return result_of(experiment, (binary + other) / 2, **asked | more)


def put(
    root: Path,
    experiment: Experiment,
    seed: int = 0,
    result: dict[str, Any] | None = None,
    folder: str | None = None,
    device: str = DEVICE,
) -> Path:
    """Make the folder of a run, complete where there is a result."""
    experiment = replace(experiment, train=replace(experiment.train, seed=seed))
    path = root / (folder or experiment.name) / str(seed)
    path.mkdir(parents=True)
    save_experiment(experiment, path / "experiment.yaml")
    environment = {"python": "3.11.7", "device": device, "cuda": None, "threads": 1}
    (path / "environment.json").write_text(json.dumps(environment))
    if result is not None:
        (path / "result.json").write_text(json.dumps(result))
    return path
