"""Real disks that are full or can't be written: the sentence, and what stood still stands.

Where nobody may mount anything, the limit on the size of a file takes the part of the full disk.
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
    place = tmp_path / "disk"
    place.mkdir()
    if not mount("-o", "size=4m", "none", place):
        pytest.skip("mounting a disk takes the rights of root")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    train(EXPERIMENT, folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def whole_checkpoints(folder: Path) -> dict[str, bytes]:
    held = contents(folder / "checkpoint")
    return {name: held[name] for name in held if name.split("/")[0] in ("last", "previous")}


def stop_at(step: int, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        Steps(interrupts={step}).install(patch)
        train(EXPERIMENT, folder)


@pytest.mark.parametrize("kilobytes", range(0, 2_600, 200))
def test_a_disk_that_fills_up_at_any_moment_ends_a_run_that_can_be_resumed(
    kilobytes: int, disk: Path, undisturbed: Path
) -> None:
    folder = disk / "run"
    stop_at(2, folder)
    before = whole_checkpoints(folder)
    free = int(subprocess.check_output(["df", "--output=avail", disk]).split()[-1])
    (disk / "other").write_bytes(bytes(1024 * (free - kilobytes)))
    try:
        train(EXPERIMENT, folder, resume=True)
    except UserError as error:
        assert "No space left on device" in str(error)
        assert not (folder / "result.json").exists()
    else:
        assert kilobytes > 800  # there was room for all of it
    if kilobytes < 600:  # of a checkpoint
        assert whole_checkpoints(folder) == before
    (disk / "other").unlink()
    train(EXPERIMENT, folder, resume=True)
    assert_same_outcome(folder, undisturbed)
    assert not [path for path in folder.rglob("*") if ".partial" in path.name]


def test_a_folder_that_cannot_be_written_is_named_and_left_as_it_is(
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


def test_a_disk_that_becomes_read_only_in_training_ends_a_run_that_can_be_resumed(
    disk: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = disk / "run"
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "hold_folder", nullcontext)  # open, it keeps mount from acting
        steps = Steps().install(patch)
        counted = TrainingStep.__call__

        def lock_up(*arguments: object) -> object:
            if steps.count == STEPS + 1:
                assert mount("-o", "remount,ro", disk)
            return counted(*arguments)

        patch.setattr(TrainingStep, "__call__", lock_up)
        with pytest.raises(UserError, match="Read-only file system"):
            train(EXPERIMENT, folder)
    assert mount("-o", "remount,rw", disk)
    train(EXPERIMENT, folder, resume=True)
    assert_same_outcome(folder, undisturbed)


@pytest.mark.parametrize("size", [1_000, 100_000, 300_000])
def test_a_limit_on_the_size_of_files_ends_a_run_that_can_be_resumed(
    size: int, tmp_path: Path, undisturbed: Path
) -> None:
    folder = tmp_path / "run"
    stop_at(2, folder)
    before = whole_checkpoints(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises(UserError, match="File too large"):
            train(EXPERIMENT, folder, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert whole_checkpoints(folder) == before
    train(EXPERIMENT, folder, resume=True)
    assert_same_outcome(folder, undisturbed)
