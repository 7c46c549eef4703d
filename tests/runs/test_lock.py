"""The lock of a run folder: which process is refused, and what releases the lock."""

import errno
import os
import shutil
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
    """Return a function that locks a folder in another process and returns the id of that process.

    With `has_worker`, the process has a child that keeps running if the process is killed.
    """
    pids: list[int] = []

    def start(folder: Path, has_worker: bool = False) -> int:
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            with hold_folder(folder):
                worker = os.fork() if has_worker else None
                if worker != 0:
                    os.write(write_end, (worker or 0).to_bytes(4, "big"))
                time.sleep(600)
        pids.append(pid)
        os.close(write_end)
        if worker := int.from_bytes(os.read(read_end, 4), "big"):
            pids.append(worker)
        os.close(read_end)
        return pid

    yield start
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):  # killed by the test; not our own child
            pass


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_a_second_process_is_refused_with_the_id_of_the_first(tmp_path: Path, hold: Hold) -> None:
    pid = hold(tmp_path)
    for enter in (lambda: check_free(tmp_path), hold_folder(tmp_path).__enter__):
        with pytest.raises(
            UserError, match=rf"another process \({pid} on .+\) is training in {tmp_path}"
        ):
            enter()


@pytest.mark.parametrize("has_worker", [False, True])
def test_a_killed_process_releases_the_folder_at_once(
    has_worker: bool, tmp_path: Path, hold: Hold
) -> None:
    kill(hold(tmp_path, has_worker))
    assert (tmp_path / ".lock").exists()  # it is left behind, but no longer locked
    check_free(tmp_path)
    with hold_folder(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"{os.getpid()} on ")


@pytest.mark.parametrize("error", [None, UserError, KeyboardInterrupt])
def test_the_lock_file_is_removed_however_the_run_ends(
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


def test_checking_whether_a_folder_is_free_writes_nothing(tmp_path: Path) -> None:
    check_free(tmp_path / "run")
    check_free(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_removed_by_its_last_holder_is_not_mistaken_for_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    lock_file = lock._lock

    def late(file: int, folder: Path) -> None:
        calls.append(file)
        if len(calls) == 1:  # the file is removed after it was opened
            (folder / ".lock").unlink()
        if len(calls) == 2:  # it is removed, and another process creates a new one
            (folder / ".lock").unlink()
            (folder / ".lock").touch()
        lock_file(file, folder)

    monkeypatch.setattr(lock, "_lock", late)
    with hold_folder(tmp_path):
        assert len(calls) == 3
        assert (tmp_path / ".lock").read_text()


@pytest.mark.parametrize("system", ["windows", "network"])
def test_without_record_locks_a_line_says_so_and_the_run_starts(
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
        assert "do not start a second run in it" in capsys.readouterr().err


def test_a_link_in_place_of_the_lock_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "thesis.tex")
    with (
        pytest.raises(UserError, match=f"cannot lock the run folder {tmp_path / 'run'}"),
        hold_folder(tmp_path / "run"),
    ):
        pass
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


# --- whole runs ---


@pytest.mark.parametrize("flags", ["", "--resume", "--overwrite"])
def test_a_second_run_in_a_folder_is_refused_before_it_does_anything(
    flags: str,
    ait: Ait,
    tmp_path: Path,
    undisturbed: Path,
    hold: Hold,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = shutil.copytree(undisturbed, tmp_path / "runs" / "mine" / "0")
    (folder / "result.json").unlink()
    kill(hold(folder))
    pid = hold(folder)
    monkeypatch.setattr(TriangleConfig, "load", lambda *_: pytest.fail("it loads the data"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")}
    done = ait("train", *TRIANGLE, "--name", "mine", *flags.split())
    assert_refused(done, f"another process ({pid} on", "runs/mine/0", "--name")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")} == before


def test_a_run_that_another_process_has_begun_in_the_meantime_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hold: Hold
) -> None:
    folder, initialize = tmp_path / "run", TrainingRun.__init__

    def initialize_late(run: TrainingRun, *arguments: Any) -> None:  # noqa: ANN401
        hold(folder)
        initialize(run, *arguments)

    monkeypatch.setattr(TrainingRun, "__init__", initialize_late)
    with pytest.raises(UserError, match="another process"):
        train(EXPERIMENT, folder)
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_a_run_that_another_process_has_completed_in_the_meantime_is_left_alone(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    initialize = TrainingRun.__init__

    def initialize_late(run: TrainingRun, *arguments: Any) -> None:  # noqa: ANN401
        initialize(run, *arguments)
        shutil.copytree(undisturbed, tmp_path / "run")

    monkeypatch.setattr(TrainingRun, "__init__", initialize_late)
    with pytest.raises(UserError, match="exists: pass --resume"):
        train(EXPERIMENT, tmp_path / "run")
    assert (tmp_path / "run" / "result.json").exists()


def test_a_run_killed_while_it_holds_the_lock_can_be_resumed(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, hold: Hold
) -> None:
    steps = Steps(interrupts={6}).install(monkeypatch)
    with pytest.raises(BaseException, match="SIGINT"):
        train(EXPERIMENT, tmp_path / "run")
    kill(hold(tmp_path / "run", has_worker=True))
    train(EXPERIMENT, tmp_path / "run", resume=True)
    assert steps.count == 12
    assert_same_outcome(tmp_path / "run", undisturbed)
    assert not (tmp_path / "run" / ".lock").exists()
