"""Time alternatives for each part of the write: python benchmarks/write_parts.py

Compares the operations that `kernels/sparse.py` uses with others that could replace them, at the
sizes of the paper (8 heads, 32 priors of width 32, bottleneck 512, tokens of width 768), in
float32. The table shows milliseconds, best of five rounds.
"""

import time
import warnings
from collections.abc import Callable

import torch
from torch.nn.functional import embedding_bag

ROWS, WIDTH, BOTTLENECK, ROUNDS = 256, 768, 512, 5
POOLS = (4_096, 32_768)


def variants(num_tokens: int) -> dict[str, Callable[[], object]]:
    """Return the operations to compare, by name."""
    tokens = torch.randn(num_tokens, WIDTH)
    queries, gradient = torch.randn(2, ROWS, WIDTH)
    similarity = queries @ tokens.mT
    best, chosen = similarity.topk(BOTTLENECK)
    weight = best.softmax(dim=-1)
    starts = torch.arange(0, chosen.numel() + 1, BOTTLENECK)
    row = torch.arange(ROWS).repeat_interleave(BOTTLENECK)
    in_order = chosen.sort(dim=-1).values.flatten()
    rows = torch.sparse_csr_tensor(starts, in_order, weight.flatten(), (ROWS, num_tokens))
    token, order = chosen.flatten().sort(stable=True)
    token_starts = torch.searchsorted(token, torch.arange(num_tokens))

    def dense() -> torch.Tensor:
        return torch.zeros(ROWS, num_tokens).scatter_(1, chosen, weight)

    def by_threshold() -> torch.Tensor:
        least = similarity.kthvalue(num_tokens - BOTTLENECK + 1).values[:, None]
        return (similarity >= least).nonzero()

    def agreement() -> torch.Tensor:
        return torch.ops.aten._embedding_bag_per_sample_weights_backward(
            gradient, tokens, chosen.flatten(), starts[:-1], row, 0
        )

    def by_token() -> torch.Tensor:
        weights = weight.flatten()[order]
        return embedding_bag(
            row[order], gradient, token_starts, mode="sum", per_sample_weights=weights
        )

    def scattered() -> torch.Tensor:
        parts = (weight[..., None] * gradient[:, None]).flatten(0, 1)
        return torch.zeros(num_tokens, WIDTH).index_add_(0, chosen.flatten(), parts)

    def weighted() -> torch.Tensor:
        return embedding_bag(chosen, tokens, mode="sum", per_sample_weights=weight)

    return {
        "similarities: matrix product (used)": lambda: queries @ tokens.mT,
        "selection: topk (used)": lambda: similarity.topk(BOTTLENECK),
        "selection: full sort": lambda: similarity.sort(dim=-1),
        "selection: threshold by kthvalue": by_threshold,
        "weighted sum: embedding_bag (used)": weighted,
        "weighted sum: sparse CSR product": lambda: rows @ tokens,
        "weighted sum: dense gates": lambda: dense() @ tokens,
        "gradient of the scores: gathered products (used)": agreement,
        "gradient of the scores: dense product": lambda: (gradient @ tokens.mT).gather(1, chosen),
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
    warnings.filterwarnings("ignore", message="Sparse")  # torch warns that CSR tensors are in beta
    columns = []
    for num_tokens in POOLS:
        runs = variants(num_tokens)
        rounds = [{name: milliseconds(run) for name, run in runs.items()} for _ in range(ROUNDS)]
        columns.append({name: min(times[name] for times in rounds) for name in runs})
    print("| part | " + " | ".join(f"{n:,} tokens" for n in POOLS) + " |")
    print("| --- |" + " ---: |" * len(POOLS))
    for name in columns[0]:
        print(f"| {name} | " + " | ".join(f"{column[name]:.1f}" for column in columns) + " |")


if __name__ == "__main__":
    main()
