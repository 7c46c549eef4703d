"""Real disks that are full or read-only: the error, and earlier files, which must be kept.

Mounting a disk requires root; without it, only the limit on file sizes is tested.
"""

import resource
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from associative_transformer.interface import UserError
from associative_transformer.training import loop as train_module
from associative_transformer.training.loop import train
from associative_transformer.training.signals import Interrupted
from associative_transformer.training.step import TrainingStep
from making.trained import STEPS, Steps, assert_same_outcome, vary

EXPERIMENT = vary(data={"val_fraction": 0.25}, batch_size=12, epochs=4, checkpoint_every=1)


def mount(*arguments: object) -> bool:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", *map(str, arguments)], capture_output=True, check=False
    )
    return done.returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk"
    path.mkdir()
    if not mount("-o", "size=4m", "none", path):
        pytest.skip("mounting a disk requires root")
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    train(EXPERIMENT, folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def checkpoints(folder: Path) -> dict[str, bytes]:
    """Return the files of the two checkpoints, without those of an unfinished one."""
    files = contents(folder / "checkpoint")
    return {name: files[name] for name in files if name.split("/")[0] in ("last", "previous")}


def stop_at(step: int, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        Steps(interrupts={step}).install(patch)
        train(EXPERIMENT, folder)


@pytest.mark.parametrize(
    "kilobytes",
    [
        pytest.param(kilobytes, marks=[pytest.mark.thorough] * (kilobytes % 800 != 0))
        for kilobytes in range(0, 2_600, 200)
    ],
)
def test_a_run_ended_by_a_disk_that_fills_up_at_any_moment_can_be_resumed(
    kilobytes: int, disk: Path, undisturbed: Path
) -> None:
    folder = disk / "run"
    stop_at(2, folder)
    before = checkpoints(folder)
    free = int(subprocess.check_output(["df", "--output=avail", disk]).split()[-1])
    (disk / "other").write_bytes(bytes(1024 * (free - kilobytes)))
    try:
        train(EXPERIMENT, folder, resume=True)
    except UserError as error:
        assert "No space left on device" in str(error)
        assert not (folder / "result.json").exists()
    else:
        assert kilobytes > 800  # enough for the rest of the run
    if kilobytes < 600:  # less than a checkpoint
        assert checkpoints(folder) == before
    (disk / "other").unlink()
    train(EXPERIMENT, folder, resume=True)
    assert_same_outcome(folder, undisturbed)
    assert not [path for path in folder.rglob("*") if ".partial" in path.name]


def test_a_folder_on_a_read_only_disk_is_reported_and_left_unchanged(
    disk: Path, undisturbed: Path
) -> None:
    stop_at(2, disk / "run")
    before = contents(disk)
    assert mount("-o", "remount,ro", disk)
    for name, flags in (("run", {"resume": True}), ("run", {"overwrite": True}), ("new", {})):
        with pytest.raises(UserError, match=f"{disk / name}: Read-only file system"):
            train(EXPERIMENT, disk / name, **flags)
        assert contents(disk) == before
    assert mount("-o", "remount,rw", disk)
    train(EXPERIMENT, disk / "run", resume=True)
    assert_same_outcome(disk / "run", undisturbed)


def test_a_run_ended_by_a_disk_that_becomes_read_only_can_be_resumed(
    disk: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = disk / "run"
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "hold_folder", nullcontext)  # an open file stops mount
        steps = Steps().install(patch)
        counted = TrainingStep.__call__

        def make_read_only(*arguments: object) -> object:
            if steps.count == STEPS + 1:
                assert mount("-o", "remount,ro", disk)
            return counted(*arguments)

        patch.setattr(TrainingStep, "__call__", make_read_only)
        with pytest.raises(UserError, match="Read-only file system"):
            train(EXPERIMENT, folder)
    assert mount("-o", "remount,rw", disk)
    train(EXPERIMENT, folder, resume=True)
    assert_same_outcome(folder, undisturbed)


@pytest.mark.parametrize("size", [1_000, 100_000, 300_000])
def test_a_run_ended_by_a_limit_on_file_sizes_can_be_resumed(
    size: int, tmp_path: Path, undisturbed: Path
) -> None:
    folder = tmp_path / "run"
    stop_at(2, folder)
    before = checkpoints(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises(UserError, match="File too large"):
            train(EXPERIMENT, folder, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoints(folder) == before
    train(EXPERIMENT, folder, resume=True)
    assert_same_outcome(folder, undisturbed)
