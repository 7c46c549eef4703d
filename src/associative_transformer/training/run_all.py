"""Train planned runs one after another, each with `ait train` in its own process.

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
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

from associative_transformer.progress import format_time
from associative_transformer.runs.plan import PlannedRun
from associative_transformer.runs.result import read_result
from associative_transformer.training.signals import Interrupted, StopSignals

PR_SET_PDEATHSIG = 1  # of Linux: the signal that a process gets when its parent dies
POLL_SECONDS = 0.2  # between checks for a signal while a run is training


@dataclass(frozen=True)
class FailedRun:
    """A run whose process failed or was killed."""

    run: PlannedRun
    code: int  # exit code, or the negative number of the signal

    def __str__(self) -> str:
        reason = f"exit code {self.code}" if self.code > 0 else f"killed by signal {-self.code}"
        return f"{self.run.title} ({reason})"


def announce_run(position: int, runs: list[PlannedRun]) -> str:
    """Return a line about the run that starts now: its position, its title and the time left."""
    line = f"[{position}/{len(runs)}] {runs[position - 1].title}"
    seconds = estimate_seconds(runs)
    return line if seconds is None else f"{line}, {format_time(seconds)} left for all"


def estimate_seconds(runs: list[PlannedRun]) -> float | None:
    """Return how long the runs that are not complete will take; None before any is.

    A run takes as long as complete runs of the same experiment with other seeds or, if there are
    none, as long per epoch as all complete runs, on average.
    """
    seconds: dict[str, list[float]] = {}  # of complete runs, by experiment
    per_epoch: list[float] = []
    missing: list[PlannedRun] = []
    for run in runs:
        if not run.is_complete:
            missing.append(run)
        elif (result := read_result(run.folder)) is not None and result.timing is not None:
            seconds.setdefault(run.experiment.name, []).append(result.timing.seconds)
            per_epoch.append(result.timing.seconds / result.epochs)
    if not per_epoch:
        return None
    return sum(
        fmean(seconds[run.experiment.name])
        if run.experiment.name in seconds
        else fmean(per_epoch) * run.experiment.train.epochs
        for run in missing
    )


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
