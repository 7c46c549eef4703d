"""Data sets: what to load, and the training, validation and test split of each.

Dims     K kinds of questions   C channels   H height   W width
"""

import hashlib
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Tensor

from associative_transformer.data.augment import (
    Preparation,
    ResidentLoader,
    StreamingLoader,
    read_once,
)
from associative_transformer.data.batches import Share, Split
from associative_transformer.data.images import (
    KNOWN,
    ImagesConfig,
    ImageSet,
    ImageTable,
    check_classes,
    decode_image,
    open_images,
)
from associative_transformer.data.sort_of_clevr import (
    PICTURE_SIZE,
    Items,
    SortOfClevrConfig,
    best_guesses,
    draw_pictures,
    generate_items,
)
from associative_transformer.data.sources import SUFFIXES, list_files, open_folder, open_hub
from associative_transformer.data.triangle import (
    CLASS_NAMES,
    IMAGE_SIZE,
    TEST,
    TRAIN,
    TriangleConfig,
    generate_triangles,
)
from associative_transformer.interface import UserError
from associative_transformer.questions import CLASS_NAMES as ANSWERS
from associative_transformer.questions import QUESTION_DIM, encode

__all__ = [
    "KNOWN",
    "SUFFIXES",
    "DataConfig",
    "DataSet",
    "HeldOut",
    "ImagesConfig",
    "InputSize",
    "Share",
    "SortOfClevrConfig",
    "Split",
    "TriangleConfig",
    "decode_image",
    "input_size",
    "list_files",
    "load_data",
    "load_image",
    "load_test",
    "name_data",
    "name_items",
    "show_image",
]

AnyData = TriangleConfig | SortOfClevrConfig | ImagesConfig
DataConfig = Annotated[AnyData, Field(discriminator="kind")]


class InputSize(NamedTuple):
    """What a model has to take in."""

    image_size: int
    num_channels: int
    question_dim: int  # 0: there are no questions


def input_size(config: AnyData) -> InputSize:
    """Tell the size of the images and of the questions, without loading any."""
    if isinstance(config, TriangleConfig):
        return InputSize(IMAGE_SIZE, config.channels, question_dim=0)
    if isinstance(config, SortOfClevrConfig):
        return InputSize(PICTURE_SIZE, 3, QUESTION_DIM)
    return InputSize(config.image_size, 3, question_dim=0)


def name_data(config: AnyData) -> str:
    """Name a data set: as the hub does, or by its kind where it is generated."""
    return config.name if isinstance(config, ImagesConfig) else config.kind


def name_items(config: AnyData) -> str:
    """Say what is answered: images, or questions about them."""
    return "questions" if input_size(config).question_dim else "images"


class DataSet(NamedTuple):
    """The splits of a data set; model selection uses `validation`, never `test`."""

    train: Split
    validation: Split | None  # with a `val_fraction`
    test: Split
    class_names: tuple[str, ...]
    num_skipped: int = 0  # unreadable images left out
    guesses: Int[Tensor, " K"] | None = None  # best answer to each kind of question, unseen

    def check_classes(self, num_classes: int) -> None:
        """Raise UserError where a model tells another number of classes apart."""
        if len(self.class_names) != num_classes:
            raise UserError(
                f"the data has {len(self.class_names)} classes but model.num_classes is "
                f"{num_classes}: pass --model.num-classes {len(self.class_names)}"
            )

    @property
    def digest(self) -> str:
        """Tell this data from other data under the same name by classes, labels and questions."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        for split in (self.train, self.validation, self.test):
            digest.update(b"|" if split is None else split.labels.numpy().tobytes())
            if split is not None and split.questions is not None:
                digest.update(split.questions.numpy().tobytes())
        return digest.hexdigest()


class HeldOut(NamedTuple):
    """The test split alone, for a model that is trained already."""

    test: Split
    class_names: tuple[str, ...]
    num_skipped: int = 0
    guesses: Int[Tensor, " K"] | None = None


def load_data(config: AnyData, device: torch.device) -> DataSet:
    """Generate or open a data set whose batches lie on `device`.

    Raises a `UserError` where the data set is missing or cannot be used.
    """
    if isinstance(config, TriangleConfig):
        train, validation = _triangles(config, TRAIN, device).carve(config.val_fraction)
        test = _triangles(config, TEST, device)
        return DataSet(train, validation, test, CLASS_NAMES)
    if isinstance(config, SortOfClevrConfig):
        items = generate_items(config, TRAIN)
        train, validation = _questions(items, config, device).carve(config.val_fraction)
        test = _questions(generate_items(config, TEST), config, device)
        guesses = torch.from_numpy(best_guesses(items))
        return DataSet(train, validation, test, ANSWERS, guesses=guesses)
    return _load_images(config, device)


def load_test(config: AnyData, device: torch.device) -> HeldOut:
    """Generate or open the test split only, without decoding a training image.

    Raises a `UserError` where the data set is missing or cannot be used.
    """
    if isinstance(config, TriangleConfig):
        return HeldOut(_triangles(config, TEST, device), CLASS_NAMES)
    if isinstance(config, SortOfClevrConfig):
        test = _questions(generate_items(config, TEST), config, device)
        guesses = torch.from_numpy(best_guesses(generate_items(config, TRAIN)))
        return HeldOut(test, ANSWERS, guesses=guesses)
    found = _open(config)
    test = _split(found.test, config, device, _fits(config, len(found.test)))
    return HeldOut(test, found.test.class_names, len(found.test) - len(test))


def load_image(path: Path, config: AnyData) -> Float[Tensor, "C H W"]:
    """Read one image as a model trained on this data set expects it."""
    size = input_size(config).image_size
    image = decode_image(path, size, "L" if isinstance(config, TriangleConfig) else "RGB")
    return Preparation(config.mean, config.std).normalize(image[None])[0]


def show_image(split: Split, item: int, config: AnyData) -> UInt8[np.ndarray, "C H W"]:
    """Give the image of an item for the eye, as it was before normalization."""
    batch = next(iter(split.take(torch.tensor([item])).eval_batches(1)))
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    pixels = batch.images[0].cpu() * std + mean
    return (255 * pixels).round().clamp(0, 255).byte().numpy()


def _triangles(config: TriangleConfig, split: int, device: torch.device) -> Split:
    num_items = config.num_train if split == TRAIN else config.num_test
    images, labels, _ = generate_triangles(config, split, num_items)
    preparation = Preparation(config.mean, config.std, device=device)
    loader = ResidentLoader(torch.from_numpy(images)[:, None], preparation)
    return Split(torch.from_numpy(labels), torch.arange(num_items), loader)


def _questions(items: Items, config: SortOfClevrConfig, device: torch.device) -> Split:
    scenes, picture, questions, answers = items
    preparation = Preparation(config.mean, config.std, device=device)
    loader = ResidentLoader(torch.from_numpy(draw_pictures(scenes)), preparation)
    vectors = torch.from_numpy(encode(questions))
    return Split(torch.from_numpy(answers), torch.from_numpy(picture), loader, vectors)


def _load_images(config: ImagesConfig, device: torch.device) -> DataSet:
    found = _open(config)
    fits = _fits(config, sum(len(table) for table in found))
    train = _split(found.train, config, device, fits and config.augment != "resized_crop")
    test = _split(found.test, config, device, fits)
    num_skipped = sum(len(table) for table in found) - len(train) - len(test)
    train, validation = train.carve(config.val_fraction)
    check_classes(found, train.labels, test.labels)  # again: some may be skipped or carved out
    return DataSet(train, validation, test, found.train.class_names, num_skipped)


def _open(config: ImagesConfig) -> ImageSet:
    if config.source is None:
        return open_images(open_hub(config.hub_id), config)
    return open_images(open_folder(Path(config.source).expanduser()), config)


def _fits(config: ImagesConfig, num_images: int) -> bool:
    return num_images * 3 * config.image_size**2 <= config.memory_budget * 2**30


def _split(
    table: ImageTable, config: ImagesConfig, device: torch.device, is_resident: bool
) -> Split:
    """Decode the images now, if they are to stay in memory, or leave that to the workers."""
    padding = {"none": None, "crop": config.crop_padding, "resized_crop": 0}[config.augment]
    preparation = Preparation(config.mean, config.std, padding, device)
    rows = torch.arange(len(table))
    size = (len(table), 3, config.image_size, config.image_size)
    images = torch.zeros(size, dtype=torch.uint8) if is_resident else None
    if is_resident or config.on_error == "skip":
        rows = read_once(table.read, len(table), config.num_workers, config.on_error, images)
    loader = (
        StreamingLoader(table.read, len(table), config.num_workers, preparation)
        if images is None
        else ResidentLoader(images, preparation)
    )
    return Split(table.labels[rows], rows, loader)
