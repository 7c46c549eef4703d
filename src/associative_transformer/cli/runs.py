"""`ait runs`: list the runs in a folder."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from associative_transformer.cli.options import (
    RUNS,
    check_output,
    check_runs,
    format_table,
    open_output,
    parse,
    say,
)


@dataclass(frozen=True)
class RunsOptions:
    """List runs with recipe, data, accuracy, date and folder, complete or not."""

    words: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(metavar="[WORD ...]", help_behavior_hint="(default: list all runs)"),
    ] = ()
    """List only runs whose recipe, data or folder contains all these words."""
    runs: Path = RUNS
    """Folder of all runs."""
    sort: Literal["recipe", "data", "accuracy", "date", "folder"] = "recipe"
    """Order: the highest accuracy and the latest date come first, everything else by name."""
    format: Literal["terminal", "markdown", "html", "json"] = "terminal"
    """Output format."""
    output: Path | None = None
    """File to write; None: print to the terminal."""


def run(arguments: list[str]) -> None:
    """Write the list of runs."""
    options = parse(RunsOptions, arguments, "runs")
    check_output(options.output)
    check_runs(options.runs)
    from associative_transformer.tables.overview import list_runs, sort_runs, tabulate_runs

    found, left_out = list_runs(options.runs)
    chosen = [each for each in found if all(word in each.text for word in options.words)]
    chosen = sort_runs(chosen, options.sort)
    if options.format == "json":
        for sentence in left_out:
            say(sentence, file=sys.stderr)
        text = json.dumps([each.as_dict() for each in chosen], indent=2) + "\n"
    else:
        text = format_table(tabulate_runs(chosen, options.runs, left_out), options.format)
    with open_output(options.output) as file:
        file.write(text)
    if options.output is not None:
        say(f"written: {options.output}")
