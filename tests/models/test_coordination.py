"""Coordination against slow loops, and the properties of a shared workspace."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from associative_transformer.models.coordination import (
    COORDINATION,
    COORDINATION_D,
    COORDINATION_DH,
    COORDINATION_H,
    Block,
    BlockOutput,
    Coordination,
    CoordinationConfig,
    SharedWorkspace,
    SlotsConfig,
    compete,
)
from twins import slow_coordination as slow
from twins.naive import Affine

BATCH = 2
SLOTS = SlotsConfig(num_slots=3, num_heads=2, key_dim=3, bottleneck=2)
SMALL = CoordinationConfig(  # 9 patches and the class token
    image_size=6,
    patch_size=2,
    num_channels=2,
    num_classes=4,
    embed_dim=8,
    depth=2,
    mlp_ratio=1.5,
    dropout=0.0,
    slots=SLOTS,
)
NUM_TOKENS = 10


def with_slots(config: CoordinationConfig = SMALL, **changes: Any) -> CoordinationConfig:  # noqa: ANN401
    return replace(config, slots=replace(config.slots, **changes))


CASES = {
    f"{'shared' if share else 'unshared'}-{scope}-{'soft' if k is None else 'hard'}": with_slots(
        replace(SMALL, share_layers=share), scope=scope, bottleneck=k
    )
    for share, scope, k in product([True, False], ["model", "layer"], [2, None])
}
CASES |= {
    "question": replace(SMALL, question_dim=3),
    "question-unshared-soft": with_slots(
        replace(SMALL, question_dim=3, share_layers=False), bottleneck=None
    ),
    "deep-phi": with_slots(mlp_depth=4),
    "three-layers-scaled": with_slots(replace(SMALL, depth=3), scale=0.5),
    "soft-scaled": with_slots(bottleneck=None, scale=3**-0.5),
    "one-slot-one-winner": with_slots(num_slots=1, bottleneck=1),
    "more-winners-than-tokens": with_slots(bottleneck=50),
}
every_case = pytest.mark.parametrize("config", CASES.values(), ids=CASES)
each_scope = pytest.mark.parametrize("scope", ["model", "layer"])


def shaken(config: CoordinationConfig) -> Coordination:
    """Return the module in float64 with random weights, so that a forgotten one would show."""
    model = Coordination(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def inputs_of(
    config: CoordinationConfig, batch: int = BATCH, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor | None]:
    size = config.image_size
    images = torch.randn(batch, config.num_channels, size, size, dtype=dtype)
    questions = torch.randn(batch, config.question_dim, dtype=dtype)
    return images, questions if config.question_dim else None


def loss_of(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    output = model(images)
    return cross_entropy(output.logits, labels) + output.aux_loss


def affine(module: nn.Module) -> Affine:
    return Affine(module.weight, module.bias)


def layer_weights(block: nn.Module) -> slow.LayerWeights:
    w = block.workspace
    return slow.LayerWeights(
        norm1=affine(block.norm1),
        into=affine(block.to_u),
        q=affine(w.to_q),
        k=affine(w.to_k),
        v=affine(w.to_v),
        norm_a=affine(w.norm1),
        norm_b=affine(w.norm2),
        phi=affine(w.phi),
        w=w.token_scale,
        gate=affine(w.token_gates),
        slot_weight=w.slot_gates.weight,
        slot_bias=w.slot_gates.bias,
        input_bias=w.enter_bias,
        forget_bias=w.stay_bias,
        norm2=affine(block.norm2),
        hidden=affine(block.feed_forward[0]),
        out=affine(block.feed_forward[2]),
    )


def settings_of(config: CoordinationConfig) -> slow.Settings:
    s = config.slots
    return slow.Settings(
        patch_size=config.patch_size,
        num_heads=s.num_heads,
        num_slots=s.num_slots,
        bottleneck=s.bottleneck,
        mlp_depth=s.mlp_depth,
        scale=s.scale,
        scope=s.scope,
    )


def slow_logits(model: Coordination, images: Tensor, questions: Tensor | None) -> Tensor:
    """Compute the logits with the loops."""
    c, embed = model.config, model.embed
    assert embed.class_token is not None
    blocks = [model.blocks[0 if c.share_layers else layer] for layer in range(c.depth)]
    weights = slow.ModelWeights(
        patches=affine(embed.patches),
        question=None if embed.question is None else affine(embed.question),
        class_token=embed.class_token,
        positions=model.positions,
        layers=[layer_weights(block) for block in blocks],
        head=affine(model.head),
    )
    return slow.coordination(images, questions, weights, settings_of(c))


def tokens_and_slots(model: Coordination) -> tuple[Tensor, Tensor]:
    """Draw random input of a layer in the middle of the model."""
    c = model.config
    x = torch.randn(BATCH, model.embed.num_tokens, c.embed_dim, dtype=torch.float64)
    return x, torch.randn(BATCH, c.slots.num_slots, c.embed_dim, dtype=torch.float64)


def workspace_of(config: CoordinationConfig) -> SharedWorkspace:
    block = shaken(config).blocks[0]
    assert isinstance(block, Block)
    return block.workspace


@every_case
def test_logits_and_gradients_equal_the_loops(config: CoordinationConfig) -> None:
    model = shaken(config)
    images, questions = inputs_of(config)
    inputs = [x.requires_grad_() for x in (images, questions) if x is not None]
    inputs += model.parameters()
    expected, output = slow_logits(model, images, questions), model(images, questions)
    assert output.aux_loss == 0
    torch.testing.assert_close(output.logits, expected, rtol=1e-10, atol=1e-10)
    cotangent = torch.randn_like(expected)
    mine = torch.autograd.grad(output.logits, inputs, cotangent)
    theirs = torch.autograd.grad(expected, inputs, cotangent)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max() + 1))


def test_a_layer_returns_tokens_and_slots_of_the_loops() -> None:
    model = shaken(SMALL)
    x, slots = tokens_and_slots(model)
    output = model.blocks[0](x, slots)
    weights, settings = layer_weights(model.blocks[0]), settings_of(SMALL)
    for image in range(BATCH):
        tokens, moved = slow.layer_step(x[image], slots[image], weights, settings)
        torch.testing.assert_close(output.tokens[image], tokens)
        torch.testing.assert_close(output.slots[image], moved)


@pytest.mark.parametrize("bottleneck", [1, 2, 5, None])
def test_the_operations_of_the_workspace_equal_the_loops(bottleneck: int | None) -> None:
    config = with_slots(bottleneck=bottleneck)
    model = shaken(config)
    workspace, weights = model.blocks[0].workspace, layer_weights(model.blocks[0])
    settings = settings_of(config)
    u, slots = tokens_and_slots(model)
    written = workspace.write(u, slots)
    moved = workspace.update(u, slots, written.value)
    read = workspace.broadcast(u, moved)
    for image in range(BATCH):
        taken = slow.write(u[image], slots[image], weights, settings)
        torch.testing.assert_close(written.value[image], taken.value)
        torch.testing.assert_close(written.weights[image], taken.weights)
        expected = slow.update(u[image], slots[image], taken.value, weights, settings)
        torch.testing.assert_close(moved[image], expected)
        expected = slow.broadcast(u[image], moved[image], weights, settings)
        torch.testing.assert_close(read[image], expected)


@pytest.mark.parametrize("bottleneck", [1, 3, 9])
def test_exactly_k_tokens_write_to_each_slot_with_their_share_of_the_full_softmax(
    bottleneck: int,
) -> None:
    hard = workspace_of(with_slots(bottleneck=bottleneck))
    soft = copy.deepcopy(hard)
    soft.config = replace(hard.config, bottleneck=None)
    u, slots = tokens_and_slots(shaken(SMALL))
    kept, full = hard.write(u, slots).weights, soft.write(u, slots).weights
    assert kept.shape == (BATCH, 2, 3, NUM_TOKENS)
    torch.testing.assert_close(full.sum(dim=-1), torch.ones(BATCH, 2, 3, dtype=torch.float64))
    won = kept > 0
    assert (won.sum(dim=-1) == bottleneck).all()
    assert torch.equal(kept[won], full[won])  # not renormalized
    least = full.masked_fill(~won, torch.inf).amin(dim=-1)
    assert (least >= full.masked_fill(won, -torch.inf).amax(dim=-1)).all()


def test_equally_similar_tokens_do_not_widen_the_bottleneck() -> None:
    weights = compete(torch.zeros(1, 2, 3, 12), 4)
    assert (weights.sum(dim=-1) == 4 / 12).all()
    assert (weights.count_nonzero(dim=-1) == 4).all()


def test_a_token_that_wins_no_slot_of_a_head_sends_no_value() -> None:
    workspace, values = workspace_of(SMALL), []
    workspace.to_v.register_forward_hook(lambda _, __, output: values.append(output))
    u, slots = tokens_and_slots(shaken(SMALL))
    written = workspace.write(u, slots)
    (gradient,) = torch.autograd.grad(written.value, values, torch.randn_like(written.value))
    sends = gradient.unflatten(-1, (2, 4)).transpose(1, 2).abs().sum(dim=-1) > 0  # (B, S, N)
    wins = written.weights.sum(dim=2) > 0
    assert torch.equal(sends, wins)
    assert wins.any(dim=-1).all() and not wins.all(dim=-1).any()


def test_a_losing_token_still_affects_the_softmax() -> None:
    similarity = torch.randn(1, 1, 1, 6, dtype=torch.float64, requires_grad=True)
    kept = compete(similarity, 2)
    (gradient,) = torch.autograd.grad(kept.sum(), similarity)
    full = similarity.softmax(dim=-1)
    mass = kept.sum()
    torch.testing.assert_close(gradient, torch.where(kept > 0, full * (1 - mass), -full * mass))


@pytest.mark.parametrize("bottleneck", [NUM_TOKENS, NUM_TOKENS + 7])
def test_with_a_bottleneck_of_all_tokens_hard_and_soft_competition_agree(bottleneck: int) -> None:
    images, _ = inputs_of(SMALL)
    hard, soft, narrow = (
        shaken(with_slots(bottleneck=k)) for k in (bottleneck, None, NUM_TOKENS - 1)
    )
    for model in (hard, narrow):
        model.load_state_dict(soft.state_dict())
    assert torch.equal(hard(images).logits, soft(images).logits)
    assert not torch.allclose(narrow(images).logits, soft(images).logits)


@each_scope
def test_every_forward_starts_from_the_identity_padded_with_zeros(scope: str) -> None:
    model = shaken(with_slots(scope=scope)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    entered: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, args: entered.append(args[1].clone()))
    images, _ = inputs_of(SMALL)
    first, second = model(images).logits, model(images).logits
    assert torch.equal(first, second)
    identity = torch.cat([torch.eye(3), torch.zeros(3, 5)], dim=1).double()
    for index, slots in enumerate(entered):
        is_start = torch.equal(slots, identity.expand(BATCH, -1, -1))
        assert is_start == (scope == "layer" or index in (0, 2))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@each_scope
def test_slots_reach_the_next_layer_only_if_the_scope_is_the_model(scope: str) -> None:
    model = shaken(with_slots(replace(SMALL, share_layers=False), scope=scope))
    images, _ = inputs_of(SMALL)
    left: list[Tensor] = []
    entered: list[Tensor] = []
    before = model(images).logits
    noise = torch.randn(BATCH, 3, 8, dtype=torch.float64)

    def disturb(_: nn.Module, __: object, output: BlockOutput) -> BlockOutput:
        left.append(output.slots + noise)
        return BlockOutput(output.tokens, left[-1])

    model.blocks[0].register_forward_hook(disturb)
    model.blocks[1].register_forward_pre_hook(lambda _, args: entered.append(args[1]))
    after = model(images).logits
    assert torch.allclose(before, after) == (scope == "layer")
    assert torch.equal(entered[0], left[0]) == (scope == "model")


@pytest.mark.parametrize("is_cut", [True, False])
def test_tokens_exchange_information_only_through_the_broadcast(
    is_cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shaken(with_slots(bottleneck=None))
    if is_cut:
        silence = lambda u, slots: torch.zeros_like(u)  # noqa: E731
        monkeypatch.setattr(model.blocks[0].workspace, "broadcast", silence)
    x, slots = tokens_and_slots(model)
    other = x.clone()
    other[:, 3] = torch.randn(8)

    def passed(tokens: Tensor) -> Tensor:
        moved = slots
        for block in model.layers():
            tokens, moved = block(tokens, moved)
        return tokens

    reached = (passed(x) != passed(other)).any(dim=-1)  # (B, N)
    expected = torch.arange(NUM_TOKENS) == 3 if is_cut else torch.ones(NUM_TOKENS).bool()
    assert torch.equal(reached, expected.expand(BATCH, -1))


def test_a_token_reads_the_slots_independently_of_other_tokens() -> None:
    workspace = workspace_of(SMALL)
    u, slots = tokens_and_slots(shaken(SMALL))
    alone = [workspace.broadcast(u[:, n : n + 1], slots) for n in range(NUM_TOKENS)]
    torch.testing.assert_close(workspace.broadcast(u, slots), torch.cat(alone, dim=1))


def test_the_slots_do_not_depend_on_the_order_of_the_tokens() -> None:
    block = shaken(SMALL).blocks[0]
    x, slots = tokens_and_slots(shaken(SMALL))
    order = torch.randperm(NUM_TOKENS)
    plain, shuffled = block(x, slots), block(x[:, order], slots)
    torch.testing.assert_close(shuffled.slots, plain.slots)
    torch.testing.assert_close(shuffled.tokens, plain.tokens[:, order])


def test_the_bias_of_the_keys_has_no_effect() -> None:
    model = shaken(SMALL)
    images, _ = inputs_of(SMALL)
    before = model(images).logits
    with torch.no_grad():
        model.blocks[0].workspace.to_k.bias.add_(torch.randn(6))
    torch.testing.assert_close(model(images).logits, before)


def test_shared_layers_have_one_set_of_weights() -> None:
    shared, own = (Coordination(replace(SMALL, depth=3, share_layers=s)) for s in (True, False))
    assert len(shared.blocks) == 1 and len(own.blocks) == 3
    assert shared.layers() == [shared.blocks[0]] * 3
    assert own.layers() == list(own.blocks)
    assert {key.split(".")[1] for key in shared.state_dict() if key.startswith("blocks")} == {"0"}
    deeper = Coordination(replace(SMALL, depth=5))
    deeper.load_state_dict(shared.state_dict())
    calls: list[int] = []
    deeper.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    deeper(inputs_of(SMALL, dtype=torch.float32)[0])
    assert len(calls) == 5


def test_positions_are_a_fixed_code_added_to_every_token() -> None:
    model = Coordination(replace(SMALL, question_dim=3)).double()
    expected = slow.positions(NUM_TOKENS + 1, SMALL.embed_dim)
    torch.testing.assert_close(model.positions, expected, rtol=1e-6, atol=1e-6)
    assert "positions" not in model.state_dict()
    entered: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    images, questions = inputs_of(model.config)
    model(images, questions)
    assert torch.equal(entered[0], model.embed(images, questions) + model.positions)


def test_an_untrained_workspace_keeps_more_than_it_admits() -> None:
    workspace = SharedWorkspace(64, SlotsConfig())
    assert workspace.enter_bias == 0 and workspace.stay_bias == 1
    bound = 128**-0.5
    for parameter in workspace.slot_gates.parameters():
        assert 0.95 * bound < parameter.abs().max() <= bound
    assert 0.7 < workspace.token_scale.std() < 1.3
    with torch.no_grad():
        for parameter in (*workspace.token_gates.parameters(), *workspace.slot_gates.parameters()):
            parameter.zero_()
    enter, stay = workspace.gates(torch.randn(2, 5, 64), torch.randn(2, 8, 64))
    torch.testing.assert_close(enter, torch.full((2, 8, 64), 0.5))
    torch.testing.assert_close(stay, torch.full((2, 8, 64), 0.7310586))


def test_dropout_acts_on_the_broadcast_and_on_the_feed_forward() -> None:
    block = shaken(replace(SMALL, dropout=0.5)).blocks[0]
    x, slots = tokens_and_slots(shaken(SMALL))
    given: list[Tensor] = []
    taken: list[Tensor] = []
    block.dropout.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    block.dropout.register_forward_hook(lambda _, __, output: taken.append(output))
    tokens, moved = block(x, slots)
    first, second = taken
    u = block.to_u(block.norm1(x))
    torch.testing.assert_close(given[0], block.workspace.broadcast(u, moved))
    torch.testing.assert_close(given[1], block.feed_forward(block.norm2(x + first)))
    torch.testing.assert_close(tokens, x + first + second)
    for output in taken:
        assert 0.25 < (output == 0).double().mean() < 0.75
    block.eval()
    assert torch.equal(block(x, slots).tokens, block(x, slots).tokens)
    assert torch.equal(block(x, slots).slots, moved)  # what is written has no dropout


def test_the_logits_depend_on_the_question() -> None:
    config = replace(SMALL, question_dim=3)
    model = shaken(config)
    images, questions = inputs_of(config)
    assert questions is not None
    assert not torch.allclose(model(images, questions).logits, model(images, -questions).logits)
    with pytest.raises(ValueError, match="questions of shape"):
        model(images)
    with pytest.raises(ValueError, match="no questions"):
        shaken(SMALL)(images, questions)


SIZES = [  # hidden width, slots; 4 shared, 8 shared, 4 unshared, 8 unshared
    (512, 8, (1_958_412, 1_958_412, 7_326_738, 14_484_506)),
    (512, 10, (2_221_580, 2_221_580, 8_379_410, 16_589_850)),
    (768, 9, (2_221_324, 2_221_324, 8_378_386, 16_587_802)),
    (1024, 8, (2_221_068, 2_221_068, 8_377_362, 16_585_754)),
    (1536, 6, (2_220_556, 2_220_556, 8_375_314, 16_581_658)),
    (2048, 4, (2_220_044, 2_220_044, 8_373_266, 16_577_562)),
]
VARIANTS = (COORDINATION, COORDINATION_D, COORDINATION_H, COORDINATION_DH)


def counts(config: CoordinationConfig) -> tuple[int, int]:
    """Count the live parameters and all that the reference registers."""
    with torch.device("meta"):
        model = Coordination(config)
    return sum(p.numel() for p in model.parameters()), model.reference_parameters()


@pytest.mark.parametrize(("hidden_dim", "num_slots", "expected"), SIZES)
def test_the_reference_counts_are_the_known_ones(
    hidden_dim: int, num_slots: int, expected: tuple[int, ...]
) -> None:
    configs = [
        with_slots(replace(variant, mlp_ratio=hidden_dim / 256), num_slots=num_slots)
        for variant in VARIANTS
    ]
    assert tuple(counts(config)[1] for config in configs) == expected


def test_the_named_sizes_have_the_published_counts_and_no_unused_parameters() -> None:
    live, table = zip(*map(counts, VARIANTS), strict=True)
    assert live == (1_990_668, 1_990_668, 7_916_562, 15_817_754)
    assert table == (2_221_068, 2_221_068, 8_377_362, 16_585_754)
    assert [variant.depth for variant in VARIANTS] == [4, 8, 4, 8]
    for variant in VARIANTS:
        assert variant.slots.bottleneck == 20 and variant.slots.scope == "model"
        assert variant.slots.scale == 1.0 and variant.dropout == 0.1


def test_the_settings_of_the_reference_give_its_counts_for_the_other_tasks() -> None:
    triangle = CoordinationConfig(image_size=64, num_channels=1, num_classes=4, mlp_ratio=2.0)
    clevr = CoordinationConfig(
        image_size=75,
        patch_size=15,
        question_dim=18,
        mlp_ratio=2.0,
        slots=SlotsConfig(bottleneck=5, mlp_depth=4),
    )
    assert counts(triangle) == (1_948_678 - 230_400, 1_948_678)
    assert counts(clevr) == (2_289_036 - 395_648, 2_289_036)
    live, table = counts(replace(clevr, share_layers=False))
    assert table - live == 2 * 76_800 + 4 * (76_800 + 165_248)


def test_every_parameter_receives_a_gradient() -> None:
    config = replace(SMALL, question_dim=3, share_layers=False)
    model = shaken(config)
    images, questions = inputs_of(config)
    model(images, questions).logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if not name.endswith("to_k.bias"):  # has no effect, see above
            assert parameter.grad.abs().max() > 1e-6, name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_slots": 0}, "num_slots must be at least 1, not 0"),
        ({"num_heads": 0}, "num_heads must be at least 1, not 0"),
        ({"key_dim": -1}, "key_dim must be at least 1, not -1"),
        ({"mlp_depth": 0}, "mlp_depth must be at least 1, not 0"),
        ({"bottleneck": 0}, r"bottleneck must be at least 1 \(or None\), not 0"),
        ({"scale": 0.0}, "scale must be positive .* not 0.0"),
        ({"scale": float("inf")}, "scale must be positive .* not inf"),
        ({"scale": float("nan")}, "scale must be positive .* not nan"),
        ({"scale": 1e38}, "scale must be positive .* not 1e.38"),
        ({"mlp_depth": 10**9}, "mlp_depth must be at most 1,000, not 1000000000"),
        ({"num_slots": 9}, "num_slots 9 must be at most embed_dim 8"),
        ({"num_heads": 3}, "num_heads 3 does not divide embed_dim 8"),
    ],
)
def test_an_invalid_workspace_is_an_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_slots(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0}, "depth must be at least 1, not 0"),
        ({"patch_size": 4}, "patch_size 4 does not divide image_size 6"),
        ({"dropout": 1.0}, "dropout must be at least 0 and less than 1, not 1.0"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be positive, not 0.0"),
        ({"question_dim": -1}, "question_dim must be at least 0, not -1"),
        ({"embed_dim": 2}, "num_slots 3 must be at most embed_dim 2"),
    ],
)
def test_invalid_sizes_are_an_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_an_image_of_another_size_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"2, 6, 6\), not \(2, 2, 6, 8"):
        Coordination(SMALL)(torch.randn(2, 2, 6, 8))


def test_a_configuration_is_read_back_strictly() -> None:
    adapter = TypeAdapter(CoordinationConfig)
    config = CASES["question-unshared-soft"]
    saved = adapter.dump_python(config)
    assert adapter.validate_python(saved) == config
    for wrong in (saved | {"heads": 2}, saved | {"slots": saved["slots"] | {"topk": 2}}):
        with pytest.raises(ValidationError, match="Unexpected keyword argument"):
            adapter.validate_python(wrong)
    with pytest.raises(ValidationError, match="'model' or 'layer'"):
        adapter.validate_python(saved | {"slots": saved["slots"] | {"scope": "batch"}})


@pytest.mark.parametrize("name", ["shared-model-hard", "unshared-layer-hard"])
def test_activation_checkpointing_recomputes_each_layer_and_changes_no_number(name: str) -> None:
    config = replace(CASES[name], dropout=0.3)
    plain = shaken(config)
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    images, _ = inputs_of(config)
    calls: list[int] = []
    for block in saving.blocks:
        block.feed_forward.register_forward_hook(lambda *_: calls.append(1))
    for model in (plain, saving):
        torch.manual_seed(0)
        model(images).logits.square().sum().backward()
    assert len(calls) == 4
    for (name, ours), theirs in zip(saving.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad), name
    with torch.no_grad():
        saving(images)
    assert len(calls) == 6
    saving.set_grad_checkpointing(False)
    saving(images).logits.sum().backward()
    assert len(calls) == 8


MEDIUM = CoordinationConfig(
    image_size=8,
    patch_size=2,
    num_classes=5,
    embed_dim=24,
    depth=2,
    mlp_ratio=2.0,
    dropout=0.0,
    slots=SlotsConfig(num_slots=4, key_dim=8, bottleneck=3),
)
VARIETY = {
    "shared-hard": MEDIUM,
    "unshared-soft": with_slots(replace(MEDIUM, share_layers=False), bottleneck=None),
}
each_variety = pytest.mark.parametrize("config", VARIETY.values(), ids=VARIETY)


@each_variety
def test_under_autocast_tokens_and_slots_stay_in_float32(config: CoordinationConfig) -> None:
    model = Coordination(config)
    images, _ = inputs_of(config, 8, torch.float32)
    outputs: list[BlockOutput] = []
    model.blocks[0].register_forward_hook(lambda _, __, output: outputs.append(output))
    with torch.autocast("cpu", torch.bfloat16):
        model(images)
    assert outputs
    for output in outputs:
        assert output.tokens.dtype == output.slots.dtype == torch.float32


def test_under_autocast_the_competition_is_decided_in_float32() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        weights = compete(torch.randn(1, 2, 3, 300).bfloat16(), 5)
    assert weights.dtype == torch.float32
    assert (weights.count_nonzero(dim=-1) == 5).all()


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(model: nn.Module) -> Callable[..., tuple[Tensor, Tensor]]:
    return torch.compile(model, fullgraph=True, backend="aot_eager")


@pytest.mark.compiled
@pytest.mark.thorough
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    ("name", "depth", "is_recomputed"), [("shared-hard", 2, False), ("unshared-soft", 1, True)]
)
def test_two_compiled_training_steps_equal_eager_ones(
    name: str, depth: int, is_recomputed: bool
) -> None:
    config = replace(VARIETY[name], depth=depth)
    eager = Coordination(config)
    other = copy.deepcopy(eager)
    other.set_grad_checkpointing(is_recomputed)
    fast = compiled(other)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (eager, other)]
    for step in range(2):
        images, _ = inputs_of(config, 4, torch.float32)
        labels = torch.randint(5, (4,))
        with torch.compiler.set_stance("default" if step == 0 else "fail_on_recompile"):
            for model, optimizer in zip((eager, fast), optimizers, strict=True):
                optimizer.zero_grad()
                logits, aux_loss = model(images)
                (cross_entropy(logits, labels) + aux_loss).backward()
        for (key, ours), theirs in zip(other.named_parameters(), eager.parameters(), strict=True):
            assert ours.grad is not None and theirs.grad is not None
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=key)
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.compiled
@pytest.mark.thorough
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_evaluation_equals_eager() -> None:
    config = with_slots(replace(MEDIUM, question_dim=3, dropout=0.1), scope="layer")
    model = Coordination(config).eval()
    fast = compiled(model)
    for repetition in range(2):
        images, questions = inputs_of(config, 4, torch.float32)
        stance = "default" if repetition == 0 else "fail_on_recompile"
        with torch.no_grad(), torch.compiler.set_stance(stance):
            logits, aux_loss = fast(images, questions)
            torch.testing.assert_close(
                logits, model(images, questions).logits, rtol=1e-4, atol=1e-5
            )
        assert aux_loss == 0
