"""Limits of what is read from a run: no file, whatever its content, takes a gibibyte."""

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from associative_transformer.analysis import load_analysis
from associative_transformer.analysis.drift import measure_drift
from associative_transformer.interface import UserError
from associative_transformer.runs import reading
from associative_transformer.runs.environment import Environment
from associative_transformer.runs.folder import History
from associative_transformer.runs.reading import (
    MAX_ARRAYS,
    MAX_JSON,
    MAX_METRICS,
    count_rows,
    read_arrays,
    read_json,
    read_memory,
    read_rows,
)

MOST = 2**30
"""Bytes that reading may add to the process."""


def resident(key: str) -> int:
    """Return a line of the memory of this process: VmRSS, or VmHWM for its peak."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{key}:")[2].split()[0]) * 1024


def peak_of(call: Callable[[], object]) -> int:
    """Return the bytes that a call adds to the memory of this process, at its peak."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before


def header_of(shape: tuple[int, ...], descr: str = "<f4", version: int = 1) -> bytes:
    """Return the beginning of an array in numpy's format."""
    header = io.BytesIO()
    values = {"descr": descr, "fortran_order": False, "shape": shape}
    write = {1: np.lib.format.write_array_header_1_0, 2: np.lib.format.write_array_header_2_0}
    write[version](header, values)
    return header.getvalue()


def plant(
    path: Path,
    shape: tuple[int, ...],
    descr: str = "<f4",
    missing: int = 0,
    method: int = zipfile.ZIP_DEFLATED,
    names: tuple[str, ...] = ("priors",),
) -> Path:
    """Write an archive of zeros that lacks its last `missing` bytes."""
    size = int(np.prod(shape, dtype=object)) * np.dtype(descr).itemsize - missing
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as archive:
        for name in names:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                file.write(header_of(shape, descr))
                while size > 0:
                    size -= file.write(bytes(min(size, 2**24)))
    return path


# --- what is refused before it is unpacked ---


def test_arrays_above_the_limit_are_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """416 MB of compressed zeros are 2 MB on disk."""
    path = plant(tmp_path / "memory.npz", (200, 1, 1, 520_000))
    assert path.stat().st_size < MAX_ARRAYS / 100
    monkeypatch.setattr(np.lib.format, "read_array", pytest.fail)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    for read in (read_arrays, lambda path: read_memory(path, None)):
        with pytest.raises(ValueError, match=r"unpacks to 416,000,\d+ bytes, more than 402,6"):
            read(path)
    with pytest.raises(UserError, match=r"memory\.npz: it unpacks to"):
        History.read(tmp_path, None)


def write_zip(path: Path, *entries: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)


def long_header(path: Path) -> None:
    header = bytearray(header_of((1,), version=2))
    header[8:12] = (2**20).to_bytes(4, "little")
    write_zip(path, ("priors.npy", bytes(header) + b" " * 2**20))


def many_arrays(path: Path) -> None:
    array = header_of((0,))
    write_zip(path, *((f"{'priors' * 1_000}{i}.npy", array) for i in range(180)))


def large_directory(path: Path) -> None:
    np.savez(path, priors=np.zeros(4))
    content = path.read_bytes()
    path.write_bytes(content[:-10] + (2**31).to_bytes(4, "little") + content[-6:])


def locator(path: Path) -> None:
    np.savez(path, priors=np.zeros(4))
    content = path.read_bytes()
    path.write_bytes(content[:-22] + b"PK\6\7" + bytes(16) + content[-22:])


def comment(path: Path) -> None:
    np.savez(path, priors=np.zeros(4))
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"a"


def other_method(method: int) -> Callable[[Path], None]:
    array = header_of((4,)) + bytes(16)
    return lambda path: write_zip(path, ("priors.npy", array), method=method)


ARCHIVES: dict[str, tuple[Callable[[Path], object], str]] = {
    "more values than bytes": (lambda path: plant(path, (5, 1, 1, 400), missing=4_000), "claims"),
    "wide values": (lambda path: plant(path, (1,), descr="|V5000"), "claims"),
    "text": (lambda path: plant(path, (1,), descr="<U5000"), "claims"),
    "long and empty": (lambda path: plant(path, (10**9, 0)), "claims"),
    "negative": (lambda path: write_zip(path, ("a.npy", header_of((-1, -4)))), "claims"),
    "many epochs": (lambda path: plant(path, (10**6 + 1, 1, 1, 1), "<f2"), "1,000,000 epochs"),
    "long header": (long_header, "EOF: reading array header"),
    "many arrays": (many_arrays, "directory takes 1,0"),
    "large directory": (large_directory, "directory takes 2,147,483,648 bytes"),
    "directory of gigabytes": (locator, "directory takes"),
    "comment": (comment, "does not end like"),
    "bzip2": (other_method(zipfile.ZIP_BZIP2), "compressed by a method"),
    "lzma": (other_method(zipfile.ZIP_LZMA), "compressed by a method"),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_that_could_take_much_memory_is_refused(kind: str, tmp_path: Path) -> None:
    make, words = ARCHIVES[kind]
    make(tmp_path / "memory.npz")
    with pytest.raises(ValueError, match=words):
        read_memory(tmp_path / "memory.npz", None)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_archives_of_numpy_are_read(save: Callable[..., None], tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = {
        "floats": random.normal(size=(3, 1, 4)),
        "bytes": random.integers(0, 9, size=7, dtype=np.uint8),
        "is_set": np.array([True, False]),
        "turned": np.asfortranarray(random.normal(size=(3, 5)).astype(np.float32)),
        "empty": np.empty((2, 0)),
        "single": np.array(5),
    }
    save(tmp_path / "a.npz", **arrays)
    read = read_arrays(tmp_path / "a.npz")
    assert list(read) == list(arrays)
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        assert np.array_equal(read[name], array)
    save(tmp_path / "none.npz")
    assert read_arrays(tmp_path / "none.npz") == {}


def test_rows_are_read_up_to_the_wanted_one_and_may_have_more_keys(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"epoch": 1, "later": {"a": [1]}}, {"epoch": 2, "loss": 0.5}, {"epoch": 3}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert (read_rows(path, None), read_rows(path, 2), count_rows(path)) == (rows, rows[:2], 3)
    path.write_text("\n".join(map(json.dumps, rows)))  # without the last line end
    assert (read_rows(path, None), count_rows(path)) == (rows, 3)


@pytest.mark.parametrize("health", ["1", "[1]", '[{"overlap": "x"}]', '[{"overlap": [1]}]'])
def test_the_health_of_memories_must_be_numbers_by_name_and_layer(
    health: str, tmp_path: Path
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 1, "health": [{"overlap": 0.5, "later": null}]}\n')
    assert read_rows(path, None)[0]["health"] == [{"overlap": 0.5, "later": None}]
    path.write_text(f'{{"epoch": 1, "health": {health}}}\n')
    with pytest.raises(ValueError, match=r"row 1\.health"):
        read_rows(path, None)


def test_more_rows_than_epochs_that_can_be_trained_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_EPOCHS", 3)
    (tmp_path / "metrics.jsonl").write_text("{}\n" * 4)
    with pytest.raises(ValueError, match="more than 3 rows"):
        read_rows(tmp_path / "metrics.jsonl", None)


def test_all_results_of_an_analysis_together_are_limited(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(root / "ait" / "analysis", tmp_path / "analysis")
    arrays = [
        array.nbytes
        for path in (tmp_path / "analysis").glob("*.npz")
        for array in read_arrays(path).values()
    ]
    assert load_analysis(tmp_path) is not None
    monkeypatch.setattr("associative_transformer.analysis.MAX_ARRAYS", sum(arrays) // 2)
    with pytest.raises(UserError, match=r"bytes, more than [\d,]+\): run ait analyze again"):
        load_analysis(tmp_path)


# --- the memory that files at the limit take ---


@pytest.mark.slow
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_reading_the_largest_arrays_takes_less_than_a_gibibyte(
    method: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (1_000, 1, 32, MAX_ARRAYS // 128_000 - 1)
    path = plant(tmp_path / "memory.npz", shape, method=method)
    (tmp_path / "metrics.jsonl").write_text('{"epoch": null}\n' * 1_000)
    assert peak_of(lambda: read_arrays(path)) > MAX_ARRAYS * 0.9  # so the measurement works

    def report() -> None:
        measure_drift(np.array(History.read(tmp_path, None).memory))

    monkeypatch.setattr("associative_transformer.analysis.drift.effective_rank", lambda _: 1.0)
    assert peak_of(report) < MOST


NESTED = "[[[[[[]]]]]],"
CONTENTS = {  # what takes the most memory per byte
    "nested lists": lambda size: '{"a": [' + NESTED * (size // len(NESTED) - 1) + "0]}",
    "numbers": lambda size: '{"a": [' + "1.5," * (size // 4 - 5) + "0]}",
    "names": lambda size: '{"a": {' + ",".join(f'"{i:x}":0' for i in range(size // 11)) + "}}",
}


@pytest.mark.slow
@pytest.mark.parametrize("content", CONTENTS)
def test_reading_the_largest_json_takes_less_than_a_gibibyte(content: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(CONTENTS[content](MAX_JSON))
    assert 0.9 * MAX_JSON < path.stat().st_size <= MAX_JSON
    assert peak_of(lambda: read_json(path, Environment)) < MOST
    assert peak_of(lambda: json.loads(path.read_bytes())) < MOST


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [
        *(pytest.param(content, marks=pytest.mark.thorough) for content in CONTENTS),
        *("health", "empty rows"),
        pytest.param("short health", marks=pytest.mark.thorough),
        pytest.param("short rows", marks=pytest.mark.thorough),
        pytest.param("no rows", marks=pytest.mark.thorough),
    ],
)
def test_reading_the_largest_metrics_takes_less_than_a_gibibyte(
    content: str, tmp_path: Path
) -> None:
    path = tmp_path / "metrics.jsonl"
    rows: dict[str, Any] = {"empty rows": "{}\n", "short rows": '{"":0}\n', "no rows": "\n"}
    layers = {"health": "{},", "short health": '{"":0},'}
    if content in layers:
        number = (MAX_METRICS - 20) // len(layers[content])
        path.write_text('{"health": [' + layers[content] * number + "{}]}\n")
        rows |= layers
    elif content in rows:
        path.write_text(rows[content] * (MAX_METRICS // len(rows[content])))
    else:
        path.write_text(CONTENTS[content](MAX_METRICS))
    assert 0.9 * MAX_METRICS < path.stat().st_size <= MAX_METRICS

    def read() -> None:
        count_rows(path)
        try:
            read_rows(path, None)
        except ValueError as error:
            assert content in rows, error

    assert peak_of(read) < MOST
