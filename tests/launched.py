"""`ait` as a launcher starts it, only slower, or failing where the environment says so."""

import os
import sys
import time

from torch import Tensor

from associative_transformer import distributed, train
from associative_transformer.cli import main
from associative_transformer.interface import Batch
from associative_transformer.step import TrainingStep

SECONDS = float(os.environ.get("SECONDS_A_STEP", "0"))
FAILING = os.environ.get("FAILING_RANK")


class SlowStep(TrainingStep):
    """A step that takes its time."""

    def __call__(self, batch: Batch) -> Tensor:
        time.sleep(SECONDS)
        if str(distributed.rank()) == FAILING:
            raise RuntimeError(f"rank {FAILING} has had enough")
        return super().__call__(batch)


if __name__ == "__main__":
    train.TrainingStep = SlowStep
    sys.exit(main())
