"""Speed and memory of recipes, side by side in one run.

The variants take turns, round after round, so that what else the machine does falls on all alike;
figures are medians over the rounds after a warm-up.

Dims     B batch   C channels   H W image side   Q question features
"""

import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Literal

import torch
from accelerate.utils import ProjectConfiguration

from associative_transformer.experiment import Experiment
from associative_transformer.interface import Batch, UserError
from associative_transformer.models import build_model, count_operations
from associative_transformer.step import TrainingStep, make_accelerator

What = Literal["step", "infer"]
WARM_UP = 2  # rounds that are not counted
MATRIX_SIZE = 4_096  # of the product that gives a GPU's matrix peak
CPU_MATRIX_SIZE = 2_048


@dataclass(frozen=True)
class Measured:
    """How fast one recipe is."""

    name: str
    milliseconds: float  # of a batch, median
    samples_per_second: float
    peak_memory: float  # GiB; on a CPU of the whole process, libraries included
    peak_share: float  # of the floating-point operations that the device does in a matrix product


def measure(experiments: list[Experiment], what: What, rounds: int) -> list[Measured]:
    """Time a training step, or inference, of each experiment on a batch of random images.

    Batch size, precision, device and compilation are those of each experiment's `train`.
    """
    forms = {experiment.name: prepare(experiment, what) for experiment in experiments}
    device = make_accelerator(experiments[0].train, ProjectConfiguration()).device
    times = time_in_turn(forms, rounds, device)
    peak, passes = measure_matrix_peak(experiments[0]), 3 if what == "step" else 1
    del forms
    measured = []
    for experiment in experiments:
        seconds = median(times[experiment.name]) / experiment.train.batch_size
        share = passes * count_operations(experiment.model) / seconds / peak
        milliseconds = 1e3 * seconds * experiment.train.batch_size
        memory = measure_memory(experiment, what)
        measured.append(Measured(experiment.name, milliseconds, 1 / seconds, memory, share))
    return measured


def prepare(experiment: Experiment, what: What) -> Callable[[], object]:
    """Build the model on its device and give the function to time."""
    train = experiment.train
    accelerator = make_accelerator(train, ProjectConfiguration())
    model = build_model(experiment.model)
    batch = random_batch(experiment, accelerator.device)
    if what == "step":
        step = TrainingStep(model, train, accelerator)
        return lambda: step(batch)
    model = model.to(accelerator.device).eval()
    if train.compile:
        model.compile()

    @torch.inference_mode()
    def infer() -> object:
        with accelerator.autocast():
            return model(batch.images, batch.questions)

    return infer


def random_batch(experiment: Experiment, device: torch.device) -> Batch:
    """Make up a batch: pixels from 0 to 1, questions and labels."""
    model, size = experiment.model, experiment.train.batch_size
    side, question_dim = model.image_size, getattr(model, "question_dim", 0)
    images = torch.rand(size, model.num_channels, side, side, device=device)
    questions = torch.rand(size, question_dim, device=device) if question_dim else None
    return Batch(images, questions, torch.randint(model.num_classes, (size,), device=device))


def time_in_turn(
    forms: dict[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Call each function once a round and give the seconds of each call."""
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for i in range(WARM_UP + rounds):
        for name, form in forms.items():
            _synchronize(device)
            start = time.perf_counter()
            form()
            _synchronize(device)
            if i >= WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def measure_matrix_peak(experiment: Experiment) -> float:
    """Measure the floating-point operations a second of a large matrix product."""
    accelerator = make_accelerator(experiment.train, ProjectConfiguration())
    device = accelerator.device
    size = CPU_MATRIX_SIZE if device.type == "cpu" else MATRIX_SIZE
    a, b = torch.rand(2, size, size, device=device)
    with accelerator.autocast():
        seconds = time_in_turn({"product": lambda: a @ b}, 10, device)["product"]
    return 2 * size**3 / min(seconds)


def measure_memory(experiment: Experiment, what: What) -> float:
    """Measure the peak memory in GiB in a process of its own.

    Raises UserError where the process is killed, as one is that takes too much of it.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(_peak_memory, experiment, what).result()
        except BrokenProcessPool:
            raise UserError(
                f"the process that measures the memory of {experiment.name} was killed: "
                "lower --batch-size"
            ) from None


def _peak_memory(experiment: Experiment, what: What) -> float:
    form = prepare(experiment, what)
    for _ in range(WARM_UP):
        form()
    if torch.cuda.is_available() and experiment.train.device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**30
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30  # bytes there
    # not getrusage: on Linux it knows the peak of the parent too
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**20  # KiB


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
