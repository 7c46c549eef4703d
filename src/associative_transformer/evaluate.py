"""Accuracy of a model on a split, and on each kind of question.

Dims     N items   O classes   K kinds of questions
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import isfinite, isnan
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from associative_transformer import distributed
from associative_transformer.calibration import (
    Calibration,
    fit_temperature,
    measure_reliability,
)
from associative_transformer.compute import Precision, autocast
from associative_transformer.data import DataSet, HeldOut, Share, Split
from associative_transformer.data.questions import KINDS, NUM_SUBTYPES, TYPES, decode
from associative_transformer.files import csv_text, write_file
from associative_transformer.interface import PADDING, SHOWN, Batch
from associative_transformer.scores import (
    Interval,
    average_classes,
    interval_by_image,
    is_in_top,
    score_classes,
)

MAX_GPU_BATCH = 16_384
"""Size of the first batch tried on a GPU; it is halved until a batch fits in memory."""


class Evaluation(NamedTuple):
    """Predictions of a model for a split and their scores; every item is counted once."""

    accuracy: float  # percent
    loss: float  # mean cross-entropy in nats
    confusion: Int[Tensor, "O O"]  # number of items by (true class, predicted class)
    predicted: Int[Tensor, " N"]  # class predicted for each item of the split
    labels: Int[Tensor, " N"]
    logits: Float[Tensor, "N O"]

    @property
    def class_accuracy(self) -> list[float]:
        """Percentage of correct predictions for each class; nan for a class without items."""
        return (100 * self.confusion.diag() / self.confusion.sum(dim=1)).tolist()

    def fit_temperature(self) -> float | None:
        """Return the temperature that suits these items, which must not be those of a test."""
        return fit_temperature(self.logits, self.labels)


def evaluate_split(
    model: nn.Module,
    split: Split,
    batch_size: int,
    num_classes: int,
    precision: Precision = "float32",
) -> Evaluation:
    """Evaluate a model on a split in batches of `batch_size`, in the given precision.

    A single process on a GPU uses the largest batches that fit in memory instead. Several
    processes share the batches, and each of them returns the evaluation of the whole split.
    """
    share = Share(distributed.rank(), distributed.num_ranks())
    if split.loader.device.type == "cpu" or share.num_ranks > 1:
        batches = split.eval_batches(batch_size, share)
        return evaluate(model, batches, num_classes, precision)

    from accelerate.utils import find_executable_batch_size  # slow to import, for GPUs only

    size = min(len(split), MAX_GPU_BATCH)

    def halve() -> int:
        nonlocal size
        size //= 2
        return size

    def evaluate_in_batches(size: int) -> Evaluation:
        return evaluate(model, split.eval_batches(size), num_classes, precision)

    run = find_executable_batch_size(evaluate_in_batches, size, reduce_batch_size_fn=halve)
    return cast(Evaluation, run())


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    num_classes: int,
    precision: Precision = "float32",
) -> Evaluation:
    """Evaluate a model on every item of the batches; rows labeled PADDING are ignored.

    The model is in evaluation mode during the call, which freezes its memory, and returns to its
    previous mode afterwards. The device is synchronized only once, at the end.
    """
    was_training = model.training
    model.eval()
    losses, labels, logits_of_all = [], [], []
    try:
        for batch in batches:
            with autocast(batch.images.device, precision):
                logits = model(batch.images, batch.questions).logits.float()
            losses.append(
                cross_entropy(logits, batch.labels, ignore_index=PADDING, reduction="sum")
            )
            labels.append(batch.labels)
            logits_of_all.append(logits)
    finally:
        model.train(was_training)
    true, scored = _gather_items(labels).cpu(), _gather_items(logits_of_all)
    chosen, scored = scored.argmax(dim=-1).cpu(), scored.cpu()
    true, chosen, scored = (column[true != PADDING] for column in (true, chosen, scored))
    pairs = (true * num_classes + chosen).bincount(minlength=num_classes**2)
    confusion = pairs.view(num_classes, num_classes)
    loss = float(distributed.add(torch.stack(losses).double().sum())) / len(true)
    accuracy = 100 * int(confusion.diag().sum()) / len(true)
    return Evaluation(accuracy, loss, confusion, chosen, true, scored)


def _gather_items(batches: list[Shaped[Tensor, "B ..."]]) -> Shaped[Tensor, "N ..."]:
    """Concatenate the batches of all ranks in the order of the items."""
    if distributed.num_ranks() == 1:
        return torch.cat(batches)
    return rearrange(distributed.gather(torch.stack(batches)), "w s b ... -> (s w b) ...")


@dataclass(frozen=True)
class KindScore:
    """Accuracy on the questions of one type or subtype, or on all questions."""

    name: str  # such as "binary", "binary/closest" or "all"
    accuracy: float  # percent
    interval: Interval
    guess: float  # percent; accuracy of the best guess that ignores the image
    questions: int
    images: int


def score_kinds(
    predicted: Int[Tensor, " N"], split: Split, guesses: Int[Tensor, " K"]
) -> list[KindScore]:
    """Score each type and subtype of question that occurs in the split, and all questions.

    `guesses[k]` is the best answer to all questions of kind k without seeing the image.
    """
    if split.questions is None:
        raise ValueError("the split has no questions to score")
    kind = torch.from_numpy(decode(split.questions.numpy()).kind)
    is_right, is_guessed = predicted == split.labels, guesses[kind] == split.labels
    groups: list[tuple[str, Tensor]] = []
    for index, name in enumerate(TYPES):
        groups.append((name, kind // NUM_SUBTYPES == index))
        groups += [(k.name, kind == i) for i, k in enumerate(KINDS) if k.type == name]
    groups.append(("all", torch.ones_like(is_right)))
    return [
        KindScore(
            name,
            100 * is_right[in_group].double().mean().item(),
            interval_by_image(is_right[in_group], split.rows[in_group]),
            100 * is_guessed[in_group].double().mean().item(),
            int(in_group.sum()),
            len(torch.unique(split.rows[in_group])),
        )
        for name, in_group in groups
        if in_group.any()
    ]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Scores on a test split, without the individual predictions."""

    accuracy: float  # percent
    loss: float
    images: int
    questions: int | None = None  # this and `kinds`: None if the data set has no questions
    kinds: tuple[KindScore, ...] | None = None
    interval: Interval | None = None  # of the accuracy; this and below: not in early results
    top5_accuracy: float | None = None  # percent; this and its interval: with over five classes
    top5_interval: Interval | None = None
    balanced_accuracy: float | None = None  # mean recall of the classes with items, in percent
    mean_precision: float | None = None  # percent, as is the F1
    mean_f1: float | None = None
    calibration: Calibration | None = None  # None if a logit is not finite

    def to_dict(self) -> dict[str, Any]:
        """Return the scores that are not None, ready for JSON."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def summarize(
    evaluation: Evaluation, data: DataSet | HeldOut, temperature: float | None = None
) -> Summary:
    """Summarize the evaluation of a test split.

    `temperature` is that of the validation split, if there is one.
    """
    test, guesses = data.test, data.guesses
    logits, labels = evaluation.logits, evaluation.labels
    top5, top5_interval = None, None
    if logits.shape[1] > 5:
        in_top = is_in_top(logits, labels, 5)
        top5 = 100 * in_top.double().mean().item()
        top5_interval = interval_by_image(in_top, test.rows)
    names = tuple(map(str, range(len(evaluation.confusion))))
    means = average_classes(score_classes(labels, evaluation.predicted, test.rows, names))
    return Summary(
        accuracy=evaluation.accuracy,
        loss=evaluation.loss,
        images=len(torch.unique(test.rows)),
        questions=None if guesses is None else len(test),
        kinds=None if guesses is None else tuple(score_kinds(evaluation.predicted, test, guesses)),
        interval=interval_by_image(evaluation.predicted == labels, test.rows),
        top5_accuracy=top5,
        top5_interval=top5_interval,
        balanced_accuracy=means.recall,
        mean_precision=means.precision,
        mean_f1=means.f1,
        calibration=_calibrate(evaluation, temperature),
    )


def _calibrate(evaluation: Evaluation, temperature: float | None) -> Calibration | None:
    """Return the calibration errors before and after dividing the logits by a temperature."""
    error = 100 * measure_reliability(evaluation.logits, evaluation.labels).error
    if not isfinite(error):
        return None
    if temperature is None:
        return Calibration(error)
    scaled = measure_reliability(evaluation.logits, evaluation.labels, temperature)
    return Calibration(error, temperature, 100 * scaled.error)


def describe_kinds(kinds: Iterable[KindScore]) -> str:
    """Return a line for each kind of question, with its accuracy next to its best guess."""
    lines = ["accuracy   95 % interval       guess  questions  images"]
    for kind in kinds:
        low, high = kind.interval
        lines.append(
            f"{kind.accuracy:6.2f} %   {low:6.2f} to {high:6.2f} %  {kind.guess:6.2f} %  "
            f"{kind.questions:9,}  {kind.images:6,}  {kind.name}"
        )
    return "\n".join(lines)


def save_evaluation(
    evaluation: Evaluation,
    summary: dict[str, Any],
    classes: Sequence[str],
    folder: Path,
    suffix: str = "",
) -> tuple[Path, Path]:
    """Write `evaluation.json` and `confusion.csv`, and return both paths.

    `suffix` is added to both names, for a test set other than that of the run.

    `evaluation.json` contains `summary` and the accuracy of each class. In `confusion.csv`, rows
    are true classes and columns are predicted classes.
    """
    shares = dict(zip(classes, evaluation.class_accuracy, strict=True))
    class_accuracy = {name: None if isnan(share) else share for name, share in shares.items()}
    content = json.dumps({**summary, "class_accuracy": class_accuracy}, indent=2)
    paths = folder / f"evaluation{suffix}.json", folder / f"confusion{suffix}.csv"
    write_file(paths[0], content.encode())
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(["true \\ predicted", *map(csv_text, classes)])
    for name, row in zip(classes, evaluation.confusion.tolist(), strict=True):
        table.writerow([csv_text(name), *row])
    write_file(paths[1], buffer.getvalue().encode(errors=SHOWN))
    return paths
