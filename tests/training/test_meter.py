"""Position, sums and time of an epoch."""

import itertools

import pytest
import torch

from associative_transformer.runs.checkpoint import TrainingState
from associative_transformer.training import meter
from associative_transformer.training.meter import EpochMeter
from associative_transformer.training.step import Sums

CPU = torch.device("cpu")
STEP = torch.tensor([6.0, 3.0, 4.0, 8.0], dtype=torch.float64)  # eight images, four correct


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make each reading of the clock one second later than the previous one."""
    ticks = itertools.count(100.0)
    monkeypatch.setattr(meter.time, "perf_counter", lambda: next(ticks))


def start(state: TrainingState) -> EpochMeter:
    started = EpochMeter(state, batch_size=8, device=CPU)
    started.start_clock()
    return started


def test_the_metrics_are_the_position_and_the_means_over_all_images() -> None:
    state = TrainingState(epoch=2)
    epoch = start(state)
    epoch.add(STEP)
    epoch.add(torch.zeros_like(STEP))  # a skipped step
    epoch.add(2 * STEP)
    metrics = epoch.metrics()
    assert (metrics.epoch, metrics.step) == (3, 3)
    assert (metrics.loss, metrics.balance_loss, metrics.accuracy) == (0.75, 0.375, 50.0)
    assert metrics.samples_per_second == 3 * 8 / 1.0  # read a second after the start


def test_the_row_of_an_epoch_holds_the_health_of_the_memories_if_there_are_any() -> None:
    state = TrainingState()
    epoch = start(state)
    epoch.add(STEP)
    assert "health" not in epoch.row(epoch.metrics(), 0.1, 0)
    state.health = [{"overlap": 0.5}]
    row = epoch.row(epoch.metrics(), 0.1, 3)
    assert row["health"] == [{"overlap": 0.5}]
    assert (row["lr"], row["skipped_steps"]) == (0.1, 3)


def test_an_epoch_without_a_good_step_has_means_of_zero() -> None:
    epoch = start(TrainingState())
    epoch.add(torch.zeros_like(STEP))
    assert epoch.metrics().loss == epoch.metrics().accuracy == 0.0


def test_a_resumed_epoch_continues_its_sums_and_its_clock() -> None:
    state = TrainingState()
    epoch = start(state)
    epoch.add(STEP)
    epoch.store()
    assert state.sums == STEP.tolist()
    assert len(state.sums) == len(Sums._fields)
    seconds = state.timing["epoch"]

    resumed = EpochMeter(TrainingState(), batch_size=8, device=CPU)
    resumed.resume(state)
    assert resumed.seconds == seconds
    resumed.start_clock()
    resumed.add(STEP)
    assert resumed.metrics().loss == 0.75
    assert resumed.seconds > seconds


def test_a_stopped_clock_does_not_advance() -> None:
    epoch = start(TrainingState())
    epoch.add(STEP)
    epoch.stop_clock()
    assert epoch.seconds == epoch.seconds == 1.0


def test_the_next_epoch_starts_from_zero_and_adds_its_time_to_that_of_the_run() -> None:
    state = TrainingState(timing={"epoch": 0.0, "run": 10.0})
    epoch = start(state)
    epoch.add(STEP)
    epoch.stop_clock()
    epoch.start_next_epoch()
    epoch.store()
    assert (state.epoch, state.step, state.sums) == (1, 0, [0.0] * len(Sums._fields))
    assert state.timing == {"epoch": 0.0, "run": 11.0}


def test_sums_of_another_length_are_refused() -> None:
    epoch = EpochMeter(TrainingState(), batch_size=8, device=CPU)
    with pytest.raises(RuntimeError, match="size"):
        epoch.resume(TrainingState(sums=[1.0, 2.0]))
