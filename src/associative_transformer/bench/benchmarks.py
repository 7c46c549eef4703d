"""Everything that can be measured: models, the workspace's write, and the loading of batches."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from accelerate.utils import ProjectConfiguration

from associative_transformer.bench.loading import count_batches, prepare_loading, ways_to_load
from associative_transformer.bench.pool import ATTEND, PoolSizes, count_write, prepare_write
from associative_transformer.bench.variants import Variant, Workload, find_variant, prepare_model
from associative_transformer.experiment import TrainConfig
from associative_transformer.interface import UserError
from associative_transformer.models import count_operations
from associative_transformer.training.launch import make_accelerator

PASSES = {"step": 3, "infer": 1}  # a backward pass takes twice the operations of a forward pass
TITLES = {"step": "Training step", "infer": "Prediction"}
MEMORY_NOTE = "Memory: peak of a separate process, which on a CPU includes its libraries"


class Benchmark(NamedTuple):
    """A function to measure, and what one of its batches consists of."""

    name: str
    prepare: Callable[[], Callable[[], object]]  # returns the function to time; picklable
    samples: int  # images or tokens in a batch
    operations: int | None = None  # floating-point operations of a batch; None: not counted
    batches: int = 1  # per call
    excluded_bytes: int | None = None  # of the peak memory; see `measure_memory`


class Plan(NamedTuple):
    """The benchmarks of one command, and how to describe them in a table."""

    benchmarks: list[Benchmark]
    rival: str
    title: str
    unit: str  # of the samples
    sizes: str
    note: str


def plan_models(
    workload: Workload,
    names: Sequence[str],
    rival: str | None,
    train: TrainConfig,
    batch_size: int,
) -> Plan:
    """Plan to measure recipes and variants of recipes; the rival is the first one by default."""
    unique = list(dict.fromkeys(names))
    rival = rival or unique[0]
    if rival not in unique:
        unique.insert(0, rival)
    variants = [find_variant(name, train, batch_size) for name in unique]
    benchmarks = [model_benchmark(variant, workload) for variant in variants]
    sizes = f"batch {batch_size}"
    return Plan(benchmarks, rival, TITLES[workload], "images", sizes, f"{MEMORY_NOTE}.")


def plan_write(sizes: PoolSizes, rival: str, train: TrainConfig) -> Plan:
    """Plan to measure the workspace's write with each implementation."""
    names = ("num_priors", "prior_dim", "num_heads", "bottleneck")
    described = [f"embed_dim {sizes.embed_dim}"]
    described += [f"{name} {getattr(sizes.config, name)}" for name in names]
    note = (
        f"Pool: {', '.join(described)}. Memory: peak of a separate process, without libraries, "
        "weights, tokens and their gradient. Of matrix peak: counted with the operations of the "
        "plain implementation."
    )
    benchmarks = write_benchmarks(sizes, train)
    title = "Write of the workspace"
    return Plan(benchmarks, rival, title, "tokens", f"{sizes.tokens} tokens", note)


def plan_loading(
    recipe: str,
    train: TrainConfig,
    batch_size: int,
    num_batches: int,
    source: str | None,
    num_workers: int | None,
) -> Plan:
    """Plan to measure the training batches of a recipe next to its training step.

    Raises UserError if a source or workers are given for a recipe that generates its data.
    """
    variant = find_variant(recipe, train, batch_size)
    data = variant.experiment.data
    if source is not None or num_workers is not None:
        if data.is_generated:
            raise UserError(f"{recipe} generates its data: remove --source and --num-workers")
        data = data.with_storage(source, num_workers)
        variant = variant._replace(experiment=replace(variant.experiment, data=data))
    benchmarks = loading_benchmarks(variant, num_batches)
    note = (
        f"{recipe}, {benchmarks[-1].batches} batches per round. Training waits for batches that "
        f"take longer than the step. {MEMORY_NOTE} but not the workers."
    )
    sizes = f"batch {batch_size}"
    return Plan(benchmarks, "step", "Training batches", "images", sizes, note)


def model_benchmark(variant: Variant, workload: Workload) -> Benchmark:
    """Return the benchmark of a training step or of inference on a batch of random images.

    Batch size, precision, device and compilation are those of the experiment's `train`.
    """
    experiment = variant.experiment
    size = experiment.train.batch_size
    operations = PASSES[workload] * size * count_operations(experiment.model)
    return Benchmark(experiment.name, partial(prepare_model, variant, workload), size, operations)


def write_benchmarks(sizes: PoolSizes, train: TrainConfig) -> list[Benchmark]:
    """Return the benchmarks of the write, forward and backward, with each implementation.

    The operations are those of the plain implementation, with top-k or, for "dense", without.
    Weights, tokens and the gradient of the tokens are excluded from the memory.
    """
    gradient = 4 * sizes.tokens * sizes.embed_dim
    return [
        Benchmark(
            name,
            partial(prepare_write, name, sizes, train),
            sizes.tokens,
            PASSES["step"] * count_write(name, sizes),
            excluded_bytes=gradient,
        )
        for name in ATTEND
    ]


def loading_benchmarks(variant: Variant, num_batches: int) -> list[Benchmark]:
    """Return the benchmarks of a recipe's training step and of loading its training batches.

    The images are resident (decoded before the first batch) or streaming (decoded for every batch
    by workers, whose own memory is not measured). Raises UserError if an epoch has no batch.
    """
    experiment = variant.experiment
    device = make_accelerator(experiment.train, ProjectConfiguration()).device
    size = experiment.train.batch_size
    num_batches = count_batches(experiment, num_batches, device)
    return [
        model_benchmark(variant, "step")._replace(name="step"),
        *(
            Benchmark(
                name,
                partial(prepare_loading, data, size, num_batches, device),
                size,
                batches=num_batches,
            )
            for name, data in ways_to_load(experiment.data, device).items()
        ),
    ]
