"""Augmentation of whole batches compared with torchvision, and both loaders."""

import os
import signal
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as v2

from associative_transformer.data.augment import Preparation, crop_and_flip, draw_crops
from associative_transformer.data.loaders import ResidentLoader, StreamingLoader, read_once
from associative_transformer.decoding import UnreadableImage
from associative_transformer.interface import UserError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
ROWS = torch.tensor([[4, 0, 9], [7, 7, 1]])


@pytest.fixture
def images() -> Tensor:
    return torch.randint(256, (12, 3, 10, 14), dtype=torch.uint8)


def make_seed(seed: int = 0) -> np.random.SeedSequence:
    return np.random.SeedSequence((seed, 3))


def torchvision_twin(image: Tensor, crop: Tensor, padding: int) -> Tensor:
    top, left, is_flipped = crop.tolist()
    height, width = image.shape[1:]
    padded = v2.pad(image, [padding], fill=0)
    cut = v2.crop(padded, top, left, height, width)
    return v2.horizontal_flip(cut) if is_flipped else cut


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_a_batch_is_cropped_and_flipped_as_torchvision_does_image_by_image(
    images: Tensor, padding: int
) -> None:
    crops = draw_crops(len(images), padding, make_seed())
    cropped = crop_and_flip(images, crops, padding)
    for image, crop, ours in zip(images, crops, cropped, strict=True):
        assert torch.equal(ours, torchvision_twin(image, crop, padding))


def test_every_offset_and_both_flips_are_drawn_equally_often() -> None:
    crops = draw_crops(9000, 4, make_seed())
    for column, num_values in ((0, 9), (1, 9), (2, 2)):
        counts = crops[:, column].bincount(minlength=num_values)
        assert len(counts) == num_values
        assert (counts / 9000).sub(1 / num_values).abs().max() < 0.02


def test_the_crop_of_an_image_does_not_depend_on_the_number_of_images() -> None:
    assert torch.equal(draw_crops(10, 4, make_seed()), draw_crops(500, 4, make_seed())[:10])
    assert not torch.equal(draw_crops(10, 4, make_seed()), draw_crops(10, 4, make_seed(1)))


def test_normalization_equals_that_of_torchvision_and_can_be_undone(images: Tensor) -> None:
    expected = v2.normalize(v2.to_dtype(images, torch.float32, scale=True), list(MEAN), list(STD))
    preparation = Preparation(MEAN, STD)
    torch.testing.assert_close(preparation.normalize(images), expected)
    torch.testing.assert_close(preparation.denormalize(expected), images / 255)


def test_a_single_channel_is_repeated(images: Tensor) -> None:
    normalized = Preparation((0.0,) * 3, (1.0,) * 3).normalize(images[:, :1])
    assert normalized.shape == (12, 3, 10, 14)
    assert all(torch.equal(normalized[:, c], images[:, 0] / 255) for c in range(3))


def test_padding_is_black_before_normalization(images: Tensor) -> None:
    preparation = Preparation(MEAN, STD, crop_padding=4)
    loader = ResidentLoader(torch.full_like(images, 255), preparation)
    batch = next(loader.load(torch.arange(12)[None], make_seed()))
    black, white = (preparation.normalize(torch.full((1, 3, 1, 1), v).byte()) for v in (0, 255))
    assert ((batch == black) | (batch == white)).all()
    assert (batch == black).any()


def test_the_augmentation_of_an_image_does_not_depend_on_its_position_in_the_epoch(
    images: Tensor,
) -> None:
    loader = ResidentLoader(images, Preparation(MEAN, STD, crop_padding=4))
    first, second = loader.load(ROWS, make_seed())
    assert torch.equal(second[0], second[1])
    moved = torch.stack(list(loader.load(ROWS.flip(0).flip(1), make_seed())))
    assert torch.equal(moved, torch.stack([second, first]).flip(1))
    (other, _) = loader.load(ROWS, make_seed(1))
    assert not torch.equal(first, other)


def test_images_are_unchanged_in_evaluation_and_without_augmentation(images: Tensor) -> None:
    preparation = Preparation(MEAN, STD)
    expected = preparation.normalize(images[ROWS[0]])
    for padding, seed in ((4, None), (None, make_seed()), (None, None)):
        loader = ResidentLoader(images, Preparation(MEAN, STD, padding))
        assert torch.equal(next(loader.load(ROWS, seed)), expected)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("seed", [None, 3])
def test_streamed_batches_equal_resident_ones(
    images: Tensor, num_workers: int, seed: int | None
) -> None:
    preparation = Preparation(MEAN, STD, crop_padding=4)
    resident = ResidentLoader(images, preparation)
    streaming = StreamingLoader(lambda row, _: images[row], 12, num_workers, preparation)
    sequence = None if seed is None else make_seed(seed)
    pairs = zip(resident.load(ROWS, sequence), streaming.load(ROWS, sequence), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_seed_of_a_random_crop_depends_only_on_epoch_and_row() -> None:
    def read(row: int, seed: int | None) -> Tensor:
        digits = torch.tensor([row, *np.uint64(seed).tobytes()] if seed else [row] + [0] * 8)
        return digits.byte().view(1, 3, 3)

    def load(num_workers: int, rows: Tensor, seed: np.random.SeedSequence | None) -> Tensor:
        loader = StreamingLoader(read, 12, num_workers, Preparation((0.0,), (1.0,)))
        return torch.cat(list(loader.load(rows, seed)))

    one = load(0, ROWS, make_seed())
    assert torch.equal(one, load(2, ROWS, make_seed()))
    assert torch.equal(one[:3], load(0, ROWS[:1], make_seed()))
    assert torch.equal(one[3], one[4])
    assert len(one[:, 0, 1:].unique(dim=0)) == 5  # a different one for each of the five rows
    assert not torch.equal(one, load(0, ROWS, make_seed(1)))
    assert not load(0, ROWS, None)[:, 0, 1:].any()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loading_does_not_advance_the_generator_of_the_training_loop(
    images: Tensor, num_workers: int
) -> None:
    before = torch.get_rng_state()
    loader = StreamingLoader(
        lambda row, _: images[row], 12, num_workers, Preparation(MEAN, STD, crop_padding=4)
    )
    assert len(list(loader.load(ROWS, make_seed()))) == 2
    assert torch.equal(before, torch.get_rng_state())


def broken_at(*broken: int) -> Callable[[int, int | None], Tensor]:
    def read(row: int, seed: int | None) -> Tensor:
        if row in broken:
            raise UnreadableImage(f"{row}", "it is broken")
        return torch.full((3, 2, 2), row % 256, dtype=torch.uint8)

    return read


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unreadable_image_stops_the_stream_with_its_own_message(num_workers: int) -> None:
    loader = StreamingLoader(broken_at(7), 12, num_workers, Preparation(MEAN, STD))
    batches = loader.load(ROWS, None)
    next(batches)
    with pytest.raises(UserError, match=r"\Acannot read the image 7 \(it is broken\): rep[^:]*\Z"):
        next(batches)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_images_are_left_out_on_request(num_workers: int) -> None:
    images = torch.zeros(600, 3, 2, 2, dtype=torch.uint8)
    broken = [0, 255, 256, 599]
    rows, skipped = read_once(broken_at(*broken), 600, num_workers, "skip", images)
    assert rows.tolist() == [row for row in range(600) if row not in broken]
    assert [error.name for error in skipped] == [str(row) for row in broken]
    assert torch.equal(images[rows, 0, 0, 0], (rows % 256).byte())
    with pytest.raises(UserError, match="cannot read the image 255"):
        read_once(broken_at(255), 600, num_workers, "stop")


def test_a_data_set_without_a_readable_image_has_no_rows() -> None:
    assert read_once(broken_at(*range(5)), 5, 0, "skip").rows.tolist() == []
    assert read_once(broken_at(), 0, 0, "stop").rows.tolist() == []


def test_images_reach_the_main_process_without_shared_memory(
    images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Tensor) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file: No space left")

    monkeypatch.setattr(Tensor, "share_memory_", fail)  # in the workers, which are forked
    preparation = Preparation(MEAN, STD)
    streaming = StreamingLoader(lambda row, _: images[row], 12, 1, preparation)
    resident = ResidentLoader(images, preparation)
    pairs = zip(resident.load(ROWS, None), streaming.load(ROWS, None), strict=True)
    assert [torch.equal(a, b) for a, b in pairs] == [True, True]


def test_workers_that_cannot_start_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.utils.data.DataLoader.__iter__", fail)
    with pytest.raises(UserError, match=r"\(No space.*: make room in /dev/shm, or pass --data.n"):
        read_once(broken_at(), 5, 2, "stop")


@pytest.mark.slow
@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGBUS, "exit 1", "exit 0"], ids=str)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_worker_that_dies_ends_the_run_within_seconds(
    death: signal.Signals | str, is_streamed: bool
) -> None:
    def read(row: int, seed: int | None) -> Tensor:
        if row == 300 and isinstance(death, str):
            os._exit(int(death[-1]))
        elif row == 300:
            os.kill(os.getpid(), death)
        return torch.zeros(3, 64, 64, dtype=torch.uint8)

    start = time.monotonic()
    with pytest.raises(UserError, match=r"a process that decodes images died .* --data.num-wor"):
        if is_streamed:
            loader = StreamingLoader(read, 1000, 2, Preparation(MEAN, STD))
            list(loader.load(torch.arange(960).view(15, 64), None))
        else:
            read_once(read, 1000, 2, "stop")
    assert time.monotonic() - start < 30
