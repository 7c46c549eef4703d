"""The paper's equations as pure functions: tensors in, tensors out.

Functions that end in `_per_image` are those of a workspace with one memory for each image, which
is this package's, not the paper's.

Dims     B batch   N tokens per image   T = B * N pooled tokens   E token width
         M priors  D prior width        S heads of the bottleneck attention, K its bottleneck
Source   Sun et al., CVPR 2025, arXiv 2309.12862; Hopfield retrieval and energy:
         Ramsauer et al. 2021, arXiv 2008.02217.

Softmax, moving average and balance loss are computed in at least float32, even under autocast.
The step numbers in the docstrings are those of `docs/explanation/paper-to-code.md`.
"""

import math
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Selection(NamedTuple):
    """The tokens that each prior of each head attends to, and their weighted sum."""

    value: Float[Tensor, "S M D"]  # weighted sum of the values of the chosen tokens
    score: Float[Tensor, "S M K"]  # attention to the chosen tokens, sums to 1
    chosen: Int[Tensor, "S M K"]  # positions of the chosen tokens in the pool, in any order


class ImageSelection(NamedTuple):
    """The tokens of each image that each prior of each head attends to, and their weighted sum."""

    value: Float[Tensor, "B S M D"]  # weighted sum of the values of the chosen tokens
    score: Float[Tensor, "B S M N"]  # sums to 1 over the chosen tokens; 0 for all others
    chosen: Bool[Tensor, "B S M N"]


class AttendOutput(NamedTuple):
    """The output of attention to a pool, which several ranks may share."""

    selection: Selection  # the best tokens of this rank; the score is 0 if those of others win
    unevenness: Float[Tensor, ""]  # the balance loss of the whole pool, unweighted


def bottleneck_attention(
    q: Float[Tensor, "S M D"],
    k: Float[Tensor, "S T D"],
    v: Float[Tensor, "S T D"],
    bottleneck: int | None,
    competition: str = "none",
    center_values: bool = False,
) -> Selection:
    """Let each prior attend to its `bottleneck` most similar tokens in the whole pool.

    Step 3:  a = q kᵀ / sqrt(D),  A = softmax(topk(a)),  h = A v

    With a bottleneck of None, or of at least T, this is dense attention. If several tokens are
    equally similar, it is unspecified which of them are chosen.

    Two options are not in the paper. Competition "priors" replaces a by its log-softmax over the
    M priors of a head, so that a token counts most for the prior that is most similar to it.
    `center_values` subtracts from v its mean over the pool, so that what all tokens share is not
    written.
    """
    similarity = q @ k.mT / math.sqrt(q.shape[-1])  # (S, M, T)
    if competition == "priors":
        similarity = _at_least_float32(similarity).log_softmax(dim=1)
    if center_values:
        v = v - v.mean(dim=1, keepdim=True)
    num_tokens = k.shape[1]
    if bottleneck is None or bottleneck >= num_tokens:
        score = _softmax(similarity)
        all_tokens = torch.arange(num_tokens, device=k.device)
        return Selection(score.to(v.dtype) @ v, score, all_tokens.expand(score.shape))
    top, chosen = similarity.topk(bottleneck, dim=-1)  # (S, M, K)
    score = _softmax(top)
    heads = torch.arange(len(v), device=v.device)[:, None, None]
    value = torch.einsum("smk,smkd->smd", score.to(v.dtype), v[heads, chosen])
    return Selection(value, score, chosen)


def pooled_attention(
    q: Float[Tensor, "S M D"],
    tokens: Float[Tensor, "T E"],
    w_k: Float[Tensor, "S D E"],
    w_v: Float[Tensor, "S D E"],
    bottleneck: int | None,
    competition: str = "none",
    center_values: bool = False,
) -> Selection:
    """Map the pooled tokens to keys and values for each head, then let the priors attend to them.

    k = u W^K,  v = u W^V
    """
    k, v = (torch.nn.functional.linear(tokens, w.flatten(0, 1)) for w in (w_k, w_v))
    k, v = (rearrange(x, "t (s d) -> s t d", s=len(q)) for x in (k, v))
    return bottleneck_attention(q, k, v, bottleneck, competition, center_values)


def balance_loss(
    score: Float[Tensor, "S M K"], chosen: Int[Tensor, "S M K"], num_tokens: int
) -> Float[Tensor, ""]:
    """Measure how unevenly the tokens of a pool are used; 0 if all are used equally.

    Step 5:  sum over heads of CV^2(importance) + CV^2(load),  CV^2(z) = var(z) / mean(z)^2

    The importance of a token is the attention it receives, summed over the priors; its load is
    the number of priors that chose it. Only the importance carries a gradient.
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
    """Move the memory towards what was written.

    Step 4:  gamma^{t+1} = normalize((1 - alpha) gamma^t + alpha gamma-hat),  row by row
    """
    priors, written = _at_least_float32(priors), _at_least_float32(written)
    moved = (1 - smoothing) * priors + smoothing * written
    return torch.nn.functional.normalize(moved, dim=-1)


def hopfield_retrieve(
    state: Float[Tensor, "*B E"],
    attractors: Float[Tensor, "M E"],
    beta: float,
    num_steps: int = 1,
) -> Float[Tensor, "*B E"]:
    """Pull each state towards the attractors, `num_steps` times.

    Step 6:  xi <- softmax(beta xi Yᵀ) Y,  with Y the attractors
    """
    for _ in range(num_steps):
        score = _softmax(beta * (state @ attractors.mT))  # (*B, M)
        state = score.to(attractors.dtype) @ attractors
    return state


def hopfield_energy(
    state: Float[Tensor, "*B E"], attractors: Float[Tensor, "M E"], beta: float
) -> Float[Tensor, "*B"]:
    """Compute the energy of each state, which retrieval never raises.

    E(xi) = -1/beta logsumexp(beta xi Yᵀ) + xi·xi / 2 + 1/beta log M + zeta^2 / 2

    zeta is the largest norm of an attractor.
    """
    state, attractors = _at_least_float32(state), _at_least_float32(attractors)
    association = torch.logsumexp(beta * (state @ attractors.mT), dim=-1) / beta
    zeta_squared = attractors.square().sum(dim=-1).max()
    return (
        -association
        + state.square().sum(dim=-1) / 2
        + math.log(len(attractors)) / beta
        + zeta_squared / 2
    )


def bottleneck_attention_per_image(
    q: Float[Tensor, "S M D"],
    k: Float[Tensor, "B S N D"],
    v: Float[Tensor, "B S N D"],
    bottleneck: int | float | None,
    key_padding_mask: Bool[Tensor, "B N"] | None = None,
    competition: str = "none",
    center_values: bool = False,
) -> ImageSelection:
    """Let each prior attend to its most similar tokens of each image.

    a = q kᵀ / sqrt(D),  A = softmax(topk(a)),  h = A v

    The size of the selection is that of `count_winners`. Competition "priors" replaces a by its
    log-softmax over the M priors of a head, so that a token counts most for the prior that is most
    similar to it. `center_values` subtracts from v its mean over the tokens of the image. Tokens
    at which `key_padding_mask` is True are never chosen and count nowhere; an image with nothing
    but padding has a score and a value of 0. The selection itself carries no gradient.
    """
    similarity = torch.einsum("smd,bsnd->bsmn", _at_least_float32(q), _at_least_float32(k))
    similarity = similarity / math.sqrt(q.shape[-1])
    if competition == "priors":
        similarity = similarity.log_softmax(dim=2)
    padding = similarity.new_zeros(len(k), k.shape[2], dtype=torch.bool)
    padding = padding if key_padding_mask is None else key_padding_mask  # (B, N)
    is_real = ~padding[:, None, None]  # (B, 1, 1, N)
    order = similarity.masked_fill(~is_real, -torch.inf).argsort(dim=-1, descending=True)
    counts = count_winners(bottleneck, (~padding).sum(dim=-1))  # (B,)
    wins = torch.arange(k.shape[2], device=k.device) < counts[:, None, None, None]
    chosen = torch.zeros_like(similarity, dtype=torch.bool)
    chosen = chosen.scatter(-1, order, wins.expand_as(order)) & is_real
    # a finite number, since the gradient of a softmax over nothing but -inf is NaN
    lowest = torch.finfo(similarity.dtype).min
    score = similarity.masked_fill(~chosen, lowest).softmax(dim=-1) * chosen
    if center_values:
        weight = is_real.to(v.dtype) / is_real.sum(dim=-1, keepdim=True).clamp(min=1)
        v = v - weight @ v
    return ImageSelection(score.to(v.dtype) @ v, score, chosen)


def count_winners(
    bottleneck: int | float | None, num_tokens: Int[Tensor, " B"]
) -> Int[Tensor, " B"]:
    """Return how many of the tokens of each image a prior attends to.

    An integer is a number, a float in (0, 1) a share of the tokens (rounded up), None means all.
    """
    if bottleneck is None:
        return num_tokens
    if isinstance(bottleneck, int):
        return num_tokens.clamp(max=bottleneck)
    exact = bottleneck * num_tokens.double()
    return (exact - 1e-9).ceil().long().clamp(min=1)  # 0.07 * 100 is 7.000000000000001


def balance_loss_per_image(
    score: Float[Tensor, "B S M N"],
    chosen: Bool[Tensor, "B S M N"],
    key_padding_mask: Bool[Tensor, "B N"] | None = None,
) -> Float[Tensor, ""]:
    """Measure how unevenly the tokens of each image are used, averaged over the images.

    sum over heads of CV^2(importance) + CV^2(load), as in step 5, over the tokens of one image.
    Images with fewer than two tokens do not count.
    """
    is_real = score.new_ones(len(score), score.shape[-1])
    if key_padding_mask is not None:
        is_real = (~key_padding_mask).to(score.dtype)
    count = is_real.sum(dim=-1, keepdim=True)  # (B, 1)
    importance, load = score.sum(dim=2), chosen.to(score.dtype).sum(dim=2)  # (B, S, N)
    total = score.new_zeros(len(score))
    for amount in (importance, load):
        mean = amount.sum(dim=-1) / count.clamp(min=1)  # (B, S)
        deviation = (amount - mean[..., None]) * is_real[:, None]
        variance = deviation.square().sum(dim=-1) / (count - 1).clamp(min=1)
        total = total + (variance / (mean.square() + 1e-10)).sum(dim=-1)
    counts = (count.squeeze(-1) >= 2).to(score.dtype)
    return (total * counts).sum() / counts.sum().clamp(min=1)


def hopfield_retrieve_per_image(
    state: Float[Tensor, "B N E"],
    attractors: Float[Tensor, "B M E"],
    beta: float,
    head_dim: int,
    num_steps: int = 1,
) -> Float[Tensor, "B N E"]:
    """Pull the states of each image towards its own attractors, in heads of width `head_dim`.

    xi_j <- softmax(beta xi_j Y_jᵀ / sqrt(d)) Y_j  for each head j, which owns channels j d to
    (j + 1) d of the state and of the attractors Y; d must divide E.
    """
    state, stored = (rearrange(x, "b n (h d) -> b h n d", d=head_dim) for x in (state, attractors))
    for _ in range(num_steps):
        score = _softmax(beta / math.sqrt(head_dim) * (state @ stored.mT))  # (B, H, N, M)
        state = score.to(stored.dtype) @ stored
    return rearrange(state, "b h n d -> b n (h d)")


def effective_rank(priors: Float[Tensor, "M D"]) -> float:
    """Compute the effective rank of a memory: the effective number of directions in its priors.

    exp(entropy of the normalized squared singular values)

    It is M for orthogonal priors of equal length, 1 for identical priors and 0 if all are zero.
    After Roy and Vetterli 2007, who do not square the singular values.
    """
    energy = torch.linalg.svdvals(priors.double()).square()
    if not energy.any():
        return 0.0
    return float(torch.special.entr(energy / energy.sum()).sum().exp())


def _softmax(logits: Tensor) -> Tensor:
    return _at_least_float32(logits).softmax(dim=-1)


def _squared_variation(amount: Float[Tensor, "S T"]) -> Float[Tensor, " S"]:
    """Compute CV^2 = var / (mean^2 + 1e-10), with the unbiased variance over the pool."""
    mean = amount.mean(dim=-1, keepdim=True)
    variance = (amount - mean).square().sum(dim=-1) / max(amount.shape[-1] - 1, 1)
    return variance / (mean.squeeze(-1).square() + 1e-10)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
