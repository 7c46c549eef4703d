"""Compare the accuracy of training in bfloat16 and in float32: python benchmarks/precision.py

    python benchmarks/precision.py cifar10-ait-tiny --source PATH/TO/cifar10 --seeds 0 1 2

trains a recipe in both precisions with each seed, and writes a file for each run to
`results/precision`, with its command, device, versions and commit. Runs whose file exists are not
repeated. `--jobs 2` trains two runs side by side, each on one thread. The table shows the accuracy
of each run, the mean difference, paired by seed, and its 95 % interval (Student's t).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from associative_transformer.tabular import RowGroup, Table
from statistics_of_runs import interval

RESULTS = Path(__file__).resolve().parents[1] / "results" / "precision"
PRECISIONS = ("float32", "bfloat16")
KEPT = ("test_accuracy", "test_loss", "test_images", "precision", "test_precision", "compiled")
SOURCE = "PATH/TO/DATA"  # instead of a path of this machine


class Run(NamedTuple):
    """A run to train."""

    recipe: str
    precision: str
    seed: int

    @property
    def file(self) -> Path:
        """Where its result is kept."""
        return RESULTS / f"{self.recipe}-{self.precision}-{self.seed}.json"


def train(run: Run, source: str | None, threads: int) -> None:
    """Train a run in a temporary folder and keep its result."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--train.precision", run.precision, "--train.seed", str(run.seed)]
        flags += ["--train.device", "cpu", "--train.compile", "off"]
        flags += ["--data.source", source] if source else []
        words = ["-m", "associative_transformer", "train", run.recipe, "--runs", folder, *flags]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run([sys.executable, *words], check=True, env=environment)
        (path,) = Path(folder).glob("*/*/result.json")
        result: dict[str, Any] = json.loads(path.read_text())
        environment_of_run = json.loads((path.parent / "environment.json").read_text())
        command = ["ait", "train", run.recipe, *flags]
    content = {
        "command": " ".join(SOURCE if word == source else word for word in command),
        **{"recipe": run.recipe, "seed": run.seed},
        **{key: result[key] for key in KEPT},
        **{"data": result["data"], "timing": result["timing"]},
        "environment": environment_of_run,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    run.file.write_text(json.dumps(content, indent=2) + "\n")


def tabulate(recipe: str, seeds: list[int]) -> Table:
    """Return the accuracies of all runs, with the difference of each seed and their mean."""
    rows, differences = [], []
    for seed in seeds:
        files = (Run(recipe, precision, seed).file for precision in PRECISIONS)
        full, half = (json.loads(file.read_text())["test_accuracy"] for file in files)
        differences.append(half - full)
        rows.append((str(seed), f"{full:.2f}", f"{half:.2f}", f"{half - full:+.2f}"))
    rows.append(("mean", "", "", interval(differences)))
    columns = ("seed", *(f"{precision}, %" for precision in PRECISIONS), "difference")
    return Table(f"Accuracy of {recipe}", columns, [RowGroup("", rows)], [])


def main() -> None:
    """Train the missing runs and print the table."""
    parser = argparse.ArgumentParser(description="Compare accuracy in bfloat16 and float32.")
    parser.add_argument("recipe")
    parser.add_argument("--source", help="folder of the images, for recipes that need one")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, one thread each")
    options = parser.parse_args()
    runs = [Run(options.recipe, p, seed) for seed in options.seeds for p in PRECISIONS]
    threads = 1 if options.jobs > 1 else os.cpu_count() or 1
    with ThreadPoolExecutor(options.jobs) as pool:
        missing = [run for run in runs if not run.file.exists()]
        list(pool.map(lambda run: train(run, options.source, threads), missing))
    print(tabulate(options.recipe, options.seeds).to_terminal(100), end="")


if __name__ == "__main__":
    main()
