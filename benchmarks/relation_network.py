"""Compare a training step of CNN+RN with two plain implementations and a lower bound.

`python benchmarks/relation_network.py` prints medians of seven rounds in which the variants take
turns (64 questions, forward and backward, float32); docs/explanation/reproduce.md quotes them.
"""

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from associative_transformer import build_model
from associative_transformer.models.relation_network import CNN_RN

BATCH, ROUNDS = 64, 7


def build_variants() -> dict[str, Callable[[], Tensor]]:
    """Return functions that compute the logits, keyed by the name of the implementation."""
    torch.manual_seed(0)
    model = build_model(CNN_RN)
    images, questions = torch.rand(BATCH, 3, 75, 75), torch.rand(BATCH, 18)

    def all_pairs() -> Tensor:
        """Compute g of [o_i, o_j, q] for all 625 pairs at once."""
        objects = model.find_objects(images)  # (64, 25, 26)
        first = objects[:, :, None].expand(-1, -1, 25, -1)
        second = objects[:, None].expand(-1, 25, -1, -1)
        question = questions[:, None, None].expand(-1, 25, 25, -1)
        x = torch.cat([first, second, question], dim=-1).flatten(1, 2)
        for layer in model.g:
            x = torch.relu(x) if isinstance(layer, nn.ReLU) else layer(x)
        return model.f(x.sum(dim=1))

    def one_by_one() -> Tensor:
        """Compute g of one pair after the other."""
        objects = model.find_objects(images).unbind(dim=1)
        pairs = ((first, second) for first in objects for second in objects)
        return model.f(sum(model.g(torch.cat([*pair, questions], dim=-1)) for pair in pairs))

    return {
        "ours": lambda: model(images, questions).logits,
        "all 625 pairs at once": all_pairs,
        "pair by pair": one_by_one,
    }


def main() -> None:
    inputs, weights = torch.rand(3, BATCH * 625, 256), torch.rand(3, 256, 256)

    def multiply() -> None:
        """Compute the nine matrix products of layers 2 to 4 of g, forward and backward."""
        for x, weight in zip(inputs, weights, strict=True):
            x @ weight, x @ weight.T, x.T @ x

    def step(logits: Callable[[], Tensor]) -> Callable[[], None]:
        return lambda: logits().square().sum().backward()

    runs = {name: step(logits) for name, logits in build_variants().items()}
    runs["bound: matrix products alone"] = multiply
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    ours = median(seconds["ours"])
    print("| variant | seconds | times ours |")
    print("| --- | ---: | ---: |")
    for name, times in seconds.items():
        print(f"| {name} | {median(times):.3f} | {median(times) / ours:.2f} |")


if __name__ == "__main__":
    main()
