"""The values that a sweep tries: how they are written, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from associative_transformer.experiment import list_fields
from associative_transformer.interface import UserError
from associative_transformer.recipes import RECIPES
from associative_transformer.sweeps.space import (
    Choice,
    Range,
    check_validation,
    combinations,
    describe,
    parse_grid,
    parse_search,
    vary,
)
from making.commands import make_images
from making.overrides import IMAGES

RECIPE = RECIPES["triangle-ait-tiny"]


@pytest.mark.parametrize(
    ("word", "field", "values"),
    [
        ("train.lr=1e-3,0.002", "train.lr", (0.001, 0.002)),
        ("train.batch-size=8,16", "train.batch_size", (8, 16)),
        ("train.clip_norm=None,1", "train.clip_norm", (None, 1)),
        ("train.compile=on,off", "train.compile", ("on", "off")),
        ("model.use_self_attention=true,false", "model.use_self_attention", (True, False)),
        ("train.betas=[0.9,0.99],[0.8,0.9]", "train.betas", ([0.9, 0.99], [0.8, 0.9])),
        ("train.freeze=none", "train.freeze", ("none",)),
    ],
)
def test_the_values_of_a_field_are_read_as_the_field_takes_them(
    word: str, field: str, values: tuple[object, ...]
) -> None:
    assert parse_grid((word,), RECIPE) == [Choice(field, values)]
    for value in values:
        assert list_fields(vary(RECIPE, {field: value}))[field] == value


def test_a_grid_is_the_cartesian_product() -> None:
    choices = parse_grid(("train.lr=0.1,0.2", "model.depth=1,2,3"), RECIPE)
    points = list(combinations(choices))
    assert len(points) == 6
    assert len({describe(point) for point in points}) == 6
    assert points[1] == {"train.lr": 0.1, "model.depth": 2}
    assert describe(points[1]) == "train.lr=0.1 model.depth=2"


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("train.lr=1e-4..1e-2:log", Range("train.lr", 1e-4, 1e-2, True, False)),
        ("train.lr=1..2", Range("train.lr", 1, 2, False, False)),  # a field of real numbers
        ("model.depth=2..6", Range("model.depth", 2, 6, False, True)),
        ("model.depth=2,6", Choice("model.depth", (2, 6))),
    ],
)
def test_a_range_has_whole_numbers_only_for_a_field_of_whole_numbers(
    word: str, expected: Choice | Range
) -> None:
    assert parse_search((word,), RECIPE) == [expected]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("train.lr", "--grid train.lr has no values: write FIELD=VALUE"),
        ("train.lr=", "has no values: write train.lr=VALUE"),
        ("train.lr=1,", "has an empty value"),
        ("train.lr=1e-3,0.001", "has the same value twice"),
        ("train.lr=1 train.lr=2", "names train.lr twice"),
        ("train.batch-size=8 train.batch_size=16", "names train.batch_size twice"),
        ("train.lrr=1", "no field train.lrr: did you mean train.lr?"),
        ("train.lr=abc", "train.lr: .* not 'abc'"),
        ("train.epochs=1.5", "train.epochs: .* not 1.5"),
        ("train.seed=0,1", "pass seeds with --seeds"),
        ("train.device=cpu", "train.device does not change what is learned"),
        ("name=a,b", "name does not change"),
        ("model.kind=vit", "sweep over recipes of each kind"),
        ("train.lr=[1", "'\\[1' is not a value"),
    ],
)
def test_a_grid_that_cannot_be_run_is_refused(words: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse_grid(tuple(words.split()), RECIPE)


def test_a_grid_with_too_many_combinations_is_refused() -> None:
    numbers = ",".join(map(str, range(1, 200)))
    with pytest.raises(UserError, match="39,601 combinations"):
        parse_grid((f"train.epochs={numbers}", f"model.depth={numbers}"), RECIPE)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("train.lr=1..", "two numbers as its ends"),
        ("train.lr=a..b", "two numbers as its ends"),
        ("train.lr=0.1..inf", "two numbers as its ends"),
        ("train.lr=2..1", "the first number must be below the second"),
        ("train.lr=0..1:log", "must be above 0 and below"),
        ("train.lr=1..2:lin", "ends in :lin"),
        ("model.depth=1.5..3", "model.depth: .* not 1.5"),
        ("train.seed=0..9", "pass seeds with --seeds"),
    ],
)
def test_a_range_that_cannot_be_searched_is_refused(word: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse_search((word,), RECIPE)


def test_a_value_that_is_valid_only_with_others_is_refused_with_its_combination() -> None:
    choices = parse_grid(("model.embed_dim=192", "model.patch_size=7,32"), RECIPE)
    first, second = combinations(choices)
    with pytest.raises(UserError, match=r"^model.embed_dim=192 model.patch_size=7: "):
        vary(RECIPE, first)
    assert vary(RECIPE, second) == RECIPE


# --- validation images ---


def test_data_without_validation_images_are_refused() -> None:
    for name in ("triangle-ait-tiny", "cifar10-ait-tiny", "sort-of-clevr-ait-tiny"):
        data = RECIPES[name].data
        with pytest.raises(UserError, match=r"pass --data.val-fraction"):
            check_validation(data)
        check_validation(replace(data, val_fraction=0.1))  # type: ignore[call-arg]


def test_the_validation_split_of_a_folder_is_enough(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images")
    data = replace(IMAGES.data, source=str(images))
    with pytest.raises(UserError, match="never on test images"):
        check_validation(data)
    more = make_images(tmp_path / "more")
    (more / "test").rename(images / "val")
    check_validation(data)
