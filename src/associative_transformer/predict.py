"""Predictions of a model for image files, and its answers to a question about them.

Dims     C channels   H W image side   O classes
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

from associative_transformer.data import SUFFIXES, DataConfig, list_files, load_image
from associative_transformer.data.questions import Questions, encode
from associative_transformer.interface import UserError


class Prediction(NamedTuple):
    """What a model makes of one image file."""

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
    """Classify image files, and all images in folders, in order, a batch at a time.

    They are prepared like the test images of `data`, and the question, where there is one, is
    asked about each. Raises UserError on a path that is missing, a folder without images, and on
    an unreadable image unless it is to be skipped; how many were skipped is said on stderr.
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
    asked = None if question is None else torch.from_numpy(encode(question)).to(device)
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
                questions = None if asked is None else asked.expand(len(images), -1)
                logits = model(torch.stack(images).to(device), questions).logits
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
    question: str | None = None,
) -> None:
    """Write the `top` classes of each image, as a row of CSV or a line of JSON.

    The question that the classes answer, where there is one, stands beside the path.
    """
    asked = {} if question is None else {"question": question}
    top = min(top, len(classes))
    table = csv.writer(file, lineterminator="\n")
    if form == "csv":
        columns = [f"{name}_{i}" for i in range(1, top + 1) for name in ("class", "probability")]
        table.writerow(["path", *asked, *columns])
    for path, probabilities in predictions:
        best = [(classes[i], float(probabilities[i])) for i in probabilities.topk(top).indices]
        if form == "csv":
            table.writerow(
                [path, *asked.values(), *(x for name, p in best for x in (name, f"{p:.6f}"))]
            )
        else:
            found = [{"class": name, "probability": p} for name, p in best]
            line = {"path": str(path), **asked, "predictions": found}
            print(json.dumps(line), file=file)


def _image_files(paths: Iterable[Path]) -> list[Path]:
    """List the paths themselves, and the image files below those that are folders."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(path / p for p in list_files(path) if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise UserError(f"there is no image in {path}")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"there is no file {path}")
    return found
