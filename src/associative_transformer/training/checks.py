"""Checks of a run: before its first step, and before its result is written."""

import math
import os
from contextlib import suppress
from pathlib import Path

import torch

from associative_transformer import distributed
from associative_transformer.data import DataSet
from associative_transformer.experiment import Experiment, TrainConfig, list_fields
from associative_transformer.interface import UserError
from associative_transformer.models import MODELS
from associative_transformer.models.weight_count import count_weights
from associative_transformer.runs.data_summary import summarize
from associative_transformer.runs.environment import find_commit, find_version
from associative_transformer.runs.reading import exists
from associative_transformer.runs.result import BestValidation
from associative_transformer.training.anomaly import REMEDY
from associative_transformer.training.schedule import learning_rate
from associative_transformer.training.variables import list_ignored

BYTES_PER_WEIGHT = 16  # in float32: the weight, its gradient and the two moments of AdamW
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


def check_processes(experiment: Experiment, folder: Path, resume: bool, overwrite: bool) -> bool:
    """Raise UserError if the processes were not started alike; return whether to resume a run.

    After a failure, a launcher repeats its command with `resume`, even if no run had started yet.
    """
    has_run = exists(folder / "experiment.yaml")
    if distributed.num_ranks() > 1:
        options = {"--resume": resume, "--overwrite": overwrite, "run folder": str(folder)}
        names = ("associative-transformer", "torch")
        versions = {f"version of {name}": find_version(name) for name in names}
        settings = {f"--{k.replace('_', '-')}": v for k, v in list_fields(experiment).items()}
        distributed.check_same_settings(
            {**settings, **options, **versions, "commit of the source": find_commit()}
        )
        distributed.check_same(has_run)
    return resume and (has_run or not distributed.is_launched())


def agree(signum: int) -> int:
    """Return the largest signal number among the processes, the same on all of them."""
    return max(distributed.gather_objects(signum))


def check_size(experiment: Experiment, device: torch.device) -> None:
    """Raise UserError if generated images or the weights alone need more memory than there is."""
    data = experiment.data
    if data.is_generated:
        size, channels, _ = data.input_size
        names = [f"num_{split}" for split in ("train", "test") if hasattr(data, f"num_{split}")]
        flags = [f"--data.{x.replace('_', '-')} {getattr(data, x):,}" for x in names]
        num_images = sum(getattr(data, name) for name in names)
        needed = num_images * channels * size**2
        _check_memory(" and ".join(flags), needed, torch.device("cpu"))
    weights = count_weights(MODELS[type(experiment.model)], experiment.model).trained
    depth = getattr(experiment.model, "depth", None)
    name = "the model" if depth is None else f"the model, with --model.depth {depth:,},"
    _check_memory(name, weights * BYTES_PER_WEIGHT, device)


def _check_memory(name: str, needed: int | float, device: torch.device) -> None:
    limit = total_memory(device)
    if needed > limit:
        place = "the GPU" if device.type == "cuda" else "this machine"
        raise UserError(
            f"{name} would need at least {needed / 2**30:,.1f} GiB of memory, but {place} has "
            f"{limit / 2**30:,.1f} GiB: choose a smaller size"
        )


def total_memory(device: torch.device) -> int | float:
    """Return the bytes of memory of a device; inf if the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    total: int | float = math.inf
    with suppress(AttributeError, OSError, ValueError):  # Windows has no sysconf
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # a container, or the word max
        total = min(total, int(CONTAINER_LIMIT.read_text(encoding="utf-8")))
    return total


def describe_data(experiment: Experiment, data: DataSet) -> list[str]:
    """Return one or two lines on the images that a run reads; none if they are generated."""
    summary = summarize(experiment.data, data)
    return [] if summary is None else summary.to_lines()


def list_notes(train: TrainConfig, steps_per_epoch: int = 1) -> list[str]:
    """Return a sentence for each setting or variable that does not do what it seems to do."""
    last = learning_rate(train, train.epochs - 1 / steps_per_epoch, steps_per_epoch)
    notes, schedule, epochs = list_ignored(), train.schedule, train.epochs
    if schedule.warmup_epochs >= epochs and schedule.warmup_lr != train.lr:
        notes.append(
            f"--train.schedule.warmup-epochs {schedule.warmup_epochs} is not below --train.epochs "
            f"{epochs}: the learning rate ends at {last:.3g}, never reaching {train.lr:.3g}"
        )
    elif schedule.warmup_epochs and schedule.warmup_lr > train.lr:
        notes.append(
            f"--train.schedule.warmup-lr {schedule.warmup_lr:.3g} is above --train.lr "
            f"{train.lr:.3g}: the learning rate falls during the warm-up"
        )
    return notes


def check_outcome(skipped: int, steps: int, loss: float, best: BestValidation | None) -> None:
    """Raise UserError if most steps were skipped or a loss on the test images is not finite."""
    losses = {"last": loss} | ({} if best is None else {"best validation": best.test_loss})
    wrong = [
        f"the test loss of the {epoch} epoch is {loss}"
        for epoch, loss in losses.items()
        if not math.isfinite(loss)
    ]
    if 2 * skipped > steps:
        reason = "as their loss or gradient was not finite"
        wrong.insert(0, f"{skipped:,} of {steps:,} steps were skipped, {reason}")
    if wrong:
        raise UserError(f"the run has no usable result ({' and '.join(wrong)}): {REMEDY}")
