"""Checkpoints are restored as they were saved, whatever happens in between."""

import errno
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from associative_transformer.interface import UserError
from associative_transformer.models.ait import AiT, AiTConfig
from associative_transformer.runs import checkpoint
from associative_transformer.runs.checkpoint import (
    load_best,
    restore_checkpoint,
    save_best,
    save_checkpoint,
)
from associative_transformer.workspace_config import WorkspaceConfig
from making.hostile import Malice
from making.trained import Crash

FILES = ("model.safetensors", "optimizer.pt", "state.json")
CONFIG = AiTConfig(
    image_size=8,
    patch_size=4,
    embed_dim=8,
    depth=1,
    num_heads=1,
    head_dim=8,
    num_classes=2,
    workspace=WorkspaceConfig(num_priors=2, prior_dim=4, num_heads=1, bottleneck=4),
)


class Trainee:
    """A model and its optimizer after some steps.

    Only the head is trained, since reading the moments of a parameter takes most of a test's time.
    """

    def __init__(self, num_steps: int = 0) -> None:
        self.model = AiT(CONFIG)
        self.optimizer = torch.optim.AdamW(self.model.head.parameters(), 0.01)
        for _ in range(num_steps):
            self.step()

    def step(self) -> None:
        logits, aux_loss = self.model(torch.randn(4, 3, 8, 8))
        (logits.square().mean() + aux_loss).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def save(self, folder: Path, step: int, **more: object) -> None:
        save_checkpoint(folder, self.model, self.optimizer, {"step": step, **more})

    def restore(self, folder: Path) -> dict[str, Any] | None:
        return restore_checkpoint(folder, self.model, self.optimizer)

    def fingerprint(self) -> str:
        moments = self.optimizer.state_dict()["state"]
        tensors = [*self.model.state_dict().values()]
        tensors += [value for moment in moments.values() for value in moment.values()]
        return hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest()


def save_two_checkpoints(folder: Path) -> dict[int, str]:
    """Save after steps 1 and 2, and return the fingerprint of the trainee after each."""
    trainee, fingerprints = Trainee(), {}
    for step in (1, 2):
        trainee.step()
        trainee.save(folder, step)
        fingerprints[step] = trainee.fingerprint()
    return fingerprints


def restored_step(folder: Path, fingerprints: dict[int, str]) -> int:
    """Restore the checkpoint, check that it is complete, and return its step."""
    trainee = Trainee()
    state = trainee.restore(folder)
    assert state is not None
    assert trainee.fingerprint() == fingerprints[state["step"]]
    return state["step"]


def test_a_checkpoint_restores_every_bit(tmp_path: Path) -> None:
    ours, theirs = Trainee(num_steps=3), Trainee()
    state = {
        "epoch": 3,
        "sums": [0.1 + 0.2, 1e-300, 1 / 3],
        "timing": {"run": 1.5},
        "best_epoch": None,
    }
    save_checkpoint(tmp_path, ours.model, ours.optimizer, state)
    assert theirs.fingerprint() != ours.fingerprint()
    assert theirs.restore(tmp_path) == state
    assert theirs.fingerprint() == ours.fingerprint()
    assert theirs.optimizer.state_dict() != Trainee().optimizer.state_dict()
    torch.manual_seed(7)
    ours.step()
    torch.manual_seed(7)
    theirs.step()  # with the same moments and step count
    assert theirs.fingerprint() == ours.fingerprint()


def test_the_memory_is_part_of_a_checkpoint(tmp_path: Path) -> None:
    trainee = Trainee(num_steps=1)
    trainee.save(tmp_path, 1)
    saved = load_file(tmp_path / "last" / "model.safetensors")
    assert torch.equal(
        saved["blocks.0.workspace.priors"], trainee.model.state_dict()["blocks.0.workspace.priors"]
    )


def test_without_a_checkpoint_nothing_is_restored(tmp_path: Path) -> None:
    trainee = Trainee(num_steps=1)
    before = trainee.fingerprint()
    assert trainee.restore(tmp_path / "checkpoint") is None
    assert trainee.fingerprint() == before
    assert not (tmp_path / "checkpoint").exists()


def test_only_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    trainee = Trainee(num_steps=1)
    for step in range(1, 5):
        trainee.save(tmp_path, step)
        kept = ["last", "previous"] if step > 1 else ["last"]
        assert sorted(path.name for path in tmp_path.iterdir()) == kept
        for name, expected in zip(kept, (step, step - 1), strict=False):
            assert json.loads((tmp_path / name / "state.json").read_text())["step"] == expected
            assert sorted(path.name for path in (tmp_path / name).iterdir()) == sorted(FILES)
    assert trainee.restore(tmp_path) == {"step": 4}


class Crashing:
    """Counts the calls that touch the disk, and crashes before or after the n-th."""

    def __init__(self, at: int, is_done: bool) -> None:
        self.at, self.is_done, self.count = at, is_done, 0

    def wrap(self, act: Callable[..., Any]) -> Callable[..., Any]:
        def crashing(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            self.count += 1
            if self.count != self.at:
                return act(*args, **kwargs)
            if self.is_done:
                act(*args, **kwargs)
            raise Crash

        return crashing


DISK = (
    (Path, "open"),
    (os, "fsync"),
    (Path, "replace"),
    (Path, "rename"),
    (Path, "mkdir"),
    (shutil, "rmtree"),
)


def crashes(trainee: Trainee, folder: Path, crashing: Crashing) -> bool:
    """Save a third checkpoint and return whether saving crashed."""
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in DISK:
            patch.setattr(owner, name, crashing.wrap(getattr(owner, name)))
        try:
            trainee.save(folder, 3)
        except Crash:
            return True
    return False


@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
def test_a_crash_at_any_moment_of_saving_leaves_a_complete_checkpoint(
    is_done: bool, tmp_path: Path
) -> None:
    restored = set()
    for at in range(1, 30):
        folder = tmp_path / str(at)
        fingerprints = save_two_checkpoints(folder)
        trainee = Trainee(num_steps=1)
        if not crashes(trainee, folder, Crashing(at, is_done)):
            break
        fingerprints[3] = trainee.fingerprint()
        restored.add(restored_step(folder, fingerprints))
        trainee.save(folder, 3)  # whatever the crash left behind does not matter
        assert restored_step(folder, fingerprints) == 3
        assert sorted(path.name for path in folder.iterdir()) == ["last", "previous"]
    else:
        pytest.fail("saving touched the disk 30 times")
    assert at > 10
    assert restored == ({2, 3} if is_done else {2})


def test_a_crash_while_the_older_checkpoint_is_removed_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fingerprints = save_two_checkpoints(tmp_path)

    def remove_half(path: Path, ignore_errors: bool = False) -> None:
        if path.name == "previous":
            (path / "model.safetensors").unlink()
            raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", remove_half)
        with pytest.raises(Crash):
            Trainee(num_steps=1).save(tmp_path, 3)
    assert restored_step(tmp_path, fingerprints) == 2


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def empty(content: bytes) -> bytes:
    return b""


def flip_a_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def make_a_list(content: bytes) -> bytes:
    return b"[]"


@pytest.mark.parametrize("damage", [truncate, empty, flip_a_bit, make_a_list])
@pytest.mark.parametrize("name", FILES)
def test_if_the_last_checkpoint_is_damaged_the_previous_one_is_restored(
    name: str,
    damage: Callable[[bytes], bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fingerprints = save_two_checkpoints(tmp_path)
    path = tmp_path / "last" / name
    path.write_bytes(damage(path.read_bytes()))
    assert restored_step(tmp_path, fingerprints) == 1
    assert f"{tmp_path / 'last'} is damaged" in capsys.readouterr().err


def cut(content: bytes, generator: random.Random) -> bytes:
    return content[: generator.randrange(len(content))]


def flip(content: bytes, generator: random.Random) -> bytes:
    index, bit = generator.randrange(len(content)), 1 << generator.randrange(8)
    return content[:index] + bytes([content[index] ^ bit]) + content[index + 1 :]


@pytest.mark.parametrize("damage", [cut, flip])
@pytest.mark.parametrize("name", FILES)
def test_random_damage_is_noticed_and_the_previous_checkpoint_is_restored_and_kept(
    name: str,
    damage: Callable[[bytes, random.Random], bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "checkpoint"
    fingerprints = save_two_checkpoints(folder)
    good = {path.name: path.read_bytes() for path in (folder / "last").iterdir()}
    previous = {path.name: path.read_bytes() for path in (folder / "previous").iterdir()}
    for seed in range(100):
        (folder / "last" / name).write_bytes(damage(good[name], random.Random(seed)))
        assert restored_step(folder, fingerprints) == 1
        err = capsys.readouterr().err
        assert f"{folder / 'last'} is damaged" in err
        assert f"continuing from the previous checkpoint, {folder / 'previous'}" in err
        assert not (folder / "last").exists()
        kept = {path.name: path.read_bytes() for path in (folder / "previous").iterdir()}
        assert kept == previous
        (folder / "damaged").rename(folder / "last")
        (folder / "last" / name).write_bytes(good[name])
    assert restored_step(folder, fingerprints) == 2


@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
def test_a_crash_in_the_first_save_after_a_damaged_checkpoint_keeps_the_good_one(
    is_done: bool, tmp_path: Path
) -> None:
    for at in range(1, 30):
        folder = tmp_path / str(at)
        fingerprints = save_two_checkpoints(folder)
        (folder / "last" / "optimizer.pt").write_bytes(b"")
        trainee = Trainee()
        assert trainee.restore(folder) == {"step": 1}
        if not crashes(trainee, folder, Crashing(at, is_done)):
            break
        fingerprints[3] = trainee.fingerprint()
        assert restored_step(folder, fingerprints) in (1, 3)
    else:
        pytest.fail("saving touched the disk 30 times")
    assert at > 10


@pytest.mark.parametrize("name", FILES)
def test_if_the_last_checkpoint_lacks_a_file_the_previous_one_is_restored(
    name: str, tmp_path: Path
) -> None:
    fingerprints = save_two_checkpoints(tmp_path)
    (tmp_path / "last" / name).unlink()
    assert restored_step(tmp_path, fingerprints) == 1


def test_every_flipped_bit_of_the_state_is_noticed(tmp_path: Path) -> None:
    trainee = Trainee(num_steps=1)
    state = {"epoch": 3, "sums": [12.5, 7.25], "best_epoch": None}
    trainee.save(tmp_path, 1, **state)
    trainee.save(tmp_path, 2, **state)
    path = tmp_path / "last" / "state.json"
    content = path.read_bytes()
    unnoticed = []
    for index in range(0, len(content), 2):
        flipped = bytes([content[index] ^ 1 << index % 7])
        path.write_bytes(content[:index] + flipped + content[index + 1 :])
        if trainee.restore(tmp_path) != {"step": 1, **state}:
            unnoticed.append(content[max(index - 8, 0) : index + 8])
        else:
            (tmp_path / "damaged").rename(tmp_path / "last")
    assert not unnoticed


@pytest.mark.parametrize("has_previous", [False, True])
def test_if_every_checkpoint_is_damaged_the_error_says_how_to_start_again(
    has_previous: bool, tmp_path: Path
) -> None:
    save_two_checkpoints(tmp_path)
    for name in ("last", "previous"):
        (tmp_path / name / "optimizer.pt").write_bytes(b"")
    if not has_previous:
        shutil.rmtree(tmp_path / "previous")
    trainee = Trainee()
    before = trainee.fingerprint()
    with pytest.raises(UserError, match=f"checkpoint in {tmp_path} is damaged.*--overwrite"):
        trainee.restore(tmp_path)
    assert trainee.fingerprint() == before


def test_running_out_of_memory_is_not_taken_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_up(_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    Trainee(num_steps=1).save(tmp_path, 1)
    trainee = Trainee()
    monkeypatch.setattr(trainee.optimizer, "load_state_dict", fill_up)
    with pytest.raises(torch.OutOfMemoryError):
        trainee.restore(tmp_path)


@pytest.mark.parametrize("is_torch", [False, True], ids=["pickle", "torch"])
@pytest.mark.parametrize("has_digest", [False, True], ids=["wrong digest", "right digest"])
def test_a_malicious_optimizer_file_runs_nothing(
    is_torch: bool, has_digest: bool, tmp_path: Path
) -> None:
    Trainee(num_steps=1).save(tmp_path, 1)
    trap = tmp_path / "trap"
    buffer = io.BytesIO()
    if is_torch:
        torch.save({"state": Malice(trap)}, buffer)
    else:
        pickle.dump({"state": Malice(trap)}, buffer, protocol=2)
    (tmp_path / "last" / "optimizer.pt").write_bytes(buffer.getvalue())
    if has_digest:
        sign(tmp_path / "last")
    with pytest.raises(UserError, match="damaged"):
        Trainee().restore(tmp_path)
    assert not trap.exists()
    if is_torch:
        torch.load(tmp_path / "last" / "optimizer.pt", weights_only=False)
        assert trap.exists()  # the trap works


def test_a_long_name_in_the_optimizer_file_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Trainee(num_steps=1).save(tmp_path, 1)
    path = tmp_path / "last" / "optimizer.pt"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content.replace(b"ctorch._utils\n", b"c%b\n" % (b"a" * 30_000)))
    sign(tmp_path / "last")
    start = time.process_time()
    with pytest.raises(UserError, match="damaged"):
        Trainee().restore(tmp_path)
    assert time.process_time() - start < 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "(optimizer.pt is not a saved optimizer state)" in line


def sign(folder: Path) -> None:
    """Make the digests of a checkpoint match its files, as an attacker could."""
    with pytest.MonkeyPatch.context() as patch:
        contents = {name: (folder / name).read_bytes() for name in FILES[:2]}
        state = json.loads((folder / "state.json").read_text())
        state = {key: value for key, value in state.items() if "digest" not in key}
        patch.setattr(checkpoint, "save", lambda _: contents[FILES[0]])
        patch.setattr(torch, "save", lambda _, buffer: buffer.write(contents[FILES[1]]))
        trainee = Trainee()
        save_checkpoint(folder / "signed", trainee.model, trainee.optimizer, state)
    shutil.copytree(folder / "signed" / "last", folder, dirs_exist_ok=True)
    shutil.rmtree(folder / "signed")


@pytest.mark.parametrize("state", [{"step": "two"}, {"step": 2, "later": 1}, {"sums": 3}])
def test_a_state_with_an_unknown_key_or_a_wrong_type_is_damaged(
    state: dict[str, Any], tmp_path: Path
) -> None:
    fingerprints = save_two_checkpoints(tmp_path)
    path = tmp_path / "last" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | state))
    sign(tmp_path / "last")
    assert restored_step(tmp_path, fingerprints) == 1


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_full_disk_leaves_the_earlier_checkpoints(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fingerprints = save_two_checkpoints(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    count, fsync = 0, os.fsync

    def fill_up(file: int) -> None:
        nonlocal count
        count += 1
        if count == at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fill_up)
        with pytest.raises(UserError, match="No space left"):
            Trainee(num_steps=1).save(tmp_path, 3)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert restored_step(tmp_path, fingerprints) == 2


@pytest.mark.parametrize("at", [1, 2])
def test_a_checkpoint_that_cannot_be_renamed_is_reported(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fingerprints = save_two_checkpoints(tmp_path)
    count, rename = 0, Path.rename

    def refuse(path: Path, destination: Path) -> Path:
        nonlocal count
        count += 1
        if count == at:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return rename(path, destination)

    trainee = Trainee(num_steps=1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        with pytest.raises(UserError, match=f"cannot replace {tmp_path / 'last'}: Read-only"):
            trainee.save(tmp_path, 3)
    assert restored_step(tmp_path, fingerprints) == 2
    trainee.save(tmp_path, 3)
    assert trainee.restore(tmp_path) == {"step": 3}


def test_a_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"cannot create the folder {tmp_path / 'file'}"):
        Trainee(num_steps=1).save(tmp_path / "file", 1)
    with pytest.raises(UserError, match=f"cannot create the folder {tmp_path / 'file'}"):
        save_best(tmp_path / "file", AiT(CONFIG))


def test_the_best_weights_can_be_loaded_after_later_checkpoints(tmp_path: Path) -> None:
    trainee = Trainee(num_steps=1)
    best = {name: tensor.clone() for name, tensor in trainee.model.state_dict().items()}
    digest = save_best(tmp_path, trainee.model)
    for step in range(3):
        trainee.step()
        trainee.save(tmp_path, step)
    assert not torch.equal(trainee.model.head[2].weight, best["head.2.weight"])
    load_best(tmp_path, trainee.model, digest)
    loaded = trainee.model.state_dict()
    assert all(torch.equal(loaded[name], best[name]) for name in best)


def test_best_weights_with_another_digest_are_refused(tmp_path: Path) -> None:
    model = AiT(CONFIG)
    digest = save_best(tmp_path, model)
    save_best(tmp_path, AiT(CONFIG))
    with pytest.raises(UserError, match="is damaged"):
        load_best(tmp_path, model, digest)
