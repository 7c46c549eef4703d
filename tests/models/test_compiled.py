"""The models under torch.compile: one graph, the same numbers, compiled once.

These tests run without shape checks, which torch.compile cannot trace.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial, partialmethod
from pathlib import Path
from shutil import which
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.functional import cross_entropy

from associative_transformer.health import memory_health
from associative_transformer.models import ModelConfig, build_model
from associative_transformer.models.ait import AiTConfig
from associative_transformer.models.dense import DenseConfig
from associative_transformer.models.relation_network import ConvMLPConfig, RelationNetworkConfig
from associative_transformer.models.vit import ViTConfig
from associative_transformer.recipes import find_recipe
from associative_transformer.training.loop import train
from associative_transformer.workspace import KEPT
from associative_transformer.workspace_config import ImageMemoryConfig, WorkspaceConfig
from making.tiny import tiny

pytestmark = pytest.mark.compiled

by_aot_eager = partialmethod(nn.Module.compile, backend="aot_eager")
AIT = tiny(AiTConfig, depth=1)
RELATIONS = tiny(RelationNetworkConfig, image_size=75, question_dim=18, conv_dim=3, num_convs=4)
CONFIGS: dict[str, ModelConfig] = {
    "ait": AIT,
    "ait-two-blocks": replace(AIT, depth=2),
    "ait-cross-attention": replace(AIT, read="cross_attention"),
    "ait-dense": replace(AIT, workspace=replace(AIT.workspace, bottleneck=None, num_steps=2)),
    "ait-detached": replace(AIT, workspace=replace(AIT.workspace, differentiable_write=False)),
    "ait-competition": replace(
        AIT, workspace=replace(AIT.workspace, competition="priors", center_values=True)
    ),
    "vit": tiny(ViTConfig, depth=1),
    "dense": tiny(DenseConfig, question_dim=18),
    "relation-network": RELATIONS,  # several chunks of the batch, the last one smaller
    "relation-network-triples": replace(RELATIONS, image_size=33, num_objects=3),
    "conv-mlp": tiny(ConvMLPConfig, question_dim=18),
}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(model: nn.Module, backend: str) -> Callable[..., tuple[Tensor, Tensor]]:
    return torch.compile(model, fullgraph=True, backend=backend)


def batch(config: ModelConfig, size: int = 4) -> tuple[list[Tensor], Tensor]:
    """Draw images, questions if the model takes them, and labels."""
    inputs = [torch.randn(size, config.num_channels, config.image_size, config.image_size)]
    if config.question_dim:
        inputs.append(torch.randn(size, config.question_dim))
    return inputs, torch.randint(config.num_classes, (size,))


def memories(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that change in training."""
    saved = model.state_dict()
    return {name: buffer for name, buffer in model.named_buffers() if name in saved}


def assert_close(ours: Tensor, theirs: Tensor, name: str = "") -> None:
    torch.testing.assert_close(
        ours, theirs, rtol=1e-4, atol=1e-5, msg=lambda text: f"{name}: {text}"
    )


def assert_same_training(
    eager: nn.Module,
    other: nn.Module,
    fast: Callable[..., tuple[Tensor, Tensor]],
    batch_size: int = 4,
) -> None:
    """Take two optimizer steps; the second must reuse the graph of the first."""
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (eager, other)]
    for step in range(2):
        inputs, labels = batch(eager.config, batch_size)
        with torch.compiler.set_stance("default" if step == 0 else "fail_on_recompile"):
            losses = []
            for run, optimizer in zip((eager, fast), optimizers, strict=True):
                optimizer.zero_grad()
                logits, aux_loss = run(*inputs)
                losses.append(cross_entropy(logits, labels) + aux_loss)
                losses[-1].backward()
        assert_close(losses[1], losses[0], "loss")
        for (name, ours), theirs in zip(other.named_parameters(), eager.parameters(), strict=True):
            assert (ours.grad is None) == (theirs.grad is None), name
            if ours.grad is not None and theirs.grad is not None:
                assert_close(ours.grad, theirs.grad, name)
        for (name, ours), theirs in zip(other.named_buffers(), eager.buffers(), strict=True):
            assert_close(ours, theirs, name)
        for optimizer in optimizers:
            optimizer.step()


LATER = partial(pytest.param, marks=pytest.mark.thorough)
BASELINES = ("dense", "relation-network", "conv-mlp")


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        pytest.param(
            "ait",
            "inductor",  # 40 s of C++ compilation without a cache
            marks=pytest.mark.skipif(not which("g++"), reason="inductor needs a C++ compiler"),
        ),
        ("ait-cross-attention", "aot_eager"),
        ("ait-dense", "aot_eager"),
        LATER("ait-detached", "aot_eager"),
        ("ait-competition", "aot_eager"),
        ("relation-network", "aot_eager"),
        LATER("relation-network-triples", "aot_eager"),
        LATER("conv-mlp", "aot_eager"),
    ],
)
def test_two_compiled_training_steps_equal_eager_ones(name: str, backend: str) -> None:
    eager = build_model(CONFIGS[name])
    other = copy.deepcopy(eager)
    addresses = [buffer.data_ptr() for buffer in other.buffers()]
    before = [memory.clone() for memory in memories(other).values()]
    assert_same_training(eager, other, compiled(other, backend), batch_size=11)
    assert [buffer.data_ptr() for buffer in other.buffers()] == addresses
    assert not any(map(torch.equal, memories(other).values(), before))


@pytest.mark.parametrize("name", ["ait-two-blocks", "vit"])
def test_under_autocast_training_is_one_graph_and_equals_eager_training(name: str) -> None:
    eager = build_model(CONFIGS[name])
    other = copy.deepcopy(eager)
    runs = (eager, compiled(other, "aot_eager"))
    for step in range(2):
        inputs, labels = batch(eager.config, size=11)
        stance = "default" if step == 0 else "fail_on_recompile"
        with torch.compiler.set_stance(stance), torch.autocast("cpu", torch.bfloat16):
            outputs = [run(*inputs) for run in runs]
        for logits, aux_loss in outputs:
            (cross_entropy(logits, labels) + aux_loss).backward()
        assert_close(outputs[1][0], outputs[0][0], "logits")
        for (part, ours), theirs in zip(other.named_parameters(), eager.parameters(), strict=True):
            assert ours.grad is not None and theirs.grad is not None
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=0.05, atol=0.01, msg=part)


@pytest.mark.parametrize("name", ["ait-two-blocks", "vit", *(LATER(each) for each in BASELINES)])
def test_compiled_evaluation_equals_eager_and_does_not_change_the_memory(name: str) -> None:
    model = build_model(CONFIGS[name]).eval()
    fast, before = compiled(model, "aot_eager"), [buffer.clone() for buffer in model.buffers()]
    for repetition in range(2):
        inputs, _ = batch(model.config)
        stance = "default" if repetition == 0 else "fail_on_recompile"
        with torch.no_grad(), torch.compiler.set_stance(stance):
            logits, aux_loss = fast(*inputs)
            assert_close(logits, model(*inputs).logits)
        assert aux_loss == 0
    assert all(map(torch.equal, model.buffers(), before))


@pytest.mark.parametrize("name", ["ait-two-blocks", "vit", LATER("dense")])
def test_activation_checkpointing_works_in_a_compiled_model(name: str) -> None:
    eager = build_model(CONFIGS[name])
    other = copy.deepcopy(eager)
    other.set_grad_checkpointing()
    assert_same_training(eager, other, compiled(other, "aot_eager"))


def test_a_compiled_model_switches_between_training_and_evaluation() -> None:
    eager = build_model(AIT)
    other = copy.deepcopy(eager)
    fast = compiled(other, "aot_eager")
    inputs, _ = batch(AIT)
    for training in (True, False, True, False):
        eager.train(training)
        other.train(training)
        expected, (logits, aux_loss) = eager(*inputs), fast(*inputs)
        assert_close(logits, expected.logits)
        assert_close(aux_loss, expected.aux_loss)
        for ours, theirs in zip(other.buffers(), eager.buffers(), strict=True):
            assert_close(ours, theirs)


@pytest.mark.parametrize("layer", ["to_k", "to_v"])
def test_a_model_with_an_adapter_compiles_to_one_graph(layer: str) -> None:
    eager = build_model(AIT)
    target = eager.get_submodule(f"blocks.0.workspace.{layer}")
    target.register_forward_hook(lambda _, __, output: 2 * output)
    other = copy.deepcopy(eager)
    assert_same_training(eager, other, compiled(other, "aot_eager"))


def test_a_hook_registered_after_compiling_takes_effect() -> None:
    eager = build_model(AIT)
    other = copy.deepcopy(eager)
    fast, (inputs, _) = compiled(other, "aot_eager"), batch(AIT)
    assert_close(fast(*inputs)[0], eager(*inputs).logits)
    for model in (eager, other):
        layer = model.get_submodule("blocks.0.workspace.to_k")
        layer.register_forward_hook(lambda _, __, output: 2 * output)
    assert_close(fast(*inputs)[0], eager(*inputs).logits)
    for ours, theirs in zip(other.buffers(), eager.buffers(), strict=True):
        assert_close(ours, theirs)


def test_the_checks_of_inputs_do_not_tie_the_graph_to_a_batch_size() -> None:
    model = build_model(CONFIGS["dense"]).eval()
    fast = compiled(model, "eager")
    for size in (4, 6, 9):
        inputs, _ = batch(model.config, size)
        for x in inputs:
            torch._dynamo.mark_dynamic(x, 0)
        stance = "default" if size == 4 else "fail_on_recompile"
        with torch.no_grad(), torch.compiler.set_stance(stance):
            assert_close(fast(*inputs)[0], model(*inputs).logits)


def test_a_run_compiles_one_graph_for_training_and_one_for_evaluation(tmp_path: Path) -> None:
    recipe = find_recipe("triangle-ait-tiny")
    experiment = replace(
        recipe,
        data=replace(recipe.data, num_train=100, num_test=53, val_fraction=0.1),
        train=replace(
            recipe.train,
            epochs=2,
            batch_size=24,
            device="cpu",
            compile="on",
            schedule=replace(recipe.train.schedule, per="step"),  # which compiles nothing anew
        ),
    )
    counters.clear()
    with patch.object(nn.Module, "compile", by_aot_eager):
        train(experiment, tmp_path / "run")  # the last batch of 53 is padded
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]


OWN_MEMORIES = WorkspaceConfig(
    num_priors=6, prior_dim=4, num_heads=3, scope="image", image=ImageMemoryConfig(read_head_dim=8)
)


@pytest.mark.parametrize(
    "memory",
    [
        replace(AIT.workspace, dropout=0.0),
        LATER(replace(AIT.workspace, dropout=0.0, bottleneck=None)),
        OWN_MEMORIES,
        LATER(replace(OWN_MEMORIES, bottleneck=None)),
    ],
    ids=["batch", "batch-dense", "image", "image-dense"],
)
def test_the_health_of_a_compiled_model_is_that_of_an_eager_one(memory: WorkspaceConfig) -> None:
    eager = build_model(replace(AIT, depth=2, workspace=memory))
    other = copy.deepcopy(eager)
    fast = compiled(other, "aot_eager")
    assert memory_health(other)[0].overlap is None
    seen = []
    for step in range(2):
        inputs, _ = batch(eager.config, KEPT + 2)
        with torch.compiler.set_stance("default" if step == 0 else "fail_on_recompile"):
            eager(*inputs)
            fast(*inputs)
            for arguments in ((), inputs):  # of the training step, and of any images
                expected = memory_health(eager, *arguments)
                for model in (other, fast):
                    found = memory_health(model, *arguments)
                    for ours, theirs in zip(found, expected, strict=True):
                        assert ours == pytest.approx(theirs, rel=1e-4)
        seen.append(memory_health(other))
    assert not counters["graph_break"]
    dense = memory.bottleneck is None
    assert (seen[0] == seen[1]) == (dense and memory.scope == "image")  # nothing is trained here
