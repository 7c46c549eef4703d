"""One process in a run folder: who is refused, and what gives the folder free."""

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from associative_transformer.data import TriangleConfig
from associative_transformer.interface import UserError
from associative_transformer.runs import lock
from associative_transformer.runs.lock import check_free, hold_folder
from associative_transformer.training.loop import TrainingRun, train
from making.commands import TRIANGLE, Ait, assert_refused
from making.trained import EXPERIMENT, Steps, assert_same_outcome

Hold = Callable[..., int]


@pytest.fixture
def hold() -> Iterator[Hold]:
    """Hold a folder in another process and give its number; with a worker that outlives it."""
    pids: list[int] = []

    def start(folder: Path, has_worker: bool = False) -> int:
        ready, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            with hold_folder(folder):
                worker = os.fork() if has_worker else None
                if worker != 0:
                    os.write(tell, (worker or 0).to_bytes(4, "big"))
                time.sleep(600)
        pids.append(pid)
        os.close(tell)
        if worker := int.from_bytes(os.read(ready, 4), "big"):
            pids.append(worker)
        os.close(ready)
        return pid

    yield start
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):  # killed by the test; no child of ours
            pass


def die(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_a_second_process_is_refused_and_told_who_is_there(tmp_path: Path, hold: Hold) -> None:
    pid = hold(tmp_path)
    for enter in (lambda: check_free(tmp_path), hold_folder(tmp_path).__enter__):
        with pytest.raises(
            UserError, match=rf"another process \({pid} on .+\) trains in {tmp_path}"
        ):
            enter()


@pytest.mark.parametrize("has_worker", [False, True])
def test_a_killed_process_gives_the_folder_free_at_once(
    has_worker: bool, tmp_path: Path, hold: Hold
) -> None:
    die(hold(tmp_path, has_worker))
    assert (tmp_path / ".lock").exists()  # what it left is not in the way
    check_free(tmp_path)
    with hold_folder(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"{os.getpid()} on ")


@pytest.mark.parametrize("error", [None, UserError, KeyboardInterrupt])
def test_the_lock_is_gone_after_the_run_however_it_ends(
    error: type[BaseException] | None, tmp_path: Path
) -> None:
    try:
        with hold_folder(tmp_path / "new" / "run"):
            assert (tmp_path / "new" / "run" / ".lock").exists()
            if error:
                raise error
    except (UserError, KeyboardInterrupt):
        assert error
    assert list((tmp_path / "new" / "run").iterdir()) == []


def test_looking_whether_a_folder_is_free_writes_nothing(tmp_path: Path) -> None:
    check_free(tmp_path / "run")
    check_free(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_its_last_holder_removed_is_not_taken_for_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    take = lock._lock

    def late(file: int, folder: Path) -> None:
        calls.append(file)
        if len(calls) == 1:  # between opening it and locking it
            (folder / ".lock").unlink()
        if len(calls) == 2:  # and another one has come
            (folder / ".lock").unlink()
            (folder / ".lock").touch()
        take(file, folder)

    monkeypatch.setattr(lock, "_lock", late)
    with hold_folder(tmp_path):
        assert len(calls) == 3
        assert (tmp_path / ".lock").read_text()


@pytest.mark.parametrize("system", ["windows", "network"])
def test_where_there_are_no_locks_a_line_says_so_and_the_run_goes_on(
    system: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    if system == "windows":
        monkeypatch.setattr(lock, "fcntl", None)
    else:
        monkeypatch.setattr(lock.fcntl, "lockf", refuse)
    with hold_folder(tmp_path):
        assert "start no second run there" in capsys.readouterr().err


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "thesis.tex")
    with (
        pytest.raises(UserError, match="can't make the run folder"),
        hold_folder(tmp_path / "run"),
    ):
        pass
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


# --- whole runs ---


@pytest.mark.parametrize("flags", ["", "--resume", "--overwrite"])
def test_a_second_run_in_a_folder_is_refused_before_it_has_done_anything(
    flags: str, ait: Ait, tmp_path: Path, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", *TRIANGLE, "--name", "mine"]
    assert ait(*command).code == 0
    (tmp_path / "runs" / "mine" / "0" / "result.json").unlink()
    die(hold(tmp_path / "runs" / "mine" / "0"))
    pid = hold(tmp_path / "runs" / "mine" / "0")
    monkeypatch.setattr(TriangleConfig, "load", lambda *_: pytest.fail("it loads the data"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")}
    said = ait(*command, *flags.split())
    assert_refused(said, f"another process ({pid} on", "runs/mine/0", "--name")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")} == before


def test_a_run_that_another_process_has_begun_meanwhile_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hold: Hold
) -> None:
    folder, make = tmp_path / "run", TrainingRun.__init__

    def late(run: TrainingRun, *arguments: Any) -> None:  # noqa: ANN401
        hold(folder)
        make(run, *arguments)

    monkeypatch.setattr(TrainingRun, "__init__", late)
    with pytest.raises(UserError, match="another process"):
        train(EXPERIMENT, folder)
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_a_run_that_another_process_has_completed_meanwhile_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(EXPERIMENT, tmp_path / "other")
    make = TrainingRun.__init__

    def late(run: TrainingRun, *arguments: Any) -> None:  # noqa: ANN401
        make(run, *arguments)
        (tmp_path / "other").rename(tmp_path / "run")

    monkeypatch.setattr(TrainingRun, "__init__", late)
    with pytest.raises(UserError, match="exists: go on with --resume"):
        train(EXPERIMENT, tmp_path / "run")
    assert (tmp_path / "run" / "result.json").exists()


def test_a_run_killed_with_its_lock_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hold: Hold
) -> None:
    train(EXPERIMENT, tmp_path / "undisturbed")
    steps = Steps(interrupts={6}).install(monkeypatch)
    with pytest.raises(BaseException, match="SIGINT"):
        train(EXPERIMENT, tmp_path / "run")
    die(hold(tmp_path / "run", has_worker=True))
    train(EXPERIMENT, tmp_path / "run", resume=True)
    assert steps.count == 12
    assert_same_outcome(tmp_path / "run", tmp_path / "undisturbed")
    assert not (tmp_path / "run" / ".lock").exists()
