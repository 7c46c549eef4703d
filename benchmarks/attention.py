"""Time self-attention on a CPU, fused and as two products: python benchmarks/attention.py

Times the forward and backward pass of `softmax(q kᵀ / sqrt(D)) v` for 8,192 tokens in images of
different sizes, with 3 heads of width 64. Each row shows milliseconds, medians of 11 rounds in
which the forms take turns. The choice in `kernels/attention.py` is based on these figures.
"""

import math
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from associative_transformer.compute import set_up_cpu
from associative_transformer.tabular import RowGroup, Table

TOKENS, HEADS, WIDTH, ROUNDS = 8_192, 3, 64, 11
LENGTHS = (16, 64, 256, 512, 1_024, 4_096)


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute attention with two matrix products and a softmax."""
    return (q / math.sqrt(q.shape[-1]) @ k.mT).softmax(dim=-1) @ v


def timed(attend: Callable[[Tensor, Tensor, Tensor], Tensor], qkv: Tensor) -> float:
    """Return how many seconds a forward and a backward pass take."""
    start = time.perf_counter()
    attend(*qkv.unbind()).sum().backward()
    return time.perf_counter() - start


def main() -> None:
    """Print a table for each precision."""
    set_up_cpu()
    groups = []
    for dtype in (torch.bfloat16, torch.float32):
        rows = []
        for length in LENGTHS:
            shape = (3, TOKENS // length, length, HEADS, WIDTH)
            qkv = torch.randn(shape).to(dtype).transpose(2, 3).requires_grad_()
            forms = {"fused": scaled_dot_product_attention, "plain": plain}
            seconds: dict[str, list[float]] = {name: [] for name in forms}
            for _ in range(ROUNDS + 1):
                for name, attend in forms.items():
                    seconds[name].append(timed(attend, qkv))
            fused, other = (1e3 * median(times[1:]) for times in seconds.values())
            rows.append((str(length), f"{fused:.1f}", f"{other:.1f}", f"{fused / other:.2f}"))
        groups.append(RowGroup(str(dtype).removeprefix("torch."), rows))
    columns = ("tokens per image", "fused, ms", "plain, ms", "fused / plain")
    title = f"Attention on {torch.get_num_threads()} threads"
    print(Table(title, columns, groups, []).to_terminal(100), end="")


if __name__ == "__main__":
    main()
