"""The result of a complete run: written by training, read by tables and reports."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from associative_transformer.evaluate import KindScore, Summary
from associative_transformer.files import first_error, write_file
from associative_transformer.interface import UserError

RESULT = "result.json"


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
    None, and absent from the file, if the data set has no questions.
    """

    name: str
    seed: int
    question_types: tuple[str, ...]  # seen in training; empty if there are no questions
    test_accuracy: float  # percent
    test_loss: float
    test_images: int
    test_questions: int | None = None
    test_kinds: tuple[KindScore, ...] | None = None
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
    timing: RunTiming | None = None

    def __post_init__(self) -> None:
        if self.question_types and self.test_kinds is None:
            types = ", ".join(self.question_types)
            raise ValueError(f"test_kinds is missing although question_types are {types}")

    def score(self, kind: str) -> KindScore | None:
        """Return the score of a kind of question; None if there were no such questions."""
        return next((score for score in self.test_kinds or () if score.name == kind), None)


def score_fields(summary: Summary) -> dict[str, Any]:
    """Return a summary as the `test_` fields of a result."""
    return {f"test_{field.name}": getattr(summary, field.name) for field in fields(summary)}


_ADAPTER: TypeAdapter[RunResult] = TypeAdapter(RunResult)


def write_result(folder: Path, result: RunResult) -> None:
    """Write `result.json`."""
    values = asdict(result)
    _drop_questions(values)
    if result.best_validation is not None:
        _drop_questions(values["best_validation"])
    write_file(folder / RESULT, json.dumps(values, indent=2).encode())


def _drop_questions(values: dict[str, Any]) -> None:
    """Remove the keys about questions if the data set has no questions."""
    for key in ("test_questions", "test_kinds"):
        if values[key] is None:
            del values[key]


def read_result(folder: Path) -> RunResult | None:
    """Read the result of a run; None if the run is not complete.

    Raises UserError if the file is damaged: a key is missing or a value has the wrong type.
    """
    path = folder / RESULT
    if not path.exists():
        return None
    try:
        return _ADAPTER.validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        raise damaged_result(folder, first_error(error)) from None
    except OSError as error:
        raise damaged_result(folder, error.strerror or str(error)) from error


def damaged_result(folder: Path, reason: str) -> UserError:
    """Return the error for a `result.json` that cannot be used."""
    path = folder / RESULT
    return UserError(f"{path} is damaged ({reason}): remove it and pass --resume to rewrite it")
