"""Command lines of `ait train`: what is written is what the option parser reads."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from associative_transformer.cli.options import parse
from associative_transformer.cli.train import TrainOptions
from associative_transformer.data.augment import RAW
from associative_transformer.experiment import Experiment
from associative_transformer.recipes import RECIPES
from associative_transformer.recipes.commands import format_options, train_arguments
from making.overrides import CIRCUMSTANCE_CHANGES, CONFIGURATION_CHANGES, changed, label

CHANGES = CONFIGURATION_CHANGES + CIRCUMSTANCE_CHANGES
SETTABLE = [(recipe, values) for recipe, values in CHANGES if "data.measured" not in values]


def read(words: list[str], recipe: Experiment) -> Experiment:
    """Return the experiment that `ait train` reads from its arguments."""
    train, name, *options = words
    assert (train, name) == ("train", recipe.name)
    return parse(TrainOptions, options, f"train {name}", TrainOptions(recipe)).experiment


# --- arguments of a training ---


def test_what_a_run_computes_is_not_an_option() -> None:
    recipe = RECIPES["cifar10-ait-tiny"]
    assert train_arguments(changed(recipe, {"data.measured": RAW}), recipe)[2:] == []


@pytest.mark.thorough
@pytest.mark.parametrize(("recipe", "values"), SETTABLE, ids=label)
def test_the_override_of_any_field_is_read_back(
    recipe: Experiment, values: dict[str, Any]
) -> None:
    experiment = changed(recipe, values)
    assert read(train_arguments(experiment, recipe), recipe) == experiment


@settings(max_examples=30)
@given(st.data())
def test_any_combination_of_overrides_is_read_back(data: st.DataObject) -> None:
    recipe = data.draw(st.sampled_from([recipe for recipe, _ in SETTABLE]))
    rows = [values for other, values in SETTABLE if other == recipe]
    values: dict[str, Any] = {}
    for row in data.draw(st.lists(st.sampled_from(rows), max_size=6)):
        values |= row
    try:
        experiment = changed(recipe, values)
    except ValueError:  # some of the changes exclude each other
        assume(False)
    assert read(train_arguments(experiment, recipe), recipe) == experiment


@settings(max_examples=30)
@given(
    st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    st.integers(min_value=0, max_value=2**63 - 1),
    st.none() | st.text(st.characters(min_codepoint=32, max_codepoint=0x24F), min_size=1),
)
def test_any_number_or_text_is_read_back(lr: float, seed: int, source: str | None) -> None:
    assume(source != "None")  # on a command line, this means no source
    recipe = RECIPES["cifar10-ait-tiny"]
    schedule = replace(recipe.train.schedule, min_lr=min(lr, recipe.train.schedule.min_lr))
    data = replace(recipe.data, source=source)
    train = replace(recipe.train, lr=lr, seed=seed, schedule=schedule)
    experiment = replace(recipe, data=data, train=train)
    assert read(train_arguments(experiment, recipe), recipe) == experiment


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_without_overrides_needs_no_options(name: str) -> None:
    assert train_arguments(RECIPES[name], RECIPES[name]) == ["train", name]


def test_options_are_fields_with_hyphens_in_the_order_of_their_names() -> None:
    recipe = RECIPES["cifar10-ait-tiny"]
    values = {"train.clip_norm": 0.5, "model.workspace.reset_each_epoch": True}
    words = train_arguments(changed(recipe, values), recipe)
    assert words[2:] == ["--model.workspace.reset-each-epoch", "--train.clip-norm", "0.5"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("triangle-ait-tiny", []),
        ("triangle-ait-tiny+1a2b3c4d", []),
        ("mine", ["--name", "mine"]),
        ("mine+more", ["--name", "mine+more"]),
        ("triangle-ait", ["--name", "triangle-ait"]),
    ],
)
def test_a_name_is_an_option_unless_the_command_derives_it(name: str, options: list[str]) -> None:
    recipe = RECIPES["triangle-ait-tiny"]
    assert train_arguments(replace(recipe, name=name), recipe)[2:] == options


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("cifar10-ait-tiny", r"data\.kind is triangle, but images in the recipe cifar10-ait-tiny"),
        ("triangle-vit-small", r"model\.kind is ait, but vit in the recipe triangle-vit-small"),
    ],
)
def test_a_recipe_of_another_kind_is_refused(recipe: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        train_arguments(RECIPES["triangle-ait-tiny"], RECIPES[recipe])


# --- options of any type ---


@dataclass(frozen=True)
class Inner:
    use_it: bool = False
    width: float | None = 0.5
    label: str | None = None


@dataclass(frozen=True)
class AllTypes:
    inner: Inner = field(default_factory=Inner)
    is_on: bool = True
    sizes: tuple[int, ...] = (1,)
    range: tuple[float, float] = (0.0, 1.0)
    names: tuple[str, ...] = ("a",)
    weights: dict[str, float] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, []),
        ({"is_on": False}, ["--no-is-on"]),
        ({"inner.use_it": True}, ["--inner.use-it"]),
        ({"inner.width": None}, ["--inner.width", "None"]),
        ({"inner.width": 1e-7}, ["--inner.width", "1e-07"]),
        ({"inner.width": -1e-7}, ["--inner.width=-1e-07"]),
        ({"inner.label": "--b c"}, ["--inner.label=--b c"]),
        ({"inner.label": ""}, ["--inner.label", ""]),
        ({"sizes": (3, 4)}, ["--sizes", "3", "4"]),
        ({"sizes": ()}, ["--sizes"]),
        ({"range": (-0.5, 1e-9)}, ["--range", "-0.5", "1e-09"]),
        ({"names": ("a b", "c")}, ["--names", "a b", "c"]),
        ({"weights": {"a": 1.5, "b c": -2.0}}, ["--weights", "a", "1.5", "b c", "-2.0"]),
        ({"sizes": [2], "is_on": False}, ["--no-is-on", "--sizes", "2"]),
    ],
    ids=str,
)
def test_options_of_every_type_are_read_back(values: dict[str, Any], words: list[str]) -> None:
    assert format_options(values) == words
    options = parse(AllTypes, words, "test", AllTypes())
    for name, value in values.items():
        parent, _, last = name.rpartition(".")
        parsed = getattr(options.inner if parent else options, last)
        assert parsed == (tuple(value) if isinstance(value, list) else value)
