"""`ait list`: the table of recipes."""

import re

import pytest

from associative_transformer.recipes import PUBLISHED_TEXT, RECIPES
from making.commands import Ait, assert_refused


def test_the_list_shows_every_recipe_with_size_and_published_accuracy(ait: Ait) -> None:
    done = ait("list")
    assert done.code == 0
    rows = {line.split()[1]: line for line in done.out.splitlines() if line.startswith("│")}
    assert list(rows) == list(RECIPES)
    for words in ("cifar10 ", "ait, 2 layers of 768", " 100 ", "15,673,322", "83.34 %"):
        assert words in rows["cifar10-ait-small"]
    for name, row in rows.items():
        assert ("%" in row) == (name in PUBLISHED_TEXT)
    assert_refused(ait("list", "--all"), "--all")


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (
            ["cifar10-", "luna"],
            ["cifar10-luna-base", "cifar10-luna-small", "cifar10-luna-lra", "cifar10-laptop-luna"],
        ),
        (["luna-b", "cifar10"], ["cifar10-luna-base", "cifar100-luna-base"]),
        (
            ["set-transformer-p"],
            ["triangle-set-transformer-p32", "sort-of-clevr-set-transformer-p5"],
        ),
        (["perceiver-source"], ["cifar10-perceiver-source"]),
    ],
)
def test_only_recipes_whose_names_contain_all_words_are_listed(
    words: list[str], names: list[str], ait: Ait
) -> None:
    done = ait("list", *words)
    assert done.code == 0
    rows = [line.split()[1] for line in done.out.splitlines() if line.startswith("│")]
    assert rows == names


def test_every_model_is_listed_with_the_number_and_width_of_its_layers(ait: Ait) -> None:
    models = [line.split("│")[3] for line in ait("list").out.splitlines() if line[0] == "│"]
    assert "luna, 1 layer of 64 " in "".join(models)
    assert any("perceiver, 6 layers of 512 " in model for model in models)
    assert not [model for model in models if re.search(r"\b1 layers|None", model)]


def test_words_that_match_no_recipe_are_refused(ait: Ait) -> None:
    assert_refused(ait("list", "luna", "coordination"), "no recipe", "luna and coordination")


def test_a_model_without_layers_is_listed_with_only_its_kind(ait: Ait) -> None:
    done = ait("list", "0-brims-source")
    (row,) = [line for line in done.out.splitlines() if line.startswith("│")]
    assert row.split("│")[2].strip() == "cifar10"
    done = ait("list", "clevr-cnn-mlp-tiny")
    (row,) = [line for line in done.out.splitlines() if line.startswith("│")]
    cells = [cell.strip() for cell in row.split("│")[1:-1]]
    name = "sort-of-clevr-cnn-mlp-tiny"
    assert cells == [name, "sort-of-clevr", "conv-mlp", "6", "243,314", "-"]
