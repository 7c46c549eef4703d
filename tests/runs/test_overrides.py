"""Overrides from a file: what they change, and what is refused."""

from pathlib import Path

import pytest

from associative_transformer.experiment import (
    Experiment,
    format_experiment,
    list_fields,
    parse_experiment,
)
from associative_transformer.interface import UserError
from associative_transformer.recipes import RECIPES
from associative_transformer.runs.overrides import find_field, override, read_overrides
from making.overrides import CIRCUMSTANCE_CHANGES, CONFIGURATION_CHANGES, changed

RECIPE = RECIPES["triangle-ait-tiny"]


def read(path: Path, text: str, recipe: Experiment = RECIPE) -> dict[str, object]:
    path.write_text(text)
    return read_overrides(path, recipe)


@pytest.mark.parametrize("name", RECIPES)
def test_a_complete_experiment_is_read_back_as_it_was_saved(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]
    values = read(tmp_path / "x.yaml", format_experiment(recipe), recipe)
    assert override(recipe, values, "x") == recipe


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("recipe", "values"), CONFIGURATION_CHANGES + CIRCUMSTANCE_CHANGES, ids=str
)
def test_every_field_can_be_overridden_by_a_file(
    recipe: Experiment, values: dict[str, object], tmp_path: Path
) -> None:
    other = changed(recipe, values)
    read_back = read(tmp_path / "x.yaml", format_experiment(other), recipe)
    assert override(recipe, read_back, "x") == other


def test_only_the_fields_in_the_file_change_and_names_may_have_hyphens(tmp_path: Path) -> None:
    text = "train: {lr: 2e-3, batch-size: 8, schedule: {shape: one_cycle}}\nmodel:\n  depth: 3\n"
    values = read(tmp_path / "x.yaml", text)
    before, after = list_fields(RECIPE), list_fields(override(RECIPE, values, "x"))
    changes = {name: value for name, value in after.items() if value != before[name]}
    expected = {"lr": 0.002, "batch_size": 8, "schedule.shape": "one_cycle"}
    assert changes == {f"train.{k}": v for k, v in expected.items()} | {"model.depth": 3}


def test_a_name_derived_from_the_recipe_is_derived_again_and_another_one_is_kept(
    tmp_path: Path,
) -> None:
    text = "train: {lr: 0.1}\nname: "
    assert "name" not in read(tmp_path / "x.yaml", f"{text}triangle-ait-tiny+0123abcd")
    assert read(tmp_path / "x.yaml", f"{text}mine")["name"] == "mine"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["must contain fields", "train: {lr: 0.1}"]),
        ("- 1", ["must contain fields"]),
        ("train: 3", ["train must contain fields, not 3"]),
        ("trian: {lr: 1}", ["no field trian", "did you mean train"]),
        ("train: {schedule: {warmup: 1}}", ["no field train.schedule.warmup", "warmup_"]),
        ("lr: 1", ["no field lr", "did you mean train.lr?"]),
        ("1: 2", ["no field 1"]),
        ("train: {lr: 1, lr: 2}", ["line 1", "'lr' twice"]),
        ("train: {lr: 1}\ntrain: {lr: 2}", ["'train' twice"]),
        ("train: [", ["not valid YAML"]),
        ("model: {kind: vit}", ["model.kind is vit", "choose a recipe of that kind"]),
        ("name: triangle-ait-small", ["`ait train triangle-ait-small`"]),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_name(
    text: str, words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path / "x.yaml", text)
    assert str(error.value).startswith(str(tmp_path / "x.yaml"))
    assert "\n" not in str(error.value)
    assert [word for word in words if word not in str(error.value)] == []


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        read_overrides(tmp_path / "gone.yaml", RECIPE)
    with pytest.raises(UserError, match="cannot read"):
        read_overrides(tmp_path, RECIPE)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("train.lr", "abc", "x: train.lr: .*, not 'abc'"),
        ("train.lr", -1, "x: train: lr must be positive, not -1"),
        ("data.num_train", 1.5, "x: data.num_train: .*, not 1.5"),
        ("train.precision", "float8", "x: train.precision: .*'bfloat16', not 'float8'"),
        ("train.betas", [0.9], "x: train.betas"),
        ("model.image_size", 32, "x: the images have 1 channels of 64x64 pixels"),
    ],
)
def test_an_invalid_value_is_refused_with_its_field(field: str, value: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        override(RECIPE, {field: value}, "x")


def test_a_field_is_found_by_its_name_or_by_its_option() -> None:
    recipe = RECIPES["cifar10-ait-tiny"]
    assert find_field("train.batch-size", recipe, "x") == "train.batch_size"
    assert find_field("--data.test-split", recipe, "x") == "data.splits.test_split"
    with pytest.raises(UserError, match=r"x: there is no field depth: did you mean model.depth"):
        find_field("depth", recipe, "x")


def test_a_duplicate_key_in_a_saved_experiment_is_not_dropped_silently(tmp_path: Path) -> None:
    text = format_experiment(RECIPE).replace("  lr: 0.001\n", "  lr: 0.001\n  lr: 0.5\n")
    with pytest.raises(UserError, match="'lr' twice"):
        read(tmp_path / "x.yaml", text)
    parse_experiment({**vars(RECIPE)}, "x")
