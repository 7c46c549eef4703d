"""Predictions for image files, and answers to a question about them.

Dims     O classes
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from associative_transformer.compute import Precision, autocast
from associative_transformer.data import DataConfig, list_image_files
from associative_transformer.data.decoding import UnreadableImage
from associative_transformer.data.listing import name_skipped
from associative_transformer.data.questions import Questions, encode
from associative_transformer.files import csv_text
from associative_transformer.interface import UserError


class Prediction(NamedTuple):
    """The class probabilities of one image file."""

    path: Path
    probabilities: Float[Tensor, " O"]  # on the CPU


def predict_files(
    model: nn.Module,
    paths: Iterable[Path],
    data: DataConfig,
    batch_size: int,
    on_error: Literal["stop", "skip"] = "stop",
    question: Questions | None = None,
    skipped: list[UnreadableImage] | None = None,
    precision: Precision = "float32",
) -> Iterator[Prediction]:
    """Classify image files and all images below folders, in order and in batches.

    Images are prepared like the test images of `data`; the question, if any, is asked about each
    of them. Raises UserError if a path does not exist, a folder contains no image, or an image
    cannot be read and `on_error` is "stop". With "skip", the errors about unreadable images are
    printed to stderr and added to `skipped`, once for each file.
    """
    skipped = [] if skipped is None else skipped
    files = _image_files(paths)
    return _predict(model, files, data, batch_size, on_error, question, skipped, precision)


def _predict(
    model: nn.Module,
    files: list[Path],
    data: DataConfig,
    batch_size: int,
    on_error: Literal["stop", "skip"],
    question: Questions | None,
    skipped: list[UnreadableImage],
    precision: Precision,
) -> Iterator[Prediction]:
    model.eval()
    device = next(model.parameters()).device
    vector = None if question is None else torch.from_numpy(encode(question)).to(device)
    for start in range(0, len(files), batch_size):
        readable, images = [], []
        for path in files[start : start + batch_size]:
            try:
                images.append(data.load_image(path))
                readable.append(path)
            except UnreadableImage as error:
                if on_error == "stop":
                    option = "--on-error skip"
                    raise UnreadableImage(error.name, error.reason, option) from error
                if error.name not in (earlier.name for earlier in skipped):
                    skipped.append(error)
        if images:
            with torch.inference_mode():
                questions = None if vector is None else vector.expand(len(images), -1)
                with autocast(device, precision):
                    logits = model(torch.stack(images).to(device), questions).logits
                probabilities = logits.float().softmax(dim=-1).cpu()
            yield from map(Prediction, readable, probabilities)
    name_skipped(skipped)


def write_predictions(
    predictions: Iterable[Prediction],
    classes: Sequence[str],
    top: int,
    file_format: Literal["csv", "json", "jsonl"],
    file: io.TextIOBase,
    question: str | None = None,
) -> None:
    """Write the `top` most probable classes of each image.

    Each image is a row of CSV, an object in an array (json) or an object on its own line (jsonl).
    The question, if any, follows the path.
    """
    question_column = {} if question is None else {"question": question}
    top = min(top, len(classes))
    table = csv.writer(file, lineterminator="\n")
    if file_format == "csv":
        columns = [f"{name}_{i}" for i in range(1, top + 1) for name in ("class", "probability")]
        table.writerow(["path", *question_column, *columns])
    end = "[\n"  # of the text before the next object in an array
    for path, probabilities in predictions:
        best = [(classes[i], float(probabilities[i])) for i in probabilities.topk(top).indices]
        if file_format == "csv":
            cells = [cell for name, p in best for cell in (csv_text(name), f"{p:.6f}")]
            table.writerow([csv_text(str(path)), *question_column.values(), *cells])
        else:
            answers = [{"class": name, "probability": p} for name, p in best]
            line = {"path": str(path), **question_column, "predictions": answers}
            if file_format == "json":
                file.write(end + json.dumps(line))
                end = ",\n"
            else:
                print(json.dumps(line), file=file)
    if file_format == "json":
        file.write("[]\n" if end == "[\n" else "\n]\n")


def _image_files(paths: Iterable[Path]) -> list[Path]:
    """Return the paths, with each folder replaced by the image files below it."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += list_image_files(path)
        elif path.exists():
            files.append(path)
        else:
            raise UserError(f"there is no file {path}: check the path")
    return files
