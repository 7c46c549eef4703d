"""Read runs back from their folders."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch

from associative_transformer.data import HeldOut
from associative_transformer.experiment import Experiment, load_experiment
from associative_transformer.interface import UserError
from associative_transformer.models import load_model
from associative_transformer.models.pretrained import PretrainedModel
from associative_transformer.runs.environment import Environment, read_environment
from associative_transformer.runs.folder import History, check_links
from associative_transformer.runs.result import RunResult, damaged_result, read_result


@dataclass(frozen=True)
class RunRecord:
    """The content of a run folder except the model; the run may be incomplete.

    Files are read on first use; a damaged file raises UserError.
    """

    folder: Path
    experiment: Experiment

    @cached_property
    def result(self) -> RunResult | None:
        """The result; None if the run is not complete."""
        return read_result(self.folder)

    @cached_property
    def environment(self) -> Environment | None:
        """The environment of the run; None if the file is missing."""
        return read_environment(self.folder)

    @cached_property
    def history(self) -> History:
        """The metrics and memories of all complete epochs."""
        return History.read(self.folder, None)

    @property
    def num_epochs(self) -> int:
        """Number of complete epochs, counted without reading the memories."""
        path = self.folder / "metrics.jsonl"
        try:
            return len(path.read_bytes().splitlines())
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error


class SavedRun(NamedTuple):
    """A complete run with its model."""

    experiment: Experiment
    model: PretrainedModel
    classes: tuple[str, ...]


def read_run(folder: Path) -> RunRecord:
    """Return the record of a run, which may be incomplete.

    Raises UserError if the folder is not a run folder or its `experiment.yaml` is damaged.
    """
    seeds = sorted(path.parent.name for path in folder.glob("*/experiment.yaml"))
    if seeds:
        raise UserError(
            f"{folder} contains the runs {', '.join(seeds)}: pass one of them, such as "
            f"{folder / seeds[0]}"
        )
    return RunRecord(folder, load_experiment(folder / "experiment.yaml"))


def load_run(folder: Path) -> SavedRun:
    """Load a complete run with its model in evaluation mode.

    Raises UserError if the folder is not a run folder, if the run is incomplete or damaged, or if
    a folder in it is a link.
    """
    run = read_run(folder)
    if run.result is None:
        raise UserError(f"the run in {folder} is not complete: finish it with --resume")
    classes, config = run.result.classes, run.experiment.model
    if len(classes) != config.num_classes:
        difference = f"{len(classes)} classes, but the model has {config.num_classes}"
        raise damaged_result(folder, difference)
    check_links(folder)
    try:
        model = load_model(folder)
        if model.config != config:
            raise ValueError("config.json and experiment.yaml describe different models")
    except Exception as error:  # reading a damaged file can raise nearly anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"the run in {folder} is damaged ({reason}): train it again with --overwrite"
        ) from error
    return SavedRun(run.experiment, model, classes)


def load_test_split(run: SavedRun, source: str | None, device: torch.device) -> HeldOut:
    """Load the test split of a run, from the folder `source` if its images have moved.

    Raises UserError if `source` is given for generated data, or if the classes of the
    data differ from those of the run.
    """
    config = run.experiment.data
    if source is not None:
        config = config.with_storage(source=source)
    data = config.load_test(device)
    if data.class_names != run.classes:
        raise UserError(
            f"the run was trained on the classes {', '.join(run.classes)}, but the data has the "
            f"classes {', '.join(data.class_names)}: pass the --source that the run was trained on"
        )
    return data
