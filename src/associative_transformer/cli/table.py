"""`ait table`: compare finished runs with the published results."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from associative_transformer.cli.options import (
    RUNS,
    check_output,
    check_runs,
    find_edition,
    format_table,
    open_output,
    parse,
)


@dataclass(frozen=True)
class TableOptions:
    """Write a table of finished runs next to the published results."""

    table: Literal["classification", "ablations", "relational"]
    """classification: CIFAR and Triangle; ablations: of AiT-Small; relational: Sort-of-CLEVR."""
    budget: Literal["paper", "laptop"] = "paper"
    """laptop: the table of small models that are trained in minutes without a GPU."""
    runs: Path = RUNS
    """Folder of all runs."""
    format: Literal["terminal", "markdown", "html"] = "terminal"
    """Output format."""
    output: Path | None = None
    """File to write; None: print to the terminal."""


def run(arguments: list[str]) -> None:
    """Write the table, with a dash for each missing result."""
    options = parse(TableOptions, arguments, "table")
    check_output(options.output)
    check_runs(options.runs)
    from associative_transformer.tables import LAPTOP_TABLES, TABLES

    build = TABLES[options.table]
    if options.budget == "laptop":
        build = find_edition(LAPTOP_TABLES, options.table)
    table = build(options.runs)
    with open_output(options.output) as file:
        file.write(format_table(table, options.format))
