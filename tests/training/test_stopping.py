"""The best epoch by each metric, and early stopping."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from associative_transformer.evaluate import Evaluation, evaluate_split
from associative_transformer.experiment import Experiment, TrainConfig
from associative_transformer.interface import UserError
from associative_transformer.optimization import Stopping
from associative_transformer.report.facts import read_facts
from associative_transformer.runs.checkpoint import TrainingState
from associative_transformer.training import loop as train_module
from associative_transformer.training import selection
from associative_transformer.training.loop import train
from making.trained import EXPERIMENT, Crash, assert_same_outcome, vary


def evaluation(accuracy: float = 50.0, loss: float = 1.0) -> Evaluation:
    """Return a validation of six classes: four items of class 0, two of them right; one of 5."""
    labels = torch.tensor([0, 0, 0, 0, 5])
    logits = torch.tensor([[6.0, 5, 4, 3, 2, 1]] * 2 + [[1.0, 6, 5, 4, 3, 2]] * 2)
    logits = torch.cat([logits, torch.tensor([[1.0, 2, 3, 4, 5, 6]])])
    predicted = logits.argmax(dim=-1)
    confusion = (labels * 6 + predicted).bincount(minlength=36).view(6, 6)
    return Evaluation(accuracy, loss, confusion, predicted, labels, logits)


def test_each_metric_scores_as_by_hand() -> None:
    scores = {name: score(evaluation(60.0, 1.5)) for name, score in selection.SCORES.items()}
    assert scores == {
        "accuracy": 60.0,
        "balanced_accuracy": 75.0,  # half of class 0, all of class 5
        "top5_accuracy": 60.0,  # class 0 is last in two of five rows
        "loss": -1.5,
    }


def follow(stopping: Stopping, losses: list[float]) -> tuple[int | None, int | None]:
    """Return the best epoch, and the epoch after which training stops."""
    config, state = TrainConfig(epochs=99, stopping=stopping), TrainingState()
    for epoch, loss in enumerate(losses, start=1):
        selection.record(state, stopping, evaluation(accuracy=epoch, loss=loss), epoch)
        if selection.is_done(state, config):
            return state.best_epoch, epoch
    return state.best_epoch, None


@pytest.mark.parametrize(
    ("stopping", "losses", "expected"),
    [
        (Stopping("loss"), [3, 1, 2, 2, 2, 2], (2, None)),
        (Stopping("accuracy"), [3, 1, 2, 2], (4, None)),
        (Stopping("loss", patience=2), [3, 1, 2, 2, 2], (2, 4)),
        (Stopping("loss", patience=2), [3, 1, 2, 0.5, 1, 0.4], (6, None)),
        (Stopping("loss", patience=2, min_delta=0.5), [3, 2.8, 2.6, 2.4], (3, 3)),
        (Stopping("loss", patience=3, min_delta=0.5), [3, 2.8, 2.6, 2.4, 2.3], (5, None)),
        (Stopping("loss", patience=2), [math.nan, math.inf, 1], (None, 2)),
    ],
    ids=str,
)
def test_the_best_epoch_and_the_stop_follow_the_metric(
    stopping: Stopping, losses: list[float], expected: tuple[int | None, int | None]
) -> None:
    assert follow(stopping, losses) == expected


def test_a_checkpoint_of_version_0_1_keeps_its_best_epoch() -> None:
    state = TrainingState(best_epoch=2, best_accuracy=60.0)
    assert not selection.record(state, Stopping(), evaluation(accuracy=55.0), 3)
    assert selection.record(state, Stopping(), evaluation(accuracy=61.0), 4)


STOPPING = vary(
    data={"val_fraction": 0.25}, batch_size=12, epochs=5, stopping=Stopping(patience=2)
)


def script_accuracies(patch: pytest.MonkeyPatch, accuracies: Any) -> None:  # noqa: ANN401
    def scripted(*arguments: Any) -> Evaluation:  # noqa: ANN401
        scored = evaluate_split(*arguments)
        is_test = int(scored.confusion.sum()) == EXPERIMENT.data.num_test
        return scored if is_test else scored._replace(accuracy=next(accuracies, 0.0))

    patch.setattr(train_module, "evaluate_split", scripted)


def test_a_run_that_stops_early_is_complete_and_the_same_if_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_accuracies(monkeypatch, iter([60.0, 50.0, 55.0, 90.0, 90.0]))
    result = train(STOPPING, tmp_path / "whole")
    assert (result.epochs, result.best_validation.epoch) == (3, 1)
    assert len((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()) == 3
    assert read_facts(tmp_path / "whole").progress == "complete after 3 epochs"

    def crash(folder: Path) -> None:
        if json.loads((folder / "checkpoint/last/state.json").read_text())["epoch"] == 2:
            raise Crash

    script_accuracies(monkeypatch, iter([60.0, 50.0]))
    with pytest.raises(Crash):
        train(STOPPING, tmp_path / "resumed", on_epoch_end=crash)
    script_accuracies(monkeypatch, iter([55.0, 90.0, 90.0]))
    train(STOPPING, tmp_path / "resumed", resume=True)
    assert_same_outcome(tmp_path / "resumed", tmp_path / "whole")


@pytest.mark.parametrize(
    ("experiment", "message"),
    [
        (vary(stopping=Stopping(patience=1)), "needs validation images"),
        (
            replace(STOPPING, train=replace(STOPPING.train, stopping=Stopping("top5_accuracy"))),
            "always 100 % with 2 classes",
        ),
    ],
    ids=["no validation", "two classes"],
)
def test_a_metric_that_cannot_choose_is_refused_before_anything_is_written(
    experiment: Experiment, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        train(experiment, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("wrong", [{"patience": 0}, {"min_delta": -1.0}, {"min_delta": math.nan}])
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        Stopping(**wrong)
