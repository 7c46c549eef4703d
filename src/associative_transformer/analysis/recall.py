"""Recall of corrupted patterns by noise and load, compared with what the theory guarantees.

The patterns are the attractors of a trained memory. With scope "image", each head of each image
has its own patterns, and the inverse temperature is beta / sqrt(d), as in the read. The theory is
that of Ramsauer et al. 2021 (arXiv 2008.02217).

Dims     R inverse temperatures   L layers   P loads   Z noise levels   M priors   d width
         G networks: none for a memory of the batch, otherwise images and heads   C noisy copies
         K noisy patterns of all networks
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from associative_transformer.analysis.networks import (
    Networks,
    draw_noise,
    gather_networks,
    mean_norm,
    retrieve_until_rest,
    with_networks,
)
from associative_transformer.interface import Batch, format_count
from associative_transformer.models.pretrained import PretrainedModel

BETAS = (0.25, 1.0, 4.0, 16.0, 64.0)
NOISE = (0.0, 0.1, 0.25, 0.5, 1.0)
NEAR = 0.1
"""A pattern is recalled if it comes to rest at most this far away, in mean pattern norms."""
FAILURE = 0.001
"""Probability p that random patterns are not stored, used for the theoretical capacity."""
NUM_DRAWS = 16
"""Number of noisy copies of each pattern of a memory of the batch."""


@dataclass(frozen=True)
class Recall:
    """How well the first patterns of each network are recalled, and what the theory guarantees.

    Gaussian noise of a given length (root mean square) is added to each pattern. Retrieval is then
    repeated until the state no longer moves.

    `guaranteed` is the share of the patterns for which `is_guaranteed` is true. `capacity` is the
    number sqrt(p) c^((d - 1) / 4) of random patterns of the mean norm that can be stored with
    probability 1 - p = 0.999 (Theorem 3); 0 if the theory guarantees none, nan if d is 1.
    """

    betas: Float[np.ndarray, " R"]
    trained_beta: float
    width: int  # d: channels of a pattern
    num_networks: int  # with scope "image": images times heads; otherwise 1
    loads: Int[np.ndarray, " P"]  # numbers of stored patterns
    noise: Float[np.ndarray, " Z"]  # length of the noise, in mean pattern norms
    error: Float[np.ndarray, "R L P Z"]  # mean distance from the pattern, in mean pattern norms
    recalled: Float[np.ndarray, "R L P Z"]  # share of patterns
    guaranteed: Float[np.ndarray, "R L P"]  # share of patterns
    capacity: Float[np.ndarray, "R L"]  # mean over the networks

    def describe(self) -> Iterator[str]:
        """Yield the main numbers as lines of text."""
        patterns = format_count(int(self.loads[-1]), "pattern")
        yield (
            f"% of {patterns} of width {self.width} recalled with noise "
            f"{self.noise[self.middle]:g} "
            f"(stored for certain; trained with beta {self.trained_beta:g}):"
        )
        for layer in range(self.error.shape[1]):
            shares = [
                f"beta {beta:g}: {100 * recalled:.0f} ({100 * certain:.0f})"
                for beta, recalled, certain in zip(
                    self.betas,
                    self.recalled[:, layer, -1, self.middle],
                    self.guaranteed[:, layer, -1],
                    strict=True,
                )
            ]
            yield f"  layer {layer + 1}: {', '.join(shares)}"

    @property
    def middle(self) -> int:
        """The index of the noise level at which loads are compared."""
        return len(self.noise) // 2


@torch.no_grad()
def measure_recall(
    model: PretrainedModel,
    batches: Iterable[Batch],
    betas: Sequence[float] = BETAS,
    noise: Sequence[float] = NOISE,
    num_tokens: int = 1_000,
    seed: int = 0,
) -> Recall:
    """Recall the attractors of each layer of an AiT from noisy copies.

    The loads are the powers of two up to M, and M itself. A memory of the batch has 16 noisy
    copies of each attractor. With scope "image", there is one copy, and the memories are those of
    the first images: enough images for `num_tokens` tokens, but at most 64. States that still
    move after 100 steps are treated as at rest.

    Raises UserError if the model is not an AiT or does not read by Hopfield retrieval, and
    ValueError if a beta is not positive or there are no images.
    """
    ait = with_networks(model)
    if min(betas) <= 0:
        raise ValueError(f"betas must be positive, not {min(betas)}")
    generator = torch.Generator().manual_seed(seed)
    layers = gather_networks(ait, batches, num_tokens, generator)
    num_priors = ait.config.workspace.num_priors
    loads = sorted({num_priors, *(2**i for i in range(num_priors.bit_length()))})
    pairs = [(each, draw_noise(each.patterns, NUM_DRAWS, generator)) for each in layers]
    measured = [
        [_measure_loads(*pair, beta, loads, noise) for pair in pairs]  # of each layer
        for beta in betas
    ]
    patterns = layers[0].patterns
    columns = {
        name: np.array([[getattr(layer, name) for layer in row] for row in measured])
        for name in _Loads._fields
    }
    return Recall(
        betas=np.array(betas, dtype=float),
        trained_beta=ait.config.workspace.beta,
        width=patterns.shape[-1],
        num_networks=math.prod(patterns.shape[:-2]),
        loads=np.array(loads),
        noise=np.array(noise, dtype=float),
        **columns,
    )


class _Loads(NamedTuple):
    """Results for one layer at one inverse temperature; the fields are those of `Recall`."""

    error: list[list[float]]  # by load and noise
    recalled: list[list[float]]
    guaranteed: list[float]
    capacity: float


def is_guaranteed(patterns: Float[Tensor, "*G M d"], beta: float) -> Bool[Tensor, "*G M"]:
    """Return which patterns x are far enough from all others y to be stored for certain.

    A pattern is stored if every state within 1 / (beta M r) of it stays within this distance,
    where r is the largest norm. This is guaranteed if min over y of (x x - x y) is at least
    2 / (beta M) + log(2 (M - 1) M beta r^2) / beta, and no other pattern is within twice the
    distance. A single pattern is always stored.
    """
    number = patterns.shape[-2]
    if number == 1:
        return torch.ones(patterns.shape[:-1], dtype=torch.bool, device=patterns.device)
    exact = patterns.double()
    products = exact @ exact.mT
    squares = products.diagonal(dim1=-2, dim2=-1)  # (*G, M)
    is_own = torch.eye(number, dtype=torch.bool, device=patterns.device)
    separation = squares - products.masked_fill(is_own, -torch.inf).amax(dim=-1)
    distance = torch.cdist(exact, exact).masked_fill(is_own, torch.inf).amin(dim=-1)
    largest = squares.amax(dim=-1, keepdim=True)
    radius = 1 / (beta * number * largest.sqrt())
    threshold = (2 / number + (2 * (number - 1) * number * beta * largest).log()) / beta
    return (separation >= threshold) & (distance > 2 * radius)


def theoretical_capacity(width: int, norm: float, beta: float, failure: float = FAILURE) -> float:
    """Return how many random patterns on a sphere can be stored, with probability 1 - `failure`.

    sqrt(p) c^((d - 1) / 4), if c is at least (2 / sqrt(p))^(4 / (d - 1)), otherwise 0; nan if d is
    1. c = b / W(exp(a + log b)), with a = 2 (1 + log(2 beta K^2 p (d - 1))) / (d - 1),
    b = 2 K^2 beta / 5, K = norm / sqrt(d - 1), and W the upper branch of Lambert's function.
    """
    if width == 1:
        return math.nan
    if norm == 0:
        return 0.0
    dims, squared = width - 1, norm**2 / (width - 1)  # K^2
    a = 2 / dims * (1 + math.log(2 * beta * squared * failure * dims))
    b = 2 * squared * beta / 5
    log_c = math.log(b) - math.log(_lambert(a + math.log(b)))
    log_number = math.log(failure) / 2 + log_c * dims / 4
    return math.exp(min(log_number, 700.0)) if log_number >= math.log(2) else 0.0


def _lambert(logarithm: float) -> float:
    """Return the positive w with log w + w = `logarithm`, by Newton's method."""
    w = math.exp(logarithm) if logarithm < 0 else max(logarithm, 0.5)
    for _ in range(50):
        w = max(w * (1 + logarithm - math.log(w)) / (1 + w), 1e-300)
    return w


def _measure_loads(
    networks: Networks,
    draws: Float[Tensor, "*G C M d"],
    beta: float,
    loads: Sequence[int],
    noise: Sequence[float],
) -> _Loads:
    """Recall the first patterns of each network, for each load."""
    beta = beta * networks.scale
    error, recalled, guaranteed = [], [], []
    norms = mean_norm(networks.patterns)
    for load in loads:
        patterns, draws_of = networks.patterns[..., :load, :], draws[..., :load, :]
        distances = _recall(patterns, draws_of, norms, beta, noise)  # (Z, K)
        error.append(distances.mean(dim=1).tolist())
        recalled.append((distances <= NEAR).double().mean(dim=1).tolist())
        guaranteed.append(is_guaranteed(patterns, beta).double().mean().item())
    width = networks.patterns.shape[-1]
    capacities = [theoretical_capacity(width, norm, beta) for norm in norms.flatten().tolist()]
    return _Loads(error, recalled, guaranteed, float(np.mean(capacities)))


def _recall(
    patterns: Float[Tensor, "*G M d"],
    draws: Float[Tensor, "*G C M d"],
    norms: Float[Tensor, "*G"],
    beta: float,
    levels: Sequence[float],
) -> Float[Tensor, "Z K"]:
    """Return how far from its pattern each noisy copy comes to rest, in mean pattern norms."""
    own = patterns[..., None, None, :, :]
    noisy = own + torch.stack([level * draws for level in levels], dim=-4)  # (*G, Z, C, M, d)
    rest = retrieve_until_rest(noisy.flatten(-4, -2), patterns, beta).state.view(noisy.shape)
    distance = (rest - own).norm(dim=-1) / norms[..., None, None, None]
    return distance.movedim(-3, 0).flatten(1)
