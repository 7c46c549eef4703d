"""Speed and memory, side by side in one run.

The forms take turns, round after round, with a large matrix product among them, so that what else
the machine does falls on all alike; figures are medians over the rounds after a warm-up. All
forms are in memory at the same time, as turns want it; the peak memory is measured for each in
a process of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import NamedTuple

import torch
from accelerate.utils import ProjectConfiguration

from associative_transformer.bench.loading import count_batches, prepare_loading, ways_to_load
from associative_transformer.bench.pool import ATTEND, PoolSizes, count_write, prepare_write
from associative_transformer.bench.ratios import (
    Entry,
    Ratios,
    Verdict,
    measure_again,
    read_ratios,
    tabulate_verdicts,
    write_ratios,
)
from associative_transformer.bench.timing import matrix_product, measure_memory, time_in_turn
from associative_transformer.bench.variants import (
    Variant,
    Workload,
    choose_precision,
    find_variant,
    prepare_model,
)
from associative_transformer.experiment import TrainConfig
from associative_transformer.models import count_operations
from associative_transformer.training.step import make_accelerator

__all__ = [
    "Benchmark",
    "Entry",
    "Measured",
    "PoolSizes",
    "Ratios",
    "Variant",
    "Verdict",
    "Workload",
    "choose_precision",
    "find_variant",
    "loading_benchmarks",
    "measure",
    "measure_again",
    "model_benchmark",
    "read_ratios",
    "tabulate_verdicts",
    "write_benchmarks",
    "write_ratios",
]

PASSES = {"step": 3, "infer": 1}  # a backward pass takes twice the operations of a forward one
PRODUCT = "matrix product"


class Benchmark(NamedTuple):
    """Something to time."""

    name: str
    prepare: Callable[[], Callable[[], object]]  # gives what is called; must pickle
    samples: int  # of a batch: images or tokens
    operations: int | None = None  # floating-point ones of a batch; None: no products to speak of
    batches: int = 1  # of a call
    given: int | None = None  # bytes of the peak memory that don't count; see `measure_memory`


@dataclass(frozen=True)
class Measured:
    """How fast one form is."""

    name: str
    milliseconds: float  # of a batch, median
    samples_per_second: float
    times_rival: float  # its milliseconds, divided by those of the rival
    best_times_rival: float  # the same of the fastest round of each, which others disturb least
    peak_memory: float | None  # GiB; on a CPU of the whole process, unless the form says less
    peak_share: float | None  # of the floating-point operations of a matrix product in this run


def model_benchmark(variant: Variant, what: Workload) -> Benchmark:
    """Time a training step, or inference, on a batch of random images.

    Batch size, precision, device and compilation are those of the experiment's `train`.
    """
    experiment = variant.experiment
    size = experiment.train.batch_size
    operations = PASSES[what] * size * count_operations(experiment.model)
    return Benchmark(experiment.name, partial(prepare_model, variant, what), size, operations)


def write_benchmarks(sizes: PoolSizes, train: TrainConfig) -> list[Benchmark]:
    """Time the workspace's write, forward and backward, in each form.

    Counted are the operations of the plain form, whatever a form does instead, and the memory
    beyond weights, tokens and the gradient of the tokens.
    """
    gradient = 4 * sizes.tokens * sizes.embed_dim
    return [
        Benchmark(
            name,
            partial(prepare_write, name, sizes, train),
            sizes.tokens,
            PASSES["step"] * count_write(name, sizes),
            given=gradient,
        )
        for name in ATTEND
    ]


def loading_benchmarks(variant: Variant, num_batches: int) -> list[Benchmark]:
    """Time the step of a recipe, and beside it the batches that it would wait for.

    The images are resident, decoded before the first batch, or streaming, decoded by workers for
    every batch, whose own memory is not counted.
    """
    experiment = variant.experiment
    device = make_accelerator(experiment.train, ProjectConfiguration()).device
    size = experiment.train.batch_size
    num_batches = count_batches(experiment, num_batches, device)
    ways = ways_to_load(experiment.data, device).items()
    return [
        model_benchmark(variant, "step")._replace(name="step"),
        *(
            Benchmark(
                name,
                partial(prepare_loading, data, size, num_batches, device),
                size,
                batches=num_batches,
            )
            for name, data in ways
        ),
    ]


def measure(
    forms: list[Benchmark], rival: str, train: TrainConfig, rounds: int, use_memory: bool = True
) -> list[Measured]:
    """Time the forms in turn, and compare them with the one called `rival`.

    Device and precision of the matrix product are those of `train`. Measuring the memory takes
    a process a form and can be left out.
    """
    runs = {form.name: form.prepare() for form in forms}
    accelerator = make_accelerator(train, ProjectConfiguration())
    runs[PRODUCT], product_operations = matrix_product(accelerator)
    times = time_in_turn(runs, rounds, accelerator.device)
    del runs
    if accelerator.device.type == "cuda":
        torch.cuda.empty_cache()  # the processes that measure memory want it
    peak = product_operations / median(times[PRODUCT])
    seconds, best = (
        {form.name: choose(times[form.name]) / form.batches for form in forms}
        for choose in (median, min)
    )
    return [
        Measured(
            form.name,
            1e3 * seconds[form.name],
            form.samples / seconds[form.name],
            seconds[form.name] / seconds[rival],
            best[form.name] / best[rival],
            measure_memory(form.name, form.prepare, accelerator.device, form.given)
            if use_memory
            else None,
            None if form.operations is None else form.operations / seconds[form.name] / peak,
        )
        for form in forms
    ]
