"""The result of a complete run: written by training, read by tables and reports."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from associative_transformer.calibration import Calibration
from associative_transformer.compute import Precision
from associative_transformer.data import DataConfig, DataSet, HeldOut
from associative_transformer.data.known import KNOWN_DATA_SETS, find_difference
from associative_transformer.evaluate import KindScore, Summary
from associative_transformer.experiment import Experiment
from associative_transformer.files import write_file
from associative_transformer.interface import UserError, format_count
from associative_transformer.runs.reading import has_checkpoint, how_to_restore, read_json
from associative_transformer.scores import Interval, wilson_interval

RESULT = "result.json"
MAX_NAMED = 3  # classes that are listed to describe a data set
OPTIONAL = (
    *("test_questions", "test_kinds", "test_interval", "test_top5_accuracy", "test_top5_interval"),
    *("test_balanced_accuracy", "test_mean_precision", "test_mean_f1", "test_calibration"),
    *("weights", "train_images", "data_of_test"),
)
"""Keys that are absent from the file if they have no value."""


@dataclass(frozen=True, kw_only=True)
class BestValidation:
    """Scores of the epoch with the best validation accuracy."""

    epoch: int  # from 1
    validation_accuracy: float  # percent
    test_accuracy: float  # percent
    test_loss: float
    test_images: int
    test_questions: int | None = None
    test_kinds: tuple[KindScore, ...] | None = None
    test_interval: Interval | None = None  # this and below: see `Summary`; not in early runs
    test_top5_accuracy: float | None = None
    test_top5_interval: Interval | None = None
    test_balanced_accuracy: float | None = None
    test_mean_precision: float | None = None
    test_mean_f1: float | None = None
    test_calibration: Calibration | None = None


@dataclass(frozen=True, kw_only=True)
class RunTiming:
    """The part of a result that depends on the clock."""

    seconds: float  # of training
    samples_per_second: float | None = None  # not in the earliest runs
    finished: str | None = None  # date, such as 2026-11-24; not in the earliest runs


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The result of a complete run; its fields are the keys of `result.json`, in the same order.

    The `test_` fields hold the scores of the last epoch. `test_questions` and `test_kinds` are
    None, and absent from the file, if the data set has no questions. The temperature in
    `test_calibration` is that of the saved model: only `best_validation` has one.
    """

    name: str
    seed: int
    question_types: tuple[str, ...]  # seen in training; empty if there are no questions
    test_accuracy: float  # percent
    test_loss: float
    test_images: int
    test_questions: int | None = None
    test_kinds: tuple[KindScore, ...] | None = None
    test_interval: Interval | None = None  # this and below: see `Summary`; not in early runs
    test_top5_accuracy: float | None = None
    test_top5_interval: Interval | None = None
    test_balanced_accuracy: float | None = None
    test_mean_precision: float | None = None
    test_mean_f1: float | None = None
    test_calibration: Calibration | None = None
    best_validation: BestValidation | None = None  # None without a validation split
    model: str  # the saved one: "last epoch" or "best validation epoch"
    epochs: int
    skipped_steps: int
    skipped_images: int
    data: str  # digest of the data set
    precision: str
    live_parameters: int
    total_parameters: int  # as the paper counts them
    classes: tuple[str, ...]
    weights: str | None = None  # digest of model.safetensors; this and below: not in early runs
    train_images: int | None = None  # with the validation images
    data_of_test: str | None = None  # digest of the test images
    test_precision: Precision = "float32"  # of all scores
    compiled: bool = False
    timing: RunTiming | None = None

    def __post_init__(self) -> None:
        epoch, scores = self.epochs, [(self.test_accuracy, self.test_images)]
        if best := self.best_validation:
            epoch = best.epoch
            scores.append((best.test_accuracy, best.test_images))
        if not 1 <= epoch <= self.epochs:
            raise ValueError(f"epoch {epoch} of {format_count(self.epochs, 'epoch')}")
        for accuracy, images in scores:
            if not 0 <= accuracy <= 100 or images < 0:
                raise ValueError(f"{accuracy} % of {format_count(images, 'test image')}")
        if self.question_types and self.test_kinds is None:
            types = ", ".join(self.question_types)
            raise ValueError(f"test_kinds is missing although question_types are {types}")

    def other_data(self, config: DataConfig) -> str | None:
        """Return what the images are if they are not those of the named data set; else None.

        A data set is recognized by its classes and sizes; generated data is always what it says.
        """
        splits = getattr(config, "splits", None)
        chosen: tuple[str, ...] = (splits and splits.classes) or ()
        is_limited = getattr(config, "limit", None) is not None  # then the sizes say nothing
        few_to_train = is_limited or _is_limited_in_training(config)
        name = config.display_name
        difference = find_difference(
            name,
            self.classes,
            test_images=None if is_limited else self.test_images,
            train_images=None if few_to_train else self.train_images,
            num_skipped=self.skipped_images,
            is_subset=bool(chosen),
        )
        if config.is_generated or (difference is None and not chosen):
            return None
        if difference is None:
            title = KNOWN_DATA_SETS[name].title if name in KNOWN_DATA_SETS else name
            return f"only the classes {', '.join(chosen)} of {title}"
        images = _describe_images(self.test_images, self.classes)
        return f"own images, not {KNOWN_DATA_SETS[name].title} ({difference}): {images}"

    def is_tested_on(self, data: HeldOut) -> bool:
        """Return whether a test split is the one that this run was scored on.

        Early runs have no digest of it: then the number of images decides.
        """
        if self.data_of_test is None:
            return len(torch.unique(data.test.rows)) == self.test_images
        return data.digest == self.data_of_test

    def name_data(self, config: DataConfig) -> str:
        """Return what to call the data of this run, in figures and reports."""
        name = self._name_images(config)
        if self.train_images is not None and _is_limited_in_training(config):
            return f"{format_count(self.train_images, 'training image')} of {name}"
        return name

    def _name_images(self, config: DataConfig) -> str:
        if other := self.other_data(config):
            return other
        if config.source is None or config.display_name in KNOWN_DATA_SETS:
            return config.display_name
        images = _describe_images(self.test_images, self.classes)
        return f"a folder passed as {config.display_name}: {images}"

    def score(self, kind: str) -> KindScore | None:
        """Return the score of a kind of question; None if there were no such questions."""
        return next((score for score in self.test_kinds or () if score.name == kind), None)


def name_test_data(result: RunResult | None, config: DataConfig, data: HeldOut) -> str:
    """Return what to call test images, which may not be those of the run."""
    if result is not None and result.is_tested_on(data):
        return result.name_data(config)
    images = _describe_images(len(torch.unique(data.test.rows)), data.class_names)
    return f"images that the run was not scored on: {images}"


def name_unfinished_data(experiment: Experiment) -> str:
    """Return what to call the data of a run without a result, which would list the classes.

    A folder may contain the images of the named data set or others. They are known to be others if
    the model has a different number of classes, or if the run has computed their mean.
    """
    config, num_classes = experiment.data, experiment.model.num_classes
    name = config.display_name
    splits = getattr(config, "splits", None)
    if splits and splits.classes:
        return f"only the classes {', '.join(splits.classes)} of {name}"
    if config.source is None:  # from the hub, or generated
        return name
    known = KNOWN_DATA_SETS.get(name)
    if known is None:
        return f"a folder passed as {name}"
    if num_classes != known.num_classes:
        difference = f"{format_count(num_classes, 'class')} instead of {known.num_classes}"
        return f"own images, not {known.title} ({difference})"
    if getattr(config, "measured", None) is not None and config.mean != "auto":
        return f"own images, not {known.title}"
    return f"a folder passed as {name}, to be compared with {known.title} when the run is complete"


def _describe_images(number: int, classes: Sequence[str]) -> str:
    shown = ", ".join(classes[:MAX_NAMED]) + ", ..." * (len(classes) > MAX_NAMED)
    counts = f"{format_count(number, 'test image')} of {format_count(len(classes), 'class')}"
    return f"{counts} ({shown})"


def score_fields(summary: Summary) -> dict[str, Any]:
    """Return a summary as the `test_` fields of a result."""
    return {f"test_{field.name}": getattr(summary, field.name) for field in fields(summary)}


def data_fields(data: DataSet) -> dict[str, Any]:
    """Return the fields of a result that describe its data, except the digest of all of them."""
    splits = [split for split in (data.train, data.validation) if split is not None]
    return {
        "train_images": sum(len(torch.unique(split.rows)) for split in splits),
        "data_of_test": HeldOut(data.test, tuple(data.class_names)).digest,
    }


def write_result(folder: Path, result: RunResult) -> None:
    """Write `result.json`."""
    values = asdict(result)
    _drop_missing(values)
    if result.best_validation is not None:
        _drop_missing(values["best_validation"])
    write_file(folder / RESULT, json.dumps(values, indent=2).encode())


def _drop_missing(values: dict[str, Any]) -> None:
    """Remove the optional keys that have no value."""
    for key in OPTIONAL:
        if values.get(key, key) is None:
            del values[key]


def accuracy_interval(scores: RunResult | BestValidation) -> Interval:
    """Return the 95 % interval of a test accuracy.

    Early runs do not hold it. For images, it is computed from their number; for questions, it is
    that of all kinds together, which early runs do hold.
    """
    if scores.test_interval is not None:
        return scores.test_interval
    for kind in scores.test_kinds or ():
        if kind.name == "all":
            return kind.interval
    count = scores.test_questions or scores.test_images
    return wilson_interval(scores.test_accuracy / 100, count)


def read_result(folder: Path) -> RunResult | None:
    """Read the result of a run; None if the run is not complete.

    Raises UserError if the file is damaged (a key is missing or a value has the wrong type), and
    PermissionError if it may not be read.
    """
    try:
        return read_json(folder / RESULT, RunResult)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:  # the file may be intact
        raise
    except OSError as error:
        raise damaged_result(folder, error.strerror or str(error)) from error
    except ValueError as error:
        raise damaged_result(folder, str(error)) from None


def damaged_result(folder: Path, reason: str) -> UserError:
    """Return the error for a `result.json` that cannot be used."""
    path = folder / RESULT
    remedy = how_to_restore(folder)
    if path.is_dir() and has_checkpoint(folder):  # which --resume does not replace
        remedy = f"remove it and {remedy}"
    return UserError(f"{path} is damaged ({reason}): {remedy}")


def _is_limited_in_training(config: Any) -> bool:  # noqa: ANN401
    splits = getattr(config, "splits", None)
    return splits is not None and splits.train_limit is not None
