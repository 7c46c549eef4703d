"""Time a training step of every row of a table of `benchmarks/memory.py`, in turn.

The runs themselves cannot be compared in time: some are trained two at a time.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch

from associative_transformer.bench.timing import time_in_turn
from associative_transformer.compute import Precision
from associative_transformer.data.questions import QUESTION_DIM
from associative_transformer.files import make_folder, write_file
from associative_transformer.interface import Batch, format_count
from associative_transformer.runs.environment import describe_environment
from memory_rows import Comparison, Row, Settings
from memory_training import CPU, Trainer


def prepare_step(row: Row, settings: Settings, precision: Precision) -> Callable[[], object]:
    """Return a training step of a row on a random batch."""
    torch.manual_seed(0)
    trainer = Trainer(row.build(settings), settings, steps_per_epoch=1_000, precision=precision)
    size, side = settings.batch_size, settings.image_size
    questions = torch.rand(size, QUESTION_DIM) if settings.data == "sort-of-clevr" else None
    labels = torch.randint(settings.num_classes, (size,))
    batch = Batch(torch.randn(size, 3, side, side), questions, labels)
    return lambda: trainer.step(batch)


def write_steps(comparison: Comparison, options: argparse.Namespace) -> None:
    """Time a training step of each row of a table and keep the times.

    The options are those of `benchmarks/memory.py`.
    """
    runs = {
        name: prepare_step(row, replace(comparison.settings, **row.changes), options.precision)
        for name, row in comparison.rows.items()
    }
    words = ["python benchmarks/memory.py steps", options.table, f"--rounds {options.rounds}"]
    content = {
        "command": " ".join([*words, f"--precision {options.precision}"]),
        "seconds": time_in_turn(runs, options.rounds, CPU),
        "precision": options.precision,
        "threads": torch.get_num_threads(),
        "date": date.today().isoformat(),
        "environment": asdict(describe_environment(CPU)),
    }
    path = find_steps(options.results, options.table)
    make_folder(path.parent)
    write_file(path, (json.dumps(content, indent=2) + "\n").encode())


class Steps(NamedTuple):
    """The seconds of a training step of each row, in all rounds, and how they were measured."""

    seconds: dict[str, list[float]]
    note: str


def read_steps(results: Path, table: str) -> Steps:
    """Return the times of the steps of a table; none if they were not measured."""
    path = find_steps(results, table)
    if not path.exists():
        return Steps({}, "")
    content = json.loads(path.read_text())
    seconds = content["seconds"]
    rounds = len(next(iter(seconds.values())))
    threads = format_count(content["threads"], "thread")
    how = f"{content['precision']}, {threads}, {content['date']}"
    return Steps(seconds, f"Training steps: medians of {rounds} rounds in turn, {how}.")


def find_steps(results: Path, table: str) -> Path:
    """Return the file with the times of the steps of a table."""
    return results / "steps" / f"{table}.json"
