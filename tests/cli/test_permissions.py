"""Runs, data, outputs and caches that this user may not read or may not change.

What can be done without the permission is done; otherwise one sentence names the file. Nothing
is changed, and a file that may not be read is never taken for a damaged one.
"""

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import product
from pathlib import Path

import datasets
import huggingface_hub
import pytest

from making.commands import IMAGES, TRIANGLE, Ait, CommandResult, make_images
from making.permissions import closed, of_another_user, permissions_apply

DENIED = "Permission denied"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return `images`, `tables` and the complete `runs`: two recipes with overrides, seed 0."""
    main = import_module("associative_transformer.cli").main  # after shape checks are switched on
    root = tmp_path_factory.mktemp("permissions")
    images = make_images(root / "images")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["blue", "red"])}
    )
    for split in ("train", "test"):
        files = sorted(images.glob(f"{split}/*/*.png"))
        rows = [{"image": str(file), "label": file.parent.name} for file in files]
        (root / "tables").mkdir(exist_ok=True)
        datasets.Dataset.from_list(rows, features).to_parquet(root / f"tables/{split}.parquet")
    with pytest.MonkeyPatch.context() as patch:
        for recipe in (TRIANGLE, [*IMAGES, "--data.source", str(images)]):
            patch.setattr(sys, "argv", ["ait", "train", *recipe, "--runs", str(root / "runs")])
            assert main() == 0
    return root


@pytest.fixture
def copied(root: Path, tmp_path: Path) -> Path:
    """Return a copy of the root, for tests that change it."""
    return shutil.copytree(root, tmp_path / "copy")


@pytest.fixture
def other(ait: Ait) -> Ait:
    """Return a function that runs a command of `ait` to which permissions apply."""

    def run(*arguments: object) -> CommandResult:
        with permissions_apply():
            return ait(*arguments)

    return run


def triangle(root: Path) -> Path:
    (run,) = root.glob("runs/triangle-ait-tiny+*/0")
    return run


def colors(root: Path) -> Path:
    (run,) = root.glob("runs/cifar10-ait-tiny+*/0")
    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_denied(done: CommandResult, path: object) -> None:
    """Assert that a command ended with one sentence, which names the path."""
    assert done.code == 2, done
    assert done.out == ""
    assert done.err.startswith("ait: ")
    assert done.err.count("ait: ") == 1
    assert f"{path}" in done.err
    assert DENIED in done.err


# --- a run that may only be read ---


@pytest.fixture(scope="module")
def readonly(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a copy of the root in which this user may change nothing."""
    folder = shutil.copytree(root, tmp_path_factory.mktemp("readonly") / "root")
    with of_another_user(folder):
        yield folder
    assert contents(folder / "runs") == contents(root / "runs")


def test_the_permissions_of_these_tests_apply(readonly: Path) -> None:
    with permissions_apply():
        with pytest.raises(PermissionError):
            (triangle(readonly) / "new").touch()
        with pytest.raises(PermissionError):
            (triangle(readonly) / "result.json").write_text("")


def test_a_read_only_run_is_evaluated(readonly: Path, other: Ait) -> None:
    done = other("eval", triangle(readonly))
    assert done.code == 0, done.err
    assert "of all 20 test images" in done.out
    assert "not stored" in done.out
    assert f"cannot write {triangle(readonly) / 'evaluation.json'}: {DENIED}" in done.err


def test_a_read_only_model_classifies_read_only_images(readonly: Path, other: Ait) -> None:
    image = readonly / "images/test/red/0.png"
    done = other("predict", colors(readonly), image)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[1].startswith(f"{image},")


@pytest.mark.slow
def test_a_read_only_run_is_reported_elsewhere(readonly: Path, other: Ait, tmp_path: Path) -> None:
    done = other("report", triangle(readonly), "--output", tmp_path / "a.html", "--images", 10)
    assert done.code == 0, done.err
    assert (tmp_path / "a.html").stat().st_size > 10_000
    assert f"analysis is not stored: cannot create the folder {triangle(readonly)}" in done.err


def test_a_table_shows_read_only_runs(readonly: Path, other: Ait) -> None:
    done = other("table", "classification", "--runs", readonly / "runs")
    assert (done.code, done.err) == (0, "")
    assert "triangle-ait-tiny with" in done.out
    assert "Left out" not in done.out


def test_a_complete_read_only_run_is_resumed_without_a_change(readonly: Path, other: Ait) -> None:
    done = other("train", *TRIANGLE, "--runs", readonly / "runs", "--resume")
    assert done.code == 0, done.err
    assert "test accuracy" in done.out


WRITING: dict[str, Callable[[Path], list[object]]] = {
    "analyze": lambda root: ["analyze", triangle(root)],
    "report": lambda root: ["report", triangle(root)],
    "report of two": lambda root: ["report", triangle(root), colors(root)],
    "overwrite": lambda root: ["train", *TRIANGLE, "--runs", root / "runs", "--overwrite"],
    "a new run": lambda root: ["train", *TRIANGLE, "--runs", root / "runs", "--name", "new"],
    "predict": lambda root: [
        *("predict", colors(root), root / "images", "--output", root / "runs/a.csv")
    ],
    "table": lambda root: ["table", "classification", "--output", root / "runs/table.md"],
    "show": lambda root: ["show", "triangle", "--output", root / "runs/a.png"],
    "pictures": lambda root: ["show", "triangle", "--pictures", root / "runs/new"],
}
"""Commands that would change a run or the folder of runs, by what they would write."""


@pytest.mark.parametrize("name", WRITING)
def test_a_command_that_would_change_a_read_only_folder_is_refused(
    name: str, readonly: Path, other: Ait
) -> None:
    done = other(*WRITING[name](readonly))
    assert done.code == 2, done.out
    assert_denied(done._replace(out=""), readonly / "runs")


@pytest.mark.parametrize("option", ["--resume", "--overwrite"])
def test_an_unfinished_read_only_run_is_not_continued(
    option: str, copied: Path, other: Ait
) -> None:
    run = triangle(copied)
    (run / "result.json").unlink()
    before = contents(run)
    with of_another_user(run):
        assert_denied(other("train", *TRIANGLE, "--runs", copied / "runs", option), run)
    assert contents(run) == before


# --- folders without permission ---

READING: dict[str, Callable[[Path], list[object]]] = {
    "eval": lambda root: ["eval", triangle(root)],
    "predict": lambda root: ["predict", colors(root), root / "images"],
    "analyze": lambda root: ["analyze", triangle(root)],
    "report": lambda root: ["report", triangle(root)],
    "train": lambda root: ["train", *TRIANGLE, "--runs", root / "runs"],
    "resume": lambda root: ["train", *TRIANGLE, "--runs", root / "runs", "--resume"],
    "overwrite": lambda root: ["train", *TRIANGLE, "--runs", root / "runs", "--overwrite"],
}
"""Commands that read a run, by name."""


@pytest.mark.parametrize("mode", [0, 0o444], ids=oct)
@pytest.mark.parametrize("depth", [0, 1, 2], ids=["run", "name", "runs"])
@pytest.mark.parametrize("name", READING)
def test_a_run_in_a_folder_without_permission_is_named(
    name: str, depth: int, mode: int, root: Path, other: Ait
) -> None:
    command = READING[name](root)
    folder = [run := (colors if name == "predict" else triangle)(root), *run.parents][depth]
    with closed(folder, mode):
        assert_denied(other(*command), run)


@pytest.mark.parametrize("mode", [0o111, 0o333], ids=oct)
@pytest.mark.parametrize("name", ["eval", "predict", "analyze", "report"])
def test_a_run_folder_that_cannot_be_listed_is_not_called_damaged(
    name: str, mode: int, root: Path, other: Ait
) -> None:
    command = READING[name](root)
    run = (colors if name == "predict" else triangle)(root)
    with closed(run, mode):
        done = other(*command)
    assert_denied(done, run)
    assert "damaged" not in done.err


@pytest.mark.parametrize("name", ["table", "run-table"])
@pytest.mark.parametrize("place", ["runs", "."])
def test_a_folder_of_runs_without_permission_is_named(
    name: str, place: str, root: Path, other: Ait
) -> None:
    runs = root / "runs"
    with closed(root / place):
        assert_denied(other(name, "classification", "--runs", runs), runs)


@pytest.mark.parametrize("mode", [0, 0o444], ids=oct)
@pytest.mark.parametrize("depth", [0, 1], ids=["run", "name"])
def test_a_table_names_the_runs_that_it_may_not_read(
    depth: int, mode: int, root: Path, other: Ait
) -> None:
    folder = [run := triangle(root), *run.parents][depth]
    with closed(folder, mode):
        done = other("table", "classification", "--runs", root / "runs")
    assert done.code == 0, done.err
    assert re.search(rf"Left out: cannot read .*{re.escape(str(folder))}.*{DENIED}", done.out)
    assert "cifar10-ait-tiny" in done.out


FROM_IMAGES: dict[str, Callable[[Path, Path], list[object]]] = {
    "train": lambda root, images: ["train", *IMAGES, "--data.source", images, "--name", "new"],
    "eval": lambda root, images: ["eval", colors(root), "--source", images],
    "predict": lambda root, images: ["predict", colors(root), images],
    "show": lambda root, images: ["show", "cifar10", "--data.source", images],
}
"""Commands that read images, by name."""


@pytest.mark.parametrize(
    ("place", "mode"),
    [*product([".", "test", "test/red", ".."], [0, 0o444]), ("test/red/0.png", 0)],
)
@pytest.mark.parametrize("name", FROM_IMAGES)
def test_images_without_permission_are_named(
    name: str, place: str, mode: int, root: Path, other: Ait, tmp_path: Path
) -> None:
    images = shutil.copytree(root / "images", tmp_path / "parent" / "images")
    path = images.parent if place == ".." else images / place
    with closed(path, mode):
        done = other(*FROM_IMAGES[name](root, images))
    is_streamed = name == "predict" and path.is_file()  # the header is printed first
    assert_denied(done._replace(out="") if is_streamed else done, images if mode else path)


@pytest.mark.parametrize("place", ["train.parquet", "test.parquet", "."])
def test_tables_without_permission_are_not_called_damaged(
    place: str, copied: Path, other: Ait, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with closed(copied / "tables" / place) as path:
        done = other("train", *IMAGES, "--data.source", copied / "tables")
    assert_denied(done, path)
    assert "damaged" not in done.err


@pytest.mark.parametrize("place", ["out.html", "below/out.html"])
@pytest.mark.parametrize("name", ["predict", "report", "table", "show"])
def test_an_output_in_a_folder_without_permission_is_named(
    name: str, place: str, root: Path, other: Ait, tmp_path: Path
) -> None:
    words: dict[str, list[object]] = {
        "predict": [colors(root), root / "images"],
        "report": [triangle(root)],
        "table": ["classification", "--runs", root / "runs"],
        "show": ["triangle"],
    }
    (tmp_path / "closed/below").mkdir(parents=True)
    with closed(tmp_path / "closed") as folder:
        assert_denied(other(name, *words[name], "--output", folder / place), folder)


# --- files without permission ---


@pytest.mark.parametrize(
    "name", ["result.json", "config.json", "model.safetensors", "checkpoint/last/state.json"]
)
def test_resuming_does_not_take_a_file_without_permission_for_a_damaged_one(
    name: str, copied: Path, other: Ait
) -> None:
    run = triangle(copied)
    if name.startswith("checkpoint"):
        (run / "result.json").unlink()
    before = contents(run)
    with closed(run / name) as path:
        done = other("train", *TRIANGLE, "--runs", copied / "runs", "--resume")
    assert_denied(done, path)
    assert not re.search("damaged|overwrite", done.err)
    assert contents(run) == before


@pytest.mark.parametrize("name", ["", "last", "last/optimizer.pt", "last/model.safetensors"])
def test_a_checkpoint_without_permission_is_not_set_aside(
    name: str, copied: Path, other: Ait
) -> None:
    run = triangle(copied)
    (run / "result.json").unlink()
    before = contents(run / "checkpoint")
    with closed(run / "checkpoint" / name) as path:
        done = other("train", *TRIANGLE, "--runs", copied / "runs", "--resume")
    assert_denied(done, path)
    assert not re.search("damaged|overwrite", done.err)
    assert contents(run / "checkpoint") == before


FILES = ["experiment.yaml", "environment.json", "metrics.jsonl", "memory.npz", "result.json"]
FILES += ["config.json", "model.safetensors"]


@pytest.mark.parametrize("name", FILES)
def test_a_report_does_not_take_a_file_without_permission_for_a_damaged_one(
    name: str, root: Path, other: Ait, tmp_path: Path
) -> None:
    with closed(triangle(root) / name) as path:
        done = other("report", triangle(root), "--output", tmp_path / "a.html", "--images", 10)
    assert_denied(done, path)
    assert not re.search("damaged|overwrite|copy", done.err)


@pytest.mark.slow
def test_an_analysis_without_permission_is_named(
    copied: Path, ait: Ait, other: Ait, tmp_path: Path
) -> None:
    run = triangle(copied)
    assert ait("analyze", run, "--images", 10).code == 0
    for name in ("complete.json", "drift.npz", "drift.json", ""):
        with closed(run / "analysis" / name) as path:
            done = other("report", run, "--output", tmp_path / "a.html")
        assert_denied(done, path)
        assert "damaged" not in done.err


@pytest.mark.parametrize("name", ["environment.json", "result.json"])
def test_a_table_names_a_file_that_it_may_not_read(name: str, root: Path, other: Ait) -> None:
    with closed(triangle(root) / name) as path:
        done = other("table", "classification", "--runs", root / "runs")
    assert done.code == 0
    assert f"cannot access {path}: {DENIED}" in done.out + done.err
    is_used = "triangle-ait-tiny with" in done.out
    assert is_used == (name == "environment.json")


# --- caches ---


@pytest.mark.parametrize("place", ["", "below/that"])
@pytest.mark.parametrize("mode", [0o555, 0], ids=oct)
def test_a_cache_that_cannot_be_written_is_named(
    mode: int, place: str, root: Path, other: Ait, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").mkdir()
    cache = tmp_path / "cache" / place
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    with closed(tmp_path / "cache", mode):
        done = other("train", *IMAGES, "--data.source", root / "tables")
    assert_denied(done, f"cannot write to the cache {cache} (")
    assert "another folder with HF_DATASETS_CACHE" in done.err


@pytest.mark.parametrize("place", ["", "below/that"])
def test_a_cache_of_the_hub_that_cannot_be_written_is_named(
    place: str, other: Ait, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*_: object, **options: object) -> None:  # as the hub's client starts
        os.makedirs(cache / "datasets--uoft-cs--cifar10/blobs")  # noqa: PTH103

    (tmp_path / "hub").mkdir()
    cache = tmp_path / "hub" / place
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(datasets, "load_dataset", download)
    with closed(tmp_path / "hub", 0o555):
        done = other("train", *IMAGES)
    assert_denied(done, f"cannot write to the cache {cache} (")
    assert "another folder with HF_HUB_CACHE" in done.err


def test_a_bug_report_needs_no_permission(
    other: Ait, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir()
    cache = tmp_path / "closed/cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    with closed(tmp_path / "closed"):
        done = other("doctor")
    assert done.code == 0, done.err
    assert str(cache) in done.out
