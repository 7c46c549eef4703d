"""The contract of every model; then sizes, saving, activation checkpointing, learning."""

import copy
import doctest
import importlib
import json
import math
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import huggingface_hub.hub_mixin
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from associative_transformer.interface import ModelOutput, UserError
from associative_transformer.models import (
    MODELS,
    ModelConfig,
    build_model,
    load_model,
)
from associative_transformer.models.ait import AIT_BASE, AIT_MEDIUM, AIT_SMALL, AiT, AiTConfig
from associative_transformer.models.dense import DENSE_BASE, DENSE_SMALL, Dense
from associative_transformer.models.pretrained import PretrainedModel
from associative_transformer.models.relation_network import CNN_MLP, CNN_RN
from associative_transformer.models.vit import VIT_BASE, VIT_MEDIUM, VIT_SMALL, ViT, ViTConfig
from associative_transformer.models.weight_count import count_weights
from making.tiny import QUESTION_DIM, TINY, VARIANTS, count_parameters
from twins import naive

BATCH = 4
AIT, VIT, DENSE = TINY["ait"], TINY["vit"], TINY["dense"]
COORDINATION, PERCEIVER, SET_TRANSFORMER = (
    TINY[kind] for kind in ("coordination", "perceiver", "set-transformer")
)
BRIMS, LUNA, RELATIONS = TINY["brims"], TINY["luna"], TINY["relation-network"]


def with_memory(**changes: Any) -> AiTConfig:  # noqa: ANN401
    return replace(AIT, workspace=replace(AIT.workspace, **changes))


def with_question() -> dict[str, ModelConfig]:
    """Return every model of the table that takes questions, with one."""
    return {
        f"{kind}-question": replace(config, question_dim=QUESTION_DIM)
        for kind, config in TINY.items()
        if hasattr(config, "question_dim")
    }


def with_dropout() -> dict[str, ModelConfig]:
    """Return every model of the table that has dropout, with some."""
    return {
        f"{kind}-dropout": replace(config, dropout=0.5)
        for kind, config in TINY.items()
        if hasattr(config, "dropout")
    }


CONFIGS: dict[str, ModelConfig] = {
    **TINY,
    **with_question(),
    **with_dropout(),
    **VARIANTS,
    "ait-one-block": replace(AIT, depth=1),
    "ait-without-bottleneck": with_memory(bottleneck=None),
    "ait-without-self-attention": replace(AIT, use_self_attention=False),
    "ait-without-hopfield": replace(AIT, read="cross_attention"),
    "ait-without-balance-loss": with_memory(balance_weight=0.0),
    "ait-reset-memory": with_memory(reset_each_epoch=True),
    "ait-three-steps": with_memory(num_steps=3),
    "ait-workspace-dropout": with_memory(dropout=0.1),
    "ait-detached": with_memory(differentiable_write=False),
    "ait-detached-unbalanced": with_memory(differentiable_write=False, balance_weight=0.0),
    "ait-positions": replace(AIT, pos="learned"),
    "ait-gray": replace(AIT, num_channels=1),
    "vit-class-token": replace(VIT, head="cls", pos="learned"),
    "vit-class-token-question": replace(VIT, head="cls", question_dim=QUESTION_DIM),
    "coordination-unshared": replace(COORDINATION, share_layers=False),
    "coordination-layer": replace(COORDINATION, slots=replace(COORDINATION.slots, scope="layer")),
    "coordination-soft": replace(COORDINATION, slots=replace(COORDINATION.slots, bottleneck=None)),
    "perceiver-tied": replace(PERCEIVER, tie="after_first"),
    "perceiver-paper-form": replace(PERCEIVER, form="paper"),
    "perceiver-paper-tie": replace(PERCEIVER, tie="paper", depth=3),
    "perceiver-tied-paper-form": replace(PERCEIVER, tie="after_first", form="paper", depth=3),
    "perceiver-of-the-paper": replace(PERCEIVER, tie="paper", form="paper", num_selfs=2),
    "set-transformer-pooled": replace(SET_TRANSFORMER, pool="pma", pos="none"),
    "set-transformer-decoder": replace(SET_TRANSFORMER, pool="pma", decoder_depth=1),
    "set-transformer-without-norms": replace(SET_TRANSFORMER, use_norm=False),
    "brims-three-layers": replace(BRIMS, depth=3),
    "brims-both-dropouts": replace(BRIMS, dropout=0.5, attention_dropout=0.1),
    "luna-tied": replace(LUNA, is_tied=True),
    "luna-pixels": replace(LUNA, vocabulary=16, patch_size=1),
    "luna-gray-pixels": replace(LUNA, vocabulary=16, patch_size=1, num_channels=1),
    "luna-set": replace(LUNA, pos="none"),
    "luna-pixel-set": replace(LUNA, vocabulary=16, patch_size=1, pos="none"),
    "luna-both-dropouts": replace(LUNA, dropout=0.3, attention_dropout=0.1),
    "dense-positions": replace(DENSE, pos="learned"),
    "relation-network-triples": replace(RELATIONS, num_objects=3),
}

DETACHED = {"to_v.weight", "to_prior.weight", "norm.weight", "norm.bias"}
WITHOUT_GRADIENT = {  # parameters of `workspace` that get no gradient, and why
    "ait-detached": DETACHED,  # only the detached write uses them
    # queries and keys would learn only from the balance loss, which is off
    "ait-detached-unbalanced": DETACHED | {"to_q.weight", "to_k.weight"},
    # queries and keys learn from the balance loss; nothing is read
    "ait-without-read": DETACHED | {"to_attractor.weight", "to_attractor.bias"},
}

WITHOUT_EFFECT = {  # parameters whose gradient is zero
    # attention to one row, from a single seed or inducing point, does not depend on its key
    name: {f"pool.{sab}.mab.to_k.{leaf}" for sab in (1, 2) for leaf in ("weight", "bias")}
    for name in CONFIGS
    if "decoder" in name
} | {"set-transformer-one-block": {"blocks.0.mab1.to_k.weight", "blocks.0.mab1.to_k.bias"}}

BFLOAT16_TOLERANCE = {"brims": 0.01}  # of the loss, by the kind of the model; 0.05 for the others

every_config = pytest.mark.parametrize("name", CONFIGS)
every_model = pytest.mark.parametrize("name", TINY)
every_transformer = pytest.mark.parametrize(  # the others have no blocks to recompute
    "name", [name for name, config in CONFIGS.items() if hasattr(config, "depth")]
)
MORE_THAT_LEARN = (
    "ait-detached",
    "ait-image",
    "ait-image-attention",
    "ait-image-head-question",
    "ait-image-competition-dropout",
    "ait-without-read",
    "vit-output-norm",
    "vit-class-token",
    "coordination-unshared",
    "coordination-soft",
    "coordination-unshared-soft",
    "perceiver-tied",
    "perceiver-of-the-paper",
    "set-transformer-pooled",
    "set-transformer-question",
    "set-transformer-set-decoder",
    "set-transformer-set-decoder-question",
    "set-transformer-without-norms",
    "luna-tied",
    "luna-pixels",
    "luna-pixel-set",
    "relation-network-triples",
)


@dataclass
class Example:
    images: Tensor
    questions: Tensor | None
    labels: Tensor


def example(config: ModelConfig, batch: int = BATCH) -> Example:
    shape = (batch, config.num_channels, config.image_size, config.image_size)
    question_dim = getattr(config, "question_dim", 0)
    questions = torch.randn(batch, question_dim) if question_dim else None
    # some models look up pixels, which are not normalized
    draw = torch.rand if getattr(config, "takes_pixels", False) else torch.randn
    return Example(draw(shape), questions, torch.randint(config.num_classes, (batch,)))


def shaken(config: ModelConfig) -> PretrainedModel:
    """Return a model with noise on all weights, so that a forgotten bias would show."""
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def loss_of(model: nn.Module, data: Example) -> Tensor:
    output = model(data.images, data.questions)
    return cross_entropy(output.logits, data.labels) + output.aux_loss


def memories(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@every_config
def test_a_model_returns_logits_and_a_finite_loss(name: str) -> None:
    config = CONFIGS[name]
    model, data = build_model(config), example(config)
    assert model.config == config and model.training
    for training in (True, False):
        output = model.train(training)(data.images, data.questions)
        assert isinstance(output, ModelOutput)
        assert output.logits.shape == (BATCH, config.num_classes)
        assert output.aux_loss.shape == ()
        assert output.logits.isfinite().all() and output.aux_loss.isfinite()


@every_config
def test_every_parameter_receives_a_gradient(name: str) -> None:
    config = CONFIGS[name]
    model, missing = build_model(config), set()
    loss_of(model, example(config)).backward()
    for key, gradient in gradients(model).items():
        if gradient is None:
            missing.add(key)
        else:
            assert gradient.isfinite().all(), key
            assert gradient.any() or key in WITHOUT_EFFECT.get(name, ()), key
    leaves = WITHOUT_GRADIENT.get(name, set())
    assert missing == {
        f"blocks.{i}.workspace.{leaf}" for leaf in leaves for i in range(config.depth)
    }


@every_config
def test_the_state_dict_restores_the_model(name: str) -> None:
    config = CONFIGS[name]
    model, other, data = shaken(config), build_model(config), example(config)
    loss_of(model, data)  # moves the memory
    other.load_state_dict(model.state_dict())
    ours = model.eval()(data.images, data.questions).logits
    assert torch.equal(other.eval()(data.images, data.questions).logits, ours)


@every_config
def test_saving_and_loading_restores_configuration_and_answers(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = CONFIGS[name]
    model, data = shaken(config), example(config)
    loss_of(model, data)
    model.eval().save_pretrained(tmp_path)
    expected = model(data.images, data.questions)
    for loaded in (type(model).from_pretrained(tmp_path), load_model(str(tmp_path))):
        assert type(loaded) is type(model)
        assert loaded.config == config
        assert not loaded.training
        assert torch.equal(loaded(data.images, data.questions).logits, expected.logits)
    assert capsys.readouterr().out == ""


@every_config
def test_in_evaluation_the_logits_of_an_image_do_not_depend_on_its_neighbors(name: str) -> None:
    config = CONFIGS[name]
    model, data = shaken(config).double().eval(), example(config, 6)
    images, questions = data.images.double(), data.questions
    questions = None if questions is None else questions.double()
    before = memories(model)
    together = model(images, questions)
    assert together.aux_loss == 0
    for rows in ([0], [5], [4, 1], [2, 2, 3]):
        alone = model(images[rows], None if questions is None else questions[rows]).logits
        torch.testing.assert_close(alone, together.logits[rows])
    for key, memory in memories(model).items():
        assert torch.equal(memory, before[key]), key


@every_transformer
def test_activation_checkpointing_changes_no_number(name: str) -> None:
    config = CONFIGS[name]
    plain, data = build_model(config), example(config)
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    for step in range(2):
        torch.manual_seed(step)
        expected = loss_of(plain, data)
        expected.backward()
        torch.manual_seed(step)
        loss = loss_of(saving, data)
        moved = memories(saving)
        loss.backward()
        assert torch.equal(loss, expected)
        for key, memory in memories(plain).items():
            assert torch.equal(moved[key], memory), key  # moved by the forward
            assert torch.equal(memories(saving)[key], memory), key  # and not again
        for key, gradient in gradients(plain).items():
            other = gradients(saving)[key]
            assert (gradient is None) == (other is None), key
            assert gradient is None or other is None or torch.equal(gradient, other), key


@pytest.mark.parametrize("name", ["ait", "vit", "dense"])
def test_activation_checkpointing_recomputes_only_in_training(name: str) -> None:
    model, data, calls = build_model(CONFIGS[name]), example(CONFIGS[name]), []
    for module in model.modules():
        if isinstance(module, nn.GELU):
            module.register_forward_hook(lambda *_: calls.append(1))

    def count_calls(backward: bool) -> int:
        calls.clear()
        loss = loss_of(model, data)
        if backward:
            loss.backward()
        return len(calls)

    assert count_calls(backward=True) == 2
    model.set_grad_checkpointing()
    assert count_calls(backward=True) == 4
    with torch.no_grad():
        assert count_calls(backward=False) == 2
    model.set_grad_checkpointing(False)
    assert count_calls(backward=True) == 2


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in WITHOUT_GRADIENT])
def test_bfloat16_autocast_trains_in_float32(name: str) -> None:
    config = CONFIGS[name]
    model, data = build_model(config), example(config)
    exact = copy.deepcopy(model)(data.images, data.questions)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(data.images, data.questions)
        loss = cross_entropy(output.logits, data.labels) + output.aux_loss
    loss.backward()
    if "dropout" not in name:  # its masks differ between the two precisions
        tolerance = BFLOAT16_TOLERANCE.get(config.kind, 0.05)
        exact_loss = cross_entropy(exact.logits, data.labels) + exact.aux_loss
        torch.testing.assert_close(loss.float(), exact_loss, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(output.logits.float(), exact.logits, rtol=0.05, atol=0.05)
    for key, memory in memories(model).items():
        if not key.endswith("num_batches_tracked"):  # BatchNorm counts in integers
            assert memory.dtype == torch.float32, key
    for key, gradient in gradients(model).items():
        assert gradient is not None and gradient.dtype == torch.float32, key
        assert gradient.isfinite().all(), key
        assert gradient.any() or key in WITHOUT_EFFECT.get(name, ()), key


@pytest.mark.parametrize(
    "name",  # BRIMs needs more steps, and learns in its own file
    [*(kind for kind in TINY if kind != "brims"), *MORE_THAT_LEARN],
)
def test_a_model_overfits_one_small_batch(name: str) -> None:
    config = CONFIGS[name]
    model, data = build_model(config), example(config, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss_of(model, data).backward()
        optimizer.step()
        output = model(data.images, data.questions)
        loss = cross_entropy(output.logits, data.labels)
        if loss < 0.05:
            break
    assert loss < 0.05
    assert (output.logits.argmax(dim=-1) == data.labels).all()


@pytest.mark.parametrize("name", ["vit", "vit-class-token"])
def test_a_vit_adds_attention_and_feed_forward_to_normalized_tokens(name: str) -> None:
    config = CONFIGS[name]
    model, data = build_model(config), example(config)
    assert isinstance(model, ViT)
    x = model.embed(data.images)
    for block in model.blocks:
        x = x + block.attention(block.norm1(x))
        x = x + block.feed_forward(block.norm2(x))
    expected = model.head(x)
    if name == "vit-class-token":
        expected = model.head.to_logits(model.head.norm(x[:, 0]))
    torch.testing.assert_close(model(data.images).logits, expected)


def test_a_dense_model_processes_each_token_independently() -> None:
    config = CONFIGS["dense-question"]
    model, data = build_model(config).double(), example(config, 2)
    assert isinstance(model, Dense) and data.questions is not None
    blocks = [
        tuple(
            naive.Affine(layer.weight, layer.bias)
            for layer in (block.norm, block.feed_forward[0], block.feed_forward[2])
        )
        for block in model.blocks
    ]
    images, questions = data.images.double(), data.questions.double()
    tokens = [naive.dense(x, blocks) for x in model.embed(images, questions)]
    expected = model.head(torch.stack(tokens))
    logits = model(images, questions).logits
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    cotangent, parameters = torch.randn_like(expected), list(model.parameters())
    mine = torch.autograd.grad(logits, parameters, cotangent)
    for a, b in zip(mine, torch.autograd.grad(expected, parameters, cotangent), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_the_tokens_of_a_dense_model_meet_only_in_its_head() -> None:
    config = CONFIGS["dense-question"]
    model, data = build_model(config).eval(), example(config, 1)
    captured: list[Tensor] = []
    model.get_submodule("head").register_forward_pre_hook(
        lambda _, args: captured.append(args[0][0])
    )
    other = data.images.clone()
    other[:, :, 2:4, 6:8] *= -1  # the patch in row 1, column 3 of 4 by 4, behind the question
    before, after = (model(images, data.questions).logits for images in (data.images, other))
    assert (captured[0] != captured[1]).any(dim=-1).nonzero().flatten().tolist() == [1 + 1 * 4 + 3]
    assert not torch.allclose(before, after)


def test_without_self_attention_a_block_starts_with_the_feed_forward() -> None:
    model = build_model(CONFIGS["ait-without-self-attention"]).eval()
    block, x = model.get_submodule("blocks.0"), torch.randn(2, 16, AIT.embed_dim)
    u = block.norm3(block.feed_forward(block.norm2(x)))
    expected = x + u + block.workspace(u).read
    torch.testing.assert_close(block(x).tokens, expected)


def test_without_hopfield_a_block_reads_the_attractors_by_attention() -> None:
    model = build_model(CONFIGS["ait-without-hopfield"]).eval()
    block, x = model.get_submodule("blocks.0"), torch.randn(2, 16, AIT.embed_dim)
    workspace, inputs = block.workspace, []
    workspace.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    block(x)
    (u,) = inputs
    attractors = workspace.to_attractor(workspace.priors)
    read = workspace.reader(u, attractors.expand(2, -1, -1))
    torch.testing.assert_close(workspace(u).read, read)
    q, k = workspace.reader.to_q.weight, workspace.reader.to_kv.weight
    width = AIT.num_heads * AIT.head_dim
    assert q.shape == (width, AIT.embed_dim) and k.shape == (2 * width, AIT.embed_dim)


def test_the_loss_of_a_model_adds_the_balance_losses_of_its_blocks() -> None:
    model, data = build_model(AIT), example(AIT)
    captured: list[Tensor] = []
    for block in model.get_submodule("blocks").children():
        block.register_forward_hook(lambda _, __, output: captured.append(output.balance_loss))
    output = model(data.images)
    torch.testing.assert_close(output.aux_loss, captured[0] + captured[1])
    assert min(captured) > 0


@pytest.mark.parametrize("config", [VIT, DENSE, RELATIONS, TINY["conv-mlp"]], ids=lambda c: c.kind)
def test_only_an_ait_has_an_auxiliary_loss(config: ModelConfig) -> None:
    assert build_model(config)(example(config).images).aux_loss == 0


def test_the_memory_of_every_block_moves_in_training() -> None:
    model = build_model(AIT)
    before = memories(model)
    loss_of(model, example(AIT))
    assert set(before) == {"blocks.0.workspace.priors", "blocks.1.workspace.priors"}
    for key, memory in memories(model).items():
        assert not torch.equal(memory, before[key]), key


def test_another_question_gives_other_logits() -> None:
    for name in (name for name in CONFIGS if name.endswith("question")):
        config = CONFIGS[name]
        model, data = build_model(config).eval(), example(config)
        other = model(data.images, torch.randn(BATCH, QUESTION_DIM)).logits
        assert not torch.allclose(model(data.images, data.questions).logits, other)


def test_attend_is_passed_to_the_workspace_of_every_block() -> None:
    def attend(*_: object) -> None:
        raise AssertionError

    model = AiT(AIT, attend)  # type: ignore[arg-type]
    assert all(block.workspace.attend is attend for block in model.blocks)


def test_an_ablation_registers_no_unused_parameters() -> None:
    names = {
        name: {key for key, _ in build_model(CONFIGS[name]).named_parameters()}
        for name in ("ait", "ait-without-self-attention", "ait-without-hopfield")
    }
    without = {key for key in names["ait"] if ".attention." in key or ".norm1." in key}
    assert len(without) == 2 * 5
    assert names["ait"] - names["ait-without-self-attention"] == without
    added = names["ait-without-hopfield"] - names["ait"]
    assert {key.removeprefix("blocks.0.workspace.") for key in added if "blocks.0" in key} == {
        "reader.to_q.weight",
        "reader.to_kv.weight",
        "reader.to_out.weight",
        "reader.to_out.bias",
    }


@pytest.mark.parametrize("config", [AIT, VIT, DENSE], ids=lambda config: config.kind)
def test_positions_are_learned_if_the_configuration_says_so(config: ModelConfig) -> None:
    names = dict(build_model(replace(config, pos="learned")).named_parameters())
    assert names["embed.positions"].shape == (16, config.embed_dim)
    assert "embed.positions" not in dict(build_model(config).named_parameters())


def test_without_hopfield_twelve_heads_of_width_64_read_the_memory() -> None:
    reader = 4 * 768 * 768 + 768
    ablation = replace(AIT_SMALL, read="cross_attention")
    assert count_parameters(ablation) == count_parameters(AIT_SMALL) + 2 * reader


RELATIONAL = {"image_size": 75, "patch_size": 15, "question_dim": 18}  # Sort-of-CLEVR
LIVE = [
    (AIT_SMALL, 15_673_322),
    (AIT_MEDIUM, 45_761_770),
    (AIT_BASE, 90_894_442),
    (VIT_SMALL, 14_800_234),
    (VIT_BASE, 85_655_914),
    (replace(VIT_SMALL, num_classes=100), 19_224_004),
    (replace(VIT_BASE, num_classes=100), 90_079_684),
    (replace(VIT_SMALL, head="cls", pos="learned"), 14_270_314),
    (replace(VIT_BASE, head="cls", pos="learned"), 85_125_994),
    # published with the unused stem, class token and positions of the official code
    (VIT_MEDIUM, 43_251_562 - 58_368 - 768 - 65 * 768),
    (replace(VIT_SMALL, **RELATIONAL), 15_028_084 - 58_368 - 768 - 26 * 768),
    (replace(VIT_BASE, **RELATIONAL), 85_883_764 - 58_368 - 768 - 26 * 768),
    (DENSE_SMALL, 10_225_780),
    (DENSE_BASE, 57_465_460),
    (replace(DENSE_SMALL, patch_size=5), 11_606_980),
    (replace(DENSE_BASE, patch_size=5), 58_846_660),
    (CNN_RN, 366_194),
    (replace(CNN_RN, num_objects=3), 372_850),
    (CNN_MLP, 243_314),
]
PUBLISHED = [
    (AIT_SMALL, 15_784_426),
    (AIT_MEDIUM, 45_876_970),
    (AIT_BASE, 91_015_786),
    (VIT_SMALL, 14_850_922),
    (VIT_BASE, 85_706_602),
    # class token and positions are live here, so nothing is added
    (replace(VIT_SMALL, head="cls", pos="learned"), 14_270_314),
]


@pytest.mark.parametrize(("config", "parameters"), LIVE)
def test_a_named_size_has_exactly_the_known_number_of_parameters(
    config: ModelConfig, parameters: int
) -> None:
    assert count_parameters(config) == parameters


@pytest.mark.parametrize(("config", "parameters"), PUBLISHED)
def test_the_reference_count_is_the_published_one(config: ModelConfig, parameters: int) -> None:
    with torch.device("meta"):
        model = build_model(config)
    assert isinstance(model, AiT | ViT)
    assert model.reference_parameters() == parameters


def test_the_named_sizes_are_those_of_the_paper() -> None:
    assert [c.depth for c in (AIT_SMALL, AIT_MEDIUM, AIT_BASE)] == [2, 6, 12]
    assert [c.depth for c in (VIT_SMALL, VIT_MEDIUM, VIT_BASE)] == [2, 6, 12]
    for c in (AIT_SMALL, VIT_SMALL):
        assert (c.embed_dim, c.num_heads, c.head_dim, c.mlp_ratio) == (768, 12, 64, 4.0)
        assert (c.image_size, c.patch_size, c.num_classes, c.pos) == (32, 4, 10, "none")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    build_model(AIT).save_pretrained(tmp_path)
    return tmp_path


def test_weights_are_saved_without_pickle(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("pickle")

    assert {path.name for path in saved.iterdir()} <= {
        "README.md",
        "config.json",
        "model.safetensors",
    }
    for owner, name in ((torch, "load"), (pickle, "load"), (pickle, "loads")):
        monkeypatch.setattr(owner, name, forbidden)
    load_model(saved)


@pytest.mark.parametrize(
    "missing", ["head.2.bias", "blocks.1.workspace.priors", "blocks.0.attention.to_qkv.weight"]
)
def test_a_missing_weight_is_an_error(saved: Path, missing: str) -> None:
    weights = load_file(saved / "model.safetensors")
    del weights[missing]
    save_file(weights, saved / "model.safetensors")
    for load in (AiT.from_pretrained, load_model):
        with pytest.raises(UserError, match=f"the weights do not fit config.json .*{missing}"):
            load(saved)


@pytest.mark.parametrize(
    "change", [{"depth": 10**9}, {"num_classes": 10**9}, {"embed_dim": 2**70}]
)
def test_a_configuration_far_larger_than_its_weights_is_refused_before_it_is_built(
    saved: Path, change: dict[str, int]
) -> None:
    path = saved / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for load in (AiT.from_pretrained, load_model):
        with pytest.raises(UserError, match=r"the weights do not fit config.json \(it describes"):
            load(saved)


@pytest.mark.parametrize("config", TINY.values(), ids=TINY)
def test_the_weights_are_counted_without_building_the_model(config: Any) -> None:  # noqa: ANN401
    is_deep = "depth" in {field.name for field in fields(config)}
    for ours in [replace(config, depth=depth) for depth in (1, 4, 9)] if is_deep else [config]:
        state = build_model(ours).state_dict().values()
        count = count_weights(MODELS[type(ours)], ours)
        assert count == (count_parameters(ours), sum(value.numel() for value in state))


def test_weights_that_cannot_be_counted_are_infinitely_many() -> None:
    for depth in (1, 9):
        huge = replace(VIT, embed_dim=2**70, depth=depth)
        assert count_weights(ViT, huge) == (math.inf, math.inf)


def edit(folder: Path, key: str, value: object, inside: str | None = None) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    (config[inside] if inside else config)[key] = value
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("inside", [None, "workspace"])
@pytest.mark.parametrize(
    ("key", "value"), [("no_such_field", 1), ("depth", "two"), ("beta", -1.0), ("embed_dim", 0)]
)
def test_an_unknown_or_invalid_field_of_the_configuration_is_an_error(
    saved: Path, key: str, value: object, inside: str | None
) -> None:
    edit(saved, key, value, inside)  # a field of one part is unknown in the other
    for load in (AiT.from_pretrained, load_model):
        with pytest.raises(ValueError, match=key):
            load(saved)


def test_an_unknown_kind_of_model_is_an_error(saved: Path) -> None:
    edit(saved, "kind", "no_such_model")
    for load in (AiT.from_pretrained, load_model):
        with pytest.raises(UserError, match="no_such_model"):
            load(saved)


def no_folder(folder: Path, other: Path) -> None:
    shutil.rmtree(folder)


def no_config(folder: Path, other: Path) -> None:
    (folder / "config.json").unlink()


def no_weights(folder: Path, other: Path) -> None:
    (folder / "model.safetensors").unlink()


def half_of_the_weights(folder: Path, other: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def weights_without_the_last_byte(folder: Path, other: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def weights_of_another_model(folder: Path, other: Path) -> None:
    shutil.copy(other / "model.safetensors", folder)


def config_of_another_model(folder: Path, other: Path) -> None:
    shutil.copy(other / "config.json", folder)


def unknown_weight(folder: Path, other: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"surplus": torch.zeros(1)}, folder / "model.safetensors")


def unknown_field(folder: Path, other: Path) -> None:
    edit(folder, "surplus", 1)


def damaged_config(folder: Path, other: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff{")


NO_FIT = r"the weights do not fit config\.json \("
WRONG = {  # what `from_pretrained` says about it
    no_folder: "is not a folder, and no model of that name can be loaded .*: pass a folder",
    no_config: r"cannot load the model in .* \(config\.json: No such file.*\): save it there",
    no_weights: r"has no model\.safetensors: copy it there",
    half_of_the_weights: rf"({NO_FIT}it describes|model\.safetensors is damaged \()",
    weights_without_the_last_byte: r"model\.safetensors is damaged \(.*\): copy it again",
    weights_of_another_model: NO_FIT,
    config_of_another_model: r"contains a model of kind .*, which \w+ cannot load: use load_model",
    unknown_weight: rf"{NO_FIT}.*surplus.*\): copy both files again",
    unknown_field: r"config\.json\.surplus: ",
    damaged_config: r"config\.json: Invalid JSON",
}


@pytest.mark.parametrize("damage", WRONG, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("kind", TINY)
def test_a_model_that_cannot_be_loaded_is_an_error_of_one_line(
    kind: str, damage: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    other = next(name for name in TINY if TINY[name] is not TINY[kind])
    for name, config in (("model", TINY[kind]), ("other", TINY[other])):
        build_model(config).save_pretrained(tmp_path / name)
    damage(tmp_path / "model", tmp_path / "other")
    with pytest.raises(UserError, match=WRONG[damage]) as caught:
        MODELS[type(TINY[kind])].from_pretrained(tmp_path / "model")
    assert str(tmp_path / "model") in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError):
        load_model(tmp_path / "model")


@pytest.mark.parametrize(
    "missing",
    [["config.json"], ["model.safetensors", "pytorch_model.bin"]],
    ids=["config", "weights"],
)
@pytest.mark.parametrize("kind", TINY)
def test_a_model_that_the_hub_does_not_have_is_an_error_of_one_line(
    kind: str, missing: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_model(TINY[kind]).save_pretrained(tmp_path)

    def download(repo_id: str, filename: str, **_: object) -> str:
        if filename in missing:
            raise LocalEntryNotFoundError("No such model.\nCheck the name.")
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub.hub_mixin, "hf_hub_download", download)
    monkeypatch.setattr("associative_transformer.models.saved_config.hf_hub_download", download)
    for load in (MODELS[type(TINY[kind])].from_pretrained, load_model):
        with pytest.raises(
            UserError, match=r"\Ame/model is not a folder, and no model .* \(No such model\): pass"
        ):
            load("me/model")


def test_an_unknown_option_of_loading_is_a_type_error(saved: Path) -> None:
    for load in (AiT.from_pretrained, load_model):
        with pytest.raises(TypeError, match="takes no argument no_such_option"):
            load(saved, no_such_option=1)


def test_weights_may_be_missing_on_request(saved: Path) -> None:
    path = saved / "model.safetensors"
    bias = load_file(path)["head.2.bias"].clone()  # safetensors 0.6 maps the file, soon replaced
    save_file({"head.2.bias": bias}, path)
    loaded = AiT.from_pretrained(saved, strict=False)
    assert torch.equal(loaded.state_dict()["head.2.bias"], bias)


@every_model
def test_a_model_is_uploaded_with_its_card_configuration_and_weights(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    uploads: dict[str, Any] = {}

    class Api:
        def __init__(self, *_: object, **__: object) -> None: ...

        def create_repo(self, repo_id: str, **_: object) -> Any:  # noqa: ANN401
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id: str, folder_path: str, **_: object) -> str:
            uploads["repo"] = repo_id
            for path in Path(folder_path).iterdir():
                uploads[path.name] = path.read_bytes()
            return "done"

    monkeypatch.setattr(huggingface_hub.hub_mixin, "HfApi", Api)
    model = build_model(CONFIGS[name])
    model.push_to_hub("someone/a-model")
    assert uploads.keys() == {"repo", "README.md", "config.json", "model.safetensors"}
    assert uploads["repo"] == "someone/a-model"
    card = uploads["README.md"].decode()
    for text in ("associative_transformer", "2309.12862", "image-classification"):
        assert text in card
    assert "license" not in card  # the user's choice
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes(uploads[file])
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.__name__)
def test_the_example_in_the_docstring_of_a_model_runs(model: type[PretrainedModel]) -> None:
    names = vars(importlib.import_module(model.__module__))
    (example,) = doctest.DocTestFinder(recurse=False).find(model, globs={**names})
    assert example.examples, f"the docstring of {model.__name__} has no example"
    assert doctest.DocTestRunner().run(example).failed == 0


def test_every_model_is_a_pretrained_model() -> None:
    assert all(isinstance(build_model(config), PretrainedModel) for config in CONFIGS.values())


@pytest.mark.parametrize("config", [AIT_SMALL, VIT_SMALL], ids=lambda config: config.kind)
def test_the_paper_counts_positions_whether_they_are_used_or_not(
    config: AiTConfig | ViTConfig,
) -> None:
    with torch.device("meta"):
        unused, used = build_model(config), build_model(replace(config, pos="learned"))
    assert unused.reference_parameters() == used.reference_parameters() + 768
