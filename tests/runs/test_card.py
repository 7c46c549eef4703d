"""The model card of a run, and what becomes of it when the model is saved elsewhere."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from associative_transformer import load_model
from associative_transformer.models.ait import AiT
from associative_transformer.models.vit import ViT
from associative_transformer.runs.card import CELL, draw_priors
from associative_transformer.runs.saved import load_run
from associative_transformer.training.loop import train
from making.tiny import TINY
from making.trained import RELATIONS


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


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"x" * 2**21])
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
