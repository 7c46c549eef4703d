"""The health of a memory as loops over sets, written from its definition."""

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor


def count_distinct(priors: Tensor) -> int:
    """Count priors (M, D), skipping those with a cosine above 0.99 to one that is counted."""
    counted: list[list[float]] = []
    for prior in priors.tolist():
        if not any(cosine(prior, other) > 0.99 for other in counted):
            counted.append(prior)
    return len(counted)


def cosine(a: list[float], b: list[float]) -> float:
    lengths = math.hypot(*a), math.hypot(*b)
    if 0 in lengths:
        return float(lengths == (0, 0))
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.prod(lengths)


def effective_rank(priors: Tensor) -> float:
    energies = [float(x) ** 2 for x in torch.linalg.svdvals(priors.detach().double())]
    shares = [energy / sum(energies) for energy in energies]
    return math.exp(-sum(share * math.log(share) for share in shares if share > 0))


Gates = list[list[dict[int, float]]]
"""For each head and prior, the tokens that it takes, with their scores."""


def gates_of(score: Tensor, chosen: Tensor) -> Gates:
    """Read a selection (S, M, K); a score of 0 means that the token is not taken."""
    return [
        [
            {token: value for value, token in zip(*row, strict=True) if value > 0}
            for row in zip(*head, strict=True)
        ]
        for head in zip(score.tolist(), chosen.tolist(), strict=True)
    ]


def mean_overlap(groups: Sequence[Gates]) -> float:
    """Average the Jaccard overlap over groups with tokens, heads and pairs of priors."""
    overlaps = []
    for heads in groups:
        if not any(taken for head in heads for taken in head):
            continue
        for head in heads:
            for a, b in combinations(map(set, head), 2):
                overlaps.append(len(a & b) / len(a | b) if a | b else 0.0)
    return sum(overlaps) / len(overlaps)


def share_used(groups: Sequence[Gates], num_tokens: int) -> float:
    used = [set().union(*(taken for head in heads for taken in head)) for heads in groups]
    return sum(map(len, used)) / num_tokens


def share_winning(groups: Sequence[Gates]) -> float:
    """Return the share of the priors that get a tenth of the mean share of the tokens won."""
    num_heads, num_priors = len(groups[0]), len(groups[0][0])
    shares = [0.0] * num_priors
    for s in range(num_heads):
        winners = []
        for heads in groups:
            for token in set().union(*heads[s]):
                scores = [taken.get(token, 0.0) for taken in heads[s]]
                winners.append(scores.index(max(scores)))
        for winner in winners:
            shares[winner] += 1 / len(winners) / num_heads
    return sum(share >= 0.1 / num_priors for share in shares) / num_priors
