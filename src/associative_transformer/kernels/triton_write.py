"""Pooled attention in Triton: similarities stay on the chip, and only winners are stored.

The winners of a prior are the tokens above a threshold, which is found four bits at a time in the
bit patterns of the similarities. Each round recomputes these, tile by tile as in flash attention,
and only counts how many reach each of 15 limits. At the end, each token has one bit per prior,
set if the token won. One compiled kernel makes all comparisons, and all later steps use these
bits, so exactly K tokens win; of equal tokens, the first in the pool. No sum depends on timing.

Dims     T pooled tokens   E token width   S heads   M priors   D head width   K bottleneck
         N tiles of tokens   G groups of priors, with one word of bits per token
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear
from triton.language import constexpr, tensor

from associative_transformer import functional

DTYPES = (torch.float32, torch.bfloat16)
WIDTHS = (16, 32, 64, 128)  # widths of a head that fill a tile
TOKENS = constexpr(128)  # in a tile
PRIORS = constexpr(32)  # in a group: the bits of a word
LIMITS = constexpr(15)  # in a round of the search: the values of four bits, except 0


def pooled_attention(
    q: Float[Tensor, "S M D"],
    tokens: Float[Tensor, "T E"],
    w_k: Float[Tensor, "S D E"],
    w_v: Float[Tensor, "S D E"],
    bottleneck: int | None,
    competition: str = "none",
    center_values: bool = False,
) -> functional.Selection:
    """Compute `functional.pooled_attention`; can be differentiated once.

    Winners are in the order of the pool, and similarities are float32. If all tokens win, with
    competition or centered values, or for other `WIDTHS` or `DTYPES`, this calls `functional`.
    """
    num_heads, _, width = q.shape
    rules = (competition, center_values)
    autocast = torch.is_autocast_enabled(tokens.device.type)
    dtype = torch.get_autocast_dtype(tokens.device.type) if autocast else tokens.dtype
    is_supported = width in WIDTHS and dtype in DTYPES and rules == ("none", False)
    if bottleneck is None or bottleneck >= len(tokens) or not is_supported:
        return functional.pooled_attention(q, tokens, w_k, w_v, bottleneck, *rules)
    k, v = (linear(tokens, w.flatten(0, 1)).view(-1, num_heads, width) for w in (w_k, w_v))
    return functional.Selection(*_attend(q.to(dtype), k, v, bottleneck)[:3])


@torch.library.custom_op(
    "associative_transformer::triton_attend",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, int bottleneck)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _attend(q: Tensor, k: Tensor, v: Tensor, bottleneck: int) -> tuple[Tensor, ...]:
    """Return values (S, M, D), scores and positions (S, M, K), and two tensors for backward.

    marks[0] (S, G, T) has the bits of the winners, start (S, N, M) their number before each tile.
    """
    q, k = q.contiguous(), k.contiguous()
    logits = q.new_empty(*q.shape[:2], bottleneck, dtype=torch.float32)
    chosen = torch.empty_like(logits, dtype=torch.long)
    with torch.cuda.device(q.get_device()):  # -1, for a CPU, has no effect
        marks, start, spare = _mark_candidates(q, k, bottleneck)
        tensors, sizes = (marks, start, spare, logits, chosen), (len(k), q.shape[1], bottleneck)
        _store_winners[_grid(q, k)](q, k, *tensors, *sizes, q.shape[2])
    score = logits.softmax(dim=-1)
    value = torch.einsum("smk,smkd->smd", score.to(v.dtype), _rows(v, chosen))
    return value, score, chosen, marks, start


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, bottleneck: int) -> tuple[Tensor, ...]:
    (num_heads, num_priors, _), (tiles, _, groups) = q.shape, _grid(q, k)
    chosen = q.new_empty(num_heads, num_priors, bottleneck, dtype=torch.long)
    marks = q.new_empty(2, num_heads, groups, len(k), dtype=torch.int32)
    start = marks.new_empty(num_heads, tiles, num_priors)
    return q.new_empty(q.shape), chosen.float(), chosen, marks, start


@torch.library.custom_op(
    "associative_transformer::triton_attend_backward",
    mutates_args=(),
    schema="(Tensor[] gradients, Tensor[] saved) -> (Tensor, Tensor, Tensor)",
)
def _attend_backward(gradients: list[Tensor], saved: list[Tensor]) -> tuple[Tensor, ...]:
    """Return the gradients of queries, keys and values, given those of the outputs."""
    value_grad, score_grad = gradients
    q, k, v, score, chosen, marks, start = saved
    agreement = torch.einsum("smd,smkd->smk", value_grad, _rows(v, chosen))
    slope = score * (score_grad + agreement)
    slope = (slope - score * slope.sum(dim=-1, keepdim=True)) / q.shape[-1] ** 0.5
    q_grad = torch.einsum("smk,smkd->smd", slope.to(k.dtype), _rows(k, chosen))
    with torch.cuda.device(q.get_device()):
        k_grad = _sum_by_token(slope.contiguous(), q, marks, start)
        v_grad = _sum_by_token(score, value_grad, marks, start)
    return q_grad, k_grad, v_grad


@_attend_backward.register_fake
def _(gradients: list[Tensor], saved: list[Tensor]) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in saved[:3])


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:  # noqa: ANN401
    ctx.save_for_backward(*inputs[:3], *output[1:])


def _differentiate(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:  # noqa: ANN401
    return *_attend_backward(list(gradients[:2]), list(ctx.saved_tensors)), None


_attend.register_autograd(_differentiate, setup_context=_save_for_backward)


def _mark_candidates(q: Tensor, k: Tensor, bottleneck: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mark the tokens above the K-th largest similarity, and those equal to it.

    Also return how many tokens win before each tile, and how many equal ones may still win.
    """
    tiles, num_heads, groups = grid = _grid(q, k)
    floor = q.new_zeros(q.shape[:2], dtype=torch.int32)
    counts = floor.new_empty(num_heads, tiles, q.shape[1], LIMITS.value)
    marks = floor.new_empty(2, num_heads, groups, len(k))
    arguments = q, k, floor, counts, marks, len(k), q.shape[1]
    for shift in (28, 24, 20, 16, 12, 8, 4, 0):
        _count_above[grid](*arguments, 1 << shift, q.shape[2])
        reached = counts.sum(dim=1) >= bottleneck  # (S, M, LIMITS)
        floor |= reached.sum(dim=-1, dtype=torch.int32) << shift
    _count_above[grid](*arguments, 0, q.shape[2])
    above, equal = counts[..., 0], counts[..., 1]  # (S, N, M)
    equal_winners = bottleneck - above.sum(dim=1, keepdim=True)
    spare = (equal_winners - equal.cumsum(dim=1) + equal).clamp(min=0)
    start = above.cumsum(dim=1) - above + equal_winners - spare
    return marks, start.int(), spare.int()


def _rows(x: Tensor, chosen: Tensor) -> Tensor:
    """Return the rows of the chosen tokens, (S, M, K, D)."""
    return x[chosen, torch.arange(len(chosen), device=x.device)[:, None, None]]


def _sum_by_token(weight: Tensor, a: Tensor, marks: Tensor, start: Tensor) -> Tensor:
    """For each token, sum the weighted rows of `a` (S, M, D) of the priors that chose it."""
    num_tokens, (num_heads, num_priors, width) = marks.shape[-1], a.shape
    x = a.new_empty(num_tokens, num_heads, width)
    tensors, sizes = (weight, a.contiguous(), marks, start, x), (num_tokens, num_priors)
    _sum_priors[start.shape[1], num_heads](*tensors, *sizes, weight.shape[-1], width)
    return x


def _grid(q: Tensor, k: Tensor) -> tuple[int, int, int]:
    return triton.cdiv(len(k), TOKENS.value), len(q), triton.cdiv(q.shape[1], PRIORS.value)


@no_type_check
@triton.jit
def _similarity(
    q: tensor, k: tensor, num_tokens: tensor, num_priors: tensor, WIDTH: constexpr
) -> tensor:
    """Compute the similarities of the queries of a group to the keys of a tile."""
    prior = tl.program_id(2) * PRIORS + tl.arange(0, PRIORS)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    column = tl.arange(0, WIDTH)
    row = tl.program_id(1) * num_priors + prior
    query = tl.load(q + row[:, None] * WIDTH + column, mask=prior[:, None] < num_priors, other=0.0)
    row = token.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    keys = tl.load(k + row[:, None] * WIDTH + column, mask=token[:, None] < num_tokens, other=0.0)
    return tl.dot(query, tl.trans(keys), input_precision="ieee")


@no_type_check
@triton.jit(do_not_specialize=["step"])
def _count_above(
    q: tensor,
    k: tensor,
    floor: tensor,
    counts: tensor,
    marks: tensor,
    num_tokens: tensor,
    num_priors: tensor,
    step: tensor,
    WIDTH: constexpr,
) -> None:
    """Count the tokens at least one step above the floor, at least two steps, and so on.

    With a step of 0, count and mark those above the floor and those equal to it.
    """
    head, tile, group = tl.program_id(1), tl.program_id(0), tl.program_id(2)
    prior = group * PRIORS + tl.arange(0, PRIORS)
    token = tile * TOKENS + tl.arange(0, TOKENS)
    is_prior = prior < num_priors
    is_real = is_prior[:, None] & (token < num_tokens)[None, :]
    similarity = _similarity(q, k, num_tokens, num_priors, WIDTH)
    pattern = similarity.to(tl.uint32, bitcast=True)
    pattern = tl.where(similarity < 0, pattern ^ 0xFFFFFFFF, pattern | 0x80000000)
    least = tl.load(floor + head * num_priors + prior, mask=is_prior, other=0)
    least = least.to(tl.uint32, bitcast=True)[:, None]
    counts += ((head * tl.num_programs(0) + tile) * num_priors + prior) * LIMITS
    if step > 0:
        for digit in tl.static_range(1, LIMITS + 1):
            reached = is_real & (pattern >= least + step.to(tl.uint32) * digit)
            tl.store(counts + digit - 1, tl.sum(reached.to(tl.int32), axis=1), mask=is_prior)
    else:
        above, equal = is_real & (pattern > least), is_real & (pattern == least)
        tl.store(counts, tl.sum(above.to(tl.int32), axis=1), mask=is_prior)
        tl.store(counts + 1, tl.sum(equal.to(tl.int32), axis=1), mask=is_prior)
        word = marks + (head * tl.num_programs(2) + group) * num_tokens + token
        tl.store(word, _pack(above), mask=token < num_tokens)
        half = tl.num_programs(1) * tl.num_programs(2) * num_tokens
        tl.store(word + half, _pack(equal), mask=token < num_tokens)


@no_type_check
@triton.jit
def _store_winners(
    q: tensor,
    k: tensor,
    marks: tensor,
    start: tensor,
    spare: tensor,
    logits: tensor,
    chosen: tensor,
    num_tokens: tensor,
    num_priors: tensor,
    bottleneck: tensor,
    WIDTH: constexpr,
) -> None:
    """Store logits and positions of the winners of a tile, and mark them."""
    head, tile, group = tl.program_id(1), tl.program_id(0), tl.program_id(2)
    prior = group * PRIORS + tl.arange(0, PRIORS)
    token = tile * TOKENS + tl.arange(0, TOKENS)
    is_prior, is_token = prior < num_priors, token < num_tokens
    marks += (head * tl.num_programs(2) + group) * num_tokens + token
    above = _unpack(tl.load(marks, mask=is_token, other=0))
    half = tl.num_programs(1) * tl.num_programs(2) * num_tokens
    equal = _unpack(tl.load(marks + half, mask=is_token, other=0))
    row = (head * tl.num_programs(0) + tile) * num_priors + prior
    spare = tl.load(spare + row, mask=is_prior, other=0)[:, None]
    wins = above | (equal & (tl.cumsum(equal, axis=1) <= spare).to(tl.int32))
    slot = tl.load(start + row, mask=is_prior, other=0)[:, None] + tl.cumsum(wins, axis=1) - 1
    slot += (head * num_priors + prior)[:, None] * bottleneck
    logit = _similarity(q, k, num_tokens, num_priors, WIDTH) * WIDTH**-0.5
    tl.store(logits + slot, logit, mask=wins == 1)
    tl.store(chosen + slot, token[None, :], mask=wins == 1)
    tl.store(marks, _pack(wins), mask=is_token)


@no_type_check
@triton.jit
def _sum_priors(
    weight: tensor,
    a: tensor,
    marks: tensor,
    start: tensor,
    x: tensor,
    num_tokens: tensor,
    num_priors: tensor,
    bottleneck: tensor,
    WIDTH: constexpr,
) -> None:
    """For each token of a tile, sum the weighted rows of the priors that chose it."""
    head, tile, num_groups = tl.program_id(1), tl.program_id(0), tl.cdiv(num_priors, PRIORS)
    token, column = tile * TOKENS + tl.arange(0, TOKENS), tl.arange(0, WIDTH)
    total = tl.zeros((TOKENS, WIDTH), dtype=tl.float32)
    for group in range(num_groups):
        prior = group * PRIORS + tl.arange(0, PRIORS)
        word = (head * num_groups + group) * num_tokens + token
        wins = _unpack(tl.load(marks + word, mask=token < num_tokens, other=0))
        row = (head * tl.num_programs(0) + tile) * num_priors + prior
        slot = tl.load(start + row, mask=prior < num_priors, other=0)[:, None]
        slot += tl.cumsum(wins, axis=1) - 1 + (head * num_priors + prior)[:, None] * bottleneck
        share = tl.load(weight + slot, mask=wins == 1, other=0.0)
        row = (head * num_priors + prior)[:, None] * WIDTH + column
        rows = tl.load(a + row, mask=prior[:, None] < num_priors, other=0.0)
        total += tl.dot(tl.trans(share).to(rows.dtype), rows, input_precision="ieee")
    row = token.to(tl.int64) * tl.num_programs(1) + head
    tl.store(x + row[:, None] * WIDTH + column, total, mask=token[:, None] < num_tokens)


@no_type_check
@triton.jit
def _pack(bits: tensor) -> tensor:
    """Pack the bits of the priors of a group into one word per token."""
    position = tl.arange(0, PRIORS)[:, None].to(tl.uint32)
    return tl.sum(bits.to(tl.uint32) << position, axis=0).to(tl.int32, bitcast=True)


@no_type_check
@triton.jit
def _unpack(word: tensor) -> tensor:
    return (word[None, :] >> tl.arange(0, PRIORS)[:, None]) & 1
