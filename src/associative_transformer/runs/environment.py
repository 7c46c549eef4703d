"""The environment of a run: versions, device and commit, so that the run can be repeated."""

import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError

from associative_transformer.files import first_error, write_file
from associative_transformer.interface import UserError

ENVIRONMENT = "environment.json"
PACKAGES = ("associative-transformer", "torch", "torchvision", "numpy", "accelerate", "datasets")


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The content of `environment.json`; unknown values are None."""

    python: str | None = None
    platform: str | None = None
    packages: dict[str, str | None] = field(default_factory=dict)  # versions by name
    device: str | None = None  # name of the GPU, or architecture of the CPU
    cuda: str | None = None  # version that torch was built with
    threads: int | None = None
    commit: str | None = None


_ADAPTER: TypeAdapter[Environment] = TypeAdapter(Environment)


def describe_environment(device: torch.device) -> Environment:
    """Return the versions, device and commit of this process."""
    on_gpu = device.type == "cuda"
    return Environment(
        python=platform.python_version(),
        platform=platform.platform(),
        packages={name: find_version(name) for name in PACKAGES},
        device=torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        cuda=torch.version.cuda if on_gpu else None,
        threads=torch.get_num_threads(),
        commit=find_commit(),
    )


def write_environment(folder: Path, environment: Environment) -> None:
    """Write `environment.json`."""
    write_file(folder / ENVIRONMENT, json.dumps(asdict(environment), indent=2).encode())


def read_environment(folder: Path) -> Environment | None:
    """Read the environment of a run; None if the file does not exist.

    Raises UserError if the file is damaged.
    """
    path = folder / ENVIRONMENT
    try:
        return _ADAPTER.validate_json(path.read_bytes(), strict=True)
    except FileNotFoundError:
        return None
    except ValidationError as error:
        reason = first_error(error)
    except OSError as error:
        reason = error.strerror or str(error)
    raise UserError(
        f"{path} is damaged ({reason}): copy it again from the original run folder, or train the "
        "run again with --overwrite"
    )


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
