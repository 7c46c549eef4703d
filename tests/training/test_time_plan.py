"""How many epochs fit into a time, with planted speeds instead of measured ones."""

from collections.abc import Callable

import pytest

from associative_transformer.data import ImagesConfig
from associative_transformer.data.summary import DataSummary, Sizes, SplitSummary, Spread
from associative_transformer.experiment import Experiment
from associative_transformer.recipes.own_images import Wishes
from associative_transformer.training.duration import parse_duration
from associative_transformer.training.throughput import Throughput
from associative_transformer.training.time_plan import MAX_EPOCHS, TimePlan, plan_time

WISHES = Wishes(ImagesConfig("leaves", source="leaves"), "fit-leaves")
PIXELS = Spread(300, 300, 300)


def describe(number: int) -> DataSummary:
    splits = (
        SplitSummary("training", {"a": number // 2, "b": number // 2}),
        SplitSummary("test", {"a": number // 10, "b": number // 10}),
    )
    return DataSummary("leaves", "", splits, Sizes(PIXELS, PIXELS, Spread(1, 1, 1)))


def machine(speed: float) -> tuple[Callable[[Experiment], Throughput], list[Experiment]]:
    """Return how fast a machine is, in pixels times squared width and depth, and what it ran."""
    measured = []

    def measure(experiment: Experiment) -> Throughput:
        measured.append(experiment)
        m, size = experiment.model, experiment.train.batch_size
        image = m.image_size**2 * m.embed_dim**2 * m.depth / speed
        return Throughput(size * image, image / 3, 0.05)

    return measure, measured


def seconds_of(plan: TimePlan, number: int) -> float:
    """Return the time of training, validation and two scores of the test images."""
    train, t = plan.experiment.train, plan.throughput
    validation = round(plan.experiment.data.val_fraction * number)
    steps = (number - validation) // train.batch_size
    epoch = steps * t.step + validation * t.scored_image + t.save
    return train.epochs * epoch + 0.4 * number * t.scored_image


@pytest.mark.parametrize("seconds", [120.0, 600.0, 3600.0])
@pytest.mark.parametrize("number", [200, 2_000, 20_000])
def test_the_run_takes_about_the_time_that_is_given(seconds: float, number: int) -> None:
    measure, measured = machine(1e10)
    plan = plan_time(describe(number), WISHES, lambda: seconds, 1.0, measure)
    taken = seconds_of(plan, number)
    assert taken < seconds
    if plan.experiment.train.epochs < MAX_EPOCHS:
        assert 0.7 * seconds < taken
        assert abs(plan.seconds - seconds) < 0.2 * seconds
    assert len(measured) <= 5  # measuring takes time, too


def test_more_time_never_means_smaller_images_and_a_fast_machine_needs_no_reduction() -> None:
    plans = [
        plan_time(describe(2_000), WISHES, lambda: 600.0, 1.0, machine(speed)[0])
        for speed in (1e8, 1e10, 1e15)
    ]
    sizes = [plan.experiment.data.image_size for plan in plans]
    assert sizes == sorted(sizes)
    assert [plan.is_reduced for plan in plans] == [True, True, False]
    assert plans[-1].experiment.train.epochs == MAX_EPOCHS


def test_if_no_epoch_fits_one_is_planned_with_the_smallest_model_and_its_time() -> None:
    plan = plan_time(describe(20_000), WISHES, lambda: 20.0, 1.0, machine(1e7)[0])
    assert plan.experiment.train.epochs == 1
    assert plan.experiment.data.image_size == 32
    assert plan.seconds > 100 and plan.is_reduced


def test_short_runs_are_not_compiled() -> None:
    short, long = (
        plan_time(describe(2_000), WISHES, remaining, 1.0, machine(1e10)[0]).experiment.train
        for remaining in (lambda: 600.0, lambda: 3600.0)
    )
    assert (short.compile, long.compile) == ("off", "auto")


def test_the_time_that_measuring_takes_is_not_spent_twice() -> None:
    measure, measured = machine(1e10)
    plan = plan_time(describe(2_000), WISHES, lambda: 600.0 - 100 * len(measured), 1.0, measure)
    left = 600.0 - 100 * len(measured)
    assert measured and 0.7 * left < plan.seconds <= left


def test_times_are_read() -> None:
    for text, seconds in {"90s": 90, "10m": 600, "1h": 3600, "1h30m": 5400, "2H": 7200}.items():
        assert parse_duration(text) == seconds
    for text in ("", "10", "m", "0s", "-5m", "30m1h", "1.5h", "10 m", "10min"):
        with pytest.raises(ValueError, match="90s, 10m or 1h30m"):
            parse_duration(text)
