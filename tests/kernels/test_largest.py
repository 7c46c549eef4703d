"""Selection of the largest numbers of each row, compared with torch.topk.

Dims     R rows   T numbers in a row   K selected
"""

import math

import pytest
import torch
from torch import Tensor

from associative_transformer.kernels import largest as module
from associative_transformer.kernels.largest import largest

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
COUNTS = [1, 7, 150, 299, 300]


def rows(dtype: torch.dtype) -> Tensor:
    """Return rows with ties, zeros of both signs, infinities and NaN of both signs."""
    x = torch.randn(12, 300).to(dtype)
    x[1, 5], x[2, 7], x[3, 1], x[4, 2] = math.inf, -math.inf, math.nan, -math.nan
    x[5], x[6], x[7], x[8, :150] = -math.inf, math.nan, 0.0, -0.0
    x[9] = x[9].round()
    x[10, ::3], x[11, ::2] = -math.nan, math.inf
    return x


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_selected_numbers_are_those_that_topk_selects(dtype: torch.dtype, count: int) -> None:
    x = rows(dtype)
    chosen = largest(x, count)
    assert chosen.shape == (12, count)
    assert all(len(row.unique()) == count for row in chosen)
    ours = x.gather(1, chosen).sort(dim=-1, descending=True).values
    theirs = x.topk(count, dim=-1).values
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_numbers_are_selected_every_time(dtype: torch.dtype) -> None:
    x = rows(dtype)
    assert torch.equal(largest(x, 31), largest(x.clone(), 31))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_need_not_be_contiguous(dtype: torch.dtype) -> None:
    x = torch.randn(300, 12).to(dtype).mT
    chosen = largest(x, 20)
    assert torch.equal(x.gather(1, chosen).amin(dim=-1), x.topk(20, dim=-1).values[:, -1])


def test_the_numbers_themselves_are_left_unchanged() -> None:
    for dtype in DTYPES:
        x = rows(dtype).nan_to_num()
        before = x.clone()
        largest(x, 11)
        assert torch.equal(x, before)


def test_rows_may_be_too_long_for_packed_positions() -> None:
    x = torch.randn(2, module.MAX_PACKED + 1).bfloat16()
    x[:, -1] = 100
    assert (largest(x, 3) == module.MAX_PACKED).any(dim=-1).all()
