"""Capacity: what becomes of the memory as priors and pool grow.

Fresh priors are drawn and move over pools of the split through the trained maps of a layer; then
the memory is looked at.

Dims     L layers   P numbers of priors   Q pool sizes
         T tokens at hand   E token width   S heads of the workspace   M priors   D prior width
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
from associative_transformer.models import AiT
from associative_transformer.workspace import GlobalWorkspace

NUM_PRIORS = (8, 16, 32, 64, 128)
POOL_SIZES = (1_024, 4_096, 16_384, 32_768)
NEAR = 0.1  # a recalled attractor comes back to this share of its norm
MAX_STEPS = 500  # of a retrieval; a state that still moves then is taken where it is
AT_REST = 1e-5  # longest step of a state at rest, as a share of the norm of its attractor


@dataclass(frozen=True)
class Capacity:
    """What memories of several sizes hold after writing pools of several sizes."""

    num_priors: Int[np.ndarray, " P"]
    pool_sizes: Int[np.ndarray, " Q"]
    num_moves: int  # how often each memory was written
    effective_rank: Float[np.ndarray, "L P Q"]
    coverage: Float[np.ndarray, "L P Q"]  # share of the pool that some prior of a head takes
    recalled: Float[np.ndarray, "L P Q"]  # share of attractors that are fixed points of their own


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

    No more batches are taken than fill the largest pool. Pool sizes that they can't fill are left
    out; where they can't fill the smallest, there is one pool of all tokens. No prior sees
    another while it is written, so a memory of 8 priors is the first 8 rows of one of 128, and
    only the largest is written. `recalled` is nan where the tokens don't read by Hopfield
    retrieval.
    """
    layers = _gather(model, batches, max(pool_sizes))
    num_tokens = len(layers[0])
    sizes = [size for size in pool_sizes if size <= num_tokens] or [num_tokens]
    found = np.empty((3, len(layers), len(num_priors), len(sizes)))
    for layer, u in enumerate(layers):
        workspace = cast(GlobalWorkspace, model.blocks[layer].workspace)
        for place, size in enumerate(sizes):
            generator = torch.Generator().manual_seed(seed)  # the same priors everywhere
            memory = copy.deepcopy(workspace).eval()
            fresh = torch.randn(max(num_priors), memory.priors.shape[1], generator=generator)
            memory.priors = fresh.to(u)
            for _ in range(num_moves):
                memory.remember(memory.write(_draw(u, size, generator)).priors)
            chosen = memory.write(_draw(u, size, generator)).selection.chosen
            for count, number in enumerate(num_priors):
                found[:, layer, count, place] = (
                    effective_rank(memory.priors[:number]),
                    _coverage(chosen[:, :number], size),
                    _recalled(memory, number),
                )
    return Capacity(np.array(num_priors), np.array(sizes), num_moves, *found)


def _gather(model: AiT, batches: Iterable[Batch], num_tokens: int) -> list[Float[Tensor, "T E"]]:
    """Collect the first patch tokens that each layer hands to its workspace, up to this many."""
    found: list[list[Tensor]] = [[] for _ in model.blocks]
    missing = num_tokens
    for traced in trace_all(model, batches):
        for kept, layer in zip(found, traced.layers, strict=True):
            u = cast(Tensor, layer.handed)[:, -traced.num_patches :]
            kept.append(u.flatten(0, 1)[:missing])
        missing -= len(found[0][-1])
        if missing == 0:
            break
    return [torch.cat(kept) for kept in found]


def _draw(u: Float[Tensor, "T E"], size: int, generator: torch.Generator) -> Tensor:
    return u[torch.randperm(len(u), generator=generator)[:size].to(u.device)]


def _coverage(chosen: Int[Tensor, "S M K"], pool_size: int) -> float:
    is_taken = torch.zeros(len(chosen), pool_size, device=chosen.device)
    return is_taken.scatter_(1, chosen.flatten(1).long(), 1.0).mean().item()


def _recalled(memory: GlobalWorkspace, number: int) -> float:
    """Retrieve the first `number` attractors from themselves until rest; count those that stay."""
    if memory.reader is not None:
        return float("nan")
    attractors = memory.to_attractor(memory.priors[:number])  # (M, E)
    norm = attractors.norm(dim=-1)
    state = attractors
    for _ in range(MAX_STEPS):
        previous, state = state, hopfield_retrieve(state, attractors, memory.config.beta)
        if ((state - previous).norm(dim=-1) <= AT_REST * norm).all():
            break
    exact = "donot_use_mm_for_euclid_dist"  # the usual way blurs attractors that lie close by
    distance = torch.cdist(state, attractors, compute_mode=exact)
    own = distance.diag().clone()
    others = distance.fill_diagonal_(torch.inf).amin(dim=-1)
    return ((own < others) & (own <= NEAR * norm)).float().mean().item()
