"""A search with Optuna: it continues where it was stopped, and prunes on validation accuracy."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from associative_transformer.experiment import Experiment
from associative_transformer.interface import UserError
from associative_transformer.recipes import RECIPES
from associative_transformer.runs.overrides import override
from associative_transformer.runs.result import RunResult
from associative_transformer.sweeps import search as module
from associative_transformer.sweeps.search import Search
from associative_transformer.sweeps.space import parse_search
from associative_transformer.training.signals import Interrupted
from making.plant import put_result, put_run, result_of

pytest.importorskip("optuna")
pytestmark = pytest.mark.interop

RECIPE = RECIPES["triangle-ait-tiny"]
BASE = override(RECIPE, {"data.val_fraction": 0.25, "train.epochs": 4}, "x")
WORDS = ("train.lr=1e-4..1e-2:log", "model.depth=1..3", "train.weight_decay=0.01,0.1")

Train = Callable[..., RunResult]
Score = Callable[[Experiment, int], float]  # validation accuracy after an epoch


def trainer(score: Score, trained: list[str], stop_at: int = -1) -> Train:
    """Return a function in place of `train`, which only writes what a run would."""

    def train(
        experiment: Experiment, folder: Path, *, resume: bool, on_epoch_end: Callable[[Path], None]
    ) -> RunResult:
        if len(trained) == stop_at:
            raise Interrupted(2)
        trained.append(experiment.name)
        assert resume == folder.exists()
        if not resume:
            put_run(folder.parents[1], experiment, experiment.train.seed)
        rows, accuracies = "", []
        for epoch in range(1, experiment.train.epochs + 1):
            accuracies.append(score(experiment, epoch))
            rows += f'{{"epoch": {epoch}, "validation": {{"accuracy": {accuracies[-1]}}}}}\n'
            (folder / "metrics.jsonl").write_text(rows)
            on_epoch_end(folder)
        best = {"epoch": 1, "validation_accuracy": max(accuracies), "test_accuracy": 1.0}
        best |= {"test_loss": 0.5, "test_images": 200}
        return put_result(folder, result_of(experiment, best_validation=best))

    return train


def search(root: Path, words: tuple[str, ...] = WORDS, base: Experiment = BASE) -> Search:
    (root / "sweep").mkdir(exist_ok=True, parents=True)
    space = parse_search(words, base)
    return Search(RECIPE, base, space, root / "runs", root / "sweep", lambda line: None)


def rate(experiment: Experiment, epoch: int) -> float:
    """Score a run by its learning rate: the smaller, the better."""
    return 90 - 1_000 * experiment.train.lr + epoch / 10


def values_of(found: Search) -> list[dict[str, Any]]:
    return [trial.values for trial in found.trials()]


def test_trials_stay_in_the_space_and_are_scored_on_validation_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "train", trainer(lambda e, epoch: rate(e, epoch), []))
    found = search(tmp_path)
    found.run(4)
    for trial in found.trials():
        assert 1e-4 <= trial.values["train.lr"] <= 1e-2
        assert trial.values["model.depth"] in (1, 2, 3)
        assert trial.values["train.weight_decay"] in (0.01, 0.1)
        best = 90 - 1_000 * trial.values["train.lr"] + 0.4
        assert trial.validation == pytest.approx((best,))


@pytest.mark.parametrize("stop_at", [0, 2, 5])
def test_a_search_that_was_stopped_continues_with_the_same_values(
    stop_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "train", trainer(rate, []))
    whole = search(tmp_path / "whole")
    whole.run(8)
    assert len(whole.trials()) == 8

    trained: list[str] = []
    monkeypatch.setattr(module, "train", trainer(rate, trained, stop_at))
    with pytest.raises(Interrupted):
        search(tmp_path / "stopped").run(8)
    monkeypatch.setattr(module, "train", trainer(rate, trained))
    again = search(tmp_path / "stopped")
    again.run(8)
    assert values_of(again) == values_of(whole)
    assert len(trained) == 8  # nothing was trained twice


def test_more_trials_can_be_added_and_none_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    monkeypatch.setattr(module, "train", trainer(rate, trained))
    for number in (2, 2, 3):
        found = search(tmp_path)
        found.run(number)
        assert len(found.trials()) == len(trained) == number


def test_another_seed_proposes_other_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "train", trainer(rate, []))
    found = []
    for seed in (0, 1):
        base = replace(BASE, train=replace(BASE.train, seed=seed))
        found.append(search(tmp_path / str(seed), base=base))
        found[-1].run(2)
    assert values_of(found[0]) != values_of(found[1])


def test_a_run_below_the_median_is_pruned_but_not_during_the_warm_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []

    def score(experiment: Experiment, epoch: int) -> float:
        return 90.0 - 10 * (len(trained) > 5)  # the first five are better than all others

    monkeypatch.setattr(module, "train", trainer(score, trained))
    warmup = {"train.schedule.warmup_epochs": 2}
    found = search(tmp_path, base=override(BASE, warmup, "x"))
    found.run(7)
    trials = found.trials()
    assert [trial.state for trial in trials] == ["complete"] * 5 + ["pruned"] * 2
    assert [trial.epochs for trial in trials[5:]] == [3, 3]
    assert trials[5].validation == (80.0,)


def test_a_combination_that_fails_is_named_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    whole = trainer(rate, trained)

    def train(experiment: Experiment, folder: Path, **options: Any) -> RunResult:  # noqa: ANN401
        if len(trained) == 1:
            trained.append("failed")
            raise UserError("the gradient was not finite")
        return whole(experiment, folder, **options)

    monkeypatch.setattr(module, "train", train)
    said: list[str] = []
    found = search(tmp_path)
    found.write = said.append
    found.run(3)
    assert [trial.state for trial in found.trials()] == ["complete", "failed", "complete"]
    assert "failed: the gradient was not finite" in said
    search(tmp_path).run(3)
    assert len(trained) == 3


def test_an_invalid_combination_does_not_end_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "train", trainer(rate, []))
    found = search(tmp_path, ("model.patch_size=7,32",))
    found.run(6)
    states = {trial.values["model.patch_size"]: trial.state for trial in found.trials()}
    assert states == {7: "failed", 32: "complete"}


def test_a_damaged_study_is_refused_with_how_to_fix_it(tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "study.db").write_text("junk")
    with pytest.raises(UserError, match=r"study.db .* remove it to start the search again"):
        search(tmp_path)
