"""The workspace per image under torch.compile: one graph, the same numbers, compiled once.

These tests run without shape checks, which torch.compile cannot trace.
"""

import copy
from collections.abc import Iterator
from dataclasses import replace
from shutil import which

import pytest
import torch
from torch import Tensor, nn

from associative_transformer import kernels
from associative_transformer.functional import hopfield_retrieve
from associative_transformer.models.ait import AiTConfig, Block
from associative_transformer.workspace import GlobalWorkspace
from associative_transformer.workspace_config import WorkspaceConfig
from making.tiny import IMAGE_MEMORY, PER_IMAGE, tiny

pytestmark = pytest.mark.compiled

WIDTH, IMAGES, TOKENS = 24, 3, 10
BALANCED = replace(IMAGE_MEMORY, balance_weight=0.1)  # a quarter of the tokens win
COMPETING = replace(
    BALANCED, num_priors=6, bottleneck=4, competition="priors", center_values=True, num_steps=2
)
PADDING = torch.arange(TOKENS) >= torch.tensor([[10], [6], [0]])  # the last image is empty


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def assert_same_training(
    eager: nn.Module, other: nn.Module, backend: str, *arguments: Tensor | None
) -> None:
    """Compare two training steps; the second must reuse the graph of the first."""
    fast = torch.compile(other, fullgraph=True, backend=backend)
    for step in range(2):
        x, slope = torch.randn(2, IMAGES, TOKENS, WIDTH)
        with torch.compiler.set_stance("default" if step == 0 else "fail_on_recompile"):
            outputs = [run(x, *arguments) for run in (eager, fast)]
            for tokens, loss in outputs:
                ((tokens * slope).sum() + loss).backward()
        (expected, loss), (tokens, fast_loss) = outputs
        torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(fast_loss, loss, rtol=1e-4, atol=1e-5)
        for (name, ours), theirs in zip(other.named_parameters(), eager.parameters(), strict=True):
            assert ours.grad is not None and theirs.grad is not None, name
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4, msg=name)
        for module in (eager, other):
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter -= 0.01 * parameter.grad
            module.zero_grad()


@pytest.mark.parametrize(
    ("config", "padding"),
    [
        pytest.param(BALANCED, None, id="top-k"),
        pytest.param(BALANCED, PADDING, id="top-k-mask"),
        pytest.param(COMPETING, PADDING, id="competition-mask"),
    ],
)
def test_training_is_one_graph_and_equals_eager_training(
    config: WorkspaceConfig, padding: Tensor | None
) -> None:
    eager = GlobalWorkspace(WIDTH, config)
    assert_same_training(eager, copy.deepcopy(eager), "aot_eager", padding)


@pytest.mark.thorough
@pytest.mark.slow  # C++ compilation
@pytest.mark.skipif(not which("g++"), reason="inductor needs a C++ compiler")
def test_compiled_kernels_give_the_same_numbers() -> None:
    eager = GlobalWorkspace(WIDTH, BALANCED)
    assert_same_training(eager, copy.deepcopy(eager), "inductor", PADDING)


def test_under_autocast_training_is_one_graph() -> None:
    module, padding = GlobalWorkspace(WIDTH, BALANCED), PADDING
    other, u = copy.deepcopy(module), torch.randn(IMAGES, TOKENS, WIDTH)
    fast = torch.compile(other, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        expected, output = module(u, padding), fast(u, padding)
    torch.testing.assert_close(output[0], expected.read, rtol=0.05, atol=0.05)
    output[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in other.parameters())


def test_a_workspace_with_an_adapter_is_one_graph() -> None:
    eager = GlobalWorkspace(WIDTH, BALANCED)
    eager.to_k.register_forward_hook(lambda _, __, output: 2 * output)
    assert_same_training(eager, copy.deepcopy(eager), "aot_eager", PADDING)


def test_a_block_is_one_graph() -> None:
    config = tiny(AiTConfig, **PER_IMAGE | {"workspace": BALANCED})
    eager = Block(config, 0, kernels.attend, hopfield_retrieve)
    assert_same_training(eager, copy.deepcopy(eager), "aot_eager")
