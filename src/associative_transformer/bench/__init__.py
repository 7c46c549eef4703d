"""Speed and memory of several variants, measured side by side in one run.

The benchmarks take turns, round after round, together with a large matrix product, so that other
load on the machine affects all of them equally. Figures are medians over the rounds after a
warm-up. All benchmarks are in memory at the same time, because they take turns; the peak memory of
each is measured in a separate process.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from accelerate.utils import ProjectConfiguration

from associative_transformer.bench.benchmarks import (
    Benchmark,
    Plan,
    loading_benchmarks,
    model_benchmark,
    plan_loading,
    plan_models,
    plan_write,
    write_benchmarks,
)
from associative_transformer.bench.pool import PoolSizes
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
    find_precision,
    find_variant,
)
from associative_transformer.experiment import TrainConfig
from associative_transformer.tabular import RowGroup, Table
from associative_transformer.training.launch import make_accelerator

__all__ = [
    "Benchmark",
    "BenchmarkResult",
    "Entry",
    "Plan",
    "PoolSizes",
    "Ratios",
    "Variant",
    "Verdict",
    "Workload",
    "find_precision",
    "find_variant",
    "loading_benchmarks",
    "measure",
    "measure_again",
    "model_benchmark",
    "plan_loading",
    "plan_models",
    "plan_write",
    "read_ratios",
    "tabulate_results",
    "tabulate_verdicts",
    "write_benchmarks",
    "write_ratios",
]

PRODUCT = "matrix product"


@dataclass(frozen=True)
class BenchmarkResult:
    """The figures of one benchmark."""

    name: str
    milliseconds: float  # median time of a batch
    samples_per_second: float
    times_rival: float  # its milliseconds, divided by those of the rival
    best_times_rival: float  # the same for the fastest rounds, which other load disturbs least
    peak_memory: float | None  # GiB; on a CPU, of the whole process unless bytes are excluded
    peak_share: float | None  # of the operations per second of a matrix product in this run


def measure(
    benchmarks: list[Benchmark],
    rival: str,
    train: TrainConfig,
    rounds: int,
    use_memory: bool = True,
) -> list[BenchmarkResult]:
    """Time benchmarks in turn and compare them with the one named `rival`.

    The matrix product uses the device and the precision of `train`. Measuring the memory starts a
    process for each benchmark; `use_memory=False` skips it.
    """
    runs = {each.name: each.prepare() for each in benchmarks}
    device = make_accelerator(train, ProjectConfiguration()).device
    runs[PRODUCT], product_operations = matrix_product(device, find_precision(train))
    times = time_in_turn(runs, rounds, device)
    del runs
    if device.type == "cuda":
        torch.cuda.empty_cache()  # for the processes that measure the memory
    peak = product_operations / median(times[PRODUCT])
    seconds, best = (
        {each.name: statistic(times[each.name]) / each.batches for each in benchmarks}
        for statistic in (median, min)
    )
    return [
        BenchmarkResult(
            each.name,
            1e3 * seconds[each.name],
            each.samples / seconds[each.name],
            seconds[each.name] / seconds[rival],
            best[each.name] / best[rival],
            measure_memory(each.name, each.prepare, device, each.excluded_bytes)
            if use_memory
            else None,
            None if each.operations is None else each.operations / seconds[each.name] / peak,
        )
        for each in benchmarks
    ]


def tabulate_results(
    plan: Plan, results: Sequence[BenchmarkResult], device: str, train: TrainConfig, rounds: int
) -> Table:
    """Return a table with one row for each benchmark of a plan."""
    columns = (
        *("variant", "precision", "compile", "ms", f"{plan.unit}/s"),
        *(f"times {plan.rival}", "peak GiB", "of matrix peak"),
    )
    rows = [
        (
            each.name,
            train.precision,
            train.compile,
            f"{each.milliseconds:.1f}",
            f"{each.samples_per_second:,.0f}",
            f"{each.times_rival:.2f}",
            "-" if each.peak_memory is None else f"{each.peak_memory:#.3g}",
            "-" if each.peak_share is None else f"{100 * each.peak_share:.0f} %",
        )
        for each in results
    ]
    group = RowGroup(plan.sizes, rows)
    notes = [f"Medians of {rounds} rounds in which the rows take turns.", plan.note]
    return Table(f"{plan.title} on {device}", columns, [group], notes)
