"""The progress of a training run: a bar on a terminal, plain lines elsewhere."""

import time
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from associative_transformer.progress import (
    SECONDS_BETWEEN_LINES,
    ShownProgress,
    format_time,
)


class RunningMetrics(NamedTuple):
    """Position in an epoch, and the means over its images so far."""

    epoch: int  # from 1
    step: int  # optimizer steps of this epoch
    loss: float  # cross-entropy in nats
    balance_loss: float
    accuracy: float  # percent of the training images
    samples_per_second: float

    def __str__(self) -> str:
        return (
            f"loss {self.loss:.3f}  balance {self.balance_loss:.4f}  "
            f"accuracy {self.accuracy:5.2f} %  {self.samples_per_second:,.0f} samples/s"
        )

    def short(self) -> str:
        """Return the same numbers in a form that fits next to a bar in 80 columns."""
        return (
            f"loss {self.loss:.3f} balance {self.balance_loss:.3f} "
            f"acc {self.accuracy:.1f} % {self.samples_per_second:,.0f}/s"
        )


class TrainingProgress(ShownProgress):
    """Epoch, loss, balance loss, accuracy, images per second and time left, shown on stderr."""

    def __init__(
        self, epochs: int, steps_per_epoch: int, steps_done: int, is_shown: bool = True
    ) -> None:
        self.epochs, self.steps_per_epoch = epochs, steps_per_epoch
        console = Console(stderr=True, quiet=not is_shown)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=8),
            TextColumn("{task.percentage:3.0f} %"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),  # last, since a narrow terminal cuts it off
            console=console,
            disable=not console.is_terminal,
        )
        total = epochs * steps_per_epoch
        self.task = self.bar.add_task("first step", total=total, completed=steps_done, numbers="")
        self.started, self.first_step = time.monotonic(), steps_done
        self.last_line = self.started

    def show(self, metrics: RunningMetrics) -> None:
        """Update the bar or, without a terminal, write a line at most every 30 seconds."""
        done = (metrics.epoch - 1) * self.steps_per_epoch + metrics.step
        epoch = f"epoch {metrics.epoch}/{self.epochs}"
        numbers = metrics.short()
        self.bar.update(self.task, completed=done, description=epoch, numbers=numbers)
        now = time.monotonic()
        if self.bar.disable and now - self.last_line > SECONDS_BETWEEN_LINES:
            self.last_line = now
            step = f"step {metrics.step}/{self.steps_per_epoch}"
            self.write(f"{epoch}  {metrics}  {step}  {self._time_left(done, now)} left")

    def _time_left(self, done: int, now: float) -> str:
        seconds_per_step = (now - self.started) / max(done - self.first_step, 1)
        return format_time(seconds_per_step * (self.epochs * self.steps_per_epoch - done))
