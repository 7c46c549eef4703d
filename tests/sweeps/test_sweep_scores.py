"""The scores of a sweep: validation accuracy alone decides, and the files hold the same."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from associative_transformer.experiment import list_fields
from associative_transformer.recipes import RECIPES
from associative_transformer.runs.overrides import override
from associative_transformer.runs.plan import PlannedRun, plan_variants
from associative_transformer.sweeps.scores import (
    Trial,
    score_runs,
    sort_trials,
    tabulate_trials,
    train_on_all,
    write_scores,
)
from making.plant import put_run, result_of

RECIPE = RECIPES["triangle-ait-tiny"]
BASE = override(RECIPE, {"data.val_fraction": 0.25}, "x")


def plan(root: Path, *rates: float, seeds: tuple[int, ...] = (0,)) -> list[PlannedRun]:
    variants = {str(rate): override(BASE, {"train.lr": rate}, "x") for rate in rates}
    return plan_variants(RECIPE, variants, seeds, root)


def complete(run: PlannedRun, validation: float, test: float) -> None:
    best = {"epoch": 2, "validation_accuracy": validation, "test_accuracy": test}
    best |= {"test_loss": 0.5, "test_images": 200}
    result = result_of(run.experiment, test, best_validation=best)
    put_run(run.runs, run.experiment, run.experiment.train.seed, result)


def test_the_order_is_that_of_the_validation_accuracy_whatever_the_test_accuracy(
    tmp_path: Path,
) -> None:
    runs = plan(tmp_path, 0.1, 0.2, 0.3)
    for run, validation, test in zip(runs, (50, 70, 60), (99, 1, 50), strict=True):
        complete(run, validation, test)
    trials = [score_runs({"train.lr": run.label}, [run], "failed") for run in runs]
    ordered = sort_trials(trials)
    assert [trial.values["train.lr"] for trial in ordered] == ["0.2", "0.3", "0.1"]
    (group,) = tabulate_trials("x", ordered).groups
    assert [row[2] for row in group.rows] == ["70.00", "60.00", "50.00"]
    assert not any("99" in cell for row in group.rows for cell in row[:-1])


def test_a_combination_is_complete_only_with_all_of_its_seeds(tmp_path: Path) -> None:
    runs = plan(tmp_path, 0.1, seeds=(0, 1))
    complete(runs[0], 90.0, 50.0)
    trial = score_runs({"train.lr": 0.1}, runs, "failed")
    assert (trial.state, trial.validation) == ("failed", (90.0,))
    complete(runs[1], 80.0, 50.0)
    trial = score_runs({"train.lr": 0.1}, runs, "failed")
    assert (trial.state, trial.score) == ("complete", 85.0)


def trial(state: Any, *validation: float, lr: object = 0.1) -> Trial:  # noqa: ANN401
    return Trial(values={"train.lr": lr}, state=state, validation=validation, folders=("r",))


def test_unfinished_combinations_come_last_and_have_no_rank() -> None:
    trials = [trial("failed"), trial("pruned", 99.0), trial("complete", 50.0)]
    ordered = sort_trials(trials)
    assert [each.state for each in ordered] == ["complete", "pruned", "failed"]
    (group,) = tabulate_trials("x", ordered).groups
    assert [row[0] for row in group.rows] == ["1", "-", "-"]


def test_the_files_hold_every_trial_and_no_formula(tmp_path: Path) -> None:
    trials = [trial("complete", 50.0, 60.0), trial("failed", lr="=1+1")]
    write_scores(tmp_path / "new" / "folder", trials, {"recipe": "x"})
    folder = tmp_path / "new" / "folder"
    with (folder / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["train.lr"] for row in rows] == ["0.1", "'=1+1"]
    assert [row["validation_accuracy"] for row in rows] == ["55.0", ""]
    content = json.loads((folder / "sweep.json").read_text())
    assert (content["recipe"], content["scored_on"]) == ("x", "validation")
    assert [each["validation"] for each in content["trials"]] == [[50.0, 60.0], []]


def test_a_link_in_place_of_the_table_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "table.csv").symlink_to("precious")
    write_scores(tmp_path, [trial("complete", 50.0)], {})
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "table.csv").is_symlink()


@pytest.mark.parametrize("name", [RECIPE.name, "mine"])
def test_the_best_combination_is_trained_on_all_images_in_another_folder(name: str) -> None:
    base = replace(BASE, name=name)
    variant = {"x": override(base, {"train.lr": 0.25}, "x")}
    (run,) = plan_variants(RECIPE, variant, [3], Path("r"))
    words = train_on_all(run, RECIPE)
    assert words is not None
    assert "--data.val-fraction" not in words
    assert words[-6:] == ["--train.lr", "0.25", "--train.seed", "3", "--runs", "r"]
    assert ("--name" in words) == (name == "mine")
    assert run.experiment.name not in words
    assert list_fields(run.experiment)["data.val_fraction"] == 0.25


def test_without_images_to_add_there_is_no_such_command() -> None:
    (run,) = plan_variants(RECIPE, {"x": RECIPE}, [0], Path("r"))
    assert train_on_all(run, RECIPE) is None
