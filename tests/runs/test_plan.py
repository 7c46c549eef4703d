"""Planned runs: which runs a table, several seeds or a sweep consist of."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from associative_transformer.experiment import Experiment, save_experiment
from associative_transformer.interface import UserError
from associative_transformer.recipes import RECIPES
from associative_transformer.recipes.budgets import shorten
from associative_transformer.runs.overrides import override
from associative_transformer.runs.plan import plan_runs, plan_variants
from associative_transformer.tables.collect import collect_runs
from making.damage import DAMAGES
from making.plant import put_result, put_run, result_of

A = "triangle-vit-small"


# --- the plan ---


def test_all_recipes_of_a_seed_come_before_the_next_seed() -> None:
    names = ["triangle-vit-small", "cifar10-luna-lra"]
    runs = plan_runs(names, "paper", [2, 0], Path("r"), {})
    assert [(run.recipe, run.experiment.train.seed) for run in runs] == [
        ("triangle-vit-small", 2),
        ("cifar10-luna-lra", 2),
        ("triangle-vit-small", 0),
        ("cifar10-luna-lra", 0),
    ]
    assert runs[1].folder == Path("r/cifar10-luna-lra/2")
    for run in runs:
        recipe = RECIPES[run.recipe]
        train = replace(recipe.train, seed=run.experiment.train.seed)
        assert run.experiment == replace(recipe, train=train)
    assert runs[3].title == "cifar10-luna-lra, seed 0"


@pytest.mark.parametrize("budget", ["short", "smoke"])
def test_a_budget_has_its_own_folder(budget: str) -> None:
    (run,) = plan_runs(["triangle-vit-small"], budget, [1], Path("r"), {})
    shortened = shorten(RECIPES["triangle-vit-small"], budget)
    assert run.folder == Path("r") / shortened.name / "1"
    assert run.folder.parent.name != "triangle-vit-small"
    assert run.experiment == replace(shortened, train=replace(shortened.train, seed=1))


def test_a_local_copy_is_used_for_the_data_set_of_its_name() -> None:
    names = ["cifar10-ait-small", "cifar100-ait-small", "triangle-ait-small"]
    runs = plan_runs(names, "paper", [0], Path("r"), {"cifar10": Path("copy")})
    assert [run.arguments for run in runs] == [
        ["train", names[0], "--data.source", "copy", "--runs", "r"],
        ["train", names[1], "--runs", "r"],
        ["train", names[2], "--runs", "r"],
    ]
    assert runs[0].folder == Path("r/cifar10-ait-small/0")


@pytest.mark.parametrize(
    ("name", "budget", "flags"),
    [
        ("cifar10-ait-small", "paper", ""),
        ("cifar10-ait-small", "short", "--train.epochs 10 --train.schedule.warmup-epochs 1"),
        (
            "cifar10-brims-source",
            "smoke",
            "--data.limit 40 --train.batch-size 20 --train.epochs 1",
        ),
        (
            "sort-of-clevr-cnn-rn",
            "smoke",
            "--data.num-questions 1 --data.num-test 40 --data.num-train 40 "
            "--train.batch-size 20 --train.epochs 1",
        ),
        ("triangle-ait-tiny", "short", ""),
    ],
)
def test_the_command_of_a_run_has_the_overrides_of_its_budget(
    name: str, budget: str, flags: str
) -> None:
    (run,) = plan_runs([name], budget, [3], Path("r"), {})
    seed_and_folder = ["--train.seed", "3", "--runs", "r"]
    assert run.arguments == ["train", name, *flags.split(), *seed_and_folder]


def test_an_unfinished_run_is_resumed_and_a_run_with_a_result_is_complete(tmp_path: Path) -> None:
    (run,) = plan_runs(["triangle-ait-tiny"], "paper", [0], tmp_path, {})
    run.folder.mkdir(parents=True)
    assert "--resume" not in run.arguments
    save_experiment(run.experiment, run.folder / "experiment.yaml")
    assert run.arguments[-1] == "--resume"
    assert not run.is_complete
    put_result(run.folder, result_of(run.experiment))
    assert run.is_complete


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["result.json", "experiment.yaml"])
def test_a_run_with_a_damaged_file_is_not_complete_and_is_resumed(
    file: str, damage: str, tmp_path: Path
) -> None:
    (run,) = plan_runs([A], "paper", [0], tmp_path, {})
    put_run(tmp_path, run.experiment, 0, result_of(run.experiment))
    assert run.is_complete
    DAMAGES[damage](run.folder / file)
    assert not run.is_complete
    assert run.arguments[-1] == "--resume"


def change(experiment: Experiment, **train: Any) -> Experiment:  # noqa: ANN401
    return replace(experiment, train=replace(experiment.train, **train))


@pytest.mark.parametrize(
    ("changes", "is_complete"),
    [({"lr": 0.5}, False), ({"seed": 1}, False), ({"device": "cpu"}, True)],
    ids=["other configuration", "other seed", "other device"],
)
def test_only_a_run_of_the_planned_experiment_is_complete(
    changes: dict[str, Any], is_complete: bool, tmp_path: Path
) -> None:
    (run,) = plan_runs([A], "paper", [0], tmp_path, {})
    put_run(tmp_path, run.experiment, 0, result_of(run.experiment))
    save_experiment(change(run.experiment, **changes), run.folder / "experiment.yaml")
    assert run.is_complete == is_complete
    used = collect_runs(tmp_path, RECIPES).take(RECIPES[A])
    assert list(used.complete) == [0] * is_complete or changes == {"seed": 1}


def test_a_result_in_a_folder_that_is_not_a_run_is_not_complete(tmp_path: Path) -> None:
    (run,) = plan_runs([A], "paper", [0], tmp_path, {})
    put_run(tmp_path, run.experiment, 0, result_of(run.experiment))
    (run.folder / "experiment.yaml").unlink()
    assert not run.is_complete


# --- variants of a recipe ---


def variants(recipe: Experiment, *rates: float) -> dict[str, Experiment]:
    return {f"lr={rate}": override(recipe, {"train.lr": rate}, "lr") for rate in rates}


def test_each_variant_and_seed_has_its_own_folder_and_a_command_that_repeats_it() -> None:
    recipe = RECIPES[A]
    runs = plan_variants(recipe, variants(recipe, 0.25, 0.5), [3, 4], Path("r"))
    assert [run.title for run in runs] == [
        "lr=0.25, seed 3",
        "lr=0.5, seed 3",
        "lr=0.25, seed 4",
        "lr=0.5, seed 4",
    ]
    assert len({run.folder for run in runs}) == 4
    assert all(run.folder.parent.name.startswith(f"{A}+") for run in runs)
    assert runs[3].arguments == [
        "train",
        A,
        *["--train.lr", "0.5", "--train.seed", "4", "--runs", "r"],
    ]


def test_a_variant_that_is_the_recipe_itself_shares_its_folder() -> None:
    recipe = RECIPES[A]
    (run,) = plan_variants(recipe, {"same": recipe}, [0], Path("r"))
    assert run.folder == Path("r", A, "0")


def test_variants_with_a_name_of_their_own_do_not_share_a_folder() -> None:
    mine = replace(RECIPES[A], name="mine")
    runs = plan_variants(RECIPES[A], variants(mine, 0.25, 0.5), [0], Path("r"))
    names = [run.folder.parent.name for run in runs]
    assert len(set(names)) == 2
    for run, name in zip(runs, names, strict=True):
        assert name.startswith("mine+")
        assert run.arguments[2:4] == ["--name", name]


def test_equal_variants_are_refused() -> None:
    recipe = RECIPES[A]
    same = {"first": recipe, "second": override(recipe, {"train.device": "cpu"}, "device")}
    with pytest.raises(UserError, match="first and second are the same experiment"):
        plan_variants(recipe, same, [0], Path("r"))
