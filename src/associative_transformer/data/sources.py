"""Where an image set lies: on the hub, in a folder of class folders or of parquet files."""

import glob
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import datasets

from associative_transformer.interface import UserError

SPLITS = ("train", "test", "validation", "valid", "val")
SPLIT_WORD = re.compile(rf"(?<![a-z])({'|'.join(SPLITS)})(?![a-z])")
NOT_UTF_8 = re.compile(r"[\ud800-\udfff]")  # how Python keeps such a byte of a file's name
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


def open_hub_data_set(hub_id: str) -> dict[str, datasets.Dataset]:
    """Open a data set of the Hugging Face hub, or its copy in the cache."""
    try:
        with _quiet():
            return dict(datasets.load_dataset(hub_id))
    except Exception as error:  # the hub's client raises errors of many libraries
        raise UserError(
            f"cannot get {hub_id} from the Hugging Face hub ({_reason(error)}): check its name "
            "and the network, or download its parquet files on a connected machine (`hf download "
            f"{hub_id} --repo-type dataset --include '*.parquet' --local-dir FOLDER`) and pass "
            "that folder with --data.source FOLDER"
        ) from error


def open_image_folder(root: Path) -> dict[str, datasets.Dataset]:
    """Open the parquet files anywhere below a folder or, if there are none, its class folders."""
    if not root.is_dir():
        state = "is a file, not a folder" if root.exists() else "does not exist"
        raise UserError(
            f"the data source {root} {state}: "
            "pass a folder with --data.source, or --source of ait eval"
        )
    files = sorted(list_files(root), key=str)
    parquet = [file for file in files if file.suffix == ".parquet"]
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    for name in (str(root / file) for file in parquet or images):
        if NOT_UTF_8.search(name):
            raise UserError(f"the name {name} is not in UTF-8: rename it")
    if parquet:
        return _open_parquet(root, parquet)
    if images:
        return _open_class_folders(root, images)
    raise UserError(
        f"the data source {root} is empty: put parquet files there, or images into "
        "train/CLASS/ and test/CLASS/ folders"
    )


def list_files(root: Path) -> list[Path]:
    """List the files below a folder, relative to it, but no hidden ones.

    Links are followed, except to a folder that they lie in. Raises UserError where a folder can't
    be read.
    """
    found: list[Path] = []
    waiting = [(Path(), frozenset[tuple[int, int]]())]  # folders, and what each lies in
    while waiting:
        folder, above = waiting.pop()
        try:
            status = (root / folder).stat()
            inside = [path for path in (root / folder).iterdir() if path.name[0] != "."]
        except OSError as error:
            raise UserError(
                f"can't read the folder {root / folder}: {error.strerror}; move it away"
            ) from error
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            continue
        found += [folder / path.name for path in inside if path.is_file()]
        deeper = above | {identity}
        waiting += [(folder / path.name, deeper) for path in inside if path.is_dir()]
    return found


def _open_parquet(root: Path, files: Sequence[Path]) -> dict[str, datasets.Dataset]:
    """Sort the files by the last split that their path names, as in `data/train-0000.parquet`."""
    found: dict[str, list[str]] = {}
    for file in files:
        if words := SPLIT_WORD.findall(file.as_posix().lower()):
            found.setdefault(words[-1], []).append(glob.escape(str(root / file)))
    if not found:
        raise UserError(
            f"no parquet file in {root} belongs to a split: put train and test into their names"
        )
    try:
        # each split by itself, or it would silently take the class names of the first one
        with _quiet():
            return {
                split: datasets.load_dataset("parquet", data_files=paths, split="train")
                for split, paths in found.items()
            }
    except Exception as error:  # as for the hub
        raise UserError(
            f"cannot read the parquet files in {root} ({_reason(error)}): they are damaged or "
            "empty, copy them there again"
        ) from error


def _open_class_folders(root: Path, files: Sequence[Path]) -> dict[str, datasets.Dataset]:
    """Read SPLIT/CLASS/**/IMAGE; the library's own image folders fail on names like `[a]`."""
    found: dict[str, list[Path]] = {}
    for file in files:
        if (split := file.parts[0].lower()) in SPLITS:
            found.setdefault(split, []).append(file)
    if not found:
        raise UserError(
            f"{root} has no split folders: make train/ and test/ in it and move the class folders "
            "into them"
        )
    for file in (file for split in found.values() for file in split):
        if len(file.parts) < 3:
            raise UserError(f"{root / file} is in no class folder: move it into one or remove it")
    names = sorted({file.parts[1] for split in found.values() for file in split})
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=names)}
    )
    return {
        split: datasets.Dataset.from_dict(
            {
                "image": [str(root / part) for part in parts],
                "label": [part.parts[1] for part in parts],
            },
            features=features,
        )
        for split, parts in found.items()
    }


def _reason(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's progress bars and warnings away for a while."""
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
