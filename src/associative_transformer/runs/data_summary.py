"""What a run was trained on: the summary of its data in the run folder."""

from contextlib import suppress
from pathlib import Path

from associative_transformer.data import DataConfig, DataSet
from associative_transformer.data.inspection import summarize_loaded
from associative_transformer.data.listing import write_skipped
from associative_transformer.data.summary import DataSummary
from associative_transformer.files import write_file
from associative_transformer.runs.reading import read_json

DATA = "data.json"


def summarize(config: DataConfig, data: DataSet) -> DataSummary | None:
    """Return the splits, classes and sizes of stored images; None if images are generated."""
    if config.is_generated:
        return None
    name = Path(config.source).absolute().name if config.source else config.display_name
    return summarize_loaded(name, data)


def write_data(folder: Path, config: DataConfig, data: DataSet) -> None:
    """Write `data.json` and, if images were skipped, `skipped.jsonl`."""
    if data.skipped:
        write_skipped(data.skipped, folder / "skipped.jsonl", config.source)
    if summary := summarize(config, data):
        write_file(folder / DATA, summary.to_json().encode())


def read_data(folder: Path) -> DataSummary | None:
    """Read `data.json`; None if there is none, or a damaged one: nothing depends on it."""
    with suppress(OSError, ValueError):
        return read_json(folder / DATA, DataSummary)
    return None
