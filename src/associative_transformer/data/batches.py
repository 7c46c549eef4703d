"""The splits of a data set, and the order and size of their batches.

Dims     N items   M some of them   Q question features   K kinds of questions   S steps   B batch
         b share of a batch   C channels   H height   W width
"""

import hashlib
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from associative_transformer.data.augment import Normalization
from associative_transformer.data.mixing import Mixing, draw_mixtures, find_partners, mix_batches
from associative_transformer.decoding import UnreadableImage
from associative_transformer.interface import PADDING, Batch, UserError

WITH_IMAGES = "-images"  # end of a digest that covers stored images
VALIDATION_SEED = 0  # the split is part of the data set, so the seed of a run does not change it


@runtime_checkable
class Loader(Protocol):
    """A source of the images of a split."""

    device: torch.device

    def load(
        self, rows: Int[Tensor, "S B"], seed: np.random.SeedSequence | None
    ) -> Iterator[Float[Tensor, "B C H W"]]:
        """Yield one batch of images per step, augmented unless `seed` is None.

        The augmentation of an image may depend only on `seed` and on its row.
        """


class Share(NamedTuple):
    """The part of each batch that one of several processes takes."""

    rank: int = 0
    num_ranks: int = 1
    parts: int = 1  # micro-batches; each one is divided among the processes

    def of(self, items: Int[Tensor, "S B"]) -> Int[Tensor, "S b"]:
        """Return the share of every batch: a contiguous piece of each micro-batch."""
        micro = rearrange(items, "s (p w b) -> w s (p b)", p=self.parts, w=self.num_ranks)
        return micro[self.rank]


ALL = Share()


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set; its batches do not depend on how its images are loaded."""

    labels: Int[Tensor, " N"]
    rows: Int[Tensor, " N"]  # index in the loader of the image of each item
    loader: Loader
    questions: Float[Tensor, "N Q"] | None = None
    image_digests: Callable[[], list[bytes]] | None = None  # of all rows; None: generated images
    mixing: Mixing | None = None  # of the images of training batches
    is_balanced: bool = False  # whether each class is equally often in an epoch
    image_sizes: Callable[[], np.ndarray] | None = None  # width and height of some stored images

    def __post_init__(self) -> None:
        if self.mixing is not None and self.questions is not None:
            raise ValueError(
                "pictures with questions cannot be mixed, because each question is about one of "
                "them: turn MixUp and CutMix off"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Return the number of full batches; raise UserError if there are none."""
        if len(self) < batch_size:
            items = "images" if self.questions is None else "questions"
            raise UserError(
                f"the training set has {len(self)} {items}, fewer than one batch of {batch_size}: "
                f"pass --train.batch-size {len(self)} or less"
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
        """Yield one shuffled, augmented epoch without its incomplete last batch.

        Order and augmentation depend only on `seed` and `epoch`: a run resumed at `first_step`
        sees the same batches as an uninterrupted one, and so do several processes together. With
        `is_balanced`, the epoch has as many images, drawn with replacement. With `mixing`, labels
        are probabilities.
        """
        num_steps = self.steps_per_epoch(batch_size)
        order_seed, augment_seed, mix_seed = np.random.SeedSequence((seed, epoch)).spawn(3)
        generator = np.random.default_rng(order_seed)
        order = (
            _draw_balanced(self.labels.numpy(), num_steps * batch_size, generator)
            if self.is_balanced
            else generator.permutation(len(self))[: num_steps * batch_size]
        )
        items = torch.from_numpy(order).view(num_steps, batch_size)[first_step:]
        if self.mixing is None:
            items = share.of(items)
            return self._load(items, self.labels[items], augment_seed)
        loaded, partners = find_partners(share.of(torch.arange(batch_size)[None])[0], batch_size)
        items = items[:, loaded]
        batches = self._load(items, self.labels[items], augment_seed)
        mixtures = draw_mixtures(self.mixing, num_steps, mix_seed)[first_step:]
        return mix_batches(batches, mixtures, partners, self.mixing.num_classes)

    def eval_batches(self, batch_size: int, share: Share = ALL) -> Iterator[Batch]:
        """Yield every item once, in order and without augmentation.

        The last batch is padded with copies of the last item, labeled `PADDING`. Several processes
        share each batch; its size is rounded up to a multiple of their number.
        """
        batch_size = share.num_ranks * -(-batch_size // share.num_ranks)
        num_steps = -(-len(self) // batch_size)
        positions = share.of(torch.arange(num_steps * batch_size).view(num_steps, batch_size))
        items = positions.clamp(max=len(self) - 1)
        labels = self.labels[items].masked_fill(positions >= len(self), PADDING)
        return self._load(items, labels, seed=None)

    def take(self, items: Int[Tensor, " M"]) -> "Split":
        """Return a split of these items only; their images and augmentation do not change."""
        questions = None if self.questions is None else self.questions[items]
        return replace(self, labels=self.labels[items], rows=self.rows[items], questions=questions)

    def split_validation(
        self, fraction: float, is_stratified: bool = False
    ) -> "tuple[Split, Split | None]":
        """Divide the items into training and validation, in the same way every time.

        All questions about an image stay together. If stratified, the images are divided like
        those of each class, and a class with two images or more is in both parts if there is
        room for all such classes. Raises UserError if `fraction` is above zero and one of the two
        parts would be empty.
        """
        if fraction == 0:
            return self, None
        images = torch.unique(self.rows)
        num_validation = round(fraction * len(images))
        if not 0 < num_validation < len(images):
            raise UserError(
                f"a validation split of {fraction} x {len(images)} images leaves no images for "
                "training or for validation: change --data.val-fraction"
            )
        order = torch.from_numpy(np.random.default_rng(VALIDATION_SEED).permutation(len(images)))
        if is_stratified:
            labels = self.labels[torch.searchsorted(self.rows, images)]
            order = stratified(labels.numpy(), order.numpy(), num_validation)
        is_validation = torch.isin(self.rows, images[order[:num_validation]])
        train, validation = (mask.nonzero()[:, 0] for mask in (~is_validation, is_validation))
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
            vectors = None if questions is None else questions[step]
            yield Batch(images, vectors, labels[step])


class DataSet(NamedTuple):
    """The splits of a data set. Model selection uses `validation`, never `test`."""

    train: Split
    validation: Split | None  # None if `val_fraction` is 0
    test: Split
    class_names: tuple[str, ...]
    num_skipped: int = 0  # unreadable images that were left out
    guesses: Int[Tensor, " K"] | None = None  # most frequent answer to each kind of question
    skipped: tuple[UnreadableImage, ...] = ()  # the errors about these images
    normalization: Normalization | None = None  # None: that of the configuration

    def check_classes(self, num_classes: int) -> None:
        """Raise UserError if a model has a different number of classes."""
        if len(self.class_names) != num_classes:
            raise UserError(
                f"the data has {len(self.class_names)} classes but model.num_classes is "
                f"{num_classes}: pass --model.num-classes {len(self.class_names)}"
            )

    @property
    def digest(self) -> str:
        """A digest of classes, labels, questions and stored images, to detect different data.

        Of each stored image, it covers the size and a sample of the bytes; such a digest ends in
        "-images". Generated images are known from the experiment.
        """
        return _digest(self.class_names, (self.train, self.validation, self.test))

    def digest_like(self, other: str) -> str:
        """Return the digest of the same kind as `other`: version 0.1 did not cover images."""
        current = self.digest
        if other.endswith(WITH_IMAGES) or not current.endswith(WITH_IMAGES):
            return current
        splits = (self.train, self.validation, self.test)
        return _digest_of_labels(self.class_names, splits).hexdigest()


class HeldOut(NamedTuple):
    """The test split alone, for a model that is already trained."""

    test: Split
    class_names: tuple[str, ...]
    num_skipped: int = 0  # unreadable images that were left out
    guesses: Int[Tensor, " K"] | None = None
    skipped: tuple[UnreadableImage, ...] = ()  # the errors about these images

    @property
    def digest(self) -> str:
        """A digest of the test split and its classes, like that of a whole data set."""
        return _digest(self.class_names, (self.test,))


def _digest(class_names: Sequence[str], splits: Sequence[Split | None]) -> str:
    existing = [split for split in splits if split is not None]
    if not any(split.image_digests for split in existing):
        return _digest_of_labels(class_names, splits).hexdigest()
    composed = tuple(unicodedata.normalize("NFC", name) for name in class_names)
    digest = _digest_of_labels(composed, splits)
    for split in existing:
        of_rows = split.image_digests() if split.image_digests else []
        digest.update(b"".join(of_rows[row] for row in split.rows.tolist()))
    return digest.hexdigest() + WITH_IMAGES


def _digest_of_labels(
    class_names: Sequence[str], splits: Sequence[Split | None]
) -> "hashlib._Hash":
    digest = hashlib.sha256(repr(tuple(class_names)).encode())
    for split in splits:
        digest.update(b"|" if split is None else split.labels.numpy().tobytes())
        if split is not None and split.questions is not None:
            digest.update(split.questions.numpy().tobytes())
    return digest


def _draw_balanced(
    labels: Int[np.ndarray, " N"], num_items: int, generator: np.random.Generator
) -> Int[np.ndarray, " M"]:
    """Draw as many items of each class, or one more, with replacement and in random order."""
    classes = np.unique(labels)
    counts = np.full(len(classes), num_items // len(classes))
    counts[generator.permutation(len(classes))[: num_items % len(classes)]] += 1
    drawn = [
        generator.choice(np.flatnonzero(labels == label), count)
        for label, count in zip(classes, counts, strict=True)
    ]
    return generator.permutation(np.concatenate(drawn))


def stratified(
    labels: Int[np.ndarray, " M"], order: Int[np.ndarray, " M"], num_chosen: int
) -> Int[Tensor, " K"]:
    """Choose images of each class in proportion to its size, the first ones in this order."""
    counts = np.bincount(labels)
    share = num_chosen * counts / len(labels)
    most = np.maximum(counts - 1, 0)  # one image of each class stays
    chosen = np.minimum(np.maximum(np.floor(share).astype(int), 1), most)
    while chosen.sum() < num_chosen and (chosen < most).any():
        chosen[np.argmax(np.where(chosen < most, share - chosen, -np.inf))] += 1
    while chosen.sum() > num_chosen:  # from a class that keeps another one, if there is any
        is_spare = chosen > (1 if (chosen > 1).any() else 0)
        chosen[np.argmax(np.where(is_spare, chosen - share, -np.inf))] -= 1
    in_class = {label: order[labels[order] == label] for label in np.flatnonzero(counts)}
    return torch.from_numpy(
        np.concatenate([images[: chosen[label]] for label, images in in_class.items()])
    )
