"""Position, sums and time of the current epoch.

Dims     S fields of `Sums`
"""

import time
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from associative_transformer import distributed
from associative_transformer.runs.checkpoint import TrainingState
from associative_transformer.training.progress import RunningMetrics
from associative_transformer.training.step import Sums


class EpochMeter:
    """The position in the current epoch, with its loss, accuracy and speed so far.

    The position is kept in `state`, which is saved in checkpoints. The sums are on the device, and
    those of each process cover only its own images: `metrics` and `store` add them up, which waits
    for the device and for the other processes.
    """

    def __init__(self, state: TrainingState, batch_size: int, device: torch.device) -> None:
        self.state, self.batch_size = state, batch_size
        self.sums = torch.zeros(len(Sums._fields), dtype=torch.float64, device=device)
        self.started: float | None = None  # None: the clock is stopped

    def resume(self, state: TrainingState) -> None:
        """Continue from a saved state."""
        self.state = state
        if state.sums and distributed.rank() == 0:  # the saved sums are those of all processes
            self.sums.copy_(torch.tensor(state.sums, dtype=torch.float64))

    def start_clock(self) -> None:
        """Start the clock of the epoch, continuing from the time before a resumption."""
        self.started = time.perf_counter() - self.state.timing["epoch"]

    def stop_clock(self) -> None:
        """Stop the clock: what follows, such as validation, is not training."""
        self.state.timing["epoch"], self.started = self.seconds, None

    @property
    def seconds(self) -> float:
        """Seconds of training in this epoch, including those before a resumption."""
        if self.started is None:
            return self.state.timing["epoch"]
        return time.perf_counter() - self.started

    def add(self, sums: Float[Tensor, " S"]) -> None:
        """Count one more step and add its `Sums`."""
        self.sums += sums
        self.state.step += 1

    def metrics(self) -> RunningMetrics:
        """Return the position and the means over the epoch so far."""
        loss, balance_loss, correct, images = distributed.add(self.sums).tolist()
        images = max(images, 1.0)
        return RunningMetrics(
            epoch=self.state.epoch + 1,
            step=self.state.step,
            loss=loss / images,
            balance_loss=balance_loss / images,
            accuracy=100 * correct / images,
            samples_per_second=self.state.step * self.batch_size / self.seconds,
        )

    def row(self, metrics: RunningMetrics, lr: float, skipped_steps: int) -> dict[str, Any]:
        """Return the row of `metrics.jsonl` for the epoch."""
        speed = metrics.samples_per_second
        return {
            "epoch": metrics.epoch,
            "lr": lr,
            "loss": metrics.loss,
            "balance_loss": metrics.balance_loss,
            "accuracy": metrics.accuracy,
            "skipped_steps": skipped_steps,
            **({"health": self.state.health} if self.state.health else {}),
            "timing": {"seconds": self.seconds, "samples_per_second": speed},
        }

    def store(self) -> None:
        """Write the sums and the time to the state, before it is saved."""
        self.state.sums = distributed.add(self.sums).tolist()
        self.state.timing["epoch"] = self.seconds

    def start_next_epoch(self) -> None:
        """Move to the start of the next epoch, with the clock stopped."""
        self.sums.zero_()
        self.state.epoch, self.state.step = self.state.epoch + 1, 0
        run = self.state.timing["run"] + self.state.timing["epoch"]
        self.state.timing = {"epoch": 0.0, "run": run}
