"""List the files below a folder, and find the images among them by name or content."""

import json
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from PIL import Image

from associative_transformer.decoding import FORMATS, UnreadableImage
from associative_transformer.distributed import is_first
from associative_transformer.files import write_file
from associative_transformer.interface import UserError, printable

SUFFIXES = {
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
}
"""Files with these suffixes are images, even if they cannot be read; others must look like one."""
BACKUPS = ("~", ".bak", ".orig", ".old", ".swp", ".tmp", ".part", ".partial")
ARCHIVE_FOLDER = "__MACOSX"  # copies of the files' attributes in archives made on a Mac
NUM_EXAMPLES = 3
MAX_NAMED = 20
"""Skipped images that are named on the terminal."""


class LeftOut:
    """Files that are not used, by reason."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}

    def add(self, reason: str, path: Path) -> None:
        """Add a file, or a folder with all files below it."""
        self._names.setdefault(reason, []).append(str(path))

    def include(self, other: "LeftOut") -> None:
        """Add all files that another list leaves out."""
        for reason, names in other._names.items():
            self._names.setdefault(reason, []).extend(names)

    def report(self, root: Path) -> None:
        """Print one sentence that counts them and names the first of each kind."""
        parts = []
        for reason, names in sorted(self._names.items()):
            more = ", ..." if len(names) > NUM_EXAMPLES else ""
            examples = ", ".join(sorted(names)[:NUM_EXAMPLES])
            parts.append(f"{reason}: {len(names):,} ({examples}{more})")
        if parts:
            print_once(f"left out of {root}: {'; '.join(parts)}")


@cache
def print_once(sentence: str) -> None:
    """Print a sentence to stderr, once in each run and in the first process only."""
    if is_first():
        print(printable(sentence), file=sys.stderr)


def name_skipped(skipped: Sequence[UnreadableImage]) -> None:
    """Print the number of skipped images to stderr, with the names and reasons of the first."""
    if not skipped or not is_first():
        return
    lines = [f"{len(skipped):,} unreadable images were skipped:"]
    lines += [f"  {printable(f'{error.name} ({error.reason})')}" for error in skipped[:MAX_NAMED]]
    if len(skipped) > MAX_NAMED:
        lines.append(f"  and {len(skipped) - MAX_NAMED:,} more")
    print(*lines, sep="\n", file=sys.stderr)


def write_skipped(
    skipped: Sequence[UnreadableImage], path: Path, source: str | None = None
) -> None:
    """Write the name of each skipped image and the reason, one JSON object per line.

    Of the folder `source` of a data set, only the last part of the path is written.
    """
    folder = Path(source or "").expanduser()
    rows = []
    for name, reason in ((error.name, error.reason) for error in skipped):
        named = name.replace(str(folder), folder.name) if source else name
        rows.append(json.dumps({"image": named, "reason": reason}))
    write_file(path, "".join(f"{row}\n" for row in rows).encode())


def list_files(root: Path, left_out: LeftOut | None = None) -> list[Path]:
    """Return the relative paths of all files below a folder, except hidden files and backups.

    Links are followed, except to a folder that contains them. What is left out is added to
    `left_out`. Raises UserError if a folder cannot be read.
    """
    left_out = LeftOut() if left_out is None else left_out
    files: list[Path] = []
    pending = [(Path(), frozenset[tuple[int, int]]())]  # folder, ids of those above it
    while pending:
        folder, above = pending.pop()
        try:
            status = (root / folder).stat()
            inside = list((root / folder).iterdir())
        except OSError as error:
            raise UserError(
                f"cannot read the folder {root / folder} ({error.strerror}): make it readable or "
                "move it elsewhere"
            ) from error
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            continue
        containing = above | {identity}
        for path in inside:
            relative = folder / path.name
            if reason := _reason_to_omit(path):
                left_out.add(reason, relative)
            elif path.is_dir():
                pending.append((relative, containing))
            else:
                files.append(relative)
    return files


def _reason_to_omit(path: Path) -> str | None:
    if path.name.startswith(".") or path.name == ARCHIVE_FOLDER:
        return "hidden"
    if path.is_dir():
        return None
    if path.name.lower().endswith(BACKUPS):
        return "backups"
    if path.is_file():
        return None
    return "broken links" if path.is_symlink() else "not regular files"


def choose_images(root: Path, files: Iterable[Path], left_out: LeftOut) -> list[Path]:
    """Return the files that are images by their suffix or, with any other suffix, by content."""
    images: list[Path] = []
    for file in files:
        if file.suffix.lower() in SUFFIXES or _looks_like_an_image(root / file):
            images.append(file)
        else:
            left_out.add("not images", file)
    return images


def list_image_files(root: Path) -> list[Path]:
    """Return the paths of all images below a folder, sorted; print what is left out.

    Raises UserError if there are none, or if a folder cannot be read.
    """
    left_out = LeftOut()
    files = list_files(root, left_out)
    images = sorted(root / file for file in choose_images(root, files, left_out))
    left_out.report(root)
    if not images:
        raise UserError(f"there are no images in {root}: pass another folder")
    return images


def _looks_like_an_image(path: Path) -> bool:
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except Image.DecompressionBombError:
        return True  # refused later, by name
    except Exception:  # broken files make Pillow raise almost any error
        return False
