"""Accuracy of a model on a split, and on each kind of question.

Dims     N items   O classes   K kinds of questions
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from math import isnan, sqrt
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple, cast

import torch
from accelerate.utils import find_executable_batch_size
from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from associative_transformer import distributed
from associative_transformer.data import DataSet, HeldOut, Share, Split
from associative_transformer.data.questions import KINDS, NUM_SUBTYPES, TYPES, decode
from associative_transformer.files import write_file
from associative_transformer.interface import PADDING, Batch

MAX_GPU_BATCH = 16_384
"""Images that a GPU is tried with first; half of them where they don't fit, and so on."""
Z = NormalDist().inv_cdf(0.975)  # of a 95 % interval


class Evaluation(NamedTuple):
    """How a model did on a split; every item is counted once."""

    accuracy: float  # percent
    loss: float  # mean cross-entropy in nats
    confusion: Int[Tensor, "O O"]  # items by (true class, predicted class)
    predicted: Int[Tensor, " N"]  # class of each item, in order

    @property
    def class_accuracy(self) -> list[float]:
        """Percent of the items of each class that were told right; nan where it has none."""
        return (100 * self.confusion.diag() / self.confusion.sum(dim=1)).tolist()


def evaluate_split(
    model: nn.Module, split: Split, batch_size: int, num_classes: int
) -> Evaluation:
    """Score a split in batches of `batch_size`, or on a GPU in the largest that fit its memory.

    Several processes share the batches, and each gets the scores of all.
    """
    share = Share(distributed.rank(), distributed.num_ranks())
    if split.loader.device.type == "cpu" or share.num_ranks > 1:
        return evaluate(model, split.eval_batches(batch_size, share), num_classes)

    size = min(len(split), MAX_GPU_BATCH)

    def halve() -> int:
        nonlocal size
        size //= 2
        return size

    def score(size: int) -> Evaluation:
        return evaluate(model, split.eval_batches(size), num_classes)

    run = find_executable_batch_size(score, size, reduce_batch_size_fn=halve)
    return cast(Evaluation, run())


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Iterable[Batch], num_classes: int) -> Evaluation:
    """Score every item of the batches; rows labeled PADDING are left out.

    The model is put into evaluation mode, in which its memory is frozen, and back afterwards.
    The device is waited for once, at the end.
    """
    was_training = model.training
    model.eval()
    losses, labels, predicted = [], [], []
    try:
        for batch in batches:
            logits = model(batch.images, batch.questions).logits.float()
            losses.append(
                cross_entropy(logits, batch.labels, ignore_index=PADDING, reduction="sum")
            )
            labels.append(batch.labels)
            predicted.append(logits.argmax(dim=-1))
    finally:
        model.train(was_training)
    true, best = (_of_all_ranks(column).cpu() for column in (labels, predicted))
    true, best = true[true != PADDING], best[true != PADDING]
    pairs = (true * num_classes + best).bincount(minlength=num_classes**2)
    confusion = pairs.view(num_classes, num_classes)
    loss = float(distributed.add(torch.stack(losses).double().sum())) / len(true)
    accuracy = 100 * int(confusion.diag().sum()) / len(true)
    return Evaluation(accuracy, loss, confusion, best)


def _of_all_ranks(batches: list[Int[Tensor, " B"]]) -> Int[Tensor, " N"]:
    """Put what all ranks know of their shares of the batches in the order of the items."""
    if distributed.num_ranks() == 1:
        return torch.cat(batches)
    return rearrange(distributed.gather(torch.stack(batches)), "w s b -> (s w b)")


class Interval(NamedTuple):
    """95 % confidence interval, in percent."""

    low: float
    high: float


def interval_by_image(is_right: Bool[Tensor, " N"], images: Int[Tensor, " N"]) -> Interval:
    """Bound the share of right answers with the image as the unit: its questions hang together.

    Wilson's interval (1927) for the effective number of questions: theirs, divided by how much
    larger the variance between images is than that of independent questions (Kish's design
    effect, from 1 to the questions of an image). Few errors can't show how they hang together,
    so one imaginary image, all wrong (or all right, where most are wrong), enters that variance.
    """
    n, share = len(is_right), is_right.double().mean().item()
    _, image, sizes = torch.unique(images, return_inverse=True, return_counts=True)
    size = sizes.square().sum().item() / n  # questions of an image; 1 where each has one
    excess = torch.zeros(len(sizes) + 1, dtype=torch.float64)
    excess.index_add_(0, image, is_right.double() - share)
    excess[-1] = size * max(share, 1 - share)
    variance, independent = excess.square().sum().item() / n**2, share * (1 - share) / n
    n_effective = n / min(max(variance / independent, 1.0) if independent else size, size)
    center = share + Z**2 / (2 * n_effective)
    reach = Z * sqrt(share * (1 - share) / n_effective + Z**2 / (4 * n_effective**2))
    low, high = ((center + side * reach) / (1 + Z**2 / n_effective) for side in (-1, 1))
    return Interval(100 * max(low, 0.0), 100 * min(high, 1.0))


class KindScore(NamedTuple):
    """Accuracy on the questions of a type, of one of its subtypes, or on all."""

    name: str  # as in "binary", "binary/closest" and "all"
    accuracy: float  # percent
    interval: Interval
    guess: float  # percent: accuracy of the best guess without a look at the image
    questions: int
    images: int


def score_kinds(
    predicted: Int[Tensor, " N"], split: Split, guesses: Int[Tensor, " K"]
) -> list[KindScore]:
    """Score each type and subtype that is asked for, and all questions together.

    `guesses` is the best answer to each kind of question without a look at the image.
    """
    if split.questions is None:
        raise ValueError("this split asks no questions")
    kind = torch.from_numpy(decode(split.questions.numpy()).kind)
    is_right, is_guessed = predicted == split.labels, guesses[kind] == split.labels
    groups: list[tuple[str, Tensor]] = []
    for place, name in enumerate(TYPES):
        groups.append((name, kind // NUM_SUBTYPES == place))
        groups += [(k.name, kind == i) for i, k in enumerate(KINDS) if k.type == name]
    groups.append(("all", torch.ones_like(is_right)))
    return [
        KindScore(
            name,
            100 * is_right[asked].double().mean().item(),
            interval_by_image(is_right[asked], split.rows[asked]),
            100 * is_guessed[asked].double().mean().item(),
            int(asked.sum()),
            len(torch.unique(split.rows[asked])),
        )
        for name, asked in groups
        if asked.any()
    ]


def summarize(evaluation: Evaluation, data: DataSet | HeldOut, prefix: str = "") -> dict[str, Any]:
    """Give what a result says about the test split, ready for JSON, with this before each key."""
    images = len(torch.unique(data.test.rows))
    summary: dict[str, Any] = {"accuracy": evaluation.accuracy, "loss": evaluation.loss}
    summary["images"] = images
    if data.guesses is not None:
        kinds = score_kinds(evaluation.predicted, data.test, data.guesses)
        summary["questions"] = len(data.test)
        summary["kinds"] = [{**kind._asdict(), "interval": list(kind.interval)} for kind in kinds]
    return {f"{prefix}{key}": value for key, value in summary.items()}


def describe_kinds(kinds: Iterable[dict[str, Any]]) -> str:
    """Write the scores of `summarize` as lines of text, the guess beside every accuracy."""
    lines = ["accuracy   95 % interval       guess  questions  images"]
    for kind in kinds:
        low, high = kind["interval"]
        lines.append(
            f"{kind['accuracy']:6.2f} %   {low:6.2f} to {high:6.2f} %  {kind['guess']:6.2f} %  "
            f"{kind['questions']:9,}  {kind['images']:6,}  {kind['name']}"
        )
    return "\n".join(lines)


def save_evaluation(
    evaluation: Evaluation,
    summary: dict[str, Any],
    classes: Sequence[str],
    folder: Path,
) -> None:
    """Write `evaluation.json` and `confusion.csv`, rows true and columns predicted classes.

    The former holds the summary as it is, and the accuracy of each class.
    """
    shares = dict(zip(classes, evaluation.class_accuracy, strict=True))
    summary = {
        **summary,
        "class_accuracy": {name: None if isnan(x) else x for name, x in shares.items()},
    }
    write_file(folder / "evaluation.json", json.dumps(summary, indent=2).encode())
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(["true \\ predicted", *classes])
    for name, row in zip(classes, evaluation.confusion.tolist(), strict=True):
        table.writerow([name, *row])
    write_file(folder / "confusion.csv", buffer.getvalue().encode())
