"""MixUp and CutMix: batches of images mixed in pairs, with probabilities as labels.

What is drawn depends on seed, epoch and step. An image is mixed with the one before it in the
batch, also if another process trains on that one: it is then loaded twice.

Dims     B batch   L loaded images   C channels   H height   W width   O classes   S steps
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from associative_transformer.data.augmentation import Augmentation
from associative_transformer.interface import Batch


class Mixing(NamedTuple):
    """How the images of a training split are mixed."""

    num_classes: int
    mixup: float  # alpha of MixUp (Zhang et al. 2018, arXiv 1710.09412); 0: off
    cutmix: float  # alpha of CutMix (Yun et al. 2019, arXiv 1905.04899); 0: off
    probability: float  # of mixing the images of a batch

    @classmethod
    def of(cls, augmentation: Augmentation, num_classes: int) -> "Mixing | None":
        """Return the mixing of an augmentation; None if there is none."""
        if not augmentation.is_mixed:
            return None
        alphas = augmentation.mixup, augmentation.cutmix
        return cls(num_classes, *alphas, augmentation.mix_probability)


class Mixture(NamedTuple):
    """How the images of one step are mixed."""

    share: float  # of each image itself; that of CutMix depends on what fits into the image
    center: tuple[float, float] | None  # y and x in [0, 1) of the pasted rectangle; None: MixUp


UNMIXED = Mixture(1.0, None)


class Partners(NamedTuple):
    """Which images of a batch a process loads, and with which of these it mixes its own."""

    loaded: Int[Tensor, " L"]  # positions in the whole batch, its own first
    of_own: Int[Tensor, " B"]  # indices in `loaded` of the partners of its own


def find_partners(own: Int[Tensor, " B"], batch_size: int) -> Partners:
    """Find the partners of the images at these positions of a batch: those before them."""
    partner = (own - 1) % batch_size
    loaded = torch.cat([own, partner[~torch.isin(partner, own)]])
    index = torch.empty(batch_size, dtype=torch.int64)
    index[loaded] = torch.arange(len(loaded))
    return Partners(loaded, index[partner])


def draw_mixtures(mixing: Mixing, num_steps: int, seed: np.random.SeedSequence) -> list[Mixture]:
    """Draw for each step of an epoch: more steps do not change the first ones."""
    mixtures = []
    for child in range(num_steps):
        own = np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, child))
        generator = np.random.default_rng(own)
        is_mixed, kind, *center = generator.random(4).tolist()
        is_cut = mixing.cutmix > 0 and (kind < 0.5 or not mixing.mixup)
        alpha = mixing.cutmix if is_cut else mixing.mixup
        mixture = Mixture(generator.beta(alpha, alpha), (center[0], center[1]) if is_cut else None)
        mixtures.append(mixture if is_mixed < mixing.probability else UNMIXED)
    return mixtures


def mix_batches(
    batches: Iterable[Batch],
    mixtures: Iterable[Mixture],
    partners: Int[Tensor, " B"],
    num_classes: int,
) -> Iterator[Batch]:
    """Mix the images of each batch with their `partners`, and drop those of others."""
    for batch, mixture in zip(batches, mixtures, strict=True):
        partner = partners.to(batch.images.device)
        own, num_own = batch.images[: len(partner)], len(partner)
        images, share = mix_images(own, batch.images[partner], mixture)
        labels = one_hot(batch.labels, num_classes).float()
        labels = labels[:num_own] * share + labels[partner] * (1 - share)
        yield Batch(images, None, labels)


class Mixed(NamedTuple):
    """Images of a step, mixed with their partners."""

    images: Float[Tensor, "B C H W"]
    share: float  # of each image itself in its label


def mix_images(
    images: Float[Tensor, "B C H W"], partners: Float[Tensor, "B C H W"], mixture: Mixture
) -> Mixed:
    """Blend images with their partners, or paste a rectangle of these.

    MixUp:   x = r x_1 + (1 - r) x_2,  r ~ Beta(a, a)
    CutMix:  the rectangle has 1 - r of the area, less what is outside the image
    """
    share = mixture.share
    if share == 1:
        return Mixed(images, 1.0)
    if mixture.center is None:
        return Mixed(images * share + partners * (1 - share), share)
    height, width = images.shape[2:]
    middle = int(mixture.center[0] * height), int(mixture.center[1] * width)
    half = [int(0.5 * (1 - share) ** 0.5 * side) for side in (height, width)]
    top, left = (max(m - h, 0) for m, h in zip(middle, half, strict=True))
    bottom, right = (
        min(m + h, side) for m, h, side in zip(middle, half, (height, width), strict=True)
    )
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = partners[..., top:bottom, left:right]
    return Mixed(mixed, 1 - (bottom - top) * (right - left) / (height * width))
