"""Accuracy of a model on a split, and its predictions for images.

Dims     B batch   C channels   H W image side   O classes
"""

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from math import isnan
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from associative_transformer.data import SUFFIXES, ImagesConfig, TriangleConfig, load_image
from associative_transformer.experiment import write_file
from associative_transformer.interface import PADDING, Batch, UserError


class Evaluation(NamedTuple):
    """How a model did on a split; every item is counted once."""

    accuracy: float  # percent
    loss: float  # mean cross-entropy in nats
    confusion: Int[Tensor, "O O"]  # items by (true class, predicted class)

    @property
    def class_accuracy(self) -> list[float]:
        """Percent of the items of each class that were told right; nan where it has none."""
        return (100 * self.confusion.diag() / self.confusion.sum(dim=1)).tolist()


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Iterable[Batch], num_classes: int) -> Evaluation:
    """Score every item of the batches; rows labeled PADDING are left out.

    The model is put into evaluation mode, in which its memory is frozen, and back afterwards.
    """
    was_training = model.training
    model.eval()
    confusion = torch.zeros(num_classes * num_classes, dtype=torch.int64)
    loss = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        logits = model(batch.images, batch.questions).logits.float()
        loss += cross_entropy(logits, batch.labels, ignore_index=PADDING, reduction="sum").cpu()
        real = batch.labels != PADDING
        pairs = batch.labels[real] * num_classes + logits[real].argmax(dim=-1)
        confusion += pairs.bincount(minlength=num_classes * num_classes).cpu()
    model.train(was_training)
    confusion = confusion.view(num_classes, num_classes)
    total = int(confusion.sum())
    accuracy = 100 * int(confusion.diag().sum()) / total
    return Evaluation(accuracy, float(loss) / total, confusion)


def save_evaluation(
    evaluation: Evaluation, classes: Sequence[str], folder: Path, **context: object
) -> None:
    """Write `evaluation.json` and `confusion.csv`, rows true and columns predicted classes.

    The context, such as where the images came from, goes into the former as it is.
    """
    shares = dict(zip(classes, evaluation.class_accuracy, strict=True))
    summary = {
        "accuracy": evaluation.accuracy,
        "loss": evaluation.loss,
        "images": int(evaluation.confusion.sum()),
        **context,
        "class_accuracy": {name: None if isnan(x) else x for name, x in shares.items()},
    }
    write_file(folder / "evaluation.json", json.dumps(summary, indent=2).encode())
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(["true \\ predicted", *classes])
    for name, row in zip(classes, evaluation.confusion.tolist(), strict=True):
        table.writerow([name, *row])
    write_file(folder / "confusion.csv", buffer.getvalue().encode())


class Prediction(NamedTuple):
    """What a model makes of one image file."""

    path: Path
    probabilities: Float[Tensor, " O"]  # on the CPU


def predict_files(
    model: nn.Module,
    paths: Iterable[Path],
    data: TriangleConfig | ImagesConfig,
    batch_size: int,
    on_error: Literal["stop", "skip"] = "stop",
) -> Iterator[Prediction]:
    """Classify image files, and all images in folders, in order, a batch at a time.

    They are prepared like the test images of `data`. Raises UserError on a path that is missing,
    a folder without images, and on an unreadable image unless it is to be skipped; how many were
    skipped is said on stderr.
    """
    return _predict(model, _image_files(paths), data, batch_size, on_error)


def _predict(
    model: nn.Module,
    files: list[Path],
    data: TriangleConfig | ImagesConfig,
    batch_size: int,
    on_error: Literal["stop", "skip"],
) -> Iterator[Prediction]:
    model.eval()
    device = next(model.parameters()).device
    num_skipped = 0
    for start in range(0, len(files), batch_size):
        readable, images = [], []
        for path in files[start : start + batch_size]:
            try:
                images.append(load_image(path, data))
                readable.append(path)
            except UserError as error:
                if on_error == "stop":
                    raise UserError(f"{error}, or pass --on-error skip") from error
                num_skipped += 1
        if images:
            with torch.inference_mode():
                logits = model(torch.stack(images).to(device), None).logits
                probabilities = logits.float().softmax(dim=-1).cpu()
            yield from map(Prediction, readable, probabilities)
    if num_skipped:
        print(f"{num_skipped} unreadable images were skipped", file=sys.stderr)


def write_predictions(
    predictions: Iterable[Prediction],
    classes: Sequence[str],
    top: int,
    form: Literal["csv", "jsonl"],
    file: io.TextIOBase,
) -> None:
    """Write the `top` classes of each image, as a row of CSV or a line of JSON."""
    top = min(top, len(classes))
    table = csv.writer(file, lineterminator="\n")
    if form == "csv":
        columns = [f"{name}_{i}" for i in range(1, top + 1) for name in ("class", "probability")]
        table.writerow(["path", *columns])
    for path, probabilities in predictions:
        best = [(classes[i], float(probabilities[i])) for i in probabilities.topk(top).indices]
        if form == "csv":
            table.writerow([path, *(x for name, p in best for x in (name, f"{p:.6f}"))])
        else:
            found = [{"class": name, "probability": p} for name, p in best]
            print(json.dumps({"path": str(path), "predictions": found}), file=file)


def _image_files(paths: Iterable[Path]) -> list[Path]:
    """List the paths themselves, and the image files below those that are folders."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(
                p for p in path.rglob("*") if p.is_file() and _is_image(p.relative_to(path))
            )
            if not inside:
                raise UserError(f"there is no image in {path}")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"there is no file {path}")
    return found


def _is_image(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and path.suffix.lower() in SUFFIXES
