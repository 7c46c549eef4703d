"""Set Transformer against slow loops; sets, cost and sizes."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from associative_transformer.models.set_transformer import (
    ISAB,
    MAB,
    PMA,
    SAB,
    SET_TRANSFORMER,
    SetTransformer,
    SetTransformerConfig,
)
from twins import slow_set_transformer as slow
from twins.naive import Affine

Config = SetTransformerConfig
CLS = Config(
    image_size=6,
    patch_size=2,
    num_channels=2,
    num_classes=5,
    embed_dim=6,
    hidden_dim=8,
    depth=2,
    num_heads=2,
    num_inducing=3,
)
PMA_ = replace(CLS, pool="pma", pos="none", decoder_depth=2)
CONFIGS: dict[str, Config] = {
    "cls": CLS,
    "cls-without-norms": replace(CLS, use_norm=False),
    "cls-without-positions": replace(CLS, pos="none"),
    "cls-question": replace(CLS, question_dim=3),
    "one-block-one-head": replace(CLS, depth=1, num_heads=1, num_inducing=1),
    "pma": PMA_,
    "pma-without-norms": replace(PMA_, use_norm=False),
    "pma-positions": replace(PMA_, pos="fixed", decoder_depth=0),
    "pma-question": replace(PMA_, question_dim=3, decoder_depth=1),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
each_pool = pytest.mark.parametrize("config", [CLS, PMA_], ids=["cls", "pma"])
each_norm = pytest.mark.parametrize("use_norm", [True, False], ids=["norms", "no-norms"])


def shaken(module: nn.Module) -> Any:  # noqa: ANN401
    """Return the module in float64 with random weights, so that a forgotten one would show."""
    with torch.no_grad():
        for value in module.double().parameters():
            value.normal_(std=0.5)
    return module


def inputs_of(config: Config, batch: int = 2) -> tuple[Tensor, Tensor | None]:
    size = config.image_size
    images = torch.randn(batch, config.num_channels, size, size, dtype=torch.float64)
    questions = torch.randn(batch, config.question_dim, dtype=torch.float64)
    return images, questions if config.question_dim else None


def affine(module: Any) -> Affine:  # noqa: ANN401
    return Affine(module.weight, module.bias)


def mab_weights(mab: MAB) -> slow.MABWeights:
    has_norms = isinstance(mab.norm0, nn.LayerNorm)
    norms = (affine(mab.norm0), affine(mab.norm1)) if has_norms else None
    layers = (mab.to_q, mab.to_k, mab.to_v, mab.feed_forward)
    return slow.MABWeights(*map(affine, layers), norms)


def isab_weights(isab: ISAB) -> slow.ISABWeights:
    return slow.ISABWeights(isab.inducing[0], mab_weights(isab.mab0), mab_weights(isab.mab1))


def pma_weights(pma: PMA) -> slow.PMAWeights:
    return slow.PMAWeights(pma.seeds[0], mab_weights(pma.mab))


def slow_logits(model: SetTransformer, images: Tensor, questions: Tensor | None) -> Tensor:
    embed, pool = model.embed, list(model.pool.children())
    weights = slow.Weights(
        affine(embed.patches),
        None if embed.question is None else affine(embed.question),
        embed.class_token,
        model.positions,
        [isab_weights(block) for block in model.blocks],  # type: ignore[arg-type]
        pma_weights(pool[0]) if pool else None,  # type: ignore[arg-type]
        [mab_weights(sab.mab) for sab in pool[1:]],  # type: ignore[arg-type]
        affine(model.head),
    )
    c = model.config
    return slow.set_transformer(images, questions, weights, c.patch_size, c.num_heads)


def assert_equal_with_gradients(ours: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    cotangent = torch.randn_like(theirs)
    mine = torch.autograd.grad(ours, inputs, cotangent)
    for a, b in zip(mine, torch.autograd.grad(theirs, inputs, cotangent), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max() + 1))


@every_config
def test_logits_and_gradients_equal_the_loops(config: Config) -> None:
    model = shaken(SetTransformer(config))
    images, questions = inputs_of(config)
    inputs = [x.requires_grad_() for x in (images, questions) if x is not None]
    output = model(images, questions)
    assert output.aux_loss == 0
    expected = slow_logits(model, images, questions)
    assert_equal_with_gradients(output.logits, expected, [*inputs, *model.parameters()])


@each_norm
def test_the_blocks_take_sets_of_any_size_and_width(use_norm: bool) -> None:
    x = torch.randn(2, 5, 7, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    mab = shaken(MAB(7, 4, 6, 3, use_norm))
    sab = shaken(SAB(7, 6, 3, use_norm))
    isab = shaken(ISAB(7, 6, 3, 2, use_norm))
    pma = shaken(PMA(7, 6, 3, 4, use_norm))
    one: dict[nn.Module, Callable[[Tensor], Tensor]] = {
        sab: lambda row: slow.sab(row, mab_weights(sab.mab), 3),
        isab: lambda row: slow.isab(row, isab_weights(isab), 3),
        pma: lambda row: slow.pma(row, pma_weights(pma), 3),
    }
    expected = [slow.mab(a, b, mab_weights(mab), 3) for a, b in zip(x, y, strict=True)]
    assert_equal_with_gradients(mab(x, y), torch.stack(expected), [x, y, *mab.parameters()])
    for block, loops in one.items():
        expected = [loops(row) for row in x]
        assert_equal_with_gradients(block(x), torch.stack(expected), [x, *block.parameters()])


def test_a_head_divides_its_scores_by_the_square_root_of_the_full_width() -> None:
    mab = MAB(4, 4, 4, 2, use_norm=False).double()
    with torch.no_grad():
        for layer in (mab.to_q, mab.to_k, mab.to_v, mab.feed_forward):
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(mab.feed_forward.weight)
    q = torch.tensor([[[2.0, 0.0, 0.0, 2.0]]], dtype=torch.float64)
    y = torch.tensor([[[3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]], dtype=torch.float64)
    # head 1 has scores 6 and 0, head 2 has 0 and 2: divided by sqrt(4), not sqrt(4 / 2)
    first, second = torch.tensor([3.0, 1.0], dtype=torch.float64).sigmoid()
    expected = torch.stack([2 + 3 * first, first * 0, first * 0, 2 + second])
    torch.testing.assert_close(mab(q, y)[0, 0], expected)


def test_the_residual_is_the_projected_query() -> None:
    mab = shaken(MAB(3, 3, 4, 2, use_norm=False))
    with torch.no_grad():  # so that only the residual remains
        for parameter in (*mab.to_v.parameters(), *mab.feed_forward.parameters()):
            parameter.zero_()
    x, y = torch.randn(2, 5, 3, dtype=torch.float64), torch.randn(2, 6, 3, dtype=torch.float64)
    torch.testing.assert_close(mab(x, y), mab.to_q(x))


def test_the_positions_are_those_of_the_shared_workspace() -> None:
    for config, num_tokens in ((CLS, 10), (replace(CLS, question_dim=3, pool="pma"), 10)):
        model = SetTransformer(config)
        expected = slow.positions_of(num_tokens, config.embed_dim).float()
        torch.testing.assert_close(model.positions, expected, rtol=0, atol=1e-6)
    model = SetTransformer(replace(CLS, pos="none"))
    assert model.positions is None


def test_nothing_is_saved_for_fixed_positions_and_a_pool_without_weights() -> None:
    keys = set(SetTransformer(CLS).state_dict())
    assert not any(key.startswith(("positions", "pool")) for key in keys)
    assert "embed.class_token" in keys
    assert "embed.class_token" not in SetTransformer(PMA_).state_dict()


def in_another_order(images: Tensor, patch_size: int) -> Tensor:
    """Permute whole patches."""
    rows = images.unfold(2, patch_size, patch_size).unfold(3, patch_size, patch_size)
    batch, channels, height, width = rows.shape[:4]
    patches = rows.flatten(2, 3)[:, :, torch.arange(height * width).roll(2)]
    moved = patches.unflatten(2, (height, width)).transpose(3, 4)
    return moved.reshape(batch, channels, height * patch_size, width * patch_size)


@each_pool
@pytest.mark.parametrize("question_dim", [0, 3])
def test_without_positions_the_order_of_the_patches_does_not_matter(
    config: Config, question_dim: int
) -> None:
    for pos in ("none", "fixed"):
        config = replace(config, pos=pos, question_dim=question_dim)
        model = SetTransformer(config).double()
        images, questions = inputs_of(config)
        moved = in_another_order(images, config.patch_size)
        assert not torch.equal(moved, images)
        before, after = (model(x, questions).logits for x in (images, moved))
        same = torch.allclose(before, after, rtol=1e-10, atol=1e-10)
        assert same == (pos == "none")


@pytest.mark.parametrize("block", [SAB(4, 6, 2), ISAB(4, 6, 2, 3)], ids=["sab", "isab"])
def test_a_set_block_returns_its_rows_in_the_order_of_the_set(block: nn.Module) -> None:
    block, x, order = shaken(block), torch.randn(2, 7, 4).double(), torch.randperm(7)
    assert not torch.equal(order, torch.arange(7))
    torch.testing.assert_close(block(x[:, order]), block(x)[:, order])


def test_pooling_does_not_depend_on_the_order_or_the_size_of_a_set() -> None:
    pma, x, order = shaken(PMA(4, 6, 2, 3)), torch.randn(2, 7, 4).double(), torch.randperm(7)
    assert pma(x).shape == (2, 3, 6)
    torch.testing.assert_close(pma(x[:, order]), pma(x))
    torch.testing.assert_close(pma(x.repeat(1, 2, 1)), pma(x))  # attention is an average
    assert not torch.allclose(pma(x)[:, 0], pma(x)[:, 1])


def cost(block: nn.Module, num_tokens: int) -> int:
    """Count operations of a forward; on a CPU the counter knows only the plain attention."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        block(torch.randn(1, num_tokens, 8))
    return counter.get_total_flops()


def test_inducing_points_make_the_cost_linear_in_the_tokens() -> None:
    def second_difference(block: nn.Module) -> int:
        once, twice, thrice = (cost(block, num_tokens) for num_tokens in (50, 100, 150))
        assert 0 < once < twice < thrice
        return (thrice - twice) - (twice - once)

    assert second_difference(ISAB(8, 8, 2, 3)) == 0
    assert second_difference(PMA(8, 8, 2)) == 0
    # scores and sums take 2 multiply-adds, 4 operations, per pair of tokens and column
    assert second_difference(SAB(8, 8, 2)) == 4 * 8 * 2 * 50**2


@each_norm
@pytest.mark.parametrize("seeds", [1, 4])
def test_inducing_points_and_seeds_are_initialized_within_the_bound_of_the_reference(
    seeds: int, use_norm: bool
) -> None:
    isab, pma = ISAB(8, 256, 4, 8, use_norm), PMA(8, 256, 4, seeds, use_norm)
    for rows, count in ((isab.inducing, 8), (pma.seeds, seeds)):
        bound = (6 / (256 * count + 256)) ** 0.5
        assert rows.shape == (1, count, 256)
        assert 0.95 * bound < rows.abs().max() <= bound


def counts(config: Config) -> tuple[int, int]:
    with torch.device("meta"):
        model = SetTransformer(config)
    return sum(p.numel() for p in model.parameters()), model.reference_parameters()


TABLE = 300 * 256  # gates of the reference's positions, which get no gradient
SEEDED = replace(SET_TRANSFORMER, pool="pma", pos="none")
TRIANGLE = replace(SET_TRANSFORMER, image_size=64, num_channels=1, num_classes=4)
RELATIONAL = replace(
    SET_TRANSFORMER, image_size=75, patch_size=15, question_dim=18, hidden_dim=512
)


@pytest.mark.parametrize(
    ("config", "live", "reference"),
    [
        (SET_TRANSFORMER, 2_137_098, 2_213_898),
        (replace(SET_TRANSFORMER, pos="none"), 2_137_098, 2_137_098),
        (replace(SET_TRANSFORMER, num_classes=100), 2_237_028 - TABLE, 2_237_028),
        (TRIANGLE, 2_204_164 - TABLE, 2_204_164),
        (RELATIONAL, 8_304_650 - TABLE, 8_304_650),
        # a seed and a MAB of 264,192 instead of the class token; each SAB is one MAB
        (SEEDED, 2_401_290, 2_401_290),
        (replace(SEEDED, decoder_depth=2), 2_929_674, 2_929_674),
        # 11 MABs without two norms of 512 each
        (replace(SEEDED, decoder_depth=2, use_norm=False), 2_918_410, 2_918_410),
    ],
)
def test_the_counts_are_the_known_ones(config: Config, live: int, reference: int) -> None:
    assert counts(config) == (live, reference)


@pytest.mark.parametrize(
    ("width", "num_inducing", "use_norm", "parameters"),
    [(128, 32, False, 441_226), (256, 8, True, 1_696_522)],
)
def test_the_official_model_can_be_built_from_the_blocks(
    width: int, num_inducing: int, use_norm: bool, parameters: int
) -> None:
    official = nn.Sequential(
        ISAB(48, width, 4, num_inducing, use_norm),
        ISAB(width, width, 4, num_inducing, use_norm),
        PMA(width, width, 4, use_norm=use_norm),
        SAB(width, width, 4, use_norm),
        SAB(width, width, 4, use_norm),
        nn.Linear(width, 10),
    )
    assert sum(p.numel() for p in official.parameters()) == parameters
    assert official(torch.randn(2, 64, 48)).shape == (2, 1, 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim": 0}, "embed_dim must be at least 1, not 0"),
        ({"hidden_dim": 0}, "hidden_dim must be at least 1, not 0"),
        ({"depth": 0}, "depth must be at least 1, not 0"),
        ({"num_inducing": 0}, "num_inducing must be at least 1, not 0"),
        ({"num_heads": 3}, "num_heads 3 does not divide hidden_dim 8"),
        ({"patch_size": 4}, "patch_size 4 does not divide image_size 6"),
        ({"pool": "pma", "decoder_depth": -1}, "decoder_depth must be at least 0, not -1"),
        ({"decoder_depth": 2}, 'decoder_depth 2 needs pool "pma"'),
    ],
)
def test_sizes_that_do_not_fit_are_an_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CLS, **changes)


def test_the_heads_of_a_block_must_divide_its_width() -> None:
    for build in (lambda: SAB(8, 8, 3), lambda: ISAB(8, 8, 3, 2), lambda: PMA(8, 8, 3)):
        with pytest.raises(ValueError, match="num_heads 3 does not divide hidden_dim 8"):
            build()


@pytest.mark.parametrize("name", ["cls-question", "pma-question"])
def test_the_logits_depend_on_the_question(name: str) -> None:
    model = SetTransformer(CONFIGS[name]).double()
    images, questions = inputs_of(CONFIGS[name])
    assert questions is not None
    before = model(images, questions).logits
    assert not torch.allclose(model(images, -questions).logits, before)
    with pytest.raises(ValueError, match="questions of shape"):
        model(images)


@each_pool
def test_activation_checkpointing_recomputes_the_blocks_only_in_training_and_changes_no_number(
    config: Config,
) -> None:
    model, (images, _) = SetTransformer(config).double(), inputs_of(config)
    calls: list[int] = []
    for module in model.modules():
        if isinstance(module, ISAB):
            module.mab0.register_forward_hook(lambda *_: calls.append(1))

    def step() -> list[Tensor]:
        calls.clear()
        logits = model(images).logits
        return [logits, *torch.autograd.grad(logits.square().sum(), list(model.parameters()))]

    plain = step()
    assert len(calls) == config.depth
    model.set_grad_checkpointing()
    saving = step()
    assert len(calls) == 2 * config.depth
    assert all(map(torch.equal, plain, saving))
    with torch.no_grad():
        calls.clear()
        model(images)
    assert len(calls) == config.depth
    model.set_grad_checkpointing(False)
    step()
    assert len(calls) == config.depth


@pytest.mark.compiled
@pytest.mark.thorough
@pytest.mark.parametrize(("name", "checkpointing"), [("cls-question", False), ("pma", True)])
def test_compiled_training_equals_eager_training(name: str, checkpointing: bool) -> None:
    torch.compiler.reset()
    config = CONFIGS[name]
    config = replace(config, depth=1, decoder_depth=min(config.decoder_depth, 1))
    eager = SetTransformer(config).double()
    other = copy.deepcopy(eager)
    other.set_grad_checkpointing(checkpointing)
    fast = torch.compile(other, fullgraph=True, backend="aot_eager")
    for step in range(2):
        images, questions = inputs_of(config, 3)
        stance = "default" if step == 0 else "fail_on_recompile"
        with torch.compiler.set_stance(stance):
            for model, run in ((eager, eager), (other, fast)):
                model.zero_grad()
                run(images, questions).logits.square().sum().backward()
        for ours, theirs in zip(other.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)
    with torch.no_grad():
        torch.testing.assert_close(fast(images, questions).logits, eager(images, questions).logits)
    torch.compiler.reset()
