"""`--output` and `--pictures` replace no input, no file of a run and nothing but files."""

import os
from pathlib import Path

import pytest

from associative_transformer.cli.options import OWN_FILES, OWN_FOLDERS, check_output
from associative_transformer.interface import UserError
from making.commands import Ait, assert_refused, make_images
from making.hostile import make_run

OF_RUNS = ["experiment.yaml", "environment.json", "metrics.jsonl", "memory.npz", "config.json"]
OF_RUNS += ["model.safetensors", "result.json", "evaluation.json", "evaluation-0a1b.json"]
OF_RUNS += ["initialization.json", "priors.png"]
OF_RUNS += ["confusion.csv", "README.md", "Result.JSON", ".lock", "report.html", "comparison.html"]
IN_FOLDERS = ["checkpoint/x.csv", "checkpoint/best/new.json", "analysis/x.csv", "figures/x.png"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = make_run(tmp_path / "run")
    for name in IN_FOLDERS:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
    return run


# --- runs ---


@pytest.mark.parametrize("name", OF_RUNS + IN_FOLDERS)
def test_a_name_that_a_run_needs_is_refused_even_if_the_file_does_not_exist(
    name: str, run: Path
) -> None:
    with pytest.raises(UserError, match=r"--output .* is reserved for the run itself"):
        check_output(run / name)
    (run.parent / "link").symlink_to(run)
    with pytest.raises(UserError, match="is reserved for the run itself"):
        check_output(run.parent / "link" / name)


def test_other_names_in_a_run_folder_are_allowed(run: Path) -> None:
    for name in ("predictions.csv", "results.json", "cats.jsonl"):
        check_output(run / name)
        (run / name).touch()
        check_output(run / name)
    check_output(run / "report.html", replaces=("report.html",))
    check_output(run.parent / "result.json")


def test_every_file_and_folder_of_a_trained_run_is_protected(trained: Path) -> None:
    for path in (trained / "colors" / "0").iterdir():
        with pytest.raises(UserError):
            check_output(path / "x" if path.is_dir() else path)
        assert path.name in OWN_FOLDERS or path.name.lower().split(".")[0] in OWN_FILES


# --- inputs ---


def test_an_input_is_not_replaced_by_whatever_name_it_has(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.touch()
    os.link(picture, tmp_path / "same.png")
    for path in (picture, tmp_path / "same.png", tmp_path / "." / "picture.png"):
        with pytest.raises(UserError, match="would replace an input of this command"):
            check_output(path, tmp_path / "missing.png", picture)
    check_output(tmp_path / "other.csv", picture)


def test_a_picture_in_an_input_folder_is_not_replaced_but_earlier_output_is(
    tmp_path: Path,
) -> None:
    images = make_images(tmp_path / "images")
    (images / "icon").touch()
    (images / "metadata.csv").touch()
    for name in ("train/red/0.png", "icon", "metadata.csv"):
        with pytest.raises(UserError, match="would replace an input"):
            check_output(images / name, images)
    (images / "predictions.csv").touch()
    check_output(images / "predictions.csv", images)
    check_output(images / "train" / "red" / "new.png", images)


# --- not a file ---


def test_folders_links_pipes_and_devices_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("missing")
    for path, words in {
        tmp_path: "it is a folder; add the name of a file",
        Path(): "it is a folder",
        tmp_path / "pipe": "is a device or a pipe",
        Path("/dev/null"): "is a device or a pipe",
        tmp_path / "link": "is a symbolic link to file",
        tmp_path / "dangling": "is a symbolic link to missing",
        tmp_path / "missing" / "x": "there is no folder",
        tmp_path / "file" / "x": "there is no folder",
        tmp_path / ("x" * 300): "File name too long",
        tmp_path / "x\0y": "null byte",
    }.items():
        with pytest.raises(UserError, match=words):
            check_output(path)


COMMANDS = {
    "predict": ["predict", "{run}", "{image}"],
    "report": ["report", "{run}"],
    "export": ["export", "{run}"],
    "table": ["table", "classification"],
    "bench": ["bench", "write"],
    "check-data": ["check-data", "cifar10"],
    "show": ["show", "triangle"],
    "doctor": ["doctor"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_with_an_output_checks_it_first(
    name: str, ait: Ait, run: Path, tmp_path: Path
) -> None:
    image = make_images(tmp_path / "images") / "train" / "red" / "0.png"
    words = [word.format(run=run, image=image) for word in COMMANDS[name]]
    before = (run / "config.json").read_bytes()
    for path in (run / "config.json", tmp_path, "/dev/null"):
        assert_refused(ait(*words, "--output", path), "--output", path)
    assert (run / "config.json").read_bytes() == before


def test_predict_and_show_keep_their_inputs(ait: Ait, run: Path, tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    image = images / "train" / "red" / "0.png"
    before = image.read_bytes()
    assert_refused(ait("predict", run, image, "--output", image), "an input")
    assert_refused(ait("predict", run, images, "--output", image), "an input")
    show = ["show", "cifar10", "--data.source", images]
    assert_refused(ait(*show, "--output", image), "an input")
    assert_refused(ait(*show, "--pictures", image.parent), "--pictures", "an input")
    assert image.read_bytes() == before
