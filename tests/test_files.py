"""Atomic file writes, new folders, and the first error in the content of a file."""

import ast
import errno
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

import associative_transformer
from associative_transformer.files import csv_text, first_error, make_folder, write_file
from associative_transformer.interface import SHOWN, UserError


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


# --- encodings ---


def test_every_text_file_is_read_and_written_as_utf_8() -> None:
    """Without an encoding, Python uses that of the system, which is cp1252 on Windows."""
    calls = [
        (path.name, node.lineno)
        for path in Path(associative_transformer.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and opens_text(node)
    ]
    assert not calls


def opens_text(call: ast.Call) -> bool:
    """Return whether a call reads or writes text without an encoding."""
    name = ast.unparse(call.func).rpartition(".")[2]
    words = [ast.unparse(argument) for argument in call.args]
    is_text = name in ("read_text", "write_text", "fdopen", "TextIOWrapper")
    is_text |= name == "open" and not any(re.fullmatch(r"'[rwax+]*b[rwax+]*'", x) for x in words)
    is_image = ast.unparse(call.func) in ("Image.open", "archive.open", "os.open")
    options = {keyword.arg for keyword in call.keywords}
    return is_text and not is_image and "encoding" not in options


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_any_text_can_be_encoded(encoding: str) -> None:
    text = "Café 猫 \udce9 \ud800"
    shown = text.encode(encoding, errors=SHOWN)
    assert rb"\ud800" in shown
    assert b"\xe9" in shown.rpartition(b"\\")[0]  # the byte of a file name


# --- CSV ---

FORMULAS = [
    "=1+1",
    "+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "=",
    "-",
    "-x",
]
FORMULAS += ["+", "--1", "-1e", "\uff1d1+1", "-0.5-0.5", "-inf", "=HYPERLINK(1)", "-1.2.3"]
NUMBERS = ["-0.5", "+1", "-1e-3", "-.5", "-3.", "0.25", "12"]
PLAIN = ["cat", "a=b", "x-1", "1-2", "", " = 1", "'=1", "Café", "a@b.c", '"=1"', "images/-1.png"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_text_that_a_spreadsheet_would_run_gets_an_apostrophe(text: str) -> None:
    assert csv_text(text) == f"'{text}"


@pytest.mark.parametrize("text", NUMBERS + PLAIN)
def test_numbers_and_other_texts_stay_as_they_are(text: str) -> None:
    assert csv_text(text) == text
