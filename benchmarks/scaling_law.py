"""Measure how time and memory grow with the pooled tokens T, priors M, heads S and bottleneck k.

`python benchmarks/scaling_law.py` varies one of the four at a time, for the write, for the read
(both with gradients) and for the training step of a two-layer AiT, and prints the slopes of
log(time) and log(memory), fitted to the three largest values. Next to each slope is the one that
the order on paper has at the same sizes. Every measurement runs in its own process. Memory is what
the calls add to the peak of that process, without tokens and weights and, for write and read,
without the gradient of the tokens.

The tokens of the step are narrower (`--step-embed-dim`), so that a million of them fit in 16 GiB.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from datetime import date
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from statistics import linear_regression, median
from typing import NamedTuple

import torch

from associative_transformer import GlobalWorkspace
from associative_transformer.bench import PoolSizes, Variant
from associative_transformer.bench.pool import prepare_write
from associative_transformer.bench.timing import peak_memory
from associative_transformer.bench.variants import prepare_model
from associative_transformer.experiment import TrainConfig
from associative_transformer.kernels.sparse import CHUNK
from associative_transformer.models.ait import AIT_SMALL
from associative_transformer.recipes import RECIPES
from associative_transformer.runs.environment import describe_environment
from associative_transformer.workspace_config import WorkspaceConfig

CPU = torch.device("cpu")
TRAIN = TrainConfig(epochs=1, batch_size=1, lr=1e-4, precision="float32", device="cpu")
PER_IMAGE = 64  # N, tokens of an image
D = WorkspaceConfig().prior_dim
FITTED = 3  # values to which a slope is fitted
MIN_SECONDS = 0.5  # of the timed calls together
MIN_GIB = 2**-10  # less memory is not fitted


class Sizes(NamedTuple):
    """The sizes of a measurement, by the symbols of the paper."""

    T: int
    M: int
    S: int
    k: int
    E: int

    @property
    def workspace(self) -> WorkspaceConfig:
        """The workspace of these sizes; its priors have the default width."""
        return WorkspaceConfig(num_priors=self.M, num_heads=self.S, bottleneck=self.k)


class Cost(NamedTuple):
    """The time and memory that a call takes."""

    seconds: float
    memory: float  # GiB


BASE = {"T": 32_768, "M": 32, "S": 8, "k": 512}
VALUES = {
    "T": [4**i for i in range(5, 11)],
    "M": [16, 32, 64, 128],
    "S": [4, 8, 16, 32],
    "k": [128, 512, 2_048, 8_192],
}
SMALL_BASE = {"T": 128, "M": 4, "S": 2, "k": 16}
SMALL_VALUES = {"T": [128, 256], "M": [4], "S": [2], "k": [16]}


class Order(NamedTuple):
    """How time or memory should grow, up to a constant factor."""

    text: str
    value: Callable[[Sizes], float]


def count_write(s: Sizes) -> float:
    """Return the multiply-adds of the write.

    The similarities of all tokens are computed once, from absorbed queries or, for more priors
    than D, from keys. Five sums cover only the winners: one forward, four in the gradients.
    """
    similarities = s.M * s.E if s.M <= D else D * (s.E + s.M)
    return s.S * (s.T * similarities + 5 * s.k * s.M * s.E)


def count_step(s: Sizes) -> float:
    """Return the multiply-adds of a training step, per layer.

    They are three times those of the forward pass, except for the write.
    """
    others = 12 * s.E**2 + 2 * PER_IMAGE * s.E + 2 * s.M * s.E
    return 3 * s.T * others + count_write(s)


ORDERS = {  # of time and of memory
    "write": (
        Order("S (T M E + 5 k M E), for M > D: S (T D (E + M) + 5 k M E)", count_write),
        Order("S M (min(T, CHUNK) + k + E)", lambda s: s.S * s.M * (min(s.T, CHUNK) + s.k + s.E)),
    ),
    "read": (
        Order("T M E", lambda s: s.T * s.M * s.E),
        Order("T (M + E)", lambda s: s.T * (s.M + s.E)),
    ),
    "step": (
        Order("T (36 E E + 6 N E + 6 M E) + the write", count_step),
        Order("T E", lambda s: s.T * s.E),
    ),
}


def prepare_read(sizes: Sizes) -> Callable[[], object]:
    """Return a function that reads a memory and computes the gradients."""

    def build(num_tokens: int) -> Callable[[], object]:
        workspace = GlobalWorkspace(sizes.E, sizes.workspace)
        tokens = torch.randn(num_tokens // PER_IMAGE, PER_IMAGE, sizes.E, requires_grad=True)

        def read() -> None:
            tokens.grad = None
            workspace.zero_grad()
            workspace.read(tokens, workspace.priors).sum().backward()

        return read

    build(PER_IMAGE)()  # loads libraries
    return build(sizes.T)


def prepare_step(sizes: Sizes) -> Callable[[], object]:
    """Return the training step of a two-layer AiT."""
    train = replace(TRAIN, batch_size=sizes.T // PER_IMAGE)
    model = replace(AIT_SMALL, embed_dim=sizes.E, num_heads=max(1, sizes.E // 64))
    model = replace(model, workspace=sizes.workspace)
    recipe = RECIPES["cifar10-ait-small"]
    return prepare_model(Variant(replace(recipe, model=model, train=train)), "step")


def prepare(part: str, sizes: Sizes) -> Callable[[], object]:
    """Return the function to measure."""
    if part == "write":
        return prepare_write("sparse", PoolSizes(sizes.T, sizes.E, sizes.workspace), TRAIN)
    return prepare_read(sizes) if part == "read" else prepare_step(sizes)


def measure(part: str, sizes: Sizes) -> Cost:
    """Measure the memory of two calls, then the seconds of later ones."""
    run = prepare(part, sizes)
    gradient = 0 if part == "step" else 4 * sizes.T * sizes.E
    memory = peak_memory(lambda: run, CPU, gradient)
    seconds: list[float] = []
    while sum(seconds) < MIN_SECONDS:
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return Cost(median(seconds), memory)


def measure_alone(part: str, sizes: Sizes) -> Cost | None:
    """Measure in a new process; return None if it is killed, as when memory runs out."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(measure, part, sizes).result()
        except BrokenProcessPool:
            return None


def fit_slope(x: list[int], y: list[float]) -> float:
    """Return the slope of log(y) over log(x), or nan for fewer than two values."""
    if len(x) < 2:
        return math.nan
    return linear_regression([math.log(each) for each in x], [math.log(each) for each in y]).slope


class Slopes(NamedTuple):
    """Fitted exponents of time and memory, measured and on paper."""

    part: str
    varied: str
    fitted: list[int]
    seconds: float
    seconds_on_paper: float
    memory: float
    memory_on_paper: float


def fit(part: str, varied: str, costs: dict[Sizes, Cost]) -> Slopes:
    """Fit the largest values of one size; memory below `MIN_GIB` is left out."""
    largest = sorted(costs, key=lambda sizes: getattr(sizes, varied))[-FITTED:]
    slopes: list[float] = []
    for order, name, least in zip(ORDERS[part], Cost._fields, (0.0, MIN_GIB), strict=True):
        kept = [sizes for sizes in largest if getattr(costs[sizes], name) > least]
        x = [getattr(sizes, varied) for sizes in kept]
        slopes.append(fit_slope(x, [getattr(costs[sizes], name) for sizes in kept]))
        slopes.append(fit_slope(x, [order.value(sizes) for sizes in kept]))
    return Slopes(part, varied, [getattr(sizes, varied) for sizes in largest], *slopes)


def measure_all(
    points: dict[str, dict[str, list[Sizes]]], rounds: int
) -> dict[str, dict[Sizes, Cost]]:
    """Return the medians over rounds of all points, except for those whose process is killed."""
    measured: dict[tuple[str, Sizes], list[Cost | None]] = {}
    for _ in range(rounds):
        for part, by_varied in points.items():
            for sizes in dict.fromkeys(chain(*by_varied.values())):
                measured.setdefault((part, sizes), []).append(measure_alone(part, sizes))
    costs: dict[str, dict[Sizes, Cost]] = {part: {} for part in points}
    for (part, sizes), of_point in measured.items():
        if None in of_point:
            print(f"{part}, {sizes}: the process was killed")
        else:
            seconds, memory = zip(*of_point, strict=True)
            costs[part][sizes] = Cost(median(seconds), median(memory))
    return costs


def print_tables(costs: dict[str, dict[Sizes, Cost]], slopes: list[Slopes]) -> None:
    print("| part | T | M | S | k | E | ms | MiB |")
    print("| --- |" + " ---: |" * 7)
    for part, of_part in costs.items():
        for sizes, cost in of_part.items():
            numbers = [f"{size:,}" for size in sizes]
            numbers += [f"{1e3 * cost.seconds:.1f}", f"{1024 * cost.memory:.1f}"]
            print(f"| {part} | {' | '.join(numbers)} |")
    print("\n| part | varied | fitted to | slope of time | on paper | of memory | on paper |")
    print("| --- | --- | --- |" + " ---: |" * 4)
    for part, varied, fitted, *exponents in slopes:
        numbers = " | ".join("-" if math.isnan(each) else f"{each:.2f}" for each in exponents)
        print(f"| {part} | {varied} | {', '.join(f'{x:,}' for x in fitted)} | {numbers} |")
    print()
    for part, (seconds, memory) in ORDERS.items():
        print(f"- {part}: time {seconds.text}; memory {memory.text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--embed-dim", type=int, default=192, help="width for write and read")
    parser.add_argument("--step-embed-dim", type=int, default=64, help="width for the step")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="tiny sizes, for a test")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    base, values = (SMALL_BASE, SMALL_VALUES) if options.small else (BASE, VALUES)
    points: dict[str, dict[str, list[Sizes]]] = {}
    for part in ORDERS:
        width = options.step_embed_dim if part == "step" else options.embed_dim
        points[part] = {
            varied: [Sizes(**base | {"E": width, varied: value}) for value in of_varied]
            for varied, of_varied in values.items()
        }
    costs = measure_all(points, options.rounds)
    slopes = [
        fit(
            part,
            varied,
            {sizes: costs[part][sizes] for sizes in of_varied if sizes in costs[part]},
        )
        for part, by_varied in points.items()
        for varied, of_varied in by_varied.items()
    ]
    print_tables(costs, slopes)
    if options.json:
        rows = [
            {"part": part, **sizes._asdict(), **cost._asdict()}
            for part, of_part in costs.items()
            for sizes, cost in of_part.items()
        ]
        content = {"rows": rows, "slopes": [each._asdict() for each in slopes]}
        content |= {"rounds": options.rounds, "date": date.today().isoformat()}
        content |= asdict(describe_environment(CPU))
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
