"""`ait train`: what it writes, prints and refuses."""

import errno
import json
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from associative_transformer.cli.options import choose_device
from associative_transformer.experiment import Experiment, list_fields
from associative_transformer.interface import UserError
from associative_transformer.recipes import RECIPES
from associative_transformer.runs.defaults import with_fields
from associative_transformer.runs.result import RunResult
from associative_transformer.scores import wilson_interval
from associative_transformer.training import launch
from making.commands import (
    IMAGES,
    QUESTIONS,
    TRIANGLE,
    Ait,
    assert_refused,
    make_images,
    scores_of_kinds,
)
from making.plant import put_result, put_run, result_of

TRAIN = "associative_transformer.training.loop.train"


# --- train ---


@pytest.mark.parametrize("arguments", [[], ["--help"]], ids=str)
def test_without_a_recipe_all_recipes_are_listed(arguments: list[str], ait: Ait) -> None:
    done = ait("train", *arguments)
    assert done.code == 0
    assert set(done.out.split()) >= set(RECIPES)


def test_training_prints_the_accuracy_the_folder_and_the_next_commands(ait: Ait) -> None:
    done = ait("train", *TRIANGLE)
    assert done.code == 0
    (folder,) = Path("runs").glob("triangle-ait-tiny+*/0")
    result = json.loads((folder / "result.json").read_text())
    score = f"test accuracy {result['test_accuracy']:.2f} % of 20 images, saved model (last epoch)"
    assert score in done.out
    assert f"run folder    {folder}" in done.out
    assert f"ait eval {folder}" in done.out
    assert "epoch 2/2" in done.err


def test_training_prints_the_accuracy_of_the_saved_model_before_that_of_the_last_epoch(
    ait: Ait,
) -> None:
    done = ait("train", *TRIANGLE, "--data.val-fraction", "0.5")
    (folder,) = Path("runs").glob("triangle-ait-tiny+*/0")
    result = json.loads((folder / "result.json").read_text())
    best, last = result["best_validation"], result["test_accuracy"]
    saved, epoch = best["test_accuracy"], best["epoch"]
    low, high = wilson_interval(saved / 100, 20)
    assert done.out.splitlines()[:3] == [
        f"test accuracy {saved:.2f} % of 20 images, saved model (epoch {epoch}, the best)",
        f"95 % interval {low:.2f} to {high:.2f} %",
        f"last epoch    {last:.2f} % of the same",
    ]


@pytest.mark.parametrize(
    ("flags", "types"),
    [
        ("", "non-relational and binary questions together"),
        ("--data.question-types binary", "binary questions"),
    ],
)
def test_training_on_questions_prints_their_types_and_the_score_of_each_kind(
    flags: str, types: str, ait: Ait
) -> None:
    done = ait("train", *QUESTIONS, *flags.split(), "--name", "mine")
    assert done.code == 0
    assert f"trained on    {types}\n" in done.out
    result = json.loads(Path("runs/mine/0/result.json").read_text())
    lines, scores = scores_of_kinds(done.out), result["test_kinds"]
    assert list(lines) == [kind["name"] for kind in scores]
    for kind in scores:
        assert f"{kind['accuracy']:.2f} %" in lines[kind["name"]]
        assert f"{kind['guess']:.2f} %" in lines[kind["name"]]
    total = f"{result['test_accuracy']:.2f} % of {result['test_questions']} questions about 6"
    assert f"test accuracy {total} images" in done.out


@pytest.mark.parametrize("flags", ["", "--data.question-types binary"])
def test_the_next_commands_can_be_copied_and_run(
    flags: str, ait: Ait, trained: Path, tmp_path: Path
) -> None:
    done = ait("train", *QUESTIONS, *flags.split())
    lines = done.out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("next "))
    for line in lines[start:]:
        command = shlex.split(line.removeprefix("next"))
        images = trained / "images" / "test" / "red"
        words = [str(images) if word == "PATH/TO/IMAGES" else word for word in command[1:]]
        assert ait(*words).code == 0, line
    assert len(lines[start:]) == 2


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Experiment, Path, dict[str, Any]]]:
    """Return the arguments of each call of `train`, which is replaced and does not train."""
    calls: list[tuple[Experiment, Path, dict[str, Any]]] = []

    def record(experiment: Experiment, folder: Path, **options: object) -> RunResult:
        calls.append((experiment, folder, options))
        folder.mkdir(parents=True, exist_ok=True)
        return put_result(folder, result_of(experiment))

    monkeypatch.setattr(TRAIN, record)
    return calls


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        ("", "auto"),
        ("--train.compile on", "on"),
        ("--train.compile off", "off"),
        ("--train.compile", "on"),  # this and the next two: flags of version 0.1
        ("--train.compile --train.seed 3", "on"),
        ("--train.no-compile", "off"),
    ],
)
def test_compilation_is_a_setting_that_can_also_be_passed_as_a_flag(
    words: str, setting: str, ait: Ait, started: list[Any]
) -> None:
    assert ait("train", "triangle-ait-tiny", *words.split()).code == 0
    assert started[0][0].train.compile == setting


def test_a_run_folder_is_named_by_recipe_seed_and_fingerprint_of_overrides(
    ait: Ait, started: list[tuple[Experiment, Path, dict[str, Any]]]
) -> None:
    recipe = "cifar10-vit-small"
    for flags in (
        "",
        "--train.seed 3 --train.device cpu --data.source x --train.log-every 1",
        "--train.lr 3e-4",
        "--train.lr 0.0003 --train.seed 1 --runs elsewhere",
        "--train.lr 3e-4 --model.head cls",
        "--train.lr 3e-4 --name mine",
    ):
        assert ait("train", recipe, *flags.split()).code == 0
    folders = [folder for _, folder, _ in started]
    assert folders[0] == Path("runs", recipe, "0")
    assert folders[1] == Path("runs", recipe, "3")
    assert re.fullmatch(rf"runs/{recipe}\+[0-9a-f]{{8}}/0", str(folders[2]))
    assert folders[3] == Path("elsewhere", folders[2].parent.name, "1")
    assert folders[4].parent != folders[2].parent
    assert folders[5] == Path("runs", "mine", "0")
    for experiment, folder, _ in started:
        assert experiment.name == folder.parent.name
    assert started[0][0] == RECIPES[recipe]
    assert started[4][0].model.head == "cls"
    assert started[4][0].train.lr == 3e-4


@pytest.mark.parametrize(
    ("flags", "dropout"),
    [
        ("--resume", 0.0),
        ("--resume --model.workspace.dropout 0.1", 0.1),
        ("--resume --model.workspace.dropout=0.1", 0.1),
        ("--overwrite", 0.1),
    ],
)
def test_only_a_resumed_run_keeps_an_old_default_and_only_if_no_option_sets_it(
    flags: str,
    dropout: float,
    ait: Ait,
    started: list[tuple[Experiment, Path, dict[str, Any]]],
) -> None:
    name = "triangle-ait-tiny"
    put_run(Path("runs"), with_fields(RECIPES[name], {"model.workspace.dropout": 0.0}))
    done = ait("train", name, *flags.split())
    assert done.code == 0
    assert ("keeps model.workspace.dropout 0.0" in done.err) == (dropout == 0)
    experiment, folder, _ = started[0]
    assert list_fields(experiment)["model.workspace.dropout"] == dropout
    assert folder == Path("runs", name, "0")


@pytest.mark.thorough
def test_every_recipe_can_be_started_and_flags_may_have_underscores(
    ait: Ait, started: list[tuple[Experiment, Path, dict[str, Any]]]
) -> None:
    for name in RECIPES:
        assert ait("train", name, "--train.batch_size", 8, "--resume").code == 0
    assert [experiment.train.batch_size for experiment, _, _ in started] == [8] * len(RECIPES)
    expected = {"resume": True, "overwrite": False, "on_epoch_end": None}
    assert all(options == expected for _, _, options in started)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--model.depht 3", ["--model.depht", "--model.depth"]),
        ("--train.learning-rate 1", ["--train.learning-rate"]),
        ("--train.epochs two", ["--train.epochs", "two"]),
        ("--train.epochs 0", ["epochs", "at least 1", "0"]),
        ("--train.lr -1", ["lr", "positive", "-1"]),
        ("--train.precision float16", ["--train.precision", "float16", "bfloat16"]),
        ("--train.seed -1", ["seed", "-1"]),
        (f"--train.seed {2**64}", ["seed", str(2**64)]),
        ("--train.accumulation-steps 3", ["16", "3", "--train.accumulation-steps"]),
        ("--train.schedule.warmup-epochs -1", ["--train.schedule.warmup-epochs", "-1"]),
        ("--model.depth -1", ["depth", "at least 1", "-1"]),
        ("--model.patch-size 30", ["30", "64", "divide"]),
        ("--model.workspace.bottleneck 0", ["bottleneck", "at least 1", "0"]),
        ("--model.num-channels 2", ["1 channels", "2 of"]),
        ("--model.image-size 32", ["64x64", "32x32"]),
        ("--model.num-classes 3", ["2 classes", "3", "--model.num-classes 2"]),
        ("--model.question-dim 4", ["--model.question-dim"]),
        ("--data.num-train 0", ["--data.num-train", "0"]),
        ("--data.val-fraction 1.5", ["--data.val-fraction", "1.5"]),
        ("--data.source x", ["--data.source"]),
        ("--train.batch-size 128", ["64 images", "128"]),
        ("--name a/b", ["a/b", "folder name"]),
        ("--resume", ["no run in", "remove --resume"]),
        ("--resume --overwrite", ["--resume and --overwrite"]),
        ("--train.device quantum", ["--train.device", "quantum"]),
        ("surplus", ["surplus"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_value_is_refused_before_anything_is_written(
    flags: str, words: list[str], ait: Ait, tmp_path: Path
) -> None:
    assert_refused(ait("train", *TRIANGLE, *flags.split()), *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--model.question-dim 0", ["--model.question-dim is 0", "18"]),
        ("--model.image-size 70 --model.patch-size 14", ["75x75", "70x70"]),
        ("--data.question-types", ["--data.question-types", "got ()"]),
        ("--data.question-types unary", ["unary", "non-relational", "binary", "ternary"]),
        ("--data.question-types binary binary", ["--data.question-types", "binary"]),
        ("--data.num-questions 0", ["--data.num-questions", "0"]),
        ("--data.val-fraction 0.01", ["0.01 x 16 images", "--data.val-fraction"]),
        ("--train.batch-size 200", ["128 questions", "200"]),
        ("--data.seed -1", ["seed", "-1"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_value_for_questions_is_refused_before_anything_is_written(
    flags: str, words: list[str], ait: Ait, tmp_path: Path
) -> None:
    assert_refused(ait("train", *QUESTIONS, *flags.split()), *words)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_recipe_is_refused_with_the_three_closest_names(ait: Ait) -> None:
    done = ait("train", "cifar10-ait-smal")
    assert_refused(done, "no recipe 'cifar10-ait-smal'", "`ait list` shows all recipes")
    suggested = done.err.partition("closest first: ")[2].partition(";")[0].split(", ")
    assert len(set(suggested)) == len(suggested) == 3
    assert set(suggested) <= set(RECIPES)
    assert suggested[:2] == ["cifar10-ait-small", "cifar100-ait-small"]


def test_an_existing_folder_is_refused_unless_resumed_or_overwritten(ait: Ait, runs: Path) -> None:
    command = ["train", *TRIANGLE, "--name", "triangle", "--runs", runs]
    assert_refused(ait(*command), runs / "triangle" / "0", "--resume", "--overwrite")
    assert ait(*command, "--resume").code == 0  # it is complete
    assert ait(*command, "--overwrite").code == 0


def test_overwrite_refuses_a_folder_that_is_not_a_run(ait: Ait, tmp_path: Path) -> None:
    thesis = tmp_path / "runs" / "mine" / "0" / "thesis.tex"
    thesis.parent.mkdir(parents=True)
    thesis.touch()
    done = ait("train", *TRIANGLE, "--name", "mine", "--overwrite")
    assert_refused(done, "runs/mine/0 is not a run folder", "--name")
    assert thesis.exists()


def test_resuming_with_a_different_configuration_is_refused_with_the_changed_fields(
    ait: Ait, runs: Path
) -> None:
    changes = ["--train.lr", 0.125, "--model.workspace.beta", 2.0]
    done = ait("train", *TRIANGLE, *changes, "--resume", "--name", "triangle", "--runs", runs)
    assert_refused(done, "train.lr (0.125 here, 0.001 there)", "model.workspace.beta", "--name")


def test_a_runs_folder_that_is_a_file_is_refused(ait: Ait, tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    assert_refused(ait("train", *TRIANGLE), "cannot create the folder runs/triangle-ait-tiny")


def test_a_tracker_that_is_not_installed_is_refused(
    ait: Ait, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "get_available_trackers", list)
    done = ait("train", *TRIANGLE, "--train.tracker", "mlflow")
    assert_refused(done, "mlflow is not installed", "pip install mlflow")
    assert list(tmp_path.iterdir()) == []


def test_after_a_full_disk_the_same_command_works_when_there_is_space_again(
    ait: Ait, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_up(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fill_up)
        assert_refused(ait("train", *TRIANGLE), "No space left on device")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert ait("train", *TRIANGLE).code == 0


# --- data sources ---


def nothing(root: Path) -> list[str]:
    return [f"{root} does not exist", "--data.source"]


def a_file(root: Path) -> list[str]:
    root.touch()
    return [f"{root} is a file"]


def an_empty_folder(root: Path) -> list[str]:
    root.mkdir()
    return [f"{root} has no data", "parquet", "train/CLASS/"]


def one_class(root: Path) -> list[str]:
    make_images(root, ("red",), ("red",))
    return [f"{root} has only one class, red"]


def an_unseen_class(root: Path) -> list[str]:
    make_images(root, ("red", "blue"), ("red", "green"))
    return [f"test split of {root}", "add training images of green, or remove that class"]


def no_training_images(root: Path) -> list[str]:
    make_images(root, (), ("red", "blue"))
    return [f"{root} has no training split"]


def three_classes(root: Path) -> list[str]:
    make_images(root, ("red", "blue", "green"), ("red",))
    return ["3 classes", "--model.num-classes 3"]


def a_broken_image(root: Path) -> list[str]:
    (make_images(root) / "train" / "red" / "3.png").write_bytes(b"no image")
    return [str(root / "train" / "red" / "3.png"), "--data.on-error skip"]


@pytest.mark.parametrize(
    "make",
    [
        nothing,
        a_file,
        an_empty_folder,
        one_class,
        an_unseen_class,
        no_training_images,
        three_classes,
        a_broken_image,
    ],
)
def test_a_source_that_cannot_be_used_is_refused(
    make: Callable[[Path], list[str]], ait: Ait, tmp_path: Path
) -> None:
    words = make(tmp_path / "images")
    done = ait("train", *IMAGES, "--data.source", tmp_path / "images")
    assert_refused(done, *words)
    assert not (tmp_path / "runs").exists()


def test_a_broken_image_can_be_skipped_and_is_counted(ait: Ait, tmp_path: Path) -> None:
    a_broken_image(tmp_path / "images")
    flags = ["--data.source", tmp_path / "images", "--data.on_error", "skip"]
    assert ait("train", *IMAGES, *flags).code == 0
    (result,) = tmp_path.glob("runs/*/0/result.json")
    assert json.loads(result.read_text())["skipped_images"] == 1


def test_without_the_hub_the_message_explains_how_to_use_local_files(
    ait: Ait, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("Network is unreachable")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    done = ait("train", "cifar10-ait-tiny")
    assert_refused(done, "uoft-cs/cifar10", "Network is unreachable", "*.parquet")
    assert "--data.source FOLDER" in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("device", ["meta", "cuda:x", "hpu", "privateuseone", "lazy", "gpu", ""])
def test_a_device_that_cannot_compute_is_refused_by_name(device: str, ait: Ait) -> None:
    with pytest.raises(UserError, match=f"no device '{device}' .* pass --device auto"):
        choose_device(device)
    done = ait("train", *TRIANGLE, f"--train.device={device}")
    assert_refused(done, "--train.device", *[device] * bool(device), "auto", "cpu", "cuda")
    assert not Path("runs").exists()


def test_training_takes_the_device_cuda_and_says_if_there_is_no_gpu(
    ait: Ait, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = ait("train", *TRIANGLE, "--train.device", "cuda")
    assert_refused(done, "--train.device cuda", "no GPU", "--train.device auto")
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--train.clip-norm inf", ["--train.clip-norm", "inf", "finite"]),
        ("--train.schedule.warmup-epochs 100000000000", ["warmup-epochs", "at most 1,000,000"]),
        ("--train.schedule.min-lr 1", ["min-lr", "at most lr", "1.0"]),
        ("--train.lr 1e-7", ["min-lr", "1e-07", "1e-06"]),
        ("--train.epochs 100000000000", ["epochs", "at most 1,000,000"]),
        ("--model.mlp-ratio 0.001", ["mlp-ratio 0.001", "0 wide", "embed-dim"]),
        ("--model.workspace.beta 1e38", ["beta", "at most 1e+06", "1e+38"]),
        ("--model.depth 1000000000", ["--model.depth 1,000,000,000", "GiB"]),
        ("--data.num-train 10000000000", ["--data.num-train 10,000,000,000", "GiB"]),
    ],
)
def test_a_meaningless_value_is_refused_before_anything_is_written(
    flags: str, words: list[str], ait: Ait
) -> None:
    assert_refused(ait("train", *TRIANGLE, *flags.split()), *words)
    assert not Path("runs").exists()
