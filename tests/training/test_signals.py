"""Signals stop a run at the next point that allows it, on all processes that train together."""

import os
import signal

import pytest

from associative_transformer.training.signals import Interrupted, StopSignals


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


def test_a_signal_is_raised_by_the_next_check() -> None:
    with StopSignals() as stop:
        stop.check()
        send(signal.SIGTERM)
        with pytest.raises(Interrupted, match="stopped by SIGTERM"):
            stop.check()


def test_a_signal_ends_an_interruptible_block_at_once() -> None:
    with StopSignals() as stop, pytest.raises(Interrupted), stop.interruptible():
        send(signal.SIGINT)
        pytest.fail("the block went on")


def test_an_earlier_signal_keeps_an_interruptible_block_from_starting() -> None:
    with StopSignals() as stop:
        send(signal.SIGINT)
        with pytest.raises(Interrupted), stop.interruptible():
            pytest.fail("the block started")


def test_after_an_interruptible_block_a_signal_waits_again() -> None:
    with StopSignals() as stop:
        with stop.interruptible():
            pass
        send(signal.SIGINT)
        with pytest.raises(Interrupted):
            stop.check()


def test_a_second_signal_acts_as_if_the_handlers_had_not_been_set() -> None:
    with pytest.raises(KeyboardInterrupt), StopSignals():
        send(signal.SIGINT)
        send(signal.SIGINT)


def test_the_signal_of_another_process_stops_this_one_at_the_same_point() -> None:
    asked: list[int] = []

    def agree(signum: int) -> int:
        asked.append(signum)
        return 0 if len(asked) < 3 else signal.SIGTERM

    with StopSignals(agree) as stop:
        stop.check()
        with stop.interruptible():
            pass
        with pytest.raises(Interrupted, match="SIGTERM"):
            stop.check()
    assert asked == [0, 0, 0]


def test_one_of_several_processes_waits_for_the_others_within_an_interruptible_block() -> None:
    with StopSignals(agree=lambda signum: signum) as stop:
        with stop.interruptible():
            send(signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM"):
            stop.check()


def test_a_worker_that_inherits_the_handlers_is_not_interrupted() -> None:
    with StopSignals() as stop, stop.interruptible():
        pid = os.fork()
        if pid == 0:
            try:
                send(signal.SIGTERM)
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
