"""MixUp and CutMix: pairs, ratios and labels, and how processes share a mixed batch."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from associative_transformer.data import Share, Split
from associative_transformer.data.augment import Preparation
from associative_transformer.data.augmentation import Augmentation
from associative_transformer.data.loaders import ResidentLoader
from associative_transformer.data.mixing import (
    UNMIXED,
    Mixing,
    Mixture,
    draw_mixtures,
    find_partners,
    mix_images,
)
from associative_transformer.interface import Batch

CUT = Mixture(0.5, (0.5, 0.25))
BOTH = Mixing(num_classes=5, mixup=0.8, cutmix=1.0, probability=0.75)
CROP = Augmentation(crop_padding=2, flip="horizontal", policy="trivialaugment")


@pytest.fixture
def split() -> Split:
    images = torch.randint(256, (50, 3, 8, 8), dtype=torch.uint8)
    loader = ResidentLoader(images, Preparation((0.5,) * 3, (0.25,) * 3, CROP))
    return Split(torch.arange(50) % 5, torch.arange(50), loader, mixing=BOTH)


def columns(batches: list[Batch]) -> tuple[Tensor, Tensor]:
    return torch.stack([b.images for b in batches]), torch.stack([b.labels for b in batches])


@pytest.mark.parametrize(("ranks", "parts"), [(1, 1), (1, 4), (2, 1), (2, 3), (4, 1), (12, 1)])
def test_processes_together_see_the_mixed_batches_of_a_single_one(
    split: Split, ranks: int, parts: int
) -> None:
    images, labels = columns(list(split.train_batches(12, 0, 3)))
    positions = torch.arange(12)[None]
    assert images.shape == (4, 12, 3, 8, 8)
    for rank in range(ranks):
        share = Share(rank, ranks, parts)
        own = share.of(positions)[0]
        ours = columns(list(split.train_batches(12, 0, 3, share=share)))
        assert torch.equal(ours[0], images[:, own])
        assert torch.equal(ours[1], labels[:, own])


def test_a_resumed_epoch_continues_with_the_same_mixtures(split: Split) -> None:
    torch.rand(3)
    images, labels = columns(list(split.train_batches(12, 0, 1)))
    later = columns(list(split.train_batches(12, 0, 1, first_step=2)))
    assert torch.equal(images[2:], later[0]) and torch.equal(labels[2:], later[1])
    for seed, epoch in ((1, 1), (0, 2)):
        assert not torch.equal(columns(list(split.train_batches(12, seed, epoch)))[1], labels)


def test_mixing_does_not_touch_the_generator_of_torch(split: Split) -> None:
    before = torch.get_rng_state()
    list(split.train_batches(12, 0, 0))
    assert torch.equal(before, torch.get_rng_state())


def test_the_images_that_are_mixed_are_those_of_an_epoch_without_mixing(split: Split) -> None:
    plain = Split(split.labels, split.rows, split.loader)
    _, *augment_mix = np.random.SeedSequence((0, 3)).spawn(3)
    mixtures = draw_mixtures(BOTH, 4, augment_mix[1])
    batches = zip(
        split.train_batches(12, 0, 3), plain.train_batches(12, 0, 3), mixtures, strict=True
    )
    for mixed, batch, mixture in batches:
        partner = batch.images.roll(1, 0)
        images, share = mix_images(batch.images, partner, mixture)
        assert torch.equal(mixed.images, images)
        for label, own, other in zip(
            mixed.labels, batch.labels, batch.labels.roll(1), strict=True
        ):
            expected = torch.zeros(5)
            expected[own] += share
            expected[other] += 1 - share
            torch.testing.assert_close(label, expected)


def test_only_the_partners_of_other_processes_are_loaded_twice() -> None:
    own = Share(1, 2, 3).of(torch.arange(24)[None])[0]
    assert own.tolist() == [4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23]
    loaded, of_own = find_partners(own, 24)
    assert loaded.tolist() == [*own.tolist(), 3, 11, 19]
    assert torch.equal(loaded[of_own], own - 1)
    whole = find_partners(torch.arange(24), 24)
    assert torch.equal(whole.loaded, torch.arange(24))


def test_mixup_blends_images_by_the_share() -> None:
    ones, zeros = torch.ones(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)
    images, share = mix_images(ones, zeros, Mixture(0.7, None))
    assert (share, images.unique().tolist()) == (0.7, pytest.approx([0.7]))


def test_cutmix_pastes_a_rectangle_and_counts_its_area() -> None:
    own, other = torch.ones(2, 3, 16, 16), torch.zeros(2, 3, 16, 16)
    images, share = mix_images(own, other, CUT)
    assert share == pytest.approx(float(images.mean()))
    # half the area is 11 of 16 pixels wide, five to each side of the center, cut at the left
    expected = torch.ones(16, 16)
    expected[3:13, :9] = 0
    assert torch.equal(images, expected.expand(2, 3, 16, 16))
    assert share == 1 - 90 / 256
    assert (own == 1).all()


def test_cutmix_cuts_like_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    twin = v2.CutMix(num_classes=3)
    own, labels = torch.randn(4, 3, 10, 14), torch.arange(4) % 3
    for mixture in (CUT, Mixture(0.1, (0.95, 0.0)), Mixture(0.9, (0.0, 0.5))):
        center = [
            torch.tensor([int(c * s)]) for c, s in zip(mixture.center, (10, 14), strict=True)
        ]
        drawn = iter(reversed(center))  # x is drawn first
        monkeypatch.setattr(torch, "randint", lambda *_, size, drawn=drawn: next(drawn))
        monkeypatch.setattr(twin._dist, "sample", lambda _, share=mixture.share: share)
        expected, soft = twin(own, labels)
        images, share = mix_images(own, own.roll(1, 0), mixture)
        assert torch.equal(images, expected)
        assert float(soft[1, 1]) == pytest.approx(share)


def test_shares_follow_the_beta_distribution_and_both_kinds_are_equally_frequent() -> None:
    mixtures = draw_mixtures(BOTH, 4000, np.random.SeedSequence(0))
    mixed = [mixture for mixture in mixtures if mixture is not UNMIXED]
    shares = {
        is_cut: np.array([m.share for m in mixed if (m.center is not None) == is_cut])
        for is_cut in (False, True)
    }
    assert len(mixed) / 4000 == pytest.approx(0.75, abs=0.02)
    assert len(shares[True]) / len(mixed) == pytest.approx(0.5, abs=0.03)
    for is_cut, alpha in ((False, 0.8), (True, 1.0)):
        assert shares[is_cut].mean() == pytest.approx(0.5, abs=0.02)
        assert shares[is_cut].var() == pytest.approx(1 / (4 * (2 * alpha + 1)), abs=0.01)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.2, 0.0), (0.0, 1.0)])
def test_one_kind_alone_is_always_used(mixup: float, cutmix: float) -> None:
    mixing = Mixing(3, mixup, cutmix, 1.0)
    mixtures = draw_mixtures(mixing, 50, np.random.SeedSequence(0))
    assert [m.center is None for m in mixtures] == [mixup > 0] * 50


def test_evaluation_is_never_mixed(split: Split) -> None:
    plain = Split(split.labels, split.rows, split.loader)
    for ours, theirs in zip(split.eval_batches(12), plain.eval_batches(12), strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)


def test_pictures_with_questions_cannot_be_mixed(split: Split) -> None:
    with pytest.raises(ValueError, match=r"pictures with questions cannot be mixed.* turn MixUp"):
        Split(split.labels, split.rows, split.loader, torch.zeros(50, 2), mixing=BOTH)
