"""The Triton kernels against the plain implementation, on a CUDA device or in the interpreter.

Triton reads TRITON_INTERPRET when it is imported, so its interpreter needs a separate process. The
first test starts one. To start it by hand:
`TRITON_INTERPRET=1 pytest -m gpu tests/kernels/test_triton.py`

Dims     T pooled tokens   E token width   S heads   M priors   D head width   K bottleneck
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from associative_transformer import functional
from associative_transformer.functional import Selection, balance_loss
from associative_transformer.kernels import PoolAttention
from associative_transformer.workspace import GlobalWorkspace
from associative_transformer.workspace_config import WorkspaceConfig

read = pytest.importorskip("associative_transformer.kernels.triton_read")
write = pytest.importorskip("associative_transformer.kernels.triton_write")

S, E = 2, 7
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
SHAPES = ("--jaxtyping-packages=associative_transformer,beartype.beartype",)

gpu = pytest.mark.gpu


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("markers", "options"),
    [
        ("gpu and not compiled", SHAPES),
        ("gpu and compiled", ()),
    ],
)
def test_the_kernels_pass_in_the_interpreter_of_triton(
    markers: str, options: tuple[str, ...]
) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", __file__]
    result = subprocess.run(
        [*command, "-m", markers, *options],
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-5_000:] + result.stderr[-5_000:]
    assert "skipped" not in result.stdout


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    if IS_INTERPRETED:
        widen_products(monkeypatch)
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device or the interpreter of Triton (TRITON_INTERPRET=1)")
    return torch.device("cuda")


def widen_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fix the interpreter, which multiplies the bit patterns of bfloat16 (Triton 3.8)."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    multiply = interpreter.InterpreterBuilder.create_dot

    def widen(handle: Any) -> Any:  # noqa: ANN401
        if str(handle.dtype.scalar) != "bf16":
            return handle
        data = (handle.data.astype(np.uint32) << 16).view(np.float32)
        return interpreter.TensorHandle(data, interpreter.tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:  # noqa: ANN401
        return multiply(self, widen(a), widen(b), *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


# --- the write ---


class Inputs(NamedTuple):
    q: Tensor  # (S, M, D)
    tokens: Tensor  # (T, E)
    w_k: Tensor  # (S, D, E)
    w_v: Tensor  # (S, D, E)


def inputs(
    device: torch.device,
    num_priors: int = 5,
    width: int = 16,
    num_tokens: int = 300,
    dtype: torch.dtype = torch.float32,
) -> Inputs:
    shapes = (S, num_priors, width), (num_tokens, E), (S, width, E), (S, width, E)
    drawn = (torch.randn(shape).to(device, dtype).requires_grad_() for shape in shapes)
    return Inputs(*drawn)


def whole_numbers(device: torch.device, num_priors: int, num_tokens: int) -> Inputs:
    """Return inputs whose similarities are exact, and often equal."""
    given = inputs(device, num_priors, num_tokens=num_tokens)
    return Inputs(*(torch.randint_like(x, -1, 2).requires_grad_() for x in given))


def loss_of(selection: Selection, num_tokens: int) -> Tensor:
    """Return a loss that depends on values and scores, with a different slope for each value."""
    slopes = torch.linspace(-1, 2, selection.value.numel()).to(selection.value)
    unevenness = balance_loss(selection.score, selection.chosen, num_tokens)
    return (slopes.view_as(selection.value) * selection.value).sum() + 0.1 * unevenness


def gradients(selection: Selection, given: Inputs) -> Sequence[Tensor]:
    return torch.autograd.grad(loss_of(selection, len(given.tokens)), given)


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    largest = max([1.0, *theirs.detach().abs().flatten().tolist()])  # large numbers may cancel
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * largest)


def assert_near(ours: Tensor, theirs: Tensor, share: float) -> None:
    assert (ours.float() - theirs.float()).norm() < share * theirs.float().norm()


def assert_same_winners(ours: Selection, theirs: Selection) -> None:
    """Compare winners and scores in the order of the pool, which ours already have."""
    chosen, order = theirs.chosen.sort(dim=-1)
    assert torch.equal(ours.chosen, chosen)
    assert_close(ours.score, theirs.score.gather(-1, order))


@gpu
@pytest.mark.parametrize(
    ("num_priors", "width", "num_tokens", "bottleneck"),
    [
        (5, 16, 300, 40),  # the third tile is not full
        (1, 32, 2, 1),
        (32, 16, 128, 127),  # a full group, a full tile, all but one win
        (33, 16, 129, 128),  # one prior and one token more than that
        (3, 64, 257, 256),
        (70, 128, 20, 7),
    ],
)
def test_the_write_equals_the_plain_implementation_forward_and_backward(
    device: torch.device, num_priors: int, width: int, num_tokens: int, bottleneck: int
) -> None:
    given = inputs(device, num_priors, width, num_tokens)
    ours, theirs = (module.pooled_attention(*given, bottleneck) for module in (write, functional))
    assert_same_winners(ours, theirs)
    assert_close(ours.value, theirs.value)
    for mine, other in zip(gradients(ours, given), gradients(theirs, given), strict=True):
        assert_close(mine, other)


@gpu
@pytest.mark.parametrize("part", ["value", "score"])
def test_values_and_scores_have_separate_gradients(device: torch.device, part: str) -> None:
    given = inputs(device)
    grads = []
    for module in (write, functional):
        selection = module.pooled_attention(*given, 40)
        loss = selection.value.square().sum()
        if part == "score":
            loss = balance_loss(selection.score, selection.chosen, len(given.tokens))
        grads.append(torch.autograd.grad(loss, given, allow_unused=True, materialize_grads=True))
    for mine, other in zip(*grads, strict=True):
        assert_close(mine, other)


@gpu
@pytest.mark.parametrize(("num_priors", "num_tokens"), [(3, 300), (34, 150)])
@pytest.mark.parametrize("bottleneck", [1, 20, 149])
def test_of_equal_tokens_the_first_in_the_pool_win(
    device: torch.device, num_priors: int, num_tokens: int, bottleneck: int
) -> None:
    given = whole_numbers(device, num_priors, num_tokens)
    ours = write.pooled_attention(*given, bottleneck)
    similarity = given.q.double() @ (given.w_k.double() @ given.tokens.double().mT)
    order = similarity.argsort(dim=-1, descending=True, stable=True)
    assert torch.equal(ours.chosen, order[..., :bottleneck].sort(dim=-1).values)
    logits = similarity.gather(-1, ours.chosen) / given.q.shape[-1] ** 0.5
    assert_close(ours.score, logits.softmax(dim=-1).float())


@gpu
def test_if_all_are_equal_the_first_k_win_with_equal_scores(device: torch.device) -> None:
    given = whole_numbers(device, num_priors=5, num_tokens=300)  # so that nothing is rounded
    given = given._replace(tokens=torch.ones_like(given.tokens))
    ours = write.pooled_attention(*given, 140)
    assert torch.equal(ours.chosen, torch.arange(140, device=device).expand_as(ours.chosen))
    assert_close(ours.score, torch.full_like(ours.score, 1 / 140))


@gpu
@pytest.mark.parametrize("where", [slice(3, 9), slice(None)], ids=["some", "all"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_exactly_k_tokens_win_even_if_some_are_not_finite(
    device: torch.device, where: slice, value: float
) -> None:
    given = inputs(device)
    tokens = given.tokens.detach().clone()
    tokens[where] = value
    chosen = write.pooled_attention(*given._replace(tokens=tokens), 40).chosen
    assert all(len(row.unique()) == 40 for row in chosen.flatten(0, 1))
    assert chosen.min() >= 0
    assert chosen.max() < len(tokens)


@gpu
@pytest.mark.parametrize("scale", [1e-30, 1e5])
def test_tiny_and_huge_similarities_are_distinguished(device: torch.device, scale: float) -> None:
    given = inputs(device)
    given = given._replace(q=(given.q * scale).detach().requires_grad_())
    ours, theirs = (module.pooled_attention(*given, 40) for module in (write, functional))
    assert torch.equal(ours.chosen, theirs.chosen.sort(dim=-1).values)
    assert_close(ours.score.sum(dim=-1), torch.ones_like(ours.score[..., 0]))
    assert all(gradient.isfinite().all() for gradient in gradients(ours, given))


@gpu
def test_two_writes_are_equal_bit_for_bit(device: torch.device) -> None:
    given = inputs(device, num_priors=34, num_tokens=140)
    first, second = (write.pooled_attention(*given, 100) for _ in range(2))
    assert all(map(torch.equal, first, second))
    assert all(map(torch.equal, gradients(first, given), gradients(second, given)))


@gpu
@pytest.mark.parametrize("autocast", [False, True])
def test_a_write_in_bfloat16_is_close_to_one_in_float32(
    device: torch.device, autocast: bool
) -> None:
    given = inputs(device)
    exact = functional.pooled_attention(*given, 290)
    expected = gradients(exact, given)
    if not autocast:
        given = Inputs(*(x.detach().bfloat16().requires_grad_() for x in given))
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        ours = write.pooled_attention(*given, 290)
    assert ours.score.dtype == torch.float32
    assert ours.value.dtype == torch.bfloat16
    assert_near(ours.value, exact.value, 0.05)
    for mine, other in zip(gradients(ours, given), expected, strict=True):
        assert_near(mine, other, 0.1)


@gpu
@pytest.mark.parametrize(
    ("width", "dtype", "bottleneck"),
    [
        (16, torch.float32, None),
        (16, torch.float32, 300),
        (16, torch.float32, 301),
        (16, torch.float64, 9),
        (24, torch.float32, 9),
        (8, torch.float32, 9),
    ],
)
def test_an_unsupported_write_equals_the_plain_implementation(
    device: torch.device, width: int, dtype: torch.dtype, bottleneck: int | None
) -> None:
    given = inputs(device, width=width, dtype=dtype)
    ours, theirs = (module.pooled_attention(*given, bottleneck) for module in (write, functional))
    assert all(map(torch.equal, ours, theirs))


@gpu
@pytest.mark.parametrize("rules", [("priors", False), ("none", True)], ids=str)
def test_a_write_with_competition_or_centered_values_equals_the_plain_implementation(
    device: torch.device, rules: tuple[str, bool]
) -> None:
    given = inputs(device)
    ours, theirs = (module.pooled_attention(*given, 9, *rules) for module in (write, functional))
    assert all(map(torch.equal, ours, theirs))


class Largest(TorchDispatchMode):
    """Record the size of the largest tensor that an operator returns."""

    num_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        result = func(*args, **(kwargs or {}))
        for output in result if isinstance(result, tuple | list) else [result]:
            if isinstance(output, Tensor):
                self.num_bytes = max(self.num_bytes, output.nbytes)
        return result


@gpu
def test_no_tensor_has_a_score_for_each_prior_and_token(device: torch.device) -> None:
    num_priors, num_tokens, width = 40, 1_000, 16
    q, k, v = (
        torch.randn(shape, device=device)
        for shape in ((S, num_priors, width), (num_tokens, S, width), (num_tokens, S, width))
    )
    with Largest() as mode:  # does not see inside operators, so call what implements them
        value, *others = write._attend._init_fn(q, k, v, 6)
        write._attend_backward._init_fn([value, others[0]], [q, k, v, *others])
    assert mode.num_bytes == 4 * num_tokens * S * width  # the gradients of keys and values
    with Largest() as plain:
        functional.bottleneck_attention(q, k.transpose(0, 1), v.transpose(0, 1), 6)
    assert plain.num_bytes >= 4 * S * num_priors * num_tokens  # so this test can fail


@gpu
def test_a_workspace_trains_with_the_triton_write(device: torch.device) -> None:
    config = WorkspaceConfig(num_priors=4, prior_dim=16, num_heads=3, bottleneck=30, dropout=0.0)
    plain = GlobalWorkspace(E, config, attend=PoolAttention(functional.pooled_attention)).to(
        device
    )
    fast = GlobalWorkspace(E, config, attend=PoolAttention(write.pooled_attention)).to(device)
    fast.load_state_dict(plain.state_dict())
    tokens = torch.randn(5, 40, E, device=device)
    for workspace in (plain, fast):
        output = workspace(tokens)
        (output.read.square().sum() + output.balance_loss).backward()
    assert_close(fast.priors, plain.priors)
    for ours, theirs in zip(fast.parameters(), plain.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad)


# --- the read ---


class Memory(NamedTuple):
    state: Tensor  # (*B, E)
    attractors: Tensor  # (M, E)


def memory(
    device: torch.device,
    shape: tuple[int, ...] = (3, 50, 70),
    num_attractors: int = 5,
    dtype: torch.dtype = torch.float32,
) -> Memory:
    shapes = shape, (num_attractors, shape[-1])
    drawn = ((0.5 * torch.randn(size)).to(device, dtype).requires_grad_() for size in shapes)
    return Memory(*drawn)


def retrieve(module: ModuleType, given: Memory, beta: float, num_steps: int) -> tuple[Tensor, ...]:
    """Return the result of the retrieval, and its gradients."""
    retrieved = module.hopfield_retrieve(*given, beta, num_steps)
    slopes = torch.linspace(-1, 2, retrieved.numel()).to(retrieved).view_as(retrieved)
    return retrieved, *torch.autograd.grad((slopes * retrieved).sum(), given)


@gpu
@pytest.mark.parametrize(
    ("shape", "num_attractors", "beta", "num_steps"),
    [
        ((3, 50, 70), 5, 1.0, 1),  # the third tile and the second block are not full
        ((64, 64), 16, 0.3, 1),  # full ones
        ((2, 65), 1, 1.0, 1),
        ((5, 13, 129), 33, 2.0, 3),
        ((7, 3), 128, 0.5, 2),
        ((0, 4), 5, 1.0, 1),
    ],
)
def test_the_read_equals_the_plain_implementation_forward_and_backward(
    device: torch.device,
    shape: tuple[int, ...],
    num_attractors: int,
    beta: float,
    num_steps: int,
) -> None:
    given = memory(device, shape, num_attractors)
    ours, theirs = (retrieve(module, given, beta, num_steps) for module in (read, functional))
    for mine, other in zip(ours, theirs, strict=True):
        assert_close(mine, other)


@gpu
def test_large_associations_retrieve_one_attractor(device: torch.device) -> None:
    given = memory(device)
    retrieved, *grads = retrieve(read, given, 1e5, 1)
    nearest = (given.state @ given.attractors.mT).argmax(dim=-1)
    assert_close(retrieved, given.attractors[nearest])
    assert all(gradient.isfinite().all() for gradient in grads)


@gpu
def test_a_read_of_transposed_tokens_equals_the_plain_implementation(device: torch.device) -> None:
    given = memory(device, (70, 50))
    given = Memory(given.state.mT, memory(device, (1, 70)).attractors)
    results = (retrieve(module, given, 1.0, 1) for module in (read, functional))
    for mine, other in zip(*results, strict=True):
        assert_close(mine, other)


@gpu
def test_two_reads_are_equal_bit_for_bit(device: torch.device) -> None:
    given = memory(device)
    assert all(map(torch.equal, retrieve(read, given, 1.0, 2), retrieve(read, given, 1.0, 2)))


@gpu
@pytest.mark.parametrize("autocast", [False, True])
def test_a_read_in_bfloat16_is_close_to_one_in_float32(
    device: torch.device, autocast: bool
) -> None:
    given = memory(device)
    exact = retrieve(functional, given, 1.0, 1)
    if not autocast:
        given = Memory(*(x.detach().bfloat16().requires_grad_() for x in given))
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        results = retrieve(read, given, 1.0, 1)
    assert results[0].dtype == torch.bfloat16
    for mine, other in zip(results, exact, strict=True):
        assert_near(mine, other, 0.05)


@gpu
@pytest.mark.parametrize(("num_attractors", "dtype"), [(129, torch.float32), (5, torch.float64)])
def test_an_unsupported_read_equals_the_plain_implementation(
    device: torch.device, num_attractors: int, dtype: torch.dtype
) -> None:
    given = memory(device, num_attractors=num_attractors, dtype=dtype)
    assert all(
        map(torch.equal, *(retrieve(module, given, 1.0, 2) for module in (read, functional)))
    )


# --- both, with autograd and the compiler ---


@gpu
@pytest.mark.compiled
def test_the_operators_are_sound_for_autograd_and_compiler(device: torch.device) -> None:
    q, k, v = (
        torch.randn(shape, device=device, requires_grad=True)
        for shape in ((S, 5, 16), (140, S, 16), (140, S, 16))
    )
    torch.library.opcheck(write._attend, (q, k, v, 9))
    given = [x.detach() for x in (q, k, v)]
    value, *others = write._attend(*given, 9)
    torch.library.opcheck(write._attend_backward, ([value, others[0]], [*given, *others]))
    hopfield = memory(device)
    torch.library.opcheck(read._retrieve, (*hopfield, 0.5))
    state, attractors = (x.detach() for x in hopfield)
    torch.library.opcheck(read._retrieve_backward, (state, state, attractors, 0.5))


@gpu
@pytest.mark.compiled
def test_compiled_kernels_form_one_graph_with_the_same_numbers(device: torch.device) -> None:
    given, hopfield = inputs(device), memory(device)

    def both(tokens: Tensor, state: Tensor) -> tuple[Selection, Tensor]:
        selection = write.pooled_attention(given.q, tokens, given.w_k, given.w_v, 40)
        return selection, read.hopfield_retrieve(state, hopfield.attractors, 0.5, 2)

    results: list[Sequence[Tensor]] = []
    for function in (both, torch.compile(both, fullgraph=True, backend="aot_eager")):
        selection, retrieved = function(given.tokens, hopfield.state)
        loss = loss_of(selection, len(given.tokens)) + retrieved.square().sum()
        results.append([*selection, *torch.autograd.grad(loss, [*given, *hopfield])])
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs)
