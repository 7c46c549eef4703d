"""Open image data sets: from the hub, from class folders or from parquet files."""

import glob
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from associative_transformer.interface import UserError

if TYPE_CHECKING:
    import datasets

SPLITS = ("train", "test", "validation", "valid", "val")
SPLIT_WORD = re.compile(rf"(?<![a-z])({'|'.join(SPLITS)})(?![a-z])")
NOT_UTF_8 = re.compile(r"[\ud800-\udfff]")  # how Python represents invalid bytes in file names
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


def open_hub_data_set(hub_id: str) -> "dict[str, datasets.Dataset]":
    """Open a data set from the Hugging Face hub, or its cached copy.

    Raises UserError if that fails.
    """
    import datasets

    try:
        with _quiet():
            return dict(datasets.load_dataset(hub_id))
    except Exception as error:  # the hub's client raises errors from many libraries
        raise UserError(
            f"cannot load {hub_id} from the Hugging Face hub ({_reason(error)}): check its name "
            "and the network, or download its parquet files on a connected machine (`hf download "
            f"{hub_id} --repo-type dataset --include '*.parquet' --local-dir FOLDER`) and pass "
            "that folder with --data.source FOLDER"
        ) from error


def open_image_folder(root: Path) -> "dict[str, datasets.Dataset]":
    """Open all parquet files below a folder or, if there are none, its class folders.

    Raises UserError if it contains neither, or contains a file that cannot be used.
    """
    if not root.is_dir():
        state = "is a file, not a folder" if root.exists() else "does not exist"
        raise UserError(
            f"the data source {root} {state}: "
            "pass a folder with --data.source, or with --source to `ait eval`"
        )
    files = sorted(list_files(root), key=str)
    parquet = [file for file in files if file.suffix == ".parquet"]
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    for name in (str(root / file) for file in parquet or images):
        if NOT_UTF_8.search(name):
            raise UserError(f"the name {name} is not valid UTF-8: rename it")
    if parquet:
        return _open_parquet(root, parquet)
    if images:
        return _open_class_folders(root, images)
    raise UserError(
        f"the data source {root} has no data: add parquet files, or images in train/CLASS/ and "
        "test/CLASS/ folders"
    )


def list_files(root: Path) -> list[Path]:
    """Return the relative paths of all files below a folder, except hidden ones.

    Links are followed, except to a folder that contains them. Raises UserError if a folder cannot
    be read.
    """
    files: list[Path] = []
    pending = [(Path(), frozenset[tuple[int, int]]())]  # folder, ids of those above it
    while pending:
        folder, above = pending.pop()
        try:
            status = (root / folder).stat()
            inside = [path for path in (root / folder).iterdir() if path.name[0] != "."]
        except OSError as error:
            raise UserError(
                f"cannot read the folder {root / folder} ({error.strerror}): make it readable or "
                "move it elsewhere"
            ) from error
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            continue
        files += [folder / path.name for path in inside if path.is_file()]
        containing = above | {identity}
        pending += [(folder / path.name, containing) for path in inside if path.is_dir()]
    return files


def _open_parquet(root: Path, files: Sequence[Path]) -> "dict[str, datasets.Dataset]":
    """Group the files by the last split in their path, as in `data/train-0000.parquet`."""
    import datasets

    by_split: dict[str, list[str]] = {}
    for file in files:
        if words := SPLIT_WORD.findall(file.as_posix().lower()):
            by_split.setdefault(words[-1], []).append(glob.escape(str(root / file)))
    if not by_split:
        raise UserError(
            f"no parquet file in {root} has the name of a split in its path: rename the files so "
            "that their names contain train or test"
        )
    try:
        # one by one: loaded together, every split would silently get the class names of the first
        with _quiet():
            return {
                split: datasets.load_dataset("parquet", data_files=paths, split="train")
                for split, paths in by_split.items()
            }
    except Exception as error:  # from many libraries, as above
        raise UserError(
            f"cannot read the parquet files in {root} ({_reason(error)}): they are damaged or "
            "empty, so copy them again"
        ) from error


def _open_class_folders(root: Path, files: Sequence[Path]) -> "dict[str, datasets.Dataset]":
    """Read SPLIT/CLASS/**/IMAGE; the library's `imagefolder` fails on names like `[a]`."""
    import datasets

    by_split: dict[str, list[Path]] = {}
    for file in files:
        if (split := file.parts[0].lower()) in SPLITS:
            by_split.setdefault(split, []).append(file)
    if not by_split:
        raise UserError(
            f"{root} has no split folders: create train/ and test/ in it and move the class "
            "folders into them"
        )
    used = [file for split in by_split.values() for file in split]
    for file in used:
        if len(file.parts) < 3:
            raise UserError(
                f"{root / file} is not in a class folder: move it into one or remove it"
            )
    names = sorted({file.parts[1] for file in used})
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=names)}
    )
    return {
        split: datasets.Dataset.from_dict(
            {
                "image": [str(root / file) for file in files],
                "label": [file.parts[1] for file in files],
            },
            features=features,
        )
        for split, files in by_split.items()
    }


def _reason(error: Exception) -> str:
    """Return the first line of an error's message, or its type if there is no message."""
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")


@contextmanager
def _quiet() -> Iterator[None]:
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
