"""The Hopfield retrieval in Triton: one pass over the tokens, no weights stored.

All attractors answer a tile of tokens at once, so that the softmax never leaves the registers;
tokens and attractors are read in blocks of columns. Backward computes the weights anew. What the
attractors owe to a tile of tokens is kept apart and summed in the end: no sum depends on timing.

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
MAX_ATTRACTORS = 128  # that fit in registers
TOKENS = constexpr(64)  # of a tile
COLUMNS = constexpr(64)  # of a block


def hopfield_retrieve(
    state: Float[Tensor, "*B E"],
    attractors: Float[Tensor, "M E"],
    beta: float,
    num_steps: int = 1,
) -> Float[Tensor, "*B E"]:
    """Give what `functional.hopfield_retrieve` gives; it can be differentiated once.

    Similarities are float32. With more than `MAX_ATTRACTORS`, or a dtype that is none of
    `DTYPES`, it is the plain form itself.
    """
    device = state.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        state, attractors = state.to(dtype), attractors.to(dtype)
    fits = len(attractors) <= MAX_ATTRACTORS and {state.dtype, attractors.dtype} <= {*DTYPES}
    if not fits:
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
    """Pull each state towards the attractors, once."""
    state, attractors = state.contiguous(), attractors.contiguous()
    retrieved = torch.empty_like(state)
    with torch.cuda.device(state.get_device()):  # -1, a CPU, changes nothing
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
    """Give the gradients of states and attractors."""
    given = gradient.contiguous(), state.contiguous(), attractors.contiguous()
    grid, state_grad = _grid(state), torch.empty_like(given[1])
    parts = attractors.new_empty(*grid, *attractors.shape, dtype=torch.float32)  # (N, M, E)
    with torch.cuda.device(state.get_device()):
        _backward[grid](*given, state_grad, parts, beta, *_sizes(state, attractors))
    return state_grad, parts.sum(dim=0).to(attractors.dtype)


@_retrieve_backward.register_fake
def _(gradient: Tensor, state: Tensor, attractors: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    return state.new_empty(state.shape), attractors.new_empty(attractors.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401
    *tensors, ctx.beta = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:  # noqa: ANN401
    return *_retrieve_backward(gradient, *ctx.saved_tensors, ctx.beta), None


_retrieve.register_autograd(_differentiate, setup_context=_keep)


def _grid(state: Tensor) -> tuple[int]:
    return (triton.cdiv(state.numel() // state.shape[-1], TOKENS.value),)


def _sizes(state: Tensor, attractors: Tensor) -> tuple[int, int, int, int]:
    """Give T, M and E, and the attractors of a tile: a power of two that a product takes."""
    num_attractors, width = attractors.shape
    filled = max(16, triton.next_power_of_2(num_attractors))
    return state.numel() // width, num_attractors, width, filled


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
    """Retrieve a tile of tokens."""
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    which = tl.arange(0, ATTRACTORS)
    similarity = tl.zeros((TOKENS, ATTRACTORS), dtype=tl.float32)
    for first in range(0, width, COLUMNS):
        y = _load(attractors, which, num_attractors, first, width)
        x = _load(state, token, num_tokens, first, width).to(y.dtype)
        similarity += tl.dot(x, tl.trans(y), input_precision="ieee")
    weight = _softmax(beta * similarity, num_attractors, ATTRACTORS)
    for first in range(0, width, COLUMNS):
        y = _load(attractors, which, num_attractors, first, width)
        taken = tl.dot(weight.to(y.dtype), y, input_precision="ieee")
        _store(retrieved, taken, token, num_tokens, first, width)


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
    """Give the gradient of a tile of tokens, and its part in the gradient of the attractors."""
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    which = tl.arange(0, ATTRACTORS)
    similarity = tl.zeros((TOKENS, ATTRACTORS), dtype=tl.float32)
    agreement = tl.zeros((TOKENS, ATTRACTORS), dtype=tl.float32)  # of attractors and gradient
    for first in range(0, width, COLUMNS):
        y = _load(attractors, which, num_attractors, first, width)
        x = _load(state, token, num_tokens, first, width).to(y.dtype)
        g = _load(gradient, token, num_tokens, first, width).to(y.dtype)
        similarity += tl.dot(x, tl.trans(y), input_precision="ieee")
        agreement += tl.dot(g, tl.trans(y), input_precision="ieee")
    weight = _softmax(beta * similarity, num_attractors, ATTRACTORS)
    slope = beta * weight * (agreement - tl.sum(weight * agreement, axis=1)[:, None])
    part = parts + tl.program_id(0).to(tl.int64) * num_attractors * width
    for first in range(0, width, COLUMNS):
        y = _load(attractors, which, num_attractors, first, width)
        x = _load(state, token, num_tokens, first, width).to(y.dtype)
        g = _load(gradient, token, num_tokens, first, width).to(y.dtype)
        owed = tl.dot(slope.to(y.dtype), y, input_precision="ieee")
        _store(state_grad, owed, token, num_tokens, first, width)
        owed = tl.dot(tl.trans(weight).to(y.dtype), g, input_precision="ieee")
        owed += tl.dot(tl.trans(slope).to(y.dtype), x, input_precision="ieee")
        _store(part, owed, which, num_attractors, first, width)


@no_type_check
@triton.jit
def _softmax(logits: tensor, num_attractors: tensor, ATTRACTORS: constexpr) -> tensor:
    logits = tl.where(tl.arange(0, ATTRACTORS)[None, :] < num_attractors, logits, -float("inf"))
    weight = tl.exp(logits - tl.max(logits, axis=1)[:, None])
    return weight / tl.sum(weight, axis=1)[:, None]


@no_type_check
@triton.jit
def _load(x: tensor, row: tensor, num_rows: tensor, first: tensor, width: tensor) -> tensor:
    """Load a block of columns of some rows, zeros beyond the end."""
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
