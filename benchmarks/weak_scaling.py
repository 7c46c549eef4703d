"""Time a training step with one and with two processes, with one batch and one thread each.

`python benchmarks/weak_scaling.py` prints the table of docs/how-to/scaling.md.
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

Queue = "multiprocessing.SimpleQueue[StepTime]"


class StepTime(NamedTuple):
    """Median duration of a step, in seconds."""

    total: float
    exchange: float  # in all_gather, including waiting for the other processes


def train(rank: int, world: int, options: argparse.Namespace, results: Queue) -> None:
    """Train for some steps; the first rank reports how long they took."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(options.port + world)}
    if world > 1:
        dist.init_process_group("gloo", rank=rank, world_size=world)
    exchange, gather = [0.0], dist.all_gather

    def timed_gather(gathered: list[Tensor], own: Tensor, group: dist.ProcessGroup) -> None:
        start = time.perf_counter()
        gather(gathered, own, group)
        exchange[0] += time.perf_counter() - start

    dist.all_gather = timed_gather
    torch.manual_seed(0)
    model = AiT(AiTConfig(embed_dim=options.embed_dim))
    replica = distributed.replicate(model, torch.device("cpu"), has_unused=False)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)
    images, labels = torch.randn(options.batch, 3, 32, 32), torch.randint(10, (options.batch,))
    times = []
    for _ in range(options.steps + 2):
        start, exchange[0] = time.perf_counter(), 0.0
        logits, balance_loss = replica(images)
        (cross_entropy(logits, labels) + balance_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append((time.perf_counter() - start, exchange[0]))
    if rank == 0:
        results.put(StepTime(*map(median, zip(*times[2:], strict=True))))  # without the warm-up
    if world > 1:
        dist.destroy_process_group()


def measure(world: int, options: argparse.Namespace) -> StepTime:
    """Return the times of a group of `world` processes."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    processes = [
        context.Process(target=train, args=(rank, world, options, results))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError("a process failed: see its traceback above")
    return results.get()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32, help="images per process")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--embed-dim", type=int, default=768)
    parser.add_argument("--port", type=int, default=29700)
    options = parser.parse_args()
    print("| processes | images | step | images/s | efficiency | share of all_gather |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    alone = measure(1, options)
    for world in (1, 2):
        step = alone if world == 1 else measure(world, options)
        images, share = world * options.batch, 100 * step.exchange / step.total
        efficiency = 100 * alone.total / step.total
        print(
            f"| {world} | {images} | {1000 * step.total:.0f} ms | {images / step.total:.1f} "
            f"| {efficiency:.0f} % | {share:.1f} % |"
        )


if __name__ == "__main__":
    main()
