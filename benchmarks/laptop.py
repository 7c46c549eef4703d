"""Keep the runs of the laptop edition as small files, and print its tables from them.

    ait run-table classification --budget laptop --sources cifar10 PATH/TO/cifar10 --runs runs
    python benchmarks/laptop.py keep --runs runs
    python benchmarks/laptop.py table classification

`keep` writes `results/laptop/RECIPE-SEED.json` for each complete run of a laptop recipe in a
folder of runs: the command that repeats it, the commit, versions and device, and its result.
`table` prints a table as Markdown from these files; those in the docs are written in this way.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from associative_transformer.files import list_folders, make_folder, write_file
from associative_transformer.recipes import RECIPES
from associative_transformer.recipes.laptop import EXPERIMENTS, TABLE_ROWS
from associative_transformer.runs.result import RunResult
from associative_transformer.runs.saved import read_run
from associative_transformer.runs.training_command import format_train_command
from associative_transformer.tables.collect import CompleteRun
from associative_transformer.tables.laptop import Runs, tabulate

RESULTS = Path(__file__).resolve().parents[1] / "results" / "laptop"
NAMES = {recipe.name for recipe in EXPERIMENTS}


def list_runs(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield what to keep of each complete run of a laptop recipe."""
    for parent in list_folders(folder):
        if parent.name not in NAMES:
            continue
        for path in list_folders(parent):
            run = read_run(path)
            if run.result is None:
                continue
            environment = run.environment
            command = format_train_command(run.experiment) or ""
            if source := run.experiment.data.source:
                command = command.replace(source, f"PATH/TO/{run.experiment.data.display_name}")
            yield {
                "command": command,
                "environment": None if environment is None else asdict(environment),
                "result": json.loads((path / "result.json").read_text()),
            }


def keep(runs: Path, results: Path) -> None:
    """Write a file for each complete run."""
    make_folder(results)
    for run in list_runs(runs):
        path = results / f"{run['result']['name']}-{run['result']['seed']}.json"
        write_file(path, (json.dumps(run, indent=2) + "\n").encode())
        print(f"{path.name}: {run['result']['test_accuracy']:.2f} %")


def read_results(results: Path) -> Runs:
    """Return the runs that were kept, by recipe and seed."""
    runs: dict[str, dict[int, CompleteRun]] = {}
    for path in sorted(results.glob("*.json")):
        saved = json.loads(path.read_text())
        result = TypeAdapter(RunResult).validate_python(saved["result"])
        device = describe_device(saved["environment"] or {})
        if result.name in RECIPES:
            runs.setdefault(result.name, {})[result.seed] = CompleteRun(result, device)
    return runs


def describe_device(environment: dict[str, Any]) -> str:
    """Return the device, with the number of threads on a CPU."""
    threads = environment.get("threads")
    device = environment.get("device") or "unknown"
    return f"{device}, {threads} threads" if environment.get("cuda") is None else device


def main(words: list[str] | None = None) -> None:
    """Keep finished runs, or print a table."""
    parser = argparse.ArgumentParser(description="The laptop edition of the tables.")
    parser.add_argument("action", choices=["keep", "table"])
    parser.add_argument("table", choices=TABLE_ROWS, nargs="?", default="classification")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(words)
    if options.action == "keep":
        keep(options.runs, options.results)
    else:
        print(tabulate(options.table, read_results(options.results)).to_markdown(), end="")


if __name__ == "__main__":
    main()
