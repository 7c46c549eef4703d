"""Time a training step of one process and of two, each with a batch and a thread of its own.

`python benchmarks/weak_scaling.py` writes a table in Markdown; see docs/scaling.md.
"""

import argparse
import multiprocessing
import os
import time
from statistics import median
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy

from associative_transformer import distributed
from associative_transformer.models.ait import AiT, AiTConfig

Queue = "multiprocessing.SimpleQueue[Measured]"


class Measured(NamedTuple):
    """Median seconds of a step."""

    step: float
    exchange: float  # in all_gather, the wait for the other processes included


def work(rank: int, world: int, options: argparse.Namespace, answers: Queue) -> None:
    """Train, and let the first rank tell how long it took."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(options.port + world)}
    if world > 1:
        dist.init_process_group("gloo", rank=rank, world_size=world)
    spent, gather = [0.0], dist.all_gather

    def timed(found: list[Tensor], mine: Tensor, group: dist.ProcessGroup) -> None:
        start = time.perf_counter()
        gather(found, mine, group)
        spent[0] += time.perf_counter() - start

    dist.all_gather = timed
    torch.manual_seed(0)
    model = AiT(AiTConfig(embed_dim=options.embed_dim))
    replica = distributed.replicate(model, torch.device("cpu"), has_unused=False)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    images, labels = torch.randn(options.batch, 3, 32, 32), torch.randint(10, (options.batch,))
    steps, exchanges = [], []
    for _ in range(options.steps + 2):
        start, spent[0] = time.perf_counter(), 0.0
        logits, balance_loss = replica(images)
        (cross_entropy(logits, labels) + balance_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        steps.append(time.perf_counter() - start)
        exchanges.append(spent[0])
    if rank == 0:
        answers.put(Measured(median(steps[2:]), median(exchanges[2:])))
    if world > 1:
        dist.destroy_process_group()


def measure(world: int, options: argparse.Namespace) -> Measured:
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    ranks = [
        context.Process(target=work, args=(rank, world, options, answers)) for rank in range(world)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    if any(process.exitcode for process in ranks):
        raise RuntimeError("a process failed")
    return answers.get()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32, help="images of each process")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--embed-dim", type=int, default=768)
    parser.add_argument("--port", type=int, default=29700)
    options = parser.parse_args()
    print("| processes | images | step | images/s | efficiency | of it in all_gather |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    alone = measure(1, options)
    for world in (1, 2):
        found = alone if world == 1 else measure(world, options)
        images, share = world * options.batch, 100 * found.exchange / found.step
        efficiency = 100 * alone.step / found.step
        print(
            f"| {world} | {images} | {1000 * found.step:.0f} ms | {images / found.step:.1f} "
            f"| {efficiency:.0f} % | {share:.1f} % |"
        )


if __name__ == "__main__":
    main()
