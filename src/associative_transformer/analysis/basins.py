"""The associative memory as a landscape: energy, fixed points and basins, recall under noise.

A token is retrieved again and again until it stays. Where it stays, count the attractors that make
up 90 % of the softmax: one is a single attractor, all (90 % of M) is the mean of all, what lies
between is a metastable state (Ramsauer et al. 2021, arXiv 2008.02217). Twins, attractors that are
equal, share the softmax: a token that rests at one is at an average of several.

Dims     R inverse temperatures   L layers   T retrieval steps   M priors   Z noise levels
         X steps shown   N tokens   E token width   F fixed points   C noisy copies
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from associative_transformer.analysis.trace import trace_all
from associative_transformer.functional import hopfield_energy, hopfield_retrieve
from associative_transformer.interface import Batch, UserError
from associative_transformer.models import AiT
from associative_transformer.models.pretrained import PretrainedModel
from associative_transformer.workspace import GlobalWorkspace

BETAS = (0.05, 0.25, 1.0, 4.0, 16.0)
NOISE = (0.1, 0.25, 0.5, 1.0)
SHARE = 0.9
"""Share of the softmax that the counted attractors make up."""
SAME = 0.01
"""States at rest that are closer, in mean attractor norms, are one fixed point."""
NUM_DRAWS = 16
"""Noisy copies of each attractor."""
POINTS_PER_PRIOR = 4
"""Fixed points that are looked for, times M."""


@dataclass(frozen=True)
class Basins:
    """Where the tokens of a split come to rest, for several inverse temperatures.

    Recall: Gaussian noise of a certain length (root mean square) is added to each attractor, 16
    times. A noisy attractor has returned to its own if it comes to rest within 0.01 mean norms of
    where the attractor without noise does, and the attractor alone makes up 90 % of the softmax
    there. So twins never return, nor does one that rests in an average.
    """

    betas: Float[np.ndarray, " R"]
    trained_beta: float
    num_tokens: int  # tokens that were retrieved in each layer
    energy: Float[np.ndarray, "R L X"]  # mean over the tokens before and after each of X - 1 steps
    energy_spread: Float[np.ndarray, "R L X"]  # standard deviation over the tokens
    num_fixed_points: Int[np.ndarray, "R L"]  # distinct places of rest; 4 M may be more
    single: Float[np.ndarray, "R L"]  # share of tokens at one attractor
    metastable: Float[np.ndarray, "R L"]  # at an average of several
    uniform: Float[np.ndarray, "R L"]  # at the mean of all; the three sum to 1
    basins: Float[np.ndarray, "R L M"]  # share of tokens by fixed point, the M largest, falling
    noise: Float[np.ndarray, " Z"]  # length of what is added, in mean attractor norms
    recall: Float[np.ndarray, "R L Z"]  # share of noisy attractors that return to their own


class Rest(NamedTuple):
    """Where states stay."""

    state: Float[Tensor, "*B E"]
    num_steps: Int[Tensor, "*B"]  # that moved the state; `max_steps` where it may still move


class FixedPoints(NamedTuple):
    """States that are the same within a tolerance, taken together."""

    number: int
    sizes: Int[Tensor, " F"]  # states at each, falling


@torch.no_grad()
def measure_basins(
    model: PretrainedModel,
    batches: Iterable[Batch],
    betas: Sequence[float] = BETAS,
    num_tokens: int = 2_000,
    num_steps: int = 5,
    noise: Sequence[float] = NOISE,
    seed: int = 0,
) -> Basins:
    """Retrieve a sample of the tokens of a split from the memory of each layer of an AiT.

    Every token is as likely to be drawn, the same ones in all layers; no others are kept. One
    that still moves after 100 steps is taken where it is. States within 0.01 mean attractor norms
    are one fixed point; beyond 4 M of them, no more are looked for.

    Raises UserError for other models and for the read by cross-attention, ValueError for a beta
    that is not positive and where there is no token.
    """
    ait = _with_basins(model)
    if min(betas) <= 0:
        raise ValueError(f"betas must be positive, not {min(betas)}")
    generator = torch.Generator().manual_seed(seed)
    sample = sample_tokens(ait, batches, num_tokens, generator)
    workspaces = [cast(GlobalWorkspace, block.workspace) for block in ait.blocks]
    memories = [_open(workspace, generator) for workspace in workspaces]
    explored = [
        [
            _explore(tokens, memory, beta, num_steps, noise)
            for tokens, memory in zip(sample, memories, strict=True)
        ]
        for beta in betas
    ]
    columns: dict[str, Any] = {
        name: np.array([[getattr(layer, name) for layer in row] for row in explored])
        for name in _Landscape._fields
    }
    return Basins(
        betas=np.array(betas, dtype=float),
        trained_beta=ait.config.workspace.beta,
        num_tokens=sample.shape[1],
        noise=np.array(noise, dtype=float),
        **columns,
    )


def retrieve_until_rest(
    state: Float[Tensor, "*B E"],
    attractors: Float[Tensor, "M E"],
    beta: float,
    max_steps: int = 100,
    tolerance: float = 1e-4,
) -> Rest:
    """Retrieve each state until a step moves it by `tolerance` mean attractor norms at most."""
    limit = tolerance * attractors.norm(dim=-1).mean()
    rest = state.reshape(-1, state.shape[-1]).clone()
    num_steps = torch.zeros(len(rest), dtype=torch.int64, device=rest.device)
    moving = torch.arange(len(rest), device=rest.device)
    for _ in range(max_steps):
        if len(moving) == 0:
            break
        moved = hopfield_retrieve(rest[moving], attractors, beta)
        is_moved = (moved - rest[moving]).norm(dim=-1) > limit
        rest[moving] = moved
        moving = moving[is_moved]
        num_steps[moving] += 1
    return Rest(rest.view_as(state), num_steps.view(state.shape[:-1]))


def num_needed(weights: Float[Tensor, "*B M"], share: float = SHARE) -> Int[Tensor, "*B"]:
    """Count how many of the largest weights of a row make up `share` of it; rows sum to 1."""
    reached = weights.double().sort(dim=-1, descending=True).values.cumsum(dim=-1)
    return (reached < share - 1e-6).sum(dim=-1) + 1  # 9 of 10 equal ones make up 0.9


def count_fixed_points(states: Float[Tensor, "N E"], tolerance: float, limit: int) -> FixedPoints:
    """Group states that lie within `tolerance` of the first one that is in no group yet.

    After `limit` groups no more are looked for: then the sizes sum to less than N.
    """
    sizes: list[int] = []
    while len(states) and len(sizes) < limit:
        is_apart = (states - states[0]).norm(dim=-1) > tolerance
        sizes.append(len(states))
        states = states[is_apart]
        sizes[-1] -= len(states)
    return FixedPoints(len(sizes), torch.tensor(sorted(sizes, reverse=True), dtype=torch.int64))


def sample_tokens(
    model: PretrainedModel,
    batches: Iterable[Batch],
    num_tokens: int,
    generator: torch.Generator,
) -> Float[Tensor, "L N E"]:
    """Draw tokens that an AiT hands to its workspaces, evenly from all batches.

    Each token draws a number; those with the smallest numbers so far are kept. Raises ValueError
    where there are no tokens.
    """
    numbers, kept = torch.empty(0, dtype=torch.float64), torch.empty(0)
    for traced in trace_all(model, batches):
        pools = [cast(Tensor, layer.handed).flatten(0, 1) for layer in traced.layers]
        kept = kept if len(numbers) else torch.stack([pool[:0] for pool in pools])
        drawn = torch.rand(len(pools[0]), generator=generator, dtype=torch.float64)
        numbers, num_kept = torch.cat([numbers, drawn]), len(numbers)
        order = numbers.argsort()[:num_tokens]
        old, new = order[order < num_kept], order[order >= num_kept]
        numbers = numbers[torch.cat([old, new])]
        old, new = old.to(kept.device), new.to(kept.device) - num_kept
        added = torch.stack([pool[new] for pool in pools])
        kept = torch.cat([kept[:, old], added], dim=1)
    if len(numbers) == 0:
        raise ValueError("there are no tokens to retrieve")
    return kept


class _Memory(NamedTuple):
    """What one layer stores."""

    attractors: Float[Tensor, "M E"]
    noise: Float[Tensor, "C M E"]  # as long as the attractors are on the average


class _Landscape(NamedTuple):
    """One memory at one inverse temperature, field by field as in `Basins`."""

    energy: Float[np.ndarray, " X"]
    energy_spread: Float[np.ndarray, " X"]
    num_fixed_points: int
    single: float
    metastable: float
    uniform: float
    basins: Float[np.ndarray, " M"]
    recall: list[float]


def _with_basins(model: PretrainedModel) -> AiT:
    if not isinstance(model, AiT):
        raise UserError(f"a {type(model).__name__} has no basins: take a run of AiT")
    if model.config.read != "hopfield":
        raise UserError(
            "this AiT reads its memory by cross-attention, whose queries, keys and values have no "
            "energy and no basins: take a run with --model.read hopfield"
        )
    return model


def _open(workspace: GlobalWorkspace, generator: torch.Generator) -> _Memory:
    attractors = workspace.to_attractor(workspace.priors)
    draws = torch.randn(NUM_DRAWS, *attractors.shape, generator=generator).to(attractors)
    length = attractors.norm(dim=-1).mean() / attractors.shape[1] ** 0.5
    return _Memory(attractors, length * draws)


def _explore(
    tokens: Float[Tensor, "N E"],
    memory: _Memory,
    beta: float,
    num_steps: int,
    noise: Sequence[float],
) -> _Landscape:
    """Follow the tokens, and attractors under noise, to where they rest."""
    attractors, num_priors = memory.attractors, len(memory.attractors)
    exact, state, energies = attractors.double(), tokens.double(), []  # a fall can be small
    for _ in range(num_steps + 1):
        energies.append(hopfield_energy(state, exact, beta))
        state = hopfield_retrieve(state, exact, beta)
    energy = torch.stack(energies)  # (X, N)
    rest = retrieve_until_rest(tokens, attractors, beta).state
    needed = num_needed(_softmax(rest, attractors, beta))
    is_single = needed == 1
    is_uniform = (needed >= num_needed(torch.full([num_priors], 1 / num_priors))) & ~is_single
    single, uniform = (int(kind.sum()) / len(tokens) for kind in (is_single, is_uniform))
    same = float(SAME * attractors.norm(dim=-1).mean())
    points = count_fixed_points(rest, same, POINTS_PER_PRIOR * num_priors)
    basins = np.zeros(num_priors)
    basins[: points.number] = points.sizes[:num_priors].numpy() / len(tokens)
    return _Landscape(
        energy=energy.mean(dim=-1).cpu().numpy(),
        energy_spread=energy.std(dim=-1, correction=0).cpu().numpy(),
        num_fixed_points=points.number,
        single=single,
        metastable=int((~is_single & ~is_uniform).sum()) / len(tokens),
        uniform=uniform,
        basins=basins,
        recall=[_recall(memory, beta, level) for level in noise],
    )


def _recall(memory: _Memory, beta: float, level: float) -> float:
    """Give the share of attractors under noise that return to their own."""
    attractors, noise = memory
    own = retrieve_until_rest(attractors, attractors, beta).state
    rest = retrieve_until_rest(attractors + level * noise, attractors, beta).state
    same = SAME * attractors.norm(dim=-1).mean()
    is_alone = _softmax(own, attractors, beta).diag() >= SHARE
    has_returned = is_alone & ((rest - own).norm(dim=-1) <= same)  # (C, M)
    return has_returned.double().mean().item()


def _softmax(
    state: Float[Tensor, "N E"], attractors: Float[Tensor, "M E"], beta: float
) -> Float[Tensor, "N M"]:
    return (beta * state @ attractors.mT).softmax(dim=-1)
