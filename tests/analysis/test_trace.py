"""What passes through the layers, against hooks in the model itself."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from associative_transformer.analysis.trace import trace, trace_all
from associative_transformer.interface import PADDING, Batch, UserError
from associative_transformer.models import (
    AiT,
    AiTConfig,
    Dense,
    DenseConfig,
    ViT,
    ViTConfig,
    build_model,
)
from associative_transformer.models.layers import SelfAttention
from associative_transformer.workspace import WorkspaceConfig

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
CONFIGS = {
    "ait": AIT,
    "ait-two-steps": replace(AIT, workspace=replace(AIT.workspace, num_steps=2)),
    "ait-without-attention": replace(AIT, use_self_attention=False),
    "ait-cross-attention": replace(AIT, read="cross_attention"),
    "ait-questions": replace(AIT, question_dim=QUESTION_DIM, pos="learned"),
    "vit": VIT,
    "vit-class-token": replace(VIT, head="cls", pos="learned"),
    "vit-questions": replace(VIT, head="cls", question_dim=QUESTION_DIM),
}
ASKED = {name: config for name, config in CONFIGS.items() if config.question_dim}
every_model = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
every_asked = pytest.mark.parametrize("config", ASKED.values(), ids=ASKED)


def make_batch(config: AiTConfig | ViTConfig, size: int = 3) -> Batch:
    questions = torch.randn(size, QUESTION_DIM) if config.question_dim else None
    return Batch(torch.randn(size, 3, 8, 8), questions, torch.arange(size) % 3)


def make_padded(batch: Batch) -> Batch:
    """Put rows of padding between the real ones and behind them."""
    rows = torch.tensor([0, 1, 1, 2, 0, 0])
    labels = batch.labels[rows].masked_fill(
        torch.tensor([False, False, True, False, True, True]), PADDING
    )
    questions = None if batch.questions is None else batch.questions[rows]
    return Batch(batch.images[rows], questions, labels)


def overhear(model: nn.Module, batch: Batch, kind: type) -> list[Tensor]:
    """Give what the modules of a kind are called with in the model's own forward."""
    heard: list[Tensor] = []

    def listen(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        heard.append(arguments[0])

    hooks = [m.register_forward_pre_hook(listen) for m in model.modules() if isinstance(m, kind)]
    with torch.no_grad():
        model(batch.images, batch.questions)
    for hook in hooks:
        hook.remove()
    return heard


@every_model
def test_the_logits_are_those_of_the_model(config: AiTConfig | ViTConfig) -> None:
    model, batch = build_model(config).eval(), make_batch(config)
    with torch.no_grad():
        expected = model(batch.images, batch.questions).logits
    assert torch.equal(trace(model, batch).logits, expected)


@every_model
def test_rows_of_padding_are_left_out(config: AiTConfig | ViTConfig) -> None:
    model, batch = build_model(config).eval(), make_batch(config)
    traced, padded = trace(model, batch), trace(model, make_padded(batch))
    assert torch.equal(padded.images, batch.images)
    assert torch.equal(padded.labels, batch.labels)
    assert torch.equal(padded.logits, traced.logits)
    for mine, other in zip(padded.layers, traced.layers, strict=True):
        for name in ("handed", "attention"):
            if (expected := getattr(other, name)) is None:
                assert getattr(mine, name) is None
            else:
                assert torch.equal(getattr(mine, name), expected)


@every_model
def test_attention_is_the_softmax_that_a_loop_finds(config: AiTConfig | ViTConfig) -> None:
    model, batch = build_model(config).eval(), make_batch(config, size=2)
    attentions = [module for module in model.modules() if isinstance(module, SelfAttention)]
    seen = overhear(model, batch, SelfAttention)
    traced = trace(model, batch)
    if isinstance(config, AiTConfig) and not config.use_self_attention:
        assert [layer.attention for layer in traced.layers] == [None] * config.depth
        return
    assert len(traced.layers) == len(seen) == config.depth
    for layer, module, x in zip(traced.layers, attentions, seen, strict=True):
        q_weight, k_weight, _ = module.to_qkv.weight.detach().chunk(3)
        assert layer.attention is not None
        assert layer.attention.shape == (2, 2, model.embed.num_tokens, model.embed.num_tokens)
        for image in range(2):
            for head in range(2):
                columns = slice(6 * head, 6 * head + 6)
                q, k = (x[image] @ weight[columns].T for weight in (q_weight, k_weight))
                for token, found in enumerate(layer.attention[image, head]):
                    power = [math.exp(float(q[token] @ other) / math.sqrt(6)) for other in k]
                    expected = torch.tensor([p / sum(power) for p in power])
                    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@every_model
def test_handed_is_what_the_workspace_of_the_layer_gets(config: AiTConfig | ViTConfig) -> None:
    model, batch = build_model(config).eval(), make_batch(config)
    traced = trace(model, batch)
    if isinstance(config, ViTConfig):
        assert all(layer.handed is None and layer.workspace is None for layer in traced.layers)
        return
    workspaces = [block.workspace for block in model.blocks]
    got = overhear(model, batch, type(workspaces[0]))
    for layer, workspace, expected in zip(traced.layers, workspaces, got, strict=True):
        assert layer.workspace is workspace
        assert layer.handed is not None
        assert torch.equal(layer.handed, expected)


@every_model
@pytest.mark.parametrize("is_training", [False, True])
def test_nothing_of_the_model_moves_and_its_mode_stays(
    config: AiTConfig | ViTConfig, is_training: bool
) -> None:
    model, batch = build_model(config).train(is_training), make_batch(config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    traced = trace(model, batch)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {module.training for module in model.modules()} == {is_training}
    assert not traced.logits.requires_grad
    for layer in traced.layers:
        assert layer.handed is None or not layer.handed.requires_grad
        assert layer.attention is None or not layer.attention.requires_grad


def test_a_model_in_training_is_traced_as_in_evaluation() -> None:
    model, batch = AiT(AIT), make_batch(AIT)
    in_training = trace(model.train(), batch).logits
    assert torch.equal(in_training, trace(model.eval(), batch).logits)


@every_model
def test_patches_are_counted_without_class_token_and_question(
    config: AiTConfig | ViTConfig,
) -> None:
    model = build_model(config)
    others = bool(config.question_dim) + (getattr(config, "head", "") == "cls")
    assert model.embed.num_tokens == NUM_PATCHES + others
    assert trace(model, make_batch(config)).num_patches == NUM_PATCHES


@every_asked
def test_the_patches_are_the_last_tokens(config: AiTConfig | ViTConfig) -> None:
    model, batch = build_model(config), make_batch(config)
    assert batch.questions is not None
    asked_else = batch._replace(questions=batch.questions + torch.randn(3, QUESTION_DIM))
    one, two = (trace(model, b).layers[0].seen for b in (batch, asked_else))
    assert one is not None
    assert two is not None
    differs = (one != two).any(dim=-1).any(dim=0).tolist()
    place = int(getattr(config, "head", "") == "cls")  # the class token comes before the question
    assert differs == [i == place for i in range(NUM_PATCHES + place + 1)]


def test_a_question_changes_what_all_tokens_hand_over() -> None:
    config = CONFIGS["ait-questions"]
    model, batch = build_model(config), make_batch(config)
    assert batch.questions is not None
    asked_else = batch._replace(questions=-batch.questions)
    one, two = (trace(model, b).layers[0].handed for b in (batch, asked_else))
    assert (one != two).any(dim=-1).all()


def test_a_model_without_self_attention_among_tokens_has_no_trace() -> None:
    model = Dense(DenseConfig(image_size=8, patch_size=4, num_classes=3, embed_dim=8))
    with pytest.raises(UserError, match="no trace of a Dense: take a run of AiT or ViT"):
        trace(model, make_batch(VIT))


def test_batches_are_traced_one_at_a_time() -> None:
    taken = []

    def batches() -> Iterator[Batch]:
        for size in (3, 2, 1):
            taken.append(size)
            yield make_batch(VIT, size)

    traces = trace_all(ViT(VIT), batches())
    assert len(next(iter(traces)).labels) == 3
    assert taken == [3]
    assert [len(traced.labels) for traced in traces] == [2, 1]
