"""`ait` as started by a launcher; environment variables change what it does.

They make its steps slow or let them fail, shorten the time in which processes have to find each
other, or let torch report a GPU.
"""

import os
import sys
import time
from datetime import timedelta

import torch
from torch import Tensor, nn
from torch.distributed import distributed_c10d

from associative_transformer import distributed, evaluate
from associative_transformer.cli import main
from associative_transformer.data import Split
from associative_transformer.evaluate import Evaluation, evaluate_split
from associative_transformer.interface import Batch
from associative_transformer.training import loop
from associative_transformer.training.step import TrainingStep

SECONDS_PER_STEP = float(os.environ.get("SECONDS_PER_STEP", "0"))
FAILING_RANK = os.environ.get("FAILING_RANK")
SECONDS_TO_JOIN = os.environ.get("SECONDS_TO_JOIN")
HAS_GPU = "HAS_GPU" in os.environ


class SlowStep(TrainingStep):
    """A step that takes longer, or fails."""

    def __call__(self, batch: Batch) -> Tensor:
        time.sleep(SECONDS_PER_STEP)
        if str(distributed.rank()) == FAILING_RANK:
            raise RuntimeError(f"rank {FAILING_RANK} fails on purpose")
        return super().__call__(batch)


def evaluate_and_print(model: nn.Module, split: Split, *sizes: int) -> Evaluation:
    """Print how many processes share an evaluation."""
    print(f"shared by {distributed.num_ranks()}", file=sys.stderr)
    return evaluate_split(model, split, *sizes)


if __name__ == "__main__":
    loop.TrainingStep = SlowStep
    evaluate.evaluate_split = evaluate_and_print
    if SECONDS_TO_JOIN:
        distributed_c10d.default_pg_timeout = timedelta(seconds=float(SECONDS_TO_JOIN))
    if HAS_GPU:
        torch.cuda.is_available = lambda: True
        torch.cuda.set_device = print
    sys.exit(main())
