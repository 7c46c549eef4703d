"""What is measured in the epoch under way: position, sums and time.

Dims     S fields of `Sums`
"""

import time

import torch
from jaxtyping import Float
from torch import Tensor

from associative_transformer import distributed
from associative_transformer.runs.checkpoint import TrainingState
from associative_transformer.training.progress import Standing
from associative_transformer.training.step import Sums


class EpochMeter:
    """Measures loss, accuracy and speed of the epoch under way, and advances the position.

    `state` holds the position, and what a checkpoint needs to go on within an epoch. The sums are
    on the device, and each process holds those of its own images. Reading the standing or storing
    the sums adds them up, which waits for the device and for the other processes.
    """

    def __init__(self, state: TrainingState, batch_size: int, device: torch.device) -> None:
        self.state, self.batch_size = state, batch_size
        self.sums = torch.zeros(len(Sums._fields), dtype=torch.float64, device=device)
        self.started: float | None = None  # None: the clock stands

    def resume(self, state: TrainingState) -> None:
        """Go on from a state that was saved."""
        self.state = state
        if state.sums and distributed.rank() == 0:  # they are the sums of all processes
            self.sums.copy_(torch.tensor(state.sums, dtype=torch.float64))

    def start_clock(self) -> None:
        """Start to count the seconds of the epoch, in addition to those before a resumption."""
        self.started = time.perf_counter() - self.state.timing["epoch"]

    def stop_clock(self) -> None:
        """Stop to count: what follows is not training."""
        self.state.timing["epoch"], self.started = self.seconds, None

    @property
    def seconds(self) -> float:
        """Seconds of training in this epoch, including those before a resumption."""
        if self.started is None:
            return self.state.timing["epoch"]
        return time.perf_counter() - self.started

    def add(self, sums: Float[Tensor, " S"]) -> None:
        """Count a step and add its `Sums`."""
        self.sums += sums
        self.state.step += 1

    def standing(self) -> Standing:
        """Return the position and the means over the epoch so far."""
        loss, balance_loss, correct, images = distributed.add(self.sums).tolist()
        images = max(images, 1.0)
        return Standing(
            epoch=self.state.epoch + 1,
            step=self.state.step,
            loss=loss / images,
            balance_loss=balance_loss / images,
            accuracy=100 * correct / images,
            samples_per_second=self.state.step * self.batch_size / self.seconds,
        )

    def store(self) -> None:
        """Write the sums and the clock to the state, before it is saved."""
        self.state.sums = distributed.add(self.sums).tolist()
        self.state.timing["epoch"] = self.seconds

    def start_next_epoch(self) -> None:
        """Move to the start of the next epoch; its clock stands."""
        self.sums.zero_()
        self.state.epoch, self.state.step = self.state.epoch + 1, 0
        run = self.state.timing["run"] + self.state.timing["epoch"]
        self.state.timing = {"epoch": 0.0, "run": run}
