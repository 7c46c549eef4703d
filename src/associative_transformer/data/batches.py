"""Batches of a data set: their order and their last one.

Dims     N items   Q question features   S steps   B batch   C channels   H height   W width
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from associative_transformer.interface import PADDING, Batch, UserError

VALIDATION_SEED = 0  # which items validate belongs to the data set, so no run's seed changes it


@runtime_checkable
class Loader(Protocol):
    """Where the images of a split come from."""

    device: torch.device

    def load(
        self, rows: Int[Tensor, "S B"], seed: np.random.SeedSequence | None
    ) -> Iterator[Float[Tensor, "B C H W"]]:
        """Yield one batch of images per line of `rows`, augmented unless `seed` is None.

        The augmentation of an image may depend on `seed` and its row, and on nothing else.
        """


class Share(NamedTuple):
    """What one of several processes takes of each batch."""

    rank: int = 0
    num_ranks: int = 1
    parts: int = 1  # micro-batches, each of which is shared out

    def of(self, items: Int[Tensor, "S B"]) -> Int[Tensor, "S b"]:
        """Take the share of every batch: a run of each micro-batch."""
        micro = rearrange(items, "s (p w b) -> w s (p b)", p=self.parts, w=self.num_ranks)
        return micro[self.rank]


ALL = Share()


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set, cut into batches the same way wherever its images live."""

    labels: Int[Tensor, " N"]
    rows: Int[Tensor, " N"]  # where the loader finds the image of each item
    loader: Loader
    questions: Float[Tensor, "N Q"] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Count the full batches; raise a `UserError` if there is none."""
        if len(self) < batch_size:
            items = "images" if self.questions is None else "questions"
            raise UserError(
                f"the training set has {len(self)} {items}, fewer than one batch of {batch_size}: "
                f"pass --train.batch_size {len(self)} or less"
            )
        return len(self) // batch_size

    def train_batches(
        self,
        batch_size: int,
        seed: int,
        epoch: int,
        first_step: int = 0,
        share: Share = ALL,
    ) -> Iterator[Batch]:
        """Yield one shuffled, augmented epoch, without its incomplete last batch.

        Order and augmentation depend on `seed` and `epoch` alone: a run resumed at `first_step`
        sees the batches that it would have seen, and so do several processes together.
        """
        num_steps = self.steps_per_epoch(batch_size)
        order_seed, augment_seed = np.random.SeedSequence((seed, epoch)).spawn(2)
        order = np.random.default_rng(order_seed).permutation(len(self))
        items = torch.from_numpy(order[: num_steps * batch_size]).view(num_steps, batch_size)
        items = share.of(items[first_step:])
        return self._load(items, self.labels[items], augment_seed)

    def eval_batches(self, batch_size: int, share: Share = ALL) -> Iterator[Batch]:
        """Yield every item once, in order and as it is.

        The last batch is filled up with copies of the last item under the label `PADDING`; several
        processes together take one batch after another, whose size is rounded up for that.
        """
        batch_size = share.num_ranks * -(-batch_size // share.num_ranks)
        num_steps = -(-len(self) // batch_size)
        places = share.of(torch.arange(num_steps * batch_size).view(num_steps, batch_size))
        items = places.clamp(max=len(self) - 1)
        labels = self.labels[items].masked_fill(places >= len(self), PADDING)
        return self._load(items, labels, seed=None)

    def take(self, items: Int[Tensor, " M"]) -> "Split":
        """Return the split of these items only; they keep their images and augmentation."""
        questions = None if self.questions is None else self.questions[items]
        return Split(self.labels[items], self.rows[items], self.loader, questions)

    def split_validation(self, fraction: float) -> "tuple[Split, Split | None]":
        """Part the items into training and validation, always the same way and image by image.

        All questions about an image go to the same side. Raises a `UserError` if `fraction` is
        above zero and leaves one of the two empty.
        """
        if fraction == 0:
            return self, None
        images = torch.unique(self.rows)
        num_validation = round(fraction * len(images))
        if not 0 < num_validation < len(images):
            raise UserError(
                f"a validation split of {fraction} x {len(images)} images leaves nothing to train "
                "or to validate on: change --data.val_fraction"
            )
        order = torch.from_numpy(np.random.default_rng(VALIDATION_SEED).permutation(len(images)))
        is_validation = torch.isin(self.rows, images[order[:num_validation]])
        train, validation = (part.nonzero()[:, 0] for part in (~is_validation, is_validation))
        return self.take(train), self.take(validation)

    def _load(
        self,
        items: Int[Tensor, "S B"],
        labels: Int[Tensor, "S B"],
        seed: np.random.SeedSequence | None,
    ) -> Iterator[Batch]:
        labels = labels.to(self.loader.device)
        questions = None
        if self.questions is not None:
            questions = self.questions[items].to(self.loader.device)  # (S, B, Q)
        for step, images in enumerate(self.loader.load(self.rows[items], seed)):
            asked = None if questions is None else questions[step]
            yield Batch(images, asked, labels[step])


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
