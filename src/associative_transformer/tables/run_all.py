"""Train the runs of a table one after another, each with `ait train` in its own process.

A run that fails or is killed does not affect the others. If this process is killed, the run that
is training saves a checkpoint and stops (on Linux). Complete runs are skipped, and unfinished or
damaged runs are resumed, so the same list of runs can be started again at any time.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from associative_transformer.experiment import Experiment
from associative_transformer.interface import UserError
from associative_transformer.recipes import RECIPES
from associative_transformer.recipes.budgets import Budget, shorten
from associative_transformer.recipes.commands import train_arguments
from associative_transformer.runs.folder import check_folder
from associative_transformer.runs.reading import exists
from associative_transformer.runs.result import read_result
from associative_transformer.training.signals import Interrupted, StopSignals

PR_SET_PDEATHSIG = 1  # of Linux: the signal that a process gets when its parent dies
POLL_SECONDS = 0.2  # between checks for a signal while a run is training


@dataclass(frozen=True)
class PlannedRun:
    """A run of a table, which may be complete already."""

    recipe: str
    experiment: Experiment  # the recipe, shortened to the budget
    runs: Path  # folder of all runs

    @property
    def folder(self) -> Path:
        """Folder of this run."""
        return self.runs / self.experiment.name / str(self.experiment.train.seed)

    @property
    def is_complete(self) -> bool:
        """Whether the run has a result that tables can use; if not, `ait train` says why.

        Raises UserError or PermissionError if that cannot be determined.
        """
        exists(self.folder / "experiment.yaml")
        try:
            check_folder(self.folder, self.experiment, resume=True, overwrite=False)
            return read_result(self.folder) is not None
        except UserError:
            return False

    @property
    def title(self) -> str:
        """Recipe and seed."""
        return f"{self.recipe}, seed {self.experiment.train.seed}"

    @property
    def arguments(self) -> list[str]:
        """Arguments for `ait` to train or resume this run."""
        words = train_arguments(self.experiment, RECIPES[self.recipe])
        words += ["--runs", str(self.runs)]
        return words + ["--resume"] * exists(self.folder / "experiment.yaml")


@dataclass(frozen=True)
class FailedRun:
    """A run whose process failed or was killed."""

    run: PlannedRun
    code: int  # exit code, or the negative number of the signal

    def __str__(self) -> str:
        reason = f"exit code {self.code}" if self.code > 0 else f"killed by signal {-self.code}"
        return f"{self.run.title} ({reason})"


def plan_runs(
    recipes: Iterable[str],
    budget: Budget,
    seeds: Iterable[int],
    runs: Path,
    sources: dict[str, Path],
) -> list[PlannedRun]:
    """List the runs of all recipes with the first seed, then those with the next seed.

    `sources` maps names of data sets to local copies of their images.
    """
    planned = []
    for seed in seeds:
        for recipe in recipes:
            experiment = shorten(RECIPES[recipe], budget)
            data, train = experiment.data, replace(experiment.train, seed=seed)
            if source := sources.get(data.display_name):
                data = data.with_storage(source=str(source))
            planned.append(PlannedRun(recipe, replace(experiment, data=data, train=train), runs))
    return planned


def train_runs(
    runs: list[PlannedRun], on_start: Callable[[int, PlannedRun], None]
) -> list[FailedRun]:
    """Train the runs that are not complete and return those that failed.

    Before a run starts, `on_start` is called with its position (from 1) and the run. Raises
    Interrupted after a signal, once the current run has stopped and saved itself.
    """
    failed = []
    for position, run in enumerate(runs, start=1):
        if run.is_complete:
            continue
        on_start(position, run)
        code = _train(run)
        if code != 0:
            failed.append(FailedRun(run, code))
    return failed


def _train(run: PlannedRun) -> int:
    """Run `ait train` and return its exit code; the first signal is passed on to it."""
    command = [sys.executable, "-m", "associative_transformer", *run.arguments]
    with StopSignals() as stop:
        # a new session: signals from the terminal reach the process only through this one
        process = subprocess.Popen(command, start_new_session=True, preexec_fn=_follow_parent())
        is_stopping = False
        try:
            while (code := process.poll()) is None:
                if stop.signum is not None and not is_stopping:
                    process.send_signal(stop.signum)
                    is_stopping = True
                time.sleep(POLL_SECONDS)
        finally:
            process.kill()
        if stop.signum is not None:
            raise Interrupted(stop.signum)
    return code


def _follow_parent() -> Callable[[], None] | None:
    """Return what a new process calls to be stopped when this one dies, even by SIGKILL.

    It gets SIGTERM, so it saves a checkpoint. Only Linux can do this; None elsewhere.
    """
    if sys.platform != "linux":
        return None
    parent, libc = os.getpid(), ctypes.CDLL(None)

    def follow() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it has died already
            os.kill(os.getpid(), signal.SIGTERM)

    return follow
