"""Capacity: how much a memory can store as the number of priors and the pool size grow.

Random priors are drawn and then updated repeatedly from pools of the split, with the trained maps
of a layer; the resulting memory is measured.

Dims     L layers   P numbers of priors   Q pool sizes
         T tokens available   E token width   S heads of the workspace   M priors   D prior width
         K tokens that a prior takes
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from associative_transformer.analysis.trace import trace_all
from associative_transformer.functional import effective_rank, hopfield_retrieve
from associative_transformer.interface import Batch
from associative_transformer.models.ait import AiT
from associative_transformer.workspace import GlobalWorkspace

NUM_PRIORS = (8, 16, 32, 64, 128)
POOL_SIZES = (1_024, 4_096, 16_384, 32_768)
NEAR = 0.1  # largest distance that a recalled attractor moves, as a share of its norm
MAX_STEPS = 500  # retrieval steps; a state that still moves after them is treated as at rest
AT_REST = 1e-5  # longest step of a state at rest, as a share of the norm of its attractor


@dataclass(frozen=True)
class Capacity:
    """Measurements of memories of several sizes, written from pools of several sizes."""

    num_priors: Int[np.ndarray, " P"]
    pool_sizes: Int[np.ndarray, " Q"]
    num_moves: int  # number of writes to each memory
    effective_rank: Float[np.ndarray, "L P Q"]
    coverage: Float[np.ndarray, "L P Q"]  # share of the pool that the priors of a head take
    recalled: Float[np.ndarray, "L P Q"]  # share of attractors that retrieval keeps in place


@torch.no_grad()
def measure_capacity(
    model: AiT,
    batches: Iterable[Batch],
    num_priors: Sequence[int] = NUM_PRIORS,
    pool_sizes: Sequence[int] = POOL_SIZES,
    num_moves: int = 20,
    seed: int = 0,
) -> Capacity:
    """Write memories of several sizes from pools of several sizes, drawn from patch tokens.

    Batches are read only until the largest pool is full. Pool sizes that the batches cannot fill
    are left out; if even the smallest cannot be filled, all tokens form one pool. Priors do not
    interact during a write, so a memory of 8 priors equals the first 8 rows of a memory of 128,
    and only the largest memory is written. `recalled` is nan if the model does not read by
    Hopfield retrieval.
    """
    layers = _gather_tokens(model, batches, max(pool_sizes))
    num_tokens = len(layers[0])
    sizes = [size for size in pool_sizes if size <= num_tokens] or [num_tokens]
    measured = np.empty((3, len(layers), len(num_priors), len(sizes)))
    for layer, u in enumerate(layers):
        workspace = cast(GlobalWorkspace, model.blocks[layer].workspace)
        for column, size in enumerate(sizes):
            generator = torch.Generator().manual_seed(seed)  # the same priors each time
            memory = copy.deepcopy(workspace).eval()
            fresh = torch.randn(max(num_priors), memory.priors.shape[1], generator=generator)
            memory.priors = fresh.to(u)
            for _ in range(num_moves):
                memory.remember(memory.write(_draw(u, size, generator)).priors)
            chosen = memory.write(_draw(u, size, generator)).selection.chosen
            for row, count in enumerate(num_priors):
                measured[:, layer, row, column] = (
                    effective_rank(memory.priors[:count]),
                    _coverage(chosen[:, :count], size),
                    _share_recalled(memory, count),
                )
    return Capacity(np.array(num_priors), np.array(sizes), num_moves, *measured)


def _gather_tokens(
    model: AiT, batches: Iterable[Batch], num_tokens: int
) -> list[Float[Tensor, "T E"]]:
    """Return the first `num_tokens` patch tokens that the workspace of each layer receives."""
    layers: list[list[Tensor]] = [[] for _ in model.blocks]
    num_missing = num_tokens
    for traced in trace_all(model, batches):
        for tokens, layer in zip(layers, traced.layers, strict=True):
            u = cast(Tensor, layer.workspace_input)[:, -model.embed.num_patches :]
            tokens.append(u.flatten(0, 1)[:num_missing])
        num_missing -= len(layers[0][-1])
        if num_missing == 0:
            break
    return [torch.cat(tokens) for tokens in layers]


def _draw(u: Float[Tensor, "T E"], size: int, generator: torch.Generator) -> Tensor:
    return u[torch.randperm(len(u), generator=generator)[:size].to(u.device)]


def _coverage(chosen: Int[Tensor, "S M K"], pool_size: int) -> float:
    is_taken = torch.zeros(len(chosen), pool_size, device=chosen.device)
    return is_taken.scatter_(1, chosen.flatten(1).long(), 1.0).mean().item()


def _share_recalled(memory: GlobalWorkspace, count: int) -> float:
    """Return the share of the first `count` attractors that retrieval keeps in place."""
    if memory.reader is not None:
        return float("nan")
    attractors = memory.to_attractor(memory.priors[:count])  # (M, E)
    norm = attractors.norm(dim=-1)
    state = attractors
    for _ in range(MAX_STEPS):
        previous, state = state, hopfield_retrieve(state, attractors, memory.config.beta)
        if ((state - previous).norm(dim=-1) <= AT_REST * norm).all():
            break
    exact = "donot_use_mm_for_euclid_dist"  # matrix products would be inexact for close attractors
    distance = torch.cdist(state, attractors, compute_mode=exact)
    to_own = distance.diag().clone()
    to_others = distance.fill_diagonal_(torch.inf).amin(dim=-1)
    return ((to_own < to_others) & (to_own <= NEAR * norm)).float().mean().item()
