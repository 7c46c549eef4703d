"""`ait doctor`: collect the information that a bug report needs, and no secrets.

Of the environment variables, only those in `LAUNCHER` are shown, none of which holds a secret.
Paths in the home folder start with ~, and names of users and machines are never shown.
"""

import json
import os
import platform
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from associative_transformer.cli.options import RUNS, check_output, open_output, parse
from associative_transformer.interface import UserError

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
)
EXTRAS = {
    "timm": ("timm",),
    "hf": ("transformers",),
    "lightning": ("lightning",),
    "peft": ("peft",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "optuna": ("optuna",),
    "tracking": ("tensorboard", "wandb", "mlflow"),
}
"""The packages of each extra, as in `pyproject.toml`."""
LAUNCHER = (  # set by torchrun, accelerate and Slurm, or by users to select devices and threads
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
PASSED = "passed"
Line = tuple[str, str]
"""A name and its value."""


@dataclass(frozen=True)
class DoctorOptions:
    """Show versions, devices, data sets and disk, and test the installation, for a bug report."""

    runs: Path = RUNS
    """Folder of all runs, whose free disk space is reported."""
    output: Path | None = None
    """File to write; None: print to the terminal."""
    format: Literal["markdown", "json"] = "markdown"
    """Output format."""


def run(arguments: list[str]) -> None:
    """Write a report on the installation and the machine.

    Raises UserError after the report is written if the installation does not pass its test.
    """
    options = parse(DoctorOptions, arguments, "doctor")
    check_output(options.output)
    sections = examine(options.runs)
    if options.format == "json":
        text = json.dumps({title: dict(section) for title, section in sections.items()}, indent=2)
    else:
        text = format_report(sections)
    with open_output(options.output) as file:
        file.write(text.rstrip() + "\n")
    if failed := [name for name, outcome in sections["self-test"] if outcome != PASSED]:
        raise UserError(
            f"this installation does not work on {' and '.join(failed)}: install torch again for "
            "this machine, or open an issue with this report"
        )


def examine(runs: Path) -> dict[str, list[Line]]:
    """Return the lines of each section of the report.

    `runs` is the folder whose free disk space is measured.
    """
    return {
        "versions": _versions(),
        "extras": _extras(),
        "devices": _devices(),
        "kernels": _kernels(),
        "data sets": _data_sets(),
        "disk": _disk(runs),
        "launcher": _launcher(),
        "self-test": _self_test(),
    }


def format_report(sections: dict[str, list[Line]]) -> str:
    """Format the sections as Markdown."""
    from associative_transformer.tabular import markdown_text

    lines = ["## ait doctor"]
    for title, section in sections.items():
        items = (f"- {markdown_text(name)}: {markdown_text(value)}" for name, value in section)
        lines += ["", f"### {title}", "", *items]
    return "\n".join(lines) + "\n"


def _versions() -> list[Line]:
    from associative_transformer.runs.environment import find_commit, find_version

    return [
        ("Python", platform.python_version()),
        ("system", platform.platform()),
        *((name, find_version(name) or "not installed") for name in PACKAGES),
        ("commit", find_commit() or "unknown"),
    ]


def _extras() -> list[Line]:
    from associative_transformer.runs.environment import find_version

    return [
        (extra, ", ".join(f"{name} {find_version(name) or 'not installed'}" for name in packages))
        for extra, packages in EXTRAS.items()
    ]


def _devices() -> list[Line]:
    import torch

    from associative_transformer.compute import count_cores, find_bfloat16

    cpu = torch.backends.cpu.get_cpu_capability()
    threads = f"{torch.get_num_threads()} threads, {count_cores()} usable cores"
    bfloat16 = find_bfloat16(torch.device("cpu")) or "no instructions for bfloat16"
    lines = [
        ("CPU", f"{platform.machine()}, {cpu}, {bfloat16}, {threads}"),
        ("CUDA version of torch", str(torch.version.cuda or "none")),
    ]
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        bfloat16 = "bfloat16" if (gpu.major, gpu.minor) >= (8, 0) else "no bfloat16"
        memory = f"{gpu.total_memory / 2**30:.1f} GiB"
        lines.append((f"GPU {i}", f"{gpu.name}, {memory}, {gpu.major}.{gpu.minor}, {bfloat16}"))
    if not torch.cuda.device_count():
        lines.append(("GPU", "none that torch can use"))
    if torch.backends.mps.is_available():
        lines.append(("Apple GPU", "available, but not used by `ait train`"))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return [*lines, ("precision auto", "bfloat16" if find_bfloat16(device) else "float32")]


def _kernels() -> list[Line]:
    from associative_transformer.kernels import FASTEST

    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    fastest = [
        f"{kernel.__name__.rpartition('.')[2]} on {device}" for device, kernel in FASTEST.items()
    ]
    return [
        ("write of the workspace", ", ".join([*fastest, "plain elsewhere"])),
        ("Triton", "available" if find_spec("triton") else "not installed"),
        ("torch.compile on a CPU", "available" if compiler else "needs a C++ compiler (g++)"),
    ]


def _data_sets() -> list[Line]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    from associative_transformer.data import DATA_SETS, HUB_DATA_SETS

    try:
        repos = scan_cache_dir().repos
        downloaded = {repo.repo_id for repo in repos if repo.repo_type == "dataset"}
    except (CacheNotFound, ValueError, OSError):
        downloaded = set()
    cache, lines = _data_cache(), []
    for name, known in HUB_DATA_SETS.items():
        is_prepared = _is_folder(cache / known.hub_id.replace("/", "___"))
        is_cached = known.hub_id in downloaded or is_prepared
        lines.append(
            (f"{name} ({known.hub_id})", "in the cache" if is_cached else "not in the cache")
        )
    examples = (example for data_set in DATA_SETS for example in data_set.examples().values())
    generated = [example.display_name for example in examples if example.is_generated]
    return [
        *lines,
        ("cache", _shorten_home(cache)),
        (", ".join(generated), "generated, need no download"),
    ]


def _disk(runs: Path) -> list[Line]:
    lines = []
    for name, path in (("runs", runs), ("data cache", _data_cache())):
        existing = path.absolute()
        while not _is_folder(existing):  # find the nearest one
            existing = existing.parent
        free = shutil.disk_usage(existing).free / 2**30
        note = "" if os.access(existing, os.W_OK) else ", not writable"
        lines.append((f"{name}, {_shorten_home(path)}", f"{free:.1f} GiB free{note}"))
    return lines


def _is_folder(path: Path) -> bool:
    """Return whether a path is a folder; False if permissions hide it from this user."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _launcher() -> list[Line]:
    lines = [(name, os.environ[name]) for name in LAUNCHER if name in os.environ]
    return lines or [("processes", "one, started without a launcher")]


def _self_test() -> list[Line]:
    import torch

    from associative_transformer.cli.self_test import find_problems

    names = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    problems = {name: find_problems(torch.device(name)) for name in names}
    return [(name, "; ".join(found) or PASSED) for name, found in problems.items()]


def _data_cache() -> Path:
    """Return the folder in which `datasets` caches prepared data sets."""
    from datasets import config

    return Path(config.HF_DATASETS_CACHE)


def _shorten_home(path: Path) -> str:
    try:
        return str(Path("~") / path.relative_to(Path.home()))
    except ValueError:
        return str(path)
