"""Image data sets of class folders and parquet files, decoding, and error messages."""

import hashlib
import io
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from torchvision.transforms.v2 import functional as v2

from associative_transformer.data import (
    DataConfig,
    DataSet,
    ImagesConfig,
    Split,
    SplitsConfig,
    TriangleConfig,
    decode_image,
)
from associative_transformer.data.augmentation import AugmentationConfig
from associative_transformer.data.listing import print_once
from associative_transformer.interface import PADDING, Batch, UserError
from associative_transformer.runs.checkpoint import TrainingState

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    print_once.cache_clear()


def random_image(width: int = 8, height: int = 8, mode: str = "RGB") -> Image.Image:
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.randint(256, size=shape, dtype=np.uint8))


def pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).movedim(-1, 0)


def encoded(image: Image.Image, suffix: str = "png") -> bytes:
    file = io.BytesIO()
    image.save(file, suffix)
    return file.getvalue()


def make_folder(root: Path, **counts: dict[str, int]) -> Path:
    for split, classes in counts.items():
        for name, count in classes.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                random_image(8 + i % 3).save(root / split / name / f"{i}.png")
    return root


def make_parquet(root: Path, split: str, rows: dict[str, list[Any]], **features: object) -> None:
    root.mkdir(exist_ok=True)
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    table.to_parquet(root / f"{split}-00000-of-00001.parquet")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "set", train={"cat": 13, "dog": 12}, test={"cat": 4, "dog": 3})


def config(source: Path, **changes: object) -> ImagesConfig:
    return ImagesConfig(
        "mine", source=str(source), **{"image_size": 8, "num_workers": 0} | changes
    )


def load(source: Path, **changes: object) -> DataSet:
    return config(source, **changes).load(CPU)


def images(batches: Iterator[Batch]) -> Tensor:
    return torch.cat([batch.images[batch.labels != PADDING] for batch in batches])


def test_an_image_of_the_right_size_is_decoded_unchanged(tmp_path: Path) -> None:
    image = random_image()
    image.save(tmp_path / "a.png")
    assert torch.equal(decode_image(tmp_path / "a.png", 8), pixels(image))
    assert torch.equal(decode_image(encoded(image), 8), pixels(image))


@pytest.mark.parametrize(("width", "height"), [(20, 20), (32, 20), (20, 32), (5, 5)])
def test_other_images_are_resized_and_center_cropped_as_torchvision_does(
    width: int, height: int
) -> None:
    gradient = np.linspace(0, 255, width * height * 3).reshape(height, width, 3)
    image = Image.fromarray(gradient.astype(np.uint8))
    decoded = decode_image(encoded(image), 10)
    twin = v2.resize(pixels(image), [10], v2.InterpolationMode.BICUBIC, antialias=True)
    expected = v2.center_crop(twin, [10, 10])
    assert (decoded.int() - expected.int()).abs().max() <= 2


def test_rotation_stored_in_exif_is_applied() -> None:
    image, file = random_image(), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(file, "png", exif=exif)
    assert torch.equal(decode_image(file.getvalue(), 8), pixels(image).rot90(-1, (1, 2)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_three_channels(mode: str) -> None:
    image = random_image().convert(mode)
    decoded = decode_image(encoded(image, "tiff" if mode == "CMYK" else "png"), 8)
    assert torch.equal(decoded, pixels(image))


@pytest.mark.filterwarnings("error")
def test_transparent_pixels_are_white_without_a_warning() -> None:
    image = random_image()
    palette, file = image.convert("P"), io.BytesIO()
    palette.save(file, "png", transparency=bytes([255] * 256))
    assert torch.equal(decode_image(file.getvalue(), 8), pixels(palette))
    clear = image.copy()
    clear.putalpha(0)
    assert (decode_image(encoded(clear), 8) == 255).all()


def test_sixteen_bits_keep_their_upper_half() -> None:
    values = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    decoded = decode_image(encoded(Image.fromarray(values)), 8)
    assert torch.equal(decoded[1], torch.from_numpy((values >> 8).astype(np.uint8)))


def test_unreadable_images_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(random_image(64, 64))
    files = {"empty": b"", "text": b"hello", "cut": content[:-2000], "float": None, "gone": None}
    files["bomb"] = encoded(random_image(200, 200))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    for name, data in files.items():
        path = tmp_path / f"{name}.tif"
        if data is not None:
            path.write_bytes(data)
        elif name == "float":
            Image.fromarray(np.zeros((8, 8), np.float32)).save(path)
        with pytest.raises(UserError, match=rf"\Acannot read the image {re.escape(str(path))} \("):
            decode_image(path, 8)


def test_a_folder_of_class_folders_loads(folder: Path) -> None:
    data = load(folder)
    assert data.class_names == ("cat", "dog")
    assert (len(data.train), len(data.test), data.validation, data.num_skipped) == (25, 7, None, 0)
    batches = list(data.test.eval_batches(4))
    assert [batch.labels.tolist() for batch in batches] == [[0, 0, 0, 0], [1, 1, 1, PADDING]]
    mean, std = (torch.tensor(x)[:, None, None] for x in (config(folder).mean, config(folder).std))
    expected = (decode_image(folder / "test/cat/0.png", 8) / 255 - mean) / std
    torch.testing.assert_close(batches[0].images[0], expected)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_streamed_sets_equal_resident_ones_bit_for_bit(folder: Path, num_workers: int) -> None:
    resident = load(folder)
    streaming = load(folder, memory_budget=0.0, num_workers=num_workers)
    assert type(resident.train.loader) is not type(streaming.train.loader)
    for ours, theirs in (
        (resident.test.eval_batches(4), streaming.test.eval_batches(4)),
        (resident.train.train_batches(8, 0, 1), streaming.train.train_batches(8, 0, 1)),
    ):
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.labels, b.labels)


def test_the_memory_budget_counts_the_decoded_bytes_of_both_splits(folder: Path) -> None:
    gib = 32 * 3 * 8 * 8 / 2**30
    inside, outside = (load(folder, memory_budget=gib * x) for x in (1.0, 0.99))
    assert hasattr(inside.train.loader, "images")
    assert not hasattr(outside.train.loader, "images")


def test_resized_crops_are_streamed_and_depend_only_on_seed_and_epoch(folder: Path) -> None:
    alone = load(folder, augment="resized_crop")
    shared = load(folder, augment="resized_crop", num_workers=2)
    before = torch.get_rng_state()
    reference = images(alone.train.train_batches(8, 3, 1))
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(5)
    assert torch.equal(reference, images(shared.train.train_batches(8, 3, 1)))
    assert torch.equal(reference[8:], images(alone.train.train_batches(8, 3, 1, first_step=1)))
    assert not torch.equal(reference, images(alone.train.train_batches(8, 4, 1)))
    assert not torch.equal(reference, images(alone.train.train_batches(8, 3, 2)))
    resident = load(folder)
    mirrored = [*images(alone.train.eval_batches(8)), *images(alone.train.eval_batches(8)).flip(3)]
    assert not any(torch.equal(a, b) for a in reference for b in mirrored)
    for split in ("train", "test"):  # evaluation does not crop at random
        ours, theirs = getattr(alone, split), getattr(resident, split)
        assert torch.equal(images(ours.eval_batches(8)), images(theirs.eval_batches(8)))


@pytest.mark.parametrize("image_size", [8, 72])
def test_strong_augmentation_depends_only_on_seed_and_epoch(folder: Path, image_size: int) -> None:
    def batches(data: DataSet, *place: int) -> list[Tensor]:
        epoch = list(data.train.train_batches(8, *place))
        return [torch.stack([batch.images for batch in epoch]), *[b.labels for b in epoch]]

    alone, shared = (
        load(folder, augment="strong", image_size=image_size, num_workers=workers)
        for workers in (0, 2)
    )
    assert hasattr(alone.train.loader, "images") == (image_size == 8)
    before = torch.get_rng_state()
    reference = batches(alone, 3, 1)
    assert torch.equal(before, torch.get_rng_state())
    for ours, theirs in zip(reference, batches(shared, 3, 1), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(reference[0][1:], batches(alone, 3, 1, 1)[0])
    assert not torch.equal(reference[0], batches(alone, 3, 2)[0])
    assert reference[1].shape == (8, 2) and reference[1].sum(dim=1).tolist() == [1] * 8
    labels = torch.cat([batch.labels for batch in alone.test.eval_batches(7)])
    assert labels.tolist() == [0] * 4 + [1] * 3  # the test split is neither mixed nor augmented
    plain = load(folder, augment="none", image_size=image_size)
    for split in ("train", "test"):
        ours, theirs = (getattr(data, split).eval_batches(8) for data in (alone, plain))
        assert torch.equal(images(ours), images(theirs))


def test_a_streamed_strong_epoch_equals_a_resident_one(folder: Path) -> None:
    resident = load(folder, augment="strong")
    streaming = load(folder, augment="strong", memory_budget=0.0)
    assert type(resident.train.loader) is not type(streaming.train.loader)
    epochs = (data.train.train_batches(8, 0, 1) for data in (resident, streaming))
    for ours, theirs in zip(*epochs, strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)


def test_the_scale_of_a_resized_crop_can_be_chosen(folder: Path) -> None:
    whole = AugmentationConfig(scale=(1.0, 1.0), flip="none")
    data = load(folder, augment="none", augmentation=whole)
    assert not hasattr(data.train.loader, "images")  # crops come from the original images
    small = load(folder, augment="none", augmentation=replace(whole, scale=(0.1, 0.1)))
    assert not torch.equal(
        images(data.train.train_batches(8, 0, 0)), images(small.train.train_batches(8, 0, 0))
    )


def test_balanced_sampling_is_a_setting_of_the_training_split(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "set", train={"a": 20, "b": 4}, test={"a": 5, "b": 1})
    data = load(folder, sampling="balanced", val_fraction=0.25)
    labels = torch.cat([batch.labels for batch in data.train.train_batches(6, 0, 0)])
    assert labels.bincount().tolist() == [9, 9]
    assert data.validation is not None
    assert images(data.validation.eval_batches(6)).shape[0] == len(data.validation) == 6
    assert images(data.test.eval_batches(6)).shape[0] == 6


def test_without_augmentation_training_yields_the_stored_images(folder: Path) -> None:
    data = load(folder, augment="none")
    stored = {tuple(image.flatten().tolist()) for image in images(data.train.eval_batches(25))}
    trained = {tuple(i.flatten().tolist()) for i in images(data.train.train_batches(25, 0, 0))}
    assert stored == trained
    moved = {
        tuple(i.flatten().tolist()) for i in images(load(folder).train.train_batches(25, 0, 0))
    }
    assert not stored & moved


def test_validation_images_come_from_training_and_are_never_augmented(folder: Path) -> None:
    data, whole = load(folder, val_fraction=0.2), load(folder)
    assert data.validation is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 5, 7)
    assert not set(data.train.rows.tolist()) & set(data.validation.rows.tolist())
    stored = images(whole.train.eval_batches(25))
    assert torch.equal(images(data.validation.eval_batches(2)), stored[data.validation.rows])
    assert torch.equal(images(data.test.eval_batches(7)), images(whole.test.eval_batches(7)))


@pytest.mark.parametrize(("limit", "cats", "dogs"), [(2, 1, 1), (9, 6, 3), (21, 18, 3)])
def test_a_limit_balances_the_classes(tmp_path: Path, limit: int, cats: int, dogs: int) -> None:
    folder = make_folder(
        tmp_path / "set", train={"cat": 23, "dog": 22}, test={"cat": 30, "dog": 3}
    )
    data = load(folder, limit=limit)
    counts = data.train.labels.bincount().tolist()
    assert sum(counts) == limit and abs(counts[0] - counts[1]) <= 1
    assert data.test.labels.bincount().tolist() == [cats, dogs]


def test_a_limit_selects_the_same_images_each_time_and_a_higher_one_adds_to_them(
    folder: Path,
) -> None:
    whole = load(folder, augment="none")
    small, again, large = (load(folder, augment="none", limit=n) for n in (6, 6, 12))
    images = [images_of(data.train) for data in (small, again, large, whole)]
    assert images[0] == images[1]
    assert images[0] < images[2] < images[3]
    assert config(folder, limit=4).load_test(CPU).test.labels.tolist() == (
        load(folder, limit=4).test.labels.tolist()
    )


def test_a_limit_above_the_number_of_images_keeps_all(folder: Path) -> None:
    data = load(folder, limit=13)
    assert (len(data.train), len(data.test)) == (13, 7)


def test_a_limit_below_the_number_of_classes_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"--data.limit 1 leaves some of the 2 .* raise it to 2"):
        load(folder, limit=1)
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        ImagesConfig("mine", limit=0)


def images_of(split: Split) -> set[bytes]:
    batches = split.eval_batches(4)
    return {
        image.numpy().tobytes()
        for batch in batches
        for image, label in zip(batch.images, batch.labels, strict=True)
        if label != PADDING
    }


def test_a_parquet_folder_loads_through_its_image_and_class_columns(tmp_path: Path) -> None:
    names = datasets.ClassLabel(names=["x", "y", "z"])
    stored = [random_image() for _ in range(3)]
    for split in ("train", "validation"):
        rows = {"id": [7, 8, 9], "picture": stored, "kind": [0, 1, 2]}
        features = {"id": datasets.Value("int64"), "picture": datasets.Image(), "kind": names}
        make_parquet(tmp_path / "p", split, rows, **features)
    data = load(tmp_path / "p", mean=(0.0,) * 3, std=(1.0,) * 3)
    assert data.class_names == ("x", "y", "z")
    (batch,) = data.test.eval_batches(3)
    assert torch.equal(batch.images, torch.stack([pixels(image) for image in stored]) / 255)


@pytest.fixture
def two_columns(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        rows = {"img": [random_image(), random_image()], "fine_label": [2, 0]}
        rows |= {"coarse_label": [0, 1], "thumb": [random_image(2, 2), random_image(2, 2)]}
        features = {"img": datasets.Image(), "thumb": datasets.Image()}
        features["fine_label"] = datasets.ClassLabel(names=["a", "b", "c"])
        features["coarse_label"] = datasets.ClassLabel(names=["A", "B"])
        make_parquet(tmp_path / "two", split, rows, **features)
    return tmp_path / "two"


def test_a_short_name_selects_the_columns(two_columns: Path) -> None:
    data = ImagesConfig("cifar100", source=str(two_columns), num_workers=0).load(CPU)
    assert data.class_names == ("a", "b", "c")
    assert data.train.labels.tolist() == [2, 0]
    chosen = load(two_columns, image_column="thumb", label_column="coarse_label")
    assert chosen.class_names == ("A", "B")
    with pytest.raises(
        UserError, match=r"2 columns of type Image \(img, thumb\): .*--data.image-c"
    ):
        load(two_columns)
    with pytest.raises(
        UserError, match=r"2 columns of type ClassLabel \(fine_label, .*--data.label-column"
    ):
        load(two_columns, image_column="img")
    with pytest.raises(UserError, match=r"has no column img of type ClassLabel, only .*img \(Im"):
        load(two_columns, image_column="img", label_column="img")


@pytest.mark.parametrize(
    ("name", "hub_id"),
    [
        ("cifar10", "uoft-cs/cifar10"),
        ("cifar100", "uoft-cs/cifar100"),
        ("pets", "timm/oxford-iiit-pet"),
        ("imagenet100", "clane9/imagenet-100"),
        ("someone/else", "someone/else"),
    ],
)
def test_without_a_source_the_data_set_is_loaded_from_the_hub(
    name: str, hub_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(requested: str) -> None:
        raise ConnectionError(f"requested {requested}")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=rf"cannot load {hub_id} .*\(requested {hub_id}\)"):
        ImagesConfig(name).load(CPU)


def test_a_hub_set_loads_like_a_local_one(
    two_columns: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = datasets.load_dataset("parquet", data_dir=str(two_columns))
    monkeypatch.setattr(datasets, "load_dataset", lambda hub_id: local)
    assert ImagesConfig("cifar100", num_workers=0).load(CPU).class_names == ("a", "b", "c")


def test_data_sets_that_cannot_be_learned_or_tested_are_refused(tmp_path: Path) -> None:
    cases = {
        "one": (
            {"train": {"a": 2}, "test": {"a": 1}},
            r"train split .*one has only one class, a:",
        ),
        "new": (
            {"train": {"a": 1, "b": 1}, "test": {"a": 1, "c": 1, "d": 1}},
            r"test split of .*new has the classes \[a, c, d\], but .* \[a, b\]: add .* c, d, or",
        ),
        "untested": (
            {"train": {"a": 1, "b": 1}},
            r"untested has 2 images, of which a test fraction of 0\.2 leaves none",
        ),
        "untrained": ({"test": {"a": 1}}, r"untrained has no training split, only test: add"),
    }
    for name, (counts, message) in cases.items():
        make_folder(tmp_path / name, **counts)
        with pytest.raises(UserError, match=message):
            load(tmp_path / name)


def test_columns_labels_and_class_names_are_checked(tmp_path: Path) -> None:
    picture, number = datasets.Image(), datasets.Value("int64")
    ab = datasets.ClassLabel(names=["a", "b"])
    two = [random_image(), random_image()]
    cases: dict[str, tuple[list[Any], Any, Any, str]] = {
        "plain": (
            [0, 1],
            picture,
            number,
            r"test split .* classes \[a, b\], but .* \[0, 1\]: add",
        ),
        "blind": (
            [0, 1],
            None,
            ab,
            r"no column of type Image, only x \(int64\), y \(ClassLabel\): choose .*image-col",
        ),
        "hidden": (
            [0, -1],
            picture,
            ab,
            r"row 1 of the train split of .*label -1, outside 0 to 1",
        ),
        "unlabeled": ([None, 1], picture, ab, r"row 0 of the train split .* label None, outside"),
        "empty": ([], picture, ab, r"cannot read .*empty \(.*\): they are damaged or empty"),
    }
    for name, (labels, image_type, label_type, message) in cases.items():
        kind = image_type or number
        make_parquet(tmp_path / name, "test", {"x": two, "y": [0, 1]}, x=picture, y=ab)
        rows = two[: len(labels)] if image_type else labels
        make_parquet(tmp_path / name, "train", {"x": rows, "y": labels}, x=kind, y=label_type)
        with pytest.raises(UserError, match=message):
            load(tmp_path / name)


@pytest.mark.parametrize("memory_budget", [4.0, 0.0])
def test_an_unreadable_file_stops_loading_or_is_skipped_and_counted(
    folder: Path, memory_budget: float
) -> None:
    broken = [folder / "train/cat/3.png", folder / "train/dog/0.png", folder / "test/dog/1.png"]
    reference = load(folder)
    for path in broken:
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=r"3\.png \(.*\): .* or pass --data\.on-error skip\Z"):
        stopping = load(folder, memory_budget=memory_budget, num_workers=2)
        images(stopping.train.train_batches(25, 0, 0))
    data = load(folder, memory_budget=memory_budget, on_error="skip")
    assert (len(data.train), len(data.test), data.num_skipped) == (23, 6, 3)
    kept = [row for row in range(25) if row not in (6, 13)]  # 10, 11 and 12 sort before 3
    assert torch.equal(data.train.labels, reference.train.labels[kept])
    ours, theirs = images(data.train.eval_batches(5)), images(reference.train.eval_batches(5))
    assert torch.equal(ours, theirs[kept])
    for path in folder.glob("test/*/*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"test split of .*set is empty: add images"):
        load(folder, memory_budget=memory_budget, on_error="skip")


@pytest.mark.parametrize("cell", [b"junk", b"", None])
def test_an_unreadable_parquet_image_is_named_by_split_and_row(
    tmp_path: Path, cell: bytes | None
) -> None:
    good = {"bytes": encoded(random_image()), "path": "a.png"}
    bad = None if cell is None else {"bytes": cell, "path": "a.png"}
    for split, rows in (("train", [good, bad]), ("test", [good, good])):
        features = {"x": datasets.Image(), "y": datasets.ClassLabel(names=["a", "b"])}
        make_parquet(tmp_path / "p", split, {"x": rows, "y": [0, 1]}, **features)
    with pytest.raises(
        UserError, match=r"image in row 1 of the train split of .*p \(not an image"
    ):
        load(tmp_path / "p")
    with pytest.raises(UserError, match=r"train split of .*p has only one class, a"):
        load(tmp_path / "p", on_error="skip")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 0),
        ("crop_padding", -1),
        ("std", (0.1, 0.0, 0.1)),
        ("std", (0.1, 0.1, float("inf"))),
        ("mean", (0.5, float("nan"), 0.5)),
        ("memory_budget", float("nan")),
        ("val_fraction", 1.0),
        ("memory_budget", -1.0),
        ("num_workers", -1),
    ],
)
def test_an_impossible_setting_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{field}.*{re.escape(str(value))}"):
        ImagesConfig("cifar10", **{field: value})


def test_a_saved_configuration_is_identified_by_its_kind() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(DataConfig)
    for saved in (TriangleConfig(seed=3), ImagesConfig("pets", image_size=224)):
        assert adapter.validate_json(adapter.dump_json(saved)) == saved
    with pytest.raises(ValidationError):
        adapter.validate_python({"kind": "sounds", "name": "x"})


def test_an_image_file_is_prepared_as_in_evaluation(folder: Path) -> None:
    batch = next(load(folder).test.eval_batches(4))
    single = config(folder).load_image(folder / "test/cat/2.png")
    assert torch.equal(single, batch.images[2])


def test_an_image_file_of_a_triangle_is_prepared_like_a_generated_one(tmp_path: Path) -> None:
    drawn = TriangleConfig(num_train=1, num_test=1)
    (batch,) = drawn.load(CPU).test.eval_batches(1)
    pixel = (batch.images[0, 0] * 255).byte().numpy()
    for mode in ("L", "RGB"):
        Image.fromarray(pixel).convert(mode).save(tmp_path / f"{mode}.png")
        assert torch.equal(drawn.load_image(tmp_path / f"{mode}.png"), batch.images[0])
    random_image(90, 70).save(tmp_path / "color.png")
    for channels in (1, 3):
        image = TriangleConfig(channels=channels).load_image(tmp_path / "color.png")
        assert image.shape == (channels, 64, 64)
        assert (image == image[:1]).all()


def test_the_test_split_can_be_loaded_without_reading_training_images(folder: Path) -> None:
    whole = images(load(folder).test.eval_batches(4))
    next((folder / "train").rglob("*.png")).write_bytes(b"broken")
    held_out = config(folder).load_test(CPU)
    assert torch.equal(images(held_out.test.eval_batches(4)), whole)
    assert (held_out.class_names, held_out.num_skipped) == (("cat", "dog"), 0)


def test_the_original_image_of_an_item_is_the_stored_one(folder: Path) -> None:
    settings = config(folder)
    split = settings.load_test(CPU).test
    stored = split.loader.images  # type: ignore[attr-defined]
    for item in (0, 5):
        assert (settings.original_image(split, item) == stored[split.rows[item]].numpy()).all()
    raw = TriangleConfig(num_train=4, num_test=4, raw=True)
    shown = raw.original_image(raw.load_test(CPU).test, 2)
    assert shown.shape == (3, 64, 64) and set(np.unique(shown)) == {0, 255}


def test_the_test_triangles_can_be_generated_alone() -> None:
    triangles = TriangleConfig(num_train=4, num_test=12)
    whole = images(triangles.load(CPU).test.eval_batches(5))
    assert torch.equal(images(triangles.load_test(CPU).test.eval_batches(5)), whole)


def test_only_the_test_images_are_needed_to_load_them(folder: Path, tmp_path: Path) -> None:
    whole = images(load(folder).test.eval_batches(4))
    shutil.rmtree(folder / "train")
    held_out = config(folder).load_test(CPU)
    assert torch.equal(images(held_out.test.eval_batches(4)), whole)
    shutil.rmtree(folder / "test/dog")
    assert config(folder).load_test(CPU).class_names == ("cat",)
    with pytest.raises(UserError, match="has no training split, only test"):
        load(folder)
    features = {"x": datasets.Image(), "y": datasets.ClassLabel(names=["a", "b"])}
    make_parquet(tmp_path / "p", "test", {"x": [random_image()], "y": [1]}, **features)
    assert config(tmp_path / "p").load_test(CPU).class_names == ("a", "b")


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_stored_validation_split_is_used_if_there_is_a_test_split(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_folder(folder, **{name: {"cat": 3, "dog": 2}})
    data = load(folder)
    assert data.validation is not None
    assert [len(part) for part in (data.train, data.validation, data.test)] == [25, 5, 7]
    first = next(data.validation.eval_batches(1)).images[0]
    assert torch.equal(first, config(folder).load_image(folder / name / "cat/0.png"))
    assert capsys.readouterr().err == ""
    limited = load(folder, limit=2)
    assert limited.validation is not None
    assert len(limited.validation) == 2
    with pytest.raises(UserError, match=r"has a validation split: omit --data\.val-fraction, or"):
        load(folder, val_fraction=0.2)
    old = load(folder, val_fraction=0.2, splits=SplitsConfig(validation="random"))
    assert old.validation is not None
    assert (len(old.train), len(old.validation)) == (20, 5)
    assert f"which are not used: {name}\n" in capsys.readouterr().err


def test_without_a_test_split_the_validation_split_is_the_test_set(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "set", train={"a": 3, "b": 3}, val={"a": 2, "b": 1})
    data = load(folder, val_fraction=0.5)
    assert data.validation is not None
    assert [len(part) for part in (data.train, data.validation, data.test)] == [3, 3, 3]


def test_the_test_split_can_be_chosen(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(folder, val={"cat": 2, "dog": 1}, dev={"cat": 1, "dog": 1})
    data = load(folder, splits=SplitsConfig(test_split="val"))
    assert (len(data.test), data.validation) == (3, None)
    assert "which are not used: test\n" in capsys.readouterr().err
    data = load(folder, splits=SplitsConfig(test_split="dev"))
    assert data.validation is not None
    assert (len(data.test), len(data.validation)) == (2, 3)
    assert len(config(folder, splits=SplitsConfig(test_split="dev")).load_test(CPU).test) == 2
    with pytest.raises(UserError, match="has no final split, only"):
        load(folder, splits=SplitsConfig(test_split="final"))


@pytest.mark.parametrize("label", [-1, None])
def test_a_test_split_without_labels_is_replaced_by_the_validation_split(
    label: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = {"x": datasets.Image(), "y": datasets.ClassLabel(names=["a", "b"])}
    two, root = [random_image(), random_image()], tmp_path / "p"
    for split, labels in (("train", [0, 1]), ("validation", [1, 0]), ("test", [label] * 2)):
        make_parquet(root, split, {"x": two, "y": labels}, **features)
    data = load(root)
    assert (data.test.labels.tolist(), data.validation) == ([1, 0], None)
    assert config(root).load_test(CPU).test.labels.tolist() == [1, 0]
    sentence = f"the test split of {root} has no labels (-1 throughout) and is not used"
    assert sentence in capsys.readouterr().err.splitlines()
    with pytest.raises(UserError, match=r"test split of .* has no labels \(-1 throughout\): use"):
        load(root, splits=SplitsConfig(test_split="test"))
    make_parquet(root, "train", {"x": two, "y": [label] * 2}, **features)
    with pytest.raises(UserError, match=r"train split of .* has no labels \(-1 throughout\): use"):
        load(root)


@pytest.mark.parametrize("setting", [{"test_split": "train"}, {"test_split": ""}, {"config": ""}])
def test_an_impossible_choice_of_splits_is_refused(setting: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(setting))} must not be"):
        SplitsConfig(**setting)


def test_a_random_validation_split_keeps_the_share_of_each_class(tmp_path: Path) -> None:
    folder = make_folder(
        tmp_path / "set", train={"a": 40, "b": 40, "rare": 3}, test={"a": 1, "b": 1, "rare": 1}
    )
    data = load(folder, val_fraction=0.1)
    assert data.validation is not None
    assert sorted(data.validation.labels.bincount().tolist()) == [1, 3, 4]
    old = load(folder, val_fraction=0.1, splits=SplitsConfig(validation="random"))
    assert old.validation is not None
    order = np.random.default_rng(0).permutation(83)  # as in version 0.1
    assert old.validation.rows.tolist() == sorted(order[:8].tolist())


def paths_in_parquet(root: Path, *paths: str) -> Path:
    """Make a data set whose first training images are given by their paths only."""
    features = {"x": datasets.Image(), "y": datasets.ClassLabel(names=["a", "b"])}
    cells: list[Any] = [{"bytes": None, "path": path} for path in paths]
    cells += [{"bytes": encoded(random_image()), "path": "/gone.png"}] * 2
    labels = [i % 2 for i in range(len(cells))]
    schema = datasets.Features(features).arrow_schema  # the library would store the bytes
    pq.write_table(pa.table({"x": cells, "y": labels}, schema), root / "train.parquet")
    make_parquet(root, "test", {"x": cells[-2:], "y": [0, 1]}, **features)
    return root


@pytest.mark.parametrize("is_inside", [True, False])
def test_images_that_a_parquet_file_refers_to_must_be_inside_its_folder(
    is_inside: bool, tmp_path: Path
) -> None:
    root, image = tmp_path / "p", random_image()
    inside, outside = root / "images/1.png", tmp_path / "secret/1.png"
    for path in (inside, outside):
        path.parent.mkdir(parents=True)
        image.save(path)
    for name, target in (("good.png", inside), ("bad.png", outside)):
        (root / name).symlink_to(target)
    os.mkfifo(root / "pipe.png")
    if is_inside:
        paths = [str(inside), "images/1.png", "good.png", str(root / "good.png")]
        data = load(paths_in_parquet(root, *paths))
        stored = next(data.train.eval_batches(4)).images
        assert torch.equal(stored, config(root).load_image(inside).expand(4, -1, -1, -1))
        return
    escapes = [str(outside), "../secret/1.png", "bad.png", str(root / "bad.png"), "pipe.png"]
    escapes += ["images", "gone.png", "/etc/passwd", "/dev/zero", "http://localhost/1.png"]
    escapes += ["\0", "x" * 5000, "loop.png"]
    (root / "loop.png").symlink_to(root / "loop.png")
    with pytest.raises(UserError, match="which is not a file inside the data set: store"):
        load(paths_in_parquet(root, *escapes))
    data = load(root, on_error="skip")
    assert (len(data.train), data.num_skipped) == (2, len(escapes))


def test_a_digest_covers_the_pixels_of_every_split(folder: Path) -> None:
    make_folder(folder, val={"cat": 1, "dog": 1})
    before, test_before = load(folder).digest, config(folder).load_test(CPU).digest
    assert before == load(folder, memory_budget=0.0).digest
    assert before.endswith("-images")
    for file in (folder / "train/cat/0.png", folder / "val/dog/0.png", folder / "test/cat/3.png"):
        content = file.read_bytes()
        random_image().save(file)
        assert load(folder).digest != before
        is_test = file.is_relative_to(folder / "test")
        assert (config(folder).load_test(CPU).digest != test_before) == is_test
        file.write_bytes(content)
    shutil.move(folder, folder.with_name("moved"))
    assert load(folder.with_name("moved")).digest == before


def test_a_run_of_version_0_1_is_resumed_by_its_labels_and_a_later_one_by_its_pixels(
    folder: Path,
) -> None:
    data = load(folder)
    old = data.digest_like("0" * 64)
    labels = (split.labels.numpy().tobytes() for split in (data.train, data.test))
    assert old == hashlib.sha256(b"('cat', 'dog')" + b"|".join(labels)).hexdigest()
    assert data.digest_like(data.digest) == data.digest
    random_image().save(folder / "train/cat/0.png")
    changed = load(folder)
    TrainingState(data=old).check_resumable(TrainingState(), folder, changed)
    with pytest.raises(UserError, match="was trained on different data with the same name"):
        TrainingState(data=data.digest).check_resumable(TrainingState(), folder, changed)


def test_a_digest_covers_a_sample_of_a_large_image(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "set", train={"a": 1, "b": 1}, test={"a": 1, "b": 1})
    file = folder / "train/a/0.png"
    content = file.read_bytes() + bytes(100_000)  # readers ignore what follows an image
    digests = set()
    for changed in (None, 0, 34_000, 67_000, len(content) - 1, 20_000):
        changed_content = bytearray(content)
        if changed is not None:
            changed_content[changed] ^= 1
        file.write_bytes(changed_content)
        table = load(folder, memory_budget=0.0).digest
        digests.add(table)
    assert len(digests) == 5  # the last change is between the pieces of the sample
    file.write_bytes(content + b"0")
    assert load(folder, memory_budget=0.0).digest not in digests


def test_a_digest_is_the_same_for_equal_files_in_a_folder_and_in_parquet(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "set", train={"a": 2, "b": 2}, test={"a": 1, "b": 1})
    features = {"x": datasets.Image(), "y": datasets.ClassLabel(names=["a", "b"])}
    for split in ("train", "test"):
        files = sorted((folder / split).glob("*/*.png"))
        cells = [{"bytes": file.read_bytes(), "path": None} for file in files]
        labels = [int(file.parent.name == "b") for file in files]
        make_parquet(tmp_path / "p", split, {"x": cells, "y": labels}, **features)
    assert load(folder).digest == load(tmp_path / "p").digest
    assert load(folder, limit=2).digest == load(tmp_path / "p", limit=2).digest
