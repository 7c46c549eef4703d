"""The models of this package in timm: its conventions, the same numbers, the same weights."""

import copy
import doctest
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from associative_transformer.interface import UserError
from associative_transformer.models import MODELS, build_model, load_model
from associative_transformer.models.ait import AiT, AiTConfig
from associative_transformer.recipes import RECIPES

pytestmark = pytest.mark.interop
timm = pytest.importorskip("timm")

from associative_transformer.integrations import timm as integration  # noqa: E402
from associative_transformer.integrations.timm import (  # noqa: E402
    REGISTERED,
    AiTForTimm,
    TransformerForTimm,
)

SIZES: dict[str, Any] = {
    "num_classes": 5,
    "img_size": 8,
    "patch_size": 2,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "head_dim": 8,
    "mlp_ratio": 2.0,
}
MEMORY = {"num_priors": 4, "prior_dim": 4, "num_heads": 2}
CLOSE = {"rtol": 1e-12, "atol": 1e-12}

every_model = pytest.mark.parametrize("name", REGISTERED)
some_models = pytest.mark.parametrize("name", ["ait_tiny", "ait_image_tiny", "ait_vit_small"])
every_pool = pytest.mark.parametrize("pool", ["flatten", "mean", "cls"])


def create(name: str, **options: object) -> Any:  # noqa: ANN401
    memory = {} if "vit" in name else {"workspace": MEMORY}
    return timm.create_model(name, **SIZES | memory | options)


def inputs(batch: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 3, 8, 8), torch.arange(batch) % 5


def assert_same_gradients(ours: nn.Module, theirs: nn.Module) -> None:
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, **CLOSE)


def plain(model: TransformerForTimm) -> Any:  # noqa: ANN401
    """Return the AiT or ViT with the same weights."""
    twin = build_model(model.config).train(model.training)
    twin.load_state_dict(model.state_dict())
    return twin.to(next(model.parameters()).dtype)


# --- the registry ---


def test_timm_lists_the_models() -> None:
    assert set(timm.list_models("ait*")) == set(REGISTERED)
    assert timm.list_models("ait*", pretrained=True) == []
    assert set(timm.list_models(module="timm")) == set(REGISTERED)


def test_the_example_runs() -> None:
    results = doctest.testmod(integration)
    assert (results.attempted, results.failed) == (3, 0)


@every_model
def test_a_model_has_the_sizes_of_its_recipe(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    recipe = RECIPES[REGISTERED[name]]
    assert model.config == recipe.model
    assert timm.get_pretrained_cfg(name).mean == recipe.data.mean
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 32, 32)


@every_model
def test_sizes_can_be_changed(name: str) -> None:
    model = create(name, in_chans=1, depth=1)
    assert model(torch.randn(4, 1, 8, 8)).shape == (4, 5)
    assert (model.num_classes, model.in_chans, len(model.blocks)) == (5, 1, 1)
    assert model.num_features == 32


def test_the_models_do_not_enter_the_table_of_models() -> None:
    assert AiTForTimm not in MODELS.values()
    assert AiTForTimm.config_class() is AiTConfig


def test_images_are_prepared_for_the_sizes_of_the_model() -> None:
    model = create("ait_small", img_size=16, in_chans=1)
    config = timm.data.resolve_model_data_config(model)
    assert (config["input_size"], config["crop_pct"]) == ((1, 16, 16), 1.0)
    assert len(config["mean"]) == len(config["std"]) == 1
    transform = timm.data.create_transform(**config)
    assert any("CenterCrop(size=(16, 16))" in str(step) for step in transform.transforms)


@every_pool
def test_the_settings_name_the_classifier(pool: str) -> None:
    model = create("ait_small", global_pool=pool)
    assert model.config.head == pool
    assert model.get_submodule(model.default_cfg["classifier"]) is model.get_classifier()


def test_names_of_timm_for_pooling_are_understood() -> None:
    assert create("ait_small", global_pool="avg").config.head == "mean"
    model = create("ait_small", global_pool="token")
    assert model.config.head == "cls"
    model = create("ait_small")
    model.reset_classifier(7, "avg")
    assert model.global_pool == "mean"
    assert model(inputs()[0]).shape == (6, model.num_classes) == (6, 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop_rate": 0.1}, "drop_rate must be 0, not 0.1"),
        ({"drop_path_rate": 1.5}, "stochastic_depth must be at least 0 and less than 1, not 1.5"),
        ({"global_pool": ""}, "global_pool must be one of avg, token, flatten"),
        ({"img_size": 9}, "patch_size 2 does not divide image_size 9"),
        ({"workspace": {"num_priors": 0}}, "num_priors must be at least 1, not 0"),
        ({"pretrained": True}, "no weights are published for ait_small: use pretrained=False"),
    ],
)
def test_what_the_models_lack_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create("ait_small", **options)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'qkv_bias'"):
        create("ait_small", qkv_bias=True)
    assert create("ait_small", drop_rate=0.0, drop_path_rate=None).num_classes == 5


# --- the numbers ---


@some_models
def test_logits_and_gradients_are_those_of_the_model_with_its_balance_loss(name: str) -> None:
    ours = create(name).double()
    theirs, (images, labels) = plain(ours), inputs()
    torch.manual_seed(1)
    logits = ours(images.double())
    cross_entropy(logits, labels).backward()
    torch.manual_seed(1)
    expected, aux_loss = theirs(images.double())
    (cross_entropy(expected, labels) + aux_loss).backward()
    assert torch.equal(logits, expected)
    assert (aux_loss > 0) == (name == "ait_tiny")
    assert_same_gradients(ours, theirs)
    for name, buffer in theirs.named_buffers():
        assert torch.equal(ours.get_buffer(name), buffer)


def test_the_scale_of_the_loss_also_scales_the_balance_loss() -> None:
    ours = create("ait_tiny").double()
    theirs, (images, labels) = copy.deepcopy(ours), inputs()
    ours.loss_scale = lambda: 8.0
    for model, scale in ((ours, 8.0), (theirs, 1.0)):
        torch.manual_seed(1)
        (scale * cross_entropy(model(images.double()), labels)).backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, 8 * other.grad, **CLOSE)


@some_models
def test_recomputation_does_not_change_the_gradients(name: str) -> None:
    ours = create(name).double()
    theirs, (images, labels) = copy.deepcopy(ours), inputs()
    ours.set_grad_checkpointing()
    for model in (ours, theirs):
        torch.manual_seed(1)
        cross_entropy(model(images.double()), labels).backward()
    assert_same_gradients(ours, theirs)


@some_models
@every_pool
def test_features_and_head_make_up_the_model(name: str, pool: str) -> None:
    model, (images, _) = create(name, global_pool=pool).eval(), inputs()
    features = model.forward_features(images)
    pooled = model.forward_head(features, pre_logits=True)
    assert torch.equal(model.forward_head(features), model(images))
    assert pooled.shape == (6, model.head_hidden_size)
    model.reset_classifier(0)
    assert torch.equal(model(images), pooled)


# --- features of the blocks ---


@some_models
def test_features_are_maps_of_the_chosen_blocks(name: str) -> None:
    images, _ = inputs()
    network = create(name, features_only=True)
    assert [x.shape for x in network(images)] == [(6, 32, 4, 4)] * 2
    assert network.feature_info.channels() == [32, 32]
    assert network.feature_info.reduction() == [2, 2]
    assert network.feature_info.module_name() == ["blocks.0", "blocks.1"]
    (features,) = create(name, features_only=True, out_indices=[0])(images)
    assert features.shape == (6, 32, 4, 4)


@some_models
@every_pool
def test_every_weight_of_a_network_of_features_is_used(name: str, pool: str) -> None:
    network = create(name, features_only=True, out_indices=[0], global_pool=pool)
    network(inputs()[0])[0].square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_gradients_through_intermediates_include_the_balance_loss() -> None:
    ours = create("ait_tiny").double()
    theirs, (images, labels) = plain(ours), inputs()
    torch.manual_seed(1)
    tokens, features = ours.forward_intermediates(images.double())
    (cross_entropy(ours.forward_head(tokens), labels) + features[0].sum()).backward()
    torch.manual_seed(1)
    first = []
    theirs.blocks[0].register_forward_hook(lambda *call: first.append(call[-1].tokens))
    logits, aux_loss = theirs(images.double())
    (cross_entropy(logits, labels) + first[0].sum() + aux_loss).backward()
    assert_same_gradients(ours, theirs)


@some_models
@every_pool
def test_intermediates_follow_the_arguments_of_timm(name: str, pool: str) -> None:
    model, (images, _) = create(name, global_pool=pool).eval(), inputs()
    tokens, maps = model.forward_intermediates(images)
    assert torch.equal(tokens, model.forward_features(images))
    first = int(pool == "cls")
    _, sequences = model.forward_intermediates(images, output_fmt="NLC")
    assert torch.equal(sequences[1], tokens[:, first:])
    assert torch.equal(maps[1].flatten(2).mT, sequences[1])
    (only,) = model.forward_intermediates(
        images, indices=[0], stop_early=True, intermediates_only=True
    )
    assert torch.equal(only, maps[0])
    paired = model.forward_intermediates(
        images, 1, return_prefix_tokens=True, norm=True, output_fmt="NLC", intermediates_only=True
    )
    if pool == "cls":
        ((_, prefix),) = paired
        assert torch.equal(prefix[:, 0], model.forward_head(tokens, pre_logits=True))
    else:
        pooled = paired[0].mean(dim=1) if pool == "mean" else paired[0].flatten(1)
        assert torch.equal(pooled, model.forward_head(tokens, pre_logits=True))
    with pytest.raises(ValueError, match="output_fmt must be NCHW or NLC, not NHWC"):
        model.forward_intermediates(images, output_fmt="NHWC")


# --- weights ---


@some_models
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_saved_weights_are_loaded_by_both(name: str, suffix: str, tmp_path: Path) -> None:
    model, (images, _) = create(name).eval(), inputs()
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(model.state_dict(), path)
    twin = build_model(model.config).eval()
    twin.load_state_dict(timm.models.load_state_dict(path))
    by_path = create(name, checkpoint_path=path).eval()
    by_file = create(name, pretrained=True, pretrained_cfg_overlay={"file": str(path)}).eval()
    for other in (twin.logits_only(), by_path, by_file):
        assert torch.equal(other(images), model(images))
    network = create(
        name, features_only=True, pretrained=True, pretrained_cfg_overlay={"file": str(path)}
    )
    expected = model.forward_intermediates(images, intermediates_only=True)
    assert all(map(torch.equal, network.eval()(images), expected))


def test_a_folder_written_by_one_class_is_read_by_the_other(tmp_path: Path) -> None:
    model, (images, _) = create("ait_tiny").eval(), inputs()
    model.save_pretrained(tmp_path / "timm")
    loaded = load_model(tmp_path / "timm")
    assert type(loaded) is AiT
    assert torch.equal(loaded(images).logits, model(images))
    loaded.save_pretrained(tmp_path / "ait")
    assert torch.equal(AiTForTimm.from_pretrained(tmp_path / "ait")(images), model(images))
    file = tmp_path / "ait" / "model.safetensors"
    assert torch.equal(create("ait_tiny", checkpoint_path=file).eval()(images), model(images))


def test_a_folder_written_by_timm_is_read_by_timm(tmp_path: Path) -> None:
    options = SIZES | {"workspace": MEMORY, "global_pool": "mean"}
    model, (images, _) = timm.create_model("ait_tiny", **options).eval(), inputs()
    timm.models.save_for_hf(model, tmp_path, model_args=options, safe_serialization=True)
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert loaded.config == model.config
    assert torch.equal(loaded(images), model(images))


def test_weights_are_adapted_to_other_sizes(tmp_path: Path) -> None:
    model = create("ait_image_tiny")
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    overlay = {"file": str(tmp_path / "weights.safetensors"), "num_classes": 5}
    sizes = {"num_classes": 3, "img_size": 16, "in_chans": 1}
    with pytest.raises(UserError, match=r"5 classes for images of \(3, 32, 32\): pass those"):
        create("ait_image_tiny", pretrained=True, pretrained_cfg_overlay=overlay, **sizes)
    overlay["input_size"] = (3, 8, 8)
    other = create("ait_image_tiny", pretrained=True, pretrained_cfg_overlay=overlay, **sizes)
    assert other(torch.randn(2, 1, 16, 16)).shape == (2, 3)
    assert other.initialization.resized == ("embed.positions",)
    assert other.initialization.drawn == ("head.to_logits.weight", "head.to_logits.bias")
    for key in other.initialization.loaded:
        assert torch.equal(other.state_dict()[key], model.state_dict()[key])
