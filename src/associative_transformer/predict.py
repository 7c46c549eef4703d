"""Predictions for image files, and answers to a question about them.

Dims     O classes
"""

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from associative_transformer.data import SUFFIXES, DataConfig, list_files
from associative_transformer.data.questions import Questions, encode
from associative_transformer.interface import UserError
from associative_transformer.tabular import csv_text


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
) -> Iterator[Prediction]:
    """Classify image files and all images below folders, in order and in batches.

    Images are prepared like the test images of `data`; the question, if any, is asked about each
    of them. Raises UserError if a path does not exist, a folder contains no image, or an image
    cannot be read and `on_error` is "stop". With "skip", the number of unreadable images is
    printed to stderr.
    """
    return _predict(model, _image_files(paths), data, batch_size, on_error, question)


def _predict(
    model: nn.Module,
    files: list[Path],
    data: DataConfig,
    batch_size: int,
    on_error: Literal["stop", "skip"],
    question: Questions | None,
) -> Iterator[Prediction]:
    model.eval()
    device = next(model.parameters()).device
    vector = None if question is None else torch.from_numpy(encode(question)).to(device)
    num_skipped = 0
    for start in range(0, len(files), batch_size):
        readable, images = [], []
        for path in files[start : start + batch_size]:
            try:
                images.append(data.load_image(path))
                readable.append(path)
            except UserError as error:
                if on_error == "stop":
                    raise UserError(f"{error}, or pass --on-error skip") from error
                num_skipped += 1
        if images:
            with torch.inference_mode():
                questions = None if vector is None else vector.expand(len(images), -1)
                logits = model(torch.stack(images).to(device), questions).logits
                probabilities = logits.float().softmax(dim=-1).cpu()
            yield from map(Prediction, readable, probabilities)
    if num_skipped:
        print(f"{num_skipped} unreadable images were skipped", file=sys.stderr)


def write_predictions(
    predictions: Iterable[Prediction],
    classes: Sequence[str],
    top: int,
    file_format: Literal["csv", "jsonl"],
    file: io.TextIOBase,
    question: str | None = None,
) -> None:
    """Write the `top` most probable classes of each image as a row of CSV or a line of JSON.

    The question, if any, follows the path.
    """
    question_column = {} if question is None else {"question": question}
    top = min(top, len(classes))
    table = csv.writer(file, lineterminator="\n")
    if file_format == "csv":
        columns = [f"{name}_{i}" for i in range(1, top + 1) for name in ("class", "probability")]
        table.writerow(["path", *question_column, *columns])
    for path, probabilities in predictions:
        best = [(classes[i], float(probabilities[i])) for i in probabilities.topk(top).indices]
        if file_format == "csv":
            cells = [cell for name, p in best for cell in (csv_text(name), f"{p:.6f}")]
            table.writerow([csv_text(str(path)), *question_column.values(), *cells])
        else:
            answers = [{"class": name, "probability": p} for name, p in best]
            line = {"path": str(path), **question_column, "predictions": answers}
            print(json.dumps(line), file=file)


def _image_files(paths: Iterable[Path]) -> list[Path]:
    """Return the paths, with each folder replaced by the image files below it."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            images = sorted(path / p for p in list_files(path) if p.suffix.lower() in SUFFIXES)
            if not images:
                raise UserError(f"there are no images in {path}: pass another folder")
            files += images
        elif path.exists():
            files.append(path)
        else:
            raise UserError(f"there is no file {path}: check the path")
    return files
