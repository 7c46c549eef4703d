"""How models run on this machine: precision of matrix products, threads, denormal numbers."""

import ctypes
import os
import platform
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import BeforeValidator

Precision = Literal["float32", "bfloat16"]
"""bfloat16 means autocast: matrix products use it. Heads, losses, softmaxes and statistics of the
workspace are computed in float32."""
CPU_BFLOAT16 = ("amx_bf16", "avx512_bf16")
"""Instruction sets that multiply bfloat16 matrices, by their names in torch."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of settings in malloc.h
CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")
"""File with the microseconds of processor time that a container gets per period, or "max", and
the length of the period."""


def read_flag(value: object) -> object:
    """Return the setting that a boolean of version 0.1 stands for; other values are unchanged."""
    return ("on" if value else "off") if isinstance(value, bool) else value


CompileSetting = Annotated[Literal["auto", "on", "off"], BeforeValidator(read_flag)]
"""Whether to compile a model."""


class PrecisionChoice(NamedTuple):
    """The precision of a model on a device, and why."""

    precision: Precision
    reason: str


def choose_precision(
    setting: Literal["auto", "float32", "bfloat16"], device: torch.device, config: object
) -> PrecisionChoice:
    """Return the precision to train a model in.

    With "auto", it is bfloat16 if the device has instructions for it, except for a model whose
    configuration says that it is faster in float32 on a CPU. The choice depends on nothing that
    is measured at run time, so it is the same every time.
    """
    if setting != "auto":
        return PrecisionChoice(setting, "as set by --train.precision")
    instructions = find_bfloat16(device)
    if instructions is None:
        return PrecisionChoice("float32", "this device has no instructions for bfloat16")
    if device.type == "cpu" and getattr(config, "is_faster_in_float32", False):
        return PrecisionChoice("float32", "this model is faster in float32 on a CPU")
    return PrecisionChoice("bfloat16", f"this device has instructions for it ({instructions})")


def find_bfloat16(device: torch.device) -> str | None:
    """Return which instructions of a device multiply bfloat16 matrices; None if it has none."""
    if device.type == "cuda":
        return "GPU" if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if device.type != "cpu":
        return None
    capabilities = torch.cpu.get_capabilities()
    found = [name for name in CPU_BFLOAT16 if capabilities.get(name)]
    return found[0].upper().replace("_", "-") if found else None


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Return a context in which a model computes in `precision`."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def set_up_cpu() -> None:
    """Set up this process to compute fast on a CPU. Call it before anything is computed.

    - Torch uses as many threads as this process may use cores, unless OMP_NUM_THREADS is set.
    - Denormal numbers (below 1e-38) count as zero, since they are up to a hundred times slower.
    - The GNU allocator keeps large blocks for the next step, instead of returning them to the
      system, which would have to clear them again.
    """
    torch.set_flush_denormal(True)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), count_cores()))
    if platform.libc_ver()[0] == "glibc":
        allocator = ctypes.CDLL(None)
        allocator.mallopt(_MMAP_THRESHOLD, 2**30)
        allocator.mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def count_cores() -> int:
    """Return how many cores this process may use, by its affinity and its container's limit."""
    available = hasattr(os, "sched_getaffinity")  # on Linux
    cores = len(os.sched_getaffinity(0)) if available else os.cpu_count() or 1
    try:
        quota, period = CGROUP_LIMIT.read_text(encoding="utf-8").split()
        limit = -(-int(quota) // int(period))  # rounded up
    except (OSError, ValueError):  # not in a container, or not limited
        return cores
    return max(1, min(cores, limit))
