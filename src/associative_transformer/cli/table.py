"""`ait table`: finished runs beside the published results."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from associative_transformer.cli.options import check_output, open_output, parse
from associative_transformer.interface import UserError
from associative_transformer.tables import TABLES

RUNS = Path("runs")


@dataclass(frozen=True)
class TableOptions:
    """Put the runs of a table beside the published results."""

    table: Literal["classification", "ablations", "relational"]
    """classification: CIFAR-10, CIFAR-100 and Triangle; ablations: those of AiT-Small;
    relational: Sort-of-CLEVR."""
    runs: Path = RUNS
    """Folder of all runs."""
    format: Literal["terminal", "markdown", "html"] = "terminal"
    """How to write it."""
    output: Path | None = None
    """File to write; None: the terminal."""


def run(arguments: list[str]) -> None:
    """Write a table."""
    options = parse(TableOptions, arguments, "table")
    check_output(options.output)
    if not options.runs.is_dir() and options.runs != RUNS:  # there it may come yet
        raise UserError(f"there is no folder {options.runs}: pass the folder of runs with --runs")
    table = TABLES[options.table](options.runs)
    if options.format == "terminal":
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 200
        text = table.to_terminal(width)
    else:
        text = table.to_html() if options.format == "html" else table.to_markdown()
    with open_output(options.output) as file:
        file.write(text)
