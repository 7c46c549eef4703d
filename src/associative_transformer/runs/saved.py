"""Read runs back from their folders."""

import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError

from associative_transformer import distributed
from associative_transformer.compute import Precision
from associative_transformer.data import HeldOut
from associative_transformer.data.parquet import find_classes
from associative_transformer.data.questions import TYPES
from associative_transformer.experiment import Experiment, load_experiment
from associative_transformer.files import digest_file, read_file
from associative_transformer.interface import UserError, format_count
from associative_transformer.models import build_model, load_model
from associative_transformer.models.preprocessing import Preprocessing
from associative_transformer.models.pretrained import PretrainedModel
from associative_transformer.models.saved_config import split_config
from associative_transformer.runs.card import write_card
from associative_transformer.runs.checkpoint import WEIGHTS, load_best, restore_weights
from associative_transformer.runs.environment import Environment, read_environment
from associative_transformer.runs.folder import History, check_links
from associative_transformer.runs.lock import hold_folder
from associative_transformer.runs.reading import (
    MAX_JSON,
    check_size,
    count_rows,
    exists,
    has_checkpoint,
    how_to_restore,
    parse_json,
)
from associative_transformer.runs.result import RESULT, RunResult, damaged_result, read_result

CONFIG = "config.json"


@dataclass(frozen=True)
class RunRecord:
    """The content of a run folder except the model; the run may be incomplete.

    Files are read on first use. A damaged file raises UserError; one that may not be read, and may
    be intact, raises PermissionError.
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
            return count_rows(path)
        except PermissionError:
            raise
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"cannot read {path}: {reason}; copy it again") from error


class SavedRun(NamedTuple):
    """A complete run with its model."""

    experiment: Experiment
    model: PretrainedModel
    classes: tuple[str, ...]
    result: RunResult | None = None  # None for a model that was not read from a run folder

    @property
    def precision(self) -> Precision:
        """The precision in which the model was scored."""
        return "float32" if self.result is None else self.result.test_precision


class SavedModel(NamedTuple):
    """A trained model, from a run folder or from any other folder with a saved model."""

    model: PretrainedModel
    preprocessing: Preprocessing
    classes: tuple[str, ...]
    precision: Precision = "float32"  # in which it was scored


def read_run(folder: Path) -> RunRecord:
    """Return the record of a run, which may be incomplete.

    Raises UserError if the folder is not a run folder or its `experiment.yaml` is damaged.
    """
    exists(folder)  # raises UserError if that cannot be told
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
    a folder in it is a link; and PermissionError if a file may not be read.
    """
    run = read_run(folder)
    if run.result is None:
        raise UserError(f"the run in {folder} is not complete: finish it with --resume")
    classes, config = run.result.classes, run.experiment.model
    if len(classes) != config.num_classes:
        count = format_count(len(classes), "class")
        raise damaged_result(folder, f"{count}, but the model has {config.num_classes}")
    check_links(folder)
    try:
        model = _open_model(folder, run.experiment, run.result)
    except ValueError as error:
        raise UserError(
            f"the model of the run in {folder} is damaged ({error}): {how_to_restore(folder)}"
        ) from error
    return SavedRun(run.experiment, model, classes, run.result)


def load_run_or_model(folder: Path) -> SavedRun | PretrainedModel:
    """Load a run, or a model that `save_pretrained` has written to a folder of its own.

    Raises the errors of `load_run`, or UserError like `load_model`.
    """
    is_run = exists(folder / "experiment.yaml") or not exists(folder / CONFIG)
    return load_run(folder) if is_run else load_model(folder)


def load_saved(folder: Path) -> SavedModel:
    """Load the model of a run, or one that `save_pretrained` has written to a folder.

    Raises UserError like `load_run`, or if the model was saved without its preprocessing. Classes
    without names are numbered.
    """
    model = load_run_or_model(folder)
    if isinstance(model, SavedRun):
        data = model.experiment.data
        return SavedModel(model.model, data.preprocessing, model.classes, model.precision)
    if model.preprocessing is None:
        raise UserError(
            f"{folder} does not say how to prepare images: use the run folder instead, or set "
            "`preprocessing` of the model and save it again"
        )
    if unknown := sorted(set(model.preprocessing.question_types) - set(TYPES)):
        raise UserError(f"{folder}: {CONFIG} names unknown question types {', '.join(unknown)}")
    names = model.class_names or tuple(map(str, range(model.config.num_classes)))
    return SavedModel(model, model.preprocessing, names)


def _open_model(folder: Path, experiment: Experiment, result: RunResult) -> PretrainedModel:
    """Load the model of a complete run. Raises ValueError with the reason if it is damaged."""
    try:
        text, _ = split_config(folder, read_file(folder / CONFIG, MAX_JSON))
        config: object = parse_json(text, type(experiment.model))
        if config != experiment.model:  # before it is built
            raise ValueError(f"{CONFIG} and experiment.yaml describe different models")
        check_size(folder / WEIGHTS)
        if result.weights not in (None, digest_of_model(folder)):
            raise ValueError(f"the content of {WEIGHTS} has changed since training")
        model = load_model(folder)
        model.describe(experiment.data.preprocessing, result.classes)
        return model
    except PermissionError:  # the files may be intact
        raise
    except Exception as error:  # reading a damaged file can raise nearly anything
        if isinstance(error.__cause__, PermissionError):  # as load_model reports it
            raise error.__cause__ from None
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{WEIGHTS} or {CONFIG}: {reason}") from error


def digest_of_model(folder: Path) -> str:
    """Return the digest of the weights of a run, which its result contains."""
    return digest_file(folder / WEIGHTS)


def restore_result(folder: Path, experiment: Experiment) -> RunResult | None:
    """Return the result of a complete run, whose model is first restored if it is damaged.

    Returns None if the run has to continue: it is not complete, or its result is damaged but can
    be written again from the last checkpoint. Raises UserError if there is no checkpoint for that.
    """
    try:
        result = read_result(folder)
    except UserError as error:
        if not has_checkpoint(folder) or (folder / RESULT).is_dir():
            raise
        reason = str(error).rpartition(": ")[0]
        print(f"{reason}; it is written again from the last checkpoint", file=sys.stderr)
        return None
    if result is None:
        return None
    try:
        _open_model(folder, experiment, result)
    except ValueError as error:
        reason = f"the model of the run in {folder} is damaged ({error})"
        if not has_checkpoint(folder):
            raise UserError(f"{reason}: {how_to_restore(folder)}") from error
        if not distributed.is_first():
            return result
        with hold_folder(folder):
            _restore_model(folder, experiment, result)
        print(f"{reason} and was restored from the checkpoint", file=sys.stderr)
    return result


def _restore_model(folder: Path, experiment: Experiment, result: RunResult) -> None:
    """Write the final model of a complete run from its checkpoint."""
    model = build_model(experiment.model)
    state = restore_weights(folder / "checkpoint", model)
    if state["epoch"] != result.epochs:
        epochs = format_count(result.epochs, "epoch")
        raise UserError(
            f"the checkpoint of {folder} ends after {state['epoch']} of {epochs}, "
            "so the model cannot be restored: train the run again with --overwrite"
        )
    if result.best_validation is not None:
        load_best(folder / "checkpoint", model, state["best_digest"])
    save_model(folder, model, experiment, result)


def save_model(
    folder: Path, model: PretrainedModel, experiment: Experiment, result: RunResult
) -> None:
    """Write the files of the model of a run. Raises UserError if that fails."""
    model.describe(experiment.data.preprocessing, result.classes)
    calibration = (result.best_validation or result).test_calibration
    model.temperature = None if calibration is None else calibration.temperature
    try:
        model.save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write the model to {folder}: {error}") from error
    write_card(folder, model, experiment, result)


def load_test_split(run: SavedRun, source: str | None, device: torch.device) -> HeldOut:
    """Load the test split of a run, from the folder `source` if its images have moved.

    The classes are those of the run, whether or not there are test images of each. Raises
    UserError if `source` is given for generated data, or if the data has a class that the run
    was not trained on.
    """
    config = run.experiment.data
    if source is not None:
        config = config.with_storage(source=source)
    elif config.source is not None and not Path(config.source).expanduser().exists():
        raise UserError(
            f"the images of the run are no longer in {config.source}: pass their folder with "
            "--source"
        )
    data = config.load_test(device)
    if data.class_names == run.classes:
        return data
    index = find_classes(data.class_names, run.classes)
    present = sorted(set(data.test.labels.tolist()))
    if unknown := [data.class_names[label] for label in present if index[label] < 0]:
        raise UserError(
            f"the run was trained on the classes {', '.join(run.classes)}, but the data has the "
            f"classes {', '.join(data.class_names)}: pass the --source that the run was trained "
            f"on, or remove the test images of {', '.join(unknown)}"
        )
    test = replace(data.test, labels=torch.tensor(index)[data.test.labels])
    return data._replace(test=test, class_names=run.classes)
