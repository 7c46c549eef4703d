"""The paper's tables: which runs a row includes, and the published figures next to them."""

import re
from dataclasses import replace
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest

from associative_transformer.experiment import Experiment
from associative_transformer.recipes import RECIPES
from associative_transformer.recipes.budgets import shorten
from associative_transformer.tables import TABLES
from associative_transformer.tabular import Table
from making.plant import DEVICE, answers_of, put_run, result_of

classification_table, ablation_table = TABLES["classification"], TABLES["ablations"]
relational_table = TABLES["relational"]

Cells = dict[str, str]
INTERVAL = re.compile(r" \([\d.]+ to [\d.]+\)")


def by_column(columns: tuple[str, ...], cells: tuple[str, ...]) -> Cells:
    """Return the cells by column; the key of a repeated column includes its left neighbor."""
    names: list[str] = []
    for column in columns:
        repeats = columns.count(column) > 1
        names.append(f"{names[-1]}, {column}" if repeats else column)
    return dict(zip(names, cells, strict=True))


def sections_of(table: Table) -> dict[str, dict[str, Cells]]:
    """Return the rows of each group by their first cell, and the groups by their short title.

    The intervals of single runs are left out; they have a test of their own.
    """
    return {
        group.title.split(":")[0]: {
            row[0]: by_column(table.columns, [INTERVAL.sub("", cell) for cell in row])
            for row in group.rows
        }
        for group in table.groups
    }


def rows_of(table: Table, section: str = "recipes of the paper") -> dict[str, Cells]:
    return sections_of(table)[section]


def with_epochs(recipe: Experiment, epochs: int = 2, name: str = "") -> Experiment:
    train = replace(recipe.train, epochs=epochs)
    return replace(recipe, name=name or f"{recipe.name}+abc", train=train)


def test_there_are_three_tables() -> None:
    assert list(TABLES) == ["classification", "ablations", "relational"]


@pytest.mark.parametrize("name", TABLES)
def test_every_row_has_a_cell_for_each_column(name: str, tmp_path: Path) -> None:
    put_run(tmp_path, with_epochs(VIT), 0, result_of(VIT))
    put_run(tmp_path, with_epochs(AIT), 0, answers_of(AIT))
    table = TABLES[name](tmp_path)
    assert {len(row) for group in table.groups for row in group.rows} == {len(table.columns)}
    assert table.title in table.to_html()
    assert all(group.rows for group in table.groups)


# --- image classification ---

VIT, COORDINATION = RECIPES["cifar10-vit-small"], RECIPES["triangle-coordination"]
PUBLISHED = {  # CIFAR-10, CIFAR-100, Triangle, average, size in millions
    "AiT-Base": ("85.44", "60.78", "99.59", "81.94", "91.0"),
    "AiT-Medium": ("84.59", "60.58", "99.57", "81.58", "45.9"),
    "AiT-Small": ("83.34", "56.30", "99.47", "79.70", "15.8"),
    "Coordination": ("75.31", "43.90", "91.66", "70.29", "2.2"),
    "Coordination-DH": ("72.49", "51.70", "81.78", "68.66", "16.6"),
    "Coordination-D": ("74.50", "40.69", "86.28", "67.16", "2.2"),
    "Coordination-H": ("78.51", "48.59", "72.53", "66.54", "8.4"),
    "ViT-Base": ("83.82", "57.92", "99.63", "80.46", "85.7"),
    "ViT-Medium": ("82.41", "55.78", "99.62", "79.27", "-"),
    "ViT-Small": ("79.53", "53.19", "99.47", "77.40", "14.9"),
    "Perceiver [3]": ("82.52", "52.64", "96.78", "77.31", "44.9"),
    "Set Transformer": ("73.42", "40.19", "60.31", "57.97", "2.2"),
    "BRIMs [2]": ("60.10", "31.75", "-", "45.93", "4.4"),
    "Luna [1]": ("47.86", "23.38", "-", "35.62", "77.6"),
    "Luna, 2 layers": ("-", "-", "-", "-", "-"),
}
SIZES = {  # live parameters, and all as the paper counts them, in millions
    "AiT-Base": "90.9 (91.0)",
    "AiT-Medium": "45.8 (45.9)",
    "AiT-Small": "15.7 (15.8)",
    "Coordination": "2.0 (2.2)",
    "Coordination-DH": "15.8 (16.6)",
    "Coordination-D": "2.0 (2.2)",
    "Coordination-H": "7.9 (8.4)",
    "ViT-Base": "85.7",
    "ViT-Medium": "43.1 (43.2)",
    "ViT-Small": "14.8 (14.9)",
    "Perceiver [3]": "44.9",
    "Set Transformer": "2.1 (2.2)",
    "BRIMs [2]": "1.3 (4.4)",
    "Luna [1]": "106.4",
    "Luna, 2 layers": "17.8",
}
ABLATIONS = {
    "AiT-Small": "79.70",
    "w/o bottleneck": "72.75",
    "w/o self-attention": "73.31",
    "w/o memory": "77.40",
    "w/o Hopfield": "78.48",
    "w/o balance loss": "78.68",
    "reset memory": "79.12",
}
SETS = ("CIFAR-10", "CIFAR-100", "Triangle")
OURS = (*SETS, "average", "epochs", "device", "finished")


def put_on(root: Path, row: str, *accuracies: float, seed: int = 0) -> None:
    """Write a complete run of a row for each accuracy: on CIFAR-10, CIFAR-100 and Triangle."""
    names = ("cifar10", "cifar100", "triangle")
    for name, accuracy in zip(names, accuracies, strict=False):
        recipe = RECIPES[f"{name}-{row}"]
        put_run(root, recipe, seed, result_of(recipe, accuracy))


@pytest.mark.parametrize("name", ["nothing here", "."])
def test_without_runs_every_model_is_listed_with_its_published_figures(
    name: str, tmp_path: Path
) -> None:
    table = classification_table(tmp_path / name)
    rows = rows_of(table)
    published = [*(f"{title}, published" for title in SETS), "average, published"]
    published += ["parameters, M, published"]
    assert {m: tuple(row[cell] for cell in published) for m, row in rows.items()} == PUBLISHED
    assert list(rows) == list(PUBLISHED)
    assert {model: row["parameters, M"] for model, row in rows.items()} == SIZES
    for section in sections_of(table).values():
        for row in section.values():
            assert row["seeds"] == "not run"
            assert {row[cell] for cell in OURS} == {"-"}
    assert f"There are no runs of these recipes in {tmp_path / name}." in table.notes


def test_recipes_for_one_data_set_have_their_own_groups(tmp_path: Path) -> None:
    table = classification_table(tmp_path)
    sections = sections_of(table)
    assert list(sections) == [
        "recipes of the paper",
        "Triangle with other patch sizes",
        "recipes from the source papers",
        "reduced recipes",
    ]
    other, sources, reduced = list(sections.values())[1:]
    assert len(other) == 13
    assert {"triangle-ait-small-p4", "triangle-luna-base-p32"} <= set(other)
    assert list(sources) == [
        "triangle-coordination-source",
        "triangle-set-transformer-source",
        "cifar10-perceiver-source",
        "cifar10-brims-source",
        "cifar10-luna-lra",
    ]
    assert list(reduced) == [
        "triangle-ait-tiny",
        "cifar10-ait-tiny",
        "cifar10-ait-192",
        "cifar10-vit-192",
    ]
    for name, row in (other | sources | reduced).items():
        assert {cell for key, cell in row.items() if key.endswith("published")} == {"-"}, name


def test_quoted_figures_have_a_footnote(tmp_path: Path) -> None:
    table = classification_table(tmp_path)
    marked = [model.partition(" [")[2][:-1] for model in rows_of(table) if "[" in model]
    assert sorted(marked) == ["1", "2", "3"]
    luna, brims, perceiver = (
        next(note for note in table.notes if note.startswith(f"[{number}]")) for number in "123"
    )
    for word in ("Luna", "quoted", "47.86", "Long Range Arena", "77.6 M", "translation"):
        assert word in luna
    for word in ("BRIMs", "quoted", "60.10", "19x19"):
        assert word in brims
    assert "Perceiver: two models have the published size" in perceiver
    assert "numbers in brackets include those that the reference code registers" in table.notes[0]


def test_a_row_has_mean_and_deviation_for_each_data_set_and_their_average(tmp_path: Path) -> None:
    for seed, (cifar10, cifar100, triangle) in enumerate(
        [(80.0, 50.0, 99.0), (81.0, 54.0, 99.5), (82.0, 52.0, 98.5)]
    ):
        put_on(tmp_path, "vit-small", cifar10, cifar100, triangle, seed=seed)
    row = rows_of(classification_table(tmp_path))["ViT-Small"]
    assert row["CIFAR-10"] == "81.00 ± 1.00"
    assert row["CIFAR-100"] == "52.00 ± 2.00"
    assert row["Triangle"] == "99.00 ± 0.50"
    assert row["average"] == "77.33"
    assert (row["seeds"], row["epochs"], row["device"]) == ("3", "100", DEVICE)
    assert row["finished"] == "2026-11-24"
    assert row["CIFAR-10, published"] == "79.53"
    other = rows_of(classification_table(tmp_path))["ViT-Base"]
    assert {other[cell] for cell in OURS} == {"-"}


def test_the_accuracy_of_a_single_run_has_an_interval_and_a_mean_over_seeds_a_deviation(
    tmp_path: Path,
) -> None:
    recipe, asked = RECIPES["triangle-vit-small"], RECIPES["sort-of-clevr-ait-small"]
    put_run(tmp_path, recipe, 0, result_of(recipe, 80.0, test_images=10))
    put_run(tmp_path, asked, 0, answers_of(asked, 70.0))
    pictures = cells_of(classification_table(tmp_path))
    assert "80.00 (49.0 to 94.3)" in pictures  # Wilson's interval of 8 of 10
    questions = cells_of(relational_table(tmp_path))
    assert {"70.00 (60.0 to 80.0)", "90.00 (80.0 to 100.0)"} <= questions  # those of the result
    recorded = {"test_interval": [71.0, 88.0]}
    put_run(tmp_path, recipe, 1, result_of(recipe, 80.0, test_images=10, **recorded))
    assert "80.00 ± 0.00" in cells_of(classification_table(tmp_path))


def cells_of(table: Table) -> set[str]:
    return {cell for group in table.groups for row in group.rows for cell in row}


def test_our_average_needs_runs_for_all_data_sets(tmp_path: Path) -> None:
    put_on(tmp_path, "brims", 60.0, 30.0)
    row = rows_of(classification_table(tmp_path))["BRIMs [2]"]
    assert (row["CIFAR-10"], row["CIFAR-100"], row["Triangle"]) == ("60.00", "30.00", "-")
    assert (row["average"], row["average, published"]) == ("-", "45.93")  # published: of two sets
    recipe = RECIPES["triangle-brims"]
    put_run(tmp_path, recipe, 0, result_of(recipe, 90.0))
    row = rows_of(classification_table(tmp_path))["BRIMs [2]"]
    assert (row["average"], row["average, published"]) == ("60.00", "45.93")


def test_the_average_weights_all_data_sets_equally_regardless_of_their_number_of_seeds(
    tmp_path: Path,
) -> None:
    put_on(tmp_path, "ait-small", 80.0, 50.0, 100.0)
    put_on(tmp_path, "ait-small", 90.0, seed=1)
    assert rows_of(classification_table(tmp_path))["AiT-Small"]["average"] == "78.33"


def test_seeds_are_written_once_if_they_are_the_same_for_all_data_sets(tmp_path: Path) -> None:
    put_on(tmp_path, "ait-base", 85.0, 60.0, 99.0)
    put_on(tmp_path, "ait-medium", 85.0, 60.0)
    put_on(tmp_path, "ait-medium", 85.0, seed=1)
    unfinished = put_run(tmp_path, RECIPES["triangle-ait-medium"], 4)
    (unfinished / "metrics.jsonl").write_text("{}\n" * 7)
    rows = rows_of(classification_table(tmp_path))
    assert rows["AiT-Base"]["seeds"] == "1"
    progress = "seed 4 unfinished after 7 of 100 epochs"
    assert rows["AiT-Medium"]["seeds"] == f"CIFAR-10: 2; CIFAR-100: 1; Triangle: {progress}"
    assert rows["AiT-Medium"]["Triangle"] == "-"


def test_a_row_names_all_devices_and_the_latest_date(tmp_path: Path) -> None:
    days = ("2026-11-24", "2026-11-30", "2026-11-29")
    devices = ("NVIDIA H100", DEVICE, "NVIDIA H100")
    for seed, (day, device) in enumerate(zip(days, devices, strict=True)):
        result = result_of(COORDINATION, timing={"seconds": 1.0, "finished": day})
        put_run(tmp_path, COORDINATION, seed, result, device=device)
    row = rows_of(classification_table(tmp_path))["Coordination"]
    assert (row["device"], row["finished"]) == (f"NVIDIA H100, {DEVICE}", "2026-11-30")


def test_a_device_and_a_date_that_are_not_recorded_are_unknown(tmp_path: Path) -> None:
    put_run(tmp_path, COORDINATION, 0, result_of(COORDINATION))
    old = put_run(tmp_path, COORDINATION, 1, result_of(COORDINATION, timing={"seconds": 1.0}))
    (old / "environment.json").unlink()
    row = rows_of(classification_table(tmp_path))["Coordination"]
    assert (row["device"], row["finished"]) == (f"unknown, {DEVICE}", "2026-11-24, unknown")


def test_runs_on_different_data_have_rows_of_their_own(tmp_path: Path) -> None:
    """Two unrelated folders were once averaged as CIFAR-10."""
    recipe = RECIPES["cifar10-ait-tiny"]
    put_run(tmp_path, recipe, 0, result_of(recipe, 10.0, data="1111111111"))
    put_run(tmp_path, recipe, 1, result_of(recipe, 12.5, data="2222222222"))
    sections = sections_of(classification_table(tmp_path))
    assert sections["reduced recipes"][recipe.name]["CIFAR-10"] == "10.00"
    title = f"{recipe.name} on other data of the same kind, digest 22222222"
    assert sections["runs on other data"][title]["CIFAR-10"] == "12.50"


@pytest.mark.parametrize("has_overrides", [False, True])
def test_own_images_are_not_in_the_column_of_the_data_set_that_their_recipe_names(
    has_overrides: bool, tmp_path: Path
) -> None:
    recipe = RECIPES["cifar10-ait-tiny"]
    trained = with_epochs(recipe) if has_overrides else recipe
    own = {"classes": ["cat", "dog", "ship"], "test_images": 90, "data": "1234567890"}
    put_run(tmp_path, trained, 0, result_of(recipe, 55.0, **own))
    table = classification_table(tmp_path)
    sections = sections_of(table)
    (title,), (row,) = zip(*list(sections.values())[-1].items(), strict=True)
    assert row["CIFAR-10"] == "-"
    assert row["own images"] == "55.00"
    for words in ("not CIFAR-10", "90 test images of 3 classes (cat, dog, ship)", "12345678"):
        assert words in title
    assert sections["reduced recipes"][recipe.name]["CIFAR-10"] == "-"
    assert {len(row) for group in table.groups for row in group.rows} == {len(table.columns)}


def test_a_recipe_for_one_data_set_has_one_accuracy_and_no_average(tmp_path: Path) -> None:
    for name in ("triangle-ait-small-p4", "cifar10-luna-lra", "cifar10-ait-tiny"):
        put_run(tmp_path, RECIPES[name], 0, result_of(RECIPES[name], 42.0))
    sections = sections_of(classification_table(tmp_path))
    rows = {name: row for section in sections.values() for name, row in section.items()}
    accuracies = {
        "triangle-ait-small-p4": ("-", "-", "42.00"),
        "cifar10-luna-lra": ("42.00", "-", "-"),
        "cifar10-ait-tiny": ("42.00", "-", "-"),
    }
    for name, cells in accuracies.items():
        assert tuple(rows[name][title] for title in SETS) == cells
        assert (rows[name]["average"], rows[name]["seeds"]) == ("-", "1")
    assert rows["cifar10-luna-lra"]["epochs"] == "180"
    assert {row["seeds"] for name, row in rows.items() if name not in accuracies} == {"not run"}


def test_shortened_runs_have_their_own_groups_and_are_never_in_a_row_of_full_runs(
    tmp_path: Path,
) -> None:
    put_on(tmp_path, "ait-small", 80.0, seed=1)
    for budget, accuracy in (("short", 30.0), ("smoke", 10.0)):
        for recipe in (RECIPES["cifar10-ait-small"], RECIPES["triangle-luna-base-p32"]):
            shortened = shorten(recipe, budget)
            put_run(tmp_path, shortened, 0, result_of(shortened, accuracy))
    table = classification_table(tmp_path)
    full = rows_of(table)["AiT-Small"]
    assert (full["CIFAR-10"], full["epochs"]) == ("80.00", "100")
    assert full["seeds"] == "CIFAR-10: 1; CIFAR-100: not run; Triangle: not run"
    titles = [group.title for group in table.groups]
    assert [title for title in titles if "budget" in title] == [
        "budget short: not comparable with any row above",
        "budget smoke: not comparable with any row above",
    ]
    for section, accuracy, epochs in (("short", "30.00", "10"), ("smoke", "10.00", "1")):
        rows = rows_of(table, f"budget {section}")
        assert list(rows) == ["AiT-Small", "triangle-luna-base-p32"]
        row = rows["AiT-Small"]
        assert (row["CIFAR-10"], row["epochs"]) == (accuracy, epochs)
        assert {cell for key, cell in row.items() if key.endswith("published")} == {"-"}
    assert "runs with overrides" not in sections_of(table)


def test_runs_of_a_budget_that_does_not_shorten_a_recipe_are_in_its_row(
    tmp_path: Path,
) -> None:
    tiny = RECIPES["triangle-ait-tiny"]
    short = shorten(tiny, "short")
    put_run(tmp_path, short, 0, result_of(short, 77.0))
    table = classification_table(tmp_path)
    assert rows_of(table, "reduced recipes")[tiny.name]["Triangle"] == "77.00"
    assert len(table.groups) == 4


def test_a_run_with_overrides_has_its_own_row_that_lists_them(tmp_path: Path) -> None:
    other = with_epochs(VIT, name=VIT.name)
    put_run(tmp_path, other, 0, result_of(other, 12.0))
    narrow = replace(COORDINATION, model=replace(COORDINATION.model, mlp_ratio=2.0))
    put_run(tmp_path, narrow, 0, result_of(narrow, 55.0), device="NVIDIA H100")
    table = classification_table(tmp_path)
    assert rows_of(table)["ViT-Small"]["seeds"] == "not run"
    rows = rows_of(table, "runs with overrides")
    assert list(rows) == [
        "cifar10-vit-small with train.epochs 2 instead of 100",
        "triangle-coordination with model.mlp_ratio 2.0 instead of 4.0",
    ]
    first, second = rows.values()
    assert tuple(first[title] for title in SETS) == ("12.00", "-", "-")
    assert (first["seeds"], first["epochs"], first["parameters, M"]) == ("1", "2", "14.8 (14.9)")
    assert tuple(second[title] for title in SETS) == ("-", "-", "55.00")
    assert (second["parameters, M"], second["device"]) == ("1.7 (2.0)", "NVIDIA H100")
    assert {cell for key, cell in first.items() if key.endswith("published")} == {"-"}


def test_a_damaged_run_gets_a_note_below_the_table(tmp_path: Path) -> None:
    put_on(tmp_path, "vit-small", 80.0)
    damaged = put_run(tmp_path, VIT, 1, result_of(VIT)) / "result.json"
    damaged.write_text("{")
    table = classification_table(tmp_path)
    assert rows_of(table)["ViT-Small"]["CIFAR-10"] == "80.00"
    (note,) = [note for note in table.notes if note.startswith("Left out")]
    assert f"{damaged} is damaged" in note
    for text in (table.to_markdown(), table.to_html(), table.to_terminal(10_000)):
        assert "result.json is damaged" in text


def test_relational_runs_are_not_in_the_classification_table(tmp_path: Path) -> None:
    put_run(tmp_path, AIT, 0, answers_of(AIT))
    put_run(tmp_path, replace(AIT, name="thesis"), 0, answers_of(AIT))
    empty = classification_table(tmp_path / "nothing here")
    assert classification_table(tmp_path).groups == empty.groups
    assert not any("Left out" in note for note in classification_table(tmp_path).notes)


# --- ablations ---


def test_without_runs_every_ablation_is_listed_with_its_published_average(tmp_path: Path) -> None:
    table = ablation_table(tmp_path)
    assert list(sections_of(table)) == ["recipes of the paper", "other changes to AiT-Small"]
    ((title, row),) = rows_of(table, "other changes to AiT-Small").items()
    assert (title, row["seeds"]) == ("cifar10-ait-small-nodropout", "not run")
    rows = rows_of(table)
    expected = ABLATIONS | {"w/o read": "-", "ViT + norm": "-"}  # which the paper does not have
    assert {title: row["average, published"] for title, row in rows.items()} == expected
    assert list(rows) == list(expected)
    for row in rows.values():
        assert row["seeds"] == "not run"
        others = [f"{title}, published" for title in SETS] + ["parameters, M, published"]
        assert {row[cell] for cell in (*OURS, *others)} == {"-"}
    assert rows["w/o self-attention"]["parameters, M"] == "11.0 (11.1)"
    assert rows["w/o memory"]["parameters, M"] == "14.8 (14.9)"
    note = (
        "AiT-Small without memory and workspace is ViT-Small; its row uses the ViT-Small recipe."
    )
    assert note in table.notes


def test_ablations_and_the_recipes_of_the_first_table_share_their_runs(tmp_path: Path) -> None:
    put_on(tmp_path, "ait-small", 83.0, 56.0, 99.0)
    put_on(tmp_path, "vit-small", 79.0, 53.0, 98.0)
    put_on(tmp_path, "ait-small-reset-memory", 82.0)
    rows = rows_of(ablation_table(tmp_path))
    averages = {title: row["average"] for title, row in rows.items() if row["seeds"] != "not run"}
    assert averages == {"AiT-Small": "79.33", "w/o memory": "76.67", "reset memory": "-"}
    assert rows["reset memory"]["CIFAR-10"] == "82.00"
    above = rows_of(classification_table(tmp_path))
    assert above["AiT-Small"]["average"] == "79.33"
    assert not any("82.00" in row.values() for row in above.values())


def test_a_shortened_ablation_has_its_own_group(tmp_path: Path) -> None:
    smoke = shorten(RECIPES["cifar100-ait-small-without-hopfield"], "smoke")
    put_run(tmp_path, smoke, 0, result_of(smoke, 1.0))
    table = ablation_table(tmp_path)
    assert rows_of(table)["w/o Hopfield"]["seeds"] == "not run"
    ((title, row),) = rows_of(table, "budget smoke").items()
    assert (title, row["CIFAR-100"], row["average, published"]) == ("w/o Hopfield", "1.00", "-")


# --- relational reasoning ---

AIT = RECIPES["sort-of-clevr-ait-small"]
RN = RECIPES["sort-of-clevr-cnn-rn"]
RELATIONAL = {  # the models of the first group, with their published figures
    "ait-small": ("76.82", "99.85"),
    "ait-medium": ("-", "-"),
    "ait-base": ("80.03", "-"),
    "vit-small": ("-", "-"),
    "coordination": ("73.43", "96.31"),
    "set-transformer": ("47.63", "57.65"),
    "cnn-rn": ("81.07", "98.82"),
    "cnn-mlp": ("60.08", "99.47"),
    "dense-small": ("47.28", "57.68"),
    "dense-base": ("46.93", "57.71"),
    "ait-small-p5": ("-", "-"),
    "ait-medium-p5": ("-", "-"),
    "ait-base-p5": ("-", "-"),
    "vit-small-p5": ("-", "-"),
    "coordination-p5": ("-", "-"),
    "set-transformer-p5": ("-", "-"),
    "dense-small-p5": ("-", "-"),
    "dense-base-p5": ("-", "-"),
}
RELATIONAL_SOURCES = ["coordination-source", "set-transformer-source"]
TINY = [
    *("ait-tiny", "vit-tiny", "coordination-tiny", "set-transformer-tiny"),
    *("cnn-rn-tiny", "cnn-mlp-tiny", "dense-tiny"),
]
GUESSES = ("relational, guess", "non-relational, guess")


@pytest.mark.parametrize("name", ["nothing here", "."])
def test_without_runs_every_relational_recipe_is_listed_with_its_published_figures(
    name: str, tmp_path: Path
) -> None:
    table = relational_table(tmp_path / name)
    sections = sections_of(table)
    assert list(sections) == [
        "recipes of the paper",
        "recipes from the source papers",
        "reduced recipes",
    ]
    full, sources, tiny = sections.values()
    published = ("published relational", "published non-relational")
    assert {m: tuple(row[cell] for cell in published) for m, row in full.items()} == RELATIONAL
    assert list(full) == list(RELATIONAL)
    assert (list(sources), list(tiny)) == (RELATIONAL_SOURCES, TINY)
    for row in (full | sources | tiny).values():
        assert row["seeds"] == "not run"
        cells = ("relational", "non-relational", *GUESSES, "average", "epochs", "trained on")
        assert {row[cell] for cell in cells} == {"-"}
    assert {row[cell] for row in (sources | tiny).values() for cell in published} == {"-"}
    assert f"There are no runs of these recipes in {tmp_path / name}." in table.notes


def test_a_relational_row_has_mean_and_deviation_over_the_seeds(tmp_path: Path) -> None:
    scores = [(70.0, 98.0), (73.0, 99.0), (71.0, 98.5)]
    for seed, (binary, other) in enumerate(scores):
        put_run(tmp_path, AIT, seed, answers_of(AIT, binary, other))
    rows = rows_of(relational_table(tmp_path))
    row = rows["ait-small"]
    assert row["relational"] == f"71.33 ± {stdev([70, 73, 71]):.2f}"
    assert row["non-relational"] == "98.50 ± 0.50"
    assert row["average"] == f"84.92 ± {stdev([84, 86, 84.75]):.2f}"
    assert tuple(row[guess] for guess in GUESSES) == ("42.70", "49.60")
    assert (row["seeds"], row["epochs"]) == ("3", "100")
    assert row["trained on"] == "non-relational + binary"
    assert row["published relational"] == "76.82"
    assert rows["ait-base"]["seeds"] == "not run"


def test_a_single_seed_has_no_deviation_and_accuracies_are_those_of_the_last_epoch(
    tmp_path: Path,
) -> None:
    scores = {"test_accuracy": 99.0, "test_loss": 0.1, "test_images": 200}
    best = {"epoch": 3, "validation_accuracy": 99.0, **scores}
    put_run(tmp_path, RN, 5, answers_of(RN, 81.066, 99.0, best_validation=best))
    row = rows_of(relational_table(tmp_path))["cnn-rn"]
    assert (row["relational"], row["seeds"], row["epochs"]) == ("81.07", "1", "100")


def test_the_mean_excludes_an_unfinished_relational_run(tmp_path: Path) -> None:
    put_run(tmp_path, AIT, 0, answers_of(AIT, 70.0))
    (put_run(tmp_path, AIT, 1) / "metrics.jsonl").write_text("{}\n" * 3)
    rows = rows_of(relational_table(tmp_path))
    assert rows["ait-small"]["relational"] == "70.00"
    assert rows["ait-small"]["seeds"] == "1, seed 1 unfinished after 3 of 100 epochs"


@pytest.mark.parametrize(
    ("name", "section", "row"),
    [
        ("sort-of-clevr-ait-tiny", "reduced recipes", "ait-tiny"),
        (
            "sort-of-clevr-coordination-source",
            "recipes from the source papers",
            "coordination-source",
        ),
    ],
)
def test_other_recipes_are_not_next_to_published_figures(
    name: str, section: str, row: str, tmp_path: Path
) -> None:
    put_run(tmp_path, RECIPES[name], 0, answers_of(RECIPES[name], 50.0))
    table = relational_table(tmp_path)
    assert {cells["relational"] for cells in rows_of(table).values()} == {"-"}
    assert rows_of(table, section)[row]["relational"] == "50.00"


@pytest.mark.parametrize("name", [f"{AIT.name}+1a2b3c4d", AIT.name], ids=["hash", "recipe"])
def test_a_relational_run_with_overrides_is_never_in_the_row_of_its_recipe(
    name: str, tmp_path: Path
) -> None:
    other = with_epochs(AIT, name=name)
    put_run(tmp_path, other, 0, answers_of(other, 12.0))
    put_run(tmp_path, AIT, 1, answers_of(AIT, 70.0))
    table = relational_table(tmp_path)
    row = rows_of(table)["ait-small"]
    assert (row["relational"], row["seeds"]) == ("70.00", "1")
    ((label, below),) = rows_of(table, "runs with overrides").items()
    assert label == "ait-small with train.epochs 2 instead of 100"
    assert (below["relational"], below["epochs"]) == ("12.00", "2")
    assert below["published relational"] == "-"


def test_only_runs_with_the_same_overrides_are_averaged(tmp_path: Path) -> None:
    for seed in (0, 1):
        put_run(tmp_path, with_epochs(AIT), seed, answers_of(AIT, 10.0 + seed, epochs=2), "two")
    put_run(tmp_path, with_epochs(AIT, 3), 0, answers_of(AIT, 30.0, epochs=3), "three")
    rows = rows_of(relational_table(tmp_path), "runs with overrides")
    by_epochs = {row["epochs"]: (row["relational"], row["seeds"]) for row in rows.values()}
    assert by_epochs == {"2": ("10.50 ± 0.71", "2"), "3": ("30.00", "1")}


def test_shortened_relational_runs_have_their_own_groups(tmp_path: Path) -> None:
    for budget, accuracy in (("short", 45.0), ("smoke", 40.0)):
        shortened = shorten(RN, budget)
        put_run(tmp_path, shortened, 0, answers_of(shortened, accuracy))
    table = relational_table(tmp_path)
    assert rows_of(table)["cnn-rn"]["seeds"] == "not run"
    for budget, accuracy, epochs in (("short", "45.00", "10"), ("smoke", "40.00", "1")):
        ((name, row),) = rows_of(table, f"budget {budget}").items()
        assert (name, row["relational"], row["epochs"]) == ("cnn-rn", accuracy, epochs)
        assert (row["seeds"], row["published relational"]) == ("1", "-")
    assert "runs with overrides" not in sections_of(table)


@pytest.mark.parametrize(
    ("type_", "cells"),
    [("binary", ("60.00", "-", "42.70", "-")), ("non-relational", ("-", "95.00", "-", "49.60"))],
)
def test_a_run_on_one_type_of_question_has_no_average(
    type_: str, cells: tuple[str, ...], tmp_path: Path
) -> None:
    data: Any = replace(AIT.data, question_types=(type_,))
    single = replace(AIT, data=data)
    put_run(tmp_path, single, 0, answers_of(single, 60.0, 95.0))
    ((label, row),) = rows_of(relational_table(tmp_path), "runs with overrides").items()
    assert "data.question_types" in label
    assert tuple(row[name] for name in ("relational", "non-relational", *GUESSES)) == cells
    assert (row["average"], row["trained on"]) == ("-", type_)


def test_runs_of_other_tables_are_ignored(tmp_path: Path) -> None:
    empty = relational_table(tmp_path)
    put_run(tmp_path, RECIPES["triangle-ait-tiny"], 0, {"test_accuracy": 99.0})
    (tmp_path / "notes" / "0").mkdir(parents=True)
    assert relational_table(tmp_path) == empty


def test_a_run_with_an_unknown_name_is_left_out_with_a_note(tmp_path: Path) -> None:
    empty = relational_table(tmp_path)
    path = put_run(tmp_path, replace(AIT, name="thesis"), 0, answers_of(AIT, 1.0))
    table = relational_table(tmp_path)
    assert table.groups == empty.groups
    assert f"Left out: {path}: thesis is not a recipe." in table.notes


def test_special_characters_in_results_and_folder_names_do_not_break_a_format(
    tmp_path: Path,
) -> None:
    result = answers_of(AIT, question_types=["a|b", "<script>"])
    put_run(tmp_path, AIT, 0, result)
    (put_run(tmp_path, AIT, 0, result, folder="<script> & [b]|") / "result.json").write_text("{")
    table = relational_table(tmp_path)
    assert "<script>" not in table.to_html()
    assert {
        line.count("|") - line.count("\\|")
        for line in table.to_markdown().splitlines()
        if line.startswith("|")
    } == {len(table.columns) + 1}
    assert "<script> & [b]|" in table.to_terminal(10_000)


def test_scenes_that_were_generated_differently_are_not_averaged(tmp_path: Path) -> None:
    put_run(tmp_path, AIT, 0, answers_of(AIT, 70.0, data="1111111111"))
    put_run(tmp_path, AIT, 1, answers_of(AIT, 80.0, data="2222222222"))
    sections = sections_of(relational_table(tmp_path))
    assert sections["recipes of the paper"]["ait-small"]["relational"] == "70.00"
    (row,) = sections["runs on other data"].values()
    assert row["relational"] == "80.00"
