"""Time alternatives for each part of the write: python benchmarks/write_parts.py

Compares the operations that `kernels/sparse.py` uses with others that could replace them, at the
sizes of the paper (8 heads, 32 priors of width 32, bottleneck 512, tokens of width 768). The table
shows milliseconds, best of five rounds, for each precision and size of the pool. Operations marked
"used" are used in both precisions, those marked with a precision only in that one.
"""

import time
import warnings
from collections.abc import Callable
from itertools import product

import torch
from torch.nn.functional import embedding_bag

from associative_transformer.compute import set_up_cpu
from associative_transformer.kernels.largest import largest

ROWS, WIDTH, BOTTLENECK, ROUNDS = 256, 768, 512, 5
POOLS = (4_096, 8_192, 32_768)
PRECISIONS = (torch.float32, torch.bfloat16)


def variants(num_tokens: int, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Return the operations to compare, by name."""
    tokens = torch.randn(num_tokens, WIDTH).to(dtype)
    queries, gradient = torch.randn(2, ROWS, WIDTH).to(dtype)
    similarity = queries @ tokens.mT
    best, chosen = similarity.topk(BOTTLENECK)
    weight = best.softmax(dim=-1)
    in_float32 = weight.float()
    starts = torch.arange(0, chosen.numel() + 1, BOTTLENECK)
    row = torch.arange(ROWS).repeat_interleave(BOTTLENECK)
    in_order = chosen.sort(dim=-1).values.flatten()
    rows = torch.sparse_csr_tensor(starts, in_order, in_float32.flatten(), (ROWS, num_tokens))
    pairs = chosen.flatten()
    token, order = pairs.sort(stable=True)
    token_starts = torch.searchsorted(token, torch.arange(num_tokens))

    def dense() -> torch.Tensor:
        return torch.zeros(ROWS, num_tokens, dtype=dtype).scatter_(1, chosen, weight)

    def by_threshold() -> torch.Tensor:
        least = similarity.kthvalue(num_tokens - BOTTLENECK + 1).values[:, None]
        return (similarity >= least).nonzero()

    def agreement() -> torch.Tensor:
        return torch.ops.aten._embedding_bag_per_sample_weights_backward(
            gradient, tokens, pairs, starts[:-1], row, 0
        )

    def by_token() -> torch.Tensor:
        weights = weight.flatten()[order]
        return embedding_bag(
            row[order], gradient, token_starts, mode="sum", per_sample_weights=weights
        )

    def scattered() -> torch.Tensor:
        parts = (weight[..., None] * gradient[:, None]).flatten(0, 1)
        return torch.zeros(num_tokens, WIDTH, dtype=dtype).index_add_(0, pairs, parts)

    def weighted() -> torch.Tensor:
        return embedding_bag(chosen, tokens, mode="sum", per_sample_weights=weight)

    return {
        "similarities: matrix product (used)": lambda: queries @ tokens.mT,
        "selection: NumPy's partition (used)": lambda: largest(similarity, BOTTLENECK),
        "selection: topk": lambda: similarity.topk(BOTTLENECK),
        "selection: full sort": lambda: similarity.sort(dim=-1),
        "selection: threshold by kthvalue": by_threshold,
        "weighted sum: embedding_bag (used)": weighted,
        "weighted sum: sparse CSR product in float32": lambda: rows @ tokens.float(),
        "weighted sum: dense gates": lambda: dense() @ tokens,
        "gradient of the scores: gathered products (float32)": agreement,
        "gradient of the scores: dense product (bfloat16)": lambda: (gradient @ tokens.mT).gather(
            1, chosen
        ),
        "gradient of the tokens: embedding_bag by token (used)": by_token,
        "gradient of the tokens: dense gates": lambda: dense().mT @ gradient,
        "gradient of the tokens: index_add": scattered,
    }


def milliseconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    """Print a table; each round runs all variants once."""
    set_up_cpu()
    warnings.filterwarnings("ignore", message="Sparse")  # torch warns that CSR tensors are in beta
    columns, sizes = [], list(product(PRECISIONS, POOLS))
    for dtype, num_tokens in sizes:
        runs = variants(num_tokens, dtype)
        rounds = [{name: milliseconds(run) for name, run in runs.items()} for _ in range(ROUNDS)]
        columns.append({name: min(times[name] for times in rounds) for name in runs})
    titles = [f"{str(dtype).removeprefix('torch.')}, {n:,}" for dtype, n in sizes]
    print("| part | " + " | ".join(titles) + " |")
    print("| --- |" + " ---: |" * len(titles))
    for name in columns[0]:
        print(f"| {name} | " + " | ".join(f"{column[name]:.1f}" for column in columns) + " |")


if __name__ == "__main__":
    main()
