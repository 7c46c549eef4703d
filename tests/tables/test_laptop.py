"""The laptop edition of the tables: its rows, its intervals, and the files of its runs."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import laptop
from associative_transformer.models import MODELS
from associative_transformer.models.weight_count import count_weights
from associative_transformer.recipes import LAPTOP_RECIPES, RECIPES
from associative_transformer.recipes.laptop import ROWS, TABLE_ROWS
from associative_transformer.tables import LAPTOP_TABLES
from associative_transformer.tabular import Table
from making.plant import put_run, result_of

AIT, VIT = RECIPES["cifar10-laptop-ait"], RECIPES["cifar10-laptop-vit"]


def rows_of(table: Table, group: int = 0) -> dict[str, tuple[str, ...]]:
    return {row[0]: row[1:] for row in table.groups[group].rows}


def plant(folder: Path, recipe: str, *accuracies: float) -> None:
    """Put runs with these test accuracies, one for each seed, into a folder."""
    experiment = RECIPES[recipe]
    for seed, accuracy in enumerate(accuracies):
        result = result_of(experiment, accuracy, seed=seed)
        put_run(folder, experiment, seed, result)


def test_the_models_of_the_table_have_about_half_a_million_parameters() -> None:
    named = [row for row in ROWS if row.triangle is not None]
    for row in named:
        for name in (row.cifar10, row.triangle):
            model = RECIPES[name or ""].model
            count = count_weights(MODELS[type(model)], model).trained
            limits = (400_000, 600_000) if name == row.cifar10 else (380_000, 600_000)
            assert limits[0] <= count <= limits[1], name


@pytest.mark.parametrize("table", TABLE_ROWS)
def test_all_models_are_trained_alike_on_the_same_images(table: str) -> None:
    names = [name for names in LAPTOP_RECIPES[table].values() for name in names]
    assert len({RECIPES[name].train for name in names}) == 1
    for start in ("cifar10", "triangle"):
        data = {RECIPES[n].data for n in names if n.startswith(start) and "brims" not in n}
        assert len(data) == 1


def test_a_difference_is_marked_only_if_its_interval_excludes_zero(tmp_path: Path) -> None:
    plant(tmp_path, "cifar10-laptop-vit", 60.0, 61.0, 62.0)
    plant(tmp_path, "cifar10-laptop-ait", 61.0, 62.1, 62.9)  # 1.0 +- 0.25
    plant(tmp_path, "cifar10-laptop-luna", 59.0, 62.0, 63.0)  # 0.33 +- 2.9
    rows = rows_of(LAPTOP_TABLES["classification"](tmp_path))
    assert rows["AiT"][:2] == ("62.00 ± 2.37", "+1.00 ± 0.25 *")
    assert rows["Luna"][1].startswith("+0.33 ± 2.")
    assert "*" not in rows["Luna"][1]
    assert rows["ViT"][:2] == ("61.00 ± 2.48", "")


def test_a_single_run_has_an_interval_of_its_own_and_no_mark(tmp_path: Path) -> None:
    plant(tmp_path, "cifar10-laptop-vit", 60.0)
    plant(tmp_path, "cifar10-laptop-ait", 61.0)
    rows = rows_of(LAPTOP_TABLES["classification"](tmp_path))
    assert rows["AiT"][0] == "61.00 (60.0 to 62.0)"
    assert rows["AiT"][1] == "+1.00"
    assert rows["Perceiver"][0] == "not measured"


def test_brims_says_how_many_images_it_sees(tmp_path: Path) -> None:
    for group in (0, 1):
        titles = rows_of(LAPTOP_TABLES["classification"](tmp_path), group)
        assert "BRIMs, 10,000 training images" in titles


def test_ablations_are_compared_with_ait(tmp_path: Path) -> None:
    plant(tmp_path, "cifar10-laptop-ait", 61.0)
    plant(tmp_path, "cifar10-laptop-ait-without-read", 60.5)
    rows = rows_of(LAPTOP_TABLES["ablations"](tmp_path))
    assert rows["w/o read"][1] == "-0.50"
    assert rows["AiT"][1] == ""


def test_the_files_of_runs_give_the_same_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, results = tmp_path / "runs", tmp_path / "results"
    plant(runs, "cifar10-laptop-vit", 60.0, 61.0)
    plant(runs, "cifar10-laptop-ait", 61.0, 62.5)
    experiment = replace(VIT, data=VIT.data.with_storage(source="/home/me/cifar10"))
    put_run(runs, experiment, 2, result_of(VIT, 62.0, seed=2))
    for words in (["keep", "--runs", str(runs)], ["table", "classification"]):
        monkeypatch.setattr(sys, "argv", ["laptop.py", *words, "--results", str(results)])
        laptop.main()
    printed = capsys.readouterr().out
    saved = json.loads((results / "cifar10-laptop-vit-2.json").read_text())
    assert saved["command"].startswith("ait train cifar10-laptop-vit")
    assert "--data.source PATH/TO/cifar10" in saved["command"]
    assert "/home/me" not in json.dumps(saved)
    kept = laptop.read_results(results)
    assert {name: list(seeds) for name, seeds in kept.items()} == {
        "cifar10-laptop-ait": [0, 1],
        "cifar10-laptop-vit": [0, 1, 2],
    }
    assert "| +1.25 ± " in printed
