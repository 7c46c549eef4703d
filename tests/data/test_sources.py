"""Opening image data sets: the hub, class folders and parquet files."""

import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from PIL import Image

from associative_transformer.data.sources import open_hub_data_set, open_image_folder
from associative_transformer.interface import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "set"


def add_images(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name)


def add_parquet(root: Path, *names: str, classes: tuple[str, ...] = ("a", "b")) -> None:
    features = datasets.Features({"label": datasets.ClassLabel(names=list(classes))})
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict({"label": [0, 1]}, features=features).to_parquet(root / name)


def labels(split: datasets.Dataset) -> list[str]:
    return [split.features["label"].int2str(label) for label in split["label"]]


def test_class_folders_are_read_as_splits_and_classes(root: Path) -> None:
    add_images(root, "train/cat/1.png", "train/cat/2.JPG", "train/dog/deep/3.png")
    add_images(root, "Test/dog/1.png", "other/cat/9.png")
    splits = open_image_folder(root)
    assert set(splits) == {"train", "test"}
    assert labels(splits["train"]) == ["cat", "cat", "dog"]
    assert labels(splits["test"]) == ["dog"]
    assert splits["train"][2]["image"]["path"] == str(root / "train/dog/deep/3.png")


def test_hidden_files_and_other_files_are_ignored(root: Path) -> None:
    add_images(root, "train/a/1.png", "train/b/1.png", "train/a/.hidden.png", "train/.trash/1.png")
    (root / "train/a/notes.txt").write_text("not an image")
    (root / "train/a/folder.png").mkdir()
    (root / "train/c").mkdir()
    splits = open_image_folder(root)
    assert labels(splits["train"]) == ["a", "b"]
    assert splits["train"].features["label"].names == ["a", "b"]


ODD = "we[i]rd *dir? #1 %20 {a}, über:"


def test_names_with_odd_characters_work(tmp_path: Path) -> None:
    add_images(tmp_path / ODD, f"train/{ODD}/{ODD}.png", "train/b/::1.png", f"test/{ODD}/1.png")
    splits = open_image_folder(tmp_path / ODD)
    assert labels(splits["train"]) == ["b", ODD]
    assert Path(splits["test"][0]["image"]["path"]).is_file()
    add_parquet(tmp_path / "p" / ODD, "train-0 [1].parquet")
    assert len(open_image_folder(tmp_path / "p" / ODD)["train"]) == 2


def test_linked_folders_are_followed(root: Path, tmp_path: Path) -> None:
    add_images(tmp_path / "elsewhere", "a/1.png", "b/1.png")
    root.mkdir()
    (root / "train").symlink_to(tmp_path / "elsewhere")
    assert labels(open_image_folder(root)["train"]) == ["a", "b"]


def test_parquet_files_at_any_depth_are_grouped_by_the_split_in_their_path(root: Path) -> None:
    add_parquet(root, "plain_text/train-00000-of-00002.parquet", "plain_text/train-1.parquet")
    add_parquet(root, "default/test/0000.parquet", "train and test/validation-0.parquet")
    add_parquet(root, "unsupervised.parquet", "contest.parquet")
    add_images(root, "train/cat/1.png")
    splits = open_image_folder(root)
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 4,
        "test": 2,
        "validation": 2,
    }


def test_each_parquet_split_keeps_its_own_class_names(root: Path) -> None:
    add_parquet(root, "train.parquet")
    add_parquet(root, "test.parquet", classes=("b", "a"))
    assert labels(open_image_folder(root)["test"]) == ["b", "a"]


def test_a_changed_parquet_file_is_read_again(root: Path) -> None:
    add_parquet(root, "train.parquet")
    open_image_folder(root)
    add_parquet(root, "train.parquet", classes=("x", "y"))
    assert labels(open_image_folder(root)["train"]) == ["x", "y"]


def test_a_missing_or_unsuitable_folder_is_refused_by_name(root: Path) -> None:
    with pytest.raises(UserError, match=r"set does not exist: pass a folder"):
        open_image_folder(root)
    root.mkdir()
    with pytest.raises(UserError, match=r"set has no data: add parquet files"):
        open_image_folder(root)
    file = root / "file.txt"
    file.write_text("")
    with pytest.raises(UserError, match=r"file\.txt is a file, not a folder: pass a folder"):
        open_image_folder(file)


def test_the_error_about_missing_splits_explains_how_to_create_them(
    root: Path, tmp_path: Path
) -> None:
    add_images(root, "cat/1.png", "dog/1.png")
    with pytest.raises(UserError, match=r"set has no split folders: create train/ and test/"):
        open_image_folder(root)
    add_parquet(tmp_path / "p", "data.parquet")
    with pytest.raises(
        UserError, match=r"no parquet file in .*p has the name of a split in its path"
    ):
        open_image_folder(tmp_path / "p")


def test_an_image_outside_the_class_folders_is_named(root: Path) -> None:
    add_images(root, "train/cat/1.png", "train/lost.png")
    with pytest.raises(UserError, match=r"train/lost\.png is not in a class folder: move it"):
        open_image_folder(root)


def test_a_broken_parquet_file_is_refused(root: Path) -> None:
    root.mkdir()
    (root / "train.parquet").write_bytes(b"not parquet")
    with pytest.raises(
        UserError, match=r"\Acannot read the parquet files in .*set \(.*\): they are"
    ):
        open_image_folder(root)


def test_the_error_about_an_unreachable_hub_explains_how_to_use_a_local_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(hub_id: str) -> None:
        raise ConnectionError(f"Couldn't reach '{hub_id}' on the Hub.\nSecond line")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError) as caught:
        open_hub_data_set("uoft-cs/cifar10")
    message = str(caught.value)
    assert message.startswith("cannot load uoft-cs/cifar10 from the Hugging Face hub (Couldn't")
    assert "--include '*.parquet'" in message
    assert message.endswith("--data.source FOLDER")
    assert "\n" not in message


@pytest.mark.slow
def test_no_slow_library_is_imported_until_images_are_opened() -> None:
    code = "import sys, associative_transformer.data; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    modules = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    slow = {"datasets", "torchvision", "accelerate", "pandas", "pyarrow", "torch._dynamo"}
    assert "torch" in modules and not slow & set(modules)


def test_the_datasets_library_prints_nothing_and_keeps_its_settings(
    root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    add_parquet(root, "train.parquet", "test.parquet")
    capfd.readouterr()
    datasets.enable_progress_bars()
    datasets.logging.set_verbosity_warning()
    verbosity = datasets.logging.get_verbosity()
    open_image_folder(root)
    assert capfd.readouterr() == ("", "")
    assert datasets.is_progress_bar_enabled()
    assert datasets.logging.get_verbosity() == verbosity
