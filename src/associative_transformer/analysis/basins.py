"""The associative memory as a landscape: energy, fixed points, basins, and recall under noise.

Each token is retrieved repeatedly until it comes to rest. Its state is then classified by the
smallest number of attractors that make up 90 % of the softmax: one is a single attractor, at least
90 % of M is the mean of all, and anything in between is a metastable state (Ramsauer et al. 2021,
arXiv 2008.02217). Equal attractors share the softmax, so a token at rest at several equal
attractors does not count as single.

Dims     R inverse temperatures   L layers   T retrieval steps   M priors   Z noise levels
         X = T + 1 states along the retrieval   N tokens   E token width   F fixed points
         C noisy copies
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from associative_transformer.analysis.trace import trace_all
from associative_transformer.functional import hopfield_energy, hopfield_retrieve
from associative_transformer.interface import Batch, UserError
from associative_transformer.models.ait import AiT
from associative_transformer.models.pretrained import PretrainedModel
from associative_transformer.workspace import GlobalWorkspace

BETAS = (0.05, 0.25, 1.0, 4.0, 16.0)
NOISE = (0.1, 0.25, 0.5, 1.0)
SHARE = 0.9
"""Share of the softmax that the counted attractors must make up."""
SAME = 0.01
"""States at rest at most this far apart, in mean attractor norms, count as one fixed point."""
NUM_DRAWS = 16
"""Number of noisy copies of each attractor."""
POINTS_PER_PRIOR = 4
"""Largest number of fixed points to look for, per prior."""


@dataclass(frozen=True)
class Basins:
    """States at which the tokens of a split come to rest, for several inverse temperatures.

    Recall: Gaussian noise of a given length (root mean square) is added to each attractor, 16
    times. A noisy attractor is recalled if it comes to rest within 0.01 mean attractor norms of
    the state reached without noise, and if the attractor alone makes up 90 % of the softmax
    there. So equal attractors, and attractors that move to an average, are never recalled.
    """

    betas: Float[np.ndarray, " R"]
    trained_beta: float
    num_tokens: int  # tokens retrieved in each layer
    energy: Float[np.ndarray, "R L X"]  # mean over the tokens, before and after each step
    energy_spread: Float[np.ndarray, "R L X"]  # standard deviation over the tokens
    num_fixed_points: Int[np.ndarray, "R L"]  # counted up to 4 M
    single: Float[np.ndarray, "R L"]  # share of tokens at one attractor
    metastable: Float[np.ndarray, "R L"]  # at an average of several
    uniform: Float[np.ndarray, "R L"]  # at the mean of all; the three sum to 1
    basins: Float[np.ndarray, "R L M"]  # share of tokens at the M largest fixed points, descending
    noise: Float[np.ndarray, " Z"]  # length of the noise, in mean attractor norms
    recall: Float[np.ndarray, "R L Z"]  # share of noisy attractors that are recalled

    def describe(self) -> Iterator[str]:
        """Yield the main numbers as lines of text."""
        yield (
            "% of tokens at rest at one attractor / at an average of several / at the mean of all "
            f"(trained with beta {self.trained_beta:g}):"
        )
        kinds = np.stack([self.single, self.metastable, self.uniform], axis=-1)  # (R, L, 3)
        for layer in range(kinds.shape[1]):
            shares = [
                f"beta {beta:g}: " + " / ".join(f"{100 * share:.0f}" for share in row)
                for beta, row in zip(self.betas, kinds[:, layer], strict=True)
            ]
            yield f"  layer {layer + 1}: {', '.join(shares)}"


class Rest(NamedTuple):
    """States at rest."""

    state: Float[Tensor, "*B E"]
    num_steps: Int[Tensor, "*B"]  # steps that moved the state; if `max_steps`, it may still move


class FixedPoints(NamedTuple):
    """Groups of states that are equal within a tolerance."""

    number: int
    sizes: Int[Tensor, " F"]  # states in each group, descending


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

    All tokens are equally likely to be drawn; the same ones are used in all layers. A token that
    still moves after 100 steps is treated as at rest. States within 0.01 mean attractor norms of
    each other count as one fixed point; the search stops after 4 M of them.

    Raises UserError if the model is not an AiT or reads by cross-attention, and ValueError if a
    beta is not positive or there are no tokens.
    """
    ait = _with_basins(model)
    if min(betas) <= 0:
        raise ValueError(f"betas must be positive, not {min(betas)}")
    generator = torch.Generator().manual_seed(seed)
    sample = sample_tokens(ait, batches, num_tokens, generator)
    workspaces = [cast(GlobalWorkspace, block.workspace) for block in ait.blocks]
    memories = [_Memory.of(workspace, generator) for workspace in workspaces]
    landscapes = [
        [
            _explore(tokens, memory, beta, num_steps, noise)
            for tokens, memory in zip(sample, memories, strict=True)
        ]
        for beta in betas
    ]
    columns: dict[str, Any] = {
        name: np.array([[getattr(landscape, name) for landscape in row] for row in landscapes])
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
    """Retrieve each state until a step moves it by at most `tolerance` mean attractor norms."""
    limit = tolerance * attractors.norm(dim=-1).mean()
    rest = state.reshape(-1, state.shape[-1]).clone()
    num_steps = torch.zeros(len(rest), dtype=torch.int64, device=rest.device)
    moving = torch.arange(len(rest), device=rest.device)
    for _ in range(max_steps):
        if len(moving) == 0:
            break
        retrieved = hopfield_retrieve(rest[moving], attractors, beta)
        is_moving = (retrieved - rest[moving]).norm(dim=-1) > limit
        rest[moving] = retrieved
        moving = moving[is_moving]
        num_steps[moving] += 1
    return Rest(rest.view_as(state), num_steps.view(state.shape[:-1]))


def num_needed(weights: Float[Tensor, "*B M"], share: float = SHARE) -> Int[Tensor, "*B"]:
    """Return the smallest number of weights that make up `share` of a row; rows sum to 1."""
    sums = weights.double().sort(dim=-1, descending=True).values.cumsum(dim=-1)
    return (sums < share - 1e-6).sum(dim=-1) + 1  # 9 of 10 equal weights sum to 0.9


def count_fixed_points(states: Float[Tensor, "N E"], tolerance: float, limit: int) -> FixedPoints:
    """Repeatedly group the first remaining state with all states within `tolerance` of it.

    The search stops after `limit` groups; the sizes may then sum to less than N.
    """
    sizes: list[int] = []
    while len(states) and len(sizes) < limit:
        is_apart = (states - states[0]).norm(dim=-1) > tolerance
        sizes.append(len(states) - int(is_apart.sum()))
        states = states[is_apart]
    return FixedPoints(len(sizes), torch.tensor(sorted(sizes, reverse=True), dtype=torch.int64))


def sample_tokens(
    model: PretrainedModel,
    batches: Iterable[Batch],
    num_tokens: int,
    generator: torch.Generator,
) -> Float[Tensor, "L N E"]:
    """Draw from the tokens that the workspaces of an AiT receive, each with equal probability.

    Each token is assigned a random number, and the tokens with the smallest numbers are kept.
    Raises ValueError if there are no tokens.
    """
    numbers, kept = torch.empty(0, dtype=torch.float64), torch.empty(0)
    for traced in trace_all(model, batches):
        pools = [cast(Tensor, layer.workspace_input).flatten(0, 1) for layer in traced.layers]
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
    """The attractors of one layer, and noise to add to them."""

    attractors: Float[Tensor, "M E"]
    noise: Float[Tensor, "C M E"]  # of the mean length of the attractors (root mean square)

    @classmethod
    def of(cls, workspace: GlobalWorkspace, generator: torch.Generator) -> "_Memory":
        attractors = workspace.to_attractor(workspace.priors)
        draws = torch.randn(NUM_DRAWS, *attractors.shape, generator=generator).to(attractors)
        length = attractors.norm(dim=-1).mean() / attractors.shape[1] ** 0.5
        return cls(attractors, length * draws)


class _Landscape(NamedTuple):
    """Results for one memory at one inverse temperature; the fields are those of `Basins`."""

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
        raise UserError(f"{type(model).__name__} has no basins: use a run of AiT")
    if model.config.read != "hopfield":
        raise UserError(
            "this AiT reads its memory by cross-attention, which has neither energy nor basins: "
            "use a run with --model.read hopfield"
        )
    return model


def _explore(
    tokens: Float[Tensor, "N E"],
    memory: _Memory,
    beta: float,
    num_steps: int,
    noise: Sequence[float],
) -> _Landscape:
    """Follow the tokens, and the attractors under noise, until they come to rest."""
    attractors, num_priors = memory.attractors, len(memory.attractors)
    exact, state, energies = attractors.double(), tokens.double(), []  # steps can be small
    for _ in range(num_steps + 1):
        energies.append(hopfield_energy(state, exact, beta))
        state = hopfield_retrieve(state, exact, beta)
    energy = torch.stack(energies)  # (X, N)
    rest = retrieve_until_rest(tokens, attractors, beta).state
    needed = num_needed(_softmax(rest, attractors, beta))
    is_single = needed == 1
    is_uniform = (needed >= num_needed(torch.full([num_priors], 1 / num_priors))) & ~is_single
    single, uniform = (int(is_kind.sum()) / len(tokens) for is_kind in (is_single, is_uniform))
    tolerance = float(SAME * attractors.norm(dim=-1).mean())
    points = count_fixed_points(rest, tolerance, POINTS_PER_PRIOR * num_priors)
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
    """Return the share of noisy attractors that come to rest at their own attractor."""
    attractors, noise = memory
    own = retrieve_until_rest(attractors, attractors, beta).state
    rest = retrieve_until_rest(attractors + level * noise, attractors, beta).state
    tolerance = SAME * attractors.norm(dim=-1).mean()
    is_alone = _softmax(own, attractors, beta).diag() >= SHARE
    is_recalled = is_alone & ((rest - own).norm(dim=-1) <= tolerance)  # (C, M)
    return is_recalled.double().mean().item()


def _softmax(
    state: Float[Tensor, "N E"], attractors: Float[Tensor, "M E"], beta: float
) -> Float[Tensor, "N M"]:
    return (beta * state @ attractors.mT).softmax(dim=-1)
