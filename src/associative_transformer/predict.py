"""Predictions for image files, and answers to a question about them.

Dims     N images   C channels   H W image side   O classes
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from associative_transformer.compute import Precision, autocast, count_cores
from associative_transformer.data import list_image_files
from associative_transformer.data.listing import name_skipped
from associative_transformer.data.loaders import ReadBatch, read_batches
from associative_transformer.data.questions import Questions, encode
from associative_transformer.decoding import UnreadableImage
from associative_transformer.files import csv_text
from associative_transformer.interface import UserError
from associative_transformer.models.preprocessing import Preprocessing


class Prediction(NamedTuple):
    """The class probabilities of one image file."""

    path: Path
    probabilities: Float[Tensor, " O"]  # on the CPU


def predict_files(
    model: nn.Module,
    paths: Iterable[Path],
    preprocessing: Preprocessing,
    batch_size: int,
    on_error: Literal["stop", "skip"] = "stop",
    question: Questions | None = None,
    skipped: list[UnreadableImage] | None = None,
    precision: Precision = "float32",
    num_workers: int | None = None,
    on_progress: Callable[[int, int], object] | None = None,
) -> Iterator[Prediction]:
    """Classify image files and all images below folders, in order and in batches.

    The question, if any, is asked about each of them. Logits are divided by the `temperature` of
    the model, if it has one, so that probabilities are calibrated. Raises UserError if a path does
    not exist, a folder contains no image, or an image cannot be read and `on_error` is "stop".
    With "skip", the errors about unreadable images are printed to stderr and added to `skipped`,
    once for each file. `num_workers` processes decode the images; None means one per core if there
    is more than one batch. `on_progress` is called with the number of files so far and of all.
    """
    skipped = [] if skipped is None else skipped
    files = _image_files(paths)
    if num_workers is None:
        num_workers = count_cores() if len(files) > batch_size else 0
    rows = range(len(files))
    batches = [list(rows[start : start + batch_size]) for start in rows[::batch_size]]
    decoded = read_batches(partial(_decode, preprocessing, files), batches, num_workers)
    images = _readable(files, batches, decoded, on_error, skipped, on_progress)
    return _predict(model, images, preprocessing, question, precision)


def _decode(
    preprocessing: Preprocessing, files: list[Path], row: int, seed: int | None
) -> UInt8[Tensor, "C H W"]:
    return preprocessing.decode(files[row])


def _readable(
    files: list[Path],
    batches: list[list[int]],
    decoded: Iterator[ReadBatch],
    on_error: Literal["stop", "skip"],
    skipped: list[UnreadableImage],
    on_progress: Callable[[int, int], object] | None,
) -> Iterator[tuple[list[Path], UInt8[Tensor, "N C H W"]]]:
    """Yield the paths and images of each batch that can be read."""
    for rows, (images, errors) in zip(batches, decoded, strict=True):
        for error in filter(None, errors):
            if on_error == "stop":
                raise UnreadableImage(error.name, error.reason, "--on-error skip") from error
            if error.name not in (earlier.name for earlier in skipped):
                skipped.append(error)
        if len(images):
            pairs = zip(rows, errors, strict=True)
            yield [files[row] for row, error in pairs if error is None], images
        if on_progress is not None:
            on_progress(rows[-1] + 1, len(files))
    name_skipped(skipped)


def _predict(
    model: nn.Module,
    images: Iterator[tuple[list[Path], UInt8[Tensor, "N C H W"]]],
    preprocessing: Preprocessing,
    question: Questions | None,
    precision: Precision,
) -> Iterator[Prediction]:
    model.eval()
    device, temperature = next(model.parameters()).device, getattr(model, "temperature", None) or 1
    vector = None if question is None else torch.from_numpy(encode(question)).to(device)
    for paths, batch in images:
        questions = None if vector is None else vector.expand(len(batch), -1)
        with torch.inference_mode(), autocast(device, precision):
            logits = model(preprocessing.normalize(batch.to(device)), questions).logits
            probabilities = (logits.float() / temperature).softmax(dim=-1).cpu()
        yield from map(Prediction, paths, probabilities)


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
