"""Directions that a memory fills: all of them, one, none, and between."""

import math

import pytest
import torch
from torch import Tensor

from associative_transformer.functional import effective_rank


@pytest.mark.parametrize(
    ("priors", "expected"),
    [
        (torch.eye(5), 5),
        (3 * torch.eye(5)[:2], 2),
        (torch.ones(6, 4), 1),
        (torch.eye(4)[[0, 1, 2, 0, 1, 2]], 3),
        (torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), 1),
        (torch.diag(torch.tensor([math.sqrt(3), 1.0])), 4 / 3**0.75),
    ],
)
def test_the_effective_rank_counts_directions(priors: Tensor, expected: float) -> None:
    assert effective_rank(priors) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("length", [0.01, 1.0, 50.0])
@pytest.mark.parametrize("count", [1, 3, 6])
def test_orthogonal_priors_have_full_rank_and_equal_ones_rank_one(
    count: int, length: float
) -> None:
    rotation = torch.linalg.qr(torch.randn(6, 6)).Q
    assert effective_rank(length * rotation[:count]) == pytest.approx(count)
    assert effective_rank(length * rotation[:1].expand(count, 6)) == pytest.approx(1)
    assert effective_rank(torch.cat([rotation[:count], -rotation[:count]])) == pytest.approx(count)


def test_effective_rank_lies_between_where_directions_are_unevenly_filled() -> None:
    squares = torch.tensor([4.0, 1.0, 1.0])  # shares 2/3, 1/6, 1/6
    entropy = -(2 / 3) * math.log(2 / 3) - 2 * (1 / 6) * math.log(1 / 6)
    assert effective_rank(torch.diag(squares.sqrt())) == pytest.approx(math.exp(entropy))


def test_a_memory_of_zeros_has_rank_zero() -> None:
    assert effective_rank(torch.zeros(4, 3)) == 0.0
