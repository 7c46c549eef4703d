"""Capacity: how much a memory can store as the number of priors and the pool size grow.

Random priors are drawn and then updated repeatedly from pools of the split, with the trained maps
of a layer; the resulting memory is measured. With scope "image", they are written once by the
tokens of each of some images, and the results are means over images and over heads of the read.

Dims     L layers   P numbers of priors   Q pool sizes   I images   N tokens per image
         T tokens available   E token width   S heads of the workspace   M priors   D prior width
         K tokens that a prior takes   G networks: images and heads, or none   d width of a state
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from associative_transformer.analysis.networks import networks_of, retrieve
from associative_transformer.analysis.trace import first_images, trace_all
from associative_transformer.functional import effective_rank
from associative_transformer.interface import Batch
from associative_transformer.models.ait import AiT
from associative_transformer.workspace import GlobalWorkspace

NUM_PRIORS = (8, 16, 32, 64, 128)
POOL_SIZES = (1_024, 4_096, 16_384, 32_768)
NUM_IMAGES = 16  # whose memories are written, with scope "image"
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
    coverage: Float[np.ndarray, "L P Q"]  # share of a pool that the priors of a head take
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
    are left out; if even the smallest cannot be filled, all tokens form one pool. Without a
    competition, priors do not interact during a write, so a memory of 8 priors equals the first 8
    rows of a memory of 128, and only the largest memory is written. `recalled` is nan if the model
    does not read by Hopfield retrieval.

    With scope "image", all tokens of each of the first 16 images are a pool; `pool_sizes` and
    `num_moves` are not used.
    """
    measure = partial(_measure_layer, num_priors=num_priors, seed=seed)
    workspaces = [cast(GlobalWorkspace, block.workspace) for block in model.blocks]
    if model.config.workspace.scope == "image":
        images = first_images(model, batches, NUM_IMAGES)
        sizes, num_moves = [images[0].shape[1]], 1
        layers = [
            measure(_of_images, workspace, [u])
            for workspace, u in zip(workspaces, images, strict=True)
        ]
    else:
        tokens = _gather_tokens(model, batches, max(pool_sizes))
        sizes = [size for size in pool_sizes if size <= len(tokens[0])] or [len(tokens[0])]
        layers = [
            measure(partial(_of_pools, u=u, num_moves=num_moves), workspace, sizes)
            for workspace, u in zip(workspaces, tokens, strict=True)
        ]
    measured = np.stack(layers, axis=1)  # (3, L, P, Q)
    return Capacity(np.array(num_priors), np.array(sizes), num_moves, *measured)


class _Memory(NamedTuple):
    """Measurements of one memory; the fields are those of `Capacity`."""

    effective_rank: float
    coverage: float
    recalled: float


def _measure_layer(
    write: Callable[..., list[_Memory]],
    workspace: GlobalWorkspace,
    pools: Sequence[Any],
    num_priors: Sequence[int],
    seed: int,
) -> Float[np.ndarray, "3 P Q"]:
    """Write fresh memories from each pool, and return what is measured for each number of priors.

    `write` gets a workspace with fresh priors, the pool, and the numbers of priors to measure.
    """
    counts = [[count] for count in num_priors]
    if workspace.config.competition == "none":
        counts = [list(num_priors)]
    measured = np.empty((len(_Memory._fields), len(num_priors), len(pools)))
    for column, pool in enumerate(pools):
        rows: list[_Memory] = []
        for together in counts:
            generator = torch.Generator().manual_seed(seed)  # the same priors each time
            memory = copy.deepcopy(workspace).eval()
            fresh = torch.randn(max(num_priors), memory.priors.shape[1], generator=generator)
            if memory.config.scope == "image":
                fresh = normalize(fresh, dim=-1) * fresh.shape[1] ** 0.5
            fresh = fresh[: max(together)].to(memory.priors)
            memory.priors = nn.Parameter(fresh) if memory.config.scope == "image" else fresh
            rows += write(memory, pool, together, generator)
        measured[:, :, column] = np.array(rows).T
    return measured


def _of_pools(
    memory: GlobalWorkspace,
    size: int,
    counts: Sequence[int],
    generator: torch.Generator,
    u: Float[Tensor, "T E"],
    num_moves: int,
) -> list[_Memory]:
    """Move the memory by writes from pools of a size, and measure its first priors."""
    for _ in range(num_moves):
        memory.remember(memory.write(_draw(u, size, generator)).priors)
    chosen = memory.write(_draw(u, size, generator)).selection.chosen
    return [
        _Memory(
            effective_rank(memory.priors[:count]),
            _coverage(chosen[:, :count], size),
            _share_recalled(memory, count),
        )
        for count in counts
    ]


def _of_images(
    memory: GlobalWorkspace,
    u: Float[Tensor, "I N E"],
    counts: Sequence[int],
    generator: torch.Generator,
) -> list[_Memory]:
    """Let the tokens of each image write the memory, and measure its first priors."""
    priors, _, (_, _, chosen) = memory.write_images(u)
    patterns, scale = networks_of(memory, u)[1:]
    return [
        _Memory(
            float(np.mean([effective_rank(each) for each in priors[:, :count]])),
            chosen[:, :, :count].any(dim=2).double().mean().item(),
            _share_kept(patterns[..., :count, :], scale * memory.config.beta),
        )
        for count in counts
    ]


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
    return _share_kept(memory.to_attractor(memory.priors[:count]), memory.config.beta)


def _share_kept(attractors: Float[Tensor, "*G M d"], beta: float) -> float:
    """Return the share of attractors that retrieval keeps in place."""
    norm = attractors.norm(dim=-1)  # (*G, M)
    state = attractors
    for _ in range(MAX_STEPS):
        previous, state = state, retrieve(state, attractors, beta)
        if ((state - previous).norm(dim=-1) <= AT_REST * norm).all():
            break
    exact = "donot_use_mm_for_euclid_dist"  # matrix products would be inexact for close attractors
    distance = torch.cdist(state, attractors, compute_mode=exact)  # (*G, M, M)
    to_own = distance.diagonal(dim1=-2, dim2=-1)
    is_own = torch.eye(attractors.shape[-2], dtype=torch.bool, device=attractors.device)
    to_others = distance.masked_fill(is_own, torch.inf).amin(dim=-1)
    return ((to_own < to_others) & (to_own <= NEAR * norm)).float().mean().item()
