"""Run folders: which runs may start or continue in them, and the history of a run."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from associative_transformer.data import ImagesConfig, SplitsConfig
from associative_transformer.experiment import Experiment, TrainConfig, save_experiment
from associative_transformer.interface import UserError
from associative_transformer.models.vit import ViTConfig
from associative_transformer.recipes import RECIPES
from associative_transformer.report.facts import read_facts
from associative_transformer.runs.folder import (
    History,
    as_recorded,
    check_folder,
    prepare_folder,
)
from associative_transformer.runs.saved import load_run, load_test_split, read_run
from associative_transformer.training.loop import train
from making.commands import make_images
from making.plant import make_complete_run
from making.tiny import tiny
from making.trained import CPU, EXPERIMENT

RUN = Path("runs/own/0")


def history_of(num_epochs: int) -> History:
    rows = [{"epoch": epoch, "loss": 1 / epoch} for epoch in range(1, num_epochs + 1)]
    memory = [np.full((1, 4, 8), epoch, np.float32) for epoch in range(1, num_epochs + 1)]
    return History(rows, memory)


# --- history ---


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    history = history_of(3)
    history.write(tmp_path)
    read = History.read(tmp_path, 3)
    assert read.metrics == history.metrics
    assert np.array_equal(read.memory, history.memory)
    assert read.memory[0].dtype == np.float32


def test_metrics_have_a_line_and_the_memory_an_entry_for_each_epoch(tmp_path: Path) -> None:
    history_of(3).write(tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]
    with np.load(tmp_path / "memory.npz") as saved:
        assert saved["priors"].shape == (3, 1, 4, 8)  # epochs, layers, priors, width


@pytest.mark.parametrize("name", ["metrics.jsonl", "memory.npz"])
def test_a_history_that_ends_before_the_checkpoint_is_damaged(name: str, tmp_path: Path) -> None:
    history_of(2).write(tmp_path)
    short = (tmp_path / name).read_bytes()
    history_of(3).write(tmp_path)
    assert len(History.read(tmp_path, 3).metrics) == 3
    (tmp_path / name).write_bytes(short)
    assert len(History.read(tmp_path, 2).metrics) == 2
    with pytest.raises(
        UserError, match=rf"damaged \({name}: it ends before epoch 3\).*--overwrite"
    ):
        History.read(tmp_path, 3)


@pytest.mark.parametrize("epochs", [0, 1, 2])
def test_a_history_is_read_up_to_the_epoch_of_the_checkpoint(epochs: int, tmp_path: Path) -> None:
    history_of(3).write(tmp_path)
    read = History.read(tmp_path, epochs)
    assert [row["epoch"] for row in read.metrics] == list(range(1, epochs + 1))
    assert [memory.max() for memory in read.memory] == list(range(1, epochs + 1))


def test_a_run_stopped_in_its_first_epoch_has_an_empty_history(tmp_path: Path) -> None:
    read = History.read(tmp_path, 0)
    assert read.metrics == []
    assert read.memory == []


def test_a_model_without_memory_has_a_history(tmp_path: Path) -> None:
    history = History([{"epoch": 1}, {"epoch": 2}], [np.array([]), np.array([])])
    history.write(tmp_path)
    assert History.read(tmp_path, 1).metrics == [{"epoch": 1}]


# --- which runs may start or continue ---


def test_a_run_starts_in_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    check_folder(tmp_path / "new", EXPERIMENT, resume=False, overwrite=False)
    check_folder(tmp_path / "new", EXPERIMENT, resume=False, overwrite=True)
    assert not (tmp_path / "new").exists()


def test_the_error_for_an_existing_run_names_both_flags_that_accept_it(tmp_path: Path) -> None:
    folder = make_complete_run(tmp_path / "run", EXPERIMENT)
    with pytest.raises(UserError, match=rf"{folder} exists.*--resume.*--overwrite"):
        check_folder(folder, EXPERIMENT, resume=False, overwrite=False)


@pytest.mark.parametrize("names", [[".lock"], [".lock", ".experiment.yaml.partial"]], ids=str)
def test_a_run_killed_before_its_first_file_is_started_again_by_the_same_command(
    names: list[str], tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).touch()
    check_folder(tmp_path, EXPERIMENT, resume=False, overwrite=False)
    prepare_folder(tmp_path, EXPERIMENT, CPU, resume=False)
    assert (tmp_path / "experiment.yaml").exists()
    assert not (tmp_path / ".experiment.yaml.partial").exists()


@pytest.mark.parametrize("at", range(1, 7))
def test_a_run_killed_while_it_replaces_an_older_one_is_started_again_by_the_same_command(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_complete_run(tmp_path / "run", EXPERIMENT)
    for name in ("last", "best"):
        (folder / "checkpoint" / name).mkdir(parents=True)
    (folder / "checkpoint" / "last" / "state.json").touch()
    count, unlink = 0, os.unlink

    def crash(*args: object, **kwargs: object) -> None:
        nonlocal count
        count += 1
        if count == at:
            raise KeyboardInterrupt
        unlink(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "unlink", crash)
        prepare_folder(folder, replace(EXPERIMENT, name="other"), CPU, resume=False)
        pytest.fail(f"only {count} files were removed")
    assert at == 1 or not (folder / "result.json").exists()  # never the result of half a run
    check_folder(folder, EXPERIMENT, resume=False, overwrite=True)
    prepare_folder(folder, EXPERIMENT, CPU, resume=False)
    assert sorted(p.name for p in folder.iterdir()) == ["environment.json", "experiment.yaml"]


def test_a_run_resumed_before_its_first_checkpoint_says_that_it_starts_from_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_folder(tmp_path, EXPERIMENT, CPU, resume=False)
    assert capsys.readouterr().err == ""
    prepare_folder(tmp_path, EXPERIMENT, CPU, resume=True)
    assert f"{tmp_path} has no checkpoint yet" in capsys.readouterr().err
    (tmp_path / "checkpoint" / "previous").mkdir(parents=True)
    prepare_folder(tmp_path, EXPERIMENT, CPU, resume=True)
    assert capsys.readouterr().err == ""


def test_resume_and_overwrite_exclude_each_other(tmp_path: Path) -> None:
    folder = make_complete_run(tmp_path / "run", EXPERIMENT)
    with pytest.raises(UserError, match="--resume and --overwrite"):
        check_folder(folder, EXPERIMENT, resume=True, overwrite=True)


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_without_a_run_cannot_be_resumed(exists: bool, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    if exists:
        folder.mkdir()
    with pytest.raises(UserError, match=rf"no run in {folder} to resume"):
        check_folder(folder, EXPERIMENT, resume=True, overwrite=False)


def test_a_run_is_not_resumed_with_a_different_configuration_and_the_fields_are_named(
    tmp_path: Path,
) -> None:
    folder = make_complete_run(tmp_path / "run", EXPERIMENT)
    other = replace(
        EXPERIMENT,
        model=replace(EXPERIMENT.model, depth=3),
        train=replace(EXPERIMENT.train, lr=0.5, seed=3),
    )
    with pytest.raises(UserError, match="a different configuration") as error:
        check_folder(folder, other, resume=True, overwrite=False)
    assert "model.depth (3 here, 1 there)" in str(error.value)
    assert "train.lr (0.5 here, 0.01 there)" in str(error.value)
    assert "train.seed (3 here, 0 there)" in str(error.value)


def test_a_run_can_be_resumed_with_other_settings_that_do_not_define_it(tmp_path: Path) -> None:
    folder = make_complete_run(tmp_path / "run", EXPERIMENT)
    other = replace(EXPERIMENT, train=replace(EXPERIMENT.train, log_every=1, device="auto"))
    check_folder(folder, other, resume=True, overwrite=False)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_not_a_run_is_neither_used_nor_removed(
    overwrite: bool, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=rf"{tmp_path} is not a run folder, .* another --name"):
        check_folder(tmp_path, EXPERIMENT, resume=False, overwrite=overwrite)
    assert (tmp_path / "thesis.tex").exists()


def test_a_damaged_experiment_is_not_resumed(tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_text("name: [")
    with pytest.raises(UserError, match=r"experiment\.yaml"):
        check_folder(tmp_path, EXPERIMENT, resume=True, overwrite=False)


# --- preparing the folder ---


def test_a_new_run_replaces_the_old_one(tmp_path: Path) -> None:
    folder = make_complete_run(tmp_path / "run", EXPERIMENT)
    prepare_folder(folder, EXPERIMENT, CPU, resume=False)
    assert sorted(p.name for p in folder.iterdir()) == ["environment.json", "experiment.yaml"]


def test_a_resumed_run_keeps_its_files(tmp_path: Path) -> None:
    folder = make_complete_run(tmp_path / "run", EXPERIMENT)
    before = {path.name for path in folder.iterdir()}
    prepare_folder(folder, EXPERIMENT, CPU, resume=True)
    assert {path.name for path in folder.iterdir()} == before


def test_a_run_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(UserError, match=rf"{tmp_path / 'runs' / 'tiny'}: Not a directory"):
        prepare_folder(tmp_path / "runs" / "tiny", EXPERIMENT, CPU, resume=False)


def test_a_link_to_a_run_is_replaced_or_refused_with_a_reason(tmp_path: Path) -> None:
    make_complete_run(tmp_path / "run", EXPERIMENT)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    try:
        prepare_folder(tmp_path / "link", EXPERIMENT, CPU, resume=False)
    except UserError as error:
        assert "None" not in str(error)
    assert (tmp_path / "run").exists()


def test_after_a_full_disk_at_the_start_the_same_command_works_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_up(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fill_up)
        with pytest.raises(UserError, match="No space left"):
            prepare_folder(folder, EXPERIMENT, CPU, resume=False)
    check_folder(folder, EXPERIMENT, resume=False, overwrite=False)
    prepare_folder(folder, EXPERIMENT, CPU, resume=False)


def test_a_saved_experiment_makes_a_folder_a_run(tmp_path: Path) -> None:
    save_experiment(EXPERIMENT, tmp_path / "experiment.yaml")
    check_folder(tmp_path, EXPERIMENT, resume=True, overwrite=False)


# --- validation images ---


def test_a_resumed_run_keeps_the_validation_images_that_it_has_recorded(tmp_path: Path) -> None:
    new = RECIPES["cifar10-ait-tiny"]
    old = replace(new, data=replace(new.data, splits=SplitsConfig(validation="random")))
    path = tmp_path / "experiment.yaml"
    for saved in (new, old):
        save_experiment(saved, path)
        assert as_recorded(new, tmp_path, resume=True) == saved
        assert as_recorded(new, tmp_path, resume=False) == new
    content = yaml.safe_load(path.read_text())
    del content["data"]["splits"]  # as saved by version 0.1
    path.write_text(yaml.safe_dump(content))
    assert as_recorded(new, tmp_path, resume=True) == old
    assert as_recorded(EXPERIMENT, tmp_path, resume=True) == EXPERIMENT  # generated data


# --- where the images are ---


def test_a_relative_source_is_stored_absolute_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_images(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    data = ImagesConfig("cifar10", source="images", image_size=16, num_workers=0)
    model = tiny(ViTConfig, image_size=16, patch_size=8, num_classes=2)
    train(Experiment("own", data, model, TrainConfig(epochs=1, batch_size=8, device="cpu")), RUN)
    monkeypatch.chdir("/")
    folder = tmp_path / RUN
    run = load_run(folder)
    assert run.experiment.data.source == str(tmp_path / "images")
    assert len(load_test_split(run, None, CPU).test) == 10
    local = str(tmp_path).encode()
    holders = [
        path.name for path in folder.rglob("*") if path.is_file() and local in path.read_bytes()
    ]
    assert holders == ["experiment.yaml"]
    assert b"images" in (folder / "experiment.yaml").read_bytes()
    (tmp_path / "images").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=f"no longer in {tmp_path}/images: .* --source"):
        load_test_split(run, None, CPU)
    assert len(load_test_split(run, str(tmp_path / "moved"), CPU).test) == 10


# --- folders that are gone or closed ---


def test_a_run_folder_that_is_removed_while_it_is_trained_is_named(tmp_path: Path) -> None:
    experiment = replace(EXPERIMENT, train=replace(EXPERIMENT.train, checkpoint_every=1))
    for every in (experiment, EXPERIMENT):
        with pytest.raises(UserError, match=rf"{tmp_path}/run") as error:
            train(every, tmp_path / "run", on_epoch_end=shutil.rmtree)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("call", [read_run, load_run, read_facts])
def test_a_folder_without_permission_is_named(
    call: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    folder = make_complete_run(tmp_path / "run", EXPERIMENT)
    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(UserError, match=rf"{folder}.*Permission denied"):
        call(folder)
    with pytest.raises(UserError, match=rf"{folder}.*Permission denied"):
        check_folder(folder, EXPERIMENT, resume=True, overwrite=False)
