"""`WorkspaceEncoderLayer`: its equation, masks, and its place in `nn.TransformerEncoder`."""

import copy
import doctest
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, relu, scaled_dot_product_attention

from associative_transformer import encoder_layer
from associative_transformer.encoder_layer import WorkspaceEncoderLayer
from associative_transformer.workspace_config import ImageMemoryConfig, WorkspaceConfig

WIDTH, HEADS, BATCH, TOKENS = 8, 2, 3, 6
MEMORY = WorkspaceConfig(
    scope="image",
    num_priors=3,
    prior_dim=4,
    num_heads=2,
    image=ImageMemoryConfig(read_head_dim=4),
)
PADDING = torch.arange(TOKENS) >= torch.tensor([[6], [4], [2]])

with_and_without_attention = pytest.mark.parametrize("nhead", [HEADS, None])
every_order = pytest.mark.parametrize("batch_first", [True, False])
every_place_of_norms = pytest.mark.parametrize("norm_first", [True, False])


def build(nhead: int | None = HEADS, **options: Any) -> WorkspaceEncoderLayer:  # noqa: ANN401
    """Return a layer in float64 whose norms are not the identity."""
    options = {"dropout": 0.0, "batch_first": True, "workspace": MEMORY} | options
    layer = WorkspaceEncoderLayer(WIDTH, nhead, 16, **options).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer


def sequences() -> Tensor:
    return torch.randn(BATCH, TOKENS, WIDTH, dtype=torch.float64)


def encoder(layer: nn.Module) -> nn.TransformerEncoder:
    return nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)


def attend(layer: WorkspaceEncoderLayer, x: Tensor, padding: Tensor | None) -> Tensor:
    """Return the attention of the layer, computed from its weights."""
    attention = layer.self_attn
    q, k, v = (
        rows.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for rows in (x @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, dim=-1)
    )
    mask = None if padding is None else ~padding[:, None, None]
    mixed = scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)
    return mixed @ attention.out_proj.weight.T + attention.out_proj.bias


def norm(x: Tensor, parameters: nn.LayerNorm) -> Tensor:
    return layer_norm(x, [WIDTH], parameters.weight, parameters.bias, 1e-5)


# --- the equation ---


@with_and_without_attention
@every_place_of_norms
@pytest.mark.parametrize("activation", [relu, gelu])
@pytest.mark.parametrize("padding", [None, PADDING], ids=["no mask", "mask"])
def test_the_output_is_that_of_the_equation(
    nhead: int | None,
    norm_first: bool,
    activation: Callable[[Tensor], Tensor],
    padding: Tensor | None,
) -> None:
    layer, x = build(nhead, norm_first=norm_first, activation=activation), sequences()

    def share(x: Tensor) -> Tensor:
        u = activation(x @ layer.linear1.weight.T + layer.linear1.bias)
        u = norm(u @ layer.linear2.weight.T + layer.linear2.bias, layer.norm3)
        return u + layer.workspace(u, padding).read

    expected = x
    if norm_first:
        if nhead:
            expected = expected + attend(layer, norm(expected, layer.norm1), padding)
        expected = expected + share(norm(expected, layer.norm2))
    else:
        if nhead:
            expected = norm(expected + attend(layer, expected, padding), layer.norm1)
        expected = norm(expected + share(expected), layer.norm2)
    for training in (True, False):
        output = layer.train(training)(x, src_key_padding_mask=padding)
        torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)


@with_and_without_attention
@every_place_of_norms
def test_the_order_of_the_dimensions_is_that_of_batch_first(
    nhead: int | None, norm_first: bool
) -> None:
    first, x = build(nhead, norm_first=norm_first), sequences()
    second = build(nhead, norm_first=norm_first, batch_first=False)
    second.load_state_dict(first.state_dict())
    for padding in (None, PADDING):
        output = second(x.transpose(0, 1), src_key_padding_mask=padding)
        torch.testing.assert_close(output.transpose(0, 1), first(x, None, padding))


@with_and_without_attention
def test_every_weight_learns(nhead: int | None) -> None:
    layer = build(nhead)
    layer(sequences(), src_key_padding_mask=PADDING).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    assert (nhead is None) == (not any("attn" in name for name, _ in layer.named_parameters()))


@with_and_without_attention
def test_tokens_of_a_sequence_meet_and_sequences_do_not(nhead: int | None) -> None:
    memory = WorkspaceConfig(
        scope="image", num_priors=3, bottleneck=None, image=ImageMemoryConfig(4)
    )
    layer, x = build(nhead, workspace=memory), sequences().requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x)[0, 0].square().sum(), x)
    assert gradient[0].any(dim=-1).all() and not gradient[1:].any()


def test_dropout_acts_on_both_branches_and_only_in_training() -> None:
    layer, x = build(dropout=0.5, norm_first=True), sequences()
    assert not torch.equal(layer(x), layer(x))
    plain = build(norm_first=True)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer.eval()(x), plain(x))
    # with nothing to drop inside the feed-forward, a number of u + r is dropped or doubled
    layer = build(None, dropout=0.5, norm_first=True)
    with torch.no_grad():
        layer.linear1.weight.zero_()
        layer.linear1.bias.zero_()
    branch = layer(x) - x
    full = layer.eval()(x) - x
    kept = branch.abs() > 1e-12
    assert 0.3 < kept.double().mean() < 0.7
    torch.testing.assert_close(branch[kept], 2 * full[kept])


# --- masks ---


@pytest.mark.parametrize(
    "arguments",
    [
        {"is_causal": True},
        {"src_mask": nn.Transformer.generate_square_subsequent_mask(TOKENS)},
        {"src_mask": torch.zeros(TOKENS, TOKENS, dtype=torch.bool)},
        {
            "src_mask": nn.Transformer.generate_square_subsequent_mask(TOKENS),
            "is_causal": True,
        },
    ],
    ids=["is_causal", "causal mask", "empty mask", "both"],
)
@with_and_without_attention
def test_a_causal_mask_is_refused(arguments: dict[str, Any], nhead: int | None) -> None:
    layer = build(nhead).float()
    x = sequences().float()
    with pytest.raises(ValueError, match="reads what later tokens have written"):
        layer(x, **arguments)
    stack = encoder(layer)
    arguments = {name.removeprefix("src_"): value for name, value in arguments.items()}
    with pytest.raises(ValueError, match=r"use nn\.TransformerEncoderLayer"):
        stack(x, **arguments)


@with_and_without_attention
@every_order
@every_place_of_norms
@pytest.mark.parametrize("training", [True, False])
def test_in_an_encoder_padding_changes_nothing_for_the_other_tokens(
    nhead: int | None, batch_first: bool, norm_first: bool, training: bool
) -> None:
    stack = encoder(build(nhead, batch_first=batch_first, norm_first=norm_first)).train(training)
    x = sequences()
    other = torch.where(PADDING[..., None], 7 * torch.randn_like(x), x)
    with torch.set_grad_enabled(training):  # without gradients, torch takes its fast path
        outputs = [
            stack(given if batch_first else given.transpose(0, 1), src_key_padding_mask=PADDING)
            for given in (x, other)
        ]
    ours, theirs = (out if batch_first else out.transpose(0, 1) for out in outputs)
    torch.testing.assert_close(ours[~PADDING], theirs[~PADDING], rtol=1e-10, atol=1e-10)
    for i, count in enumerate((6, 4, 2)):
        alone = x[i : i + 1, :count]
        alone = stack(alone if batch_first else alone.transpose(0, 1))
        alone = alone if batch_first else alone.transpose(0, 1)
        torch.testing.assert_close(alone[0], ours[i, :count], rtol=1e-9, atol=1e-9)


def test_a_mask_of_numbers_marks_padding_with_minus_infinity() -> None:
    layer, x = build(), sequences()
    numbers = torch.zeros(BATCH, TOKENS).double().masked_fill(PADDING, -torch.inf)
    expected = layer(x, src_key_padding_mask=PADDING)
    assert torch.equal(layer(x, src_key_padding_mask=numbers), expected)
    assert not torch.allclose(layer(x), expected)


# --- in place of nn.TransformerEncoderLayer ---


def test_the_arguments_are_those_of_the_layer_it_replaces() -> None:
    ours, theirs = (
        list(inspect.signature(kind).parameters.values())
        for kind in (WorkspaceEncoderLayer, nn.TransformerEncoderLayer)
    )
    assert [p.name for p in ours] == [*(p.name for p in theirs), "workspace"]
    assert [p.default for p in ours[:-1]] == [p.default for p in theirs]
    assert ours[-1].default is None
    calls = (
        list(inspect.signature(kind.forward).parameters.values())
        for kind in (WorkspaceEncoderLayer, nn.TransformerEncoderLayer)
    )
    assert len({tuple((p.name, p.default) for p in call) for call in calls}) == 1


@pytest.mark.parametrize("bias", [True, False])
def test_the_weights_of_the_layer_it_replaces_can_be_loaded(bias: bool) -> None:
    theirs = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, bias=bias)
    ours = WorkspaceEncoderLayer(WIDTH, HEADS, 16, bias=bias, workspace=MEMORY)
    result = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert result.unexpected_keys == []
    assert {name.split(".")[0] for name in result.missing_keys} == {"norm3", "workspace"}
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)


@every_place_of_norms
def test_without_norm_and_read_it_is_the_layer_it_replaces(norm_first: bool) -> None:
    theirs = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 16, 0.0, "gelu", batch_first=True, norm_first=norm_first
    ).double()
    ours = build(norm_first=norm_first, activation="gelu")
    ours.load_state_dict(theirs.state_dict(), strict=False)
    ours.norm3 = nn.Identity()
    nn.init.zeros_(ours.workspace.read_norm.weight)
    nn.init.zeros_(ours.workspace.read_norm.bias)
    x = sequences()
    for padding in (None, PADDING):
        given = {"src_key_padding_mask": padding}
        torch.testing.assert_close(ours(x, **given), theirs(x, **given), rtol=1e-9, atol=1e-9)


@with_and_without_attention
def test_an_encoder_of_several_layers_learns(nhead: int | None) -> None:
    layer = WorkspaceEncoderLayer(WIDTH, nhead, 16, batch_first=True, workspace=MEMORY)
    stack, x = encoder(layer), torch.randn(BATCH, TOKENS, WIDTH)
    names = dict(stack.named_parameters())
    assert {name for name in names if name.endswith("priors")} == {
        "layers.0.workspace.priors",
        "layers.1.workspace.priors",
    }
    target, losses = torch.randn(BATCH, WIDTH), []
    optimizer = torch.optim.AdamW(stack.parameters(), lr=3e-2)
    for _ in range(30):
        optimizer.zero_grad()
        loss = (stack(x).mean(dim=1) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_a_copy_gives_the_same_output() -> None:
    layer, x = build(), sequences()
    other = copy.deepcopy(layer)
    assert torch.equal(other(x), layer(x))


def test_device_and_type_are_those_asked_for() -> None:
    layer = WorkspaceEncoderLayer(WIDTH, HEADS, 16, dtype=torch.bfloat16, workspace=MEMORY)
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
    output = layer(torch.randn(TOKENS, BATCH, WIDTH, dtype=torch.bfloat16))
    assert output.dtype == torch.bfloat16 and output.isfinite().all()
    layer = WorkspaceEncoderLayer(WIDTH, HEADS, 16, device="meta", workspace=MEMORY)
    assert {p.device.type for p in layer.parameters()} == {"meta"}


# --- mistakes ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workspace": WorkspaceConfig()}, 'must have scope "image", not "batch"'),
        (
            {"workspace": WorkspaceConfig(scope="image", balance_weight=0.1)},
            "balance_weight must be 0, not 0.1",
        ),
        ({"activation": "swish"}, "activation must be relu or gelu or a function, not swish"),
        ({"workspace": None}, "read_head_dim 32 does not divide the token width 8"),
    ],
    ids=["scope", "balance loss", "activation", "width"],
)
def test_what_the_layer_cannot_do_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorkspaceEncoderLayer(WIDTH, HEADS, **{"workspace": MEMORY} | options)


@every_order
def test_tokens_of_a_wrong_shape_are_refused_with_both_shapes(batch_first: bool) -> None:
    layer = build(batch_first=batch_first)
    wanted = r"\(B, N, 8\)" if batch_first else r"\(N, B, 8\)"
    with pytest.raises(ValueError, match=rf"src must have shape {wanted}, not \(3, 6, 9\)"):
        layer(torch.randn(3, 6, 9).double())


def test_the_example_of_the_docstring_runs() -> None:
    finder = doctest.DocTestFinder(recurse=False)
    names = {**vars(encoder_layer), "torch": torch, "nn": nn}
    (example,) = finder.find(WorkspaceEncoderLayer, "example", globs=names)
    assert doctest.DocTestRunner().run(example).failed == 0
