"""The learning rate of each epoch, and of each step."""

import math
from dataclasses import replace

import pytest
import torch

from associative_transformer.experiment import (
    TrainConfig,
    fingerprint,
    identifying_fields,
)
from associative_transformer.optimization import Schedule
from associative_transformer.recipes import RECIPES
from associative_transformer.training.schedule import learning_rate


def test_the_default_learning_rate_is_that_of_the_paper() -> None:
    paper = TrainConfig()
    rates = [learning_rate(paper, epoch) for epoch in range(100)]
    warm_up = [1e-5, 2.8e-5, 4.6e-5, 6.4e-5, 8.2e-5, 1e-4]
    assert rates[:6] == pytest.approx(warm_up, rel=1e-12)
    assert f"{rates[99]:.2e}" == "1.88e-06"
    for epoch in range(5, 100):
        cosine = math.cos(math.pi * (epoch - 5) / 100)
        assert rates[epoch] == pytest.approx(1e-6 + 0.5 * (1e-4 - 1e-6) * (1 + cosine), rel=1e-12)
    assert max(rates) == rates[5]
    assert rates[5:] == sorted(rates[5:], reverse=True)


@pytest.mark.parametrize("warmup", [0, 1, 3])
def test_the_learning_rate_follows_the_configuration(warmup: int) -> None:
    train = TrainConfig(epochs=8, lr=1e-3, schedule=Schedule(warmup, warmup_lr=1e-4, min_lr=1e-5))
    for epoch in range(8):
        if epoch < warmup:
            expected = 1e-4 + epoch * (1e-3 - 1e-4) / warmup
        else:
            cosine = math.cos(math.pi * (epoch - warmup) / 8)
            expected = 1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + cosine)
        assert learning_rate(train, epoch) == pytest.approx(expected, rel=1e-12)


def test_an_inverse_square_root_falls_from_the_end_of_the_warm_up() -> None:
    schedule = Schedule(warmup_epochs=4, warmup_lr=0.0, shape="inverse_sqrt")
    train = TrainConfig(epochs=40, lr=0.01, schedule=schedule)
    rates = [learning_rate(train, epoch) for epoch in (0, 1, 4, 16, 36)]
    assert rates == pytest.approx([0.0, 0.0025, 0.01, 0.005, 0.01 / 3], rel=1e-12)
    without_warmup = replace(train, schedule=replace(schedule, warmup_epochs=0))
    assert [learning_rate(without_warmup, epoch) for epoch in (0, 1, 4)] == [0.01, 0.01, 0.005]


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_stable_rate_decays_linearly_at_the_end(share: float) -> None:
    schedule = Schedule(
        2, warmup_lr=0.0, min_lr=0.1, shape="warmup_stable_decay", per="step", decay_share=share
    )
    train = TrainConfig(epochs=20, lr=1.0, schedule=schedule)
    start = max(20 * (1 - share), 2)  # the warm-up comes first
    for epoch in (0, 0.5, 1, 2, 7, 14.5, 16, 19.75):
        left = (20 - epoch) / (20 * share)
        expected = epoch / 2 if epoch < 2 else 1.0 if epoch <= start and share < 1 else None
        expected = 0.1 + 0.9 * left if expected is None else expected
        assert learning_rate(train, epoch, 4) == pytest.approx(expected, rel=1e-12)


def test_one_cycle_equals_that_of_torch() -> None:
    epochs, lr = 20, 1e-3
    schedule = Schedule(6, warmup_lr=lr / 25, min_lr=lr / 25 / 1e4, shape="one_cycle")
    train = TrainConfig(epochs=epochs, lr=lr, schedule=schedule)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr)
    torch_schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=epochs, pct_start=7 / epochs
    )
    for epoch in range(epochs):
        expected = torch_schedule.get_last_lr()[0]
        assert learning_rate(train, epoch) == pytest.approx(expected, rel=1e-9)
        optimizer.step()
        torch_schedule.step()


# --- per step ---


def twin(train: TrainConfig, position: int, steps_per_epoch: int) -> float:
    """Return the rate of a step of the run, counted from 0, from the definition in words."""
    s, end = train.schedule, train.epochs * steps_per_epoch
    warmup = s.warmup_epochs * steps_per_epoch  # in steps, as everything here
    if position < warmup:
        done = position / warmup
        if s.shape == "one_cycle":
            done = math.sin(math.pi / 2 * done) ** 2
        return s.warmup_lr * (1 - done) + train.lr * done
    if s.shape == "inverse_sqrt":
        peak = max(warmup, steps_per_epoch)
        return train.lr * math.sqrt(peak / max(position, steps_per_epoch))
    length = end - 1 - warmup if s.shape == "one_cycle" else end
    left = math.cos(math.pi / 2 * (position - warmup) / max(length, 1)) ** 2
    return s.min_lr * (1 - left) + train.lr * left


def rates_of_steps(train: TrainConfig, steps_per_epoch: int) -> list[float]:
    return [
        learning_rate(train, epoch + step / steps_per_epoch, steps_per_epoch)
        for epoch in range(train.epochs)
        for step in range(steps_per_epoch)
    ]


SHAPES = ["cosine", "inverse_sqrt", "one_cycle"]


@pytest.mark.parametrize("warmup", [0, 1, 3, 4, 6])
@pytest.mark.parametrize("steps_per_epoch", [1, 2, 7])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_rate_of_each_step_equals_the_twin(
    shape: str, steps_per_epoch: int, warmup: int
) -> None:
    schedule = Schedule(warmup, warmup_lr=1e-4, min_lr=1e-5, shape=shape, per="step")
    train = TrainConfig(epochs=4, lr=1e-3, schedule=schedule)
    expected = [twin(train, i, steps_per_epoch) for i in range(4 * steps_per_epoch)]
    assert rates_of_steps(train, steps_per_epoch) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_per_epoch_all_steps_of_an_epoch_have_the_same_rate(shape: str) -> None:
    train = TrainConfig(epochs=5, lr=1e-3, schedule=Schedule(2, shape=shape))
    expected = [learning_rate(train, epoch) for epoch in range(5) for _ in range(3)]
    assert rates_of_steps(train, 3) == expected
    assert len(set(expected)) == 5


@pytest.mark.parametrize("shape", ["cosine", "inverse_sqrt"])
def test_the_first_step_of_an_epoch_has_the_rate_that_the_epoch_has_otherwise(shape: str) -> None:
    per_epoch = TrainConfig(epochs=9, lr=1e-3, schedule=Schedule(3, shape=shape))
    per_step = replace(per_epoch, schedule=replace(per_epoch.schedule, per="step"))
    assert rates_of_steps(per_step, 6)[::6] == rates_of_steps(per_epoch, 6)[::6]


def test_one_cycle_per_step_equals_that_of_torch_and_ends_at_its_lowest_rate() -> None:
    epochs, steps_per_epoch, lr = 5, 7, 1e-3
    schedule = Schedule(2, lr / 25, lr / 25 / 1e4, shape="one_cycle", per="step")
    train = TrainConfig(epochs=epochs, lr=lr, schedule=schedule)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr)
    total = epochs * steps_per_epoch
    torch_schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=total, pct_start=(2 * steps_per_epoch + 1) / total
    )
    rates = rates_of_steps(train, steps_per_epoch)
    for rate in rates:
        assert rate == pytest.approx(torch_schedule.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        torch_schedule.step()
    assert rates[-1] == pytest.approx(schedule.min_lr, rel=1e-12)
    assert max(rates) == rates[2 * steps_per_epoch] == lr
    assert rates[-1] < rates[-2]


def test_a_schedule_per_step_has_another_fingerprint_and_one_per_epoch_the_old_one() -> None:
    recipe = RECIPES["cifar10-ait-small"]
    train = recipe.train
    assert "train.schedule.per" not in identifying_fields(recipe)
    per_step = replace(recipe, train=replace(train, schedule=replace(train.schedule, per="step")))
    assert fingerprint(per_step) != fingerprint(recipe)
