"""Time an epoch of augmented images: OMP_NUM_THREADS=1 python benchmarks/augmentation.py

Images of random pixels are kept in memory and loaded in batches, as `ait train` does. Each row is
a preset or a preset with one more setting; "torchvision" does the same as "strong" with its
transforms, image by image. Medians of rounds in which all rows take turns.
"""

import argparse
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor
from torchvision.transforms import v2

from associative_transformer.bench.timing import time_in_turn
from associative_transformer.data import ImagesConfig
from associative_transformer.data.augment import Preparation
from associative_transformer.data.augmentation import AugmentationConfig
from associative_transformer.data.batches import Split
from associative_transformer.data.loaders import ResidentLoader
from associative_transformer.data.mixing import Mixing
from associative_transformer.runs.environment import describe_environment
from associative_transformer.tabular import RowGroup, Table

BATCH, CLASSES, SIZE = 128, 10, 32
CONFIG = ImagesConfig("cifar10")
SETTINGS = {
    "none": ("none", AugmentationConfig()),
    "crop": ("crop", AugmentationConfig()),
    "crop, color_jitter 0.4": ("crop", AugmentationConfig(color_jitter=0.4)),
    "crop, policy randaugment": ("crop", AugmentationConfig(policy="randaugment")),
    "crop, policy trivialaugment": ("crop", AugmentationConfig(policy="trivialaugment")),
    "crop, erase 0.25": ("crop", AugmentationConfig(erase=0.25)),
    "crop, mixup 0.2": ("crop", AugmentationConfig(mixup=0.2)),
    "strong": ("strong", AugmentationConfig()),
}
COLUMNS = ("augmentation", "seconds per epoch", "images/s")


def load_epoch(images: Tensor, labels: Tensor, setting: str) -> Callable[[], None]:
    """Return the function that loads an epoch with these settings."""
    preset, config = SETTINGS[setting]
    augmentation = config.resolve(preset, CONFIG.crop_padding, SIZE)
    loader = ResidentLoader(images, Preparation(*CONFIG.normalization, augmentation))
    mixing = Mixing.of(augmentation, CLASSES)
    split = Split(labels, torch.arange(len(images)), loader, mixing=mixing)

    def load() -> None:
        for _ in split.train_batches(BATCH, seed=0, epoch=0):
            pass

    return load


def load_by_image(images: Tensor, labels: Tensor) -> Callable[[], None]:
    """Return the function that loads an epoch like "strong" with torchvision's transforms."""
    mean, std = CONFIG.normalization
    each = v2.Compose(
        [
            v2.RandomCrop(SIZE, CONFIG.crop_padding),
            v2.RandomHorizontalFlip(),
            v2.TrivialAugmentWide(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(mean), list(std)),
            v2.RandomErasing(0.1),
        ]
    )
    options = {"num_classes": CLASSES}
    mix = v2.RandomChoice([v2.MixUp(alpha=0.2, **options), v2.CutMix(alpha=1.0, **options)])

    def load() -> None:
        order = torch.randperm(len(images))
        for rows in order[: len(images) // BATCH * BATCH].split(BATCH):
            mix(torch.stack([each(image) for image in images[rows]]), labels[rows])

    return load


def main() -> None:
    """Print a row for each setting."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    images = torch.randint(256, (options.images, 3, SIZE, SIZE), dtype=torch.uint8)
    labels = torch.randint(CLASSES, (options.images,))
    runs = {setting: load_epoch(images, labels, setting) for setting in SETTINGS}
    runs["torchvision"] = load_by_image(images, labels)
    seconds = time_in_turn(runs, options.rounds, torch.device("cpu"))
    medians = {name: median(times) for name, times in seconds.items()}
    rows = [
        (name, f"{time:.2f}", f"{options.images / time:,.0f}") for name, time in medians.items()
    ]
    machine = describe_environment(torch.device("cpu"))
    notes = [f"{machine.device}, {machine.threads} threads, torch {torch.__version__}"]
    print(
        Table(
            "Augmentation",
            COLUMNS,
            [RowGroup(f"{options.images:,} images of {SIZE}x{SIZE} pixels", rows)],
            notes,
        ).to_markdown(),
        end="",
    )


if __name__ == "__main__":
    main()
