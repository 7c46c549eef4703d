"""The base class of data set configurations: all that the package needs from a data set.

Dims     N items   C channels   H height   W width
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from associative_transformer.data.augment import RAW, Preparation
from associative_transformer.data.batches import DataSet, HeldOut, Split
from associative_transformer.data.questions import QuestionType
from associative_transformer.interface import UserError
from associative_transformer.models.preprocessing import Preprocessing

Config = TypeVar("Config", bound="DataSetConfig")  # beartype does not support Self here


class InputSize(NamedTuple):
    """The size of a model's input."""

    image_size: int
    num_channels: int
    question_dim: int  # 0 if the data set has no questions


class DescribedItem(NamedTuple):
    """A test item in words: an image and its class, or a question and its answer."""

    row: int  # of the image
    classes: tuple[str, ...]  # possible answers
    label: int  # index of the correct answer
    question: str = ""  # empty if the data set has no questions
    question_type: str = ""

    @property
    def answer(self) -> str:
        """The correct answer."""
        return self.classes[self.label]

    @property
    def text(self) -> str:
        """The class of the image, or the question with its answer."""
        return f"{self.question}? {self.answer}" if self.question else self.answer


class DataSetConfig(ABC):
    """The configuration of a data set, with the methods that load and describe it.

    A subclass is a frozen dataclass with a field `kind` that identifies it in a saved experiment.
    It must define the abstract members; the defaults of the others suit generated images without
    questions.
    """

    @property
    @abstractmethod
    def kind(self) -> str:
        """The name of this data set in a saved experiment."""

    @property
    @abstractmethod
    def input_size(self) -> InputSize:
        """The size of the images and questions, known without loading any."""

    @abstractmethod
    def load(self, device: torch.device) -> DataSet:
        """Generate or open all splits, which yield batches on `device`.

        Raises UserError if the data set is missing or cannot be used.
        """

    def load_for_new_run(self, device: torch.device) -> DataSet:
        """Load all splits for a new run, which may compute the normalization."""
        return self.load(device)

    @abstractmethod
    def load_test(self, device: torch.device) -> HeldOut:
        """Generate or open only the test split, for which no training image need be there.

        The classes are those that the test images name: `runs.saved.load_test_split` puts them in
        the order of those of a run. Raises UserError if the data set is missing or cannot be used.
        """

    @abstractmethod
    def shortened(self: Config, num_images: int) -> Config:
        """Return a version for a quick trial, with `num_images` training and test images each."""

    @classmethod
    def examples(cls: type[Config]) -> dict[str, Config]:
        """Return the configurations that `ait show` offers, by name."""
        config = cls()
        return {config.kind: config}

    @property
    def mean(self) -> tuple[float, ...] | Literal["auto"]:
        """The value subtracted from each channel, after scaling to [0, 1]."""
        return (0.0,) * self.input_size.num_channels

    @property
    def std(self) -> tuple[float, ...]:
        """The value by which each channel is then divided."""
        return (1.0,) * self.input_size.num_channels

    @property
    def normalization(self) -> tuple[Sequence[float], Sequence[float]]:
        """The mean and the standard deviation that are used."""
        return RAW.mean if self.mean == "auto" else self.mean, self.std

    def as_loaded(self: Config, data: DataSet) -> Config:
        """Return the configuration with what was found out about the data, for a run folder."""
        return self

    @property
    def display_name(self) -> str:
        """The name in tables and reports."""
        return self.kind

    @property
    def item_noun(self) -> str:
        """What the items are called: images or questions."""
        return "questions" if self.input_size.question_dim else "images"

    @property
    def image_mode(self) -> Literal["RGB", "L"]:
        """The Pillow mode to which image files are converted for prediction."""
        return "RGB"

    @property
    def question_types(self) -> tuple[QuestionType, ...]:
        """The types of the questions; empty if the data set has none."""
        return ()

    @property
    def is_generated(self) -> bool:
        """Whether the images are generated instead of read from files."""
        return True

    @property
    def source(self) -> str | None:
        """The folder of a local copy; None if the data are generated or come from the hub."""
        return None

    def with_storage(
        self: Config,
        source: str | None = None,
        num_workers: int | None = None,
        memory_budget: float | None = None,
    ) -> Config:
        """Return the same data set with other storage settings; None keeps the current value.

        Raises UserError if the images are generated.
        """
        raise UserError(f"{self.kind} is generated and has no source: omit --source")

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are prepared for a model that was trained on this data set."""
        side = self.input_size.image_size
        mean, std = map(tuple, self.normalization)
        types = tuple(self.question_types)
        return Preprocessing((side, side), mean, std, self.image_mode, question_types=types)

    def load_image(self, path: Path) -> Float[Tensor, "C H W"]:
        """Read an image file and prepare it for a model that was trained on this data set.

        Raises UserError if it cannot be read.
        """
        return self.preprocessing(path)[0]

    def denormalize(self, images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
        """Undo the normalization and return pixels in [0, 1]."""
        return Preparation(*self.normalization, device=images.device).denormalize(images)

    def original_image(self, split: Split, item: int) -> UInt8[np.ndarray, "C H W"]:
        """Return the image of an item as it was before normalization."""
        batch = next(iter(split.take(torch.tensor([item])).eval_batches(1)))
        pixels = 255 * self.denormalize(batch.images)[0].cpu()
        return pixels.round().clamp(0, 255).byte().numpy()

    def describe_items(self, data: HeldOut, items: Int[Tensor, " N"]) -> list[DescribedItem]:
        """Put test items into words, for captions and reports."""
        rows, labels = data.test.rows[items].tolist(), data.test.labels[items].tolist()
        return [
            DescribedItem(row, data.class_names, label)
            for row, label in zip(rows, labels, strict=True)
        ]


def check_settings(config: DataSetConfig, *counts: str) -> None:
    """Raise ValueError if a count is below 1, or if `seed` or `val_fraction` is out of range."""
    values = tuple(getattr(config, name) for name in counts)
    if min(values) < 1:
        raise ValueError(f"{', '.join(counts)} must be at least 1, got {values}")
    seed, val_fraction = getattr(config, "seed", 0), getattr(config, "val_fraction", 0.0)
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction must be in [0, 1), got {val_fraction}")
