"""Loaded results equal the saved ones, and damaged files raise a UserError."""

import json
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pytest

from associative_transformer.analysis.storage import load_result, save_result
from associative_transformer.interface import UserError


@dataclass(frozen=True)
class Numbers:
    share: float
    count: int
    is_fresh: bool
    words: list[str]
    grid: np.ndarray
    empty: np.ndarray


@dataclass(frozen=True)
class Other:
    share: float
    grid: np.ndarray


def make(share: float = 0.1) -> Numbers:
    grid = np.array([[1.5, np.nan], [np.inf, -0.0]])
    words = ["<script>", "Kärntner Straße", "a\nb", "\udcff"]
    return Numbers(share, 2**60 + 1, True, words, grid, np.empty((0, 3), np.int32))


def assert_same(one: Numbers, two: Numbers) -> None:
    for field in fields(Numbers):
        mine, other = getattr(one, field.name), getattr(two, field.name)
        assert type(mine) is type(other)
        if isinstance(mine, np.ndarray):
            assert mine.dtype == other.dtype
            np.testing.assert_array_equal(mine, other, strict=True)
        else:
            assert mine == other


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_result(make(), tmp_path, "numbers")
    return tmp_path


def test_a_loaded_result_has_the_same_values_types_and_shapes(saved: Path) -> None:
    assert_same(load_result(Numbers, saved, "numbers"), make())


def test_the_folder_is_created_and_contains_two_files_per_result(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "analysis"
    save_result(make(), folder, "one")
    save_result(make(), folder, "two")
    assert sorted(file.name for file in folder.iterdir()) == [
        "one.json",
        "one.npz",
        "two.json",
        "two.npz",
    ]


@pytest.mark.parametrize("value", [0.1, 1e-300, float("inf"), float("nan"), -0.0, 1 / 3], ids=str)
def test_a_number_keeps_all_its_digits(value: float, tmp_path: Path) -> None:
    save_result(Other(value, np.array([value])), tmp_path, "other")
    back = load_result(Other, tmp_path, "other")
    assert repr(back.share) == repr(value)
    assert repr(float(back.grid[0])) == repr(value)


def test_arrays_are_saved_for_numpy_and_the_rest_as_json(saved: Path) -> None:
    with np.load(saved / "numbers.npz") as arrays:
        assert sorted(arrays.files) == ["empty", "grid"]
    rest = json.loads((saved / "numbers.json").read_text())
    assert sorted(rest) == ["count", "is_fresh", "share", "words"]


def test_a_result_replaces_an_earlier_one(saved: Path) -> None:
    save_result(make(share=0.7), saved, "numbers")
    assert load_result(Numbers, saved, "numbers").share == 0.7


@pytest.mark.parametrize("ending", ["npz", "json"])
def test_a_missing_file_is_reported(saved: Path, ending: str) -> None:
    (saved / f"numbers.{ending}").unlink()
    with pytest.raises(UserError, match=rf"numbers in .*numbers\.{ending}.*ait analyze"):
        load_result(Numbers, saved, "numbers")


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        ("json", b""),
        ("json", b"{"),
        ("json", b"[1, 2]"),
        ("json", b"7"),
        ("json", b"\xff\xfe"),
        ("npz", b""),
        ("npz", b"no archive"),
        ("npz", b"PK\x03\x04 and no more"),
    ],
)
def test_a_file_with_invalid_content_is_reported(saved: Path, ending: str, content: bytes) -> None:
    (saved / f"numbers.{ending}").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read the result numbers in .*ait analyze"):
        load_result(Numbers, saved, "numbers")


def test_a_single_array_instead_of_an_archive_is_refused(saved: Path) -> None:
    with (saved / "numbers.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(UserError, match="cannot read the result numbers"):
        load_result(Numbers, saved, "numbers")


def test_a_damaged_archive_is_never_loaded_with_wrong_numbers(saved: Path) -> None:
    whole = (saved / "numbers.npz").read_bytes()
    for index in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[index] ^= 0xFF
        (saved / "numbers.npz").write_bytes(damaged)
        try:
            back = load_result(Numbers, saved, "numbers")
        except UserError:
            continue
        assert_same(back, make())  # a byte that is not read
    for length in range(0, len(whole), 13):
        (saved / "numbers.npz").write_bytes(whole[:length])
        with pytest.raises(UserError):
            load_result(Numbers, saved, "numbers")


def test_a_result_of_another_class_is_refused_with_the_differing_fields(saved: Path) -> None:
    with pytest.raises(
        UserError, match="unexpected or missing fields: count, empty, is_fresh, words"
    ):
        load_result(Other, saved, "numbers")


def test_pickled_objects_are_not_loaded(saved: Path) -> None:
    np.savez(saved / "numbers.npz", grid=np.array([{}]), empty=np.zeros(0))
    with pytest.raises(UserError, match="pickle"):
        load_result(Numbers, saved, "numbers")


def test_a_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "analysis").write_text("a file")
    with pytest.raises(UserError, match="cannot create the folder"):
        save_result(make(), tmp_path / "analysis", "numbers")
