"""Opening image data sets: the hub, class folders and parquet files."""

import errno
import os
import socket
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from associative_transformer.data.listing import list_image_files, print_once
from associative_transformer.data.sources import (
    SplitsConfig,
    open_hub_data_set,
    open_image_folder,
)
from associative_transformer.interface import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    print_once.cache_clear()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "set"


def add_images(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name)


def add_parquet(
    root: Path,
    *names: str,
    classes: tuple[str, ...] = ("a", "b"),
    labels: tuple[int | None, ...] = (0, 1),
) -> None:
    features = datasets.Features({"label": datasets.ClassLabel(names=list(classes))})
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        table = datasets.Dataset.from_dict({"label": list(labels)}, features=features)
        table.to_parquet(root / name)


def labels(split: datasets.Dataset) -> list[str]:
    names = split.features["label"].names
    return ["-" if y in (None, -1) else names[y] for y in split["label"]]


def test_class_folders_are_read_as_splits_and_classes(root: Path) -> None:
    add_images(root, "train/cat/1.png", "train/cat/2.JPG", "train/dog/deep/3.png")
    add_images(root, "Test/dog/1.png", "other/cat/9.png")
    splits = open_image_folder(root)
    assert set(splits) == {"train", "test"}
    assert labels(splits["train"]) == ["cat", "cat", "dog"]
    assert labels(splits["test"]) == ["dog"]
    assert splits["train"][2]["image"]["path"] == str(root / "train/dog/deep/3.png")


def counts(splits: dict[str, datasets.Dataset]) -> dict[str, list[str]]:
    return {name: labels(split) for name, split in splits.items()}


@pytest.mark.parametrize("above", ["", "unpacked/photos/"])
def test_class_folders_without_splits_are_all_for_training(
    above: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["cat/1.png", "cat/deep/2.png", "train/1.png"]  # a train is a vehicle here
    add_images(root, *(f"{above}{name}" for name in names))
    add_images(root, f"{above}lost.png")
    assert counts(open_image_folder(root)) == {"train": ["cat", "cat", "train"]}
    err = capsys.readouterr().err
    assert f"images outside the class folders: 1 ({above}lost.png)" in err
    assert open_image_folder(root, wanted=["test"]) == {}


def test_splits_may_have_other_names_and_be_inside_the_classes(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_images(root, "Training/a/1.png", "Training/b/1.png", "testing/a/1.png", "dev/b/1.png")
    expected = {"train": ["a", "b"], "test": ["a"], "validation": ["b"]}
    assert counts(open_image_folder(root)) == expected
    add_images(tmp_path / "in", "a/train/1.png", "b/train/1.png", "a/test/1.png", "b/dev/1.png")
    assert counts(open_image_folder(tmp_path / "in")) == expected
    add_parquet(tmp_path / "p", "training-0.parquet", "testing.parquet", "dev.parquet")
    assert set(open_image_folder(tmp_path / "p")) == {"train", "test", "validation"}
    add_images(root, "val/a/1.png")  # the usual name of a split comes first
    expected.pop("validation")
    assert counts(open_image_folder(root)) == {**expected, "val": ["a"]}
    assert "outside the split folders: 1 (dev/b/1.png)" in capsys.readouterr().err


def test_a_test_folder_without_classes_is_left_out(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_images(root, "train/a/1.png", "train/b/1.png", "test/1.png", "test/2.png")
    assert counts(open_image_folder(root)) == {"train": ["a", "b"]}
    assert "unlabeled images, in no class folder: 2 (test/1.png" in capsys.readouterr().err


def test_configurations_are_not_taken_for_classes(root: Path) -> None:
    add_images(root, "small/train/a/1.png", "small/test/a/1.png", "full/train/a/1.png")
    with pytest.raises(UserError, match=r"choose a sub-folder that has them with --data\.config"):
        open_image_folder(root)


def test_a_parquet_file_without_the_name_of_a_split_is_divided_by_a_column(root: Path) -> None:
    root.mkdir()
    rows = {"label": ["a", "b", "a"], "split": ["train", "Test", "train"]}
    datasets.Dataset.from_dict(rows).to_parquet(root / "data.parquet")
    for source in (root, root / "data.parquet"):
        splits = open_image_folder(source)
        assert {name: split["label"][:] for name, split in splits.items()} == {
            "train": ["a", "a"],
            "test": ["b"],
        }
        assert "split" not in splits["train"].column_names


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
    add_parquet(root, *(f"plain_text/train-0000{i}-of-00002.parquet" for i in range(2)))
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


def test_an_overwritten_parquet_file_of_the_same_size_and_time_is_read_again(root: Path) -> None:
    file = root / "train.parquet"
    add_parquet(root, file.name, labels=(0, 1, 1, 0))
    before = file.stat()
    assert labels(open_image_folder(root)["train"]) == ["a", "b", "b", "a"]
    add_parquet(root, file.name, labels=(1, 0, 0, 1))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert labels(open_image_folder(root)["train"]) == ["b", "a", "a", "b"]


TWO, THREE = "train-{:05}-of-00002.parquet", "train-{:05}-of-00003.parquet"
DECOMPOSED = unicodedata.normalize("NFD", "café")


@pytest.mark.parametrize("classes", [("b", "a"), ("b", "a", "c"), ("c", "b", "a")])
def test_labels_of_all_files_of_a_split_are_mapped_by_name(
    classes: tuple[str, ...], root: Path
) -> None:
    ours = sorted(classes)
    add_parquet(root, TWO.format(0), classes=tuple(ours), labels=(0, 1, None))
    add_parquet(root, TWO.format(1), classes=classes, labels=(0, 1, -1, None))
    split = open_image_folder(root)["train"]
    assert split.features["label"].names == ours
    assert labels(split) == ["a", "b", "-", *classes[:2], "-", "-"]


def test_class_names_of_files_are_equal_if_they_look_equal(root: Path) -> None:
    add_parquet(root, THREE.format(0), THREE.format(1), classes=("café", "b"))
    add_parquet(root, THREE.format(2), classes=("b", DECOMPOSED))
    assert labels(open_image_folder(root)["train"]) == [*["café", "b"] * 2, "b", "café"]


@pytest.mark.parametrize("classes", [("a", "c"), ("a", "b", "c"), ("a",)])
def test_files_of_a_split_with_other_classes_are_refused_with_both_lists(
    classes: tuple[str, ...], root: Path
) -> None:
    add_parquet(root, TWO.format(0))
    add_parquet(root, TWO.format(1), classes=classes, labels=(0,))
    with pytest.raises(
        UserError, match=rf"different classes .* \(\[a, b\] and \[{', '.join(classes)}\]\): save"
    ):
        open_image_folder(root)


def test_a_file_without_class_names_next_to_one_with_names_is_refused(root: Path) -> None:
    add_parquet(root, TWO.format(0))
    datasets.Dataset.from_dict({"label": [1, 0]}).to_parquet(root / TWO.format(1))
    with pytest.raises(UserError, match=r"different classes .* \(\[a, b\] and none\)"):
        open_image_folder(root)


@pytest.mark.parametrize(
    ("present", "missing"),
    [
        ([TWO.format(0)], TWO.format(1)),
        ([TWO.format(1)], TWO.format(0)),
        ([f"data/{THREE.format(i)}" for i in (0, 2)], f"data/{THREE.format(1)}"),
        (["train-00001-of-00002-0a1b2c3d.parquet"], "train-00000-of-00002.parquet"),
        (["x/train/0-of-2.parquet"], None),
        (["train/part-0-of-2.parquet"], "train/part-1-of-2.parquet"),
        (["Train-1-of-3.PARQUET", "Train-3-of-3.PARQUET"], "Train-2-of-3.parquet"),
    ],
)
def test_a_missing_file_of_a_split_is_named(
    present: list[str], missing: str | None, root: Path
) -> None:
    add_parquet(root, *present, "test-0.parquet")
    if missing is None:  # not the name of a part
        assert len(open_image_folder(root)["train"]) == 2
        return
    with pytest.raises(
        UserError, match=rf"only {len(present)} of the \d files of the train split, .* {missing}:"
    ):
        open_image_folder(root)
    assert set(open_image_folder(root, wanted=["test"])) == {"test"}


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["small/train-0.parquet", "full/train-0.parquet"], "2 configurations (full, small)"),
        (["x/small/train/0.parquet", "train/0.parquet"], "2 configurations (., x/small)"),
        ([TWO.format(0), TWO.format(1), "train-00000-of-00001.parquet"], "2 sets of files"),
        (["train.parquet", "train-00000-of-00001.parquet"], "2 sets of files"),
        (["small-train-0-of-1.parquet", "full-train-0-of-1.parquet"], "2 sets of files"),
        (["train-0-of-1-aa.parquet", "train-0-of-1-bb.parquet"], "more than once"),
    ],
)
def test_rows_that_may_be_read_twice_are_refused(names: list[str], words: str, root: Path) -> None:
    add_parquet(root, *names)
    with pytest.raises(UserError, match="train split") as caught:
        open_image_folder(root)
    assert words in str(caught.value)
    assert ("--data.config" in str(caught.value)) == ("configurations" in words)


def test_a_configuration_can_be_chosen(root: Path) -> None:
    add_parquet(root, "small/train-0.parquet", "small/test-0.parquet", "full/test-0.parquet")
    add_parquet(root, "full/train-0.parquet", labels=(1, 1, 0))
    sizes = {
        name: len(open_image_folder(root, SplitsConfig(config=name))["train"])
        for name in ("small", "full")
    }
    assert sizes == {"small": 2, "full": 3}
    with pytest.raises(UserError, match=r"no configuration tiny, only full, small: change"):
        open_image_folder(root, SplitsConfig(config="tiny"))


def test_several_files_of_a_split_in_one_configuration_are_read_together(root: Path) -> None:
    add_parquet(root, "d/train/a/0000.parquet", "d/train/b/0000.parquet", "d/train/0.parquet")
    assert len(open_image_folder(root)["train"]) == 6


def test_a_configuration_of_class_folders_is_a_sub_folder(root: Path) -> None:
    add_images(root, "small/train/a/1.png", "full/train/a/1.png", "full/train/b/1.png")
    with pytest.raises(UserError, match=r"tiny does not exist"):
        open_image_folder(root, SplitsConfig(config="tiny"))
    for stray in ("full.parquet", "train.parquet"):
        splits = open_image_folder(root, SplitsConfig(config="full"))
        assert labels(splits["train"]) == ["a", "b"]
        add_parquet(root, stray)


def test_a_split_may_have_any_name_if_it_is_the_test_split(root: Path, tmp_path: Path) -> None:
    add_images(root, "train/a/1.png", "train/b/1.png", "dev/a/1.png")
    add_parquet(tmp_path / "p", "train-0.parquet", "dev-0.parquet")
    for folder in (root, tmp_path / "p"):
        splits = open_image_folder(folder, SplitsConfig(test_split="dev"))
        assert set(splits) == {"train", "dev"}


def test_a_revision_of_a_local_folder_is_refused(root: Path) -> None:
    add_parquet(root, "train.parquet")
    with pytest.raises(UserError, match=r"--data\.revision applies to the hub, not to"):
        open_image_folder(root, SplitsConfig(revision="main"))


def test_configuration_and_revision_are_passed_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[Any] = []

    def load(hub_id: str, **options: str) -> dict[str, Any]:
        requests.append((hub_id, options))
        return {}

    monkeypatch.setattr(datasets, "load_dataset", load)
    open_hub_data_set("me/set", SplitsConfig(config="small", revision="v2"))
    open_hub_data_set("me/set")
    assert requests == [("me/set", {"name": "small", "revision": "v2"}), ("me/set", {})]


LEFT_OUT = {
    "backups": ["1.JPG~", "1.png.bak", "2.jpg.orig"],
    "hidden": [".1.png", "__MACOSX", ".git"],
    "not images": ["notes.txt", "Thumbs.db", "empty"],
    "broken links": ["gone.png"],
    "not regular files": ["pipe.png"],
}
READ = ["1.jfif", "2.pnm", "3.pbm", "4", "5.foo", "6.JPE", "7.dib", "8.apng"]


@pytest.fixture
def mixed(root: Path) -> Path:
    """Make a class with images of all kinds of names, and with files to be left out."""
    folder = root / "train" / "a"
    folder.mkdir(parents=True)
    formats = ["jpeg", "ppm", "ppm", "png", "webp", "jpeg", "bmp", "png"]
    for name, kind in zip(READ, formats, strict=True):
        Image.new("1" if name == "3.pbm" else "RGB", (4, 4)).save(folder / name, kind)
    for name in (*LEFT_OUT["backups"], ".1.png"):
        Image.new("RGB", (4, 4)).save(folder / name, "png")
    for name in ("__MACOSX", ".git"):
        add_images(folder / name, "a/1.png", "2.png")
    for name in LEFT_OUT["not images"]:
        (folder / name).write_bytes(b"" if name == "empty" else b"text")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    os.mkfifo(folder / "pipe.png")
    return root


def test_images_are_found_by_content_and_what_is_left_out_is_named_once(
    mixed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_images(mixed, "train/b/1.png", "other/c/1.png")
    for _ in range(2):
        split = open_image_folder(mixed)["train"]
    assert [Path(image["path"]).name for image in split["image"]] == [*READ, "1.png"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"left out of {mixed}: ")
    for reason, names in LEFT_OUT.items():
        listed = ", ".join(sorted(f"train/a/{name}" for name in names))
        assert f"{reason}: {len(names)} ({listed})" in line
    assert "images outside the split folders: 1 (other/c/1.png)" in line


def test_the_images_of_a_folder_are_found_in_the_same_way(
    mixed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list_image_files(mixed) == [mixed / "train" / "a" / name for name in READ]
    assert "backups: 3 (train/a/1.JPG~, " in capsys.readouterr().err


def test_a_damaged_image_is_not_left_out_without_a_word(root: Path) -> None:
    add_images(root, "train/a/1.png", "train/b/1.png")
    (root / "train/a/2.png").write_bytes(b"")
    assert len(open_image_folder(root)["train"]) == 3


@pytest.mark.parametrize("stray", ["train.parquet", "train/index.parquet", "test-0.parquet"])
def test_a_stray_parquet_file_does_not_hide_class_folders(
    stray: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_images(root, "train/a/1.png", "train/b/1.png", "test/a/1.png")
    add_parquet(root, stray)
    splits = open_image_folder(root)
    assert {name: len(split) for name, split in splits.items()} == {"train": 2, "test": 1}
    assert f"parquet files next to class folders: 1 ({stray})" in capsys.readouterr().err


def test_two_folders_of_one_split_are_refused(root: Path) -> None:
    add_images(root, "train/a/1.png", "train/b/1.png", "Train/a/1.png", "test/a/1.png")
    with pytest.raises(UserError, match=r"train split is there in 2 folders \(Train, train\)"):
        open_image_folder(root)


def test_a_cache_that_would_become_too_large_is_named(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: str, **options: object) -> None:
        raise OSError("Not enough disk space. Needed: 3 GB")

    add_parquet(root, "train.parquet")
    monkeypatch.setattr(datasets.Dataset, "from_parquet", fail)
    with pytest.raises(UserError, match=r"cannot write to the cache .*cache \(Not enough disk"):
        open_image_folder(root)


def test_a_cache_below_a_file_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_parquet(root, "train.parquet")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "train.parquet/cache")
    with pytest.raises(UserError, match=r"cannot write to the cache .*cache \(Not a directory\)"):
        open_image_folder(root)


def test_two_complete_data_sets_in_one_folder_are_refused(root: Path) -> None:
    add_images(root, "train/a/1.png", "train/b/1.png", "test/a/1.png")
    add_parquet(root, "train.parquet", "test.parquet")
    with pytest.raises(UserError, match="has both parquet files and class folders"):
        open_image_folder(root)


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.ENOTDIR]
)
@pytest.mark.parametrize("is_hub", [False, True])
def test_a_cache_that_cannot_be_written_is_named(
    is_hub: bool, number: int, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: str, **options: object) -> None:
        try:
            raise OSError(number, os.strerror(number), str(tmp_path / "cache" / "lock"))
        except OSError as error:
            raise RuntimeError("An error occurred while generating the dataset") from error

    add_parquet(root, "train.parquet")
    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.setattr(datasets.Dataset, "from_parquet", fail)
    with pytest.raises(
        UserError, match=r"cannot write to the cache .*cache \(.*HF_DATASETS_CACHE"
    ):
        open_hub_data_set("me/set") if is_hub else open_image_folder(root)


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


@pytest.mark.parametrize(
    "names", [["1.png", "2.png"], ["cat/1.png"], ["train/1.png", "test/2.png"]]
)
def test_the_error_about_missing_classes_explains_how_to_create_them(
    names: list[str], root: Path
) -> None:
    add_images(root, *names)
    with pytest.raises(UserError, match=r"set has images, but not in a folder for each class: cr"):
        open_image_folder(root)


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
    assert message.startswith("cannot load uoft-cs/cifar10 from the Hugging Face Hub (Couldn't")
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


def test_local_data_are_opened_without_a_network(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = []

    def refuse(*arguments: object, **_: object) -> None:
        requests.append(arguments)
        raise OSError("Network is unreachable")

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", True)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    add_parquet(root, TWO.format(0), "test.parquet")
    datasets.load_dataset("parquet", data_files=str(root / "test.parquet"))
    assert requests  # to count the download
    requests.clear()
    add_parquet(root, TWO.format(1), classes=("b", "a"))
    add_images(tmp_path / "folders", "train/a/1.png", "train/b/1.png", "test/a/1.png")
    for folder in (root, tmp_path / "folders"):
        assert set(open_image_folder(folder)) == {"train", "test"}
    assert requests == []
    assert datasets.config.HF_UPDATE_DOWNLOAD_COUNTS is True
