"""Token order, attention and heads against slow loops; checks of sizes."""

import math
from dataclasses import fields

import pytest
import torch
from torch import Tensor, nn

from associative_transformer.models import MODELS
from associative_transformer.models.ait import AiTConfig
from associative_transformer.models.dense import DenseConfig
from associative_transformer.models.heads import FlattenHead
from associative_transformer.models.layers import (
    CrossAttention,
    FeedForward,
    SelfAttention,
    TokenEmbed,
)
from associative_transformer.models.relation_network import ConvMLPConfig, RelationNetworkConfig
from associative_transformer.models.transformer import TransformerConfig
from associative_transformer.models.vit import ViTConfig
from twins import naive


def double(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def shaken(module: nn.Module) -> nn.Module:
    """Return the module in float64 with random weights, so that a forgotten one would show."""
    with torch.no_grad():
        for parameter in module.double().parameters():
            parameter.normal_()
    return module


def assert_same(ours: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    cotangent = torch.randn_like(theirs)
    mine = torch.autograd.grad(ours, inputs, cotangent)
    expected = torch.autograd.grad(theirs, inputs, cotangent)
    for a, b in zip(mine, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def normalized_linear(layers: nn.Module, rows: Tensor) -> Tensor:
    """Return LN(Linear(LN(x))) with eps 1e-5."""
    assert isinstance(layers, nn.Sequential)
    first, linear, last = layers
    x = naive.layer_norm(rows, first.weight, first.bias, 1e-5)
    return naive.layer_norm(
        naive.linear(x, linear.weight, linear.bias), last.weight, last.bias, 1e-5
    )


def cut(image: Tensor, patch: int) -> Tensor:
    """Return patches in raster order; inside a patch the channel varies fastest."""
    channels, height, width = image.shape
    rows = []
    for top in range(0, height, patch):
        for left in range(0, width, patch):
            values = [
                image[c, top + i, left + j]
                for i in range(patch)
                for j in range(patch)
                for c in range(channels)
            ]
            rows.append(torch.stack(values))
    return torch.stack(rows)


@pytest.mark.parametrize(
    ("size", "patch", "channels"), [(4, 2, 3), (6, 3, 1), (9, 3, 2), (5, 5, 3)]
)
def test_patches_are_in_raster_order_with_the_channel_fastest(
    size: int, patch: int, channels: int
) -> None:
    embed = TokenEmbed(size, patch, channels, 8)
    embed.patches = nn.Identity()
    images = torch.arange(2.0 * channels * size * size).reshape(2, channels, size, size)
    patches = embed(images)
    assert patches.shape == (2, embed.num_tokens, patch * patch * channels)
    assert torch.equal(patches, torch.stack([cut(image, patch) for image in images]))


def test_a_single_pixel_is_found_in_its_patch_and_column() -> None:
    embed = TokenEmbed(6, 2, 3, 8)
    embed.patches = nn.Identity()
    image = torch.zeros(1, 3, 6, 6)
    image[0, 2, 3, 4] = 1.0  # channel 2; row 1 of patch row 1; column 0 of patch column 2
    assert embed(image).nonzero().tolist() == [[0, 1 * 3 + 2, (1 * 2 + 0) * 3 + 2]]


def test_embedding_equals_the_loops() -> None:
    embed = shaken(TokenEmbed(4, 2, 3, 5, question_dim=3, pos="learned", use_class_token=True))
    assert isinstance(embed, TokenEmbed)
    assert embed.class_token is not None and embed.positions is not None
    images, questions = double(2, 3, 4, 4), double(2, 3)
    expected = []
    for image, question in zip(images, questions, strict=True):
        assert embed.question is not None
        question_token = normalized_linear(embed.question, question[None])
        patches = normalized_linear(embed.patches, cut(image, 2))
        expected.append(torch.cat([embed.class_token, question_token, patches]) + embed.positions)
    inputs = [images, questions, *embed.parameters()]
    assert_same(embed(images, questions), torch.stack(expected), inputs)


def test_class_token_comes_first_then_the_question_then_the_patches() -> None:
    embed = TokenEmbed(4, 2, 1, 4, question_dim=4, use_class_token=True)
    embed.patches = embed.question = nn.Identity()
    images, questions = torch.randn(3, 1, 4, 4), torch.randn(3, 4)
    x = embed(images, questions)
    assert embed.num_tokens == x.shape[1] == 6
    assert embed.class_token is not None
    assert torch.equal(x[:, 0], embed.class_token.expand(3, -1))
    assert torch.equal(x[:, 1], questions)
    assert torch.equal(x[:, 2:], torch.stack([cut(image, 2) for image in images]))


def test_without_a_class_token_the_question_comes_first() -> None:
    embed = TokenEmbed(4, 2, 1, 4, question_dim=4)
    embed.question = nn.Identity()
    questions = torch.randn(3, 4)
    x = embed(torch.randn(3, 1, 4, 4), questions)
    assert embed.num_tokens == x.shape[1] == 5
    assert torch.equal(x[:, 0], questions)


def test_learned_positions_are_added_to_every_token() -> None:
    embed = TokenEmbed(4, 2, 3, 8, pos="learned")
    assert embed.positions is not None and embed.positions.shape == (4, 8)
    images = torch.randn(2, 3, 4, 4)
    with_positions, positions = embed(images), embed.positions
    embed.positions = None
    torch.testing.assert_close(with_positions, embed(images) + positions)


def test_without_positions_equal_patches_give_equal_tokens() -> None:
    patch = torch.randn(1, 3, 2, 2)
    x = TokenEmbed(4, 2, 3, 8)(patch.repeat(1, 1, 2, 2))
    torch.testing.assert_close(x, x[:, :1].expand_as(x))


def test_no_unused_parameters_are_registered() -> None:
    names = {name.split(".")[0] for name, _ in TokenEmbed(4, 2, 3, 8).named_parameters()}
    assert names == {"patches"}


def test_a_missing_question_is_an_error() -> None:
    with pytest.raises(ValueError, match="question"):
        TokenEmbed(4, 2, 3, 8, question_dim=5)(torch.randn(2, 3, 4, 4))


@pytest.mark.parametrize(
    ("batch", "count", "width", "heads", "head"), [(1, 1, 3, 1, 2), (2, 5, 6, 3, 4)]
)
def test_self_attention_equals_the_loops(
    batch: int, count: int, width: int, heads: int, head: int
) -> None:
    attention, x = shaken(SelfAttention(width, heads, head)), double(batch, count, width)
    assert isinstance(attention, SelfAttention)
    expected = []
    for image in x:
        q, k, v = naive.linear(image, attention.to_qkv.weight).chunk(3, dim=-1)
        attended = naive.attention(*(naive.split_heads(part, heads) for part in (q, k, v)))
        merged = naive.merge_heads(attended)
        expected.append(naive.linear(merged, attention.to_out.weight, attention.to_out.bias))
    assert_same(attention(x), torch.stack(expected), [x, *attention.parameters()])


def test_cross_attention_equals_the_loops() -> None:
    attention = shaken(CrossAttention(6, 4, num_heads=2, head_dim=3))
    assert isinstance(attention, CrossAttention)
    x, context = double(2, 5, 6), double(2, 7, 4)
    expected = []
    for image, memory in zip(x, context, strict=True):
        q = naive.split_heads(naive.linear(image, attention.to_q.weight), 2)
        k, v = naive.linear(memory, attention.to_kv.weight).chunk(2, dim=-1)
        attended = naive.attention(q, naive.split_heads(k, 2), naive.split_heads(v, 2))
        merged = naive.merge_heads(attended)
        expected.append(naive.linear(merged, attention.to_out.weight, attention.to_out.bias))
    assert_same(
        attention(x, context), torch.stack(expected), [x, context, *attention.parameters()]
    )


def test_only_the_output_projection_of_attention_has_a_bias() -> None:
    for attention in (SelfAttention(6, 2, 3), CrossAttention(6, 4, 2, 3)):
        biases = {name for name, _ in attention.named_parameters() if name.endswith("bias")}
        assert biases == {"to_out.bias"}


def test_feed_forward_is_two_linear_maps_with_an_exact_gelu() -> None:
    layers, x = shaken(FeedForward(3, 7)), double(4, 3)
    assert isinstance(layers, FeedForward)
    hidden = naive.linear(x, layers[0].weight, layers[0].bias)
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    expected = naive.linear(hidden, layers[2].weight, layers[2].bias)
    assert_same(layers(x), expected, [x, *layers.parameters()])


def test_the_flattened_head_normalizes_all_tokens_together() -> None:
    head, x = shaken(FlattenHead(3, 4, 5)), double(2, 3, 4)
    assert isinstance(head, FlattenHead)
    flat = naive.layer_norm(x.reshape(2, 12), head[1].weight, head[1].bias, 1e-5)
    expected = naive.linear(flat, head[2].weight, head[2].bias)
    assert_same(head(x), expected, [x, *head.parameters()])


OUT_OF_RANGE = [
    ("image_size", 0),
    ("patch_size", 0),
    ("num_channels", -1),
    ("num_classes", 0),
    ("embed_dim", 0),
    ("depth", 0),
    ("num_heads", 0),
    ("head_dim", -64),
    ("question_dim", -1),
    ("mlp_ratio", 0.0),
    ("mlp_ratio", math.nan),
    ("conv_dim", 0),
    ("num_convs", 0),
    ("num_relation_layers", 0),
    ("hidden_dim", -1),
    ("dropout", -0.1),
    ("dropout", 1.0),
    ("dropout", math.nan),
]


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        (config, name, value)
        for config in (AiTConfig, ViTConfig, DenseConfig, RelationNetworkConfig, ConvMLPConfig)
        for name, value in OUT_OF_RANGE
        if name in {field.name for field in fields(config)}
        and not (name == "num_classes" and issubclass(config, TransformerConfig))  # 0: features
    ],
)
def test_a_size_out_of_range_is_an_error_with_its_name_and_value(
    config: type, name: str, value: float
) -> None:
    with pytest.raises(ValueError) as caught:
        config(**{name: value})
    assert name in str(caught.value) and str(value) in str(caught.value)


@pytest.mark.parametrize("config", [config for config in MODELS if hasattr(config, "mlp_ratio")])
@pytest.mark.parametrize("ratio", [0.0, 1e-3, 1e-300, -1.0, math.inf, math.nan])
def test_a_feed_forward_without_hidden_units_is_an_error(config: type, ratio: float) -> None:
    with pytest.raises(ValueError, match="mlp_ratio") as caught:
        config(embed_dim=32, mlp_ratio=ratio)
    assert str(ratio) in str(caught.value)


@pytest.mark.parametrize("config", MODELS)
@pytest.mark.parametrize("value", [0, -1])
def test_every_count_and_width_of_every_model_has_a_range(config: type, value: int) -> None:
    sizes = [item.name for item in fields(config) if item.type is int or item.type == "int"]
    optional = {"question_dim", "vocabulary", "decoder_depth"}  # 0: none
    optional |= {"num_classes"} if issubclass(config, TransformerConfig) else set()
    for name in sizes:
        if value == 0 and name in optional:
            continue
        with pytest.raises(ValueError, match=name):
            config(**{name: value})


@pytest.mark.parametrize("config", [AiTConfig, ViTConfig, DenseConfig])
def test_a_patch_that_does_not_divide_the_image_is_an_error(config: type) -> None:
    with pytest.raises(ValueError, match=r"patch_size 5 .* image_size 32"):
        config(image_size=32, patch_size=5)
