"""The Perceiver against slow loops, what tying shares, and its linear cost."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from associative_transformer.models.perceiver import (
    GEGLU,
    PERCEIVER,
    FourierConfig,
    Perceiver,
    PerceiverConfig,
)
from twins import slow_perceiver as slow
from twins.naive import Affine

SMALL = PerceiverConfig(
    image_size=3,
    num_channels=2,
    num_classes=4,
    fourier=FourierConfig(num_bands=2),
    num_latents=3,
    latent_dim=6,
    depth=3,
    num_selfs=2,
    num_heads=2,
    head_dim=5,
    cross_dim=7,
)
LEARNER = replace(SMALL, image_size=8, num_latents=6, latent_dim=16, num_selfs=1, head_dim=8)
TIES, FORMS = ["none", "after_first", "paper"], ["package", "paper"]
every_tie = pytest.mark.parametrize("tie", TIES)
every_form = pytest.mark.parametrize("form", FORMS)
MODULES = {  # indices of the cross-attention and the latent blocks in each repeat of SMALL
    "none": ([0, 1, 2], [0, 1, 2]),
    "after_first": ([0, 1, 1], [0, 1, 1]),
    "paper": ([0, 1, 1], [0, 0, 0]),
}


def shaken(model: Perceiver) -> Perceiver:
    """Return the module in float64 with random weights, so that a forgotten one would show."""
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.7)
    return model


def images_of(config: PerceiverConfig, batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    side = config.image_size
    return torch.randn(batch, config.num_channels, side, side, dtype=dtype)


def affine(norm: nn.Module) -> Affine:
    return Affine(norm.weight, norm.bias)


def attention_of(block: nn.Module, num_heads: int) -> slow.Attention:
    maps = [
        slow.Map(m.weight, m.bias)
        for m in (block.attention.to_q, block.attention.to_kv, block.attention.to_out)
    ]
    return slow.Attention(affine(block.norm1), *maps, num_heads)


def feed_forward_of(block: nn.Module, is_gated: bool) -> slow.FeedForward:
    into, out = (slow.Map(m.weight, m.bias) for m in block.feed_forward if hasattr(m, "weight"))
    return slow.FeedForward(affine(block.norm2), into, out, is_gated)


def slow_logits(model: Perceiver, images: Tensor) -> Tensor:
    c, repeats = model.config, []
    is_gated = c.form == "package"
    for cross_index, selfs_index in zip(*MODULES[c.tie], strict=True):
        cross = model.cross_blocks[cross_index]
        blocks = [
            slow.Block(attention_of(block, c.num_heads), feed_forward_of(block, is_gated))
            for block in model.self_blocks[selfs_index]
        ]
        first = slow.Cross(
            affine(cross.data_norm), attention_of(cross, 1), feed_forward_of(cross, is_gated)
        )
        repeats.append(slow.Repeat(first, blocks))
    *norm, to_logits = model.head
    head = slow.Head(affine(norm[0]) if norm else None, slow.Map(to_logits.weight, to_logits.bias))
    max_freq = c.fourier.max_freq or c.image_size
    return slow.perceiver(
        images, model.latents, repeats, head, c.fourier.num_bands, float(max_freq)
    )


def count(config: PerceiverConfig) -> int:
    with torch.device("meta"):
        model = Perceiver(config)
    live = sum(parameter.numel() for parameter in model.parameters())
    assert model.reference_parameters() == live  # the reference registers nothing unused
    return live


@every_tie
@every_form
def test_logits_and_gradients_equal_the_loops(tie: str, form: str) -> None:
    max_freq = 5.0 if tie == "paper" else None
    config = replace(SMALL, tie=tie, form=form, fourier=FourierConfig(2, max_freq))
    model, images = shaken(Perceiver(config)), images_of(config, 2).requires_grad_()
    logits, expected = model(images).logits, slow_logits(model, images)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    cotangent, inputs = torch.randn_like(expected), [images, *model.parameters()]
    mine = torch.autograd.grad(logits, inputs, cotangent)
    theirs = torch.autograd.grad(expected, inputs, cotangent)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(b.abs().max() + 1))
        assert b.any()


PAPER = PerceiverConfig(  # the model that the Perceiver paper describes for ImageNet
    image_size=224,
    num_classes=1000,
    num_latents=512,
    latent_dim=1024,
    depth=8,
    num_selfs=6,
    head_dim=128,
    cross_dim=261,  # as wide as the data
    tie="paper",
    form="paper",
)
K6 = replace(PERCEIVER, fourier=FourierConfig(num_bands=6))
COUNTS = [
    (PERCEIVER, 44_860_230),
    (K6, 44_679_270),
    (replace(K6, num_selfs=2), 69_888_102),
    (replace(K6, num_selfs=2, num_classes=1000), 70_395_972),
    (PAPER, 44_912_254),
    (replace(PAPER, num_classes=10), 43_897_504),
    (replace(PAPER, tie="none"), 326_241_856),
]


@pytest.mark.parametrize(("config", "parameters"), COUNTS)
def test_the_documented_sizes_have_exactly_the_documented_parameters(
    config: PerceiverConfig, parameters: int
) -> None:
    assert count(config) == parameters


def test_the_named_size_is_that_of_the_comparison() -> None:
    c = PERCEIVER
    assert (c.num_latents, c.latent_dim, c.depth, c.num_selfs) == (256, 512, 6, 1)
    assert (c.num_heads, c.head_dim, c.cross_dim, c.tie, c.dropout) == (8, 64, 64, "none", 0)
    assert (c.image_size, c.fourier, c.num_classes) == (32, FourierConfig(64, None), 10)


@every_tie
@every_form
def test_each_repeat_runs_the_modules_that_its_tie_assigns(tie: str, form: str) -> None:
    model = Perceiver(replace(SMALL, tie=tie, form=form))
    calls: list[nn.Module] = []
    for module in [*model.cross_blocks, *model.self_blocks]:
        module.register_forward_hook(lambda called, *_: calls.append(called))
    model(images_of(SMALL, 1, torch.float32))
    crosses, selfs = MODULES[tie]
    assert len(model.cross_blocks) == len(set(crosses))
    assert len(model.self_blocks) == len(set(selfs))
    assert all(a is model.cross_blocks[i] for a, i in zip(calls[::2], crosses, strict=True))
    assert all(a is model.self_blocks[i] for a, i in zip(calls[1::2], selfs, strict=True))


@every_tie
def test_a_tied_model_is_an_untied_one_with_equal_weights_and_summed_gradients(tie: str) -> None:
    tied = shaken(Perceiver(replace(SMALL, tie=tie)))
    untied = Perceiver(replace(SMALL, tie="none")).double()
    origin = {name: name for name, _ in untied.named_parameters()}
    for folder, indices in zip(("cross_blocks", "self_blocks"), MODULES[tie], strict=True):
        for i, index in enumerate(indices):
            lead = f"{folder}.{i}."
            origin |= {
                name: f"{folder}.{index}.{name.removeprefix(lead)}"
                for name in origin
                if name.startswith(lead)
            }
    untied.load_state_dict({name: tied.state_dict()[source] for name, source in origin.items()})
    images = images_of(SMALL, 2)
    ours, theirs = tied(images).logits, untied(images).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for logits in (ours, theirs):
        logits.square().sum().backward()
    summed = {name: torch.zeros_like(p) for name, p in tied.named_parameters()}
    for name, parameter in untied.named_parameters():
        assert parameter.grad is not None
        summed[origin[name]] += parameter.grad
    for name, parameter in tied.named_parameters():
        torch.testing.assert_close(parameter.grad, summed[name], rtol=1e-9, atol=1e-9)


@every_tie
@every_form
def test_only_an_untied_model_grows_with_its_depth(tie: str, form: str) -> None:
    config = replace(SMALL, tie=tie, form=form)
    model = Perceiver(config)
    one = sum(
        parameter.numel()
        for module in (model.cross_blocks[-1], model.self_blocks[-1])
        for parameter in module.parameters()
    )
    more = count(replace(config, depth=5)) - count(config)
    assert more == (2 * one if tie == "none" else 0)
    assert count(replace(config, depth=1)) == count(replace(config, depth=1, tie="none"))


@every_tie
def test_repeats_that_share_a_cross_attention_share_its_keys_and_values(tie: str) -> None:
    model, calls = Perceiver(replace(SMALL, depth=5, tie=tie)), []
    for cross in model.cross_blocks:
        cross.data_norm.register_forward_hook(lambda *_: calls.append(1))
    model(images_of(SMALL, 1, torch.float32))
    assert len(calls) == (5 if tie == "none" else 2)


def flops(config: PerceiverConfig, batch: int) -> int:
    with torch.device("meta"):
        model, images = Perceiver(config), images_of(config, batch, torch.float32)
    with FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops()


@every_tie
@every_form
def test_the_cost_is_linear_in_the_pixels(tie: str, form: str) -> None:
    batch, c = 3, replace(SMALL, tie=tie, form=form, image_size=4)
    cost = [flops(replace(c, image_size=side), batch) for side in (4, 8, 12)]
    features = c.num_channels + 2 * (2 * c.fourier.num_bands + 1)
    num_reads = c.depth if tie == "none" else 2
    keys_and_values = num_reads * features * 2 * c.cross_dim
    scores_and_sums = c.depth * 2 * c.num_latents * c.cross_dim
    a_pixel = 2 * batch * (keys_and_values + scores_and_sums)  # two operations per multiplication
    assert cost[1] - cost[0] == (64 - 16) * a_pixel
    assert cost[2] - cost[1] == (144 - 64) * a_pixel
    dim, inner, m = c.latent_dim, c.num_heads * c.head_dim, c.num_latents
    hidden = 12 * dim * dim if form == "package" else 2 * dim * dim
    read = m * (2 * dim * c.cross_dim + hidden)
    self_block = m * (4 * dim * inner + 2 * m * inner + hidden)
    latents = c.depth * (read + c.num_selfs * self_block) + dim * c.num_classes
    assert cost[0] - 16 * a_pixel == 2 * batch * latents


@every_tie
@every_form
def test_permuting_pixels_together_with_their_codes_gives_the_same_logits(
    tie: str, form: str
) -> None:
    config = replace(SMALL, tie=tie, form=form)
    model, images = shaken(Perceiver(config)), images_of(config, 2)
    expected, order = model(images).logits, torch.randperm(9)
    moved = images.flatten(2)[:, :, order].reshape(images.shape)
    assert not torch.allclose(model(moved).logits, expected)
    model.embed.code = model.embed.code[order]
    torch.testing.assert_close(model(moved).logits, expected)


def test_logits_do_not_depend_on_the_order_of_the_latents() -> None:
    model, images = shaken(Perceiver(SMALL)), images_of(SMALL, 2)
    expected = model(images).logits
    with torch.no_grad():
        model.latents.copy_(model.latents[[2, 0, 1]])
    torch.testing.assert_close(model(images).logits, expected)


def test_a_token_is_the_colors_of_a_pixel_then_the_codes_of_its_row_and_column() -> None:
    config = replace(SMALL, fourier=FourierConfig(num_bands=2, max_freq=3.0))
    images = images_of(config, 2, torch.float32)
    tokens = Perceiver(config).embed(images)
    assert tokens.shape == (2, 9, 2 + 2 * (2 * 2 + 1))
    codes = {  # sines, then cosines, of pi p and 3 pi p / 2; position p
        -1: [0, 1, -1, 0, -1],
        0: [0, 0, 1, 1, 0],
        1: [0, -1, -1, 0, 1],
    }
    for index, (row, column) in enumerate(product((-1, 0, 1), repeat=2)):
        expected = torch.tensor([*codes[row], *codes[column]], dtype=torch.float32)
        assert torch.equal(tokens[:, index, :2], images[:, :, row + 1, column + 1])
        for token in tokens[:, index]:
            torch.testing.assert_close(token[2:], expected, rtol=0, atol=1e-6)


def test_frequencies_are_equally_spaced_from_one_to_half_the_sampling_rate() -> None:
    config = replace(SMALL, image_size=5, fourier=FourierConfig(num_bands=4, max_freq=5.0))
    code = Perceiver(config).embed.code
    assert code.shape == (25, 2 * 9)
    scales, positions = [1.0, 1.5, 2.0, 2.5], [-1.0, -0.5, 0.0, 0.5, 1.0]
    for index, pair in enumerate(product(positions, repeat=2)):
        expected = [
            value
            for p in pair
            for value in (
                *(math.sin(math.pi * s * p) for s in scales),
                *(math.cos(math.pi * s * p) for s in scales),
                p,
            )
        ]
        torch.testing.assert_close(code[index], torch.tensor(expected), rtol=0, atol=1e-7)


def test_by_default_the_highest_frequency_is_half_the_side() -> None:
    for side in (5, 8):
        config = replace(SMALL, image_size=side)
        given = replace(config, fourier=FourierConfig(num_bands=2, max_freq=float(side)))
        other = replace(config, fourier=FourierConfig(num_bands=2, max_freq=10.0))
        code = Perceiver(config).embed.code
        assert torch.equal(code, Perceiver(given).embed.code)
        assert not torch.equal(code, Perceiver(other).embed.code)


def test_the_position_code_is_neither_learned_nor_saved() -> None:
    model = Perceiver(SMALL)
    assert "embed.code" in dict(model.named_buffers())
    assert not [key for key in model.state_dict() if "code" in key]


def test_latents_start_from_a_standard_normal_distribution() -> None:
    latents = Perceiver(replace(LEARNER, num_latents=400, latent_dim=400)).latents.detach()
    assert abs(latents.mean()) < 0.01
    assert abs(latents.std() - 1) < 0.01
    assert abs(latents.pow(4).mean() - 3) < 0.1
    assert not torch.allclose(latents[0], latents[1])


def test_the_package_has_biases_only_on_output_projections_and_the_paper_everywhere() -> None:
    def biased(form: str) -> dict[str, bool]:
        model = Perceiver(replace(SMALL, form=form))
        return {
            name.split(".")[-1]: module.bias is not None
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and "attention" in name
        }

    assert biased("package") == {"to_q": False, "to_kv": False, "to_out": True}
    assert biased("paper") == {"to_q": True, "to_kv": True, "to_out": True}


@every_tie
def test_dropout_acts_on_attention_and_feed_forward_only_in_training(tie: str) -> None:
    config, images = replace(SMALL, tie=tie, dropout=0.5), images_of(SMALL, 2, torch.float32)
    for silent in (None, "attention.to_out.weight", "feed_forward.2.weight"):
        model = Perceiver(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if silent and name.endswith(silent):
                    parameter.zero_()
                if silent and name.endswith(silent.replace("weight", "bias")):
                    parameter.zero_()
        assert not torch.equal(model(images).logits, model(images).logits), silent
        model.eval()
        assert torch.equal(model(images).logits, model(images).logits), silent


def test_activation_checkpointing_recomputes_whole_repeats_only_in_training() -> None:
    model, images = Perceiver(SMALL), images_of(SMALL, 1, torch.float32)
    calls: list[int] = []
    for module in model.modules():
        if isinstance(module, GEGLU) or module in [x.data_norm for x in model.cross_blocks]:
            module.register_forward_hook(lambda *_: calls.append(1))

    def count_calls(backward: bool) -> int:
        calls.clear()
        logits = model(images).logits
        if backward:
            logits.sum().backward()
        return len(calls)

    once = 3 * (1 + 1 + 2)  # norm of the data, and a feed-forward after each of three attentions
    assert count_calls(backward=True) == once
    model.set_grad_checkpointing()
    assert count_calls(backward=True) == 2 * once
    with torch.no_grad():
        assert count_calls(backward=False) == once
    model.set_grad_checkpointing(False)
    assert count_calls(backward=True) == once


@every_tie
def test_a_model_with_shared_weights_can_be_saved(tie: str) -> None:
    fourier = FourierConfig(num_bands=2, max_freq=7.0)
    model = Perceiver(replace(SMALL, tie=tie, fourier=fourier))
    assert save(model.state_dict())  # safetensors refuses weights that share their memory


def kept_for_backward(model: Perceiver, images: Tensor) -> int:
    """Count the numbers, except for weights, that a training step keeps for the backward pass."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes() // x.element_size()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        logits = model(images).logits
    assert logits.requires_grad
    return sum(kept.values())


def test_activation_checkpointing_keeps_fewer_numbers() -> None:
    model, images = Perceiver(LEARNER), images_of(LEARNER, 4, torch.float32)
    plain = kept_for_backward(model, images)
    model.set_grad_checkpointing()
    assert kept_for_backward(model, images) < plain / 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 0),
        ("num_channels", 0),
        ("num_classes", 0),
        ("num_latents", 0),
        ("latent_dim", -1),
        ("depth", 0),
        ("num_selfs", 0),
        ("num_heads", 0),
        ("head_dim", 0),
        ("cross_dim", 0),
        ("dropout", 1.0),
    ],
)
def test_a_size_out_of_range_is_an_error(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} must be .* not {value}"):
        replace(SMALL, **{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_bands", 0),
        ("max_freq", 0.0),
        ("max_freq", -3.0),
        ("max_freq", math.inf),
        ("max_freq", 1e7),
    ],
)
def test_a_position_code_out_of_range_is_an_error(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} must be .* not {value}"):
        replace(FourierConfig(), **{field: value})


def test_an_image_of_another_size_and_any_question_are_errors() -> None:
    model = Perceiver(SMALL)
    with pytest.raises(ValueError, match=r"2, 3, 3\), not \(1, 2, 3, 4"):
        model(torch.randn(1, 2, 3, 4))
    with pytest.raises(ValueError, match="no questions"):
        model(torch.randn(1, 2, 3, 3), torch.randn(1, 5))


def training_step(
    model: Perceiver, run: Callable[..., tuple[Tensor, Tensor]], images: Tensor
) -> list[Tensor]:
    model.zero_grad()
    logits, aux_loss = run(images)
    (logits.square().sum() + aux_loss).backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    return [logits, *(gradient.clone() for gradient in gradients if gradient is not None)]


@pytest.mark.compiled
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("tie", "form", "saves_memory"), [("none", "package", False), ("paper", "paper", True)]
)
def test_a_compiled_model_is_one_graph_with_the_same_numbers(
    tie: str, form: str, saves_memory: bool
) -> None:
    torch.compiler.reset()
    model = Perceiver(replace(LEARNER, tie=tie, form=form))
    model.set_grad_checkpointing(saves_memory)
    fast = torch.compile(model, fullgraph=True, backend="aot_eager")
    for step in range(2):
        images = images_of(LEARNER, 4, torch.float32)
        with torch.compiler.set_stance("default" if step == 0 else "fail_on_recompile"):
            ours = training_step(model, fast, images)
        theirs = training_step(model, model, images)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.compiled
@pytest.mark.thorough
def test_a_compiled_model_evaluates_like_the_eager_one() -> None:
    torch.compiler.reset()
    model = Perceiver(replace(LEARNER, dropout=0.2)).eval()
    fast = torch.compile(model, fullgraph=True, backend="aot_eager")
    images = images_of(LEARNER, 3, torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(fast(images)[0], model(images).logits, rtol=1e-4, atol=1e-5)
