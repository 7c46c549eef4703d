"""Open the parquet files of an image data set: which files belong together, and their classes."""

import errno
import glob
import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

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

TEXT = ("string", "large_string")  # types of a column
SHARD = re.compile(r"(?P<stem>.*)-(?P<index>\d+)-of-(?P<count>\d+)(-[0-9a-f]+)?\.parquet", re.I)


class SplitFile(NamedTuple):
    """A parquet file of a split."""

    path: Path  # relative to the data folder
    configuration: str  # the folder of the split, such as `small` for small/train-*.parquet


def group_by_split(
    root: Path, files: Sequence[Path], names: Sequence[str], configuration: str | None
) -> dict[str, list[SplitFile]]:
    """Group the files by the last split in their path, as in `data/train-0000.parquet`.

    Raises UserError if there is no such configuration.
    """
    all_names = with_other_names(names)
    words = split_pattern(all_names)
    by_split: dict[str, list[SplitFile]] = {}
    configurations: set[str] = set()
    for file in files:
        matches = list(words.finditer(file.as_posix()))
        if not matches:
            continue
        folder = file.as_posix()[: matches[-1].start()].rpartition("/")[0] or "."
        configurations.add(folder)
        if configuration is None or configuration in (folder, *Path(folder).parts):
            split = next(name for name in all_names if name.lower() == matches[-1][0].lower())
            by_split.setdefault(split, []).append(SplitFile(file, folder))
    if configuration is not None and configurations and not by_split:
        raise UserError(
            f"{root} has no configuration {configuration}, only "
            f"{', '.join(sorted(configurations))}: change --data.config"
        )
    return rename_splits(by_split, names)


def check_shards(root: Path, split: str, files: Sequence[SplitFile]) -> None:
    """Raise UserError if files of a split are missing, or if it has more than one set of files."""
    configurations = sorted({file.configuration for file in files})
    if len(configurations) > 1:
        raise UserError(
            f"{root} has the {split} split in {len(configurations)} configurations "
            f"({', '.join(configurations)}), whose images may be the same: choose one with "
            "--data.config, or pass its folder with --data.source"
        )
    shard_sets: dict[tuple[str, int], list[tuple[int, Path]]] = {}
    others = []
    for path, _ in files:
        if match := SHARD.fullmatch(path.name):
            pattern = f"{path.parent / match['stem']}-*-of-{match['count']}.parquet"
            shards = shard_sets.setdefault((pattern, int(match["count"])), [])
            shards.append((int(match["index"]), path))
        else:
            others.append(path)
    names = [pattern for pattern, _ in shard_sets] + [str(path) for path in others[:1]]
    if len(names) > 1:
        raise UserError(
            f"{root} has {len(names)} sets of files for the {split} split "
            f"({', '.join(names)}), whose images may be the same: keep one of them"
        )
    for (_, count), shards in shard_sets.items():
        _check_complete(root, split, count, shards)


def _check_complete(root: Path, split: str, count: int, shards: list[tuple[int, Path]]) -> None:
    indices = [index for index, _ in shards]
    if len(set(indices)) < len(indices):
        twice = ", ".join(str(file) for index, file in shards if indices.count(index) > 1)
        raise UserError(
            f"{root} has a file of the {split} split more than once ({twice}): keep one of them"
        )
    first = 1 if 0 not in indices and count in indices else 0
    missing = sorted(set(range(first, first + count)) - set(indices))
    if missing:
        example = shards[0][1]
        digits = len(re.findall(r"-(\d+)-of-", example.name)[-1])
        name = example.with_name(
            re.sub(r"-\d+-of-(\d+).*", rf"-{missing[0]:0{digits}}-of-\1.parquet", example.name)
        )
        raise UserError(
            f"{root} has only {len(indices)} of the {count} files of the {split} split, without "
            f"{name}: copy the missing files there"
        )


def open_parquet(root: Path, split: str, files: Sequence[SplitFile]) -> "datasets.Dataset":
    """Open the files of a split; labels are mapped by name if their class names differ in order.

    Raises UserError if a file cannot be read or if the files have different classes, and
    PermissionError if a file may not be read.
    """
    import datasets

    check_shards(root, split, files)
    try:
        with quiet():
            groups = _group_by_classes([root / file.path for file in files])
            parts = [_load(paths) for paths in groups]
    except Exception as error:  # the library raises errors from many others
        refuse_unwritable_cache(error)
        if isinstance(error, PermissionError):  # the files may be intact
            raise
        raise UserError(
            f"cannot read the parquet files in {root} ({reason(error)}): they are damaged or "
            "empty, so copy them again"
        ) from error
    if len(parts) == 1:
        return parts[0]
    for paths, part in zip(groups[1:], parts[1:], strict=True):
        _check_classes(root, (groups[0][0], parts[0]), (paths[0], part))
    with quiet():
        return datasets.concatenate_datasets(
            [parts[0], *(_map_labels(part, parts[0]) for part in parts[1:])]
        )


def divide_by_column(
    rows: "datasets.Dataset", names: Sequence[str]
) -> "dict[str, datasets.Dataset]":
    """Return the rows of each split that a column names; all are for training if there is none."""
    for column in rows.column_names:
        is_text = getattr(rows.features[column], "dtype", None) in TEXT
        is_named = is_text and column.lower() in COLUMNS
        if is_named and (by_split := rows_by_split(rows[column], names)):
            others = rows.remove_columns(column)
            return {split: others.select(places) for split, places in by_split.items()}
    return {"train": rows}


def _group_by_classes(paths: Sequence[Path]) -> list[list[Path]]:
    """Group files with the same class names, in order."""
    import datasets
    import pyarrow.parquet as pq

    groups: dict[str, list[Path]] = {}
    for path in paths:
        with path.open("rb") as file:
            features = datasets.Features.from_arrow_schema(pq.read_schema(file))
        groups.setdefault(str(sorted(_class_names(features).items())), []).append(path)
    return list(groups.values())


def _class_names(features: "datasets.Features") -> dict[str, list[str]]:
    """Return the class names of all label columns."""
    import datasets

    return {
        name: list(map(normalized, feature.names or ()))
        for name, feature in features.items()
        if isinstance(feature, datasets.ClassLabel)
    }


def _check_classes(
    root: Path, first: "tuple[Path, datasets.Dataset]", other: "tuple[Path, datasets.Dataset]"
) -> None:
    """Raise UserError if files of one split have different classes, in any order."""
    ours, theirs = (_class_names(part.features) for _, part in (first, other))
    paths = [path.relative_to(root) for path, _ in (first, other)]
    for column in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(column), theirs.get(column)
        if a is None or b is None or sorted(a) != sorted(b) or len(set(a)) < len(a):
            lists = [f"[{', '.join(names)}]" if names else "none" for names in (a, b)]
            raise UserError(
                f"the files {paths[0]} and {paths[1]} in {root} have different classes in the "
                f"column {column} ({lists[0]} and {lists[1]}): save both with the same "
                "ClassLabel names"
            )


def _map_labels(part: "datasets.Dataset", first: "datasets.Dataset") -> "datasets.Dataset":
    """Return the part with the labels of the same classes as in the first part."""
    import datasets

    ours, theirs = _class_names(first.features), _class_names(part.features)
    mapped = {}
    for column, names in theirs.items():
        mapping = find_classes(names, ours[column])
        is_class = range(len(names))
        mapped[column] = [mapping[y] if y in is_class else y for y in part[column][:]]
    features = datasets.Features({column: first.features[column] for column in mapped})
    labels = datasets.Dataset.from_dict(mapped, features=features)
    others = [column for column in first.column_names if column not in mapped]
    if not others:
        return labels
    return datasets.concatenate_datasets([part.select_columns(others), labels], axis=1)


def _load(paths: Sequence[Path]) -> "datasets.Dataset":
    """Open parquet files, with a cache of their own for each version of their content.

    The library recognizes a changed file by its modification time only, which `cp -p`, rsync and
    tar preserve; the time of the last change of its status cannot be set.
    """
    import datasets

    digest = hashlib.sha256()
    for path in paths:
        status = path.stat()
        times = (status.st_mtime_ns, status.st_ctime_ns)
        digest.update(repr((str(path), status.st_ino, status.st_size, *times)).encode())
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "associative_transformer"
    # one split at a time: together, all would silently get the class names of the first; unlike
    # `load_dataset`, this does not ask a server to count the download
    return datasets.Dataset.from_parquet(
        [glob.escape(str(path)) for path in paths],
        cache_dir=str(cache / digest.hexdigest()[:32]),
    )


def normalized(name: str) -> str:
    """Return the composed form of a name: file systems and archives of a Mac decompose it."""
    return unicodedata.normalize("NFC", name)


def find_classes(names: Sequence[str], among: Sequence[str]) -> list[int]:
    """Return the index of each class in another list of classes, by name; -1 if it is missing."""
    index = {normalized(name): place for place, name in enumerate(among)}
    return [index.get(normalized(name), -1) for name in names]


def refuse_unwritable_cache(error: BaseException) -> None:
    """Raise UserError if an error, or one that caused it, comes from a full or read-only cache."""
    import datasets
    import huggingface_hub

    caches = {
        "HF_HUB_CACHE": Path(huggingface_hub.constants.HF_HUB_CACHE),
        "HF_DATASETS_CACHE": Path(datasets.config.HF_DATASETS_CACHE),
    }
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            is_full = cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
            is_full = is_full or "disk space" in str(cause)  # the library's estimate
            variable = "HF_DATASETS_CACHE" if is_full else ""
            for name, cache in caches.items():
                if isinstance(cause.filename, str) and _is_related(Path(cause.filename), cache):
                    variable = name
            if variable:
                raise UserError(
                    f"cannot write to the cache {caches[variable]} ({cause.strerror or cause}): "
                    "free some space there and make it writable, or choose another folder with "
                    f"{variable}"
                ) from error
        cause = cause.__cause__ or cause.__context__


def _is_related(path: Path, cache: Path) -> bool:
    """Return whether a path is in the cache or is one of its parent folders."""
    return path.is_relative_to(cache) or cache.is_relative_to(path)


def reason(error: Exception) -> str:
    """Return the first line of an error's message, or its type if there is no message."""
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the progress bars and warnings of `datasets`."""
    import datasets

    had_bars = datasets.is_progress_bar_enabled()
    verbosity = datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if had_bars:
            datasets.enable_progress_bars()
