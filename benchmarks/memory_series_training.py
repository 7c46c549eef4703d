"""One run of `benchmarks/memory_series.py`: train a model and record what its memories do."""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import count
from statistics import median
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from associative_transformer.compute import Precision, autocast
from associative_transformer.data import ImagesConfig, Split
from associative_transformer.evaluate import evaluate
from associative_transformer.interface import Batch, UserError
from associative_transformer.runs.environment import describe_environment
from memory_series_variants import Official, Ours, Settings

CPU = torch.device("cpu")
Model = Ours | Official


def train(
    model: Model, source: str, settings: Settings, seed: int, precision: Precision
) -> dict[str, Any]:
    """Train a model, score it once, and return what is to be kept of the run."""
    started = time.perf_counter()
    config = ImagesConfig("cifar10", source=source, image_size=settings.image_size, num_workers=0)
    data = config.load(CPU)
    data.check_classes(settings.num_classes)
    seconds: list[float] = []
    series = list(record(model, data.train, settings, seed, precision, seconds))
    test = data.test
    if settings.test_images is not None:
        test = test.take(torch.arange(min(settings.test_images, len(test))))
    batches = test.eval_batches(settings.batch_size)  # the official code pools each of them
    score = evaluate(model, batches, settings.num_classes, precision)
    return {
        "series": series,
        "accuracy": score.accuracy,
        "correct": int(score.confusion.diag().sum()),
        "total": int(score.confusion.sum()),
        "test_loss": score.loss,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "images_seen": settings.steps * settings.batch_size,
        "settings": {**asdict(settings), "bottleneck": settings.bottleneck},
        "precision": precision,
        "data": data.digest,
        "timing": {
            "seconds_per_step": median(seconds),
            "seconds": time.perf_counter() - started,
        },
        "environment": asdict(describe_environment(CPU)),
    }


def record(
    model: Model,
    split: Split,
    settings: Settings,
    seed: int,
    precision: Precision,
    seconds: list[float],
) -> Iterator[dict[str, Any]]:
    """Train and yield a record after the first step, after each `every` steps and after the last.

    A record holds the state of each memory after the step, and the losses as means over the steps
    since the record before. The time of each step is appended to `seconds`.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), settings.lr, weight_decay=settings.weight_decay, fused=True
    )
    sums, num_steps = torch.zeros(()), 0
    for step, (epoch, batch) in zip(
        range(1, settings.steps + 1),
        endless_batches(split, settings.batch_size, seed),
        strict=False,
    ):
        started = time.perf_counter()
        model.train(epoch < model.training_epochs)
        with autocast(CPU, precision):
            logits, aux_loss = model(batch.images)
        loss = cross_entropy(logits.float(), batch.labels)
        (loss + aux_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        sums = sums + torch.stack([loss.detach(), *model.balance_losses])
        num_steps += 1
        seconds.append(time.perf_counter() - started)
        if step % settings.every == 0 or step in (1, settings.steps):
            yield describe_step(model, step, (sums / num_steps).tolist())
            sums, num_steps = torch.zeros(()), 0


def endless_batches(split: Split, batch_size: int, seed: int) -> Iterator[tuple[int, Batch]]:
    """Yield the batches of one epoch after another, each with the number of its epoch, from 0."""
    for epoch in count():
        for batch in split.train_batches(batch_size, seed, epoch):
            yield epoch, batch


def describe_step(model: Model, step: int, losses: list[float]) -> dict[str, Any]:
    """Return a record: the step, the cross-entropy, and the memory and loss of each layer."""
    if not all(map(math.isfinite, losses)):
        raise UserError(f"the loss is not finite in step {step}: nothing can be measured")
    entropy, *balance_losses = losses
    layers = [
        {**state._asdict(), "balance_loss": loss}
        for state, loss in zip(model.measure(), balance_losses, strict=True)
    ]
    return {"step": step, "cross_entropy": entropy, "layers": layers}
