"""Load the batches of a data set as in training, but without training steps."""

from collections.abc import Callable
from functools import cache, partial
from itertools import count

import torch

from associative_transformer.data import DataConfig, Split
from associative_transformer.data.loaders import ResidentLoader
from associative_transformer.experiment import Experiment


@cache
def open_training(data: DataConfig, device: torch.device) -> Split:
    """Return the training split of a data set, opened only once in a process."""
    return data.load(device).train


def ways_to_load(data: DataConfig, device: torch.device) -> dict[str, DataConfig]:
    """Return the data set for each kind of loading: the recipe's, and streaming if different."""
    if not isinstance(open_training(data, device).loader, ResidentLoader):
        return {"streaming": data}
    if data.is_generated:  # and therefore needs no decoding
        return {"resident": data}
    return {"resident": data, "streaming": data.with_storage(memory_budget=0.0)}


def count_batches(experiment: Experiment, limit: int, device: torch.device) -> int:
    """Return the number of batches in an epoch, at most `limit`. Raises UserError if it is 0."""
    split = open_training(experiment.data, device)
    return min(limit, split.steps_per_epoch(experiment.train.batch_size))


def prepare_loading(
    data: DataConfig, batch_size: int, num_batches: int, device: torch.device
) -> Callable[[], None]:
    """Open the data set and return the function to time.

    A call loads an epoch of `num_batches` batches, drawn from the whole training set. It includes
    the start of the workers and returns when the last batch is on the device.
    """
    split = open_training(data, device)
    part = split.take(torch.randperm(len(split))[: num_batches * batch_size])
    return partial(_load_epoch, part, batch_size, count())


def _load_epoch(part: Split, batch_size: int, epochs: "count[int]") -> None:
    for _ in part.train_batches(batch_size, seed=0, epoch=next(epochs)):
        pass
