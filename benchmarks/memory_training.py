"""One run of `benchmarks/memory.py`: train a model and score it once."""

import math
import time
from dataclasses import asdict, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from associative_transformer.compute import Precision, autocast
from associative_transformer.data import DataSet, ImagesConfig, Split
from associative_transformer.evaluate import Evaluation, evaluate, score_kinds
from associative_transformer.interface import Batch
from associative_transformer.runs.environment import describe_environment
from associative_transformer.training.parameters import parameter_groups
from memory_rows import Build, Settings
from shifts import score_shifts

BETAS, WEIGHT_DECAY, CLIP_NORM, WARMUP = (0.9, 0.999), 0.05, 1.0, 0.1
EVAL_BATCH = 500
CPU = torch.device("cpu")


def learning_rate(step: int, num_steps: int) -> float:
    """Return the learning rate factor at a step, counted from 0: warm-up times cosine decay."""
    warmup = min(1.0, step / (WARMUP * num_steps))
    return warmup * 0.5 * (1 + math.cos(math.pi * step / num_steps))


def load_data(source: str | None, settings: Settings) -> tuple[DataSet, Split]:
    """Return the data set, and the split on which the run is scored."""
    config = settings.data_config
    if isinstance(config, ImagesConfig):
        config = replace(config, source=source)
    data = config.load(CPU)
    scored = data.test if settings.scored_on == "test" else data.validation
    if scored is None:
        raise ValueError(f"the data set {settings.data} has no validation split")
    return data, scored


def score_types(score: Evaluation, data: DataSet, scored: Split) -> dict[str, float]:
    """Return the accuracy on each type and subtype of question; empty without questions."""
    if data.guesses is None:
        return {}
    kinds = score_kinds(score.predicted, scored, data.guesses)
    return {kind.name: kind.accuracy for kind in kinds}


class Trainer:
    """A model with its optimizer and schedule, and what is measured while it trains."""

    def __init__(
        self, model: nn.Module, settings: Settings, steps_per_epoch: int, precision: Precision
    ) -> None:
        self.model, self.settings, self.precision = model, settings, precision
        self.optimizer = torch.optim.AdamW(
            parameter_groups(model), settings.lr, BETAS, weight_decay=WEIGHT_DECAY, fused=True
        )
        num_steps = settings.epochs * steps_per_epoch
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate(step, num_steps)
        )
        self.seconds: list[float] = []  # of each step, including loading its data

    def train_epoch(self, split: Split, seed: int, epoch: int) -> dict[str, float]:
        """Train one epoch and return its mean losses and the accuracy in training."""
        self.model.train()
        sums = torch.zeros(3)
        started = time.perf_counter()
        num_images = 0
        for batch in split.train_batches(self.settings.batch_size, seed, epoch):
            sums += self.step(batch)
            num_images += len(batch.labels)
            now = time.perf_counter()
            self.seconds.append(now - started)
            started = now
        loss, aux_loss, correct = (sums / num_images).tolist()
        return {"loss": loss, "aux_loss": aux_loss, "accuracy": 100 * correct}

    def step(self, batch: Batch) -> Tensor:
        """Train on a batch; return its losses and its correct answers, summed over the images."""
        labels = batch.labels
        with autocast(CPU, self.precision):
            logits, aux_loss = self.model(batch.images, batch.questions)
        loss = cross_entropy(logits.float(), labels)
        (loss + aux_loss).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        with torch.no_grad():
            correct = (logits.argmax(dim=-1) == labels).sum()
            return torch.stack([loss * len(labels), aux_loss * len(labels), correct])


def train(
    build: Build, source: str | None, settings: Settings, seed: int, precision: Precision
) -> dict[str, Any]:
    """Build and train a model, and return the results to save."""
    started = time.perf_counter()
    data, scored = load_data(source, settings)
    settings = replace(settings, num_classes=len(data.class_names))
    torch.manual_seed(seed)
    model = build(settings)
    steps = data.train.steps_per_epoch(settings.batch_size)
    trainer = Trainer(model, settings, steps, precision)
    curve = []
    for epoch in range(settings.epochs):
        curve.append(trainer.train_epoch(data.train, seed, epoch))
        print(f"epoch {epoch + 1} of {settings.epochs}:", curve[-1], flush=True)
    score = evaluate(model, scored.eval_batches(EVAL_BATCH), settings.num_classes, precision)
    shifts = {}
    if settings.use_shifts:
        size = settings.batch_size
        shifts = score_shifts(model, scored, size, settings.num_classes, precision)
    return {
        "scored_on": settings.scored_on,
        "accuracy": score.accuracy,
        "kinds": score_types(score, data, scored),
        "shifts": shifts,
        "correct": int(score.confusion.diag().sum()),
        "total": int(score.confusion.sum()),
        "scored_loss": score.loss,
        "curve": curve,
        "parameters": sum(p.numel() for p in model.parameters()),
        "images_seen": steps * settings.batch_size * settings.epochs,
        "settings": asdict(settings),
        "precision": precision,
        "data": data.digest,
        "timing": {
            "seconds_per_step": median(trainer.seconds),
            "seconds": time.perf_counter() - started,
        },
        "threads": torch.get_num_threads(),
        "environment": asdict(describe_environment(CPU)),
    }
