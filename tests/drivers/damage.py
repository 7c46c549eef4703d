"""Damage each file of a run in each way, run every command on it, and count the outcomes.

PYTHONPATH=tests python tests/drivers/damage.py

All commands run in this process; `ait analyze` draws no figures. An outcome is good if the
command succeeds, or prints one sentence and exits with 2, within a minute.
"""

import contextlib
import io
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch

from associative_transformer import figures
from associative_transformer.cli import main
from making.commands import IMAGES, make_images
from making.damage import DAMAGES, FILES

SECONDS = 60


class Outcome(NamedTuple):
    """Exit code and messages of a command, and how long it took."""

    code: object
    err: str
    seconds: float

    @property
    def is_good(self) -> bool:
        """Whether the damage was ignored or named in one sentence."""
        is_sentence = self.code == 2 and self.err.strip().count("\n") == 0
        return (self.code == 0 or is_sentence) and self.seconds < SECONDS


def call(*arguments: object) -> Outcome:
    """Run a command of `ait` in this process."""
    out, err, start = io.StringIO(), io.StringIO(), time.perf_counter()
    with (
        mock.patch.object(sys, "argv", ["ait", *map(str, arguments)]),
        mock.patch.object(figures, "DRAWINGS", {}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            code: object = main()
        except SystemExit as stopped:
            code = stopped.code
        except Exception:
            code = "traceback"
            traceback.print_exc()
    return Outcome(code, err.getvalue(), time.perf_counter() - start)


def try_all(root: Path) -> tuple[int, int]:
    """Return the number of damages that were tried, and of those with a good outcome."""
    images, runs, original = make_images(root / "images"), root / "runs", root / "original"
    train = ["train", *IMAGES, "--data.source", images, "--runs", runs]
    train += ["--data.val-fraction", 0.25]
    assert call(*train).code == 0
    (run,) = runs.glob("*/0")
    assert call("report", run).code == call("eval", run).code == 0
    shutil.copytree(runs, original)
    commands = {
        "eval": ["eval", run, "--device", "cpu"],
        "predict": ["predict", run, images / "test", "--device", "cpu"],
        "analyze": ["analyze", run, "--images", 8, "--device", "cpu"],
        "report": ["report", run, "--device", "cpu"],
        "comparison": ["report", run, original / run.relative_to(runs), "--device", "cpu"],
        "table": ["table", "classification", "--runs", runs],
        "train --resume": [*train, "--resume"],
    }
    tried = handled = 0
    for file in FILES:
        for name, damage in DAMAGES.items():
            for command, arguments in commands.items():
                shutil.rmtree(runs)
                shutil.copytree(original, runs)
                damage(run / file)
                outcome = call(*arguments)
                tried, handled = tried + 1, handled + outcome.is_good
                if not outcome.is_good:
                    last = (outcome.err.strip().splitlines() or [""])[-1]
                    print(f"{command}: {file}, {name}: {outcome.code}, {last}", flush=True)
    return tried, handled


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        print("{:,} damages tried, {:,} handled".format(*try_all(Path(folder))))
