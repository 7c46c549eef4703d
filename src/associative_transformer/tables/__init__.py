"""The paper's tables, with the runs in a folder next to the published results."""

from collections.abc import Callable
from pathlib import Path

from associative_transformer.tables.classification import ablation_table, classification_table
from associative_transformer.tables.laptop import laptop_ablation_table, laptop_table
from associative_transformer.tables.relational import relational_table
from associative_transformer.tabular import Table

__all__ = ["LAPTOP_TABLES", "TABLES"]

TABLES: dict[str, Callable[[Path], Table]] = {
    "classification": classification_table,
    "ablations": ablation_table,
    "relational": relational_table,
}
"""The function that builds each table from a folder of runs, by the name of the table."""

LAPTOP_TABLES: dict[str, Callable[[Path], Table]] = {
    "classification": laptop_table,
    "ablations": laptop_ablation_table,
}
"""The same for the laptop edition: small models, trained in minutes."""
