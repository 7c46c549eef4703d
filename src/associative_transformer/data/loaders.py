"""Load the images of a split from memory, or let workers decode them for every batch.

Dims     N images of the data set   M readable ones   S steps   B batch   C channels
         H height   W width
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
"""Decodes the image of a row to (C, H, W) in uint8; a seed, if given, selects its random crop."""

DECODE_CHUNK = 256  # images that a worker returns at once


class ResidentLoader:
    """Images kept decoded on the training device."""

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
    """Images that workers decode again for every batch."""

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
    """Decode a whole data set, into `images` if given, and return the rows that can be read.

    An unreadable image raises UserError, or is left out if `on_error` is "skip".
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
    images: Tensor  # only the readable ones
    errors: list[UserError | None]  # one per row


class _Rows(Dataset[Tensor | UserError]):
    def __init__(self, read: Read, seeds: np.ndarray | None = None) -> None:
        self.read = read
        self.seeds = seeds

    def __getitem__(self, row: int) -> Tensor | UserError:
        try:
            return self.read(row, None if self.seeds is None else int(self.seeds[row]))
        except UserError as error:  # if raised, it would be wrapped in the worker's traceback
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
        generator=torch.Generator(),  # otherwise it would advance the training loop's generator
    )
    for chunk in loader:  # an error raised inside this loop also stops the workers
        error = next((error for error in chunk.errors if error is not None), None)
        if error is not None and on_error == "stop":
            raise error
        yield chunk


def _ignore_signals(worker: int) -> None:
    """Ignore Ctrl-C: the main process handles it, saves the run and then stops its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _collate(items: list[Tensor | UserError]) -> _Chunk:
    images = [item for item in items if isinstance(item, Tensor)]
    errors = [item if isinstance(item, UserError) else None for item in items]
    return _Chunk(torch.stack(images) if images else torch.empty(0), errors)
