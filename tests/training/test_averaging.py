"""The moving average of the weights: its equation, the memory, and what is saved."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from associative_transformer.runs.saved import load_run
from associative_transformer.training.loop import train
from making.steps import make_batch, make_step, same, spoil
from making.trained import vary

DECAY = 0.6


def weights(step: object) -> list[Tensor]:
    return [p.detach().clone() for p in step.model.parameters()]  # type: ignore[attr-defined]


def test_the_average_follows_its_equation() -> None:
    step = make_step(ema_decay=DECAY)
    expected, batch = weights(step), make_batch()
    for n in range(1, 16):
        step(batch)
        decay = min(DECAY, (1 + n) / (10 + n))  # 0.6 from step 13 on
        pairs = zip(expected, weights(step), strict=True)
        expected = [decay * average + (1 - decay) * weight for average, weight in pairs]
    assert step.average is not None
    for ours, theirs in zip(step.average.averages, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_decay_has_an_upper_limit() -> None:
    step = make_step(ema_decay=0.0)
    step(make_batch())
    assert step.average is not None
    assert same(step.average.averages, weights(step))


def test_a_bad_step_is_not_averaged() -> None:
    step = make_step(ema_decay=DECAY)
    step(make_batch())
    assert step.average is not None
    before = deepcopy(step.average.state_dict())
    step(spoil(make_batch()))
    after = step.average.state_dict()
    assert same(before["averages"], after["averages"])
    assert before["num_updates"] == after["num_updates"] == 1


def test_the_model_has_averaged_weights_and_its_current_memory_only_inside_the_block() -> None:
    step = make_step(ema_decay=DECAY)
    step(make_batch())
    assert step.average is not None
    own, averages = weights(step), [x.clone() for x in step.average.averages]
    memory = [buffer.clone() for buffer in step.model.buffers()]
    assert not same(own, averages)
    with step.averaged():
        assert same(weights(step), averages)
        assert same(list(step.model.buffers()), memory)
    assert same(weights(step), own)
    assert same(step.average.averages, averages)


def test_the_average_does_not_change_the_training() -> None:
    torch.manual_seed(0)
    plain = make_step()
    torch.manual_seed(0)
    averaged = make_step(ema_decay=DECAY)
    batch = make_batch()
    for step in (plain, averaged):
        torch.manual_seed(1)
        step(batch)
        with step.averaged():
            pass
        step(batch)
    assert same(weights(plain), weights(averaged))


@pytest.mark.parametrize("val_fraction", [0.0, 0.25])
def test_the_saved_model_has_the_averaged_weights(val_fraction: float, tmp_path: Path) -> None:
    """With a decay of nearly 0, they are those of the last step; the warm-up limits others."""
    data = {"val_fraction": val_fraction}
    plain = vary(data=data, batch_size=12, epochs=1)
    scores = []
    for name, ema_decay in (("plain", None), ("same", 0.0), ("other", 0.9)):
        folder = tmp_path / name
        experiment = replace(plain, train=replace(plain.train, ema_decay=ema_decay))
        result = train(experiment, folder)
        model = load_run(folder).model
        scores.append((list(map(torch.clone, model.parameters())), result.test_loss))
    (own, loss), (same_weights, same_loss), (other, other_loss) = scores
    assert same(own, same_weights)
    assert loss == same_loss
    assert not same(own, other)
    assert loss != other_loss
