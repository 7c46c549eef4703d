"""Load the images of a split from memory, or let workers decode them for every batch.

Dims     N images of the data set   M readable ones   S steps   B batch   C channels
         H height   W width
"""

import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from associative_transformer.data.augment import Preparation
from associative_transformer.decoding import UnreadableImage
from associative_transformer.distributed import is_first
from associative_transformer.interface import UserError
from associative_transformer.progress import WorkProgress

Read = Callable[[int, int | None], Tensor]
"""Decodes the image of a row to (C, H, W) in uint8; a seed, if given, selects its random crop."""

DECODE_CHUNK = 256  # images that a worker returns at once
SIGNAL_SECONDS = 0.5  # until the signal of a dead worker arrives, after its connection is reset
NO_WORKERS = "--data.num-workers 0 (--num-workers 0 to `ait predict`)"
_DEAD = re.compile(r"DataLoader worker \(pid")  # how torch starts its messages about dead workers


class DecodedChunk(NamedTuple):
    """Images without augmentation, and which of some rows they are."""

    images: UInt8[Tensor, "M C H W"]
    is_readable: Bool[Tensor, " R"]  # whether a row has an image, for each row of the slice
    rows: slice


class ReadableRows(NamedTuple):
    """The rows of a data set that can be read, and the errors about the others."""

    rows: Int[Tensor, " M"]
    skipped: tuple[UnreadableImage, ...]


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

    def decode(self, rows: Int[Tensor, " M"]) -> Iterator[DecodedChunk]:
        """Yield the images of these rows as they are stored."""
        for start in range(0, len(rows), DECODE_CHUNK):
            chunk = slice(start, start + DECODE_CHUNK)
            images = self.images[rows[chunk].to(self.device)].cpu()
            yield DecodedChunk(images, torch.ones(len(images), dtype=torch.bool), chunk)


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

    def decode(self, rows: Int[Tensor, " M"]) -> Iterator[DecodedChunk]:
        """Decode the images of these rows without a random crop; leave unreadable ones out."""
        starts = range(0, len(rows), DECODE_CHUNK)
        parts = [rows[start : start + DECODE_CHUNK].tolist() for start in starts]
        start = 0
        for part, chunk in zip(
            parts, _read(_Rows(self.read), parts, self.num_workers, "skip"), strict=True
        ):
            is_readable = torch.tensor([error is None for error in chunk.errors])
            if is_readable.any():
                yield DecodedChunk(chunk.images, is_readable, slice(start, start + len(part)))
            start += len(part)


class ReadBatch(NamedTuple):
    """Some rows of a data set, decoded."""

    images: UInt8[Tensor, "M C H W"]  # only of the rows that can be read
    errors: list[UnreadableImage | None]  # one per row


def read_batches(read: Read, batches: list[list[int]], num_workers: int) -> Iterator[ReadBatch]:
    """Decode batches of rows, each in one of the workers, and yield them in order."""
    return _read(_Rows(read), batches, num_workers, "skip")


def read_once(
    read: Read,
    num_images: int,
    num_workers: int,
    on_error: Literal["stop", "skip"],
    images: UInt8[Tensor, "N C H W"] | None = None,
) -> ReadableRows:
    """Decode a whole data set, into `images` if given, and return the rows that can be read.

    An unreadable image raises UserError, or is left out if `on_error` is "skip". The progress is
    shown on stderr.
    """
    starts = range(0, num_images, DECODE_CHUNK)
    rows = [list(range(start, min(start + DECODE_CHUNK, num_images))) for start in starts]
    readable, skipped = [torch.arange(0)], []
    chunks = _read(_Rows(read), rows, num_workers, on_error)
    with WorkProgress("decoding", "images", is_shown=is_first()) as progress:
        for row, chunk in zip(rows, chunks, strict=True):
            is_readable = torch.tensor([error is None for error in chunk.errors])
            skipped += [error for error in chunk.errors if error is not None]
            readable.append(torch.tensor(row)[is_readable])
            if images is not None and len(readable[-1]):
                images[readable[-1]] = chunk.images
            progress.show(row[-1] + 1, num_images)
    return ReadableRows(torch.cat(readable), tuple(skipped))


class _Sent(NamedTuple):
    images: Tensor | np.ndarray  # in shared memory, or an array to be sent through a pipe
    errors: list[UnreadableImage | None]


class _Rows(Dataset[Tensor | UnreadableImage]):
    def __init__(self, read: Read, seeds: np.ndarray | None = None) -> None:
        self.read = read
        self.seeds = seeds

    def __getitem__(self, row: int) -> Tensor | UnreadableImage:
        try:
            return self.read(row, None if self.seeds is None else int(self.seeds[row]))
        except UnreadableImage as error:  # raised, it would be wrapped in the worker's traceback
            return error


def _read(
    rows: _Rows,
    batches: list[list[int]],
    num_workers: int,
    on_error: Literal["stop", "skip"],
    device: torch.device | None = None,
) -> Iterator[ReadBatch]:
    loader = DataLoader(
        rows,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=_collate,
        pin_memory=device is not None and device.type == "cuda",
        worker_init_fn=_ignore_signals,
        generator=torch.Generator(),  # otherwise it would advance the training loop's generator
    )
    for images, errors in _from_workers(loader):  # an error inside this loop stops the workers
        error = next((error for error in errors if error is not None), None)
        if error is not None and on_error == "stop":
            raise error
        yield ReadBatch(images if isinstance(images, Tensor) else torch.from_numpy(images), errors)


def _from_workers(loader: "DataLoader[Tensor | UnreadableImage]") -> Iterator[_Sent]:
    """Yield what the workers send; raise UserError if they cannot start or if one has died."""
    try:
        chunks = iter(loader)
    except OSError as error:
        if not loader.num_workers:
            raise
        raise UserError(
            f"cannot start {loader.num_workers} processes that decode images "
            f"({error.strerror or error}): make room in /dev/shm, or pass {NO_WORKERS}"
        ) from error
    _explain_dead_workers()
    while True:
        try:
            chunk = next(chunks, None)
        except (RuntimeError, OSError, EOFError) as error:
            if isinstance(error.__cause__, UserError):  # from the signal handler below
                raise error.__cause__ from error
            # a worker that dies while it sends leaves half a message or an address without it
            was_sent = loader.num_workers > 0 and "Caught" not in str(error)
            if (isinstance(error, RuntimeError) and not _DEAD.search(str(error))) or not was_sent:
                raise
            time.sleep(SIGNAL_SECONDS)  # torch's signal handler raises here, not later
            raise UserError(_why_dead(error)) from error
        if chunk is None:
            return
        yield chunk


def _explain_dead_workers() -> None:
    """Let torch's signal handler, which can interrupt any code, raise UserError instead."""
    handler = signal.getsignal(signal.SIGCHLD)
    is_main = threading.current_thread() is threading.main_thread()
    if not (is_main and callable(handler)) or isinstance(handler, _ChildHandler):
        return
    signal.signal(signal.SIGCHLD, _ChildHandler(handler))


class _ChildHandler:
    def __init__(self, handler: Callable[[int, FrameType | None], object]) -> None:
        self.handler = handler

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        try:
            self.handler(signum, frame)
        except RuntimeError as error:
            raise UserError(_why_dead(error)) from error


def _why_dead(error: Exception) -> str:
    """Return a sentence about a worker that has died, from torch's message about it."""
    signal_name = re.search(r"killed by signal: ([\w ]+)", str(error))
    reason = f"killed by a signal: {signal_name[1]}" if signal_name else "it exited unexpectedly"
    if signal_name and signal_name[1] == "Bus error":
        return (
            f"a process that decodes images died ({reason}), because /dev/shm is too small: "
            f"enlarge it, or pass {NO_WORKERS}"
        )
    return (
        f"a process that decodes images died ({reason}), perhaps because memory is short: pass "
        f"{NO_WORKERS}, or a smaller number"
    )


def _ignore_signals(worker: int) -> None:
    """Ignore Ctrl-C: the main process handles it, saves the run and then stops its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _collate(items: list[Tensor | UnreadableImage]) -> _Sent:
    images = [item for item in items if isinstance(item, Tensor)]
    errors = [item if isinstance(item, UnreadableImage) else None for item in items]
    stacked = torch.stack(images) if images else torch.empty(0)
    if get_worker_info() is None:
        return _Sent(stacked, errors)
    try:
        # here and not when torch sends them, which would drop the chunk and wait for it forever
        return _Sent(stacked.share_memory_(), errors)  # type: ignore[no-untyped-call]
    except RuntimeError:  # /dev/shm is full, as with the 64 MB that Docker gives it
        return _Sent(stacked.numpy(), errors)
