"""The learning rate of each epoch."""

import math
from dataclasses import replace

import pytest
import torch

from associative_transformer.experiment import Schedule, TrainConfig
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
