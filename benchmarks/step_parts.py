"""Show which operators take the time that an AiT needs beyond a ViT.

    python benchmarks/step_parts.py cifar10-ait-192 cifar10-vit-192 --batch-size 128

profiles training steps of two recipes on a CPU and prints the milliseconds of each group of
operators in both, and the difference. Profiling itself costs time, so that the sums are a few
percent larger than the steps measured by `ait bench step`.
"""

import argparse

import torch
from torch.profiler import ProfilerActivity, profile

from associative_transformer.bench.variants import find_variant, prepare_model
from associative_transformer.compute import set_up_cpu
from associative_transformer.experiment import TrainConfig
from associative_transformer.tabular import RowGroup, Table

WARM_UP, STEPS = 3, 5
GROUPS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "attention, fused or its softmax": ("_scaled_dot_product", "_softmax"),
    "layer norms": ("layer_norm",),
    "GELU": ("gelu",),
    "selection of winners": ("find_most_similar", "bitwise", "rshift", "topk"),
    "winners: gather, weighted sums, sort": (
        *("aten::gather", "embedding_bag", "aten::index", "aten::put_", "aten::sort"),
        *("searchsorted", "scatter", "floor_divide"),
    ),
    "additions": ("aten::add", "aten::sum"),
    "copies and casts": ("aten::copy_", "aten::cat", "aten::fill_", "aten::zero_"),
    "optimizer": ("adamw", "aten::linalg_vector_norm", "aten::_foreach"),
}
"""Parts of the names of operators, by group; the first group that matches counts."""


def measure(name: str, batch_size: int, precision: str) -> dict[str, float]:
    """Return the milliseconds per step of each group."""
    train = TrainConfig(
        precision="bfloat16" if precision == "bfloat16" else "float32", device="cpu"
    )
    step = prepare_model(find_variant(name, train, batch_size), "step")
    for _ in range(WARM_UP):
        step()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(STEPS):
            step()
    milliseconds = dict.fromkeys([*GROUPS, "everything else"], 0.0)
    for event in profiled.key_averages():
        key = event.key.lower()
        matching = (group for group, parts in GROUPS.items() if any(p in key for p in parts))
        milliseconds[next(matching, "everything else")] += event.self_cpu_time_total / 1e3 / STEPS
    return milliseconds


def main() -> None:
    """Profile both recipes and print the table."""
    parser = argparse.ArgumentParser(description="Compare the operators of two training steps.")
    parser.add_argument("recipe", nargs="?", default="cifar10-ait-192")
    parser.add_argument("rival", nargs="?", default="cifar10-vit-192")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    options = parser.parse_args()
    set_up_cpu()
    ours, theirs = (
        measure(name, options.batch_size, options.precision)
        for name in (options.recipe, options.rival)
    )
    rows = [
        (
            group,
            f"{ours[group]:.1f}",
            f"{theirs[group]:.1f}",
            f"{ours[group] - theirs[group]:+.1f}",
        )
        for group in ours
    ]
    total, other = sum(ours.values()), sum(theirs.values())
    rows.append(("total", f"{total:.1f}", f"{other:.1f}", f"{total - other:+.1f}"))
    columns = ("operators", f"{options.recipe}, ms", f"{options.rival}, ms", "difference")
    title = f"Training step, {options.precision}, {torch.get_num_threads()} threads"
    print(Table(title, columns, [RowGroup("", rows)], []).to_terminal(100), end="")


if __name__ == "__main__":
    main()
