"""Test images for a page, as data URLs with what there is to say of them.

Dims     C channels   H height   W width
"""

import base64
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from associative_transformer.analysis.answers import Answers
from associative_transformer.data import DataConfig, HeldOut
from associative_transformer.data.questions import answer_words, decode, describe_questions
from associative_transformer.report.charts import Picture

SIDE = 128  # pixels; larger images are made smaller
LOSSLESS_SIDE = 80  # larger images are compressed as photographs
MAX_BYTES = 4_000_000  # of the images that a page can do without
AT_ONCE = 64


class Item(NamedTuple):
    """A test item: an image, or a question about one."""

    row: int  # of its image
    question: str  # empty where there is none
    classes: tuple[str, ...]  # possible answers
    label: int  # the right one

    @property
    def text(self) -> str:
        """Say what it shows, or what is asked and answered."""
        right = self.classes[self.label]
        return f"{self.question}? {right}" if self.question else right


@dataclass
class Gallery:
    """Items by their place in the split, and their images by row: questions share them."""

    items: dict[int, Item] = field(default_factory=dict)
    sources: dict[int, str] = field(default_factory=dict)


def load_gallery(
    data: HeldOut, config: DataConfig, needed: Iterable[int], wanted: Iterable[int]
) -> Gallery:
    """Load the needed items, and as many of the wanted ones as there is space for, in order."""
    gallery = Gallery()
    for items in _chunks(needed):
        _add(gallery, data, config, items)
    size = 0
    for items in _chunks(wanted):
        if size > MAX_BYTES:
            break
        size += _add(gallery, data, config, [i for i in items if i not in gallery.items])
    return gallery


def encode_image(image: Float[Tensor, "C H W"]) -> str:
    """Write an image with values in [0, 1] as a data URL."""
    pixels = (255 * image.clamp(0, 1)).round().byte().movedim(0, -1).cpu().numpy()
    picture = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    is_small = max(picture.size) <= LOSSLESS_SIDE
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    if is_small:
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.save(buffer, "JPEG", quality=85)
    content = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{'png' if is_small else 'jpeg'};base64,{content}"


def show_mistakes(found: Answers, gallery: Gallery) -> list[Picture]:
    """Put the worst mistakes beside their images."""
    pictures = []
    for item, said, confidence in zip(
        found.worst.tolist(),
        found.worst_predicted.tolist(),
        found.worst_confidence.tolist(),
        strict=True,
    ):
        shown = gallery.items[item]
        text = f"{shown.text}; answered {shown.classes[said]} ({100 * confidence:.1f} %)"
        pictures.append(Picture(gallery.sources[shown.row], text))
    return pictures


def _chunks(items: Iterable[int]) -> Iterator[list[int]]:
    order = list(dict.fromkeys(items))
    yield from (order[i : i + AT_ONCE] for i in range(0, len(order), AT_ONCE))


def _add(gallery: Gallery, data: HeldOut, config: DataConfig, items: list[int]) -> int:
    """Add items and give the size of their images in bytes."""
    if not items:
        return 0
    split = data.test.take(torch.tensor(items))
    rows, labels = split.rows.tolist(), split.labels.tolist()
    questions, classes = [""] * len(items), [data.class_names] * len(items)
    if split.questions is not None:
        asked = decode(split.questions.cpu().numpy())
        questions, classes = (
            describe_questions(asked),
            [answer_words(kind) for kind in asked.kind.tolist()],
        )
    gallery.items |= dict(zip(items, map(Item, rows, questions, classes, labels), strict=True))
    new = [row for row in dict.fromkeys(rows) if row not in gallery.sources]
    if not new:
        return 0
    (images,) = data.test.loader.load(torch.tensor([new]), None)
    mean, std = (torch.tensor(x, device=images.device)[:, None, None] for x in _scale(config))
    sources = [encode_image(image) for image in images * std + mean]
    gallery.sources |= dict(zip(new, sources, strict=True))
    return sum(map(len, sources))


def _scale(config: DataConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return config.mean, config.std
