"""The progress of a run: a bar on a terminal, plain lines elsewhere."""

import itertools
import re

import pytest

from associative_transformer.training import progress
from associative_transformer.training.progress import RunningMetrics, TrainingProgress

METRICS = RunningMetrics(
    epoch=2, step=5, loss=0.6931, balance_loss=0.01234, accuracy=51.5, samples_per_second=1234.4
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make each reading of the clock ten seconds later than the previous one."""
    ticks = itertools.count(0.0, 10.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(ticks))


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_metrics_are_written_with_loss_balance_accuracy_and_speed() -> None:
    assert str(METRICS) == ("loss 0.693  balance 0.0123  accuracy 51.50 %  1,234 samples/s")


def test_without_a_terminal_a_line_is_written_every_30_seconds_with_the_time_left(
    clock: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with TrainingProgress(epochs=4, steps_per_epoch=10, steps_done=0) as bar:
        for step in range(1, 9):
            bar.show(METRICS._replace(epoch=1, step=step))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "\x1b" not in captured.err
    lines = captured.err.splitlines()
    assert len(lines) == 2  # in 80 seconds
    for line, step in zip(lines, (4, 8), strict=True):
        assert line.startswith("epoch 1/4  loss 0.693")
        assert f"step {step}/10" in line
        seconds = 10 * (40 - step)  # ten seconds a step
        assert line.endswith(f"0:{seconds // 60:02}:{seconds % 60:02} left")


def test_the_time_left_of_a_resumed_run_is_estimated_from_its_own_steps(
    clock: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with TrainingProgress(epochs=4, steps_per_epoch=10, steps_done=20) as bar:
        for step in range(1, 5):
            bar.show(METRICS._replace(epoch=3, step=step))
    assert capsys.readouterr().err.rstrip().endswith("0:02:40 left")  # 16 steps of ten seconds


def test_a_long_line_is_written_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    line = "epoch 1/2  " + "x" * 300 + "  [bold]tags[/bold] are plain text"
    with TrainingProgress(epochs=2, steps_per_epoch=5, steps_done=0) as bar:
        bar.write(line)
    assert capsys.readouterr().err == f"{line}\n"


def test_a_terminal_of_80_columns_shows_a_bar_with_all_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_a_terminal(monkeypatch)
    with TrainingProgress(epochs=4, steps_per_epoch=10, steps_done=0) as bar:
        bar.show(METRICS)
        bar.write("a line above the bar")
    captured = capsys.readouterr()
    assert captured.out == ""
    shown = plain(captured.err)
    assert "a line above the bar" in shown
    last = [line for line in shown.splitlines() if "epoch" in line][-1]
    assert "epoch 2/4" in last
    assert "loss 0.693 balance 0.012 acc 51.5 % 1,234/s" in last
    assert "38 %" in last  # 15 of 40 steps
    assert re.search(r"\d:\d\d:\d\d", last) or "-:--:--" in last  # the time left


def test_the_bar_of_a_resumed_run_starts_at_its_position(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_a_terminal(monkeypatch)
    with TrainingProgress(epochs=4, steps_per_epoch=10, steps_done=20):
        pass
    assert "50 %" in plain(capsys.readouterr().err)
