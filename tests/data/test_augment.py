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

from associative_transformer.data.augment import (
    UNCHANGED,
    Preparation,
    crop_and_flip,
    draw_crops,
    draw_rectangles,
    erase,
)
from associative_transformer.data.augmentation import Augmentation
from associative_transformer.data.loaders import ResidentLoader, StreamingLoader, read_once
from associative_transformer.decoding import UnreadableImage
from associative_transformer.interface import UserError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
ROWS = torch.tensor([[4, 0, 9], [7, 7, 1]])
CROP = Augmentation(crop_padding=4, flip="horizontal")
EVERYTHING = CROP._replace(color_jitter=0.4, policy="randaugment", erase=0.5)
every_kind = pytest.mark.parametrize("augmentation", [CROP, EVERYTHING], ids=["crop", "all"])


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
    preparation = Preparation(MEAN, STD, CROP)
    loader = ResidentLoader(torch.full_like(images, 255), preparation)
    batch = next(loader.load(torch.arange(12)[None], make_seed()))
    black, white = (preparation.normalize(torch.full((1, 3, 1, 1), v).byte()) for v in (0, 255))
    assert ((batch == black) | (batch == white)).all()
    assert (batch == black).any()


@every_kind
def test_the_augmentation_of_an_image_does_not_depend_on_its_position_in_the_epoch(
    augmentation: Augmentation, images: Tensor
) -> None:
    loader = ResidentLoader(images, Preparation(MEAN, STD, augmentation))
    first, second = loader.load(ROWS, make_seed())
    assert torch.equal(second[0], second[1])
    moved = torch.stack(list(loader.load(ROWS.flip(0).flip(1), make_seed())))
    assert torch.equal(moved, torch.stack([second, first]).flip(1))
    (other, _) = loader.load(ROWS, make_seed(1))
    assert not torch.equal(first, other)


def test_the_augmentation_of_an_image_does_not_depend_on_the_rest_of_its_batch() -> None:
    images = torch.randint(256, (300, 3, 16, 16), dtype=torch.uint8)
    loader = ResidentLoader(images, Preparation(MEAN, STD, EVERYTHING))
    (whole,) = loader.load(torch.arange(300)[None], make_seed())
    alone = torch.cat(list(loader.load(torch.arange(300)[:, None], make_seed())))
    assert torch.equal(whole, alone)
    more = ResidentLoader(torch.cat([images, images]), loader.preparation)
    assert torch.equal(next(more.load(torch.arange(300)[None], make_seed())), whole)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_images_on_a_gpu_are_augmented_there_as_on_a_cpu() -> None:
    images, rows = torch.randint(256, (64, 3, 16, 16), dtype=torch.uint8), torch.arange(64)[None]
    cpu, gpu = (
        ResidentLoader(images, Preparation(MEAN, STD, EVERYTHING, torch.device(name)))
        for name in ("cpu", "cuda")
    )
    (expected,), (batch,) = cpu.load(rows, make_seed()), gpu.load(rows, make_seed())
    assert batch.is_cuda
    level = 1 / 255 / min(STD)  # a value that is almost whole may be rounded differently
    is_close = (batch.cpu() - expected).abs() <= 1.01 * level
    assert is_close.float().mean() > 0.999


def test_a_setting_does_not_change_what_others_draw(images: Tensor) -> None:
    def load(augmentation: Augmentation) -> Tensor:
        loader = ResidentLoader(images, Preparation((0.0,) * 3, (1.0,) * 3, augmentation))
        return next(loader.load(torch.arange(12)[None], make_seed()))

    all_but_erasing, everything = load(EVERYTHING._replace(erase=0.0)), load(EVERYTHING)
    is_erased = (everything != all_but_erasing).any(dim=1)
    assert is_erased.any() and not is_erased.all()
    assert not everything.movedim(1, -1)[is_erased].any()


def test_a_flip_can_be_turned_off(images: Tensor) -> None:
    preparation = Preparation(MEAN, STD, CROP._replace(flip="none"))
    crops = draw_crops(12, 4, make_seed())
    (batch,) = ResidentLoader(images, preparation).load(torch.arange(12)[None], make_seed())
    assert crops[:, 2].any()
    crops[:, 2] = 0
    assert torch.equal(batch, preparation.normalize(crop_and_flip(images, crops, 4)))


def test_color_jitter_changes_brightness_contrast_and_saturation_within_its_strength() -> None:
    augmentation = Augmentation(color_jitter=0.4)
    gray = torch.full((500, 3, 4, 4), 100, dtype=torch.uint8)  # only brightness changes it
    loader = ResidentLoader(gray, Preparation((0.0,) * 3, (1.0,) * 3, augmentation))
    (batch,) = loader.load(torch.arange(500)[None], make_seed())
    factors = 2.55 * batch[:, 0, 0, 0]
    assert (batch == batch[:, :1, :1, :1]).all()
    assert 0.59 <= factors.min() < 0.65 and 1.35 < factors.max() <= 1.4
    assert factors.mean().sub(1).abs() < 0.05


def test_rectangles_have_the_areas_and_ratios_of_random_erasing() -> None:
    top, left, tall, wide = draw_rectangles(0.25, 20_000, (60, 80), make_seed()).T
    is_erased = tall * wide > 0
    assert is_erased.double().mean().sub(0.25).abs() < 0.02
    area = (tall * wide / (60 * 80))[is_erased]
    assert 0.015 < area.min() < 0.03 and 0.3 < area.max() < 0.34
    assert area.mean().sub((0.02 + 0.33) / 2).abs() < 0.005
    ratio = (tall / 60 / (wide / 80))[is_erased & (tall * wide > 300)]
    assert 0.27 < ratio.min() < 0.4 and 2.6 < ratio.max() < 3.5
    assert ratio.log().mean().abs() < 0.05
    assert (top >= 0).all() and (left >= 0).all()
    assert ((top + tall).max(), (left + wide).max()) == (60, 80)


def test_a_rectangle_is_erased_as_torchvision_does() -> None:
    batch = torch.randn(50, 3, 9, 12)
    rectangles = draw_rectangles(0.7, 50, (9, 12), make_seed())
    for image, rectangle, ours in zip(batch, rectangles, erase(batch, rectangles), strict=True):
        top, left, tall, wide = rectangle.tolist()
        zero = torch.zeros(3, 1, 1)
        assert torch.equal(ours, v2.erase(image, top, left, tall, wide, zero))


def test_images_are_unchanged_in_evaluation_and_without_augmentation(images: Tensor) -> None:
    preparation = Preparation(MEAN, STD)
    expected = preparation.normalize(images[ROWS[0]])
    for augmentation, seed in ((EVERYTHING, None), (UNCHANGED, make_seed()), (UNCHANGED, None)):
        loader = ResidentLoader(images, Preparation(MEAN, STD, augmentation))
        assert torch.equal(next(loader.load(ROWS, seed)), expected)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("seed", [None, 3])
@every_kind
def test_streamed_batches_equal_resident_ones(
    augmentation: Augmentation, images: Tensor, num_workers: int, seed: int | None
) -> None:
    preparation = Preparation(MEAN, STD, augmentation)
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
        lambda row, _: images[row], 12, num_workers, Preparation(MEAN, STD, EVERYTHING)
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
