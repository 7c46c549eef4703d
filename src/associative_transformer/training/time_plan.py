"""Sizes and epochs for one's own images, so that a run takes the time that the user gives."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from associative_transformer.data.summary import DataSummary
from associative_transformer.experiment import Experiment
from associative_transformer.interface import format_count
from associative_transformer.models.ait import AiTConfig
from associative_transformer.recipes.own_images import (
    Limits,
    Wishes,
    choose_experiment,
    count_training_images,
    list_limits,
)
from associative_transformer.training.duration import format_seconds
from associative_transformer.training.throughput import Throughput

MAX_EPOCHS = 300
"""More epochs on a small set rarely help."""
ENOUGH_IMAGES = 50_000
"""Images that a model should see in training, over all epochs; fewer are tried with less work."""
MIN_ENOUGH, MAX_ENOUGH = 3, 50  # epochs
FINISH_SECONDS = 10.0
"""For the report and the start, in addition to the images that are scored."""
REPORT_IMAGES = 1_000  # are analyzed for the report
REPORT_WORK = 10  # times the work of scoring an image
LONG = 1_200.0
"""Seconds from which it is tried out whether compiling the model pays off."""
SLACK = 1.5
"""The work for an image is measured again if it may be this much too high by its sizes."""


class _Times(NamedTuple):
    """Seconds of a run of an experiment."""

    throughput: Throughput
    steps_per_epoch: int
    epoch: float
    fixed: float  # what does not depend on the number of epochs

    def count_fitting(self, seconds: float) -> float:
        """Return how many epochs fit into some seconds, which may be less than one."""
        return max(seconds - self.fixed, 0.0) / self.epoch


@dataclass(frozen=True)
class TimePlan:
    """An experiment with as many epochs as fit, and how long it takes."""

    experiment: Experiment
    throughput: Throughput
    steps_per_epoch: int
    seconds: float
    """Of training, validation, test and report."""
    limits: Limits
    is_reduced: bool
    """Whether image size or model are smaller than the data suggest, to save time."""

    def describe(self) -> list[str]:
        """Return what was measured and what follows from it, in a line each."""
        e, epochs = self.experiment, self.experiment.train.epochs
        speed = e.train.batch_size / self.throughput.step
        m, augment = e.model, getattr(e.data, "augment", "none")
        size = f"image size {m.image_size}"
        if isinstance(m, AiTConfig):
            size += f", patch {m.patch_size}, {m.depth} layers of width {m.embed_dim}"
        reduced = ", reduced so that enough epochs fit" if self.is_reduced else ""
        return [
            f"chosen: {size}, batch {e.train.batch_size}, augmentation {augment}{reduced}",
            f"measured: {1e3 * self.throughput.step:,.0f} ms per step, {speed:,.0f} images per "
            "second",
            f"plan: {format_count(epochs, 'epoch')} of "
            f"{format_count(self.steps_per_epoch, 'step')}, about "
            f"{format_seconds(self.seconds)} with scores and report",
        ]


def plan_time(
    summary: DataSummary,
    wishes: Wishes,
    remaining: Callable[[], float],
    load_seconds: float,
    measure: Callable[[Experiment], Throughput],
) -> TimePlan:
    """Choose sizes and epochs that fit into the remaining seconds; one epoch if none fits.

    `remaining` returns these seconds, which become fewer while `measure` runs a few steps of an
    experiment. `load_seconds` is how long all images take to decode. Image size and model are
    reduced until enough epochs fit.
    """
    wishes = replace(wishes, is_long=remaining() >= LONG)
    candidates = list_limits(summary)
    if wishes.start is not None:
        candidates = candidates[:1]  # the sizes are those of the weights
    wanted = _count_enough(summary)
    most: float = math.inf  # work for an image that can fit, in the units of Limits.cost
    for limits in candidates:
        is_last = limits == candidates[-1]
        if limits.cost > most and not is_last:
            continue
        experiment = choose_experiment(summary, wishes, limits)
        times = _estimate(summary, experiment, measure(experiment), load_seconds)
        fitting = times.count_fitting(remaining())
        if fitting >= wanted or is_last:
            break
        most = limits.cost * fitting / wanted * SLACK
    epochs = min(max(int(fitting), 1), MAX_EPOCHS)
    return TimePlan(
        choose_experiment(summary, wishes, limits, epochs),
        times.throughput,
        times.steps_per_epoch,
        times.fixed + epochs * times.epoch,
        limits,
        limits != candidates[0],
    )


def _count_enough(summary: DataSummary) -> int:
    """Return the epochs for which it is worth reducing image size and model."""
    number = summary.splits[0].num_images
    return min(max(math.ceil(ENOUGH_IMAGES / number), MIN_ENOUGH), MAX_ENOUGH)


def _estimate(
    summary: DataSummary, experiment: Experiment, throughput: Throughput, load_seconds: float
) -> _Times:
    """Return how long the parts of a run take."""
    train = count_training_images(experiment, summary)
    steps = train // experiment.train.batch_size
    counts = {split.name: split.num_images for split in summary.splits}
    validation = counts.get("validation", counts["training"] - train)
    test, t = counts.get("test", 0), throughput
    scored = 3 * test + validation  # both epochs by training, the model by `ait eval`
    analyzed = REPORT_WORK * min(test, REPORT_IMAGES)
    again = load_seconds * 2 * test / sum(counts.values())  # test images, for scores and report
    return _Times(
        throughput,
        steps,
        epoch=steps * t.step + validation * t.scored_image + t.save,
        fixed=FINISH_SECONDS + load_seconds + again + (scored + analyzed) * t.scored_image,
    )
