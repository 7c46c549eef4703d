"""`ait doctor`: show what a bug report needs, and no secrets.

Versions, devices, kernels, data, disk and launcher.

Of the environment only the variables of `LAUNCHER` are told, none of which holds a secret; paths
in the home folder start with ~, and no name of a user or a machine is told.
"""

import os
import platform
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from datasets import config as datasets_config
from huggingface_hub import scan_cache_dir
from huggingface_hub.errors import CacheNotFound

from associative_transformer.cli.options import check_output, open_output, parse
from associative_transformer.data import HUB_DATA_SETS
from associative_transformer.kernels import FASTEST
from associative_transformer.runs.environment import find_commit, find_version


@dataclass(frozen=True)
class DoctorOptions:
    """Show versions, devices, kernels, data, disk and launcher, to paste into a bug report."""

    runs: Path = Path("runs")
    """Folder of the runs, whose free disk space is shown."""
    output: Path | None = None
    """File to write; None: the terminal."""


def run(arguments: list[str]) -> None:
    """Examine the installation and the machine."""
    options = parse(DoctorOptions, arguments, "doctor")
    check_output(options.output)
    text = to_markdown(examine(options.runs))
    with open_output(options.output) as file:
        file.write(text)


PACKAGES = (
    "associative-transformer",
    "torch",
    "torchvision",
    "triton",
    "accelerate",
    "datasets",
    "huggingface_hub",
    "safetensors",
    "numpy",
    "pydantic",
    "tyro",
    "jaxtyping",
    "timm",
)


LAUNCHER = (  # what torchrun, accelerate and Slurm set, and what chooses devices and threads
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "MASTER_PORT",
    "TORCHELASTIC_RESTART_COUNT",
    "ACCELERATE_USE_CPU",
    "ACCELERATE_MIXED_PRECISION",
    "SLURM_NTASKS",
    "SLURM_NNODES",
    "SLURM_PROCID",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
)


class Finding(NamedTuple):
    """One line of the report."""

    part: str  # heading
    name: str
    value: str


def examine(runs: Path) -> list[Finding]:
    """Look at this installation and machine; `runs` is the folder whose disk is asked for."""
    return [
        *(Finding("versions", *line) for line in _versions()),
        *(Finding("devices", *line) for line in _devices()),
        *(Finding("kernels", *line) for line in _kernels()),
        *(Finding("data sets", *line) for line in _data_sets()),
        *(Finding("disk", *line) for line in _disk(runs)),
        *(Finding("launcher", *line) for line in _launcher()),
    ]


def to_markdown(findings: list[Finding]) -> str:
    """Write the findings such that they can be pasted into a bug report."""
    lines, part = ["## ait doctor"], ""
    for finding in findings:
        if finding.part != part:
            part = finding.part
            lines += ["", f"### {part}", ""]
        lines.append(f"- {finding.name}: {finding.value}")
    return "\n".join(lines) + "\n"


Line = tuple[str, str]


def _versions() -> list[Line]:
    return [
        ("Python", platform.python_version()),
        ("system", platform.platform()),
        *((name, find_version(name) or "not installed") for name in PACKAGES),
        ("commit", find_commit() or "unknown"),
    ]


def _devices() -> list[Line]:
    cpu = torch.backends.cpu.get_cpu_capability()
    found = [("CPU", f"{platform.machine()}, {cpu}, {torch.get_num_threads()} threads")]
    found.append(("CUDA of torch", str(torch.version.cuda or "none")))
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        bfloat16 = "bfloat16" if (gpu.major, gpu.minor) >= (8, 0) else "no bfloat16"
        memory = f"{gpu.total_memory / 2**30:.1f} GiB"
        found.append((f"GPU {i}", f"{gpu.name}, {memory}, {gpu.major}.{gpu.minor}, {bfloat16}"))
    if not torch.cuda.device_count():
        found.append(("GPU", "none that this torch can use"))
    if torch.backends.mps.is_available():
        found.append(("Apple GPU", "available, not used by `ait train`"))
    has_gpu = torch.cuda.is_available()
    fast = has_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    return [*found, ("precision auto", "bfloat16" if fast else "float32")]


def _kernels() -> list[Line]:
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    forms = [f"{form.__name__.rpartition('.')[2]} on {kind}" for kind, form in FASTEST.items()]
    write = ", ".join([*forms, "plain elsewhere"])
    return [
        ("write of the workspace", write),
        ("Triton", "available" if find_spec("triton") else "not installed"),
        ("torch.compile on a CPU", "available" if compiler else "needs a C++ compiler (g++)"),
    ]


def _data_sets() -> list[Line]:
    built = Path(datasets_config.HF_DATASETS_CACHE)
    try:
        downloaded = {
            repo.repo_id for repo in scan_cache_dir().repos if repo.repo_type == "dataset"
        }
    except (CacheNotFound, ValueError, OSError):
        downloaded = set()
    found = []
    for name, known in HUB_DATA_SETS.items():
        is_here = known.hub_id in downloaded or (built / known.hub_id.replace("/", "___")).is_dir()
        found.append(
            (f"{name} ({known.hub_id})", "in the cache" if is_here else "not in the cache")
        )
    return [*found, ("cache", _in_home(built)), ("triangle, sort_of_clevr", "generated")]


def _disk(runs: Path) -> list[Line]:
    found = []
    for name, path in (("runs", runs), ("data cache", Path(datasets_config.HF_DATASETS_CACHE))):
        there = path.absolute()
        while not there.exists():  # up to the folder in which it would be made
            there = there.parent
        free = shutil.disk_usage(there).free / 2**30
        can_write = "" if os.access(there, os.W_OK) else ", not writable"
        found.append((f"{name}, {_in_home(path)}", f"{free:.1f} GiB free{can_write}"))
    return found


def _launcher() -> list[Line]:
    found = [(name, os.environ[name]) for name in LAUNCHER if name in os.environ]
    return found or [("processes", "one, without a launcher")]


def _in_home(path: Path) -> str:
    try:
        return str(Path("~") / path.relative_to(Path.home()))
    except ValueError:
        return str(path)
