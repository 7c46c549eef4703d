"""Environment variables of launchers and of accelerate, which must not change a run silently."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from associative_transformer import distributed
from associative_transformer.experiment import TrainConfig
from associative_transformer.training import variables
from associative_transformer.training.launch import make_accelerator
from associative_transformer.training.loop import train
from making.steps import PROJECT
from making.trained import EXPERIMENT, assert_same_outcome

ALONE = [
    {"LOCAL_RANK": "0"},
    {"RANK": "1", "LOCAL_RANK": "1"},
    {"PMI_SIZE": "2", "PMI_RANK": "1", "MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": "1"},
    {"PMI_SIZE": "2", "PMI_RANK": "1", "MASTER_ADDR": "localhost"},
    {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"},
    {"MV2_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_RANK": "1"},
    {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"},
    {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "64"},
    {"ACCELERATE_USE_DEEPSPEED": "true", "LOCAL_RANK": "0"},
    {"ACCELERATE_USE_FSDP": "true"},
    {"ACCELERATE_USE_MEGATRON_LM": "true"},
    {"ACCELERATE_USE_PARALLELISM_CONFIG": "true"},
    {"ACCELERATE_MIXED_PRECISION": "bf16"},
    {"ACCELERATE_MIXED_PRECISION": "fp8", "ACCELERATE_FP8_BACKEND": "TE"},
    {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR", "ACCELERATE_DYNAMO_MODE": "max-autotune"},
    {"ACCELERATE_TORCH_DEVICE": "meta"},
    {"ACCELERATE_USE_CPU": "yes"},
]
"""Variables with which a process still trains alone, and as its options say."""


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Return a function that sets variables, after removing those of a launcher."""

    def set_variables(values: dict[str, str]) -> None:
        for name in distributed.LAUNCH_VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_variables


@pytest.mark.parametrize("values", ALONE, ids=str)
def test_variables_of_mpi_and_accelerate_change_nothing(
    values: dict[str, str], use: Callable[[dict[str, str]], None]
) -> None:
    use(values)
    accelerator = make_accelerator(TrainConfig(device="cpu"), PROJECT)
    assert (accelerator.num_processes, distributed.num_ranks()) == (1, 1)
    assert accelerator.device == torch.device("cpu")
    assert accelerator.gradient_accumulation_steps == 1
    assert accelerator.mixed_precision == "no"
    assert {name: os.environ[name] for name in values} == values


def test_a_run_with_such_variables_has_the_same_result(
    use: Callable[[dict[str, str]], None], undisturbed: Path, tmp_path: Path
) -> None:
    use({name: value for values in ALONE for name, value in values.items()})
    train(EXPERIMENT, tmp_path / "run")
    assert_same_outcome(tmp_path / "run", undisturbed)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "64"}, "=64 .*--train.accumulation-steps"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "=bf16 .*--train.precision"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "=INDUCTOR .*--train.compile"),
        ({"ACCELERATE_USE_FSDP": "1"}, "FSDP=1 has no effect"),
        ({"PMI_SIZE": "2"}, "PMI_SIZE=2 .*torchrun"),
        ({"OMPI_COMM_WORLD_SIZE": "16"}, "=16 .*torchrun"),
    ],
    ids=str,
)
def test_a_variable_that_asks_for_something_is_named(
    values: dict[str, str], words: str, use: Callable[[dict[str, str]], None]
) -> None:
    use(values)
    (note,) = variables.list_ignored()
    assert re.search(words, note)


def test_the_variables_that_accelerate_launch_always_sets_are_not_named(
    use: Callable[[dict[str, str]], None],
) -> None:
    names = ["MIXED_PRECISION", "DYNAMO_BACKEND", "USE_CPU", "CPU_AFFINITY", "USE_FSDP"]
    one = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1", "PMI_SIZE": "1"}
    use({f"ACCELERATE_{name}": "no" for name in names} | one)
    assert variables.list_ignored() == []
