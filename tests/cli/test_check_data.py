"""`ait check-data`: what it says about a data set, and whether it can be trained on."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from associative_transformer.data import ImagesConfig
from associative_transformer.data.inspection import inspect_data
from associative_transformer.data.listing import print_once
from associative_transformer.data.summary import DataSummary, Spread
from associative_transformer.runs.reading import parse_json
from making.commands import Ait, assert_refused


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    print_once.cache_clear()


def pixels(*shape: int) -> np.ndarray:
    return np.random.randint(256, size=shape, dtype=np.uint8)


def add(root: Path, name: str, image: Image.Image | None = None, **options: object) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (Image.fromarray(pixels(6, 8, 3)) if image is None else image).save(path, **options)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Write six training images of two classes and two test images, all different."""
    for number in range(6):
        for name in ("cat", "dog"):
            add(tmp_path / "set", f"train/{name}/{number}.png")
    for name in ("cat", "dog"):
        add(tmp_path / "set", f"test/{name}/a.png")
    return tmp_path / "set"


def look(root: Path) -> DataSummary:
    return inspect_data(ImagesConfig("set", source=str(root)), num_workers=0)


def test_a_good_data_set_has_no_warning(ait: Ait, root: Path) -> None:
    done = ait("check-data", root, "--data.num-workers", 0)
    assert done.code == 0 and "warning" not in done.out
    for words in ("set: class folders of each split", "width: 8, height: 6", "PNG (14)"):
        assert words in done.out
    summary = look(root)
    assert [split.classes for split in summary.splits] == [
        {"cat": 6, "dog": 6},
        {"cat": 1, "dog": 1},
    ]
    assert summary.headline == (
        "set: 12 training and 2 test images of 2 classes, 6 training images of each"
    )


def test_the_json_file_holds_the_whole_summary(ait: Ait, root: Path, tmp_path: Path) -> None:
    add(root, "train/cat/gray.png", Image.fromarray(pixels(5, 5)))
    path = tmp_path / "out.json"
    assert ait("check-data", root, "--output", path, "--data.num-workers", 0).code == 0
    assert parse_json(path.read_bytes(), DataSummary) == look(root)
    assert json.loads(path.read_text())["contents"]["modes"] == {"RGB": 14, "grayscale": 1}
    before = (image := root / "train/cat/0.png").read_bytes()
    assert_refused(ait("check-data", root, "--output", image), "an input")
    assert image.read_bytes() == before


def test_mean_and_deviation_are_those_of_the_training_pixels(root: Path) -> None:
    contents = look(root).contents
    images = [np.asarray(Image.open(path)) / 255 for path in root.glob("train/*/*.png")]
    assert contents is not None
    assert contents.mean == pytest.approx(np.mean(images, axis=(0, 1, 2)), abs=1e-4)
    assert contents.std == pytest.approx(np.std(images, axis=(0, 1, 2)), abs=1e-4)


def test_modes_and_formats_are_those_of_the_files(root: Path) -> None:
    kinds = {
        "16-bit grayscale": Image.fromarray(np.full((4, 4), 40000, np.uint16)),
        "palette": Image.fromarray(pixels(4, 4, 3)).quantize(4),
        "RGB with transparency": Image.fromarray(pixels(4, 4, 4)),
        "CMYK": Image.fromarray(pixels(4, 4, 4), "CMYK"),
        "black and white": Image.fromarray(pixels(4, 4)).convert("1"),
    }
    for number, (name, image) in enumerate(kinds.items()):
        add(root, f"train/cat/k{number}.{'tif' if name == 'CMYK' else 'png'}", image)
    frames = [Image.fromarray(pixels(4, 4, 3)) for _ in range(3)]
    add(root, "train/cat/a.gif", frames[0], save_all=True, append_images=frames[1:])
    contents = look(root).contents
    assert contents is not None
    assert contents.modes == {"RGB": 14, **dict.fromkeys(kinds, 1), "palette": 2}
    assert contents.formats == {"PNG": 18, "TIFF": 1, "GIF": 1}
    assert (contents.num_animated, contents.num_constant) == (1, 1)


def test_sizes_are_those_of_upright_images(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    add(root, "train/cat/turned.jpg", Image.fromarray(pixels(10, 100, 3)), exif=exif)
    sizes = look(root).sizes
    assert sizes is not None
    assert (sizes.width, sizes.height) == (Spread(8, 8, 10), Spread(6, 6, 100))
    assert sizes.ratio.largest == 10


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "tif", "gif"])
def test_a_copy_in_another_format_or_mode_is_found(suffix: str, root: Path) -> None:
    original = Image.fromarray(pixels(6, 8)).quantize(16)  # 16 gray levels, exact in a GIF
    add(root, "train/cat/original.png", original.convert("RGB"))
    add(root, f"test/cat/copy.{suffix}", original, **{"webp": {"lossless": True}}.get(suffix, {}))
    contents = look(root).contents
    assert contents is not None and not contents.repeated
    copies = contents.shared["test"]["training"]
    assert copies.num_images == 1
    assert copies.examples == ((f"test/cat/copy.{suffix}", "train/cat/original.png"),)


def test_similar_images_are_not_copies(root: Path) -> None:
    image = Image.open(root / "train/cat/0.png")
    add(root, "test/cat/turned.png", image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    add(root, "test/cat/reshaped.png", Image.fromarray(np.asarray(image).reshape(8, 6, 3)))
    add(root, "test/cat/lossy.jpg", image)
    contents = look(root).contents
    assert contents is not None
    assert (contents.repeated, contents.shared, contents.contradictory.num_images) == ({}, {}, 0)


def test_copies_are_counted_within_and_across_splits_and_classes(ait: Ait, root: Path) -> None:
    image = Image.open(root / "train/cat/0.png")
    for name in ("train/cat/c1", "train/cat/c2", "train/dog/c3", "test/cat/c4", "test/cat/c5"):
        add(root, f"{name}.png", image)
    contents = look(root).contents
    assert contents is not None
    assert {name: each.num_images for name, each in contents.repeated.items()} == {
        "training": 3,
        "test": 1,
    }
    assert contents.shared["test"]["training"].num_images == 2
    assert contents.contradictory.num_images == 6
    assert contents.contradictory.examples == (("train/cat/0.png", "train/dog/c3.png"),)
    out = " ".join(ait("check-data", root, "--data.num-workers", 0).out.split())
    for words in (
        "warning: 2 test images also in the training split (test/cat/c4.png = train/cat/0.png):",
        "warning: 3 training images with the pixels of another one",
        "warning: 6 images with a copy of another class (train/cat/0.png = train/dog/c3.png)",
    ):
        assert words in out


def test_unreadable_images_are_named_and_do_not_count(ait: Ait, root: Path) -> None:
    (root / "train/cat/0.png").write_bytes(b"no image")
    cut = root / "test/cat/b.png"
    cut.write_bytes((root / "train/dog/0.png").read_bytes()[:90])
    done = ait("check-data", root, "--data.num-workers", 2)
    out = " ".join(done.out.split())
    assert done.code == 0
    assert "2 unreadable images (train/cat/0.png: not an image in PNG" in out
    assert "--data.on-error skip" in out
    assert look(root).splits[0].classes == {"cat": 5, "dog": 6}


def test_small_missing_and_unequal_classes_are_named(ait: Ait, root: Path) -> None:
    for number in range(50):
        add(root, f"train/dog/more{number}.png")
    for number in range(4):
        add(root, f"train/rare/{number}.png")
    out = " ".join(ait("check-data", root, "--data.num-workers", 0).out.split())
    assert "1 class with fewer than 5 training images (rare): add images, or" in out
    assert "14 times as many training images as the smallest: pass --data.sampling balanced" in out
    assert "1 class without test images (rare)" in out


def test_only_the_first_classes_of_many_are_listed(ait: Ait, tmp_path: Path) -> None:
    for number in range(30):
        for image in range(2):
            add(tmp_path / "many", f"c{number:02}/{image}.png")
    out = ait("check-data", tmp_path / "many", "--data.num-workers", 0).out
    assert "c19" in out and "c20" not in out and "10 other classes" in out


def test_data_that_cannot_be_trained_on_are_shown_and_refused(ait: Ait, root: Path) -> None:
    for path in root.glob("train/dog/*.png"):
        path.write_bytes(b"")
    done = ait("check-data", root, "--data.num-workers", 0)
    assert "6 unreadable images" in " ".join(done.out.split())
    assert_refused(done._replace(out=""), "train split", "only one class, cat")


@pytest.mark.parametrize("name", ["nowhere", "no/where/at/all", "."])
def test_a_path_without_data_is_refused(
    name: str, ait: Ait, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    words = "has no data" if name == "." else f"{name} does not exist: pass a folder"
    assert_refused(ait("check-data", name), words)


def test_a_set_on_the_hub_is_looked_at_like_a_folder(
    ait: Ait, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = {"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    rows = {
        "img": [Image.fromarray(pixels(4, 4, 3)) for _ in range(10)],
        "label": [0, 1] * 5,
    }
    split = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    monkeypatch.setattr(datasets, "load_dataset", lambda hub_id: {"train": split})
    for name in ("cifar10", "someone/else"):
        done = ait("check-data", name, "--data.num-workers", 0)
        assert done.code == 0, done.err
        assert f"{name}: data set on the hub" in done.out


def test_a_folder_of_twenty_images_is_enough(ait: Ait, tmp_path: Path) -> None:
    for number in range(20):
        add(tmp_path / "few", f"{'ab'[number % 2]}/{number}.png")
    done = ait("check-data", tmp_path / "few", "--data.num-workers", 0)
    assert done.code == 0
    assert "There is no test split" in done.out
    assert "has no test split: 4 of its 20 images" in done.err
