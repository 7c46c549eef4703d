"""The Hopfield retrieval in Triton, in one pass over the tokens and without storing scores.

A tile of tokens is compared with all attractors at once, so that the softmax never leaves the
registers. Tokens and attractors are read in blocks of columns. The backward pass recomputes
the scores. The gradient of the attractors is stored for each tile of tokens and summed at the end,
so that no sum depends on timing.

Dims     T tokens, of all images   E token width   M attractors   N tiles of tokens
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from triton.language import constexpr, tensor

from associative_transformer import functional

DTYPES = (torch.float32, torch.bfloat16)
MAX_ATTRACTORS = 128  # as many as fit in registers
TOKENS = constexpr(64)  # in a tile
COLUMNS = constexpr(64)  # in a block


def hopfield_retrieve(
    state: Float[Tensor, "*B E"],
    attractors: Float[Tensor, "M E"],
    beta: float,
    num_steps: int = 1,
) -> Float[Tensor, "*B E"]:
    """Compute `functional.hopfield_retrieve`; can be differentiated once.

    Similarities are float32. With more than `MAX_ATTRACTORS` attractors, or a dtype that is not
    in `DTYPES`, this calls `functional`.
    """
    device = state.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        state, attractors = state.to(dtype), attractors.to(dtype)
    is_supported = {state.dtype, attractors.dtype} <= {*DTYPES}
    if len(attractors) > MAX_ATTRACTORS or not is_supported:
        return functional.hopfield_retrieve(state, attractors, beta, num_steps)
    for _ in range(num_steps):
        state = _retrieve(state, attractors, beta)
    return state


@torch.library.custom_op(
    "associative_transformer::triton_retrieve",
    mutates_args=(),
    schema="(Tensor state, Tensor attractors, float beta) -> Tensor",
)
def _retrieve(state: Tensor, attractors: Tensor, beta: float) -> Tensor:
    """Pull each state towards the attractors once."""
    state, attractors = state.contiguous(), attractors.contiguous()
    retrieved = torch.empty_like(state)
    with torch.cuda.device(state.get_device()):  # -1, for a CPU, has no effect
        _forward[_grid(state)](state, attractors, retrieved, beta, *_sizes(state, attractors))
    return retrieved


@_retrieve.register_fake
def _(state: Tensor, attractors: Tensor, beta: float) -> Tensor:
    return state.new_empty(state.shape)


@torch.library.custom_op(
    "associative_transformer::triton_retrieve_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor state, Tensor attractors, float beta) -> (Tensor, Tensor)",
)
def _retrieve_backward(
    gradient: Tensor, state: Tensor, attractors: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """Return the gradients of states and attractors."""
    tensors = gradient.contiguous(), state.contiguous(), attractors.contiguous()
    grid, state_grad = _grid(state), torch.empty_like(tensors[1])
    parts = attractors.new_empty(*grid, *attractors.shape, dtype=torch.float32)  # (N, M, E)
    with torch.cuda.device(state.get_device()):
        _backward[grid](*tensors, state_grad, parts, beta, *_sizes(state, attractors))
    return state_grad, parts.sum(dim=0).to(attractors.dtype)


@_retrieve_backward.register_fake
def _(gradient: Tensor, state: Tensor, attractors: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    return state.new_empty(state.shape), attractors.new_empty(attractors.shape)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401
    *tensors, ctx.beta = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:  # noqa: ANN401
    return *_retrieve_backward(gradient, *ctx.saved_tensors, ctx.beta), None


_retrieve.register_autograd(_differentiate, setup_context=_save_for_backward)


def _grid(state: Tensor) -> tuple[int]:
    return (triton.cdiv(state.numel() // state.shape[-1], TOKENS.value),)


def _sizes(state: Tensor, attractors: Tensor) -> tuple[int, int, int, int]:
    """Return T, M and E, and the number of attractors padded to a power of two for `dot`."""
    num_attractors, width = attractors.shape
    padded = max(16, triton.next_power_of_2(num_attractors))
    return state.numel() // width, num_attractors, width, padded


@no_type_check
@triton.jit
def _forward(
    state: tensor,
    attractors: tensor,
    retrieved: tensor,
    beta: tensor,
    num_tokens: tensor,
    num_attractors: tensor,
    width: tensor,
    ATTRACTORS: constexpr,
) -> None:
    """Do one retrieval step for a tile of tokens."""
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    attractor = tl.arange(0, ATTRACTORS)
    similarity = tl.zeros((TOKENS, ATTRACTORS), dtype=tl.float32)
    for first in range(0, width, COLUMNS):
        y = _load(attractors, attractor, num_attractors, first, width)
        x = _load(state, token, num_tokens, first, width).to(y.dtype)
        similarity += tl.dot(x, tl.trans(y), input_precision="ieee")
    score = _softmax(beta * similarity, num_attractors, ATTRACTORS)
    for first in range(0, width, COLUMNS):
        y = _load(attractors, attractor, num_attractors, first, width)
        mixed = tl.dot(score.to(y.dtype), y, input_precision="ieee")
        _store(retrieved, mixed, token, num_tokens, first, width)


@no_type_check
@triton.jit
def _backward(
    gradient: tensor,
    state: tensor,
    attractors: tensor,
    state_grad: tensor,
    parts: tensor,
    beta: tensor,
    num_tokens: tensor,
    num_attractors: tensor,
    width: tensor,
    ATTRACTORS: constexpr,
) -> None:
    """Compute the gradient of a tile of tokens, and its part of the gradient of the attractors."""
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    attractor = tl.arange(0, ATTRACTORS)
    similarity = tl.zeros((TOKENS, ATTRACTORS), dtype=tl.float32)
    agreement = tl.zeros((TOKENS, ATTRACTORS), dtype=tl.float32)  # of gradients and attractors
    for first in range(0, width, COLUMNS):
        y = _load(attractors, attractor, num_attractors, first, width)
        x = _load(state, token, num_tokens, first, width).to(y.dtype)
        g = _load(gradient, token, num_tokens, first, width).to(y.dtype)
        similarity += tl.dot(x, tl.trans(y), input_precision="ieee")
        agreement += tl.dot(g, tl.trans(y), input_precision="ieee")
    score = _softmax(beta * similarity, num_attractors, ATTRACTORS)
    slope = beta * score * (agreement - tl.sum(score * agreement, axis=1)[:, None])
    part = parts + tl.program_id(0).to(tl.int64) * num_attractors * width
    for first in range(0, width, COLUMNS):
        y = _load(attractors, attractor, num_attractors, first, width)
        x = _load(state, token, num_tokens, first, width).to(y.dtype)
        g = _load(gradient, token, num_tokens, first, width).to(y.dtype)
        grad = tl.dot(slope.to(y.dtype), y, input_precision="ieee")
        _store(state_grad, grad, token, num_tokens, first, width)
        grad = tl.dot(tl.trans(score).to(y.dtype), g, input_precision="ieee")
        grad += tl.dot(tl.trans(slope).to(y.dtype), x, input_precision="ieee")
        _store(part, grad, attractor, num_attractors, first, width)


@no_type_check
@triton.jit
def _softmax(logits: tensor, num_attractors: tensor, ATTRACTORS: constexpr) -> tensor:
    logits = tl.where(tl.arange(0, ATTRACTORS)[None, :] < num_attractors, logits, -float("inf"))
    exponential = tl.exp(logits - tl.max(logits, axis=1)[:, None])
    return exponential / tl.sum(exponential, axis=1)[:, None]


@no_type_check
@triton.jit
def _load(x: tensor, row: tensor, num_rows: tensor, first: tensor, width: tensor) -> tensor:
    """Load a block of columns of some rows, with zeros beyond the end."""
    column = first + tl.arange(0, COLUMNS)
    is_real = (row < num_rows)[:, None] & (column < width)[None, :]
    return tl.load(x + row.to(tl.int64)[:, None] * width + column, mask=is_real, other=0.0)


@no_type_check
@triton.jit
def _store(
    x: tensor, value: tensor, row: tensor, num_rows: tensor, first: tensor, width: tensor
) -> None:
    column = first + tl.arange(0, COLUMNS)
    is_real = (row < num_rows)[:, None] & (column < width)[None, :]
    tl.store(x + row.to(tl.int64)[:, None] * width + column, value, mask=is_real)
