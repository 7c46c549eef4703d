"""Traces compared with a forward pass by hand and with hooks of the test."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from associative_transformer.analysis.trace import trace, trace_all
from associative_transformer.interface import PADDING, Batch
from associative_transformer.models import ModelConfig, build_model
from associative_transformer.models.ait import AiT, AiTConfig
from associative_transformer.models.layers import SelfAttention
from associative_transformer.models.vit import ViT, ViTConfig
from associative_transformer.workspace import GlobalWorkspace
from associative_transformer.workspace_config import WorkspaceConfig
from making.tiny import TINY

NUM_PATCHES, QUESTION_DIM = 4, 5
AIT = AiTConfig(
    image_size=8,
    patch_size=4,
    num_classes=3,
    embed_dim=12,
    depth=3,
    num_heads=2,
    head_dim=6,
    mlp_ratio=1.0,
    workspace=WorkspaceConfig(num_priors=4, prior_dim=6, num_heads=2, bottleneck=5, dropout=0.5),
)
VIT = ViTConfig(
    image_size=8,
    patch_size=4,
    num_classes=3,
    embed_dim=12,
    depth=2,
    num_heads=2,
    head_dim=6,
    mlp_ratio=1.0,
)
CONFIGS: dict[str, AiTConfig | ViTConfig] = {
    "ait": AIT,
    "ait-two-steps": replace(AIT, workspace=replace(AIT.workspace, num_steps=2)),
    "ait-without-attention": replace(AIT, use_self_attention=False),
    "ait-cross-attention": replace(AIT, read="cross_attention"),
    "ait-questions": replace(AIT, question_dim=QUESTION_DIM, pos="learned"),
    "vit": VIT,
    "vit-class-token": replace(VIT, head="cls", pos="learned"),
    "vit-questions": replace(VIT, head="cls", question_dim=QUESTION_DIM),
}
WITH_QUESTIONS = {name: config for name, config in CONFIGS.items() if config.question_dim}
OTHERS = {kind: config for kind, config in TINY.items() if kind not in ("ait", "vit")}
every_model = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
every_other_model = pytest.mark.parametrize("config", OTHERS.values(), ids=OTHERS)
every_model_with_questions = pytest.mark.parametrize(
    "config", WITH_QUESTIONS.values(), ids=WITH_QUESTIONS
)


def make_batch(config: ModelConfig, size: int = 3) -> Batch:
    question_dim, side = getattr(config, "question_dim", 0), config.image_size
    questions = torch.randn(size, question_dim) if question_dim else None
    images = torch.randn(size, config.num_channels, side, side)
    return Batch(images, questions, torch.arange(size) % config.num_classes)


def add_padding(batch: Batch) -> Batch:
    """Put rows of padding between and after the real ones."""
    rows = torch.tensor([0, 1, 1, 2, 0, 0])
    labels = batch.labels[rows].masked_fill(
        torch.tensor([False, False, True, False, True, True]), PADDING
    )
    questions = None if batch.questions is None else batch.questions[rows]
    return Batch(batch.images[rows], questions, labels)


def record_inputs(model: nn.Module, batch: Batch, kind: type) -> list[Tensor]:
    """Return the inputs of all modules of a class in a forward pass of the model."""
    inputs: list[Tensor] = []

    def record(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        inputs.append(arguments[0])

    hooks = [m.register_forward_pre_hook(record) for m in model.modules() if isinstance(m, kind)]
    with torch.no_grad():
        model(batch.images, batch.questions)
    for hook in hooks:
        hook.remove()
    return inputs


def run_by_hand(
    model: AiT | ViT, batch: Batch
) -> tuple[list[tuple[Tensor | None, Tensor | None]], Tensor]:
    """Return the inputs of attention and workspace in each layer, and the logits."""
    x, layers = model.embed(batch.images, batch.questions), []
    for block in cast(Any, model.blocks):
        normed = None if block.attention is None else block.norm1(x)
        x = x if normed is None else x + block.attention(normed)
        fed = block.feed_forward(block.norm2(x))
        if isinstance(model, AiT):
            u = block.norm3(fed)
            x = x + u + block.workspace(u).read
            layers.append((normed, u))
        else:
            x = x + fed
            layers.append((normed, None))
    return layers, model.head(x)


def assert_same(one: Tensor | None, other: Tensor | None) -> None:
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        assert torch.equal(one, other)


@every_model
@torch.no_grad()
def test_a_trace_agrees_with_a_forward_pass_by_hand(config: AiTConfig | ViTConfig) -> None:
    model, batch = build_model(config).eval(), make_batch(config)
    assert isinstance(model, AiT | ViT)
    layers, logits = run_by_hand(model, batch)
    traced = trace(model, batch)
    assert torch.equal(traced.logits, logits)
    assert len(traced.layers) == config.depth
    for layer, (attention_input, workspace_input) in zip(traced.layers, layers, strict=True):
        assert_same(layer.attention_input, attention_input)
        assert_same(layer.workspace_input, workspace_input)


@every_model
def test_the_logits_are_those_of_the_model(config: AiTConfig | ViTConfig) -> None:
    model, batch = build_model(config).eval(), make_batch(config)
    with torch.no_grad():
        expected = model(batch.images, batch.questions).logits
    assert torch.equal(trace(model, batch).logits, expected)


@every_model
def test_rows_of_padding_are_left_out(config: AiTConfig | ViTConfig) -> None:
    model, batch = build_model(config).eval(), make_batch(config)
    traced, padded = trace(model, batch), trace(model, add_padding(batch))
    assert torch.equal(padded.images, batch.images)
    assert torch.equal(padded.labels, batch.labels)
    assert torch.equal(padded.logits, traced.logits)
    for ours, expected in zip(padded.layers, traced.layers, strict=True):
        assert_same(ours.workspace_input, expected.workspace_input)
        assert_same(ours.attention, expected.attention)


@every_model
def test_attention_is_a_softmax_computed_in_loops(config: AiTConfig | ViTConfig) -> None:
    model, batch = build_model(config).eval(), make_batch(config, size=2)
    attentions = [module for module in model.modules() if isinstance(module, SelfAttention)]
    inputs = record_inputs(model, batch, SelfAttention)
    traced = trace(model, batch)
    if isinstance(config, AiTConfig) and not config.use_self_attention:
        assert [layer.attention for layer in traced.layers] == [None] * config.depth
        return
    assert len(traced.layers) == len(inputs) == config.depth
    for layer, module, x in zip(traced.layers, attentions, inputs, strict=True):
        q_weight, k_weight, _ = module.to_qkv.weight.detach().chunk(3)
        assert layer.self_attention is module
        assert layer.attention is not None
        assert layer.attention.shape == (2, 2, model.embed.num_tokens, model.embed.num_tokens)
        for image in range(2):
            for head in range(2):
                columns = slice(6 * head, 6 * head + 6)
                q, k = (x[image] @ weight[columns].T for weight in (q_weight, k_weight))
                for token, row in enumerate(layer.attention[image, head]):
                    power = [math.exp(float(q[token] @ other) / math.sqrt(6)) for other in k]
                    expected = torch.tensor([p / sum(power) for p in power])
                    torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-6)


@every_model
def test_the_workspace_input_is_what_the_workspace_receives(
    config: AiTConfig | ViTConfig,
) -> None:
    model, batch = build_model(config).eval(), make_batch(config)
    traced = trace(model, batch)
    if isinstance(config, ViTConfig):
        for layer in traced.layers:
            assert layer.workspace is None
            assert layer.workspace_input is None
        return
    workspaces = [block.workspace for block in model.blocks]
    inputs = record_inputs(model, batch, GlobalWorkspace)
    for layer, workspace, expected in zip(traced.layers, workspaces, inputs, strict=True):
        assert layer.workspace is workspace
        assert layer.workspace_input is not None
        assert torch.equal(layer.workspace_input, expected)


def count_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


@every_model
@pytest.mark.parametrize("is_training", [False, True])
def test_a_trace_does_not_change_the_model(
    config: AiTConfig | ViTConfig, is_training: bool
) -> None:
    model, batch = build_model(config).train(is_training), make_batch(config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    traced = trace(model, batch)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {module.training for module in model.modules()} == {is_training}
    assert count_hooks(model) == 0
    assert not traced.logits.requires_grad
    for layer in traced.layers:
        assert layer.workspace_input is None or not layer.workspace_input.requires_grad
        assert layer.attention is None or not layer.attention.requires_grad


def test_a_trace_that_fails_does_not_change_the_model() -> None:
    model, batch = AiT(AIT).train(), make_batch(AIT)
    with pytest.raises(ValueError, match="no questions"):
        trace(model, batch._replace(questions=torch.randn(3, QUESTION_DIM)))
    assert {module.training for module in model.modules()} == {True}
    assert count_hooks(model) == 0


def test_a_model_in_training_mode_is_traced_in_evaluation_mode() -> None:
    model, batch = AiT(AIT), make_batch(AIT)
    in_training = trace(model.train(), batch).logits
    assert torch.equal(in_training, trace(model.eval(), batch).logits)


@every_model_with_questions
def test_the_patches_are_the_last_tokens(config: AiTConfig | ViTConfig) -> None:
    model, batch = build_model(config), make_batch(config)
    assert model.embed.num_patches == NUM_PATCHES
    assert batch.questions is not None
    other_questions = batch._replace(questions=batch.questions + torch.randn(3, QUESTION_DIM))
    one, other = (trace(model, b).layers[0].attention_input for b in (batch, other_questions))
    assert one is not None
    assert other is not None
    differs = (one != other).any(dim=-1).any(dim=0).tolist()
    position = int(getattr(config, "head", "") == "cls")  # the class token precedes the question
    assert differs == [i == position for i in range(position + 1 + NUM_PATCHES)]


def test_a_question_changes_the_workspace_input_of_every_token() -> None:
    config = CONFIGS["ait-questions"]
    model, batch = build_model(config), make_batch(config)
    assert batch.questions is not None
    negated = batch._replace(questions=-batch.questions)
    one, other = (trace(model, b).layers[0].workspace_input for b in (batch, negated))
    assert one is not None
    assert (one != other).any(dim=-1).all()


@every_other_model
@pytest.mark.parametrize("is_training", [False, True])
def test_every_other_model_is_traced_too(config: ModelConfig, is_training: bool) -> None:
    model, batch = build_model(config).train(is_training), make_batch(config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    traced = trace(model, add_padding(batch))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {module.training for module in model.modules()} == {is_training}
    assert count_hooks(model) == 0
    with torch.no_grad():
        expected = model.eval()(batch.images, batch.questions).logits
    assert torch.equal(traced.logits, expected)
    assert torch.equal(traced.labels, batch.labels)
    assert len(traced.layers) == (config.depth if hasattr(model, "blocks") else 0)
    for name, kind in (("attention_input", SelfAttention), ("workspace_input", GlobalWorkspace)):
        inputs = [getattr(layer, name) for layer in traced.layers]
        inputs = [x for x in inputs if x is not None]
        for x, expected_input in zip(inputs, record_inputs(model, batch, kind), strict=True):
            assert torch.equal(x, expected_input)


def test_a_block_called_twice_is_two_layers() -> None:
    model, batch = ViT(VIT).eval(), make_batch(VIT)
    model.blocks[1] = model.blocks[0]
    traced = trace(model, batch)
    inputs = record_inputs(model, batch, SelfAttention)
    assert len(traced.layers) == 2
    for layer, expected in zip(traced.layers, inputs, strict=True):
        assert_same(layer.attention_input, expected)


def test_batches_are_traced_one_at_a_time() -> None:
    sizes = []

    def batches() -> Iterator[Batch]:
        for size in (3, 2, 1):
            sizes.append(size)
            yield make_batch(VIT, size)

    traces = trace_all(ViT(VIT), batches())
    assert len(next(iter(traces)).labels) == 3
    assert sizes == [3]
    assert [len(traced.labels) for traced in traces] == [2, 1]
