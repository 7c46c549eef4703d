"""Every reader of outside data on thousands of damaged inputs: a value or a UserError.

No input may take more than two seconds or a gibibyte. The inputs are the same in every run; the
first of them are tried by `make check`, some more by `make test`, and all by `make full`.
"""

import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import datasets
import pytest

from associative_transformer.interface import UserError
from associative_transformer.runs import result
from drivers.coverage_of_readers import missed_lines, reach
from making.readers import READERS, REPORT, make_case

MAX_SECONDS = 2  # of processor time
MAX_MEMORY = 2**30  # bytes that a case may add to the process
HANGS_AFTER = 60  # seconds
FEW, SOME, MANY = 6, 200, 10_000

Record = Callable[[str, object], None]


class Hang(BaseException):
    """Raised in a reader that does not end; a BaseException, since readers catch Exception."""


class Cost(NamedTuple):
    """What reading an input has cost."""

    seconds: float
    memory: int  # bytes


@contextmanager
def no_hang() -> Iterator[None]:
    """Raise Hang if the body takes too long."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Hang

    earlier = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANGS_AFTER)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, earlier)


def resident(key: str) -> int:
    """Return a line of the memory of this process: VmRSS, or VmHWM for its peak."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{key}:")[2].split()[0]) * 1024


def read_once(name: str, content: Any, folder: Path) -> tuple[str, Cost]:  # noqa: ANN401
    """Read an input in an empty folder; return the outcome, and what it cost."""
    folder.mkdir()
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before, start = resident("VmRSS"), time.process_time()
    outcome = "value"
    with no_hang():
        try:
            READERS[name].read(content, folder)
        except UserError as error:
            outcome = "refused" if str(error).strip() else "an empty message"
        except (Exception, SystemExit, Hang) as error:
            last = traceback.extract_tb(error.__traceback__)
            ours = [f for f in last if "associative_transformer" in f.filename] or last
            where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
            outcome = f"{type(error).__name__} at {where}: {str(error)[:200]}"
            if isinstance(error, SystemExit) and error.code == 2:
                outcome = "refused"
    cost = Cost(time.process_time() - start, resident("VmHWM") - before)
    shutil.rmtree(folder)
    return outcome, cost


def cases() -> list[Any]:
    """Return the readers with few cases for `make check`, some and all for `make full`."""
    counts = []
    for name in READERS:
        row = pytest.mark.hostile(f"fuzzed: {name}")
        counts += [] if name == REPORT else [pytest.param(name, FEW)]  # a report takes longer
        counts.append(pytest.param(name, SOME, marks=pytest.mark.thorough))
        counts.append(pytest.param(name, MANY, marks=[pytest.mark.fuzz, row]))
    return counts


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)  # it asks the network


@pytest.mark.parametrize(("name", "num_cases"), cases())
def test_damaged_input_is_read_or_refused(
    name: str, num_cases: int, tmp_path: Path, record_property: Record
) -> None:
    for seed in READERS[name].seeds()[:num_cases]:
        assert read_once(name, seed, tmp_path / "intact")[0] == "value"
    values, failures, slowest, largest = 0, {}, 0.0, 0
    for number in range(num_cases):
        outcome, cost = read_once(name, make_case(name, number), tmp_path / "case")
        slowest, largest = max(slowest, cost.seconds), max(largest, cost.memory)
        if cost.seconds > MAX_SECONDS or cost.memory > MAX_MEMORY:
            outcome = f"{cost.seconds:.1f} s, {cost.memory / 2**20:,.0f} MiB"
        if outcome not in ("value", "refused"):
            failures[number] = outcome
        values += outcome == "value"
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    record_property("cases", num_cases)
    print(f"{name}: {num_cases} cases, {values} read, {len(failures)} failed", file=sys.stderr)
    print(f"slowest {slowest:.2f} s, largest {largest / 2**20:.0f} MiB", file=sys.stderr)
    assert failures == {}


@pytest.mark.slow
def test_coverage_counts_the_lines_that_no_case_reaches() -> None:
    module = Path(result.__file__)
    text = module.read_text().splitlines()
    refuses = text.index("def damaged_result(folder: Path, reason: str) -> UserError:") + 3
    assert text[refuses - 1].strip() == "path = folder / RESULT"
    for num_cases, expected in ((0, True), (20, False)):
        reached = reach("result.json", num_cases)
        count, missed = missed_lines(reached.functions, reached.lines)
        assert (refuses in missed[str(module)]) == expected
        assert sum(map(len, missed.values())) < count


def test_the_docs_have_a_row_for_each_reader() -> None:
    docs = (Path(__file__).parents[1] / "docs" / "explanation" / "reliability.md").read_text()
    section = docs.partition("### Fuzzing\n")[2].partition("\n### ")[0]
    rows = [row.strip("| ").split(" | ") for row in section.splitlines() if row.startswith("|")]
    assert [row[0] for row in rows[2:]] == list(READERS)
    assert {tuple(row[1:3]) for row in rows[2:]} <= {(f"{MANY:,}", "0"), (f"{SOME:,}", "0")}
