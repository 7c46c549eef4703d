"""`ait` as a launcher starts it; slower, failing or telling more where the environment says so."""

import os
import sys
import time

from torch import Tensor, nn

from associative_transformer import distributed, evaluate
from associative_transformer.cli import main
from associative_transformer.data import Split
from associative_transformer.evaluate import Evaluation, evaluate_split
from associative_transformer.interface import Batch
from associative_transformer.training import loop as train
from associative_transformer.training.step import TrainingStep

SECONDS = float(os.environ.get("SECONDS_A_STEP", "0"))
FAILING = os.environ.get("FAILING_RANK")


class SlowStep(TrainingStep):
    """A step that takes its time."""

    def __call__(self, batch: Batch) -> Tensor:
        time.sleep(SECONDS)
        if str(distributed.rank()) == FAILING:
            raise RuntimeError(f"rank {FAILING} has had enough")
        return super().__call__(batch)


def evaluate_and_tell(model: nn.Module, split: Split, *sizes: int) -> Evaluation:
    """Say how many processes share an evaluation."""
    print(f"shared by {distributed.num_ranks()}", file=sys.stderr)
    return evaluate_split(model, split, *sizes)


if __name__ == "__main__":
    train.TrainingStep = SlowStep
    evaluate.evaluate_split = evaluate_and_tell
    sys.exit(main())
