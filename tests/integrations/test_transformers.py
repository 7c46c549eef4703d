"""AiT as a model of transformers: its conventions, the same numbers, the same weights."""

import copy
import doctest
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from associative_transformer.interface import UserError
from associative_transformer.models import load_model
from associative_transformer.models.ait import AIT_SMALL, AiT, AiTConfig
from associative_transformer.models.preprocessing import Preprocessing
from associative_transformer.models.vit import ViT, ViTConfig

pytestmark = pytest.mark.interop
transformers = pytest.importorskip("transformers")

from associative_transformer.integrations import transformers as integration  # noqa: E402
from associative_transformer.integrations.transformers import (  # noqa: E402
    AiTForImageClassification,
    AiTForImageClassificationConfig,
    AiTImageProcessor,
    from_ait,
)
from making.tiny import IMAGE_MEMORY, MEMORY, TINY  # noqa: E402

AutoModel = transformers.AutoModelForImageClassification
SIZES: dict[str, Any] = {
    "image_size": 8,
    "patch_size": 2,
    "num_labels": 5,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 2,
    "head_dim": 8,
    "mlp_ratio": 2.0,
    "head": "cls",
    "pos": "learned",
}
MEMORIES = {"batch": asdict(MEMORY), "image": asdict(IMAGE_MEMORY)}
NAMES = ("cat", "dog", "owl", "bee", "elk")
PREPARED = Preprocessing((8, 8), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
CLOSE = {"rtol": 1e-6, "atol": 1e-6}

both_scopes = pytest.mark.parametrize("scope", MEMORIES)


def build(scope: str = "batch", **changes: object) -> Any:  # noqa: ANN401
    config = AiTForImageClassificationConfig(**SIZES | {"workspace": MEMORIES[scope]} | changes)
    return AiTForImageClassification(config)


def inputs(batch: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 3, 8, 8), torch.arange(batch) % 5


def gradients(model: torch.nn.Module) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in model.named_parameters()}


def assert_same_weights(a: torch.nn.Module, b: torch.nn.Module) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def save(model: Any, folder: Path) -> Path:  # noqa: ANN401
    model.save_pretrained(folder)
    return folder


# --- configuration ---


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    build().save_pretrained("my-ait")
    results = doctest.testmod(integration)
    assert (results.attempted, results.failed) == (7, 0)


def test_fields_and_defaults_are_those_of_the_configuration() -> None:
    assert AiTForImageClassificationConfig(num_labels=10).to_ait_config() == AIT_SMALL
    others = AiTForImageClassificationConfig.attribute_map
    names = {others.get(f.name, f.name) for f in fields(AiTConfig)}
    assert set(AiTForImageClassificationConfig.__annotations__) == names - {"kind", "num_labels"}


@pytest.mark.parametrize(("name", "other"), AiTForImageClassificationConfig.attribute_map.items())
def test_some_fields_have_two_names(name: str, other: str) -> None:
    for each in (name, other):
        config = AiTForImageClassificationConfig(**{each: 7})
        assert getattr(config, name) == getattr(config, other) == 7
        assert getattr(config.to_ait_config(), name) == 7


def test_there_are_two_classes_unless_another_number_is_set() -> None:
    config = AiTForImageClassificationConfig()
    assert (config.num_labels, config.id2label) == (2, {0: "LABEL_0", 1: "LABEL_1"})


@pytest.mark.parametrize("changes", [{}, {"num_labels": 2}, {"image_size": (8, 6)}])
def test_a_saved_configuration_is_complete(changes: dict[str, Any], tmp_path: Path) -> None:
    model = build(workspace={"num_priors": 3}, **changes)
    save(model, tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(config) is AiTForImageClassificationConfig
    assert config.to_ait_config() == model.ait.config
    assert config.workspace == asdict(model.ait.config.workspace)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workspace": {"num_prior": 3}}, "config.workspace.num_prior: Unexpected keyword"),
        ({"workspace": {"num_priors": 0}}, "num_priors must be at least 1, not 0"),
        ({"workspace": {"image": {"heads": 3}}}, "config.workspace.image.heads: Unexpected"),
        ({"image_size": 9}, "patch_size 2 does not divide image_size 9"),
        ({"head": "max"}, "config.head: Input should be 'flatten'"),
        ({"question_dim": 11}, "question_dim must be 0, not 11: a model that answers questions"),
    ],
)
def test_an_invalid_value_is_refused_with_its_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(**changes)


def test_a_value_of_the_wrong_type_is_refused_by_transformers() -> None:
    with pytest.raises(Exception, match="Field 'patch_size' expected int, got str"):
        build(patch_size="two")


# --- the numbers ---


@both_scopes
@pytest.mark.parametrize("head", ["flatten", "mean", "cls"])
def test_a_new_model_has_the_weights_of_a_new_ait(scope: str, head: str) -> None:
    torch.manual_seed(1)
    model = build(scope, head=head)
    torch.manual_seed(1)
    assert_same_weights(model.ait, AiT(model.config.to_ait_config()))
    before = copy.deepcopy(model)
    model.initialize_weights()
    assert_same_weights(model, before)


@both_scopes
def test_the_loss_is_cross_entropy_plus_balance_loss(scope: str) -> None:
    model, (images, labels) = build(scope), inputs()
    twin = copy.deepcopy(model.ait)
    output = model(pixel_values=images, labels=labels)
    output.loss.backward()
    logits, aux_loss = twin(images)
    loss = cross_entropy(logits, labels) + aux_loss
    loss.backward()
    assert (aux_loss > 0) == (scope == "batch")
    torch.testing.assert_close(output.loss, loss)
    torch.testing.assert_close(gradients(model.ait), gradients(twin))
    assert output.attentions is None
    assert output.hidden_states is None
    assert_same_weights(model.ait, twin)  # the memories have moved once


def test_without_labels_the_logits_carry_the_balance_loss() -> None:
    model, (images, labels) = build(), inputs()
    twin = copy.deepcopy(model)
    (0.5 * model(images, labels=labels).loss).backward()
    output = twin(images, num_items_in_batch=torch.tensor(12))
    assert output.loss is None
    (cross_entropy(output.logits, labels) / 2).backward()
    torch.testing.assert_close(gradients(model), gradients(twin))


def test_losses_of_micro_batches_add_up_to_the_mean_of_the_batch() -> None:
    model, (images, labels) = build("image"), inputs()
    labels[3] = -100
    model(images, labels=labels).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for part in (slice(0, 4), slice(4, 6)):
        output = model(images[part], labels=labels[part], num_items_in_batch=torch.tensor(5))
        output.loss.backward()
    torch.testing.assert_close(gradients(model), expected, **CLOSE)


def test_each_micro_batch_adds_its_share_of_the_balance_loss() -> None:
    model, (images, labels) = build(), inputs()
    twin = copy.deepcopy(model)
    share = model(images, labels=labels, num_items_in_batch=24).loss
    torch.testing.assert_close(share, twin(images, labels=labels).loss * 6 / 24)


def test_another_loss_can_be_selected() -> None:
    model, (images, _) = build("image", problem_type="multi_label_classification"), inputs()
    labels = torch.rand(6, 5).round()
    output = model(images, labels=labels)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(output.logits, labels)
    torch.testing.assert_close(output.loss, expected)


@both_scopes
def test_hidden_states_are_the_tokens_around_the_blocks(scope: str) -> None:
    model, (images, _) = build(scope).eval(), inputs()
    output = model(images, output_hidden_states=True)
    assert [x.shape for x in output.hidden_states] == [(6, 17, 24)] * 3
    assert torch.equal(output.hidden_states[0], model.ait.embed(images))
    assert torch.equal(output.hidden_states[2], model.ait.forward_features(images))
    assert torch.equal(output.logits, model.ait(images).logits)
    assert not any(part._forward_hooks for part in model.modules())
    model.config.output_hidden_states = True
    logits, states = model(images, return_dict=False)
    assert torch.equal(logits, output.logits)
    assert len(states) == 3


@both_scopes
def test_gradient_checkpointing_changes_neither_gradients_nor_memories(scope: str) -> None:
    model, (images, labels) = build(scope), inputs()
    twin = copy.deepcopy(model)
    twin.gradient_checkpointing_enable()
    assert twin.is_gradient_checkpointing
    assert all(block.recompute for block in twin.ait.blocks)
    for each in (model, twin):
        torch.manual_seed(1)
        each(images, labels=labels).loss.backward()
    torch.testing.assert_close(gradients(model), gradients(twin))
    assert_same_weights(model, twin)
    twin.gradient_checkpointing_disable()
    assert not any(block.recompute for block in twin.ait.blocks)


# --- weights ---


@both_scopes
def test_a_saved_model_is_loaded_bit_exactly(scope: str, tmp_path: Path) -> None:
    model, (images, labels) = build(scope), inputs()
    model(images, labels=labels).loss.backward()  # moves the memories
    save(model, tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is AiTForImageClassification
    assert not any(info.values())
    assert not any(x.is_meta for x in loaded.state_dict().values())
    assert_same_weights(loaded, model)
    assert torch.equal(loaded(images).logits, model.eval()(images).logits)
    loaded.initialize_weights()  # transformers also calls it when it loads an adapter
    assert_same_weights(loaded, model)
    loaded.double().initialize_weights()
    assert_same_weights(loaded, model.double())


@both_scopes
def test_missing_weights_are_drawn_like_those_of_a_new_ait(scope: str, tmp_path: Path) -> None:
    file = save(build(scope), tmp_path) / "model.safetensors"
    weights = load_file(file)
    missing = {"embed.class_token", "embed.positions", "blocks.1.workspace.priors"}
    missing |= {"blocks.0.norm2.weight", "head.to_logits.bias"}
    kept = {name: x for name, x in weights.items() if name.removeprefix("ait.") not in missing}
    save_file(kept, file, metadata={"format": "pt"})
    torch.manual_seed(1)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    torch.manual_seed(1)
    drawn = AiT(loaded.ait.config).state_dict()
    assert info["missing_keys"] == {f"ait.{name}" for name in missing}
    for name, value in loaded.ait.state_dict().items():
        assert torch.equal(value, drawn[name] if name in missing else weights[f"ait.{name}"])


def test_another_number_of_labels_draws_a_new_classifier(tmp_path: Path) -> None:
    model = build()
    save(model, tmp_path)
    changes = {"num_labels": 3, "ignore_mismatched_sizes": True}
    loaded = AutoModel.from_pretrained(tmp_path, **changes)
    assert loaded(inputs()[0]).logits.shape == (6, 3)
    assert loaded.config.num_labels == loaded.ait.config.num_classes == 3
    weights, old = loaded.state_dict(), model.state_dict()
    assert 0 < weights.pop("ait.head.to_logits.weight").abs().max() <= 24**-0.5
    assert weights.pop("ait.head.to_logits.bias").abs().max() <= 24**-0.5
    assert all(torch.equal(value, old[name]) for name, value in weights.items())
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModel.from_pretrained(tmp_path, num_labels=3)


@both_scopes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_computes_and_trains_in_other_types(
    scope: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    save(build(scope), tmp_path)
    model, (images, labels) = AutoModel.from_pretrained(tmp_path, dtype=dtype), inputs()
    assert {x.dtype for x in model.state_dict().values()} == {dtype}
    before = model.ait.state_dict()["blocks.0.workspace.priors"].clone()
    output = model.train()(images, labels=labels)
    output.loss.backward()
    assert output.logits.dtype == torch.promote_types(dtype, torch.float32)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    has_moved = not torch.equal(model.ait.blocks[0].workspace.priors, before)
    assert has_moved == (scope == "batch")
    assert torch.equal(model.eval()(images).logits, model.ait(images.to(dtype)).logits)


def test_a_model_cast_to_half_precision_computes() -> None:
    model, (images, _) = build().eval(), inputs()
    expected = model(images).logits
    torch.testing.assert_close(model.half()(images).logits, expected, rtol=0.05, atol=0.05)


# --- conversion ---


@both_scopes
def test_a_model_is_converted_to_transformers_and_back(scope: str, tmp_path: Path) -> None:
    ait = build(scope).ait.eval()
    ait.describe(PREPARED, NAMES)
    model = from_ait(ait)
    assert (model.config.id2label[2], model.config.label2id["owl"]) == ("owl", 2)
    assert not model.training
    assert_same_weights(model.ait, ait)
    save(model, tmp_path)
    AiTImageProcessor.from_ait(ait).save_pretrained(tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    back = AutoModel.from_pretrained(tmp_path).to_ait(processor)
    assert type(back) is AiT
    assert (back.config, back.class_names, back.preprocessing) == (ait.config, NAMES, PREPARED)
    assert_same_weights(back, ait)
    save(back, tmp_path / "ait")
    assert load_model(tmp_path / "ait").preprocessing == PREPARED


def test_a_converted_model_is_a_copy_of_the_same_type() -> None:
    ait = AiT(TINY["ait"]).double().eval()
    model = from_ait(ait)
    back = model.to_ait()
    assert (model.dtype, back.class_names, back.preprocessing) == (torch.float64, None, None)
    assert not back.training
    model.ait.embed.patches[1].bias.data += 1
    assert_same_weights(back, ait)


def test_a_folder_of_this_package_is_refused_with_the_way_to_load_it(tmp_path: Path) -> None:
    save(AiT(TINY["ait"]), tmp_path)
    for kind in (AiTForImageClassification, AiTForImageClassificationConfig):
        with pytest.raises(UserError, match=r"load it with from_ait\(load_model\('") as caught:
            kind.from_pretrained(tmp_path)
        assert repr(str(tmp_path)) in str(caught.value)
    assert from_ait(load_model(str(tmp_path))).ait.config == TINY["ait"]


def test_other_models_are_not_converted() -> None:
    with pytest.raises(UserError, match="from_ait takes an AiT, not a ViT"):
        from_ait(ViT(ViTConfig(embed_dim=24, num_heads=2)))
    with pytest.raises(UserError, match="question_dim must be 0, not 7"):
        from_ait(AiT(replace(TINY["ait"], question_dim=7)))


# --- images ---


def picture(mode: str = "RGB", width: int = 13, height: int = 10) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def turned() -> Image.Image:
    image = picture()
    image.getexif()[ExifTags.Base.Orientation] = 6
    return image


PICTURES = {
    "color": picture(),
    "of the right size": picture(width=8, height=8),
    "small": picture(width=3, height=5),
    "transparent": picture("RGBA"),
    "gray": picture("L"),
    "with a palette": picture("P"),
    "16 bits": Image.fromarray(np.arange(130, dtype=np.uint16).reshape(10, 13) * 500),
    "turned": turned(),
}


def process(p: Preprocessing, images: object) -> Tensor:
    processor = AiTImageProcessor(p.image_size, p.mean, p.std, p.mode)
    assert processor.preprocessing == p
    return processor(images, return_tensors="pt").pixel_values


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize(
    "preprocessing",
    [
        PREPARED,
        replace(PREPARED, image_size=(6, 9)),
        replace(PREPARED, mode="L"),
        Preprocessing((8, 8), (0.0,), (1.0,), "L"),
    ],
)
def test_images_are_prepared_like_those_of_this_package(
    kind: str, preprocessing: Preprocessing, tmp_path: Path
) -> None:
    image = PICTURES[kind]
    assert torch.equal(process(preprocessing, image), preprocessing(image))
    file = tmp_path / "image.png"
    image.save(file, exif=image.getexif())
    for path in (file, str(file)):
        assert torch.equal(process(preprocessing, [path]), preprocessing(file))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_arrays_and_tensors_are_prepared_like_images(mode: str) -> None:
    image = picture(mode)
    array = np.asarray(image)
    last = array.reshape(10, 13, -1)
    first = torch.from_numpy(last.copy()).movedim(-1, 0)
    for each in (array, last, first, first.numpy()):
        assert torch.equal(process(PREPARED, each), PREPARED(image))


def test_several_images_are_prepared_at_once() -> None:
    image = picture()
    array, twice = np.asarray(image), PREPARED([image, image])
    for images in ([image, array], (array, image), [[image], [image]], np.stack([array, array])):
        assert torch.equal(process(PREPARED, images), twice)
    assert torch.equal(process(PREPARED, torch.from_numpy(np.stack([array, array]))), twice)


def test_the_type_of_the_result_can_be_chosen() -> None:
    processor, image = AiTImageProcessor(8, PREPARED.mean, PREPARED.std), picture()
    expected = PREPARED(image).numpy()
    assert np.array_equal(processor(image, return_tensors="np")["pixel_values"], expected)
    (alone,) = processor(images=image)["pixel_values"]
    assert np.array_equal(alone, expected[0])


@both_scopes
def test_a_saved_image_processor_is_loaded(scope: str, tmp_path: Path) -> None:
    save(build(scope), tmp_path)
    save(AiTImageProcessor((6, 8), (0.5,), (0.25,), "L"), tmp_path)
    loaded = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is AiTImageProcessor
    assert loaded.preprocessing == Preprocessing((6, 8), (0.5,), (0.25,), "L")
    larger = transformers.AutoImageProcessor.from_pretrained(tmp_path, size=10)
    assert larger.size == {"height": 10, "width": 10}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": {"shortest_edge": 8}}, "size must be a height and a width, not"),
        ({"image_std": (0.5,)}, r"mean .* and std .* must have a value per channel"),
        ({"image_std": (0.5, 0.5, 0.0)}, "must be finite and std"),
    ],
)
def test_invalid_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    settings = {"size": 8, "image_mean": PREPARED.mean, "image_std": PREPARED.std}
    with pytest.raises(ValueError, match=message):
        AiTImageProcessor(**settings | changes)


def test_an_invalid_mode_is_refused() -> None:
    processor = AiTImageProcessor(8, PREPARED.mean, PREPARED.std)
    processor.mode = "CMYK"
    with pytest.raises(UserError, match="mode: Input should be 'RGB' or 'L'"):
        processor(picture())


def test_steps_cannot_be_left_out() -> None:
    with pytest.raises(TypeError, match="do_normalize"):
        AiTImageProcessor(8, PREPARED.mean, PREPARED.std, do_normalize=False)


def test_what_cannot_be_prepared_is_refused(tmp_path: Path) -> None:
    processor = AiTImageProcessor(8, PREPARED.mean, PREPARED.std)
    with pytest.raises(ValueError, match="arrays must be uint8, not float32: scale values"):
        processor(torch.rand(3, 8, 8))
    with pytest.raises(ValueError, match="images must not be empty"):
        processor([])
    with pytest.raises(UserError, match="there is no file"):
        processor(str(tmp_path / "none.png"))
    with pytest.raises(UserError, match=r"set model\.preprocessing first"):
        AiTImageProcessor.from_ait(AiT(TINY["ait"]))


# --- pipelines ---


def test_a_pipeline_predicts_what_this_package_predicts(tmp_path: Path) -> None:
    ait = build().ait.eval()
    ait.describe(PREPARED, NAMES)
    save(from_ait(ait), tmp_path)
    processor = AiTImageProcessor.from_ait(ait)
    save(processor, tmp_path)
    images = [PICTURES[kind] for kind in ("color", "gray", "small", "turned")]
    file = tmp_path / "turned.png"
    turned().save(file, exif=turned().getexif())
    task = "image-classification"
    by_folder = transformers.pipeline(task, model=str(tmp_path), device="cpu")
    by_parts = transformers.pipeline(
        task, model=from_ait(ait), image_processor=processor, device="cpu"
    )
    shares = ait(PREPARED([*images, file])).logits.softmax(dim=-1)
    expected = [dict(zip(NAMES, each.tolist(), strict=True)) for each in shares]
    for predict in (by_folder, by_parts):
        predictions = [*predict(images), predict(str(file))]
        found = [{each["label"]: each["score"] for each in image} for image in predictions]
        assert found == [pytest.approx(each, abs=1e-6) for each in expected]
