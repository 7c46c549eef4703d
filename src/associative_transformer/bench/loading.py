"""The training batches of a data set alone, as training gets them."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from itertools import count

import torch

from associative_transformer.data import DataConfig, ImagesConfig, Split, load_data
from associative_transformer.data.loaders import ResidentLoader
from associative_transformer.experiment import Experiment


@cache
def open_training(data: DataConfig, device: torch.device) -> Split:
    """Open the training split of a data set, once in a process."""
    return load_data(data, device).train


def ways_to_load(data: DataConfig, device: torch.device) -> dict[str, DataConfig]:
    """Name how the images can come: as the recipe has them, and streaming where that differs."""
    if not isinstance(open_training(data, device).loader, ResidentLoader):
        return {"streaming": data}
    if not isinstance(data, ImagesConfig):  # generated: there is nothing to decode
        return {"resident": data}
    return {"resident": data, "streaming": replace(data, memory_budget=0.0)}


def count_batches(experiment: Experiment, limit: int, device: torch.device) -> int:
    """Count the batches of an epoch, up to a limit. Raises UserError if there is none."""
    split = open_training(experiment.data, device)
    return min(limit, split.steps_per_epoch(experiment.train.batch_size))


def prepare_loading(
    data: DataConfig, batch_size: int, num_batches: int, device: torch.device
) -> Callable[[], None]:
    """Open the data set and give the function to time.

    It goes through an epoch of so many batches from all over the training set, from the start of
    the workers to the last batch on the device.
    """
    split = open_training(data, device)
    part = split.take(torch.randperm(len(split))[: num_batches * batch_size])
    return partial(_pass, part, batch_size, count())


def _pass(part: Split, batch_size: int, epochs: "count[int]") -> None:
    for _ in part.train_batches(batch_size, seed=0, epoch=next(epochs)):
        pass
