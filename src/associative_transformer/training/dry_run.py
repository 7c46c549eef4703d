"""What a run would do, found out with a few real steps and without writing anything."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate.utils import ProjectConfiguration
from torch import nn

from associative_transformer.compute import choose_precision
from associative_transformer.data import DataSet
from associative_transformer.experiment import Experiment, load_data
from associative_transformer.interface import Batch, format_count
from associative_transformer.runs.folder import (
    as_recorded,
    check_folder,
    with_absolute_source,
)
from associative_transformer.training import checks
from associative_transformer.training.computing import MIN_SECONDS, MIN_STEPS
from associative_transformer.training.duration import format_seconds
from associative_transformer.training.launch import make_accelerator
from associative_transformer.training.loop import TrainingRun
from associative_transformer.training.peak import peak_bytes, reset_peak, synchronize

WARM_UP = 2  # steps that are not counted: the first ones allocate memory
MIN_MEASURED, MAX_MEASURED = 3, 20  # steps
ENOUGH_SECONDS = 2.0  # of measured steps


@dataclass(frozen=True)
class DryRun:
    """What a run would do. The times are those of training, without scoring."""

    data: tuple[str, ...]
    """Each split with the number of its items."""
    image_bytes: int
    """Memory of the images that stay decoded; 0 if they are decoded for every batch."""
    parameters: int
    tokens: int | None
    """Tokens of an image; None if the model has none."""
    batch_size: int
    steps_per_epoch: int
    epochs: int
    seconds_per_step: float
    """Median over the measured steps, with the loading of their batches."""
    measured_steps: int
    peak_bytes: int
    """Peak memory during the measured steps; on a CPU, of the whole process."""
    device: str
    precision: str
    compilation: str
    notes: tuple[str, ...]
    """Settings that do not do what they seem to do."""

    @property
    def num_steps(self) -> int:
        """Steps of the whole training."""
        return self.epochs * self.steps_per_epoch

    def describe(self) -> dict[str, str]:
        """Return the values in words, by title."""
        where = "of the process, " if self.device == "cpu" else ""
        images = f"{self.image_bytes / 2**20:,.0f} MiB of it for decoded images"
        if not self.image_bytes:
            images = "images are decoded for each batch"
        tokens = "none"
        if self.tokens is not None:
            total = f"{self.tokens * self.batch_size:,} per batch of {self.batch_size:,}"
            tokens = f"{self.tokens:,} per image, {total}"
        seconds, epoch = self.seconds_per_step, self.steps_per_epoch * self.seconds_per_step
        return {
            "data": ", ".join(self.data),
            "parameters": f"{self.parameters:,}",
            "tokens": tokens,
            "steps": f"{self.steps_per_epoch:,} per epoch, {self.num_steps:,} in "
            f"{format_count(self.epochs, 'epoch')}",
            "device": self.device,
            "precision": self.precision,
            "compiled": self.compilation,
            "peak memory": f"{self.peak_bytes / 2**20:,.0f} MiB {where}during a step, {images}",
            "time per step": f"{1e3 * seconds:,.1f} ms, median of {self.measured_steps}, with "
            "loading",
            "time per epoch": f"{format_seconds(epoch)}, without scoring",
            "whole training": f"{format_seconds(self.epochs * epoch)}, without scoring",
        }


def dry_run(experiment: Experiment) -> DryRun:
    """Load the data, build the model and measure a few training steps; write nothing.

    Raises UserError if the run could not start.
    """
    accelerator = make_accelerator(experiment.train, ProjectConfiguration())
    try:
        run = TrainingRun(experiment, Path(), accelerator, is_resumed=False)
        precision, why = choose_precision(run.config.precision, run.device, experiment.model)
        run.take_step.precision = precision
        tokens = _watch_tokens(run.model)
        seconds = time_steps(run)
        step, c = median(seconds), run.config
        initial = [] if run.initial is None else run.initial.describe().splitlines()
        return DryRun(
            data=_count_items(run.data, experiment.data.item_noun),
            image_bytes=_image_bytes(run.data),
            parameters=sum(p.numel() for p in run.model.parameters()),
            tokens=next(iter(tokens), None),
            batch_size=c.batch_size,
            steps_per_epoch=run.steps_per_epoch,
            epochs=c.epochs,
            seconds_per_step=step,
            measured_steps=len(seconds),
            peak_bytes=peak_bytes(run.device),
            device=_name_device(run.device),
            precision=f"{precision}: {why}",
            compilation=_foresee_compilation(run, c.epochs * run.steps_per_epoch * step),
            notes=(*checks.list_notes(c, run.steps_per_epoch), *initial),
        )
    finally:
        accelerator.end_training()


def resolve(experiment: Experiment, folder: Path, resume: bool) -> Experiment:
    """Return the experiment as the run in a folder saves it; nothing is written.

    The data are loaded only if the run would compute their normalization. Raises UserError if
    there is no such run to resume.
    """
    if resume:
        check_folder(folder, experiment, resume=True, overwrite=False)
        return with_absolute_source(as_recorded(experiment, folder, resume=True))
    data = experiment.data
    if not data.is_generated and (data.source is not None or data.mean == "auto"):
        loaded = load_data(experiment, torch.device("cpu"), is_resumed=False)
        experiment = replace(experiment, data=data.as_loaded(loaded))
    return with_absolute_source(experiment)


def time_steps(run: TrainingRun) -> list[float]:
    """Take steps until they are timed well enough, and return the seconds of each."""
    seconds: list[float] = []
    run.take_step.set_training_mode()
    batches = _batches(run)
    for number in count(1 - WARM_UP):
        if number == 1:
            reset_peak(run.device)
        start = time.perf_counter()
        run.take_step(next(batches))
        synchronize(run.device)
        if number >= 1:
            seconds.append(time.perf_counter() - start)
        enough = sum(seconds) >= ENOUGH_SECONDS and len(seconds) >= MIN_MEASURED
        if enough or len(seconds) == MAX_MEASURED:
            break
    run.take_step.skipped.check()
    return seconds


def _batches(run: TrainingRun) -> Iterator[Batch]:
    """Yield the batches of the run, in its order, epoch after epoch without end."""
    c = run.config
    for epoch in count():
        for step, batch in enumerate(
            run.data.train.train_batches(c.batch_size, c.seed, epoch, 0, run.share)
        ):
            run.take_step.seed(epoch, step + 1)
            run.take_step.set_learning_rate(min(epoch, c.epochs - 1), step, run.steps_per_epoch)
            yield batch


def _watch_tokens(model: nn.Module) -> list[int]:
    """Return a list to which each forward pass appends the number of tokens of an image."""
    lengths: list[int] = []

    def record(module: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ANN401
        tokens = output[0] if isinstance(output, tuple) else output
        if torch.is_tensor(tokens) and tokens.ndim == 3:
            lengths.append(tokens.shape[1])

    if isinstance(embed := getattr(model, "embed", None), nn.Module):
        embed.register_forward_hook(record)
    return lengths


def _count_items(data: DataSet, noun: str) -> tuple[str, ...]:
    named = {"training": data.train, "validation": data.validation, "test": data.test}
    counts = [f"{len(split):,} {name}" for name, split in named.items() if split is not None]
    counts[-1] += f" {noun}"
    classes = format_count(len(data.class_names), "class")
    skipped = [f"{data.num_skipped:,} unreadable images left out"] * bool(data.num_skipped)
    return (*counts, classes, *skipped)


def _image_bytes(data: DataSet) -> int:
    """Return the bytes of the images that stay decoded."""
    loaders = {id(split.loader): split.loader for split in data[:3] if split is not None}
    images = [getattr(loader, "images", None) for loader in loaders.values()]
    return sum(each.numel() * each.element_size() for each in images if torch.is_tensor(each))


def _name_device(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def _foresee_compilation(run: TrainingRun, seconds: float) -> str:
    """Return whether the model would be compiled; a run decides with a trial of its own."""
    config, steps = run.config, run.config.epochs * run.steps_per_epoch
    if config.detect_anomaly or config.compile == "off":
        return "no: " + (
            "--train.detect-anomaly" if config.detect_anomaly else "--train.compile off"
        )
    if config.compile == "on":
        return "yes: --train.compile on; time and memory below are without it"
    if steps < MIN_STEPS or seconds < MIN_SECONDS:
        return "no: the run is too short for it to pay off"
    return "tried at the start, and kept if the remaining steps save more time than it takes"
