"""Models that start from the weights of others."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from associative_transformer.interface import UserError
from associative_transformer.models import build_model, load_model
from associative_transformer.models.ait import AiTConfig
from associative_transformer.models.initialize import (
    PatchWeights,
    adapt_channels,
    initialize,
    resize_positions,
)
from associative_transformer.models.vit import ViTConfig
from making.tiny import TINY, tiny

both_models = pytest.mark.parametrize("config", [AiTConfig, ViTConfig], ids=["ait", "vit"])


@pytest.mark.parametrize("name", TINY)
def test_a_model_of_the_same_sizes_is_loaded_completely(name: str) -> None:
    source, model = build_model(TINY[name]), build_model(TINY[name])
    with torch.no_grad():
        for value in source.state_dict().values():
            value.add_(1)
    done = initialize(model, source)
    assert (done.resized, done.adapted, done.drawn, done.unused) == ((), (), (), ())
    assert set(done.loaded) == set(model.state_dict())
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)


@both_models
def test_a_head_of_other_classes_is_drawn_anew_and_everything_else_is_loaded(config: Any) -> None:  # noqa: ANN401
    source = build_model(tiny(config, head="mean"))
    model = build_model(tiny(config, head="mean", num_classes=9))
    before = model.state_dict()["head.to_logits.weight"].clone()
    done = initialize(model, source)
    assert done.drawn == ("head.to_logits.weight", "head.to_logits.bias")
    assert torch.equal(model.state_dict()["head.to_logits.weight"], before)
    assert done.describe().splitlines() == [
        f"loaded     {len(source.state_dict()) - 2} of {len(source.state_dict())} tensors",
        "new        head.to_logits.weight, head.to_logits.bias",
    ]


@both_models
@pytest.mark.parametrize("head", ["mean", "cls"])
def test_positions_are_resized_over_the_grid(config: Any, head: str) -> None:  # noqa: ANN401
    source = build_model(tiny(config, head=head, pos="learned"))
    model = build_model(tiny(config, head=head, pos="learned", image_size=16))
    row, column = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    extra = int(head == "cls")
    with torch.no_grad():  # a ramp, which bicubic interpolation reproduces away from the border
        source.embed.positions[extra:, 0] = (10 * row + column).flatten()
        source.embed.positions[:extra] = 7.0
    done = initialize(model, source)
    assert done.resized == ("embed.positions",)
    assert done.drawn == ()
    grid = model.embed.positions.detach()[extra:, 0].view(8, 8)
    center = torch.arange(8) / 2 - 0.25
    expected = 10 * center[:, None] + center
    torch.testing.assert_close(grid[3:5, 3:5], expected[3:5, 3:5], rtol=0, atol=1e-4)
    assert (model.embed.positions[:extra] == 7.0).all()


def test_positions_are_resized_as_pillow_resizes_an_image() -> None:
    source = build_model(tiny(ViTConfig, head="mean", pos="learned", image_size=16))
    model = build_model(tiny(ViTConfig, head="mean", pos="learned"))
    positions = resize_positions(source.embed, model.embed)
    assert positions is not None
    grid = source.embed.positions.detach()[:, 0].view(8, 8).numpy()
    theirs = np.asarray(Image.fromarray(grid).resize((4, 4), Image.Resampling.BICUBIC))
    ours = positions.detach()[:, 0].view(4, 4).numpy()
    np.testing.assert_allclose(ours, theirs, atol=0.02 * np.abs(grid).max())


def test_a_class_token_that_only_the_model_has_keeps_its_position() -> None:
    source = build_model(tiny(ViTConfig, head="mean", pos="learned"))
    model = build_model(tiny(ViTConfig, head="cls", pos="learned"))
    before = model.embed.positions.detach()[0].clone()
    done = initialize(model, source)
    assert done.resized == ("embed.positions",)
    assert "embed.class_token" in done.drawn
    assert torch.equal(model.embed.positions[0], before)
    assert torch.equal(model.embed.positions[1:], source.embed.positions)


@both_models
@pytest.mark.parametrize("channels", [1, 6, 9])
def test_copies_of_the_channels_give_the_same_tokens(config: Any, channels: int) -> None:  # noqa: ANN401
    source = build_model(tiny(config, head="mean")).eval()
    with torch.no_grad():
        for parameter in source.embed.parameters():
            parameter.normal_()
    model = build_model(tiny(config, head="mean", num_channels=channels)).eval()
    done = initialize(model, source)
    names = {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert set(done.adapted) == {f"embed.patches.{name}" for name in names}
    gray = torch.randn(2, 1, 8, 8)
    ours, theirs = (
        each.embed(gray.repeat(1, n, 1, 1)) for each, n in ((model, channels), (source, 3))
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_for_four_channels_the_first_is_repeated() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0, 10.0, 20.0, 30.0]])  # two pixels of three channels
    patches = PatchWeights(weight[0], weight[0], weight, torch.zeros(1))
    scale, shift, four, _ = adapt_channels(patches, 3, 4)
    assert scale.tolist() == shift.tolist() == [1.0, 2, 3, 1, 10, 20, 30, 10]
    assert four.tolist() == [[0.75, 1.5, 2.25, 0.75, 7.5, 15, 22.5, 7.5]]


def test_what_only_one_of_the_models_has_is_named() -> None:
    source = build_model(tiny(AiTConfig, head="mean"))
    model = build_model(tiny(ViTConfig, head="mean"))
    done = initialize(model, source)
    assert "blocks.0.workspace.priors" in done.unused
    assert "blocks.0.attention.to_qkv.weight" in done.loaded
    assert "not used   blocks.0.norm3.weight" in done.describe()


def test_a_model_that_shares_no_weight_is_refused() -> None:
    with pytest.raises(
        UserError, match="a ViT shares no weight with a ConvMLP: choose another source"
    ):
        initialize(build_model(TINY["conv-mlp"]), build_model(replace(TINY["vit"], depth=1)))


@pytest.mark.parametrize("kind", ["ait", "vit"])
def test_a_pretrained_model_is_loaded_with_other_sizes(kind: str, tmp_path: Path) -> None:
    source = build_model(tiny(type(TINY[kind]), head="mean", pos="learned"))
    source.save_pretrained(tmp_path / "source")
    model = load_model(tmp_path / "source", num_classes=3, image_size=12, num_channels=1)
    config = model.config
    assert (config.num_classes, config.image_size, config.num_channels) == (3, 12, 1)
    assert not model.training
    assert model.initialization is not None
    assert model.initialization.drawn == ("head.to_logits.weight", "head.to_logits.bias")
    assert model.initialization.resized == ("embed.positions",)
    assert len(model.initialization.adapted) == 4
    x = torch.randn(2, 1, 12, 12)
    model.save_pretrained(tmp_path / "changed")
    assert torch.equal(load_model(tmp_path / "changed")(x).logits, model(x).logits)


def test_sizes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    build_model(TINY["vit"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="patch_size 2 does not divide image_size 9"):
        load_model(tmp_path, image_size=9)
