"""Tables of finished runs: what enters a row and what doesn't, and the three forms."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest

from associative_transformer.experiment import Experiment, save_experiment
from associative_transformer.recipes import RECIPES
from associative_transformer.tables import Section, Table, relational_table

AIT = RECIPES["sort-of-clevr-ait-small"]
RN = RECIPES["sort-of-clevr-cnn-rn"]
ROWS = {  # the models of the first section, each with what was published
    "ait-small": ("76.82", "99.85"),
    "ait-medium": ("-", "-"),
    "ait-base": ("80.03", "-"),
    "vit-small": ("-", "-"),
    "cnn-rn": ("81.07", "98.82"),
    "cnn-mlp": ("60.08", "99.47"),
    "dense-small": ("47.28", "57.68"),
    "dense-base": ("46.93", "57.71"),
    "ait-small-p5": ("-", "-"),
    "ait-medium-p5": ("-", "-"),
    "ait-base-p5": ("-", "-"),
    "vit-small-p5": ("-", "-"),
    "dense-small-p5": ("-", "-"),
    "dense-base-p5": ("-", "-"),
    "Coordination": ("73.43", "96.31"),
    "Set Transformer": ("47.63", "57.65"),
}
TINY = ["ait-tiny", "vit-tiny", "cnn-rn-tiny", "cnn-mlp-tiny", "dense-tiny"]


def result_of(
    experiment: Experiment,
    binary: float = 70.0,
    other: float = 90.0,
    **more: Any,  # noqa: ANN401
) -> dict[str, Any]:
    """Write down what the table reads of a result."""
    scores = {"non-relational": (other, 49.6), "binary": (binary, 42.7)}
    kinds = [
        {
            "name": name + subtype,
            "accuracy": accuracy - len(subtype),
            "interval": [0.0, 100.0],
            "guess": guess,
            "questions": 2_000,
            "images": 200,
        }
        for name, (accuracy, guess) in scores.items()
        if name in experiment.data.question_types
        for subtype in ("", "/shape")
    ]
    return {
        "name": experiment.name,
        "seed": experiment.train.seed,
        "question_types": list(experiment.data.question_types),
        "test_kinds": kinds,
        "best_validation": None,
        "epochs": experiment.train.epochs,
        "precision": "float32",
        **more,
    }


def put(
    root: Path,
    experiment: Experiment,
    seed: int = 0,
    result: dict[str, Any] | None = None,
    folder: str | None = None,
) -> Path:
    """Make the folder of a run, complete where there is a result."""
    experiment = replace(experiment, train=replace(experiment.train, seed=seed))
    path = root / (folder or experiment.name) / str(seed)
    path.mkdir(parents=True)
    save_experiment(experiment, path / "experiment.yaml")
    if result is not None:
        (path / "result.json").write_text(json.dumps(result))
    return path


def rows_of(table: Table, section: int = 0) -> dict[str, dict[str, str]]:
    """Give the rows of a section by their first cell; the two columns "guess" get a number."""
    names = list(table.columns)
    places = [i for i, name in enumerate(names) if name == "guess"]
    for number, place in enumerate(places, 1):
        names[place] = f"guess {number}"
    return {row[0]: dict(zip(names, row, strict=True)) for row in table.sections[section].rows}


def changed(epochs: int = 2, name: str = "", **data: Any) -> Experiment:  # noqa: ANN401
    train = replace(AIT.train, epochs=epochs)
    return Experiment(name or f"{AIT.name}+abc", replace(AIT.data, **data), AIT.model, train)


# --- what stands where ---


@pytest.mark.parametrize("name", ["nothing here", "."])
def test_without_runs_every_recipe_stands_beside_its_published_figures(
    name: str, tmp_path: Path
) -> None:
    table = relational_table(tmp_path / name)
    assert [section.title.split(":")[0] for section in table.sections] == [
        "recipes of the paper",
        "reduced recipes",
    ]
    rows = rows_of(table)
    assert list(rows) == list(ROWS)
    for model, row in rows.items():
        published = row["published relational"], row["published non-relational"]
        assert published == ROWS[model]
        told = "no recipe yet" if model in ("Coordination", "Set Transformer") else "not run"
        assert row["seeds"] == told
        cells = ("relational", "guess 1", "non-relational", "guess 2", "average", "epoch")
        assert {row[cell] for cell in cells} == {"-"}
    tiny = rows_of(table, 1)
    assert list(tiny) == TINY
    assert {row["published relational"] for row in tiny.values()} == {"-"}


def test_a_row_holds_mean_and_standard_deviation_over_the_seeds(tmp_path: Path) -> None:
    scores = [(70.0, 98.0), (73.0, 99.0), (71.0, 98.5)]
    for seed, (binary, other) in enumerate(scores):
        put(tmp_path, AIT, seed, result_of(AIT, binary, other))
    row = rows_of(relational_table(tmp_path))["ait-small"]
    assert row["relational"] == f"71.33 ± {stdev([70, 73, 71]):.2f}"
    assert row["non-relational"] == "98.50 ± 0.50"
    assert row["average"] == f"84.92 ± {stdev([84, 86, 84.75]):.2f}"
    assert (row["guess 1"], row["guess 2"]) == ("42.70", "49.60")
    assert (row["seeds"], row["epoch"]) == ("3", "100")
    assert row["trained on"] == "non-relational + binary"
    assert row["published relational"] == "76.82"
    assert rows_of(relational_table(tmp_path))["ait-base"]["seeds"] == "not run"


def test_a_single_seed_has_no_deviation_and_accuracies_are_those_of_the_last_epoch(
    tmp_path: Path,
) -> None:
    best = {"epoch": 3, "validation_accuracy": 99.0, "test_accuracy": 99.0}
    put(tmp_path, RN, 5, result_of(RN, 81.066, 99.0, best_validation=best))
    row = rows_of(relational_table(tmp_path))["cnn-rn"]
    assert (row["relational"], row["seeds"], row["epoch"]) == ("81.07", "1", "100")


def test_one_run_copied_to_another_folder_is_not_two_seeds(tmp_path: Path) -> None:
    put(tmp_path, AIT, 0, result_of(AIT, 70.0))
    put(tmp_path, AIT, 0, result_of(AIT, 70.0), folder="copy")
    row = rows_of(relational_table(tmp_path))["ait-small"]
    assert (row["relational"], row["seeds"]) == ("70.00", "1")


def test_a_run_that_is_not_complete_gives_no_number_and_says_how_far_it_got(
    tmp_path: Path,
) -> None:
    put(tmp_path, AIT, 0, result_of(AIT, 70.0))
    (put(tmp_path, AIT, 1) / "metrics.jsonl").write_text("{}\n" * 3)
    put(tmp_path, RN, 2)
    rows = rows_of(relational_table(tmp_path))
    assert rows["ait-small"]["relational"] == "70.00"
    assert rows["ait-small"]["seeds"] == "1, seed 1 unfinished after 3 of 100 epochs"
    assert rows["cnn-rn"]["relational"] == "-"
    assert rows["cnn-rn"]["seeds"] == "seed 2 unfinished after 0 of 100 epochs"


def test_reduced_recipes_stand_apart_from_the_published_figures(tmp_path: Path) -> None:
    tiny = RECIPES["sort-of-clevr-ait-tiny"]
    put(tmp_path, tiny, 0, result_of(tiny, 50.0))
    table = relational_table(tmp_path)
    assert rows_of(table)["ait-small"]["relational"] == "-"
    assert rows_of(table, 1)["ait-tiny"]["relational"] == "50.00"


def test_where_a_run_lies_and_how_fast_its_machine_is_changes_nothing(tmp_path: Path) -> None:
    elsewhere = replace(AIT, train=replace(AIT.train, device="cpu", log_every=1))
    put(tmp_path, elsewhere, 0, result_of(AIT, 70.0), folder="copied from elsewhere")
    assert rows_of(relational_table(tmp_path))["ait-small"]["relational"] == "70.00"


# --- runs with overrides ---


@pytest.mark.parametrize("name", [f"{AIT.name}+1a2b3c4d", AIT.name], ids=["hash", "recipe"])
@pytest.mark.parametrize("folder", [None, AIT.name, "mine"])
def test_a_run_with_overrides_never_enters_the_row_of_its_recipe(
    name: str, folder: str | None, tmp_path: Path
) -> None:
    other = changed(name=name)
    put(tmp_path, other, 0, result_of(other, 12.0))
    put(tmp_path, AIT, 1, result_of(AIT, 70.0))
    table = relational_table(tmp_path)
    row = rows_of(table)["ait-small"]
    assert (row["relational"], row["seeds"]) == ("70.00", "1")
    ((label, below),) = rows_of(table, 2).items()
    assert label == "ait-small with train.epochs 2 instead of 100"
    assert (below["relational"], below["epoch"]) == ("12.00", "2")
    assert below["published relational"] == "-"
    assert "overrides" in table.sections[2].title


def test_different_overrides_are_not_averaged_and_seeds_of_the_same_are(tmp_path: Path) -> None:
    for seed in (0, 1):
        put(tmp_path, changed(2), seed, result_of(changed(2), 10.0 + seed), folder="two")
    put(tmp_path, changed(3), 0, result_of(changed(3), 30.0), folder="three")
    rows = rows_of(relational_table(tmp_path), 2)
    found = {row["epoch"]: (row["relational"], row["seeds"]) for row in rows.values()}
    assert found == {"2": ("10.50 ± 0.71", "2"), "3": ("30.00", "1")}


@pytest.mark.parametrize(
    ("type_", "cells"),
    [("binary", ("60.00", "42.70", "-", "-")), ("non-relational", ("-", "-", "95.00", "49.60"))],
)
def test_a_run_on_one_type_says_so_and_has_no_average(
    type_: str, cells: tuple[str, ...], tmp_path: Path
) -> None:
    single = changed(100, question_types=(type_,))
    put(tmp_path, single, 0, result_of(single, 60.0, 95.0))
    ((label, row),) = rows_of(relational_table(tmp_path), 2).items()
    assert "data.question_types" in label
    names = ("relational", "guess 1", "non-relational", "guess 2")
    assert tuple(row[name] for name in names) == cells
    assert (row["average"], row["trained on"]) == ("-", type_)


def test_runs_of_other_tables_are_ignored(tmp_path: Path) -> None:
    empty = relational_table(tmp_path)
    assert f"There are no runs of these recipes in {tmp_path}." in empty.notes
    put(tmp_path, RECIPES["triangle-ait-tiny"], 0, {"test_accuracy": 99.0})
    (tmp_path / "notes" / "0").mkdir(parents=True)
    (tmp_path / "notes.txt").touch()
    assert relational_table(tmp_path) == empty


def test_a_run_of_no_recipe_is_named_and_left_out(tmp_path: Path) -> None:
    empty = relational_table(tmp_path)
    path = put(tmp_path, replace(AIT, name="thesis"), 0, result_of(AIT, 1.0))
    table = relational_table(tmp_path)
    assert table.sections == empty.sections
    assert f"Left out: {path}, since thesis is no recipe." in table.notes


def test_seeds_of_several_precisions_are_said_to_be_mixed(tmp_path: Path) -> None:
    put(tmp_path, AIT, 0, result_of(AIT))
    put(tmp_path, AIT, 1, result_of(AIT, precision="bfloat16"))
    row = rows_of(relational_table(tmp_path))["ait-small"]
    assert row["seeds"] == "2 in bfloat16 and float32"


# --- damaged runs ---


def without(*keys: str) -> bytes:
    return json.dumps({k: v for k, v in result_of(AIT).items() if k not in keys}).encode()


def damaged_by(**values: object) -> bytes:
    return json.dumps({**result_of(AIT), **values}).encode()


DAMAGES: dict[str, tuple[str, bytes | None]] = {
    "broken yaml": ("experiment.yaml", b"a: [1"),
    "binary yaml": ("experiment.yaml", b"\xff\xfe\x00"),
    "no experiment": ("experiment.yaml", b"name: x"),
    "empty": ("result.json", b""),
    "cut off": ("result.json", b"{"),
    "binary": ("result.json", b"\xff\xfe\x00"),
    "list": ("result.json", b"[]"),
    "null": ("result.json", b"null"),
    "no keys": ("result.json", b"{}"),
    "no kinds": ("result.json", without("test_kinds")),
    "no epochs": ("result.json", without("epochs")),
    "no types": ("result.json", without("question_types")),
    "kinds are no list": ("result.json", damaged_by(test_kinds=None)),
    "kinds without scores": ("result.json", damaged_by(test_kinds=[{"name": "binary"}])),
    "score is text": (
        "result.json",
        damaged_by(test_kinds=[{"name": "binary", "accuracy": "70", "guess": 42.0}]),
    ),
    "folder": ("result.json", None),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_named_and_the_table_comes_all_the_same(
    damage: str, tmp_path: Path
) -> None:
    file, content = DAMAGES[damage]
    put(tmp_path, AIT, 0, result_of(AIT, 70.0))
    damaged = put(tmp_path, AIT, 1, result_of(AIT, 1.0)) / file
    damaged.unlink()
    if content is None:
        damaged.mkdir()
    else:
        damaged.write_bytes(content)
    table = relational_table(tmp_path)
    row = rows_of(table)["ait-small"]
    assert (row["relational"], row["seeds"]) == ("70.00", "1")
    assert sum(str(damaged.parent) in note for note in table.notes) == 1
    for text in (table.to_markdown(), table.to_html(), table.to_terminal(10_000)):
        assert "can't be read" in text.replace("&#39;", "'")


# --- forms ---


@pytest.fixture
def table(tmp_path: Path) -> Table:
    for seed in (0, 1):
        put(tmp_path, AIT, seed, result_of(AIT, 70.0 + seed))
    put(tmp_path, changed(), 0, result_of(changed()))
    put(tmp_path, RN, 0)
    return relational_table(tmp_path)


class Cells(HTMLParser):
    """Collects the text of the cells of each row, and the tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.inside = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data


def test_every_row_has_a_cell_for_each_column_in_every_form(table: Table) -> None:
    width = len(table.columns)
    rows = [row for section in table.sections for row in section.rows]
    assert len(rows) == 16 + 5 + 1
    assert {len(row) for row in rows} == {width}
    lines = [line for line in table.to_markdown().splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {width + 1}
    assert len(lines) == len(rows) + 2 * len(table.sections)
    cells = Cells(table.to_html()).rows
    titles = [[section.title] for section in table.sections]
    assert [row for row in cells if len(row) == 1] == titles
    assert [tuple(row) for row in cells if len(row) > 1] == [table.columns, *rows]


def test_the_page_refers_to_nothing_else(table: Table) -> None:
    page = table.to_html()
    assert page.startswith("<!doctype html>")
    tags = Cells(page).tags
    assert not {"script", "link", "img", "iframe", "a"} & {tag for tag, _ in tags}
    assert not {"src", "href"} & {name for _, attributes in tags for name in attributes}
    assert not re.search(r"https?:|@import|url\(", page)


@pytest.mark.parametrize("width", [200, 180, 80, 20])
def test_the_terminal_shows_every_cell(width: int, table: Table) -> None:
    text = table.to_terminal(width)
    assert max(map(len, text.splitlines())) <= max(width, 170)
    words = text.split()
    for section in table.sections:
        for row in section.rows:
            assert [word for cell in row for word in cell.split() if word not in words] == []
    assert [word for name in table.columns for word in name.split() if word not in words] == []
    assert table.title in text
    assert "…" not in text


def test_signs_in_a_cell_do_not_break_the_form() -> None:
    cell = "a|b <script>alert(1)</script> [red]x[/red] & c"
    table = Table(cell, ("model", "b|c"), [Section(cell, [(cell, "1|2")])], [cell])
    page = table.to_html()
    assert "<script>" not in page
    assert Cells(page).rows == [["model", "b|c"], [cell], [cell, "1|2"]]
    lines = [line for line in table.to_markdown().splitlines() if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in lines] == [3, 3, 3]
    assert r"1\|2" in lines[2]
    assert "[red]x[/red]" in table.to_terminal(200)


def test_signs_in_a_result_or_in_the_name_of_a_folder_do_not_break_the_page(
    tmp_path: Path,
) -> None:
    result = result_of(AIT, question_types=["a|b", "<script>"])
    put(tmp_path, AIT, 0, result)
    (put(tmp_path, AIT, 0, result, folder="<script> & [b]|") / "result.json").write_text("{")
    table = relational_table(tmp_path)
    assert "<script>" not in table.to_html()
    assert {
        line.count("|") - line.count("\\|")
        for line in table.to_markdown().splitlines()
        if line.startswith("|")
    } == {len(table.columns) + 1}
    assert "<script> & [b]|" in table.to_terminal(10_000)
