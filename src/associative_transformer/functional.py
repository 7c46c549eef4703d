"""The paper's equations as pure functions: tensors in, tensors out.

Dims     B batch   N tokens per image   T = B * N pooled tokens   E token width
         M priors  D prior width        S heads of the bottleneck attention, K its bottleneck
Source   Sun et al., CVPR 2025, arXiv 2309.12862; Hopfield retrieval and energy:
         Ramsauer et al. 2021, arXiv 2008.02217.

Softmax, moving average and balance loss are computed in float32 at least, also under autocast.
"""

import math
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor


class Selection(NamedTuple):
    """What the priors of each head took from the pool."""

    value: Float[Tensor, "S M D"]  # what each prior takes from the tokens it won
    score: Float[Tensor, "S M K"]  # attention over those tokens only, sums to 1
    chosen: Int[Tensor, "S M K"]  # their positions in the pool


def bottleneck_attention(
    q: Float[Tensor, "S M D"],
    k: Float[Tensor, "S T D"],
    v: Float[Tensor, "S T D"],
    bottleneck: int | None,
) -> Selection:
    """Let every prior attend to its `bottleneck` most similar tokens of the whole pool.

    A bottleneck of None, or of T and more, is dense attention. Which of several equally similar
    tokens wins is not specified.
    """
    similarity = q @ k.mT / math.sqrt(q.shape[-1])  # (S, M, T)
    num_tokens = k.shape[1]
    if bottleneck is None or bottleneck >= num_tokens:
        score = _softmax(similarity)
        everyone = torch.arange(num_tokens, device=k.device)
        return Selection(score.to(v.dtype) @ v, score, everyone.expand(score.shape))
    top, chosen = similarity.topk(bottleneck, dim=-1)  # (S, M, K)
    score = _softmax(top)
    heads = torch.arange(len(v), device=v.device)[:, None, None]
    value = torch.einsum("smk,smkd->smd", score.to(v.dtype), v[heads, chosen])
    return Selection(value, score, chosen)


def pooled_attention(
    q: Float[Tensor, "S M D"],
    pool: Float[Tensor, "T E"],
    w_k: Float[Tensor, "S D E"],
    w_v: Float[Tensor, "S D E"],
    bottleneck: int | None,
) -> Selection:
    """Map the pool to keys (W^K) and values (W^V) of each head, and let the priors attend."""
    k, v = (torch.nn.functional.linear(pool, w.flatten(0, 1)) for w in (w_k, w_v))
    k, v = (rearrange(x, "t (s d) -> s t d", s=len(q)) for x in (k, v))
    return bottleneck_attention(q, k, v, bottleneck)


def balance_loss(
    score: Float[Tensor, "S M K"], chosen: Int[Tensor, "S M K"], num_tokens: int
) -> Float[Tensor, ""]:
    """Measure how unevenly the pool of `num_tokens` is used: zero when all serve alike.

    Per head, CV^2 of the importance (attention a token receives, summed over the priors) plus
    CV^2 of the load (priors that chose the token); summed over the heads. Only the importance
    carries a gradient.
    """
    score = _at_least_float32(score)
    unused = score.new_zeros(len(score), num_tokens)  # (S, T)
    chosen = chosen.flatten(1)
    importance = unused.scatter_add(1, chosen, score.flatten(1))
    load = unused.scatter_add(1, chosen, torch.ones_like(chosen, dtype=score.dtype))
    return (_squared_variation(importance) + _squared_variation(load)).sum()


def update_priors(
    priors: Float[Tensor, "M D"], written: Float[Tensor, "M D"], smoothing: float
) -> Float[Tensor, "M D"]:
    """Move the memory towards what was written: (1 - alpha) gamma + alpha gamma-hat, unit rows."""
    moved = (1 - smoothing) * priors + smoothing * _at_least_float32(written)
    return torch.nn.functional.normalize(moved, dim=-1)


def hopfield_retrieve(
    state: Float[Tensor, "*B E"],
    attractors: Float[Tensor, "M E"],
    beta: float,
    num_steps: int = 1,
) -> Float[Tensor, "*B E"]:
    """Pull each state towards the attractors: softmax(beta xi Y^T) Y, `num_steps` times."""
    for _ in range(num_steps):
        weight = _softmax(beta * (state @ attractors.mT))  # (*B, M)
        state = weight.to(attractors.dtype) @ attractors
    return state


def hopfield_energy(
    state: Float[Tensor, "*B E"], attractors: Float[Tensor, "M E"], beta: float
) -> Float[Tensor, "*B"]:
    """Give the energy of each state against the attractors; retrieval never raises it.

    E(xi) = -1/beta logsumexp(beta xi Y^T) + xi.xi / 2 + 1/beta log M + zeta^2 / 2, where zeta is
    the largest attractor norm.
    """
    state, attractors = _at_least_float32(state), _at_least_float32(attractors)
    association = torch.logsumexp(beta * (state @ attractors.mT), dim=-1) / beta
    largest = attractors.square().sum(dim=-1).max()  # zeta^2
    return (
        -association
        + state.square().sum(dim=-1) / 2
        + math.log(len(attractors)) / beta
        + largest / 2
    )


def effective_rank(priors: Float[Tensor, "M D"]) -> float:
    """Count the directions that a memory fills: exp of the entropy of its squared singular values.

    M orthogonal priors of one length fill M, equal ones 1, and zeros none (after Roy and Vetterli
    2007, who take the singular values themselves).
    """
    strength = torch.linalg.svdvals(priors.double()).square()
    if not strength.any():
        return 0.0
    return float(torch.special.entr(strength / strength.sum()).sum().exp())


def _softmax(logits: Tensor) -> Tensor:
    return _at_least_float32(logits).softmax(dim=-1)


def _squared_variation(amount: Float[Tensor, "S T"]) -> Float[Tensor, " S"]:
    """CV^2 = var / (mean^2 + 1e-10), with the unbiased variance over the pool."""
    mean = amount.mean(dim=-1, keepdim=True)
    variance = (amount - mean).square().sum(dim=-1) / max(amount.shape[-1] - 1, 1)
    return variance / (mean.squeeze(-1).square() + 1e-10)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
