"""The convolutional stem: its shape, a slow twin, and what it has in common with patches."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from associative_transformer.models import build_model
from associative_transformer.models.ait import AiT, AiTConfig
from associative_transformer.models.initialize import adapt_kernel, initialize
from associative_transformer.models.layers import TokenEmbed
from associative_transformer.models.stem import NORM_GROUPS, ConvStem, StemConfig
from associative_transformer.models.vit import ViT, ViTConfig
from making.tiny import tiny

CONV = StemConfig("conv", width=8, depth=2)


def slow_convolution(x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """Convolve one image with 3x3 kernels, one output pixel at a time."""
    padded = pad(x, (1, 1, 1, 1))
    rows = [
        torch.stack(
            [
                (kernel * padded[None, :, i : i + 3, j : j + 3]).sum(dim=(1, 2, 3))
                for j in range(0, x.shape[2], stride)
            ],
            dim=-1,
        )
        for i in range(0, x.shape[1], stride)
    ]
    return torch.stack(rows, dim=1)


def slow_group_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Normalize each group of channels of one image to mean 0 and variance 1."""
    groups = []
    for group in x.chunk(NORM_GROUPS):
        variance = (group - group.mean()).square().mean()
        groups.append((group - group.mean()) / (variance + 1e-5).sqrt())
    return torch.cat(groups) * scale[:, None, None] + shift[:, None, None]


def test_the_stem_equals_a_slow_twin() -> None:
    stem = ConvStem(3, 6, 4, CONV).double()
    for parameter in stem.parameters():
        parameter.data += torch.rand_like(parameter)
    image = torch.randn(3, 8, 12, dtype=torch.float64)
    x = image
    for i, stride in enumerate((2, 1, 2, 1)):
        convolution, norm = stem[3 * i], stem[3 * i + 1]
        x = slow_convolution(x, convolution.weight, stride)
        x = slow_group_norm(x, norm.weight, norm.bias)
        x = x * (1 + torch.erf(x / 2**0.5)) / 2
    last = stem[-1]
    x = torch.einsum("ec,chw->ehw", last.weight[:, :, 0, 0], x) + last.bias[:, None, None]
    torch.testing.assert_close(stem(image[None])[0], x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("patch_size", [2, 4, 8])
def test_there_are_as_many_tokens_as_patches(patch_size: int) -> None:
    embed = TokenEmbed((16, 8), patch_size, 3, 6, 2, use_class_token=True, stem=CONV)
    tokens = embed(torch.randn(5, 3, 16, 8), torch.randn(5, 2))
    assert tokens.shape == (5, embed.num_tokens, 6)
    assert embed.num_tokens == 2 + 16 * 8 // patch_size**2


def test_tokens_are_in_raster_order() -> None:
    embed = TokenEmbed((8, 12), 4, 3, 6, stem=CONV)
    grid = embed.patches(image := torch.randn(2, 3, 8, 12))
    tokens = embed(image)
    assert torch.equal(tokens[:, 0], grid[:, :, 0, 0])
    assert torch.equal(tokens[:, 1], grid[:, :, 0, 1])
    assert torch.equal(tokens[:, 3], grid[:, :, 1, 0])


@pytest.mark.parametrize("config", [AiTConfig, ViTConfig])
def test_the_logits_of_an_image_do_not_depend_on_its_batch(
    config: type[AiTConfig] | type[ViTConfig],
) -> None:
    model = build_model(tiny(config, stem=CONV)).double().eval()
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    alone = torch.cat([model(image[None]).logits for image in images])
    torch.testing.assert_close(model(images).logits, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("patch_size", [1, 3, 6])
def test_a_patch_size_that_is_not_a_power_of_two_is_refused(patch_size: int) -> None:
    with pytest.raises(ValueError, match=rf"power of 2 from 2, not {patch_size}"):
        ViTConfig(image_size=18, patch_size=patch_size, stem=CONV)


def test_a_width_that_the_norm_cannot_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"stem\.width must be a multiple of 8, not 12"):
        StemConfig(width=12)


@pytest.mark.parametrize("num_channels", [1, 6])
def test_a_kernel_for_other_channels_treats_copies_of_a_channel_alike(num_channels: int) -> None:
    kernel, image = torch.randn(5, 3, 3, 3), torch.randn(2, 1, 8, 8)
    adapted = adapt_kernel(kernel, num_channels)
    torch.testing.assert_close(
        torch.conv2d(image.expand(-1, num_channels, -1, -1), adapted),
        torch.conv2d(image.expand(-1, 3, -1, -1), kernel),
    )


def test_a_model_starts_from_one_with_other_channels() -> None:
    config = ViTConfig(
        image_size=8, embed_dim=16, depth=1, num_heads=2, head_dim=8, head="mean", stem=CONV
    )
    source, model = ViT(config), ViT(replace(config, num_channels=1))
    done = initialize(model, source)
    assert done.adapted == ("embed.patches.0.weight",)
    assert not done.drawn
    gray = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(
        model.eval()(gray).logits, source.eval()(gray.expand(-1, 3, -1, -1)).logits
    )


def test_weights_of_the_other_kind_of_stem_are_not_taken() -> None:
    """Both have a bias of width 16 named embed.patches.1.bias."""
    config = AiTConfig(image_size=8, embed_dim=16, depth=1, num_heads=2, head_dim=8, head="mean")
    conv = replace(config, stem=StemConfig("conv", width=16))
    done = initialize(AiT(conv), AiT(config))
    assert {name for name in done.drawn if "patches" in name} == {
        name for name in AiT(conv).state_dict() if "patches" in name
    }
