"""The command line: what it does, and what it says where something is wrong."""

import csv
import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from associative_transformer import __version__, distributed
from associative_transformer.cli import COMMANDS, main
from associative_transformer.data import SortOfClevrConfig, load_test
from associative_transformer.data.questions import (
    CLASS_NAMES,
    KINDS,
    TYPES,
    answer_words,
    decode,
    describe_questions,
)
from associative_transformer.data.sort_of_clevr import TEST, draw_pictures, generate_items
from associative_transformer.experiment import Experiment, load_experiment
from associative_transformer.recipes import PUBLISHED, RECIPES
from associative_transformer.runs.saved import load_run
from associative_transformer.training import step
from associative_transformer.training.signals import Interrupted
from making.commands import IMAGES, MODEL, TRIANGLE, Ait, assert_refused

OF_PICTURES = (
    "--data.num-train 16 --data.num-test 6 --data.num-questions 4 --train.batch-size 16 "
    "--train.epochs 1"
)
QUESTIONS = f"sort-of-clevr-ait-tiny {OF_PICTURES} --model.patch-size 25 {MODEL}".split()
TERNARY = (
    f"sort-of-clevr-cnn-mlp-tiny {OF_PICTURES} --data.question-types ternary "
    "--model.conv-dim 4 --model.hidden-dim 8 --train.device cpu"
).split()
TRAIN = "associative_transformer.cli.train.train"


def make_images(
    root: Path, train: tuple[str, ...] = ("blue", "red"), test: tuple[str, ...] = ("blue", "red")
) -> Path:
    """Write images under SPLIT/CLASS whose color is that of their class."""
    colors = {"blue": 2, "red": 0, "green": 1}
    noise = np.random.default_rng(0)
    for split, classes, count in (("train", train, 12), ("test", test, 5)):
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = noise.integers(0, 60, size=(16, 16, 3), dtype=np.uint8)
                pixels[..., colors[name]] += 150
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `images` and the complete runs `triangle/0`, `colors/0` and `asked/0`."""
    root = tmp_path_factory.mktemp("trained")
    images = make_images(root / "images")
    with pytest.MonkeyPatch.context() as patch:
        for name, recipe in (
            ("triangle", TRIANGLE),
            ("colors", [*IMAGES, "--data.source", str(images)]),
            ("asked", QUESTIONS),
        ):
            arguments = ["ait", "train", *recipe, "--name", name, "--runs", str(root)]
            patch.setattr(sys, "argv", arguments)
            assert main() == 0
    return root


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """A copy of `trained` to write into."""
    return shutil.copytree(trained, tmp_path / "trained")


# --- before any work ---


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train"], []], ids=str)
def test_help_does_not_wait_for_torch(arguments: list[str]) -> None:
    heavy = ("torch", "numpy", "datasets", "accelerate", "tyro")
    expected = () if arguments == ["train"] else heavy  # listing the recipes needs all of them
    out = run_python(
        "import sys\n"
        f"sys.argv = ['ait', *{arguments}]\n"
        "from associative_transformer.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"assert not [name for name in {expected} if name in sys.modules]"
    )
    if arguments == ["--help"]:
        _, below = out.split("commands:\n")
        lines = [line.split(maxsplit=1) for line in below.splitlines() if line.startswith("  ")]
        assert lines == [list(command) for command in COMMANDS.items()]
    if arguments == ["--version"]:
        assert out.strip() == __version__
    if arguments == ["train"]:
        assert set(out.split()) >= set(RECIPES)


def test_the_commands_stand_in_the_order_in_which_one_needs_them() -> None:
    in_order = ["list", "train", "eval", "predict", "bench", "show", "run-table", "table"]
    assert [name for name in COMMANDS if name in in_order] == in_order


def test_importing_the_package_does_not_wait_for_torch() -> None:
    out = run_python("import sys, associative_transformer; print('torch' in sys.modules)")
    assert out.strip() == "False"


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "associative_transformer", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == __version__


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, ait: Ait) -> None:
    said = ait(command, "--help")
    assert said.code == 0
    assert said.out


def test_the_help_of_a_recipe_names_its_fields_with_their_meaning(ait: Ait) -> None:
    said = ait("train", "triangle-ait-tiny", "--help")
    assert said.code == 0
    for words in ("--train.lr", "--model.workspace.bottleneck", "--data.num-train", "--resume"):
        assert words in said.out
    assert "Training images." in said.out


def test_a_misspelt_command_is_refused_with_all_commands(ait: Ait) -> None:
    assert_refused(ait("tarin"), "tarin", *COMMANDS)
    assert_refused(ait(), "COMMAND")


# --- list ---


def test_the_list_shows_every_recipe_with_size_and_published_accuracy(ait: Ait) -> None:
    said = ait("list")
    assert said.code == 0
    rows = {line.split()[1]: line for line in said.out.splitlines() if line.startswith("│")}
    assert list(rows) == list(RECIPES)
    for words in ("cifar10 ", "ait, 2 layers of 768", " 100 ", "15,673,322", "83.34 %"):
        assert words in rows["cifar10-ait-small"]
    for name, row in rows.items():
        assert ("%" in row) == (name in PUBLISHED)
    assert_refused(ait("list", "--all"), "--all")


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["cifar10-", "luna"], ["cifar10-luna-base", "cifar10-luna-small", "cifar10-luna-lra"]),
        (["luna-b", "cifar10"], ["cifar10-luna-base", "cifar100-luna-base"]),
        (
            ["set-transformer-p"],
            ["triangle-set-transformer-p32", "sort-of-clevr-set-transformer-p5"],
        ),
        (["perceiver-source"], ["cifar10-perceiver-source"]),
    ],
)
def test_the_list_can_be_cut_down_to_names_with_all_of_some_words(
    words: list[str], names: list[str], ait: Ait
) -> None:
    said = ait("list", *words)
    assert said.code == 0
    rows = [line.split()[1] for line in said.out.splitlines() if line.startswith("│")]
    assert rows == names


def test_a_list_without_any_recipe_is_refused(ait: Ait) -> None:
    assert_refused(ait("list", "luna", "coordination"), "no recipe", "luna and coordination")


def test_the_list_names_the_set_of_images_and_a_model_without_layers_by_its_kind(ait: Ait) -> None:
    said = ait("list", "0-brims-source")
    (row,) = [line for line in said.out.splitlines() if line.startswith("│")]
    assert row.split("│")[2].strip() == "cifar10"
    said = ait("list", "clevr-cnn-mlp-tiny")
    (row,) = [line for line in said.out.splitlines() if line.startswith("│")]
    cells = [cell.strip() for cell in row.split("│")[1:-1]]
    name = "sort-of-clevr-cnn-mlp-tiny"
    assert cells == [name, "sort-of-clevr", "conv-mlp", "6", "243,314", "-"]


# --- train ---


def test_training_says_the_accuracy_the_folder_and_what_comes_next(ait: Ait) -> None:
    said = ait("train", *TRIANGLE)
    assert said.code == 0
    (folder,) = Path("runs").glob("triangle-ait-tiny+*/0")
    result = json.loads((folder / "result.json").read_text())
    assert f"test accuracy {result['test_accuracy']:.2f} % of 20 images" in said.out
    assert f"run folder    {folder}" in said.out
    assert f"ait eval {folder}" in said.out
    assert "epoch 2/2" in said.err


def kinds_in(text: str) -> dict[str, str]:
    """Take the lines that give the score of a kind of questions, by its name."""
    names = {kind.type for kind in KINDS} | {kind.name for kind in KINDS} | {"all"}
    lines = [line for line in text.splitlines() if line.split()[-1:] and line.split()[-1] in names]
    return {line.split()[-1]: line for line in lines}


@pytest.mark.parametrize(
    ("flags", "types"),
    [
        ("", "non-relational and binary questions together"),
        ("--data.question-types binary", "binary questions"),
    ],
)
def test_training_on_questions_says_on_which_and_how_each_kind_is_answered(
    flags: str, types: str, ait: Ait
) -> None:
    said = ait("train", *QUESTIONS, *flags.split(), "--name", "mine")
    assert said.code == 0
    assert f"trained on    {types}\n" in said.out
    result = json.loads(Path("runs/mine/0/result.json").read_text())
    lines, scores = kinds_in(said.out), result["test_kinds"]
    assert list(lines) == [kind["name"] for kind in scores]
    for kind in scores:
        assert f"{kind['accuracy']:.2f} %" in lines[kind["name"]]
        assert f"{kind['guess']:.2f} %" in lines[kind["name"]]
    total = f"{result['test_accuracy']:.2f} % of {result['test_questions']} questions about 6"
    assert f"test accuracy {total} images" in said.out


@pytest.mark.parametrize("flags", ["", "--data.question-types binary"])
def test_the_commands_that_come_next_can_be_copied(
    flags: str, ait: Ait, trained: Path, tmp_path: Path
) -> None:
    said = ait("train", *QUESTIONS, *flags.split())
    lines = said.out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("next "))
    for line in lines[start:]:
        command = shlex.split(line.removeprefix("next"))
        images = trained / "images" / "test" / "red"
        words = [str(images) if word == "PATH/TO/IMAGES" else word for word in command[1:]]
        assert ait(*words).code == 0, line
    assert len(lines[start:]) == 2


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Experiment, Path, dict[str, Any]]]:
    """What would be trained, without training it."""
    calls: list[tuple[Experiment, Path, dict[str, Any]]] = []

    def note(experiment: Experiment, folder: Path, **options: object) -> dict[str, Any]:
        calls.append((experiment, folder, options))
        return {"test_accuracy": 50.0, "test_images": 20}

    monkeypatch.setattr(TRAIN, note)
    return calls


def test_a_recipe_goes_to_its_name_and_seed_and_one_with_overrides_to_name_and_hash(
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


def test_every_recipe_can_be_started_and_flags_may_have_underscores(
    ait: Ait, started: list[tuple[Experiment, Path, dict[str, Any]]]
) -> None:
    for name in RECIPES:
        assert ait("train", name, "--train.batch_size", 8, "--resume").code == 0
    assert [experiment.train.batch_size for experiment, _, _ in started] == [8] * len(RECIPES)
    wanted = {"resume": True, "overwrite": False, "on_epoch_end": None}
    assert all(options == wanted for _, _, options in started)


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
        ("--train.accumulation-steps 3", ["16", "3", "accumulation_steps"]),
        ("--train.schedule.warmup-epochs -1", ["warmup_epochs", "-1"]),
        ("--model.depth -1", ["depth", "at least 1", "-1"]),
        ("--model.patch-size 30", ["30", "64", "divide"]),
        ("--model.workspace.bottleneck 0", ["bottleneck", "at least 1", "0"]),
        ("--model.num-channels 2", ["1 channels", "2 of"]),
        ("--model.image-size 32", ["64x64", "32x32"]),
        ("--model.num-classes 3", ["2 classes", "3", "--model.num-classes 2"]),
        ("--model.question-dim 4", ["question_dim"]),
        ("--data.num-train 0", ["num_train", "0"]),
        ("--data.val-fraction 1.5", ["val_fraction", "1.5"]),
        ("--data.source x", ["--data.source"]),
        ("--train.batch-size 128", ["64 images", "128"]),
        ("--name a/b", ["a/b", "folder name"]),
        ("--resume", ["no run in", "leave --resume out"]),
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
        ("--model.question-dim 0", ["question_dim is 0", "18"]),
        ("--model.image-size 70 --model.patch-size 14", ["75x75", "70x70"]),
        ("--data.question-types", ["question_types", "got ()"]),
        ("--data.question-types unary", ["unary", "non-relational", "binary", "ternary"]),
        ("--data.question-types binary binary", ["question_types", "binary"]),
        ("--data.num-questions 0", ["num_questions", "0"]),
        ("--data.val-fraction 0.01", ["0.01 x 16 images", "--data.val_fraction"]),
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


def test_a_misspelt_recipe_is_refused_with_ten_like_it_closest_first(ait: Ait) -> None:
    said = ait("train", "cifar10-ait-smal")
    assert_refused(said, "no recipe 'cifar10-ait-smal'", "ait list shows all of them")
    told = said.err.partition("closest first: ")[2].partition(";")[0].split(", ")
    assert len(set(told)) == 10
    assert set(told) <= set(RECIPES)
    assert told[:2] == ["cifar10-ait-small", "cifar100-ait-small"]


def test_a_folder_that_exists_is_refused_with_both_ways_out(ait: Ait, runs: Path) -> None:
    command = ["train", *TRIANGLE, "--name", "triangle", "--runs", runs]
    assert_refused(ait(*command), runs / "triangle" / "0", "--resume", "--overwrite")
    assert ait(*command, "--resume").code == 0  # it is complete
    assert ait(*command, "--overwrite").code == 0


def test_overwrite_leaves_a_folder_alone_that_is_no_run(ait: Ait, tmp_path: Path) -> None:
    thesis = tmp_path / "runs" / "mine" / "0" / "thesis.tex"
    thesis.parent.mkdir(parents=True)
    thesis.touch()
    said = ait("train", *TRIANGLE, "--name", "mine", "--overwrite")
    assert_refused(said, "runs/mine/0 is no run folder")
    assert thesis.exists()


def test_the_checkpoint_of_another_configuration_is_refused_with_the_fields(
    ait: Ait, runs: Path
) -> None:
    changes = ["--train.lr", 0.125, "--model.workspace.beta", 2.0]
    said = ait("train", *TRIANGLE, *changes, "--resume", "--name", "triangle", "--runs", runs)
    assert_refused(said, "train.lr (0.125 here, 0.001 there)", "model.workspace.beta", "--name")


def test_runs_in_the_place_of_a_file_are_refused(ait: Ait, tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    assert_refused(ait("train", *TRIANGLE), "can't make the run folder", "runs/triangle-ait-tiny")


def test_a_tracker_that_is_not_installed_is_refused(
    ait: Ait, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "get_available_trackers", list)
    said = ait("train", *TRIANGLE, "--train.tracker", "mlflow")
    assert_refused(said, "mlflow is not installed", "pip install mlflow")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_named_and_the_same_command_works_once_there_is_space(
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
    return [f"{root} is empty", "parquet", "train/CLASS/"]


def one_class(root: Path) -> list[str]:
    make_images(root, ("red",), ("red",))
    return [f"{root} has one class, red"]


def an_unseen_class(root: Path) -> list[str]:
    make_images(root, ("red", "blue"), ("red", "green"))
    return [f"the test split of {root}", "training never sees", "green"]


def no_test_images(root: Path) -> list[str]:
    make_images(root, ("red", "blue"), ())
    return [f"{root} has no test split"]


def three_classes(root: Path) -> list[str]:
    make_images(root, ("red", "blue", "green"), ("red",))
    return ["3 classes", "--model.num-classes 3"]


def a_broken_image(root: Path) -> list[str]:
    (make_images(root) / "train" / "red" / "3.png").write_bytes(b"no image")
    return [str(root / "train" / "red" / "3.png"), "--data.on_error skip"]


@pytest.mark.parametrize(
    "make",
    [
        nothing,
        a_file,
        an_empty_folder,
        one_class,
        an_unseen_class,
        no_test_images,
        three_classes,
        a_broken_image,
    ],
)
def test_a_source_that_cannot_be_used_is_refused(
    make: Callable[[Path], list[str]], ait: Ait, tmp_path: Path
) -> None:
    words = make(tmp_path / "images")
    said = ait("train", *IMAGES, "--data.source", tmp_path / "images")
    assert_refused(said, *words)
    assert not (tmp_path / "runs").exists()


def test_a_broken_image_can_be_skipped_and_is_counted(ait: Ait, tmp_path: Path) -> None:
    a_broken_image(tmp_path / "images")
    flags = ["--data.source", tmp_path / "images", "--data.on_error", "skip"]
    assert ait("train", *IMAGES, *flags).code == 0
    (result,) = tmp_path.glob("runs/*/0/result.json")
    assert json.loads(result.read_text())["skipped_images"] == 1


def test_without_the_hub_the_message_says_which_files_to_put_where(
    ait: Ait, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("Network is unreachable")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    said = ait("train", "cifar10-ait-tiny")
    assert_refused(said, "uoft-cs/cifar10", "Network is unreachable", "*.parquet")
    assert "--data.source FOLDER" in said.err
    assert list(tmp_path.iterdir()) == []


# --- eval ---


def test_eval_scores_every_test_image_and_writes_classes_and_confusion(
    ait: Ait, runs: Path
) -> None:
    for name, count, classes in (
        ("triangle", 20, ["equilateral", "other"]),
        ("colors", 10, ["blue", "red"]),
    ):
        folder = runs / name / "0"
        said = ait("eval", folder, "--batch-size", 7, "--device", "cpu")
        assert said.code == 0
        evaluation = json.loads((folder / "evaluation.json").read_text())
        result = json.loads((folder / "result.json").read_text())
        assert evaluation["images"] == count
        assert evaluation["accuracy"] == pytest.approx(result["test_accuracy"])
        assert list(evaluation["class_accuracy"]) == classes
        with (folder / "confusion.csv").open(newline="") as file:
            header, *rows = csv.reader(file)
        assert header[1:] == [row[0] for row in rows] == classes
        assert sum(int(cell) for row in rows for cell in row[1:]) == count
        assert f"{evaluation['accuracy']:6.2f} %  of all {count} test images" in said.out
        assert str(folder / "evaluation.json") in said.out


def test_eval_scores_every_question_and_says_what_training_said(ait: Ait, runs: Path) -> None:
    folder = runs / "asked" / "0"
    told = ait("train", *QUESTIONS, "--name", "asked", "--runs", runs, "--resume")  # complete
    said = ait("eval", folder, "--device", "cpu")
    assert said.code == 0
    assert kinds_in(said.out) == kinds_in(told.out)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    result = json.loads((folder / "result.json").read_text())
    for name in ("accuracy", "images", "questions", "kinds"):
        assert evaluation[name] == result[f"test_{name}"]
    assert evaluation["loss"] == pytest.approx(result["test_loss"], rel=1e-5)
    assert list(evaluation["class_accuracy"]) == list(CLASS_NAMES)
    assert f"{evaluation['accuracy']:6.2f} %  of all 48 test questions" in said.out
    with (folder / "confusion.csv").open(newline="") as file:
        _, *rows = csv.reader(file)
    assert sum(int(cell) for row in rows for cell in row[1:]) == 48


def test_eval_refuses_processes_that_see_different_runs(
    ait: Ait, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "gather_objects", lambda seen: [seen, seen[::-1]])
    assert_refused(ait("eval", runs / "colors" / "0"), "share the run folder and the data")


def test_eval_takes_images_that_were_moved(ait: Ait, runs: Path, tmp_path: Path) -> None:
    config = runs / "colors" / "0" / "experiment.yaml"
    config.write_text(re.sub("source: .*", "source: gone", config.read_text()))
    assert load_experiment(config).data.source == "gone"
    assert_refused(ait("eval", runs / "colors" / "0"), "gone does not exist")
    moved = shutil.move(runs / "images", tmp_path / "moved")
    assert ait("eval", runs / "colors" / "0", "--source", moved).code == 0


def test_eval_refuses_images_of_other_classes(ait: Ait, runs: Path, tmp_path: Path) -> None:
    for i, names in enumerate([("red", "green"), ("red", "green", "blue")]):
        other = make_images(tmp_path / f"other{i}", names, names)
        said = ait("eval", runs / "colors" / "0", "--source", other)
        assert_refused(said, "classes", "green")
    assert not (runs / "colors" / "0" / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("nowhere", ["nowhere is no run folder"]),
        ("RUN/result.json", ["result.json is no run folder"]),
        ("", ["run", "required"]),
        ("RUN --batch-size 0", ["batch", "at least 1", "0"]),
        ("RUN --batch-size -3", ["batch", "at least 1", "-3"]),
        ("RUN --batch-size many", ["--batch-size", "many"]),
        ("RUN --device quantum", ["no device 'quantum'"]),
        ("RUN --source x", ["--source"]),
        ("ASKED --source x", ["sort-of-clevr is generated", "--source"]),
        ("RUN --sauce x", ["--sauce", "--source"]),
    ],
    ids=str,
)
def test_eval_refuses_bad_input(flags: str, words: list[str], ait: Ait, runs: Path) -> None:
    folder = runs / "triangle" / "0"
    before = sorted(folder.iterdir())
    flags = flags.replace("ASKED", str(runs / "asked" / "0"))
    said = ait("eval", *flags.replace("RUN", str(folder)).split())
    assert_refused(said, *words)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("command", ["eval", "predict"])
def test_a_run_that_is_not_complete_or_is_damaged_is_refused(
    command: str, ait: Ait, runs: Path
) -> None:
    folder = runs / "triangle" / "0"
    arguments = [command, folder, *["x.png"] * (command == "predict")]
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert_refused(ait(*arguments), f"the run in {folder} is damaged")
    (folder / "result.json").unlink()
    assert_refused(ait(*arguments), f"the run in {folder} is not complete", "--resume")


# --- predict ---


def test_predict_writes_a_table_with_the_most_probable_classes_first(ait: Ait, runs: Path) -> None:
    images = runs / "images" / "test"
    said = ait("predict", runs / "colors" / "0", images, images / "red" / "0.png")
    assert said.code == 0
    header, *rows = csv.reader(said.out.splitlines())
    assert header == ["path", "class_1", "probability_1", "class_2", "probability_2"]
    expected = [str(images / name / f"{i}.png") for name in ("blue", "red") for i in range(5)]
    assert [row[0] for row in rows] == [*expected, str(images / "red" / "0.png")]
    for _, first, p, second, q in rows:
        assert {first, second} == {"blue", "red"}
        assert float(p) >= float(q)
        assert float(p) + float(q) == pytest.approx(1, abs=2e-6)


def test_predict_writes_json_lines_with_the_same_numbers(ait: Ait, runs: Path) -> None:
    command = ["predict", runs / "colors" / "0", runs / "images" / "test", "--top", 1]
    table = list(csv.DictReader(ait(*command).out.splitlines()))
    lines = [json.loads(line) for line in ait(*command, "--format", "jsonl").out.splitlines()]
    assert len(lines) == len(table) == 10
    for line, row in zip(lines, table, strict=True):
        (best,) = line["predictions"]
        assert (line["path"], best["class"]) == (row["path"], row["class_1"])
        assert f"{best['probability']:.6f}" == row["probability_1"]


def test_predict_agrees_with_eval(ait: Ait, runs: Path) -> None:
    ait("eval", runs / "colors" / "0")
    accuracy = json.loads((runs / "colors" / "0" / "evaluation.json").read_text())["accuracy"]
    said = ait("predict", runs / "colors" / "0", runs / "images" / "test")
    rows = list(csv.DictReader(said.out.splitlines()))
    right = [Path(row["path"]).parent.name == row["class_1"] for row in rows]
    assert 100 * sum(right) / len(right) == pytest.approx(accuracy)


def test_predict_reads_triangles_and_writes_a_file(ait: Ait, runs: Path, tmp_path: Path) -> None:
    pixels = np.zeros((64, 64), np.uint8)
    pixels[10:20, 10:20] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    said = ait("predict", runs / "triangle" / "0", "a.png", "--output", "out.csv")
    assert (said.code, said.out) == (0, "")
    with (tmp_path / "out.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["path"] == "a.png"
    assert {row["class_1"], row["class_2"]} == {"equilateral", "other"}


def test_predict_skips_unreadable_images_where_asked_to(
    ait: Ait, runs: Path, tmp_path: Path
) -> None:
    images = runs / "images" / "test"
    (images / "red" / "2.png").write_bytes(b"no image")
    command = ["predict", runs / "colors" / "0", images, "--output", "out.csv"]
    assert_refused(ait(*command), images / "red" / "2.png")
    assert not (tmp_path / "out.csv").exists()
    said = ait(*command, "--on-error", "skip")
    assert said.code == 0
    assert "1 unreadable images were skipped" in said.err
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 1 + 9


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("RUN", ["image files or folders"]),
        ("", ["run", "required"]),
        ("nowhere IMAGE", ["nowhere is no run folder"]),
        ("IMAGE RUN", ["is no run folder"]),
        ("RUN nothing.png", ["no file nothing.png"]),
        ("RUN IMAGE nothing.png", ["no file nothing.png"]),
        ("RUN EMPTY", ["no image in"]),
        ("RUN IMAGE --top 0", ["top", "at least 1", "0"]),
        ("RUN IMAGE --top -2", ["top", "at least 1", "-2"]),
        ("RUN IMAGE --batch-size 0", ["batch", "at least 1", "0"]),
        ("RUN IMAGE --format xml", ["--format", "xml", "csv"]),
        ("RUN IMAGE --on-error ignore", ["--on-error", "ignore", "skip"]),
        ("RUN IMAGE --device quantum", ["no device 'quantum'"]),
        ("RUN IMAGE --output missing/out.csv", ["no folder missing", "--output"]),
        ("RUN IMAGE --output IMAGE/out.csv", ["no folder", "--output"]),
        ("RUN IMAGE --output EMPTY", ["cannot write"]),
        ("RUN IMAGE --output .", ["cannot write"]),
    ],
    ids=str,
)
def test_predict_refuses_bad_input(flags: str, words: list[str], ait: Ait, runs: Path) -> None:
    (runs / "empty").mkdir()
    places = {
        "RUN": runs / "colors" / "0",
        "IMAGE": runs / "images" / "test" / "red" / "0.png",
        "EMPTY": runs / "empty",
    }
    for name, place in places.items():
        flags = flags.replace(name, str(place))
    before = sorted(runs.rglob("*"))
    assert_refused(ait("predict", *flags.split()), *words)
    assert sorted(runs.rglob("*")) == before


# --- questions about a picture ---


@pytest.fixture
def picture(trained: Path, tmp_path: Path) -> Path:
    """The third test picture of the run `asked`, as a file."""
    config = load_experiment(trained / "asked" / "0" / "experiment.yaml").data
    drawn = draw_pictures(generate_items(config, TEST).scenes)[2]
    Image.fromarray(drawn.transpose(1, 2, 0)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_a_question_is_answered_in_words_beside_the_picture(
    ait: Ait, trained: Path, picture: Path
) -> None:
    command = ["predict", trained / "asked" / "0", picture, picture, "--top", 10]
    asked = ["--question", "What is the SHAPE of a red object?"]
    said = ait(*command, *asked)
    assert said.code == 0
    header, *rows = csv.reader(said.out.splitlines())
    assert header[:4] == ["path", "question", "class_1", "probability_1"]
    assert len(header) == 2 + 2 * 10
    assert len(rows) == 2
    for path, question, *best in rows:
        assert (path, question) == (str(picture), "shape of the red object")
        assert set(best[::2]) == set(CLASS_NAMES)
        assert sum(map(float, best[1::2])) == pytest.approx(1, abs=1e-5)
    lines = [json.loads(line) for line in ait(*command, *asked, "--format=jsonl").out.splitlines()]
    for line, row in zip(lines, rows, strict=True):
        assert list(line) == ["path", "question", "predictions"]
        assert (line["path"], line["question"]) == tuple(row[:2])
        assert [found["class"] for found in line["predictions"]] == row[2::2]


def test_an_answer_is_that_of_the_same_question_in_the_test_set(
    ait: Ait, trained: Path, picture: Path
) -> None:
    saved = load_run(trained / "asked" / "0")
    test = load_test(saved.experiment.data, torch.device("cpu")).test
    (batch,) = test.eval_batches(len(test))
    with torch.no_grad():
        expected = saved.model(batch.images, batch.questions).logits.softmax(dim=-1)
    questions = decode(test.questions.numpy())
    words, answers = describe_questions(questions), set()
    for item in (test.rows == 2).nonzero()[:, 0].tolist():
        said = ait(
            *("predict", trained / "asked" / "0", picture, "--question", words[item]),
            *("--format", "jsonl", "--top", 10),
        )
        found = {
            best["class"]: best["probability"] for best in json.loads(said.out)["predictions"]
        }
        names = answer_words(int(questions.kind[item]))
        assert [found[name] for name in names] == pytest.approx(expected[item].tolist(), rel=1e-5)
        answers.add(tuple(found.values()))
    assert len(answers) > 1


def test_counts_of_ternary_questions_start_at_zero_in_words(
    ait: Ait, picture: Path, tmp_path: Path
) -> None:
    told = ait("train", *TERNARY, "--name", "ternary")
    assert "trained on    ternary questions\n" in told.out
    command = ["predict", tmp_path / "runs/ternary/0", picture, "--top", 10, "--question"]
    said = ait(*command, "number of other objects in the box from the red to the blue one")
    (row,) = csv.reader(said.out.splitlines()[1:])
    assert set(row[2::2]) == {"yes", "no", "square", "circle", *"012345"}
    assert_refused(ait(*command, "shape of the red object"), "was not trained on", "in the box")
    assert_refused(ait(*command, "number of other objects in the box from the red to the red one"))


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("color of the closest object", ["can't be asked", "object closest to the A one"]),
        ("", ["can't be asked", "shape of the A object"]),
        ("shape of the pink object", ["can't be asked", "with A in red, green", "did you mean"]),
        (
            "number of other objects in the box from the red to the blue one",
            ["was not trained on", "shape of the A object"],
        ),
        (None, ["--question", "is the A object in the left half"]),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_refused_with_what_can(
    question: str | None, words: list[str], ait: Ait, trained: Path, picture: Path
) -> None:
    asked = [] if question is None else ["--question", question]
    said = ait("predict", trained / "asked" / "0", picture, *asked, "--output", "out.csv")
    assert_refused(said, *words)
    if question is None or "number of other" not in question:
        assert "in the box" not in said.err  # this run is not trained on it
    assert not Path("out.csv").exists()


def test_a_run_without_questions_cannot_be_asked(ait: Ait, trained: Path) -> None:
    image = trained / "images" / "test" / "red" / "0.png"
    said = ait("predict", trained / "colors" / "0", image, "--question", "shape of the red object")
    assert_refused(said, "without questions", "leave --question out")


# --- show ---

FEW = ["--data.num-train", 4, "--data.num-test", 5]


@pytest.fixture
def sheets(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, list[str], Path]]:
    """What would be drawn, without drawing it."""
    drawn: list[tuple[Tensor, list[str], Path]] = []

    def note(images: Tensor, captions: list[str], path: Path, title: str) -> None:
        drawn.append((images, captions, path))

    monkeypatch.setattr("associative_transformer.cli.show.draw_sheet", note)
    return drawn


@pytest.mark.parametrize("name", ["sort-of-clevr", "triangle"])
def test_show_draws_a_sheet_of_images(name: str, ait: Ait, tmp_path: Path) -> None:
    said = ait("show", name, *FEW, "--num-images", 2, "--output", "x.png")
    assert (said.code, said.out) == (0, "written: x.png\n")
    with Image.open("x.png") as image:
        colors = set(map(tuple, np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()))
    assert len(colors) > 2
    assert {(255, 0, 0), (0, 0, 255)} <= colors or name == "triangle"
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_show_writes_the_pictures_themselves_where_asked(ait: Ait, tmp_path: Path) -> None:
    said = ait("show", "sort-of-clevr", *FEW, "--num-images", 2, "--pictures", "a/b")
    assert said.out == "written: sort-of-clevr.png\nwritten: 2 images to a/b\n"
    config = SortOfClevrConfig(num_train=4, num_test=5)
    pictures = draw_pictures(generate_items(config, TEST).scenes)
    assert sorted(path.name for path in (tmp_path / "a/b").iterdir()) == ["0.png", "1.png"]
    for number in range(2):
        with Image.open(f"a/b/{number}.png") as image:
            assert np.array_equal(np.asarray(image).transpose(2, 0, 1), pictures[number])


def test_show_writes_the_file_that_it_names(ait: Ait, tmp_path: Path) -> None:
    said = ait("show", "triangle", *FEW, "--num-images", 1, "--output", "sheet")
    written = [path.name for path in tmp_path.iterdir()]
    assert said.out == "".join(f"written: {name}\n" for name in written)  # or it is refused


def test_show_writes_the_first_questions_of_each_type_with_their_answers(
    ait: Ait, sheets: list[tuple[Tensor, list[str], Path]]
) -> None:
    said = ait("show", "sort-of-clevr", *FEW, "--num-images", 3)
    assert (said.code, said.out) == (0, "written: sort-of-clevr.png\n")
    ((images, captions, path),) = sheets
    assert path == Path("sort-of-clevr.png")
    config = replace(SortOfClevrConfig(num_train=4, num_test=5), question_types=TYPES)
    made = generate_items(config, TEST)
    expected = torch.from_numpy(draw_pictures(made.scenes)[:3]).float() / 255
    torch.testing.assert_close(images, expected)
    words, kinds = describe_questions(made.questions), made.questions.kind.tolist()
    for i, caption in enumerate(captions):
        shown = [30 * i + 10 * type_ + place for type_ in range(3) for place in range(2)]
        answers = [answer_words(kinds[item])[made.answers[item]] for item in shown]
        lines = [f"{words[item]}: {a}" for item, a in zip(shown, answers, strict=True)]
        assert caption.splitlines() == lines


def test_show_takes_fields_of_the_data_set_and_no_more_images_than_there_are(
    ait: Ait, sheets: list[tuple[Tensor, list[str], Path]]
) -> None:
    flags = [*FEW, "--data.question-types", "binary", "--num-images", 9]
    assert ait("show", "sort-of-clevr", *flags).code == 0
    ((images, captions, _),) = sheets
    assert (len(images), len(captions)) == (5, 5)
    assert all("the A" not in caption and len(caption.splitlines()) == 2 for caption in captions)


def test_show_names_the_class_of_an_image_and_undoes_its_normalization(
    ait: Ait, sheets: list[tuple[Tensor, list[str], Path]], trained: Path
) -> None:
    flags = ["--data.source", trained / "images", "--data.image-size", 16]
    assert ait("show", "cifar10", *flags, "--data.num-workers", 0, "--num-images", 10).code == 0
    assert ait("show", "triangle", *FEW).code == 0
    (images, captions, _), (triangles, names, _) = sheets
    assert sorted(captions) == ["blue"] * 5 + ["red"] * 5
    for image, caption in zip(images, captions, strict=True):
        assert 150 / 255 <= image[2 if caption == "blue" else 0].min() <= image.max() <= 1
        assert 0 <= image.min() < 60 / 255
    assert triangles.unique().tolist() == [0, 1]
    assert set(names) <= {"equilateral", "other"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("clevr", ["no data set 'clevr'", "sort-of-clevr", "triangle", "cifar10"]),
        ("triangle --num-images 0", ["num_images", "at least 1", "0"]),
        ("triangle --num-images -1", ["num_images", "at least 1", "-1"]),
        ("triangle --num-images 65", ["num_images", "at most 64", "65"]),
        ("triangle --data.num-test 0", ["num_test", "0"]),
        ("triangle --output missing/x.png", ["no folder missing", "--output"]),
        ("triangle --data.num-test 2 --output x.txt", ["cannot write x.txt", "png"]),
        ("triangle --data.num-test 2 --output .", ["cannot write"]),
        ("sort-of-clevr --data.question-types unary", ["unary", "binary"]),
        ("cifar10 --data.source gone", ["gone does not exist"]),
        ("triangle surplus", ["surplus"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_show_refuses_bad_input(flags: str, words: list[str], ait: Ait, tmp_path: Path) -> None:
    assert_refused(ait("show", *flags.split()), *words)
    assert list(tmp_path.iterdir()) == []


def test_show_without_a_name_lists_the_data_sets(ait: Ait) -> None:
    for arguments in ([], ["--help"]):
        said = ait("show", *arguments)
        assert said.code == 0
        assert set(said.out.split()) >= {"sort-of-clevr", "triangle", "cifar10", "cifar100"}
    assert "--data.num-questions" in ait("show", "sort-of-clevr", "--help").out


# --- table ---


@pytest.mark.parametrize("form", ["terminal", "markdown", "html"])
def test_the_table_is_written_to_the_terminal_or_to_a_file(form: str, ait: Ait) -> None:
    said = ait("table", "relational", "--format", form)
    assert said.code == 0
    for words in ("ait-small", "76.82", "99.85", "not run", "set-transformer", "57.65"):
        assert words in said.out
    written = ait("table", "relational", "--format", form, "--output", "t.html")
    assert (written.code, written.out) == (0, "")
    assert Path("t.html").read_text() == said.out
    assert ("<table>" in said.out) == (form == "html")
    assert not re.search(r"https?:|src=|href=|@import|url\(", said.out)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("classification", ("Image classification", "| AiT-Base | - | 85.44 |", "[1] Luna: both")),
        ("ablations", ("Ablations of AiT-Small", "| w/o Hopfield |", "78.48", "not run")),
        ("relational", ("Sort-of-CLEVR", "| cnn-rn |", "81.07")),
    ],
)
def test_every_table_has_its_command(name: str, words: tuple[str, ...], ait: Ait) -> None:
    said = ait("table", name, "--format", "markdown")
    assert said.code == 0
    assert [word for word in words if word not in said.out] == []


def test_a_run_with_overrides_stands_below_the_rows_whatever_its_name(
    ait: Ait, tmp_path: Path
) -> None:
    flags = "--data.num-train 16 --data.num-test 4 --data.num-questions 2 --train.batch-size 16"
    flags += " --train.epochs 1 --model.conv-dim 4 --model.hidden-dim 8 --train.device cpu"
    name = "sort-of-clevr-cnn-mlp-tiny"
    assert ait("train", name, *flags.split()).code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    folder.rename(tmp_path / "runs" / name)
    said = ait("table", "relational", "--format", "markdown")
    rows = [line for line in said.out.splitlines() if line.startswith("| cnn-mlp-tiny")]
    assert len(rows) == 2
    assert "not run" in rows[0]
    assert f"train.epochs 1 instead of {RECIPES[name].train.epochs}" in rows[1]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("", ["table", "required"]),
        ("images", ["images", "classification", "ablations", "relational"]),
        ("relational --format pdf", ["--format", "pdf", "markdown"]),
        ("relational --runs file", ["no folder file", "--runs"]),
        ("relational --runs gone", ["no folder gone", "--runs"]),
        ("relational --output missing/t.md", ["no folder missing", "--output"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_table_refuses_bad_input(
    flags: str, words: list[str], ait: Ait, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    assert_refused(ait("table", *flags.split()), *words)


# --- stopping ---


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"]
)
def test_a_stopped_run_says_how_to_go_on(
    signum: int, code: int, ait: Ait, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise Interrupted(signum)

    monkeypatch.setattr(TRAIN, stop)
    said = ait("train", *TRIANGLE)
    assert (said.code, said.out) == (code, "")
    assert "saved" in said.err
    assert "--resume" in said.err
    said = ait("train", *TRIANGLE, "--overwrite")
    assert "--resume" in said.err
    assert "--overwrite" not in said.err  # the two exclude each other


def test_an_interrupted_command_ends_without_traceback(
    ait: Ait, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TRAIN, stop)
    assert ait("train", *TRIANGLE).code == 130


def start(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "associative_transformer", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for(folder: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    for _ in range(600):
        if list(folder.glob(pattern)):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.kill()
    pytest.fail(f"no {pattern} after 30 seconds")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "code", "source"),
    [(signal.SIGINT, 130, "images from workers"), (signal.SIGTERM, 143, "triangle")],
    ids=["int", "term"],
)
def test_a_signal_to_all_processes_of_a_run_saves_it_and_resume_completes_it(
    signum: int, code: int, source: str, tmp_path: Path
) -> None:
    flags = ["--train.epochs", "60"]
    if source == "triangle":
        arguments = ["train", *TRIANGLE, *flags]
    else:
        images = make_images(tmp_path / "images")
        flags = ["--train.epochs", "8", "--data.memory-budget", "0", "--data.num-workers", "1"]
        arguments = ["train", *IMAGES, *flags, "--data.source", str(images)]
    process = start(arguments, tmp_path)
    wait_for(tmp_path, "runs/*/0/checkpoint/previous", process)
    os.killpg(process.pid, signum)  # as a terminal does
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert out == ""
    assert "Traceback" not in err
    assert "saved; go on with python -m associative_transformer train" in err.splitlines()[-1]
    assert err.splitlines()[-1].endswith("--resume")
    (folder,) = tmp_path.glob("runs/*/0")
    assert not (folder / "result.json").exists()

    resumed = start([*arguments, "--resume"], tmp_path)
    out, err = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, err
    assert "test accuracy" in out
    epochs = [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").open()]
    assert epochs == list(range(1, int(flags[1]) + 1))


@pytest.mark.slow
def test_a_run_killed_at_once_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    arguments = ["train", *TRIANGLE, "--train.epochs", "25", "--train.checkpoint-every", "1"]
    process = start(arguments, tmp_path)
    wait_for(tmp_path, "runs/*/0/checkpoint/previous", process)
    process.kill()
    process.communicate(timeout=60)
    resumed = start([*arguments, "--resume"], tmp_path)
    _, err = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, err
    undisturbed = start([*arguments, "--runs", "undisturbed"], tmp_path)
    _, err = undisturbed.communicate(timeout=120)
    assert undisturbed.returncode == 0, err
    (ours,), (theirs,) = tmp_path.glob("runs/*/0"), tmp_path.glob("undisturbed/*/0")
    name = "model.safetensors"
    assert (ours / name).read_bytes() == (theirs / name).read_bytes()
