"""The model card of a run, and what becomes of it when the model is saved elsewhere."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from pydantic import TypeAdapter

from associative_transformer import load_model
from associative_transformer.data import ImagesConfig, SplitsConfig
from associative_transformer.data.known import KNOWN_DATA_SETS
from associative_transformer.models.ait import AiT
from associative_transformer.models.vit import ViT
from associative_transformer.recipes import RECIPES
from associative_transformer.runs.card import CELL, _find_on_hub, draw_priors
from associative_transformer.runs.result import RunResult
from associative_transformer.runs.saved import load_run
from associative_transformer.runs.training_command import format_train_command, without_source
from associative_transformer.training.loop import train
from making.plant import result_of
from making.tiny import TINY
from making.trained import EXPERIMENT, RELATIONS


def test_the_card_of_a_run_says_what_its_result_says(undisturbed: Path) -> None:
    result = json.loads((undisturbed / "result.json").read_text())
    card = ModelCard.load(undisturbed / "README.md")
    (score,) = card.data.eval_results
    assert score.metric_value == pytest.approx(result["test_accuracy"] / 100, abs=1e-6)
    assert score.dataset_name == "triangle"
    assert "95 % interval" in score.metric_name
    text = card.text
    assert f"{result['test_accuracy']:.2f} % accuracy (95 % interval" in text
    assert "equilateral, other" in text
    assert "ait train triangle-" in text
    assert "| 1 | 4 |" in text  # the memory of the first layer has four priors
    assert "![Priors of all layers](priors.png)" in text


def test_the_card_claims_no_license_and_names_no_folder(undisturbed: Path) -> None:
    text = (undisturbed / "README.md").read_text()
    assert "license" not in text
    assert str(undisturbed) not in text


def test_the_picture_shows_each_number_of_the_priors(undisturbed: Path) -> None:
    model = load_run(undisturbed).model
    with Image.open(undisturbed / "priors.png") as image:
        pixels = np.asarray(image)
    assert isinstance(model, AiT)
    priors = model.blocks[0].workspace.priors
    assert pixels.shape == (CELL * priors.shape[0], CELL * priors.shape[1], 3)
    cells = torch.from_numpy(pixels[::CELL, ::CELL].copy()).int()
    is_warm = cells[..., 0] > cells[..., 2]
    assert torch.equal(is_warm, priors > 0)
    largest = priors.abs().argmax()
    assert cells.sum(dim=-1).flatten().argmin() in (largest, priors.argmin(), priors.argmax())


def test_a_model_without_a_memory_has_no_picture() -> None:
    model = TINY["vit"]
    assert draw_priors(ViT(model)) is None


def test_a_run_with_questions_has_a_card_of_its_questions(tmp_path: Path) -> None:
    result = train(RELATIONS, tmp_path / "run")
    text = (tmp_path / "run" / "README.md").read_text()
    assert "test questions" in text and "--question" in text
    best = result.best_validation
    assert best is not None
    assert f"{best.test_accuracy:.2f} % accuracy" in text
    assert "## Memory" not in text


def test_an_unchanged_model_is_saved_with_the_card_and_picture_of_its_run(
    undisturbed: Path, tmp_path: Path
) -> None:
    model = load_model(undisturbed)
    model.save_pretrained(tmp_path, model_card_kwargs={"license": "apache-2.0"})
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.text == ModelCard.load(undisturbed / "README.md").text
    assert (tmp_path / "priors.png").read_bytes() == (undisturbed / "priors.png").read_bytes()
    names = {"README.md", "config.json", "model.safetensors", "priors.png"}
    assert {path.name for path in tmp_path.iterdir()} == names
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / name).read_bytes() == (undisturbed / name).read_bytes()


def test_a_changed_model_gets_a_general_card_since_the_old_figures_are_not_its_own(
    undisturbed: Path, tmp_path: Path
) -> None:
    model = load_model(undisturbed)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(tmp_path / "changed")
    larger = load_model(undisturbed, num_classes=3)
    larger.save_pretrained(tmp_path / "larger")
    for name in ("changed", "larger"):
        text = (tmp_path / name / "README.md").read_text()
        assert "accuracy" not in text
        assert "license" not in text
        assert not (tmp_path / name / "priors.png").exists()


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"x" * 2**23])
def test_a_card_that_cannot_be_read_does_not_stop_a_model_from_loading(
    undisturbed: Path, tmp_path: Path, content: bytes | None
) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(undisturbed / name, tmp_path)
    if content is not None:
        (tmp_path / "README.md").write_bytes(content)
    load_model(tmp_path).save_pretrained(tmp_path / "again")
    assert "load_model" in (tmp_path / "again" / "README.md").read_text()


def test_the_picture_is_a_png_of_all_layers() -> None:
    picture = draw_priors(AiT(TINY["ait"]))
    assert picture is not None
    with Image.open(io.BytesIO(picture)) as image:
        assert image.format == "PNG"
        c = TINY["ait"]
        rows = c.depth * c.workspace.num_priors + c.depth - 1
        assert image.size == (CELL * c.workspace.prior_dim, CELL * rows)


def test_a_card_that_describes_other_weights_is_removed_from_a_folder(
    undisturbed: Path, tmp_path: Path
) -> None:
    model = load_model(undisturbed)
    model.save_pretrained(tmp_path)
    assert "accuracy" in (tmp_path / "README.md").read_text()
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(tmp_path)  # into the same folder
    assert "accuracy" not in (tmp_path / "README.md").read_text()
    assert not (tmp_path / "priors.png").exists()


@pytest.mark.parametrize("metadata", ["a: [1", "- a\n- b"])
def test_a_card_with_damaged_metadata_does_not_stop_a_model_from_being_saved(
    undisturbed: Path, tmp_path: Path, metadata: str
) -> None:
    source = shutil.copytree(undisturbed, tmp_path / "run")
    (source / "README.md").write_text(f"---\n{metadata}\n---\ntext")
    load_model(source).save_pretrained(tmp_path / "again")
    assert "load_model" in (tmp_path / "again" / "README.md").read_text()


def test_a_picture_that_is_a_link_is_not_copied(undisturbed: Path, tmp_path: Path) -> None:
    source = shutil.copytree(undisturbed, tmp_path / "run")
    (tmp_path / "private").write_text("secret")
    (source / "priors.png").unlink()
    (source / "priors.png").symlink_to(tmp_path / "private")
    load_model(source).save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again" / "priors.png").exists()


@pytest.mark.parametrize(
    ("init", "shown"),
    [
        ("/home/someone/secret/model", "--init SOURCE"),
        ("runs/base/0", "--init SOURCE"),
        ("~/model", "--init SOURCE"),
        ("someone/my-ait", "--init someone/my-ait"),
    ],
)
def test_a_command_names_a_source_on_the_hub_but_no_folder(init: str, shown: str) -> None:
    command = format_train_command(without_source(replace(EXPERIMENT, init=init)))
    assert command is not None and shown in command


@pytest.mark.parametrize(
    ("changes", "splits", "name", "on_hub"),
    [
        ({}, {}, "cifar10", "uoft-cs/cifar10"),
        ({"limit": 100}, {}, "cifar10", None),
        ({}, {"train_limit": 500}, "500 training images of cifar10", "uoft-cs/cifar10"),
        ({}, {"classes": ("cat", "dog")}, "only the classes cat, dog of CIFAR-10", None),
        ({"name": "plants", "source": "there"}, {}, "a folder passed as plants", None),
    ],
)
def test_the_card_names_the_data_set_only_if_it_is_the_whole_one(
    changes: dict[str, Any], splits: dict[str, Any], name: str, on_hub: str | None
) -> None:
    data = replace(ImagesConfig("cifar10"), **changes, splits=SplitsConfig(**splits))
    classes = splits.get("classes", KNOWN_DATA_SETS["cifar10"].classes)
    images = {"test": 1_000 * len(classes), "train": 5_000 * len(classes)}
    if data.limit:
        images = {"test": 100, "train": 100}
    images["train"] = splits.get("train_limit", images["train"])
    assert result(classes, images).name_data(data).startswith(name)
    assert _find_on_hub(data, result(classes, images)) == on_hub


def test_own_images_with_the_names_of_known_classes_are_called_own() -> None:
    classes = ("cat", "dog")
    data = replace(ImagesConfig("cifar10", source="x"), splits=SplitsConfig(classes=classes))
    found = result(classes, {"test": 7, "train": 20})
    assert found.name_data(data).startswith("own images, not CIFAR-10")


def result(classes: tuple[str, ...], images: dict[str, int]) -> RunResult:
    values = result_of(RECIPES["cifar10-ait-tiny"], classes=list(classes))
    values |= {f"{split}_images": number for split, number in images.items()}
    return TypeAdapter(RunResult).validate_python(values)
