"""Time functions that take turns, and measure peak memory in a separate process."""

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import torch

from associative_transformer.compute import Precision, autocast
from associative_transformer.interface import UserError
from associative_transformer.training.peak import peak_bytes, synchronize

Run = Callable[[], object]
WARM_UP = 2  # rounds that are not counted
MATRIX_SIZE = 4_096  # of the product that determines the matrix peak of a GPU
CPU_MATRIX_SIZE = 2_048  # the same for a CPU


def time_in_turn(
    runs: dict[str, Run], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Call each function once per round and return the seconds of each call."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(WARM_UP + rounds):
        for name, run in runs.items():
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            if i >= WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def matrix_product(device: torch.device, precision: Precision) -> tuple[Run, int]:
    """Return a large matrix product, to show how fast the device is, and its operations."""
    size = CPU_MATRIX_SIZE if device.type == "cpu" else MATRIX_SIZE
    a, b = torch.rand(2, size, size, device=device)

    def multiply() -> object:
        with autocast(device, precision):
            return a @ b

    return multiply, 2 * size**3


def measure_memory(
    name: str, prepare: Callable[[], Run], device: torch.device, excluded: int | None = None
) -> float:
    """Return the peak memory in GiB, measured in a separate process.

    On a CPU, it is that of the whole process, including libraries. With `excluded`, it is what the
    calls add to the peak before the first call, minus that number of bytes. Raises UserError if
    the process is killed, which happens if it runs out of memory.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(peak_memory, prepare, device, excluded).result()
        except BrokenProcessPool:
            raise UserError(
                f"the process that measures the memory of {name} was killed: "
                "lower --batch-size or --tokens"
            ) from None


def peak_memory(prepare: Callable[[], Run], device: torch.device, excluded: int | None) -> float:
    """Return the peak memory of this process in GiB; see `measure_memory`."""
    run = prepare()
    before = 0 if excluded is None else peak_bytes(device) + excluded
    for _ in range(WARM_UP):
        run()
    return (peak_bytes(device) - before) / 2**30
