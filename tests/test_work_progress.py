"""The progress of long work: lines with the time left, a bar on a terminal, nothing if short."""

import itertools
import re

import pytest

from associative_transformer import progress
from associative_transformer.progress import WorkProgress, format_time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make each reading of the clock ten seconds later than the previous one."""
    ticks = itertools.count(0.0, 10.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(ticks))


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")


def test_without_a_terminal_a_line_is_written_every_30_seconds_with_the_time_left(
    clock: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with WorkProgress("decoding", "images") as work:
        for done in range(500, 4_000, 500):  # ten seconds each
            work.show(done, 5_000)
    captured = capsys.readouterr()
    assert captured.out == "" and "\x1b" not in captured.err
    assert captured.err.splitlines() == [
        "decoding  1,500 of 5,000 images, 0:01:10 left",
        "decoding  3,000 of 5,000 images, 0:00:40 left",
    ]


def test_short_work_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with WorkProgress("decoding", "images") as work:
        for done in range(100):
            work.show(done + 1, 100)
    assert capsys.readouterr().err == ""


def test_a_share_is_shown_if_nothing_is_counted_and_the_detail_comes_first(
    clock: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with WorkProgress("analyzing") as work:
        for done, name in ((0, "a"), (1, "b"), (2, "[red]c[/red]")):
            work.show(done, 8, name)
    assert capsys.readouterr().err == "analyzing: [red]c[/red]  25 %, 0:01:30 left\n"


def test_a_terminal_shows_a_bar_that_disappears(
    clock: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_a_terminal(monkeypatch)
    with WorkProgress("decoding", "images") as work:
        work.show(1_000, 4_000)
        work.show(4_000, 4_000)
    captured = capsys.readouterr()
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", captured.err)
    assert captured.out == ""
    assert "1,000 of 4,000 images, 0:00:30 left" in shown
    assert "4,000 of 4,000 images, 0:00:00 left" in shown
    assert captured.err.rstrip().endswith(("\x1b[2K", "\x1b[?25h"))  # the line is erased


def test_nothing_is_shown_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_a_terminal(monkeypatch)
    with WorkProgress("decoding", "images", is_shown=False) as work:
        work.show(1, 1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (3_725, "1:02:05")]
)
def test_a_time_is_written_as_hours_minutes_and_seconds(seconds: float, text: str) -> None:
    assert format_time(seconds) == text
