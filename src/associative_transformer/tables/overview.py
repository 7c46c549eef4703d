"""All runs in a folder, of any recipe: what was trained, on what, how well, when and where."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal, NamedTuple

from associative_transformer.files import describe_denied, list_folders
from associative_transformer.interface import UserError, format_count
from associative_transformer.runs.reading import exists
from associative_transformer.runs.result import accuracy_interval, name_unfinished_data
from associative_transformer.runs.saved import RunRecord, read_run
from associative_transformer.scores import Interval
from associative_transformer.tabular import RowGroup, Table

MAX_DEPTH = 3  # folders below the folder of all runs
Order = Literal["recipe", "data", "accuracy", "date", "folder"]


@dataclass(frozen=True)
class ListedRun:
    """What is known about one run; None for what it has not recorded."""

    recipe: str
    seed: int
    data: str
    accuracy: int | float | None  # percent of the saved model on the test split
    interval: Interval | None  # 95 %, of the accuracy
    epochs: int  # so far
    epochs_planned: int
    parameters: int | None
    date: str | None  # on which the run was finished or, if it is not, changed last
    folder: Path

    @property
    def text(self) -> str:
        """The words by which runs are searched."""
        return f"{self.recipe} {self.data} {self.folder}"

    @property
    def is_complete(self) -> bool:
        """Whether the run has a result."""
        return self.accuracy is not None

    def as_dict(self) -> dict[str, Any]:
        """Return the values for JSON, with the state of the run."""
        values = asdict(self) | {"folder": str(self.folder)}
        return values | {"state": "complete" if self.is_complete else "unfinished"}


class FoundRuns(NamedTuple):
    """The runs below a folder, and a sentence about each that cannot be read."""

    runs: list[ListedRun]
    left_out: list[str]


def list_runs(folder: Path) -> FoundRuns:
    """Read all runs below a folder, however they were named, in the order of their folders.

    Raises UserError if the folder itself cannot be read.
    """
    found = FoundRuns([], [])
    for path in _find_folders(folder, found.left_out):
        try:
            found.runs.append(_describe(read_run(path)))
        except UserError as error:
            found.left_out.append(f"Left out: {error}.")
        except PermissionError as error:
            found.left_out.append(f"Left out: {describe_denied(error)}.")
    return found


def _find_folders(folder: Path, left_out: list[str]) -> Iterator[Path]:
    """Yield the run folders below a folder, up to `MAX_DEPTH` levels down."""
    pending = [(path, 1) for path in reversed(list_folders(folder))]
    while pending:
        path, depth = pending.pop()
        try:
            if exists(path / "experiment.yaml"):
                yield path
            elif depth < MAX_DEPTH and not path.is_symlink():  # links may lead in circles
                pending += [(inside, depth + 1) for inside in reversed(list_folders(path))]
        except UserError as error:
            left_out.append(f"Left out: {error}.")


def _describe(run: RunRecord) -> ListedRun:
    experiment, result = run.experiment, run.result
    train = experiment.train
    if result is None:
        last = run.folder / "metrics.jsonl"
        changed = last if exists(last) else run.folder / "experiment.yaml"
        return ListedRun(
            experiment.name,
            train.seed,
            name_unfinished_data(experiment),
            None,
            None,
            run.num_epochs,
            train.epochs,
            None,
            date.fromtimestamp(changed.stat().st_mtime).isoformat(),
            run.folder,
        )
    scores = result.best_validation or result
    return ListedRun(
        experiment.name,
        train.seed,
        result.name_data(experiment.data),
        scores.test_accuracy,
        accuracy_interval(scores),
        result.epochs,
        train.epochs,
        result.live_parameters,
        None if result.timing is None else result.timing.finished,
        run.folder,
    )


def sort_runs(runs: Iterable[ListedRun], order: Order) -> list[ListedRun]:
    """Return the runs in an order; the highest accuracy and the latest date come first."""
    by_name = sorted(runs, key=lambda run: (run.recipe, run.seed, str(run.folder)))
    if order == "accuracy":
        return sorted(by_name, key=lambda run: (run.accuracy is None, -(run.accuracy or 0.0)))
    if order == "date":
        return sorted(by_name, key=lambda run: run.date or "", reverse=True)
    if order == "data":
        return sorted(by_name, key=lambda run: run.data)
    return sorted(by_name, key=lambda run: str(run.folder)) if order == "folder" else by_name


def tabulate_runs(runs: list[ListedRun], folder: Path, left_out: list[str]) -> Table:
    """Return a table of runs, with notes about those that could not be read."""
    columns = ("recipe", "seed", "data", "accuracy, %", "epochs", "parameters", "date", "folder")
    rows = [
        (
            run.recipe,
            str(run.seed),
            run.data.partition(": ")[0],  # without the names of the classes
            _write_accuracy(run),
            f"{run.epochs:,}" if run.is_complete else f"{run.epochs:,} of {run.epochs_planned:,}",
            "-" if run.parameters is None else f"{run.parameters:,}",
            run.date or "-",
            str(run.folder),
        )
        for run in runs
    ]
    num_complete = sum(run.is_complete for run in runs)
    count = f"{format_count(len(runs), 'run')} in {folder}, {num_complete} of them complete."
    return Table("Runs", columns, [RowGroup("", rows)], [count, *left_out])


def _write_accuracy(run: ListedRun) -> str:
    if run.accuracy is None or run.interval is None:
        return "-"
    return f"{run.accuracy:.2f} ({run.interval.low:.1f} to {run.interval.high:.1f})"
