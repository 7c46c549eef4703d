"""Image data sets that a CSV file lists: path, class and perhaps split of each image."""

import csv
import io
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from associative_transformer.data.listing import LeftOut
from associative_transformer.data.split_names import (
    COLUMNS,
    rename_splits,
    rows_by_split,
    split_pattern,
    with_other_names,
)
from associative_transformer.interface import UserError

if TYPE_CHECKING:
    import datasets

CSV_FILES = "csv_files"  # name of the builder of such a data set
CSV_SUFFIXES = (".csv", ".tsv")
DELIMITERS = ",;\t|"
SAMPLE = 200  # rows that are read to recognize the column of paths
WHOLE_NUMBER = re.compile(r"-?(0|[1-9]\d{0,17})")


class ImageList(NamedTuple):
    """The rows of a CSV file whose images exist, as columns of text."""

    file: Path  # relative to the data folder
    path_column: str
    columns: dict[str, list[str]]  # all columns; the paths are relative to the data folder

    @property
    def paths(self) -> list[str]:
        """The paths of the images."""
        return self.columns[self.path_column]


class ImageIndex:
    """Finds the images of a folder by the paths in a file that lists them."""

    def __init__(self, images: Sequence[Path]) -> None:
        """Take the paths of the images, relative to the data folder."""
        self._paths = set(images)
        names: Counter[str] = Counter()
        for image in images:
            names.update({image.name, image.stem})
        self._unique = {
            name: image
            for image in images
            for name in (image.stem, image.name)
            if names[name] == 1
        }

    def find(self, text: str, folder: Path) -> Path | None:
        """Return the image that a text names, relative to a folder or by a unique name."""
        path = PurePosixPath(text.strip().replace("\\", "/"))
        for candidate in (folder / path, Path(path)):
            if candidate in self._paths:
                return candidate
        for start in range(1, len(path.parts)):  # a path from another machine or folder
            if (candidate := Path(*path.parts[start:])) in self._paths:
                return candidate
        return self._unique.get(path.name)


def list_csv_files(files: Sequence[Path]) -> list[Path]:
    """Return the CSV files among some files."""
    return [file for file in files if file.suffix.lower() in CSV_SUFFIXES]


def read_image_lists(
    root: Path,
    files: Sequence[Path],
    images: Sequence[Path],
    names: Collection[str],
    left_out: LeftOut,
) -> list[ImageList]:
    """Read the CSV files in a folder that name its images; the others are left out.

    `test.csv` names the images in folders such as `test` if there are any.
    """
    pattern, lists = split_pattern(with_other_names(names)), []
    for file in files:
        columns, words = read_columns(root / file), pattern.findall(file.as_posix())
        near = [path for path in images if words and words[-1] in pattern.findall(str(path))]
        index = ImageIndex(near or images)
        paths = {name: _find_all(index, values, file) for name, values in columns.items()}
        shares = {name: sum(map(bool, found)) for name, found in paths.items()}
        best = max(shares, key=shares.__getitem__, default=None)
        num_rows = len(paths[best]) if best is not None else 0
        if best is None or 2 * shares[best] < num_rows or not num_rows or len(columns) < 2:
            left_out.add("CSV files that do not list the images and their classes", file)
            continue
        rows = [row for row, path in enumerate(paths[best]) if path is not None]
        for row in sorted(set(range(num_rows)) - set(rows)):
            left_out.add(f"rows of {file} whose image does not exist", Path(columns[best][row]))
        kept = {name: [values[row] for row in rows] for name, values in columns.items()}
        kept[best] = [str(paths[best][row]) for row in rows]
        lists.append(ImageList(file, best, kept))
    return lists


def read_columns(path: Path) -> dict[str, list[str]]:
    """Return the columns of a CSV file by name. Raises UserError if it is not a table of text."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if "\0" in text:
            raise csv.Error("it has null bytes")
        first = text.split("\n", 1)[0]
        delimiter = max(DELIMITERS, key=first.count)
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"cannot read {path} ({error}): save it as CSV in UTF-8 or move it elsewhere"
        ) from error
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    header = [name.strip() for name in rows[0]] if rows else []
    names = [name or f"column {number}" for number, name in enumerate(header)]
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(names):
            raise UserError(
                f"row {number} of {path} has {len(row)} cells, not {len(names)} as its first row: "
                "correct it or move the file elsewhere"
            )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path} has two columns named {twice!r}: rename one of them")
    return {name: [row[i].strip() for row in rows[1:]] for i, name in enumerate(names)}


def group_image_lists(
    root: Path, lists: Sequence[ImageList], names: Collection[str], left_out: LeftOut
) -> dict[str, ImageList]:
    """Return the list of each split, by the name of its file or by a column such as `split`.

    A single file without a split is the training split. Raises UserError if several files may be
    meant.
    """
    known = {name.lower(): name for name in with_other_names(names)}
    pattern, unnamed = split_pattern(known), []
    by_split: dict[str, ImageList] = {}
    for each in lists:
        words = pattern.findall(each.file.as_posix())
        split = known[words[-1].lower()] if words else ""
        if not split:
            unnamed.append(each)
        elif split in by_split:
            raise _several(root, [by_split[split], each])
        else:
            by_split[split] = each
    if by_split:
        for each in unnamed:
            left_out.add("CSV files that name no split", each.file)
        return rename_splits(by_split, names)
    if len(unnamed) > 1:
        raise _several(root, unnamed)
    return divide_list(unnamed[0], names) if unnamed else {}


def open_image_lists(
    root: Path, by_split: Mapping[str, ImageList]
) -> "dict[str, datasets.Dataset]":
    """Open the images of each list; its other columns are whole numbers or text."""
    import datasets

    opened = {}
    for split, (_, path_column, columns) in by_split.items():
        features: dict[str, object] = {path_column: datasets.Image(decode=False)}
        content: dict[str, list[object]] = {
            path_column: [str(root / path) for path in columns[path_column]]
        }
        for name, values in columns.items():
            if name == path_column:
                continue
            is_number = all(WHOLE_NUMBER.fullmatch(value) for value in values)
            features[name] = datasets.Value("int64" if is_number else "string")
            content[name] = [(int(x) if is_number else x) if x else None for x in values]
        info = datasets.DatasetInfo(features=datasets.Features(features), builder_name=CSV_FILES)
        opened[split] = datasets.Dataset.from_dict(content, info=info)
    return opened


def _find_all(index: ImageIndex, values: Sequence[str], file: Path) -> list[Path | None]:
    """Return the image of each value; no images if those of the first rows do not exist."""
    first = [index.find(value, file.parent) for value in values[:SAMPLE]]
    if 2 * sum(map(bool, first)) < len(first):
        return [None] * len(values)
    return first + [index.find(value, file.parent) for value in values[SAMPLE:]]


def divide_list(images: ImageList, names: Collection[str]) -> dict[str, ImageList]:
    """Return the list of each split that a column names; all are for training if there is none."""
    for column, values in images.columns.items():
        if column.lower() in COLUMNS and (by_split := rows_by_split(values, names)):
            others = {name: cells for name, cells in images.columns.items() if name != column}
            return {
                split: images._replace(
                    columns={name: [cells[row] for row in rows] for name, cells in others.items()}
                )
                for split, rows in by_split.items()
            }
    return {"train": images}


def _several(root: Path, lists: Sequence[ImageList]) -> UserError:
    files = ", ".join(str(each.file) for each in lists)
    return UserError(
        f"{root} has several CSV files that list images ({files}): pass the path of one of them, "
        "or rename them so that their names contain train or test"
    )
