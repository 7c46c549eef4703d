"""Attention to all keys, in the form that the device and the precision select.

Dims     B batch   H heads   N queries   L keys   D head width
"""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from associative_transformer.kernels import attention as module
from associative_transformer.kernels.attention import attention

B, H, N, D = 2, 3, 5, 4


def inputs(num_keys: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (B, H, N, D), (B, H, num_keys, D), (B, H, num_keys, D)
    q, k, v = (torch.randn(shape).to(dtype).requires_grad_() for shape in shapes)
    return q, k, v


def slow(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Compute each output by itself, in float64."""
    q, k, v = q.double(), k.double(), v.double()
    rows = []
    for b in range(B):
        for h in range(H):
            for n in range(N):
                score = (scale * q[b, h, n] * k[b, h]).sum(dim=-1).exp()
                rows.append((score[:, None] * v[b, h]).sum(dim=0) / score.sum())
    return torch.stack(rows).view(B, H, N, D)


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("num_keys", [1, 7, module.MAX_PLAIN, module.MAX_PLAIN + 1])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.bfloat16, 0.03), (torch.float32, 1e-5), (torch.float64, 1e-12)],
)
def test_it_equals_slow_loops_forward_and_backward(
    dtype: torch.dtype, tolerance: float, num_keys: int, scale: float | None
) -> None:
    given = inputs(num_keys, dtype)
    ours = attention(*given, scale)
    theirs = slow(*given, 1 / math.sqrt(D) if scale is None else scale)
    assert ours.dtype == dtype
    close = {"rtol": tolerance, "atol": tolerance, "check_dtype": False}
    torch.testing.assert_close(ours, theirs, **close)
    slopes = torch.linspace(-1, 2, ours.numel(), dtype=torch.float64).view_as(ours)
    for mine, other in zip(
        *(torch.autograd.grad((slopes * x).sum(), given) for x in (ours, theirs)), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=3 * tolerance)


def test_only_bfloat16_with_few_keys_takes_the_plain_form(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = []

    def spy(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        fused.append((q.dtype, k.shape[-2]))
        return scaled_dot_product_attention(q, k, v, scale=scale)

    monkeypatch.setattr(module, "scaled_dot_product_attention", spy)
    few, many = 8, module.MAX_PLAIN + 1
    for dtype in (torch.float32, torch.bfloat16):
        for num_keys in (few, many):
            attention(*inputs(num_keys, dtype))
    assert fused == [(torch.float32, few), (torch.float32, many), (torch.bfloat16, many)]
