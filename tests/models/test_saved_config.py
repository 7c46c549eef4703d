"""A saved model that says how its images are prepared and what its classes are called."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from associative_transformer import AiT, AiTConfig, WorkspaceConfig, load_model
from associative_transformer.data import ImagesConfig, SortOfClevrConfig, TriangleConfig
from associative_transformer.interface import UserError
from associative_transformer.models.preprocessing import Preprocessing
from associative_transformer.models.saved_config import KEYS

CONFIG = AiTConfig(
    image_size=8,
    embed_dim=8,
    depth=1,
    num_heads=2,
    head_dim=4,
    num_classes=2,
    head="mean",
    pos="learned",
    workspace=WorkspaceConfig(num_priors=4, prior_dim=4, num_heads=2, bottleneck=8),
)
IMAGES = Preprocessing((8, 8), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
COLOR = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = AiT(CONFIG)
    model.describe(IMAGES, ("cat", "dog"))
    model.save_pretrained(tmp_path)
    return tmp_path


def read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content


def edit(folder: Path, **changes: object) -> None:
    (folder / "config.json").write_text(json.dumps(read(folder) | changes))


def test_a_saved_model_knows_its_preprocessing_and_classes(saved: Path) -> None:
    content = read(saved)
    assert content["id2label"] == {"0": "cat", "1": "dog"}
    assert content["label2id"] == {"cat": 0, "dog": 1}
    assert content["preprocessing"]["image_size"] == [8, 8]
    assert content["preprocessing"]["interpolation"] == "bicubic"
    assert content["package_version"]
    loaded = load_model(saved)
    assert (loaded.preprocessing, loaded.class_names) == (IMAGES, ("cat", "dog"))
    again = saved / "again"
    loaded.save_pretrained(again)
    assert read(again) == content


def test_a_temperature_is_saved_with_the_weights_that_it_was_fitted_to(saved: Path) -> None:
    assert "temperature" not in read(saved)  # earlier versions do not know the key
    model = load_model(saved)
    model.temperature = 1.75
    model.save_pretrained(saved / "calibrated")
    calibrated = load_model(saved / "calibrated")
    assert calibrated.temperature == read(saved / "calibrated")["temperature"] == 1.75
    calibrated.save_pretrained(saved / "copy")
    assert load_model(saved / "copy").temperature == 1.75
    with torch.no_grad():
        calibrated.head.to_logits.bias += 1
    calibrated.save_pretrained(saved / "changed")
    assert "temperature" not in read(saved / "changed")
    assert load_model(saved / "calibrated", num_classes=3).temperature is None


def test_the_temperature_does_not_change_logits(saved: Path) -> None:
    model, images = load_model(saved), torch.randn(2, 3, 8, 8)
    expected = model(images).logits
    edit(saved, temperature=3.0)
    assert torch.equal(load_model(saved)(images).logits, expected)


def test_a_file_of_version_0_1_without_a_description_stays_readable(saved: Path) -> None:
    content = read(saved)
    old = {key: value for key, value in content.items() if key not in KEYS}
    (saved / "config.json").write_text(json.dumps(old))
    loaded = load_model(saved)
    assert (loaded.preprocessing, loaded.class_names) == (None, None)
    with pytest.raises(UserError, match="does not say how to prepare images"):
        loaded.preprocess(Image.fromarray(COLOR))


def test_weights_that_changed_after_saving_are_refused_unless_strict_is_false(saved: Path) -> None:
    file = saved / "model.safetensors"
    weights = load_file(file)
    weights["head.to_logits.bias"] += 1  # the same names, shapes and size of the file
    save_file(weights, file)
    for load in (AiT.from_pretrained, load_model):
        with pytest.raises(UserError, match=r"model\.safetensors has changed since it was saved"):
            load(saved)
    bias = load_model(saved, strict=False).state_dict()["head.to_logits.bias"]
    assert torch.equal(bias, weights["head.to_logits.bias"])
    edit(saved, weights_digest=None)
    assert load_model(saved).class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id2label": {"0": "cat", "2": "dog"}}, "keys 0, 1, and so on"),
        ({"label2id": {"cat": 1, "dog": 0}}, "must contain the same classes"),
        ({"preprocessing": {"image_size": [8, 8], "mean": [0.5], "std": [0.0]}}, "positive"),
        ({"preprocessing": {"image_size": [8, 8], "mean": [0.5], "std": []}}, "value per channel"),
        ({"preprocessing": {"image_size": [0, 8], "mean": [0.5], "std": [1.0]}}, "image_size"),
        ({"preprocessing": {"side": 8}}, "preprocessing.image_size: Field required"),
        ({"temperature": 0.0}, "temperature must be a positive number, not 0.0"),
        ({"temperature": "warm"}, "temperature"),
        ({"id2label": {"0": "cat"}, "label2id": {"cat": 0}}, "1 class names do not fit"),
        ({"preprocessing": {"image_size": [8, 9], "mean": [0.5] * 3, "std": [1.0] * 3}}, "8x9"),
    ],
)
def test_an_invalid_description_is_one_sentence(
    saved: Path, changes: dict[str, object], message: str
) -> None:
    edit(saved, **changes)
    with pytest.raises(UserError, match=message) as caught:
        load_model(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data", [ImagesConfig("cifar10"), TriangleConfig(), SortOfClevrConfig()], ids=lambda d: d.kind
)
def test_a_model_prepares_images_as_its_data_set_does(data: Any, tmp_path: Path) -> None:  # noqa: ANN401
    Image.fromarray(COLOR).save(tmp_path / "a.png")
    size, channels, _ = data.input_size
    prepared = data.preprocessing(tmp_path / "a.png")
    assert prepared.shape == (1, channels, size, size)
    assert torch.equal(prepared[0], data.load_image(tmp_path / "a.png"))
    mean, std = (torch.tensor(x)[:, None, None] for x in data.normalization)
    pixels = data.preprocessing.decode(tmp_path / "a.png")
    torch.testing.assert_close(prepared[0], (pixels / 255 - mean) / std)


def test_paths_and_pil_images_are_prepared_alike_and_together(saved: Path) -> None:
    model, path = load_model(saved), saved / "a.png"
    Image.fromarray(COLOR).save(path)
    one = model.preprocess(path)
    assert one.shape == (1, 3, 8, 8)
    both = model.preprocess([str(path), Image.fromarray(COLOR)])
    assert torch.equal(both, one.expand(2, -1, -1, -1))
    assert model(both).logits.shape == (2, 2)
    with pytest.raises(UserError, match="there is no file"):
        model.preprocess("nowhere.png")
    with pytest.raises(ValueError, match="images must not be empty"):
        model.preprocess([])


def test_a_pil_image_is_turned_upright_and_put_on_white(tmp_path: Path) -> None:
    prepare = Preprocessing((4, 4), (0.0,) * 3, (1.0,) * 3)
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert torch.equal(prepare(clear), torch.ones(1, 3, 4, 4))
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(COLOR).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as turned:
        assert torch.equal(prepare(turned), prepare(tmp_path / "turned.png"))


def test_a_rectangle_is_covered_and_cropped_at_the_center() -> None:
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = 255
    prepare = Preprocessing((4, 4), (0.0,) * 3, (1.0,) * 3)
    assert torch.equal(prepare(Image.fromarray(wide)), torch.ones(1, 3, 4, 4))
    assert replace(prepare, image_size=(2, 6))(Image.fromarray(wide)).shape == (1, 3, 2, 6)


def test_new_sizes_keep_what_still_holds(saved: Path) -> None:
    larger = load_model(saved, image_size=(8, 16))
    assert larger.preprocessing == replace(IMAGES, image_size=(8, 16))
    assert larger.class_names == ("cat", "dog")
    three = load_model(saved, num_classes=3)
    assert (three.preprocessing, three.class_names) == (IMAGES, None)
    assert load_model(saved, num_channels=1).preprocessing is None
    model = load_model(saved)
    model.reset_classifier(5)
    assert model.class_names is None


def test_names_or_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="3 class names do not fit a model with 2 classes"):
        AiT(CONFIG).describe(IMAGES, ("a", "b", "c"))
    with pytest.raises(UserError, match="8x8 pixels with 1 channels does not fit"):
        AiT(CONFIG).describe(Preprocessing((8, 8), (0.5,), (0.5,)), None)


def test_a_new_classifier_has_no_class_names_even_with_the_same_number(saved: Path) -> None:
    model = load_model(saved)
    model.reset_classifier(2)
    assert model.class_names is None


def test_new_sizes_keep_the_type_of_the_weights_and_what_is_frozen(saved: Path) -> None:
    model = load_model(saved).to(torch.bfloat16)
    model.blocks[0].workspace.freeze()
    larger = model.with_sizes(num_classes=5)
    assert {value.dtype for value in larger.parameters()} == {torch.bfloat16}
    assert larger.blocks[0].workspace.is_frozen
