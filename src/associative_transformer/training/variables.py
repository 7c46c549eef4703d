"""Environment variables that must not decide how a run is trained.

Only the options of a run and a launcher do. `accelerate` also reads variables of its own, of MPI
and of single ranks, so they are hidden from it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from associative_transformer import distributed

NUM_TASKS = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
"""Number of processes that mpirun or srun has started."""
OF_A_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
OFF = (
    "",
    "0",
    "1",
    "false",
    "no",
    "none",
)  # values that ask for nothing; 1: one step, one process
WITHOUT_EFFECT = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "--train.accumulation-steps",
    "ACCELERATE_MIXED_PRECISION": "--train.precision",
    "ACCELERATE_DYNAMO_BACKEND": "--train.compile",
    "ACCELERATE_TORCH_DEVICE": "--train.device",
    "ACCELERATE_USE_CPU": "--train.device cpu",
    "ACCELERATE_USE_DEEPSPEED": "",
    "ACCELERATE_USE_FSDP": "",
    "ACCELERATE_USE_MEGATRON_LM": "",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "",
}
"""Settings of accelerate, each with the option to use instead if there is one."""


@contextmanager
def hidden_variables() -> Iterator[None]:
    """Hide the environment variables that must not decide how a run is trained."""
    names = [name for name in os.environ if name.startswith("ACCELERATE_") or name in NUM_TASKS]
    if distributed.launched_ranks() == 1:
        names += [name for name in OF_A_RANK if name in os.environ]
    hidden = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ |= hidden


def list_ignored() -> list[str]:
    """Return a sentence for each variable that asks for something but has no effect."""
    notes = []
    for name, option in WITHOUT_EFFECT.items():
        value = os.environ.get(name, "")
        if value.lower() not in OFF or (value == "1" and name.startswith("ACCELERATE_USE_")):
            hint = f": use {option}" * bool(option)
            notes.append(f"{name}={value} has no effect on this run{hint}")
    if distributed.launched_ranks() == 1:
        for name in NUM_TASKS:
            value = os.environ.get(name, "")
            if value.isdecimal() and int(value) > 1:
                notes.append(f"{name}={value} has no effect on this run: use torchrun")
    return notes
