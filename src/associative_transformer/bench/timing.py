"""Seconds and memory: turns on one clock, the peak of a process of its own."""

import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import torch
from accelerate import Accelerator

from associative_transformer.interface import UserError

Run = Callable[[], object]
WARM_UP = 2  # rounds that are not counted
MATRIX_SIZE = 4_096  # of the product that gives a GPU's matrix peak
CPU_MATRIX_SIZE = 2_048


def time_in_turn(
    runs: dict[str, Run], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Call each function once a round and give the seconds of each call."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(WARM_UP + rounds):
        for name, run in runs.items():
            _synchronize(device)
            start = time.perf_counter()
            run()
            _synchronize(device)
            if i >= WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def matrix_product(accelerator: Accelerator) -> tuple[Run, int]:
    """Give a large matrix product and its floating-point operations: what the device can do."""
    device = accelerator.device
    size = CPU_MATRIX_SIZE if device.type == "cpu" else MATRIX_SIZE
    a, b = torch.rand(2, size, size, device=device)

    def multiply() -> object:
        with accelerator.autocast():
            return a @ b

    return multiply, 2 * size**3


def measure_memory(
    name: str, prepare: Callable[[], Run], device: torch.device, given: int | None = None
) -> float:
    """Measure the peak memory in GiB in a process of its own.

    On a CPU it is that of the whole process, libraries included; with `given` it is what comes
    on top of what is there before the first call, less so many bytes. Raises UserError where the
    process is killed, as one is that takes too much of it.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(peak_memory, prepare, device, given).result()
        except BrokenProcessPool:
            raise UserError(
                f"the process that measures the memory of {name} was killed: "
                "lower --batch-size or --tokens"
            ) from None


def peak_memory(prepare: Callable[[], Run], device: torch.device, given: int | None) -> float:
    """Measure the peak memory of this process in GiB, as `measure_memory` says."""
    run = prepare()
    before = 0 if given is None else _peak(device) + given
    for _ in range(WARM_UP):
        run()
    return (_peak(device) - before) / 2**30


def _peak(device: torch.device) -> int:
    """Give the most bytes that were in use so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes there
    # not getrusage: on Linux it knows the peak of the parent too
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 2**10


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
