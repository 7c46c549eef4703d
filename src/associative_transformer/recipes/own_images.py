"""Sizes and settings for a data set of one's own images, by rule, as `ait fit` chooses them.

Nothing here reads images or measures time: an experiment follows from the summary of the data,
from what the user asks for, and from limits, which `training.time_plan` lowers until enough epochs
fit into the given time. The rules, for N training images:

- image size: the largest of `IMAGE_SIZES` that is not above the median of the shorter sides
- patch: the largest power of 2 that leaves at least 49 tokens, so that there are 49 to 144
- model: an AiT with a memory for each image instead of self-attention, learned positions, the mean
  of the tokens and a convolutional stem; its width and depth grow with N (`SHAPES`)
- batch: the largest power of 2 with at least 30 batches per epoch, from 8 to 128; 4 or fewer
  for sets of less than 80 images
- validation: 20 % of N (15 % from 1,000, 10 % from 5,000 images), if there is no such split; none
  if a class has fewer than 5 images
- augmentation: `crop` or, from 100 epochs and 5,000 steps, what `strong` does, with half of the
  batches mixed: shorter runs do not learn by heart. Above 64 pixels, images are padded and cropped
  instead of zoomed into as long as they fit into memory, which saves decoding them again
- loss: labels are smoothed by 0.1; classes are weighted if the largest has over 3 times as many
  images as the smallest
- optimizer: AdamW, 3e-3 times the square root of batch / 128 and, for a larger width, times
  128 / width; decay of 0.05 on matrices, clipping; one cycle per step; a moving average of the
  weights over a tenth of the steps
- precision and compilation: auto, but runs of less than 20 minutes are not compiled, since finding
  out whether that pays off takes minutes
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from associative_transformer.data import ImagesConfig
from associative_transformer.data.augmentation import SMALL, AugmentationConfig
from associative_transformer.data.summary import DataSummary
from associative_transformer.experiment import Experiment, TrainConfig
from associative_transformer.interface import UserError
from associative_transformer.models import ModelConfig
from associative_transformer.models.ait import AiTConfig
from associative_transformer.models.stem import StemConfig
from associative_transformer.optimization import LossConfig, Schedule
from associative_transformer.workspace_config import WorkspaceConfig

IMAGE_SIZES = (32, 48, 64, 96, 128, 160, 192, 224)
MIN_TOKENS = 49  # 7 x 7
MIN_STEM_WIDTH = 16
MAX_BATCH, SMALL_BATCH, MIN_BATCH = 128, 8, 4
MANY_BATCHES, FEW_BATCHES = 30, 10  # of an epoch
IMBALANCE = 3.0  # from which classes are weighted
MAX_WIDTH = 128  # of the tokens, for the highest learning rate
FEW = 5  # images of a class, below which none are set aside for validation
VALIDATION = {5_000: 0.1, 1_000: 0.15, 0: 0.2}  # training images from: share for validation
MANY_EPOCHS, MANY_STEPS = 100, 5_000  # from which strong augmentation pays off
LR, FINE_TUNING_LR = 3e-3, 3e-4  # for a batch of 128 and a width of up to 128


class Shape(NamedTuple):
    """Width and depth of a model, and from how many training images it is used."""

    embed_dim: int
    depth: int
    from_images: int

    @property
    def cost(self) -> int:
        """Work for a token, in arbitrary units."""
        return self.embed_dim**2 * self.depth


SHAPES = (Shape(64, 2, 0), Shape(96, 3, 0), Shape(128, 4, 1_000), Shape(192, 6, 20_000))


class Length(NamedTuple):
    """How long to train."""

    epochs: int
    steps_per_epoch: int

    @property
    def is_long(self) -> bool:
        """Whether a model could learn the images by heart."""
        return self.epochs >= MANY_EPOCHS and self.epochs * self.steps_per_epoch >= MANY_STEPS


class Limits(NamedTuple):
    """The largest image size and the largest model, by its position in `SHAPES`."""

    image_size: int = IMAGE_SIZES[-1]
    shape: int = len(SHAPES) - 1

    @property
    def cost(self) -> int:
        """Work for an image, in arbitrary units."""
        return self.image_size**2 * SHAPES[self.shape].cost


NO_LIMITS = Limits()


@dataclass(frozen=True)
class Wishes:
    """What the user asks for."""

    data: ImagesConfig
    """The images; their size and augmentation are chosen."""
    name: str
    """Name of the run folder."""
    seed: int = 0
    """Seed of the run."""
    flip: bool = True
    """Whether an image may be mirrored without changing its class."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    init: str | None = None
    """Weights to start from."""
    start: ModelConfig | None = None
    """The model that has these weights, whose sizes are kept."""
    is_long: bool = False
    """Whether there is time to try out compilation."""


def choose_experiment(
    summary: DataSummary, wishes: Wishes, limits: Limits = NO_LIMITS, epochs: int = 100
) -> Experiment:
    """Return the experiment for the data by the rules above. Raises UserError if there is none."""
    number = summary.splits[0].num_images
    model: Any = _choose_model(summary, wishes.start, limits)
    val_fraction = _choose_validation(summary)
    kept = number - round(val_fraction * number)
    batch_size = _choose_batch(kept)
    length = Length(epochs, kept // batch_size)
    width = None if wishes.start is not None else model.embed_dim
    return Experiment(
        name=wishes.name,
        data=_choose_data(summary, wishes, model.image_size, val_fraction, length),
        model=model,
        train=_choose_training(summary, wishes, width, batch_size, length),
        init=wishes.init,
    )


def list_limits(summary: DataSummary) -> list[Limits]:
    """Return ever lower limits, from what suits the data to the smallest size and model.

    The image size falls to 64 first, then it and the model in turn.
    """
    size, shape = _choose_size(summary), _choose_shape(summary)
    limits = [Limits(size, shape)]
    while limits[-1] != Limits(IMAGE_SIZES[0], 0):
        size, shape = limits[-1]
        is_smaller = size > IMAGE_SIZES[0] and (size > SMALL or shape == 0 or len(limits) % 2)
        if is_smaller:
            limits.append(Limits(IMAGE_SIZES[IMAGE_SIZES.index(size) - 1], shape))
        else:
            limits.append(Limits(size, max(shape - 1, 0)))
    return limits


def count_training_images(experiment: Experiment, summary: DataSummary) -> int:
    """Return how many images are left for training once the validation images are set aside."""
    number = summary.splits[0].num_images
    fraction = getattr(experiment.data, "val_fraction", 0.0)
    return number - round(fraction * number)


def choose_patch(image_size: int) -> int:
    """Return the largest power of 2 that leaves at least 49 tokens; at most a seventh."""
    fitting = [p for p in (2, 4, 8, 16, 32) if image_size % p == 0]
    return max(p for p in fitting if (image_size // p) ** 2 >= MIN_TOKENS)


def _choose_size(summary: DataSummary) -> int:
    """Return the image size that suits the median of the shorter sides."""
    if summary.sizes is None:
        return IMAGE_SIZES[0]
    side = min(summary.sizes.width.median, summary.sizes.height.median)
    return max((size for size in IMAGE_SIZES if size <= side), default=IMAGE_SIZES[0])


def _choose_shape(summary: DataSummary) -> int:
    number = summary.splits[0].num_images
    return max(i for i, shape in enumerate(SHAPES) if number >= shape.from_images)


def _choose_model(summary: DataSummary, start: ModelConfig | None, limits: Limits) -> ModelConfig:
    """Return the model, or the one to start from with another number of classes."""
    if start is not None:
        if start.num_channels != 3 or not isinstance(start.image_size, int):
            raise UserError("--init needs a model of square RGB images: choose another source")
        return replace(start, num_classes=summary.num_classes)
    size = min(_choose_size(summary), limits.image_size)
    width, depth, _ = SHAPES[min(_choose_shape(summary), limits.shape)]
    patch = choose_patch(size)
    stem = width // 2 ** (patch.bit_length() - 2)  # the last stage is as wide as the tokens
    return AiTConfig(
        image_size=size,
        patch_size=patch,
        num_classes=summary.num_classes,
        pos="learned",
        embed_dim=width,
        depth=depth,
        num_heads=width // 32,
        head_dim=32,
        mlp_ratio=2.0,
        head="mean",
        use_self_attention=False,
        stem=StemConfig("conv", max(8 * (stem // 8), MIN_STEM_WIDTH)),
        workspace=WorkspaceConfig(num_priors=16, num_heads=4, scope="image"),
    )


def _choose_validation(summary: DataSummary) -> float:
    """Return the share of the training images to set aside for validation."""
    train, *others = summary.splits
    counts = [count for count in train.classes.values() if count]
    if any(split.name == "validation" for split in others) or min(counts, default=0) < FEW:
        return 0.0
    return next(share for least, share in VALIDATION.items() if train.num_images >= least)


def _choose_batch(number: int) -> int:
    """Return the largest power of 2 with 30 batches of `number` images, from 8 to 128.

    Few images get batches of 4, or of all images.
    """
    if number < MIN_BATCH:
        return max(number, 1)
    small = min(number // FEW_BATCHES, SMALL_BATCH)
    power = 2 ** int(math.log2(max(number // MANY_BATCHES, small, MIN_BATCH)))
    return min(power, MAX_BATCH)


def _choose_data(
    summary: DataSummary, wishes: Wishes, size: int, val_fraction: float, length: Length
) -> ImagesConfig:
    """Return the data with image size, augmentation, validation, and what to do about damage."""
    data = wishes.data
    number = sum(split.num_images for split in summary.splits)
    fits = number * 3 * size**2 <= data.memory_budget * 2**30
    changes: dict[str, Any] = {} if wishes.flip else {"flip": "none"}
    is_strong = length.is_long
    augment: Literal["strong", "crop", "resized_crop"] = "strong" if is_strong else "crop"
    if size > SMALL and not fits:  # images are decoded for each batch in any case
        augment = "strong" if is_strong else "resized_crop"
        changes["scale"] = (0.35, 1.0)
    elif size > SMALL:
        augment = "crop"
        strong = {"policy": "trivialaugment", "erase": 0.1, "mixup": 0.2, "cutmix": 1.0}
        changes |= strong if is_strong else {}
    if is_strong:
        changes["mix_probability"] = 0.5
    contents = summary.contents
    return replace(
        data,
        image_size=size,
        augment=augment,
        augmentation=AugmentationConfig(**changes),
        crop_padding=size // 8,
        mean="auto",
        val_fraction=val_fraction,
        on_error="skip" if contents is not None and contents.unreadable else "stop",
    )


def _choose_training(
    summary: DataSummary, wishes: Wishes, width: int | None, batch_size: int, length: Length
) -> TrainConfig:
    """Return loss, optimizer and schedule; without a width, of a model to start from."""
    epochs, steps_per_epoch = length
    is_uneven = summary.splits[0].imbalance > IMBALANCE
    highest = FINE_TUNING_LR if width is None else LR * min(MAX_WIDTH / width, 1)
    schedule = Schedule(
        warmup_epochs=min(max(epochs // 10, 1), epochs - 1),
        warmup_lr=0.0,
        min_lr=0.0,
        shape="one_cycle",
        per="step",
    )
    return TrainConfig(
        seed=wishes.seed,
        device=wishes.device,
        epochs=epochs,
        batch_size=batch_size,
        lr=round(highest * math.sqrt(batch_size / MAX_BATCH), 6),
        weight_decay=0.05,
        decay_on="matrices",
        clip_norm=1.0,
        schedule=schedule,
        loss=LossConfig(0.1, "balanced" if is_uneven else "none"),
        compile="auto" if wishes.is_long else "off",
        ema_decay=round(min(max(1 - 10 / max(epochs * steps_per_epoch, 1), 0.9), 0.999), 4),
    )
