"""`ait eval`: score the model of a run on its test images."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

from associative_transformer import distributed
from associative_transformer.cli.options import check_counts, choose_device, parse
from associative_transformer.evaluate import (
    describe_kinds,
    evaluate_split,
    save_evaluation,
    summarize,
)
from associative_transformer.runs.checkpoint import WEIGHTS
from associative_transformer.runs.saved import load_run, load_test_of


@dataclass(frozen=True)
class EvalOptions:
    """Score a trained model on every test image; write evaluation.json and confusion.csv.

    Under torchrun or accelerate the processes share the images.
    """

    run: Path
    """Folder of the run, such as runs/triangle-ait-tiny/0."""
    source: str | None = None
    """Folder of the images, where they no longer lie where they lay in training."""
    batch_size: int = 512
    """Images at a time in each process; a single GPU takes as many as fit its memory."""
    device: str = "auto"
    """auto, cpu, cuda, or another device that torch knows."""

    def __post_init__(self) -> None:
        check_counts(batch_size=self.batch_size)


def run(arguments: list[str]) -> None:
    """Score the model of a run and write what came out beside it."""
    options = parse(EvalOptions, arguments, "eval")
    with distributed.joined(choose_device(options.device)) as device:
        saved = load_run(options.run)
        data = load_test_of(saved, options.source, device)
        weights, labels = (options.run / WEIGHTS).read_bytes(), data.test.labels.numpy().tobytes()
        distributed.check_same([hashlib.sha256(x).hexdigest() for x in (weights, labels)])
        ranks = distributed.num_ranks()
        batch_size = ranks * min(options.batch_size, math.ceil(len(data.test) / ranks))
        scored = evaluate_split(saved.model.to(device), data.test, batch_size, len(saved.classes))
    if not distributed.is_first():
        return
    summary = summarize(scored, data)
    source = options.source or getattr(saved.experiment.data, "source", None)
    context = {"source": source, "skipped_images": data.num_skipped}
    save_evaluation(scored, {**summary, **context}, saved.classes, options.run)
    if "kinds" in summary:
        print(describe_kinds(summary["kinds"]))
        items = "test questions"
    else:
        for name, accuracy in zip(saved.classes, scored.class_accuracy, strict=True):
            print(f"{accuracy:6.2f} %  {name}")
        items = "test images"
    print(f"{scored.accuracy:6.2f} %  of all {len(data.test):,} {items}")
    print(f"written: {options.run / 'evaluation.json'}, {options.run / 'confusion.csv'}")
