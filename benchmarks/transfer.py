"""Measure what pre-training adds: python benchmarks/transfer.py run --source PATH/TO/cifar10

    python benchmarks/transfer.py run --source PATH/TO/cifar10 --seeds 0 1 2
    python benchmarks/transfer.py table

The first command pre-trains `cifar10-ait-image-small` on eight classes of CIFAR-10, then trains on
a few images of the other two: from scratch, as a linear probe, and by fine-tuning the whole model.
Each run is an `ait train` command, which is kept with its result in `results/transfer`; finished
runs are skipped. The second command prints the table as Markdown: accuracies with 95 % intervals
(Student's t over the seeds), and differences from scratch, paired by seed. For each number of
images, all seeds train on the same ones; a seed changes only the weights, the order of the images
and their augmentation.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from associative_transformer.files import make_folder, write_file
from associative_transformer.runs.environment import describe_environment
from associative_transformer.tabular import RowGroup, Table
from statistics_of_runs import interval

RESULTS = Path(__file__).resolve().parents[1] / "results" / "transfer"
RECIPE, SOURCE = "cifar10-ait-image-small", "PATH/TO/cifar10"
OLD = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse"]
NEW = ["ship", "truck"]
PRETRAINED = "pretrained"
SCHEDULE = {"shape": "one_cycle", "per": "step", "warmup-epochs": 1, "warmup-lr": 0, "min-lr": 0}
METHODS = {
    "scratch": "from scratch",
    "probe": "linear probe",
    "whole": "whole model",
}


class Budget(NamedTuple):
    """Batch size and epochs for a number of training images."""

    batch_size: int
    epochs: int


PRETRAINING = Budget(100, 4)
BUDGETS = {50: Budget(25, 100), 500: Budget(50, 20), 5000: Budget(100, 4)}
RATES = {PRETRAINED: 5e-4, "scratch": 5e-4, "whole": 2e-4, "probe": 2e-3}


class Run(NamedTuple):
    """A run: what is trained, on how many images of the new classes, and its seed."""

    method: str
    num_images: int
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder and of its result."""
        return PRETRAINED if self.method == PRETRAINED else f"{self.method}-{self.num_images}"

    @property
    def file(self) -> str:
        """The name of the file of its result."""
        return f"{self.name}-{self.seed}.json"

    def command(self, runs: str, source: str, small: bool) -> list[str]:
        """Return the words of its command after `ait`."""
        classes = OLD if self.method == PRETRAINED else NEW
        budget = PRETRAINING if self.method == PRETRAINED else BUDGETS[self.num_images]
        words = ["train", RECIPE, "--name", self.name, "--runs", runs, "--overwrite"]
        words += ["--data.source", source, "--data.classes", *classes]
        words += ["--model.num-classes", str(len(classes)), "--train.seed", str(self.seed)]
        words += ["--train.batch-size", str(budget.batch_size)]
        words += ["--train.epochs", str(1 if small else budget.epochs)]
        words += ["--train.lr", f"{RATES[self.method]:g}", "--train.compile", "off"]
        words += ["--train.clip-norm", "1", "--train.weight-decay", "0.05"]
        for name, value in SCHEDULE.items():
            words += [f"--train.schedule.{name}", str(value)]
        if self.method != PRETRAINED:
            words += ["--data.train-limit", str(self.num_images)]
        if self.method in ("probe", "whole"):
            words += ["--init", f"{runs}/{PRETRAINED}/0"]
        if self.method == "probe":
            words += ["--train.freeze", "backbone"]
        if small:
            words += ["--data.limit", "200", "--model.embed-dim", "32", "--model.num-heads", "2"]
        return words


def list_runs(seeds: list[int]) -> list[Run]:
    """Return all runs, the pre-training first."""
    small = [
        Run(method, num_images, seed)
        for seed in seeds
        for num_images in BUDGETS
        for method in METHODS
    ]
    return [Run(PRETRAINED, 0, 0), *small]


def train(run: Run, options: argparse.Namespace) -> None:
    """Train a run and keep its result."""
    words = run.command(str(options.runs), options.source, options.small)
    subprocess.run([sys.executable, "-m", "associative_transformer", *words], check=True)
    folder = options.runs / run.name / str(run.seed)
    shown = run.command("runs", SOURCE, options.small)
    content = {
        "command": " ".join(["ait", *shown]),
        **run._asdict(),
        "result": json.loads((folder / "result.json").read_text()),
        "threads": int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())),
        "environment": asdict(describe_environment(torch.device("cpu"))),
    }
    make_folder(options.results)
    write_file(options.results / run.file, (json.dumps(content, indent=2) + "\n").encode())


def read(method: str, num_images: int, results: Path) -> dict[int, dict[str, Any]]:
    """Return the finished runs of a cell of the table, by seed."""
    name = Run(method, num_images, 0).name
    seeds = sorted(int(path.stem.rpartition("-")[2]) for path in results.glob(f"{name}-*.json"))
    found = [Run(method, num_images, seed) for seed in seeds]
    return {run.seed: json.loads((results / run.file).read_text())["result"] for run in found}


def tabulate(results: Path) -> Table:
    """Return the table of the finished runs."""
    rows = []
    for num_images, budget in BUDGETS.items():
        scratch = read("scratch", num_images, results)
        for method, title in METHODS.items():
            runs = read(method, num_images, results)
            cells = [f"{num_images:,}", f"{budget.epochs}", title]
            if not runs:
                rows.append((*cells, "not measured", "", "0"))
                continue
            scores = {seed: run["test_accuracy"] for seed, run in runs.items()}
            differences = [
                score - scratch[seed]["test_accuracy"]
                for seed, score in scores.items()
                if seed in scratch and method != "scratch"
            ]
            difference = interval(differences) if differences else ""
            rows.append((*cells, interval([*scores.values()], ""), difference, str(len(runs))))
    columns = ("images", "epochs", "training", "accuracy, %", "difference", "n")
    pretrained = read(PRETRAINED, 0, results)
    notes = ["Intervals of 95 % (Student's t); differences from scratch, paired by seed."]
    if pretrained:
        score = pretrained[0]["test_accuracy"]
        notes.append(
            f"Pre-training: {PRETRAINING.epochs} epochs on {len(OLD)} classes, {score:.2f} % "
            "accuracy on their test images."
        )
    return Table("Two new classes", columns, [RowGroup("ship and truck", rows)], notes)


def main(words: list[str] | None = None) -> None:
    """Train the missing runs, or print the table."""
    parser = argparse.ArgumentParser(description="Measure what pre-training adds.")
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("--source", help="folder of CIFAR-10")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/transfer"), help="run folders")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--small", action="store_true", help="sizes for a test")
    options = parser.parse_args(words)
    if options.action == "table":
        print(tabulate(options.results).to_markdown(), end="")
        return
    if options.source is None:
        parser.error("pass the folder of CIFAR-10 as --source")
    for run in list_runs(options.seeds):
        is_needed = run.method == PRETRAINED and not (options.runs / PRETRAINED).exists()
        if is_needed or not (options.results / run.file).exists():
            train(run, options)


if __name__ == "__main__":
    main()
