"""Runs that were started before a default changed, and how a recipe finds and continues them."""

from dataclasses import replace
from pathlib import Path

import pytest

from associative_transformer.experiment import Experiment, fingerprint, list_fields
from associative_transformer.models.ait import AiTConfig
from associative_transformer.recipes import RECIPES
from associative_transformer.runs.defaults import (
    CHANGED_DEFAULTS,
    as_started,
    named,
    old_defaults,
    run_folder,
    with_fields,
)
from associative_transformer.runs.folder import check_folder
from making.plant import put_run

RECIPE = RECIPES["triangle-ait-tiny"]
DROPOUT = "model.workspace.dropout"
OLD = with_fields(RECIPE, {DROPOUT: 0.0})
SHORT = with_fields(RECIPE, {"train.epochs": 2})
OLD_SHORT = with_fields(OLD, {"train.epochs": 2})


def test_each_changed_default_is_that_of_a_recipe_and_differs_from_the_old_one() -> None:
    fields = list_fields(RECIPE)
    for name, change in CHANGED_DEFAULTS.items():
        assert fields[name] == change.now != change.before


def test_only_fields_that_have_the_default_of_today_have_an_old_one() -> None:
    assert old_defaults(RECIPE) == {DROPOUT: 0.0}
    assert old_defaults(RECIPE, given=[DROPOUT]) == {}
    assert old_defaults(with_fields(RECIPE, {DROPOUT: 0.3})) == {}
    for name in ("cifar10-ait-small-nodropout", "cifar10-ait-image-tiny", "triangle-vit-small"):
        assert old_defaults(RECIPES[name]) == {}


def test_fields_are_replaced_by_their_dotted_names() -> None:
    changed = with_fields(RECIPE, {"name": "mine", "train.lr": 0.5, DROPOUT: 0.25})
    assert isinstance(changed.model, AiTConfig) and isinstance(RECIPE.model, AiTConfig)
    workspace = replace(RECIPE.model.workspace, dropout=0.25)
    model, train = replace(RECIPE.model, workspace=workspace), replace(RECIPE.train, lr=0.5)
    assert changed == replace(RECIPE, name="mine", model=model, train=train)


def test_a_run_is_named_after_its_recipe_and_the_fingerprint_of_its_overrides() -> None:
    assert named(RECIPE, RECIPE) == RECIPE
    assert named(SHORT, RECIPE).name == f"{RECIPE.name}+{fingerprint(SHORT)}"
    assert named(replace(SHORT, name="mine"), RECIPE).name == "mine"
    assert run_folder(RECIPE, Path("runs")) == Path("runs/triangle-ait-tiny/0")


@pytest.mark.parametrize(
    ("saved", "today", "folder"),
    [
        (OLD, RECIPE, RECIPE.name),
        (replace(OLD_SHORT, name="mine"), replace(SHORT, name="mine"), "mine"),
        (named(OLD_SHORT, OLD), SHORT, f"{RECIPE.name}+{fingerprint(OLD_SHORT)}"),
    ],
    ids=["recipe", "own name", "overrides"],
)
def test_a_run_keeps_the_default_it_was_started_with_and_a_line_says_so(
    saved: Experiment,
    today: Experiment,
    folder: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = put_run(tmp_path, saved)
    assert path == tmp_path / folder / "0"
    resumed = as_started(today, RECIPE, tmp_path)
    assert resumed == saved
    assert run_folder(resumed, tmp_path) == path
    check_folder(path, resumed, resume=True, overwrite=False)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path} keeps {DROPOUT} 0.0" in line
    assert "to train with 0.1, pass --overwrite or another --name" in line


@pytest.mark.parametrize(
    ("saved", "today", "given"),
    [
        (RECIPE, RECIPE, []),  # started after the change
        (named(SHORT, RECIPE), SHORT, []),
        (OLD, RECIPE, [DROPOUT]),  # set by the user, to the default of today
        (OLD, with_fields(RECIPE, {DROPOUT: 0.3}), [DROPOUT]),
        (None, SHORT, []),  # there is no run
        (OLD, SHORT, []),  # another run
    ],
    ids=["new", "new overrides", "given", "another value", "no run", "another run"],
)
def test_otherwise_the_experiment_is_that_of_today(
    saved: Experiment | None,
    today: Experiment,
    given: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if saved is not None:
        put_run(tmp_path, saved)
    assert as_started(today, RECIPE, tmp_path, given) == named(today, RECIPE)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("saved", "now"),
    [
        (OLD, OLD),  # the default then, an option now
        (named(RECIPE, OLD), RECIPE),  # an option then, the default now
        (named(SHORT, OLD), SHORT),
    ],
    ids=["default then", "option then", "option then, and others"],
)
def test_a_run_is_found_if_an_option_sets_the_default_of_the_other_time(
    saved: Experiment, now: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = put_run(tmp_path, saved)
    resumed = as_started(now, RECIPE, tmp_path, given=[DROPOUT])
    assert resumed == saved
    check_folder(path, resumed, resume=True, overwrite=False)
    assert capsys.readouterr().err == ""


def test_a_run_with_the_other_default_is_not_mistaken_for_that_of_an_option(
    tmp_path: Path,
) -> None:
    put_run(tmp_path, RECIPE)
    assert as_started(OLD, RECIPE, tmp_path, given=[DROPOUT]) == named(OLD, RECIPE)


def test_a_run_of_today_comes_before_one_that_was_started_earlier(tmp_path: Path) -> None:
    for saved in (named(OLD_SHORT, OLD), named(SHORT, RECIPE)):
        put_run(tmp_path, saved)
    assert as_started(SHORT, RECIPE, tmp_path) == named(SHORT, RECIPE)


def test_other_differences_from_the_saved_run_remain(tmp_path: Path) -> None:
    put_run(tmp_path, replace(OLD, name="mine"))
    resumed = as_started(replace(SHORT, name="mine"), RECIPE, tmp_path)
    assert resumed == replace(OLD_SHORT, name="mine")
