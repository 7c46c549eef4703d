"""Test images for a page, as data URLs, with the class or the question of each.

Dims     C channels   H height   W width
"""

import base64
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from associative_transformer.analysis.answers import Answers
from associative_transformer.data import DataConfig, DescribedItem, HeldOut
from associative_transformer.report.charts import Picture

SIDE = 128  # pixels; larger images are scaled down
LOSSLESS_SIDE = 80  # pixels; larger images are compressed as JPEG
MAX_BYTES = 4_000_000  # of the optional images of a page
CHUNK_SIZE = 64  # items that are loaded together


@dataclass
class Gallery:
    """Items by their index in the split, and data URLs by row, since questions share images."""

    items: dict[int, DescribedItem] = field(default_factory=dict)
    sources: dict[int, str] = field(default_factory=dict)


def load_gallery(
    data: HeldOut, config: DataConfig, required: Iterable[int], optional: Iterable[int]
) -> Gallery:
    """Load all required items, then optional ones in order until `MAX_BYTES` are used."""
    gallery = Gallery()
    for items in _chunks(required):
        _add(gallery, data, config, items)
    size = 0
    for items in _chunks(optional):
        if size > MAX_BYTES:
            break
        size += _add(gallery, data, config, [i for i in items if i not in gallery.items])
    return gallery


def encode_image(image: Float[Tensor, "C H W"]) -> str:
    """Return an image with values in [0, 1] as a data URL."""
    pixels = (255 * image.clamp(0, 1)).round().byte().movedim(0, -1).cpu().numpy()
    return encode_picture(
        Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels), SIDE
    )


def encode_picture(picture: Image.Image, side: int) -> str:
    """Return a picture as a data URL; its larger side is reduced to `side` pixels."""
    is_small = max(picture.size) <= LOSSLESS_SIDE
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    if is_small:
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.save(buffer, "JPEG", quality=85)
    content = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{'png' if is_small else 'jpeg'};base64,{content}"


def show_mistakes(answers: Answers | None, gallery: Gallery) -> list[Picture]:
    """Return the images of the worst mistakes, each with the correct and the predicted answer."""
    pictures: list[Picture] = []
    if answers is None:
        return pictures
    for index, predicted, confidence in zip(
        answers.worst.tolist(),
        answers.worst_predicted.tolist(),
        answers.worst_confidence.tolist(),
        strict=True,
    ):
        item = gallery.items[index]
        text = f"{item.text}; predicted: {item.classes[predicted]} ({100 * confidence:.1f} %)"
        pictures.append(Picture(gallery.sources[item.row], text))
    return pictures


def _chunks(items: Iterable[int]) -> Iterator[list[int]]:
    unique = list(dict.fromkeys(items))
    yield from (unique[i : i + CHUNK_SIZE] for i in range(0, len(unique), CHUNK_SIZE))


def _add(gallery: Gallery, data: HeldOut, config: DataConfig, items: list[int]) -> int:
    """Add items and return the size of their images in bytes."""
    if not items:
        return 0
    described = config.describe_items(data, torch.tensor(items))
    gallery.items |= dict(zip(items, described, strict=True))
    rows = dict.fromkeys(item.row for item in described)
    new = [row for row in rows if row not in gallery.sources]
    if not new:
        return 0
    (images,) = data.test.loader.load(torch.tensor([new]), None)
    sources = [encode_image(image) for image in config.denormalize(images)]
    gallery.sources |= dict(zip(new, sources, strict=True))
    return sum(map(len, sources))
