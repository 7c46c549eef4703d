"""Atomic file writes, new folders, and the first error in the content of a file."""

import errno
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from associative_transformer.files import first_error, make_folder, write_file
from associative_transformer.interface import UserError


def fail_with_no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_only_the_old_file(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")
    monkeypatch.setattr(os if call == "fsync" else Path, call, fail_with_no_space)
    with pytest.raises(UserError, match=rf"cannot write {path}: No space left"):
        write_file(path, b"new and longer")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write_file(tmp_path / "file", b"something long")
    write_file(tmp_path / "file", b"short")
    assert (tmp_path / "file").read_bytes() == b"short"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def in_a_missing_folder(root: Path) -> Path:
    return root / "missing" / "file"


def below_a_file(root: Path) -> Path:
    (root / "file").touch()
    return root / "file" / "file"


def in_place_of_a_folder(root: Path) -> Path:
    (root / "folder").mkdir()
    return root / "folder"


def with_a_name_that_is_too_long(root: Path) -> Path:
    return root / ("x" * 300)


def without_a_name(root: Path) -> Path:
    return Path("/")


@pytest.mark.parametrize(
    "path_in",
    [
        in_a_missing_folder,
        below_a_file,
        in_place_of_a_folder,
        with_a_name_that_is_too_long,
        without_a_name,
    ],
)
def test_a_path_that_cannot_be_written_is_named_and_nothing_changes(
    path_in: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = path_in(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=re.escape(f"cannot write {path}")):
        write_file(path, b"content")
    assert sorted(tmp_path.rglob("*")) == before


# --- folders ---


def test_a_folder_is_created_with_its_parents_and_left_unchanged_if_it_exists(
    tmp_path: Path,
) -> None:
    make_folder(tmp_path / "a" / "b")
    (tmp_path / "a" / "b" / "file").touch()
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "file").exists()


@pytest.mark.parametrize(
    "path_in", [below_a_file, with_a_name_that_is_too_long], ids=["below a file", "long name"]
)
def test_a_folder_that_cannot_be_created_is_named(
    path_in: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = path_in(tmp_path)
    with pytest.raises(UserError, match=re.escape(f"cannot create the folder {path}: ")):
        make_folder(path)


# --- validation ---


@dataclass
class Inner:
    sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if sum(self.sizes) > 9:
            raise ValueError(f"sizes must sum to at most 9, not {sum(self.sizes)}")


@dataclass
class Outer:
    inner: Inner


@pytest.mark.parametrize(
    ("content", "prefix", "words"),
    [
        ({"inner": {"sizes": [1, "x"]}}, [], "inner.sizes.1: Input should be a valid integer"),
        ({}, ["x.json"], "x.json.inner: Field required"),
        ({"inner": {"sizes": [5, 5]}}, [], "inner: sizes must sum to at most 9, not 10"),
        (3, [], "Input should be a dictionary"),
    ],
)
def test_the_first_error_of_a_validation_has_a_dotted_location(
    content: object, prefix: list[str], words: str
) -> None:
    with pytest.raises(ValidationError) as error:
        TypeAdapter(Outer).validate_python(content)
    assert first_error(error.value, *prefix).startswith(words)
