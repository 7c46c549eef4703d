"""Where the images of a split come from: memory, or workers that decode them for every batch.

Dims     N images of the data set   S steps   B batch   C channels   H height   W width
"""

import signal
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from associative_transformer.data.augment import Preparation
from associative_transformer.interface import UserError

Read = Callable[[int, int | None], Tensor]
"""Decodes the image of a row, (C, H, W) in uint8; the seed, if any, draws its random crop."""


DECODE_CHUNK = 256  # images that a worker hands over at once


class ResidentLoader:
    """Images that stay decoded on the training device."""

    def __init__(self, images: UInt8[Tensor, "N _ H W"], preparation: Preparation) -> None:
        self.device = preparation.device
        self.images = images.to(self.device)
        self.preparation = preparation

    def load(
        self, rows: Int[Tensor, "S B"], seed: np.random.SeedSequence | None
    ) -> Iterator[Float[Tensor, "B C H W"]]:
        """Yield the batches of these rows, augmented if there is a seed."""
        images = (self.images[batch] for batch in rows.to(self.device))
        return self.preparation.batches(images, rows, len(self.images), seed)


class StreamingLoader:
    """Images that workers decode anew for every batch."""

    def __init__(
        self, read: Read, num_images: int, num_workers: int, preparation: Preparation
    ) -> None:
        self.device = preparation.device
        self.read = read
        self.num_images = num_images
        self.num_workers = num_workers
        self.preparation = preparation

    def load(
        self, rows: Int[Tensor, "S B"], seed: np.random.SeedSequence | None
    ) -> Iterator[Float[Tensor, "B C H W"]]:
        """Yield the batches of these rows, augmented if there is a seed."""
        seeds = None if seed is None else seed.generate_state(self.num_images, np.uint64)
        chunks = _read(
            _Rows(self.read, seeds), rows.tolist(), self.num_workers, "stop", self.device
        )
        images = (chunk.images for chunk in chunks)
        return self.preparation.batches(images, rows, self.num_images, seed)


def read_once(
    read: Read,
    num_images: int,
    num_workers: int,
    on_error: Literal["stop", "skip"],
    images: UInt8[Tensor, "N C H W"] | None = None,
) -> Int[Tensor, " M"]:
    """Decode a whole data set, into `images` if given; return the rows that can be read.

    An image that cannot raises its `UserError`, or is left out with "skip".
    """
    starts = range(0, num_images, DECODE_CHUNK)
    rows = [list(range(start, min(start + DECODE_CHUNK, num_images))) for start in starts]
    readable = [torch.arange(0)]
    chunks = _read(_Rows(read), rows, num_workers, on_error)
    for row, chunk in zip(rows, chunks, strict=True):
        is_readable = torch.tensor([error is None for error in chunk.errors])
        readable.append(torch.tensor(row)[is_readable])
        if images is not None and len(readable[-1]):
            images[readable[-1]] = chunk.images
    return torch.cat(readable)


class _Chunk(NamedTuple):
    images: Tensor  # of the readable ones
    errors: list[UserError | None]  # one per row


class _Rows(Dataset[Tensor | UserError]):
    def __init__(self, read: Read, seeds: np.ndarray | None = None) -> None:
        self.read = read
        self.seeds = seeds

    def __getitem__(self, row: int) -> Tensor | UserError:
        try:
            return self.read(row, None if self.seeds is None else int(self.seeds[row]))
        except UserError as error:  # raised here, it would arrive wrapped in a worker's traceback
            return error


def _read(
    rows: _Rows,
    batches: list[list[int]],
    num_workers: int,
    on_error: Literal["stop", "skip"],
    device: torch.device | None = None,
) -> Iterator[_Chunk]:
    loader = DataLoader(
        rows,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=_collate,
        pin_memory=device is not None and device.type == "cuda",
        worker_init_fn=_ignore_signals,
        generator=torch.Generator(),  # or it would draw from the generator of the training loop
    )
    for chunk in loader:  # raised in here, an error also ends the workers at once
        error = next((error for error in chunk.errors if error is not None), None)
        if error is not None and on_error == "stop":
            raise error
        yield chunk


def _ignore_signals(worker: int) -> None:
    """Leave Ctrl-C to the process that saves the run; it ends its workers by itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _collate(items: list[Tensor | UserError]) -> _Chunk:
    images = [item for item in items if isinstance(item, Tensor)]
    errors = [item if isinstance(item, UserError) else None for item in items]
    return _Chunk(torch.stack(images) if images else torch.empty(0), errors)
