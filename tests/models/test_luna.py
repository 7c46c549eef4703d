"""Luna against slow loops, the two steps of its attention, and its sizes."""

import copy
import math
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy, linear
from torch.utils.flop_counter import FlopCounterMode

from associative_transformer.models import luna
from associative_transformer.models.luna import (
    LUNA_BASE,
    LUNA_LRA,
    LUNA_SMALL,
    Block,
    Luna,
    LunaConfig,
    gray_levels,
    sinusoidal_positions,
)
from twins import slow_luna
from twins.naive import Affine

PATCHES = LunaConfig(  # fewer tokens than packed ones
    image_size=4,
    patch_size=2,
    num_channels=2,
    num_classes=5,
    embed_dim=8,
    depth=2,
    num_heads=2,
    mlp_ratio=1.5,
    num_packed=5,
)
PIXELS = replace(PATCHES, image_size=3, patch_size=1, num_channels=3, vocabulary=16, num_packed=4)
INPUTS = {"patches": PATCHES, "pixels": PIXELS}
CONFIGS = {
    **INPUTS,
    "patches-tied": replace(PATCHES, is_tied=True),
    "pixels-gray": replace(PIXELS, num_channels=1),
    "pixels-set": replace(PIXELS, pos="none"),
    "one-layer": replace(PATCHES, depth=1),
    "dropout": replace(PATCHES, dropout=0.2, attention_dropout=0.3),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def shaken(model: Luna) -> Luna:
    """Return the module in float64 with random weights, so that a forgotten one would show."""
    with torch.no_grad():
        for parameter in model.double().parameters():
            parameter.normal_()
    return model


def images_for(config: LunaConfig, batch: int) -> Tensor:
    shape = (batch, config.num_channels, config.image_size, config.image_size)
    if config.takes_pixels:
        return 1.2 * torch.rand(shape, dtype=torch.float64) - 0.1
    return torch.randn(shape, dtype=torch.float64)


def affine(module: nn.Module) -> Affine:
    """Return a layer's weights; keys without a bias get an arbitrary one, which has no effect."""
    bias = torch.randn_like(module.weight[:, 0]) if module.bias is None else module.bias
    return Affine(module.weight, bias)


def layer_weights(block: nn.Module) -> slow_luna.LayerWeights:
    projections = []
    for attention in (block.pack, block.unpack):
        keys = attention.to_v if attention.to_k is None else attention.to_k
        projections += [affine(attention.to_q), affine(keys), affine(attention.to_v)]
    unread = nn.LayerNorm(block.to_out.in_features).double()  # nothing reads it
    norm_packed = unread if block.norm_packed is None else block.norm_packed
    widen, _, narrow = block.feed_forward
    rest = (block.to_out, norm_packed, block.norm1, widen, narrow, block.norm2)
    return slow_luna.LayerWeights(*projections, *map(affine, rest))


def slow(model: Luna, images: Tensor) -> Tensor:
    """Compute the logits with the loops."""
    c, embed = model.config, model.embed
    embed_tokens = (
        slow_luna.gray_embedding(embed.tokens.weight)
        if c.takes_pixels
        else slow_luna.patch_embedding(c.patch_size, affine(embed.tokens.patches))
    )
    layers = [layer_weights(block) for block in model.blocks]
    logits = [
        slow_luna.luna(
            image,
            embed_tokens,
            embed.positions,
            affine(embed.norm),
            embed.packed,
            layers,
            c.num_heads,
            affine(model.head[1]),
        )
        for image in images
    ]
    return torch.stack(logits)


def count(config: LunaConfig) -> tuple[int, int]:
    """Return the live parameters and those that the reference counts."""
    with torch.device("meta"):
        model = Luna(config)
    return sum(parameter.numel() for parameter in model.parameters()), model.reference_parameters()


def loss_of(model: nn.Module, images: Tensor) -> Tensor:
    labels = torch.arange(len(images)) % model.config.num_classes
    return cross_entropy(model(images).logits, labels)


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("is_tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("pos", ["none", "sinusoidal"])
@pytest.mark.parametrize("depth", [1, 3])
def test_logits_and_gradients_equal_the_loops(
    inputs: str, is_tied: bool, pos: str, depth: int
) -> None:
    config = replace(INPUTS[inputs], is_tied=is_tied, pos=pos, depth=depth)
    model = shaken(Luna(config))
    images = images_for(config, 2).requires_grad_()
    expected, logits = slow(model, images), model(images).logits
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    learned = [*model.parameters()] if config.takes_pixels else [images, *model.parameters()]
    cotangent = torch.randn_like(expected)
    mine = torch.autograd.grad(logits, learned, cotangent)
    theirs = torch.autograd.grad(expected, learned, cotangent)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@every_config
def test_every_parameter_affects_the_loss(config: LunaConfig) -> None:
    model = shaken(Luna(config))
    loss_of(model, images_for(config, 4)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-6, name  # a bias that the softmax cancels has 1e-17


@pytest.mark.parametrize("num_packed", [4, 16])
def test_the_cost_is_linear_in_the_tokens(num_packed: int) -> None:
    def flops(side: int) -> int:
        config = replace(PATCHES, image_size=2 * side, num_packed=num_packed)
        with torch.device("meta"):
            model, images = Luna(config), torch.randn(1, 2, 2 * side, 2 * side)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model(images)
        return counter.get_total_flops()

    dim, hidden = PATCHES.embed_dim, 12
    # X: queries and output of unpack, keys and values of pack; P: the other three; 4 products
    for_token = 4 * dim**2 + 2 * dim * hidden + 4 * num_packed * dim
    for_packed = 3 * dim**2
    for tokens in (4, 9, 400):
        layer = for_token * tokens + for_packed * num_packed
        embed, head = tokens * 8 * dim, dim * PATCHES.num_classes
        assert flops(math.isqrt(tokens)) == 2 * (PATCHES.depth * layer + embed + head)


def test_without_positions_the_tokens_are_a_set() -> None:
    for config in INPUTS.values():
        images = images_for(config, 2)
        p = config.patch_size
        side = config.image_size // p
        rows = images.unfold(2, p, p).unfold(3, p, p).flatten(2, 3)  # (B, C, T, p, p)
        shuffled = rows[:, :, torch.randperm(side**2)].unflatten(2, (side, side))
        others = shuffled.transpose(3, 4).reshape(images.shape)
        assert not torch.equal(others, images)
        for pos, same in (("none", True), ("sinusoidal", False)):
            model = shaken(Luna(replace(config, pos=pos)))
            assert torch.allclose(model(others).logits, model(images).logits) == same


def test_without_positions_the_packed_sequence_is_a_set_too() -> None:
    for pos, same in (("none", True), ("sinusoidal", False)):
        model, images = shaken(Luna(replace(PATCHES, pos=pos))), images_for(PATCHES, 2)
        before = model(images).logits
        with torch.no_grad():
            model.embed.packed.copy_(model.embed.packed.roll(1, dims=0))
        assert torch.allclose(model(images).logits, before) == same


def test_positions_are_sines_then_cosines() -> None:
    table = sinusoidal_positions(300, 12)
    expected = torch.tensor([slow_luna.sinusoid(position, 12) for position in range(300)])
    assert table.dtype == torch.float32
    torch.testing.assert_close(table, expected)
    assert table[0].tolist() == [0.0] * 6 + [1.0] * 6
    assert table[1, 0] == pytest.approx(math.sin(1)) and table[1, 5] == pytest.approx(1e-4)


def test_tokens_and_packed_tokens_count_their_positions_from_zero() -> None:
    model = shaken(Luna(PATCHES))
    with torch.no_grad():
        model.embed.packed.zero_()
        for parameter in model.embed.tokens.parameters():
            parameter.zero_()
    x, p = model.embed(images_for(PATCHES, 2))
    table = sinusoidal_positions(5, 8).double()
    torch.testing.assert_close(p, table.expand(2, -1, -1))
    torch.testing.assert_close(x, model.embed.norm(table[:4]).expand(2, -1, -1))


def test_pixels_have_positions_from_zero_and_in_the_reference_from_three() -> None:
    pad, class_token = 1, 260  # of the dictionary: four special symbols, 256 levels, then <CLS>
    text = [class_token, *range(4, 13)]
    expected = slow_luna.positions_in_the_reference(text, pad)
    assert expected == list(range(2, 12))  # the class token has position 2
    model = shaken(Luna(PIXELS))
    with torch.no_grad():
        model.embed.tokens.weight.zero_()
    tokens = model.embed(images_for(PIXELS, 1)).tokens[0]
    assert len(tokens) == len(text) - 1  # no class token
    for shift in (0, 3):
        shifted = [slow_luna.sinusoid(position + shift, 8) for position in range(9)]
        theirs = [slow_luna.sinusoid(position, 8) for position in expected[1:]]
        assert (shifted == theirs) == (shift == 3)
        row = model.embed.norm(torch.tensor(shifted, dtype=torch.float64))
        assert torch.allclose(tokens, row, atol=1e-5) == (shift == 0)


def test_the_head_reads_the_mean_of_all_tokens() -> None:
    model, read, seen = shaken(Luna(PIXELS)), [], []
    model.blocks[-1].register_forward_hook(lambda _, args, output: seen.append(output.tokens))
    model.head.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    model(images_for(PIXELS, 2))
    assert seen[0].shape == (2, 9, 8)
    torch.testing.assert_close(read[0], seen[0].mean(dim=1))


def test_the_head_is_initialized_by_pytorch_and_in_the_reference_by_xavier() -> None:
    head = Luna(LUNA_LRA).head[1]
    largest, xavier = head.weight.abs().max().item(), math.sqrt(6 / (64 + 10))
    assert largest == pytest.approx(1 / math.sqrt(64), rel=0.02)
    assert xavier == pytest.approx(0.285, abs=0.001) and largest < xavier / 2
    assert head.bias.any()  # the reference has none


def test_positions_are_not_saved() -> None:
    model = Luna(PATCHES)
    assert "positions" in dict(model.embed.named_buffers())
    assert "embed.positions" not in model.state_dict()


def test_initial_embeddings_of_patches_and_pixels_are_as_large_as_positions() -> None:
    images = torch.randn(64, 3, 32, 32)
    pixels = torch.rand(4, 1, 32, 32)
    for config, inputs in ((LUNA_SMALL, images), (LUNA_LRA, pixels)):
        embed = Luna(config).embed
        sizes = [x.std().item() * embed.scale for x in (embed.tokens(inputs), embed.packed)]
        assert sizes == pytest.approx([1.0, 1.0], abs=0.1)


def test_projections_are_initialized_with_xavier_bounds_of_two_gains() -> None:
    block = Luna(LUNA_LRA).blocks[0]
    bound = math.sqrt(6 / (64 + 64))
    for attention in (block.pack, block.unpack):
        for to_x in (attention.to_q, attention.to_k, attention.to_v):
            assert to_x.weight.abs().max().item() == pytest.approx(bound / math.sqrt(2), rel=0.01)
    assert block.to_out.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert not block.to_out.bias.any()


def test_unpack_reads_the_output_of_pack_directly() -> None:
    model, given, read = shaken(Luna(PATCHES)), [], []
    for block in model.blocks:
        block.pack.register_forward_hook(lambda _, args, output: given.append(output))
        block.unpack.register_forward_pre_hook(lambda _, args: read.append(args[1]))
    model(images_for(PATCHES, 2))
    assert len(given) == len(read) == PATCHES.depth
    assert all(a is b for a, b in zip(given, read, strict=True))


def test_pack_averages_values_without_an_output_projection() -> None:
    pack = Luna(PATCHES).blocks[0].pack
    with torch.no_grad():
        pack.to_q.weight.zero_()  # all tokens get the same weight
        pack.to_q.bias.zero_()
    x, p = torch.randn(2, 7, 8), torch.randn(2, 5, 8)
    values = linear(x, pack.to_v.weight, pack.to_v.bias)
    torch.testing.assert_close(pack(p, x), values.mean(dim=1, keepdim=True).expand(2, 5, 8))
    assert {name for name, _ in pack.named_children()} == {"to_q", "to_k", "to_v"}


@pytest.mark.parametrize(("is_tied", "matrices"), [(False, 7), (True, 5)])
def test_a_layer_has_seven_attention_matrices_or_five_if_they_are_tied(
    is_tied: bool, matrices: int
) -> None:
    block = Block(replace(PATCHES, is_tied=is_tied), is_last=False)
    square = [p for p in block.parameters() if p.shape == (8, 8)]
    assert len(square) == matrices


def test_the_keys_of_a_tied_attention_are_its_values(monkeypatch: pytest.MonkeyPatch) -> None:
    captured: list[bool] = []

    def spy(q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:
        captured.append(k is v)
        return q

    monkeypatch.setattr(luna, "scaled_dot_product_attention", spy)
    for is_tied in (False, True):
        Luna(replace(PATCHES, is_tied=is_tied))(images_for(PATCHES, 2).float())
    assert captured == [False] * 4 + [True] * 4


def reach(model: Luna, x: Tensor, p: Tensor) -> Tensor:
    """Return which tokens of the last layer depend on which of the first: (T, T)."""

    def run(tokens: Tensor) -> Tensor:
        packed = p
        for block in model.blocks:
            tokens, packed = block(tokens, packed)
        return tokens

    jacobian = torch.autograd.functional.jacobian(run, x)[0, :, :, 0]  # (T, E, T, E)
    return jacobian.abs().amax(dim=(1, 3)) > 0


def test_tokens_meet_only_in_the_packed_values() -> None:
    model = shaken(Luna(replace(PATCHES, depth=3)))
    x, p = (torch.randn(1, n, 8, dtype=torch.float64) for n in (6, 5))
    assert reach(model, x, p).all()
    with torch.no_grad():
        for block in model.blocks:
            block.pack.to_v.weight.zero_()
            block.pack.to_v.bias.zero_()
    assert torch.equal(reach(model, x, p), torch.eye(6, dtype=torch.bool))


def test_every_layer_except_the_last_updates_the_packed_sequence() -> None:
    model, captured = shaken(Luna(replace(PATCHES, depth=3))), []
    for block in model.blocks:
        block.register_forward_hook(
            lambda _, args, output: captured.append((args[1], output.packed))
        )
    model(images_for(PATCHES, 2))
    (first, second), (third, fourth), (fifth, last) = captured
    assert second is third and fourth is fifth and last is None
    assert not torch.equal(first, third) and not torch.equal(third, fifth)


def test_dropout_acts_on_embeddings_on_what_a_layer_adds_and_on_the_head() -> None:
    config = replace(PATCHES, dropout=0.2)
    model, shapes = Luna(config), []
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            assert module.p == 0.2
            module.register_forward_hook(lambda _, args, output: shapes.append(output.shape[1:]))
    model(images_for(config, 2).float())
    x, p, head = (4, 8), (5, 8), (8,)
    assert sorted(shapes) == sorted([x, p, x, x, p, x, x, head])


def test_dropout_acts_on_both_attentions(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []

    def spy(q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:
        shares.append(dropout_p)
        return q

    monkeypatch.setattr(luna, "scaled_dot_product_attention", spy)
    model = Luna(replace(PATCHES, attention_dropout=0.3))
    for training, expected in ((True, 0.3), (False, 0.0)):
        shares.clear()
        model.train(training)(images_for(PATCHES, 2).float())
        assert shares == [expected] * 4


@pytest.mark.parametrize("name", ["dropout", "attention_dropout"])
def test_dropout_acts_only_in_training(name: str) -> None:
    config = replace(PATCHES, **{name: 0.5})
    model, without = Luna(config).double(), Luna(PATCHES).double()
    without.load_state_dict(model.state_dict())
    images = images_for(config, 2)
    assert not torch.equal(model(images).logits, model(images).logits)
    model.eval()
    assert torch.equal(model(images).logits, without(images).logits)


def test_each_gray_level_of_eight_bits_has_its_own_embedding() -> None:
    levels = torch.arange(256).reshape(1, 1, 16, 16)
    for channels in (1, 3):
        images = (levels / 255).expand(1, channels, 16, 16)
        assert torch.equal(gray_levels(images, 256), levels.flatten(1))


def test_autocast_does_not_change_the_gray_levels_of_colors() -> None:
    images = torch.rand(2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        levels = gray_levels(images, 256)
    assert torch.equal(levels, gray_levels(images, 256))


@pytest.mark.parametrize(
    ("red", "green", "blue", "level"),
    [
        (1, 0, 0, 76),  # 76.245
        (0, 1, 0, 150),  # 149.685
        (0, 0, 1, 29),  # 29.07
        (1, 1, 0, 226),  # 225.93
        (0.5, 0.25, 0.125, 79),  # 38.1225 + 37.42125 + 3.63375 = 79.1775
        (1, 1, 1, 255),
        (-1, 0, 0, 0),
        (2, 2, 2, 255),
    ],
)
def test_gray_levels_are_those_computed_by_hand(
    red: float, green: float, blue: float, level: int
) -> None:
    images = torch.zeros(1, 3, 2, 2)
    images[0, :, 1, 0] = torch.tensor([red, green, blue], dtype=torch.float32)
    assert gray_levels(images, 256).tolist() == [[0, 0, level, 0]]


def test_pixels_become_the_rows_of_their_levels_in_raster_order() -> None:
    model = Luna(replace(PIXELS, num_channels=1, vocabulary=9))
    images = torch.arange(9.0).reshape(1, 1, 3, 3) / 8
    assert torch.equal(model.embed.tokens(images)[0], model.embed.tokens.weight)


def test_only_a_model_with_a_vocabulary_takes_pixels() -> None:
    assert LUNA_LRA.takes_pixels and PIXELS.takes_pixels
    assert not LUNA_SMALL.takes_pixels and not LUNA_BASE.takes_pixels


@pytest.mark.parametrize(
    ("config", "reference"),
    [
        (LUNA_SMALL, 17_781_514),
        (replace(LUNA_SMALL, is_tied=True), 15_419_146),
        (LUNA_BASE, 106_393_354),
        (replace(LUNA_BASE, is_tied=True), 92_219_146),
        (LUNA_LRA, 79_626),
    ],
)
def test_the_reference_counts_are_the_known_ones(config: LunaConfig, reference: int) -> None:
    live, counted = count(config)
    assert counted == reference
    last_norm_and_key_biases = 2 if config.is_tied else 2 + 2 * config.depth
    assert live == reference - last_norm_and_key_biases * config.embed_dim
    assert count(replace(config, pos="none")) == (live, counted)


def test_the_live_counts_are_the_known_ones() -> None:
    assert count(LUNA_SMALL)[0] == 17_776_906
    assert count(LUNA_BASE)[0] == 106_373_386
    assert count(LUNA_LRA)[0] == 79_370


def test_the_named_sizes_are_small_base_and_long_range_arena() -> None:
    assert LunaConfig() == LUNA_SMALL == replace(LUNA_BASE, depth=2)
    assert len(fields(LunaConfig)) <= 15
    model = Luna(LUNA_LRA).eval()
    assert model(torch.rand(1, 3, 32, 32)).logits.shape == (1, 10)
    assert model.embed(torch.rand(1, 1, 32, 32)).tokens.shape == (1, 1024, 64)
    assert model.embed.packed.shape == (256, 64)
    assert model.blocks[0].feed_forward[0].out_features == 128


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "num_heads 3 does not divide embed_dim 8"),
        ({"patch_size": 3}, "patch_size 3 does not divide image_size 4"),
        ({"num_packed": 0}, "num_packed must be at least 1, not 0"),
        ({"embed_dim": 7, "num_heads": 1}, "even embed_dim of 4 or more, not 7"),
        ({"embed_dim": 2, "num_heads": 1}, "even embed_dim of 4 or more, not 2"),
        ({"vocabulary": -1}, "vocabulary must be at least 0, not -1"),
        ({"vocabulary": 1, "patch_size": 1}, "vocabulary must be 0 or at least 2, not 1"),
        ({"vocabulary": 256}, "patch_size 1, not 2"),
        ({"vocabulary": 256, "patch_size": 1}, "num_channels 1 or 3, not 2"),
        ({"dropout": 1.0}, "dropout must be at least 0 and less than 1, not 1.0"),
        ({"attention_dropout": -0.1}, "attention_dropout must be at least 0"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be positive, not 0.0"),
    ],
)
def test_sizes_that_do_not_fit_are_an_error(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PATCHES, **changes)


def test_without_positions_any_width_is_valid() -> None:
    config = replace(PATCHES, pos="none", embed_dim=7, num_heads=1)
    assert Luna(config)(images_for(config, 2).float()).logits.shape == (2, 5)


@pytest.mark.parametrize("config", INPUTS.values(), ids=INPUTS)
def test_other_sizes_and_questions_are_an_error(config: LunaConfig) -> None:
    model, size = Luna(config), config.image_size
    with pytest.raises(ValueError, match=f"{size}, {size}.*, not .*{size}, {size + 1}"):
        model(torch.rand(2, config.num_channels, size, size + 1))
    with pytest.raises(ValueError, match="no questions"):
        model(torch.rand(2, config.num_channels, size, size), torch.rand(2, 3))


def test_layers_are_recomputed_only_in_training_and_on_request() -> None:
    model, images, calls = Luna(PATCHES), images_for(PATCHES, 2).float(), []
    model.blocks[0].feed_forward.register_forward_hook(lambda *_: calls.append(1))
    for enable, expected in ((False, 1), (True, 2)):
        calls.clear()
        model.set_grad_checkpointing(enable)
        loss_of(model, images).backward()
        assert len(calls) == expected
    calls.clear()
    with torch.no_grad():
        loss_of(model, images)
    assert len(calls) == 1


@pytest.mark.compiled
@pytest.mark.thorough
@pytest.mark.parametrize(("name", "recompute"), [("patches", True), ("pixels-gray", False)])
def test_compiled_training_steps_equal_eager_ones(name: str, recompute: bool) -> None:
    torch.compiler.reset()
    config = CONFIGS[name]
    eager = Luna(config)
    other = copy.deepcopy(eager)
    other.set_grad_checkpointing(recompute)
    fast = torch.compile(other, fullgraph=True, backend="aot_eager")
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (eager, other)]
    for step in range(2):
        images, labels = images_for(config, 4).float(), torch.arange(4)
        with torch.compiler.set_stance("default" if step == 0 else "fail_on_recompile"):
            losses = [cross_entropy(run(images).logits, labels) for run in (eager, fast)]
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        torch.testing.assert_close(losses[1], losses[0])
    for ours, theirs in zip(other.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.compiled
@pytest.mark.thorough
def test_compiled_evaluation_equals_eager() -> None:
    torch.compiler.reset()
    config = replace(CONFIGS["dropout"], is_tied=True)
    model = Luna(config).eval()
    fast = torch.compile(model, fullgraph=True, backend="aot_eager")
    images = images_for(config, 3).float()
    with torch.no_grad():
        torch.testing.assert_close(fast(images).logits, model(images).logits)


@pytest.mark.compiled
@pytest.mark.thorough
def test_a_compiled_model_draws_new_dropout_masks() -> None:
    torch.compiler.reset()
    fast = torch.compile(Luna(CONFIGS["dropout"]), fullgraph=True, backend="aot_eager")
    images = images_for(CONFIGS["dropout"], 3).float()
    first, second = (fast(images).logits for _ in range(2))
    assert first.isfinite().all() and not torch.equal(first, second)
