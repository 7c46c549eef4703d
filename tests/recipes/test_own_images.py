"""The experiment for one's own images: the rules by which it follows from the data."""

from dataclasses import replace
from itertools import pairwise

import pytest
import yaml

from associative_transformer.data import ImagesConfig
from associative_transformer.data.summary import (
    Contents,
    Copies,
    DataSummary,
    Sizes,
    SplitSummary,
    Spread,
    Unreadable,
)
from associative_transformer.experiment import Experiment, format_experiment, parse_experiment
from associative_transformer.interface import UserError
from associative_transformer.models import build_model
from associative_transformer.models.ait import AiTConfig
from associative_transformer.models.vit import ViTConfig
from associative_transformer.recipes.own_images import (
    IMAGE_SIZES,
    NO_LIMITS,
    SHAPES,
    Limits,
    Wishes,
    choose_experiment,
    choose_patch,
    count_training_images,
    list_limits,
)

WISHES = Wishes(ImagesConfig("leaves", source="leaves"), "fit-leaves")
NONE = Copies(0, ())
COUNTS = (4, 10, 60, 200, 1_000, 3_000, 20_000, 200_000)


def spread(value: float) -> Spread:
    return Spread(value, value, value)


def describe(
    counts: list[int],
    width: float = 300,
    height: float = 200,
    validation: bool = False,
    unreadable: int = 0,
) -> DataSummary:
    """Return the summary of a data set with some training images of each class."""
    classes = {f"class {i}": count for i, count in enumerate(counts)}
    splits = [SplitSummary("training", classes), SplitSummary("test", dict.fromkeys(classes, 5))]
    if validation:
        splits.insert(1, SplitSummary("validation", dict.fromkeys(classes, 2)))
    bad = tuple(Unreadable(f"{i}.png", "empty") for i in range(unreadable))
    mean = (0.5, 0.5, 0.5)
    contents = Contents({}, {}, 0, 0, 0, mean, mean, bad, {}, {}, NONE)
    sizes = Sizes(spread(width), spread(height), spread(1))
    return DataSummary("leaves", "", tuple(splits), sizes, contents=contents)


def choose(counts: list[int], epochs: int = 100, **options: object) -> Experiment:
    return choose_experiment(describe(counts, **options), WISHES, epochs=epochs)


@pytest.mark.parametrize("size", IMAGE_SIZES)
def test_every_image_size_gives_49_to_256_tokens_and_a_model_that_builds(size: int) -> None:
    patch = choose_patch(size)
    assert patch & (patch - 1) == 0
    assert 49 <= (size // patch) ** 2 <= 256
    experiment = choose([50, 50], width=size, height=2 * size)
    assert experiment.model.image_size == experiment.data.image_size == size
    build_model(experiment.model)


@pytest.mark.parametrize("number", COUNTS)
def test_every_number_of_images_gives_a_batch_that_fits_and_a_valid_experiment(
    number: int,
) -> None:
    summary = describe([number - number // 2, number // 2])
    experiment = choose_experiment(summary, WISHES)
    train = count_training_images(experiment, summary)
    assert 1 <= experiment.train.batch_size <= min(train, 128)
    if train >= 40:
        assert train // experiment.train.batch_size >= 10
    assert parse_experiment(_saved(experiment), "saved") == experiment


def _saved(experiment: Experiment) -> object:
    return yaml.safe_load(format_experiment(experiment))


def test_the_image_size_is_at_most_the_median_of_the_shorter_sides() -> None:
    for width, height, size in ((8, 8, 32), (100, 70, 64), (70, 100, 64), (4000, 3000, 224)):
        assert choose([20, 20], width=width, height=height).data.image_size == size


def test_larger_sets_get_larger_models() -> None:
    widths = [choose([n, n]).model.embed_dim for n in (50, 600, 5_000, 50_000)]
    assert widths == sorted(widths) and widths[0] < widths[-1]


def test_limits_hold_and_fall_to_the_smallest_size_and_model() -> None:
    for number, side in ((40, 300), (40, 20), (100_000, 300), (100_000, 20)):
        summary = describe([number, number], side, side)
        limits = list_limits(summary)
        assert limits[-1] == Limits(IMAGE_SIZES[0], 0)
        assert all(b.cost < a.cost for a, b in pairwise(limits))
        first = choose_experiment(summary, WISHES, limits[0])
        assert first == choose_experiment(summary, WISHES, NO_LIMITS)
        for each in limits:
            experiment = choose_experiment(summary, WISHES, each)
            assert experiment.data.image_size == each.image_size
            assert experiment.model.embed_dim == SHAPES[each.shape].embed_dim


def test_validation_images_are_set_aside_unless_there_are_some_or_too_few() -> None:
    for counts, fraction in (
        ([4, 100], 0),
        ([5, 5], 0.2),
        ([600, 600], 0.15),
        ([9_000, 20], 0.1),
    ):
        assert choose(counts).data.val_fraction == fraction
        assert choose(counts, validation=True).data.val_fraction == 0
    for number in (5, 50, 500):  # one of each class, at least
        summary = describe([number] * 40)
        train = count_training_images(choose_experiment(summary, WISHES), summary)
        assert 40 * number - train >= 40


def test_classes_are_weighted_only_if_one_is_over_three_times_as_large() -> None:
    assert choose([30, 10]).train.loss.class_weights == "none"
    assert choose([31, 10]).train.loss.class_weights == "balanced"


def test_unreadable_images_are_left_out() -> None:
    assert choose([30, 30]).data.on_error == "stop"
    assert choose([30, 30], unreadable=1).data.on_error == "skip"


@pytest.mark.parametrize("side", [40, 300])
@pytest.mark.parametrize("epochs", [1, 300])
def test_flips_are_on_unless_they_are_turned_off(side: int, epochs: int) -> None:
    summary = describe([30, 30], side, side)
    experiment = choose_experiment(summary, WISHES, epochs=epochs)
    assert experiment.data.resolved_augmentation.flip == "horizontal"
    wishes = replace(WISHES, flip=False)
    experiment = choose_experiment(summary, wishes, epochs=epochs)
    assert experiment.data.resolved_augmentation.flip == "none"


@pytest.mark.parametrize("side", [40, 300])
def test_only_long_runs_have_strong_augmentation(side: int) -> None:
    long = choose([600, 600], 300, width=side, height=side).data.resolved_augmentation
    short = choose([600, 600], 90, width=side, height=side).data.resolved_augmentation
    assert long.is_mixed and long.policy == "trivialaugment" and long.erase
    assert not short.is_mixed and short.policy == "none"


def test_large_images_stay_decoded_if_they_fit_into_memory() -> None:
    few, many = (choose([n, n]).data.resolved_augmentation for n in (600, 60_000))
    assert few.scale is None and few.crop_padding > 0
    assert many.scale is not None


@pytest.mark.parametrize("epochs", [1, 2, 9, 300])
def test_the_warm_up_ends_before_the_training(epochs: int) -> None:
    train = choose([600, 600], epochs).train
    assert train.epochs == epochs
    assert train.schedule.warmup_epochs < epochs
    assert 0.9 <= train.ema_decay <= 0.999


def test_the_sizes_of_a_model_to_start_from_are_kept() -> None:
    start = ViTConfig(image_size=48, patch_size=8, embed_dim=32, num_heads=2)
    wishes = replace(WISHES, init="runs/x/0", start=start)
    experiment = choose_experiment(describe([30] * 3), wishes)
    assert experiment.model == replace(start, num_classes=3)
    assert experiment.data.image_size == 48 and experiment.init == "runs/x/0"
    assert experiment.train.lr < choose([30] * 3).train.lr
    with pytest.raises(UserError, match="square RGB"):
        choose_experiment(describe([30] * 3), replace(wishes, start=AiTConfig(num_channels=1)))
