"""Ways to do each part of the write, in milliseconds: python benchmarks/write_parts.py

The parts of `kernels/sparse.py` beside what else could do them, at the paper's sizes (8 heads, 32
priors of width 32, bottleneck 512, tokens of width 768), float32, best of five turns.
"""

import time
import warnings
from collections.abc import Callable

import torch
from torch.nn.functional import embedding_bag

ROWS, WIDTH, BOTTLENECK, TURNS = 256, 768, 512, 5
POOLS = (4_096, 32_768)


def variants(num_tokens: int) -> dict[str, Callable[[], object]]:
    pool = torch.randn(num_tokens, WIDTH)
    asked, slope = torch.randn(2, ROWS, WIDTH)
    similarity = asked @ pool.mT
    best, chosen = similarity.topk(BOTTLENECK)
    weight = best.softmax(dim=-1)
    starts = torch.arange(0, chosen.numel() + 1, BOTTLENECK)
    row = torch.arange(ROWS).repeat_interleave(BOTTLENECK)
    in_order = chosen.sort(dim=-1).values.flatten()
    rows = torch.sparse_csr_tensor(starts, in_order, weight.flatten(), (ROWS, num_tokens))
    token, order = chosen.flatten().sort(stable=True)
    ends = torch.searchsorted(token, torch.arange(num_tokens))

    def dense() -> torch.Tensor:
        return torch.zeros(ROWS, num_tokens).scatter_(1, chosen, weight)

    def by_threshold() -> torch.Tensor:
        least = similarity.kthvalue(num_tokens - BOTTLENECK + 1).values[:, None]
        return (similarity >= least).nonzero()

    def agreement() -> torch.Tensor:
        return torch.ops.aten._embedding_bag_per_sample_weights_backward(
            slope, pool, chosen.flatten(), starts[:-1], row, 0
        )

    def by_token() -> torch.Tensor:
        weights = weight.flatten()[order]
        return embedding_bag(row[order], slope, ends, mode="sum", per_sample_weights=weights)

    def scattered() -> torch.Tensor:
        parts = (weight[..., None] * slope[:, None]).flatten(0, 1)
        return torch.zeros(num_tokens, WIDTH).index_add_(0, chosen.flatten(), parts)

    def weighted() -> torch.Tensor:
        return embedding_bag(chosen, pool, mode="sum", per_sample_weights=weight)

    return {
        "similarities: matrix product (used)": lambda: asked @ pool.mT,
        "selection: topk (used)": lambda: similarity.topk(BOTTLENECK),
        "selection: full sort": lambda: similarity.sort(dim=-1),
        "selection: threshold by kthvalue": by_threshold,
        "weighted sum: embedding_bag (used)": weighted,
        "weighted sum: sparse CSR product": lambda: rows @ pool,
        "weighted sum: dense gates": lambda: dense() @ pool,
        "slope of the scores: gathered products (used)": agreement,
        "slope of the scores: dense product": lambda: (slope @ pool.mT).gather(1, chosen),
        "gradient of the tokens: embedding_bag by token (used)": by_token,
        "gradient of the tokens: dense gates": lambda: dense().mT @ slope,
        "gradient of the tokens: index_add": scattered,
    }


def milliseconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    """Print a table; the variants of a pool take turns."""
    warnings.filterwarnings("ignore", message="Sparse")  # torch calls its CSR tensors new
    columns = []
    for num_tokens in POOLS:
        runs = variants(num_tokens)
        turns = [{name: milliseconds(run) for name, run in runs.items()} for _ in range(TURNS)]
        columns.append({name: min(turn[name] for turn in turns) for name in runs})
    print("| part | " + " | ".join(f"{n:,} tokens" for n in POOLS) + " |")
    print("| --- |" + " ---: |" * len(POOLS))
    for name in columns[0]:
        print(f"| {name} | " + " | ".join(f"{column[name]:.1f}" for column in columns) + " |")


if __name__ == "__main__":
    main()
