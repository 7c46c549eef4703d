"""How models run on this machine: threads, denormal numbers, precision."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from associative_transformer import compute

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("limit", "cores"),
    [
        ("max 100000", 8),
        ("400000 100000", 4),
        ("150000 100000", 2),  # one and a half
        ("50000 100000", 1),
        ("1600000 100000", 8),  # more than there are
        ("", 8),
        ("nonsense", 8),
    ],
)
def test_cores_are_those_that_affinity_and_container_allow(
    limit: str, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(limit)
    monkeypatch.setattr(compute, "CGROUP_LIMIT", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert compute.count_cores() == cores


def test_without_a_container_the_affinity_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute, "CGROUP_LIMIT", tmp_path / "missing")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5})
    assert compute.count_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert compute.count_cores() == 1


SET_UP = """
import os
import torch
from associative_transformer import compute

compute.count_cores = lambda: 1
compute.set_up_cpu()
tiny = torch.full((4,), 1e-40)
print(torch.get_num_threads(), float((tiny * 0.5).sum()))
"""


@pytest.mark.parametrize(("given", "expected"), [(None, "1"), ("2", "2")])
def test_threads_follow_the_cores_unless_set_and_denormals_are_zero(
    given: str | None, expected: str
) -> None:
    environment = {name: x for name, x in os.environ.items() if name != "OMP_NUM_THREADS"}
    if given is not None:
        environment["OMP_NUM_THREADS"] = given
    words = subprocess.run(
        [sys.executable, "-c", SET_UP], capture_output=True, text=True, check=True, env=environment
    ).stdout.split()
    assert words == [expected, "0.0"]


def test_autocast_computes_products_in_the_given_precision() -> None:
    x = torch.ones(2, 2)
    for precision in ("float32", "bfloat16"):
        with compute.autocast(CPU, precision):
            assert (x @ x).dtype == getattr(torch, precision)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other CPUs have other instructions")
def test_torch_knows_the_instructions_that_are_asked_for() -> None:
    assert torch.cpu.get_capabilities().keys() >= {"amx_bf16", "avx512_bf16"}


def test_a_device_of_another_type_has_no_instructions_for_bfloat16() -> None:
    assert compute.find_bfloat16(torch.device("meta")) is None
