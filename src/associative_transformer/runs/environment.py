"""The environment of a run: versions, device and commit, so that the run can be repeated."""

import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from associative_transformer.compute import find_bfloat16
from associative_transformer.files import write_file
from associative_transformer.interface import UserError
from associative_transformer.runs.reading import read_json

ENVIRONMENT = "environment.json"
VARIABLES = (
    *("ACCELERATE_", "ATEN_", "CUBLAS_", "DNNL_", "MKL_CBWR", "NCCL_", "NVIDIA_TF32"),
    *("ONEDNN_", "PYTORCH_", "TORCH_", "WORLD_SIZE"),
)
"""Beginnings of the environment variables that may change what torch computes."""
PACKAGES = ("associative-transformer", "torch", "torchvision", "numpy", "accelerate", "datasets")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The content of `environment.json`; unknown values are None."""

    python: str | None = None
    platform: str | None = None
    packages: dict[str, str | None] = field(default_factory=dict)  # versions by name
    device: str | None = None  # name of the GPU, or architecture of the CPU
    bfloat16: str | None = None  # instructions that multiply bfloat16 matrices
    cuda: str | None = None  # version that torch was built with
    threads: int | None = None
    commit: str | None = None
    variables: dict[str, str] = field(default_factory=dict)  # see VARIABLES


def describe_environment(device: torch.device) -> Environment:
    """Return the versions, device and commit of this process."""
    on_gpu = device.type == "cuda"
    return Environment(
        python=platform.python_version(),
        platform=platform.platform(),
        packages={name: find_version(name) for name in PACKAGES},
        device=torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        bfloat16=find_bfloat16(device),
        cuda=torch.version.cuda if on_gpu else None,
        threads=torch.get_num_threads(),
        commit=find_commit(),
        variables=find_variables(),
    )


def write_environment(folder: Path, environment: Environment) -> None:
    """Write `environment.json`."""
    values = asdict(environment)
    if not environment.variables:
        del values["variables"]
    write_file(folder / ENVIRONMENT, json.dumps(values, indent=2).encode())


def read_environment(folder: Path) -> Environment | None:
    """Read the environment of a run; None if the file does not exist.

    Raises UserError if the file is damaged, and PermissionError if it may not be read.
    """
    path = folder / ENVIRONMENT
    try:
        return read_json(path, Environment)
    except FileNotFoundError:
        return None
    except PermissionError:  # the file may be intact
        raise
    except OSError as error:
        reason = error.strerror or str(error)
    except ValueError as error:
        reason = str(error)
    raise UserError(
        f"{path} is damaged ({reason}): copy it again from the original run folder, or remove it "
        "to report the run without its versions"
    )


def find_variables() -> dict[str, str]:
    """Return the environment variables that may change what torch computes, but no paths."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(VARIABLES) and "/" not in value and "\\" not in value
    }


def find_version(package: str) -> str | None:
    """Return the version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def find_commit() -> str | None:
    """Return the commit of the source tree, followed by `+changes` if files were edited since.

    Returns None if git is not available or does not track this file, as in an installed copy.
    """
    file = Path(__file__)
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
