"""Train many recipes, one after another, each by `ait train` in a process of its own.

A run that fails or is killed takes no other with it. What is complete is left alone, and what was
begun is resumed, so that the same sweep can be started again at any time.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from associative_transformer.data import DataConfig, ImagesConfig, SortOfClevrConfig
from associative_transformer.experiment import Experiment, differences
from associative_transformer.models import count_operations
from associative_transformer.recipes import RECIPES
from associative_transformer.recipes.budgets import Budget, shorten
from associative_transformer.training.signals import Interrupted, StopSignals

SECONDS_BETWEEN_LOOKS = 0.2  # for a signal, while a run goes on
USUAL_IMAGES = 50_000, 10_000  # of an image set, in training and testing: those of CIFAR


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    recipe: str
    experiment: Experiment  # as its budget trains it
    folder: Path
    runs: Path
    source: Path | None = None  # local copy of an image set

    @property
    def is_complete(self) -> bool:
        """Whether there is nothing left to do."""
        return (self.folder / "result.json").exists()

    @property
    def title(self) -> str:
        """Say what is trained."""
        return f"{self.recipe}, seed {self.experiment.train.seed}"

    @property
    def arguments(self) -> list[str]:
        """Those of `ait` that train it, or go on with it."""
        changed = differences(self.experiment, RECIPES[self.recipe])
        flags = {name: mine for name, (mine, _) in changed.items() if name != "name"}
        flags["train.seed"] = self.experiment.train.seed
        words = ["train", self.recipe]
        for name, value in flags.items():
            words += [f"--{name.replace('_', '-')}", str(value)]
        words += ["--runs", str(self.runs)]
        words += ["--data.source", str(self.source)] if self.source else []
        return words + ["--resume"] * (self.folder / "experiment.yaml").exists()


@dataclass(frozen=True)
class Failure:
    """A run that did not come to its end."""

    job: Job
    code: int  # exit code; below 0 the signal that killed it

    def __str__(self) -> str:
        how = f"exit code {self.code}" if self.code > 0 else f"killed by signal {-self.code}"
        return f"{self.job.title} ({how})"


@dataclass
class Clock:
    """Guess how long runs take, from those that are done.

    A run takes a start, as long as the shortest one seen, and a time for each floating-point
    operation, which differs between kinds of models.
    """

    done: list[tuple[str, float, float]] = field(default_factory=list)  # kind, work, seconds

    def add(self, job: Job, seconds: float) -> None:
        """Note how long a run has taken."""
        self.done.append((job.experiment.model.kind, estimate_work(job.experiment), seconds))

    def seconds(self, jobs: Iterable[Job]) -> float | None:
        """Guess the seconds of all these runs; None before one is done."""
        if not self.done:
            return None
        start = min(seconds for _, _, seconds in self.done)
        total = 0.0
        for job in jobs:
            kind = job.experiment.model.kind
            alike = [entry for entry in self.done if entry[0] == kind] or self.done
            rate = sum(s - start for _, _, s in alike) / sum(work for _, work, _ in alike)
            total += start + rate * estimate_work(job.experiment)
        return total


def plan(
    recipes: Iterable[str],
    budget: Budget,
    seeds: Iterable[int],
    runs: Path,
    sources: dict[str, Path],
) -> list[Job]:
    """List the runs of these recipes, all recipes of a seed before the next seed."""
    jobs = []
    for seed in seeds:
        for recipe in recipes:
            experiment = shorten(RECIPES[recipe], budget)
            experiment = replace(experiment, train=replace(experiment.train, seed=seed))
            folder = runs / experiment.name / str(seed)
            source = sources.get(getattr(experiment.data, "name", ""))
            jobs.append(Job(recipe, experiment, folder, runs, source))
    return jobs


def estimate_work(experiment: Experiment) -> float:
    """Estimate the floating-point operations of training and scoring."""
    num_train, num_test = _samples(experiment.data)
    passes = 3 * experiment.train.epochs * num_train + num_test
    return float(passes) * count_operations(experiment.model)


def run_jobs(
    jobs: list[Job], tell: Callable[[int, Job, float | None], None], clock: Clock
) -> list[Failure]:
    """Train what is not complete and return what failed; `tell` is called before each run.

    It gets the number of the run, the run, and the seconds left for it and all after it. Raises
    Interrupted where a signal stopped the sweep; the run under way has saved itself then.
    """
    failures = []
    for number, job in enumerate(jobs):
        if job.is_complete:
            continue
        left = [other for other in jobs[number:] if not other.is_complete]
        tell(number + 1, job, clock.seconds(left))
        started = time.monotonic()
        code = _run(job)
        if code == 0:
            clock.add(job, time.monotonic() - started)
        else:
            failures.append(Failure(job, code))
    return failures


def _run(job: Job) -> int:
    """Run `ait train` and give its exit code; pass a signal on to it, once."""
    command = [sys.executable, "-m", "associative_transformer", *job.arguments]
    with StopSignals() as stop:
        # a session of its own: the terminal's signals reach it through us alone
        process = subprocess.Popen(command, start_new_session=True)
        is_told = False
        try:
            while (code := process.poll()) is None:
                if stop.signum is not None and not is_told:
                    process.send_signal(stop.signum)
                    is_told = True
                time.sleep(SECONDS_BETWEEN_LOOKS)
        finally:
            process.kill()
        if stop.signum is not None:
            raise Interrupted(stop.signum)
    return code


def _samples(data: DataConfig) -> tuple[int, int]:
    """Count the items of an epoch and of the test; an image set is taken for one like CIFAR."""
    if isinstance(data, ImagesConfig):
        return (data.limit, data.limit) if data.limit else USUAL_IMAGES
    asked = 1
    if isinstance(data, SortOfClevrConfig):
        asked = data.num_questions * len(data.question_types)
    return data.num_train * asked, data.num_test * asked
