"""`ait check-data`: look at a data set of images before training on it."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated

import tyro

from associative_transformer.cli.options import check_output, parse, say
from associative_transformer.data import HUB_DATA_SETS, ImagesConfig, SplitsConfig
from associative_transformer.data.stored import StoredImages
from associative_transformer.files import write_file
from associative_transformer.interface import UserError

if TYPE_CHECKING:
    from associative_transformer.data.summary import DataSummary

HUB_ID = re.compile(r"[\w.\-]+/[\w.\-]+")


@dataclass(frozen=True)
class DataOptions:
    """Which columns, splits and classes to look at, as in `ait train`."""

    image_column: str | None = None
    """Image column to use, if there are several."""
    label_column: str | None = None
    """Label column to use, if there are several."""
    num_workers: int = 2
    """Number of worker processes that decode images."""
    splits: Annotated[SplitsConfig, tyro.conf.arg(name="")] = field(default=SplitsConfig())
    """Which version, splits and classes of the data set to use."""

    def __post_init__(self) -> None:
        if self.num_workers < 0:
            raise ValueError(f"num_workers must not be negative, got {self.num_workers}")


@dataclass(frozen=True)
class CheckDataOptions:
    """Look at all images of a data set and say what was found: classes, sizes, copies, damage."""

    path: str
    """Folder, parquet or CSV file, or the id of a data set on the hub, such as cifar10."""
    data: DataOptions = field(default=DataOptions())
    """Which columns, splits and classes to look at."""
    output: Path | None = None
    """JSON file to write the summary to, too; None: do not."""


def run(arguments: list[str]) -> None:
    """Print the summary of a data set; raise UserError if it cannot be trained on."""
    options = parse(CheckDataOptions, arguments, "check-data")
    config = locate(options.path, options.data)
    check_output(options.output, *([] if config.source is None else [Path(config.source)]))
    summary = look_at(config, options.data.num_workers)
    if options.output is not None:
        write_file(options.output, summary.to_json().encode())
        say(f"written: {options.output}")
    if summary.problem is not None:
        raise UserError(summary.problem)


def look_at(config: StoredImages, num_workers: int) -> "DataSummary":
    """Decode all images, with a progress bar, and print what was found."""
    from associative_transformer.data.inspection import inspect_data
    from associative_transformer.progress import WorkProgress

    with WorkProgress("looking at the images", "images") as progress:
        summary = inspect_data(config, num_workers, progress.show)
    say(summary.to_table().to_terminal(get_terminal_size().columns).rstrip())
    return summary


def locate(path: str, chosen: DataOptions) -> ImagesConfig:
    """Return which data to look at: a local path or, if there is none, a set on the hub."""
    local, source = Path(path).expanduser(), None
    if local.exists():
        source = str(local)
    elif path not in HUB_DATA_SETS and (not HUB_ID.fullmatch(path) or local.parent.exists()):
        raise UserError(
            f"{path} does not exist: pass a folder, a parquet or CSV file, or the id of a data "
            "set on the hub"
        )
    return ImagesConfig(
        name=path if source is None else local.absolute().name,
        source=source,
        num_workers=chosen.num_workers,
        image_column=chosen.image_column,
        label_column=chosen.label_column,
        splits=chosen.splits,
    )
