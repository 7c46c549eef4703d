"""The associative memory as a landscape: energy, fixed points, basins, and recall under noise.

Each token is retrieved repeatedly until it comes to rest. Its state is then classified by the
smallest number of attractors that make up 90 % of the softmax: one is a single attractor, at least
90 % of M is the mean of all, and anything in between is a metastable state (Ramsauer et al. 2021,
arXiv 2008.02217). Equal attractors share the softmax, so a token at rest at several equal
attractors does not count as single.

With scope "image", each head of each image is a network of its own, and all results are means over
these networks; the inverse temperature is beta / sqrt(d), as in the read.

Dims     R inverse temperatures   L layers   T retrieval steps   M priors   Z noise levels
         X = T + 1 states along the retrieval   N tokens   E token width   F fixed points
         C noisy copies   G networks: none for a memory of the batch, otherwise images and heads
         d width of a state
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from associative_transformer.analysis.networks import (
    SHARE,
    Networks,
    draw_noise,
    energy,
    gather_networks,
    mean_norm,
    num_needed,
    retrieve,
    retrieve_until_rest,
    weigh,
    with_networks,
)
from associative_transformer.interface import Batch
from associative_transformer.models.pretrained import PretrainedModel

BETAS = (0.05, 0.25, 1.0, 4.0, 16.0)
NOISE = (0.1, 0.25, 0.5, 1.0)
SAME = 0.01
"""States at rest at most this far apart, in mean attractor norms, count as one fixed point."""
NUM_DRAWS = 16
"""Number of noisy copies of each attractor of a memory of the batch."""
POINTS_PER_PRIOR = 4
"""Largest number of fixed points to look for, per prior."""


@dataclass(frozen=True)
class Basins:
    """States at which the tokens of a split come to rest, for several inverse temperatures.

    Recall: Gaussian noise of a given length (root mean square) is added to each attractor, 16
    times, or once with scope "image". A noisy attractor is recalled if it comes to rest within
    0.01 mean attractor norms of the state reached without noise, and if the attractor alone makes
    up 90 % of the softmax there. So equal attractors, and attractors that move to an average, are
    never recalled.
    """

    betas: Float[np.ndarray, " R"]
    trained_beta: float
    num_tokens: int  # tokens retrieved in each layer
    energy: Float[np.ndarray, "R L X"]  # mean over the tokens, before and after each step
    energy_spread: Float[np.ndarray, "R L X"]  # standard deviation over the tokens
    num_fixed_points: Num[np.ndarray, "R L"]  # counted up to 4 M; with scope "image", a mean
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

    All tokens are equally likely to be drawn; the same ones are used in all layers. With scope
    "image", they are those of the first images instead, at least `num_tokens` in total, but of at
    most 64 images. A token that still moves after 100 steps is treated as at rest. States within
    0.01 mean attractor norms of each other count as one fixed point; the search stops after 4 M of
    them.

    Raises UserError if the model is not an AiT or reads by cross-attention, and ValueError if a
    beta is not positive or there are no tokens.
    """
    ait = with_networks(model)
    if min(betas) <= 0:
        raise ValueError(f"betas must be positive, not {min(betas)}")
    generator = torch.Generator().manual_seed(seed)
    layers = gather_networks(ait, batches, num_tokens, generator)
    noises = [draw_noise(networks.patterns, NUM_DRAWS, generator) for networks in layers]
    landscapes = [
        [
            _explore(networks, noise_of, beta * networks.scale, num_steps, noise)
            for networks, noise_of in zip(layers, noises, strict=True)
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
        num_tokens=_count_tokens(layers[0].state),
        noise=np.array(noise, dtype=float),
        **columns,
    )


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


class _Landscape(NamedTuple):
    """Results for one memory at one inverse temperature; the fields are those of `Basins`."""

    energy: Float[np.ndarray, " X"]
    energy_spread: Float[np.ndarray, " X"]
    num_fixed_points: float
    single: float
    metastable: float
    uniform: float
    basins: Float[np.ndarray, " M"]
    recall: list[float]


def _explore(
    networks: Networks,
    noise_of: Float[Tensor, "*G C M d"],
    beta: float,
    num_steps: int,
    noise: Sequence[float],
) -> _Landscape:
    """Follow the tokens, and the attractors under noise, until they come to rest."""
    tokens, attractors, _ = networks
    exact, state, energies = attractors.double(), tokens.double(), []  # steps can be small
    for _ in range(num_steps + 1):
        energies.append(energy(state, exact, beta).flatten())
        state = retrieve(state, exact, beta)
    along = torch.stack(energies)  # (X, N)
    rest = retrieve_until_rest(tokens, attractors, beta).state
    needed = num_needed(weigh(rest, attractors, beta))
    num_priors, num_states = attractors.shape[-2], needed.numel()
    is_single = needed == 1
    is_uniform = (needed >= num_needed(torch.full([num_priors], 1 / num_priors))) & ~is_single
    single, uniform = (int(is_kind.sum()) / num_states for is_kind in (is_single, is_uniform))
    number, basins = _find_basins(rest, attractors)
    return _Landscape(
        energy=along.mean(dim=-1).cpu().numpy(),
        energy_spread=along.std(dim=-1, correction=0).cpu().numpy(),
        num_fixed_points=number,
        single=single,
        metastable=int((~is_single & ~is_uniform).sum()) / num_states,
        uniform=uniform,
        basins=basins,
        recall=_recall(attractors, noise_of, beta, noise),
    )


def _find_basins(
    rest: Float[Tensor, "*G T d"], attractors: Float[Tensor, "*G M d"]
) -> tuple[float, Float[np.ndarray, " M"]]:
    """Return the number of fixed points and the sizes of basins, averaged over the networks."""
    num_priors = attractors.shape[-2]
    states = rest.flatten(0, -3) if rest.ndim > 2 else rest[None]
    tolerances = (SAME * mean_norm(attractors)).flatten().tolist()
    numbers, basins = [], np.zeros((len(states), num_priors))
    for row, network, tolerance in zip(basins, states, tolerances, strict=True):
        points = count_fixed_points(network, tolerance, POINTS_PER_PRIOR * num_priors)
        row[: points.number] = points.sizes[:num_priors].numpy() / len(network)
        numbers.append(points.number)
    return float(np.mean(numbers)), basins.mean(axis=0)


def _recall(
    attractors: Float[Tensor, "*G M d"],
    noise: Float[Tensor, "*G C M d"],
    beta: float,
    levels: Sequence[float],
) -> list[float]:
    """Return the share of noisy attractors that come to rest at their own attractor, by level."""
    own = retrieve_until_rest(attractors, attractors, beta).state[..., None, None, :, :]
    noisy = attractors[..., None, None, :, :] + torch.stack([x * noise for x in levels], dim=-4)
    rest = retrieve_until_rest(noisy.flatten(-4, -2), attractors, beta).state
    distance = (rest.view(noisy.shape) - own).norm(dim=-1)  # (*G, Z, C, M)
    is_alone = weigh(own, attractors[..., None, None, :, :], beta).diagonal(dim1=-2, dim2=-1)
    is_near = distance <= SAME * mean_norm(attractors)[..., None, None, None]
    is_recalled = ((is_alone >= SHARE) & is_near).double()
    return is_recalled.movedim(-3, 0).flatten(1).mean(dim=1).tolist()


def _count_tokens(state: Float[Tensor, "*G T d"]) -> int:
    """Return the number of tokens of all images; heads do not count."""
    return len(state) if state.ndim == 2 else len(state) * state.shape[-2]
