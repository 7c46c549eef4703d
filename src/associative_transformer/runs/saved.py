"""Runs read back from their folders."""

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from associative_transformer.data import HeldOut, ImagesConfig, load_test
from associative_transformer.experiment import Experiment, load_experiment
from associative_transformer.interface import UserError
from associative_transformer.models import load_model
from associative_transformer.models.pretrained import PretrainedModel
from associative_transformer.runs.folder import check_links


class SavedRun(NamedTuple):
    """A complete run, read back."""

    experiment: Experiment
    model: PretrainedModel
    classes: tuple[str, ...]


def load_run(folder: Path) -> SavedRun:
    """Read a complete run back, its model in evaluation mode.

    Raises UserError where the folder holds no run, or one that is not complete or damaged, or a
    link in the place of a folder.
    """
    seeds = sorted(path.parent.name for path in folder.glob("*/experiment.yaml"))
    if seeds:
        raise UserError(f"{folder} holds the runs {', '.join(seeds)}: pass {folder / seeds[0]}")
    experiment = load_experiment(folder / "experiment.yaml")
    if not (folder / "result.json").exists():
        raise UserError(f"the run in {folder} is not complete: finish it with --resume")
    check_links(folder)
    try:
        model = load_model(folder)
        if model.config != experiment.model:
            raise ValueError("config.json and experiment.yaml describe different models")
        return SavedRun(experiment, model, _read_classes(folder, experiment.model.num_classes))
    except Exception as error:  # damaged files make their readers raise nearly anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"the run in {folder} is damaged ({reason}): train it again with --overwrite"
        ) from error


def _read_classes(folder: Path, num_classes: int) -> tuple[str, ...]:
    classes = json.loads((folder / "result.json").read_text())["classes"]
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("the classes in result.json are no list of names")
    if len(classes) != num_classes:
        raise ValueError(f"result.json has {len(classes)} classes, the model {num_classes}")
    return tuple(classes)


def load_test_of(run: SavedRun, source: str | None, device: torch.device) -> HeldOut:
    """Open the test split of a run, from `source` where its images have moved there.

    Raises UserError where the data is generated and has no source, or has other classes.
    """
    config = run.experiment.data
    if source is not None:
        if not isinstance(config, ImagesConfig):
            raise UserError(f"{config.kind} is generated and has no source: leave --source out")
        config = replace(config, source=source)
    data = load_test(config, device)
    if data.class_names != run.classes:
        raise UserError(
            f"the run knows the classes {', '.join(run.classes)} but the data has the classes "
            f"{', '.join(data.class_names)}: pass a --source with those of the run"
        )
    return data
