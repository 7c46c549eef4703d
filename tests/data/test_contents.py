"""The mean of training images, images that cannot be learned from, and images left out."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from associative_transformer.data import ImagesConfig
from associative_transformer.data.augment import RAW
from associative_transformer.data.sources import open_image_folder
from associative_transformer.experiment import (
    Experiment,
    TrainConfig,
    fingerprint,
    load_data,
    load_experiment,
)
from associative_transformer.interface import UserError
from associative_transformer.models.brims import BRIMsConfig
from associative_transformer.models.vit import ViTConfig
from associative_transformer.runs.saved import load_run
from associative_transformer.training.loop import train

STORED = "associative_transformer.data.stored"
CPU = torch.device("cpu")
GENERATOR = np.random.default_rng(0)


def write(root: Path, split: str, pictures: dict[str, list[np.ndarray]]) -> None:
    for name, arrays in pictures.items():
        (root / split / name).mkdir(parents=True)
        for i, pixels in enumerate(arrays):
            Image.fromarray(pixels).save(root / split / name / f"{i:03}.png")


def noise(count: int, low: int = 0, high: int = 256) -> list[np.ndarray]:
    shape = (count, 8, 8, 3)
    return list(GENERATOR.integers(low, high, size=shape, dtype=np.uint8))


def images_config(source: Path, name: str = "cifar10", **changes: object) -> ImagesConfig:
    config = ImagesConfig(name, source=str(source), image_size=8, num_workers=0)
    return replace(config, **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "set", "train", {"a": noise(12, 0, 90), "b": noise(12, 20, 200)})
    write(tmp_path / "set", "test", {"a": noise(4), "b": noise(4)})
    return tmp_path / "set"


def experiment(source: Path, **changes: object) -> Experiment:
    model = ViTConfig(
        image_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=1, head_dim=8, num_classes=2
    )
    return Experiment(
        "own", images_config(source, **changes), model, TrainConfig(epochs=1, batch_size=8)
    )


# --- normalization ---


def stored_pixels(folder: Path) -> np.ndarray:
    return np.stack([np.array(Image.open(p)) for p in sorted(folder.glob("train/*/*.png"))]) / 255


@pytest.mark.parametrize("memory_budget", [4.0, 0.0])
def test_auto_computes_mean_and_std_from_the_training_images(
    folder: Path, memory_budget: float
) -> None:
    data = images_config(folder, mean="auto", memory_budget=memory_budget).load(CPU)
    pixels = stored_pixels(folder)
    assert data.normalization is not None
    assert data.normalization.mean == pytest.approx(pixels.mean(axis=(0, 1, 2)), abs=1e-4)
    assert data.normalization.std == pytest.approx(pixels.std(axis=(0, 1, 2)), abs=1e-4)
    (batch,) = data.train.eval_batches(24)
    assert batch.images.mean(dim=(0, 2, 3)) == pytest.approx(torch.zeros(3), abs=1e-3)
    assert batch.images.std(dim=(0, 2, 3)) == pytest.approx(torch.ones(3), abs=1e-2)


def test_validation_images_do_not_count(folder: Path) -> None:
    config = images_config(folder, mean="auto", augment="none", val_fraction=0.5)
    data = config.load(CPU)
    rows = data.train.rows.numpy()
    assert data.normalization is not None
    expected = stored_pixels(folder)[rows].mean(axis=(0, 1, 2))
    assert data.normalization.mean == pytest.approx(expected, abs=1e-4)


def test_a_channel_of_one_value_is_not_divided_by_zero(tmp_path: Path) -> None:
    for split in ("train", "test"):
        pictures = [pixels * np.uint8([1, 0, 1]) for pixels in noise(4)]
        write(tmp_path / "set", split, {"a": pictures[:2], "b": pictures[2:]})
    normalization = images_config(tmp_path / "set", mean="auto").load(CPU).normalization
    assert normalization is not None
    assert (normalization.mean[1], normalization.std[1]) == (0.0, 1.0)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "pets", "mine"])
def test_auto_is_the_default_of_a_new_run_with_other_images(name: str, folder: Path) -> None:
    config = images_config(folder, name)
    computed = replace(config, mean="auto").load(CPU).normalization
    assert computed is not None
    assert config.load_for_new_run(CPU).normalization == computed
    chosen = replace(config, mean=(0.5, 0.5, 0.5))
    assert chosen.load_for_new_run(CPU).normalization is None


def test_images_from_the_hub_keep_the_numbers_of_the_paper_unless_the_data_set_is_unknown(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = open_image_folder(folder)
    monkeypatch.setattr(f"{STORED}.open_hub_data_set", lambda *_: splits)
    for name, is_known in (("cifar10", True), ("me/set", False)):
        config = ImagesConfig(name, image_size=8, num_workers=0)
        assert (config.load_for_new_run(CPU).normalization is None) == is_known


@pytest.mark.parametrize("mean", ["auto", (0.4914, 0.4822, 0.4465)])
def test_a_new_run_opens_its_images_once(
    mean: object, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def open_splits(root: Path, *options: object) -> dict[str, Any]:
        opened.append(root)
        return open_image_folder(root, *options)

    monkeypatch.setattr(f"{STORED}.open_image_folder", open_splits)
    train(experiment(folder, mean=mean), tmp_path / "run")
    assert opened == [folder]


def test_a_copy_of_the_named_set_keeps_the_numbers_of_the_paper(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = {}

    def find_difference(
        name: str, classes: tuple[str, ...], test: int, train: int, is_subset: bool
    ) -> None:
        compared[name] = (classes, test, train)

    monkeypatch.setattr("associative_transformer.data.images.find_difference", find_difference)
    config = images_config(folder, limit=2)
    assert config.load_for_new_run(CPU).normalization is None
    assert compared == {"cifar10": (("a", "b"), 8, 24)}  # a limit does not make other images


def test_a_run_stores_the_numbers_and_is_evaluated_with_them(folder: Path, tmp_path: Path) -> None:
    ours, run = experiment(folder), tmp_path / "run"
    train(ours, run)
    saved = load_run(run).experiment
    assert fingerprint(saved) == fingerprint(ours)
    assert saved.data.mean == ours.data.mean  # of the paper
    measured = yaml.safe_load((run / "experiment.yaml").read_text())["data"]["measured"]
    expected = stored_pixels(folder)
    assert measured["mean"] == pytest.approx(expected.mean(axis=(0, 1, 2)), abs=1e-4)
    assert measured["std"] == pytest.approx(expected.std(axis=(0, 1, 2)), abs=1e-4)
    (batch,) = saved.data.load_test(CPU).test.eval_batches(8)
    image = saved.data.load_image(folder / "test" / "a" / "000.png")
    assert torch.equal(image, batch.images[0])
    by_hand = np.array(Image.open(folder / "test" / "a" / "000.png")) / 255
    by_hand = (by_hand - measured["mean"]) / measured["std"]
    assert image.movedim(0, -1).numpy() == pytest.approx(by_hand, abs=1e-5)
    assert train(ours, run, resume=True) is not None


def test_a_resumed_run_keeps_its_numbers_and_an_old_one_those_of_the_paper(
    folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(experiment(folder), run)
    path = run / "experiment.yaml"
    for measured in ({"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}, None):
        saved = yaml.safe_load(path.read_text())
        saved["data"]["measured"] = measured
        if measured is None:
            del saved["data"]["measured"]
        path.write_text(yaml.safe_dump(saved))
        (run / "result.json").unlink()
        train(experiment(folder), run, resume=True)
        again = load_experiment(path).data.measured
        assert (again is None) == (measured is None)
        assert again is None or again.mean == (0.1, 0.2, 0.3)


def test_a_model_that_takes_pixels_accepts_auto(folder: Path) -> None:
    model = BRIMsConfig(image_size=8, resolution=4, num_classes=2)
    ours = replace(experiment(folder, mean="auto"), model=model)
    assert load_data(ours, CPU, is_resumed=False).normalization == RAW
    with pytest.raises(ValueError, match=r"expects pixels from 0 to 1.* data\.mean"):
        replace(experiment(folder), model=model)


# --- images that cannot be learned from ---


def warnings_about(root: Path, capsys: pytest.CaptureFixture[str], **changes: object) -> str:
    capsys.readouterr()
    images_config(root, "mine", **changes).load(CPU)
    return capsys.readouterr().err


@pytest.mark.parametrize("memory_budget", [4.0, 0.0])
def test_images_of_different_classes_with_the_same_pixels_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], memory_budget: float
) -> None:
    for count, is_reported in ((1, False), (2, True)):
        root, same = tmp_path / f"{count}", noise(count)
        write(root, "train", {"a": [*noise(20 - count), *same], "b": [*noise(20 - count), *same]})
        write(root, "test", {"a": noise(2), "b": noise(2)})
        err = warnings_about(root, capsys, memory_budget=memory_budget)
        sentence = f"4 of 40 images of the train split of {root} decode to the same pixels"
        assert (sentence in err) == is_reported
        assert ("decode to" in err) == is_reported


def test_images_of_one_color_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    black = np.zeros((8, 8, 3), np.uint8)
    shades = [np.full((8, 8, 3), i, np.uint8) for i in range(4)]
    write(tmp_path / "set", "train", {"a": [*noise(18), black], "b": [*noise(18), *shades[1:]]})
    write(tmp_path / "set", "test", {"a": noise(2), "b": noise(2)})
    err = warnings_about(tmp_path / "set", capsys)
    assert "4 of 40 images" in err and "decode to a single color" in err


def test_copies_within_a_class_are_not_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "set", "train", {"a": noise(1) * 9, "b": noise(1) * 9})
    write(tmp_path / "set", "test", {"a": noise(2), "b": noise(2)})
    assert "decode to" not in warnings_about(tmp_path / "set", capsys)


def test_icons_that_differ_in_alpha_alone_can_be_learned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        icons = [np.dstack([np.zeros_like(pixels), pixels[..., :1]]) for pixels in noise(8)]
        write(tmp_path / "set", split, {"a": icons[:4], "b": icons[4:]})
    assert "decode to" not in warnings_about(tmp_path / "set", capsys)


# --- images left out ---


@pytest.mark.parametrize("memory_budget", [4.0, 0.0])
def test_training_names_each_skipped_image_and_keeps_a_list(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], memory_budget: float
) -> None:
    bad = [folder / "train" / "a" / "003.png", folder / "test" / "b" / "001.png"]
    bad[0].write_bytes(b"")
    bad[1].write_bytes(b"text")
    with pytest.raises(UserError, match=r"003\.png .*--data\.on-error skip"):
        train(experiment(folder), tmp_path / "stopped")
    ours = experiment(folder, on_error="skip", memory_budget=memory_budget)
    result = train(ours, tmp_path / "run")
    assert result.skipped_images == 2
    lines = (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["image"] for row in rows] == ["set/train/a/003.png", "set/test/b/001.png"]
    assert all(row["reason"].startswith("not an image in PNG") for row in rows)
    err = capsys.readouterr().err
    assert "2 unreadable images were skipped" in err
    assert all(err.count(str(path)) == 1 for path in bad)
