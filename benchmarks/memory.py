"""Measure what a memory adds: python benchmarks/memory.py run ablations --source PATH/TO/cifar10

    python benchmarks/memory.py run TABLE [ROW ...] --source PATH/TO/cifar10 --seeds 0 1 2 --jobs 2
    python benchmarks/memory.py steps TABLE
    python benchmarks/memory.py table TABLE
    python benchmarks/memory.py shifts TABLE [ROW ...]

The first command trains the missing runs of a table, beginning with the first seed of all rows,
and writes a file for each to `results/memory/TABLE`, or to `results/memory/float32/TABLE` with
`--precision float32`. With several jobs, each run has one thread.
The second times a training step of each row, all rows in turn, and writes
`results/memory/steps/TABLE.json`.
The third prints the table as Markdown: accuracy of each seed, its mean and the difference from a
reference row, paired by seed, both with 95 % intervals (Student's t). The tables are those of
`memory_rows.py`; `goal` takes the learning rate of each row from `goal-rates`, and `triangle` and
`sort-of-clevr` need no `--source`. The fourth command prints the accuracies on changed test images
(`shifts.py`), and the differences if the memory is also written at test time.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

from associative_transformer.compute import set_up_cpu
from associative_transformer.data import SortOfClevrConfig
from associative_transformer.files import make_folder, write_file
from associative_transformer.interface import UserError
from associative_transformer.tabular import RowGroup, Table
from memory_rows import TABLES, Comparison, Row, Settings
from memory_steps import read_steps, write_steps
from memory_training import train
from shifts import SHIFTS
from statistics_of_runs import interval

RESULTS = Path(__file__).resolve().parents[1] / "results" / "memory"
COLUMNS = ("row", "parameters", "accuracy by seed, %", "mean, %", "difference", "step, ms", "n")
DATA = {"cifar10": "CIFAR-10", "triangle": "Triangle", "sort-of-clevr": "Sort-of-CLEVR"}
ALL = "all"  # kinds of questions
PRECISION = "bfloat16"  # of the tables in docs/explanation/memory.md
MAX_SEEDS = 100
Runs = dict[int, dict[str, Any]]  # results by seed
SOURCE = "PATH/TO/cifar10"  # placeholder for the path on this machine


class Run(NamedTuple):
    """A run of a row."""

    table: str
    name: str
    seed: int
    results: Path

    @property
    def row(self) -> Row:
        """The row that it belongs to."""
        return TABLES[self.table].rows[self.name]

    @property
    def file(self) -> Path:
        """The file of its result; a run that tables share is in the folder of its home table."""
        table, name = self.row.home or (self.table, self.name)
        return self.results / table / f"{name}-{self.seed}.json"

    @property
    def settings(self) -> Settings:
        """How it is trained. Raises UserError if its learning rate is not known yet."""
        settings = replace(TABLES[self.table].settings, **self.row.changes)
        return replace(settings, lr=self.best_rate()) if self.row.rates else settings

    def best_rate(self) -> float:
        """Return the learning rate with the highest accuracy on the validation split."""
        runs = [Run("goal-rates", name, 0, self.results) for name in self.row.rates]
        missing = [run.name for run in runs if not run.file.exists()]
        if missing:
            raise UserError(
                f"the learning rate of {self.name} is not known, because the runs "
                f"{', '.join(missing)} are missing: first run "
                "`python benchmarks/memory.py run goal-rates`"
            )
        return max(runs, key=lambda run: run.read()["accuracy"]).settings.lr

    def read(self) -> dict[str, Any]:
        """Return its result."""
        content: dict[str, Any] = json.loads(self.file.read_text())
        return content


def train_here(run: Run, options: argparse.Namespace) -> None:
    """Train a run in this process and keep its result."""
    set_up_cpu()
    table, name = run.row.home or (run.table, run.name)
    settings = run.settings.small() if options.small else run.settings
    words = ["python benchmarks/memory.py run", table, name, f"--seeds {run.seed}"]
    words += [f"--source {SOURCE}"] * (settings.data == "cifar10")
    words += [f"--precision {options.precision}"]
    words += ["--small"] * options.small
    result = {
        "command": " ".join(words),
        **{"table": table, "row": name, "seed": run.seed},
        **train(run.row.build, options.source, settings, run.seed, options.precision),
    }
    make_folder(run.file.parent)
    write_file(run.file, (json.dumps(result, indent=2) + "\n").encode())


def train_in_process(run: Run, options: argparse.Namespace) -> bool:
    """Train a run in a process of its own; return whether it succeeded."""
    if run.file.exists():
        return True
    threads = 1 if options.jobs > 1 else os.cpu_count() or 1
    words = [__file__, "train", run.table, run.name, "--seeds", str(run.seed)]
    words += ["--source", options.source] if options.source else []
    words += ["--results", str(options.results)]
    words += ["--precision", options.precision, *["--small"] * options.small]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        print(done.stdout + done.stderr, file=sys.stderr, flush=True)
        print(f"{run.file.name}: failed", flush=True)
        return False
    result = run.read()
    accuracy, seconds = result["accuracy"], result["timing"]["seconds"]
    print(f"{run.file.name}: {accuracy:.2f} % in {seconds:.0f} s", flush=True)
    return True


def tabulate(table: str, results: Path) -> Table:
    """Return the table of the finished runs."""
    comparison = TABLES[table]
    finished = {name: read_runs(table, name, results) for name in comparison.rows}
    steps = read_steps(results, table)
    settings = comparison.settings
    has_questions = settings.data == "sort-of-clevr"
    kinds = SortOfClevrConfig().question_types if has_questions else ()
    groups: dict[str, list[tuple[str, ...]]] = {}
    compared = set()
    for kind in (ALL, *kinds):
        for name, row in comparison.rows.items():
            rival = find_best(row.references, finished)
            rivals = finished[rival] if rival not in ("", name) else {}
            title = f"{kind} questions" if has_questions else row.group or comparison.title
            cells = describe(finished[name], rivals, kind, steps.seconds.get(name, []))
            groups.setdefault(title, []).append((row.title, *cells))
            compared |= {f"{rival} ({comparison.rows[rival].title})"} if rival else set()
    notes = [
        f"{DATA[settings.data]}, patch {settings.patch_size}, {settings.epochs} epochs, scored on "
        f"the {settings.scored_on} images; intervals of 95 % (Student's t)."
    ]
    if steps.note:
        notes.append(steps.note)
    if compared:
        notes.append(f"Difference from {', '.join(sorted(compared))}, paired by seed.")
    return Table(comparison.title, COLUMNS, [RowGroup(*group) for group in groups.items()], notes)


def tabulate_shifts(table: str, results: Path, rows: Sequence[str] = ()) -> Table:
    """Return the accuracies of the finished runs of some or all rows on changed test images."""
    groups: dict[str, list[tuple[str, ...]]] = {}
    for name in rows or TABLES[table].rows:
        row = TABLES[table].rows[name]
        runs = [run["shifts"] for run in read_runs(table, name, results).values()]
        for shift in SHIFTS:
            scores = [run[shift] for run in runs if shift in run]
            if not scores:
                continue
            frozen = [score["frozen"] for score in scores]
            gains = [score["writing"] - score["frozen"] for score in scores if "writing" in score]
            cells = interval(frozen, ""), interval(gains) if gains else "", str(len(scores))
            groups.setdefault(shift, []).append((row.title, *cells))
    return Table(
        "Changed test images",
        ("row", "accuracy, %", "difference if the memory writes", "n"),
        [RowGroup(*group) for group in groups.items()],
        ["Intervals of 95 % (Student's t); only a memory of the batch can write at test time."],
    )


def read_runs(table: str, name: str, results: Path) -> Runs:
    """Return the finished runs of a row by seed."""
    runs = [Run(table, name, seed, results) for seed in range(MAX_SEEDS)]
    return {run.seed: run.read() for run in runs if run.file.exists()}


def find_best(names: tuple[str, ...], finished: dict[str, Runs]) -> str:
    """Return the row with the highest mean accuracy; "" if none has finished."""
    means = {
        name: mean(run["accuracy"] for run in finished[name].values())
        for name in names
        if finished[name]
    }
    return max(means, key=means.__getitem__, default="")


def describe(runs: Runs, rivals: Runs, kind: str, seconds: list[float]) -> list[str]:
    """Return the cells of a row after its title, for one kind of question or for all items.

    `seconds` are those of its training step in each round.
    """
    if not runs:
        return ["", "not measured", "", "", "", "0"]
    accuracies, of_rivals = (
        {
            seed: run["accuracy"] if kind == ALL else run["kinds"][kind]
            for seed, run in each.items()
        }
        for each in (runs, rivals)
    )
    differences = [
        accuracy - of_rivals[seed] for seed, accuracy in accuracies.items() if seed in of_rivals
    ]
    return [
        f"{next(iter(runs.values()))['parameters']:,}",
        ", ".join(f"{seed}: {accuracy:.2f}" for seed, accuracy in accuracies.items()),
        interval([*accuracies.values()], ""),
        interval(differences) if differences else "",
        f"{1000 * median(seconds):.1f}" if seconds else "",
        str(len(runs)),
    ]


def parse_options(words: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure what a memory adds.")
    parser.add_argument("action", choices=["run", "steps", "table", "shifts", "train"])
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("rows", nargs="*", help="names of rows; default: all")
    parser.add_argument("--source", help="folder of CIFAR-10, for the tables that use it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs in parallel; if several, one thread each"
    )
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default=PRECISION)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--rounds", type=int, default=11, help="rounds in which steps are timed")
    parser.add_argument("--small", action="store_true", help="sizes for a test")
    options = parser.parse_args(words)
    options.rows = options.rows or list(TABLES[options.table].rows)
    if unknown := set(options.rows) - set(TABLES[options.table].rows):
        parser.error(f"{options.table} has no rows {', '.join(sorted(unknown))}")
    if options.precision != PRECISION and options.action != "train":
        options.results /= options.precision
    needs_source = TABLES[options.table].settings.data == "cifar10"
    if options.source is None and options.action in ("run", "train") and needs_source:
        parser.error("pass the folder of CIFAR-10 as --source")
    return options


def main(words: list[str] | None = None) -> None:
    """Train the missing runs of a table, time its steps, or print it."""
    options = parse_options(words)
    comparison = TABLES[options.table]
    if options.action == "steps":
        set_up_cpu()
        settings = comparison.settings.small() if options.small else comparison.settings
        rows = {name: comparison.rows[name] for name in options.rows}
        chosen = Comparison(comparison.title, settings, rows)
        write_steps(chosen, options)
        return
    if options.action in ("table", "shifts"):
        printed = (
            tabulate(options.table, options.results)
            if options.action == "table"
            else tabulate_shifts(options.table, options.results, options.rows)
        )
        print(printed.to_markdown(), end="")
        return
    places = [(name, seed) for seed in options.seeds for name in options.rows]
    runs = [Run(options.table, name, seed, options.results) for name, seed in places]
    if options.action == "train":
        train_here(runs[0], options)
        return
    try:
        for run in runs:
            _ = run.settings
    except UserError as error:
        sys.exit(str(error))
    with ThreadPoolExecutor(options.jobs) as pool:
        done = list(pool.map(lambda run: train_in_process(run, options), runs))
    if not all(done):
        sys.exit(1)


if __name__ == "__main__":
    main()
