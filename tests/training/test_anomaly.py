"""Values that are not finite: the error names their source."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from associative_transformer.experiment import TrainConfig
from associative_transformer.interface import UserError
from associative_transformer.models import build_model
from associative_transformer.training.anomaly import find_anomaly
from associative_transformer.training.loop import train
from associative_transformer.training.signals import Interrupted
from associative_transformer.workspace import GlobalWorkspace
from making.steps import make_batch, make_step, same, snapshot, spoil
from making.trained import EXPERIMENT, ON_TRIANGLES, Steps, assert_same_outcome, vary

read = GlobalWorkspace.read


def with_nan_backward(*args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
    tokens = read(*args, **kwargs)
    return tokens + (tokens.sum() * 0).sqrt()  # its gradient: 0 * infinity


def with_infinity(*args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
    return read(*args, **kwargs) * torch.inf


@pytest.mark.parametrize(
    ("reading", "words"),
    [
        (with_nan_backward, ["operation MulBackward0", "test_anomaly.py", "with_nan_backward"]),
        (
            with_infinity,
            ["blocks.0.workspace (GlobalWorkspace) returned values that are not finite"],
        ),
    ],
    ids=["backward", "forward"],
)
def test_a_run_stops_and_names_the_operation(
    reading: Callable[..., Tensor],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(GlobalWorkspace, "read", reading)
    with pytest.raises(UserError) as error:
        train(vary(detect_anomaly=True), tmp_path / "run")
    assert [word for word in [*words, "--train.lr"] if word not in str(error.value)] == []


def test_an_image_that_is_not_finite_is_distinguished_from_an_operation() -> None:
    step = make_step(detect_anomaly=True)
    with pytest.raises(
        UserError, match=r"\(.+\) received and returned values .* check the images"
    ):
        step(spoil(make_batch()))


def test_an_infinite_gradient_is_reported_with_its_parameter() -> None:
    step = make_step(detect_anomaly=True)
    step.model.head[2].weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(UserError, match=r"gradient of head\.2\.weight is not finite"):
        step(make_batch())


def test_without_an_anomaly_the_step_is_the_same_and_leaves_no_hooks() -> None:
    ours, theirs = make_step(detect_anomaly=True), make_step()
    theirs.model.load_state_dict(ours.model.state_dict())
    for _ in range(2):
        batch = make_batch()
        assert torch.equal(ours(batch), theirs(batch))
    assert same(snapshot(ours), snapshot(theirs))
    assert not any(module._forward_hooks for module in ours.model.modules())
    assert not torch.is_anomaly_enabled()


@pytest.mark.parametrize("kind", ON_TRIANGLES)
def test_no_model_is_stopped_without_an_anomaly(kind: str) -> None:
    model = build_model(ON_TRIANGLES[kind])
    step = make_step(model, detect_anomaly=True, batch_size=4, accumulation_steps=2)
    for _ in range(2):
        step(make_batch(4))
    assert step.skipped.total == 0


def test_other_errors_of_the_step_are_raised_unchanged() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="out of memory"), find_anomaly(model):
        raise RuntimeError("out of memory")
    assert not model._forward_hooks


def test_a_run_resumed_with_anomaly_detection_gives_the_same_result(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Steps(interrupts={6}).install(monkeypatch)
    with pytest.raises(Interrupted):
        train(EXPERIMENT, tmp_path / "run")
    train(vary(detect_anomaly=True), tmp_path / "run", resume=True)
    assert_same_outcome(tmp_path / "run", undisturbed)


def test_a_compiled_model_cannot_be_inspected() -> None:
    with pytest.raises(ValueError, match="detect_anomaly cannot inspect a compiled model"):
        TrainConfig(compile="on", detect_anomaly=True)
