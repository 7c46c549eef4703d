"""The page about a run: its numbers, its structure, what it escapes and what it omits."""

import base64
import hashlib
import io
import json
import re
import shlex
import shutil
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from associative_transformer import report
from associative_transformer.analysis import load_analysis, sample
from associative_transformer.analysis.answers import Answers
from associative_transformer.analysis.competition import Competition
from associative_transformer.analysis.selection import SelectionStatistics
from associative_transformer.cli.options import parse
from associative_transformer.cli.train import TrainOptions
from associative_transformer.data import SortOfClevrConfig, TriangleConfig
from associative_transformer.evaluate import Interval, KindScore
from associative_transformer.experiment import (
    Experiment,
    fingerprint,
    save_experiment,
)
from associative_transformer.functional import hopfield_energy
from associative_transformer.interface import UserError
from associative_transformer.models.ait import AiT
from associative_transformer.recipes import RECIPES
from associative_transformer.report import AnalysisOptions, gallery, write_comparison, write_report
from associative_transformer.report.answers import answers_section
from associative_transformer.report.attention import competition_section
from associative_transformer.report.charts import (
    Bars,
    Boxes,
    Grid,
    Heat,
    Lines,
    Points,
    Section,
    Series,
    format_number,
)
from associative_transformer.report.comparison import differences_section, results_section
from associative_transformer.report.facts import read_facts, run_section
from associative_transformer.report.gallery import encode_image, load_gallery
from associative_transformer.report.images import images_section, list_takers, trace_retrieval
from associative_transformer.report.memory import memory_section
from associative_transformer.report.page import render
from associative_transformer.report.priors import list_cards, priors_section, winning_items
from associative_transformer.report.retrieval import retrieval_section
from associative_transformer.report.training import training_section
from associative_transformer.runs.result import RunResult
from associative_transformer.runs.saved import load_run
from associative_transformer.runs.training_command import format_train_command
from associative_transformer.training.loop import train
from associative_transformer.webpage import to_json
from making.commands import Ait, assert_refused
from making.plant import answers_of, kind_of, put_result, result_of
from making.reports import (
    CLASSES,
    MODEL,
    TRAIN,
    WORKSPACE,
    planted_basins,
    planted_tokens,
)

SECTIONS = [
    "run",
    "data-set",
    "training",
    "competition",
    "priors",
    "images",
    "roles",
    "memory",
    "beta",
    "recall",
    "evaluation",
]


@pytest.fixture
def runs(root: Path, tmp_path: Path) -> Path:
    """Return a copy of the reported runs that a test may change."""
    return shutil.copytree(root, tmp_path / "runs")


class Page(HTMLParser):
    """A parsed page: its elements, the texts of each kind of element, and its data."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, text: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(text.strip())

    def all(self, tag: str, name: str) -> list[str]:
        """Return an attribute of all elements of a kind that have it."""
        return [
            attrs[name] or "" for kind, attrs in self.elements if kind == tag and name in attrs
        ]

    @property
    def data(self) -> dict[str, Any]:
        (text,) = re.findall(
            r'<script type="application/json" id="data">(.*?)</script>', self.source
        )
        return json.loads(text)

    def words_of(self, section: str) -> str:
        """Return the whole text of a section."""
        (part,) = re.findall(rf'<section id="{section}".*?</section>', self.source, re.DOTALL)
        return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", part.replace("<wbr>", "")))


# --- tables of the values in charts ---


def test_the_table_of_lines_has_a_row_for_each_x_with_a_dash_for_missing_values() -> None:
    lines = [Series("a", [1, 2], [0.5, 0.25]), Series("b", [2, 3], [7, float("nan")])]
    grid = Lines("t", "epoch", "y", lines).table
    assert grid.columns == ["epoch", "a", "b"]
    assert grid.rows == [["1", "0.5", "-"], ["2", "0.25", "7"], ["3", "-", "-"]]


def test_the_table_of_bars_has_parts_intervals_and_marks_in_each_row() -> None:
    bars = Bars("t", "x", ["p", "q"], {"v": [1, 2]}, low=[0, 1], high=[2, 3], marks={"m": [8, 9]})
    assert bars.table.columns == ["", "v", "from", "to", "m"]
    assert bars.table.rows == [["p", "1", "0", "2", "8"], ["q", "2", "1", "3", "9"]]


def test_the_table_of_boxes_has_the_quantiles_and_then_the_bounds() -> None:
    boxes = Boxes("t", "x", ["head 1"], [[1, 2, 3, 4, 5]], {"uniform": 6})
    assert boxes.table.rows == [
        ["head 1", "1", "2", "3", "4", "5"],
        ["uniform", "", "", "6", "", ""],
    ]


def test_small_matrices_and_labeled_points_have_tables() -> None:
    heat = Heat("t", "x", "y", ["r"], ["c", "d"], [[0.5, 1]], 0, 1)
    assert (heat.table.columns, heat.table.rows) == (["y \\ x", "c", "d"], [["r", "0.5", "1"]])
    row = [str(i) for i in range(41)]
    assert Heat("t", "x", "y", ["r"], row, [[0.0] * 41], 0, 1).table is None
    assert Points("t", "x", "y", [1], [2], "note").table is None
    named = Points("t", "x", "y", [1], [2], "note", labels=["p"]).table
    assert named is not None and named.rows == [["p", "1", "2"]]


@pytest.mark.parametrize(
    ("value", "text"),
    [(12_345, "12,345"), (0.123456, "0.1235"), (float("nan"), "-"), (None, "-"), (0, "0")],
)
def test_integers_are_written_in_full_and_floats_with_four_digits(
    value: float | None, text: str
) -> None:
    assert format_number(value) == text


# --- facts ---


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--train.seed 7 --train.device cpu",
        "--train.compile on --model.workspace.reset-each-epoch",
        "--model.no-use-self-attention --model.workspace.no-differentiable-write",
        "--train.betas 0.8 0.95 --model.workspace.bottleneck None",
        "--train.schedule.shape inverse_sqrt --data.source /tmp/a\\ b",
        "--name own --model.depth 3",
    ],
)
def test_the_command_repeats_the_training(flags: str) -> None:
    recipe = RECIPES["cifar10-ait-tiny"]

    def read(words: list[str]) -> Experiment:
        return parse(TrainOptions, words, "train", TrainOptions(recipe)).experiment

    experiment = read(shlex.split(flags))
    command = format_train_command(experiment)
    assert command is not None
    program, train, name, *words = shlex.split(command)
    assert (program, train, name) == ("ait", "train", recipe.name)
    assert read(words) == experiment


def test_the_command_of_a_changed_run_names_its_recipe_not_its_hash() -> None:
    recipe = RECIPES["sort-of-clevr-cnn-mlp-tiny"]
    data = replace(recipe.data, question_types=("binary", "ternary"))
    changed = replace(recipe, data=data, name=f"{recipe.name}+{fingerprint(recipe)}")
    command = f"ait train {recipe.name} --data.question-types binary ternary"
    assert format_train_command(changed) == command


def put_run(folder: Path, experiment: Experiment, **result: Any) -> Path:  # noqa: ANN401
    folder.mkdir()
    save_experiment(experiment, folder / "experiment.yaml")
    put_result(folder, result_of(experiment, 63.824999999999996, test_images=10_000, **result))
    return folder


def cells(section: Section) -> dict[str, str]:
    return {row[0]: row[1] for grid in section.tables for row in grid.rows}


def test_the_result_is_shown_next_to_the_published_one(tmp_path: Path) -> None:
    folder = put_run(tmp_path / "a", RECIPES["cifar10-ait-small"])
    values = cells(run_section(read_facts(folder)))
    assert values["test accuracy"] == "63.83 % (62.88 to 64.76) on 10,000 images"
    assert values["published"] == "83.34 %"
    assert values["command"] == "ait train cifar10-ait-small"


def test_a_published_result_is_not_claimed_for_a_changed_recipe(tmp_path: Path) -> None:
    recipe = RECIPES["cifar10-ait-small"]
    changed = replace(recipe, train=replace(recipe.train, epochs=3))
    values = cells(run_section(read_facts(put_run(tmp_path / "a", changed))))
    assert "published" not in values
    assert values["published, for the unchanged cifar10-ait-small"] == "83.34 %"
    tiny = put_run(tmp_path / "b", RECIPES["cifar10-ait-tiny"])
    assert cells(run_section(read_facts(tiny)))["published"] == "none"


def test_questions_are_scored_by_type_next_to_the_best_guess(tmp_path: Path) -> None:
    kinds = [kind_of(name, 70.0, 50.0) for name in ("binary", "binary/closest", "all")]
    folder = put_run(tmp_path / "a", RECIPES["sort-of-clevr-ait-small"], test_kinds=kinds)
    values = cells(run_section(read_facts(folder)))
    assert values["binary questions"] == "70.00 % (60.00 to 80.00), best guess 50.00 %"
    assert "binary/closest questions" not in values
    assert values["published"] == "76.82 % binary, 99.85 % not"


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    folder = put_run(tmp_path / "a", RECIPES["cifar10-ait-tiny"])
    (folder / "result.json").write_text('{"test_accuracy": 1}')
    with pytest.raises(UserError, match=r"result\.json is damaged \(name: Field required\)"):
        read_facts(folder)
    (folder / "result.json").write_text("{")
    with pytest.raises(UserError, match=r"result\.json is damaged"):
        read_facts(folder)


# --- charts of planted numbers ---


def rows_of(*accuracies: float, validation: bool = True) -> list[dict[str, Any]]:
    """Return rows of `metrics.jsonl` with these training accuracies."""
    rows = [
        {"epoch": epoch, "lr": 0.1, "loss": 2.0 - epoch, "accuracy": value, "balance_loss": 0.0}
        for epoch, value in enumerate(accuracies, start=1)
    ]
    scores = {"validation": {"accuracy": 9.0, "loss": 3.0}} if validation else {}
    return [row | scores for row in rows]


def planted_result(folder: Path, accuracy: float, epochs: int, best: int | None) -> RunResult:
    """Return a result whose saved model is that of the epoch `best`, 1 % better than the last."""
    recipe = RECIPES["cifar10-ait-tiny"]
    scores = {"test_loss": 0.5, "test_images": 10_000, "validation_accuracy": 9.0}
    saved = best and {"epoch": best, "test_accuracy": accuracy + (best < epochs), **scores}
    values = result_of(recipe, accuracy, epochs=epochs, best_validation=saved)
    return put_result(folder, values)


SAVED, LAST = "test of the saved model", "test after the last epoch"


@pytest.mark.parametrize(
    ("best", "marks"),
    [
        (None, [(f"{SAVED} (last epoch)", [3], [17.0])]),
        (2, [(f"{SAVED} (epoch 2)", [2], [18.0]), (LAST, [3], [17.0])]),
        (3, [(f"{SAVED} (last epoch)", [3], [17.0])]),
    ],
    ids=["no validation", "best before last", "best is last"],
)
def test_accuracy_curves_mark_the_test_scores_of_the_saved_model_and_of_the_last_epoch(
    best: int | None, marks: list[Any], tmp_path: Path
) -> None:
    rows = rows_of(10.0, 20.0, 30.0, validation=best is not None)
    section = training_section({"": rows}, {"": planted_result(tmp_path, 17.0, 3, best)})
    loss, accuracy, _ = (figure.chart for figure in section.figures)
    assert isinstance(loss, Lines) and isinstance(accuracy, Lines)
    curves = ["training", *["validation"] * (best is not None)]
    assert [line.name for line in loss.series] == curves
    lines = [(line.name, list(line.x), list(line.y)) for line in accuracy.series]
    assert [name for name, *_ in lines[: len(curves)]] == curves
    assert lines[len(curves) :] == marks
    hues = [line.hue for line in accuracy.series]
    assert len(set(hues)) == len(hues)


def test_the_table_of_the_accuracy_has_the_test_scores_at_their_epochs(tmp_path: Path) -> None:
    result = planted_result(tmp_path, 17.0, 2, best=1)
    section = training_section({"": rows_of(10.0, 20.0)}, {"": result})
    table = section.figures[1].chart.table
    assert table.columns[3:] == [f"{SAVED} (epoch 1)", LAST]
    assert table.rows == [["1", "10", "9", "18", "-"], ["2", "20", "9", "-", "17"]]


def test_curves_of_two_runs_share_charts_and_a_missing_balance_loss_is_noted(
    tmp_path: Path,
) -> None:
    (row,) = rows_of(5.0)
    runs = {"A ": [row], "B ": [{**row, "balance_loss": 2.0}] * 2}
    results = {"A ": None, "B ": planted_result(tmp_path, 6.0, 2, best=1)}
    section = training_section(runs, results)
    names = {
        figure.chart.title: [s.name for s in figure.chart.series] for figure in section.figures
    }
    curves = ["A training", "A validation", "B training", "B validation"]
    assert names["Accuracy"] == [*curves, f"B {SAVED} (epoch 1)", f"B {LAST}"]
    assert names["Balance loss"] == ["B balance loss"]
    hues = [[line.hue for line in figure.chart.series] for figure in section.figures[:2]]
    assert hues == [[0, 5, 1, 4], [0, 5, 1, 4, 3, 7]]  # each run has its own colors
    assert section.figures[-1].chart.note == "Run A has no balance loss."


def test_all_lines_of_two_runs_have_different_colors(tmp_path: Path) -> None:
    runs = {name: rows_of(5.0, 6.0) for name in ("A ", "B ")}
    results = {name: planted_result(tmp_path, 6.0, 2, best=1) for name in runs}
    hues = [line.hue for line in training_section(runs, results).figures[1].chart.series]
    assert sorted(hues) == list(range(8))


@pytest.mark.parametrize("letters", ["", "A", "AB"])
def test_a_complete_run_without_its_metrics_is_not_called_unfinished(
    letters: str, tmp_path: Path
) -> None:
    result = planted_result(tmp_path, 6.0, 2, best=1)
    lost = [f"{letter} " for letter in letters] or [""]
    runs = {"": [], "A ": rows_of(5.0), "B ": rows_of(5.0)}
    runs = {
        name: [] if name in lost else runs[name] for name in (["A ", "B "] if letters else [""])
    }
    note = training_section(runs, dict.fromkeys(runs, result)).note
    of = {
        "": "metrics.jsonl is",
        "A": "metrics.jsonl of run A is",
        "AB": "metrics.jsonl of run A and run B is",
    }
    assert note.startswith(f"{of[letters]} missing: copy it again from the original run folder.")
    assert "yet" not in note


def test_competition_has_a_box_for_each_head_of_the_layers_with_attention() -> None:
    counts = np.zeros((1, 2, 11), np.int64)
    counts[0, 0, 3] = 100  # every token of head 1 needs 3 of 10
    counts[0, 1, [1, 9]] = 50
    section = competition_section(Competition(0.9, 7, [4], counts), "images")
    (figure,) = section.figures
    assert "layer 5" in figure.chart.title and section.choices[0].options == ["layer 5"]
    assert figure.chart.quantiles[0] == (3, 3, 3, 3, 3)
    assert figure.chart.quantiles[1] == (1, 1, 1, 9, 9)
    assert figure.chart.bounds == {"one token": 1, "uniform attention": 9}


def test_every_temperature_and_layer_has_charts_of_energy_rest_and_basins() -> None:
    expected = planted_basins()
    section = retrieval_section(expected, planted_tokens(), "images")
    beta, layer = section.choices
    assert (beta.options, beta.start, beta.is_slider) == (["0.05", "1", "16"], 1, True)
    assert layer.options == ["layer 1", "layer 2"]
    for i in range(3):
        for j in range(2):
            charts = [f.chart for f in section.figures if f.shown_if == {"beta": i, "layer": j}]
            (energy,) = [chart for chart in charts if isinstance(chart, Lines)]
            assert energy.series[0].y == expected.energy[i, j].tolist()
            rest, basins = (chart for chart in charts if isinstance(chart, Bars))
            (shares,) = rest.parts.values()
            assert shares == [
                100 * x[i, j] for x in (expected.single, expected.metastable, expected.uniform)
            ]
            assert len(basins.labels) == expected.num_fixed_points[i, j]
            planes = [chart for chart in charts if isinstance(chart, Points)]
            assert len(planes) == (i != 1)  # tokens are stored for two of three temperatures


def test_tokens_in_a_plane_keep_image_and_order() -> None:
    tokens = planted_tokens()
    section = retrieval_section(planted_basins(), tokens, "questions")
    (before,) = [
        f.chart for f in section.figures if "before" in f.chart.title and f.shown_if["layer"]
    ]
    assert isinstance(before, Points)
    assert list(zip(before.x, before.y, strict=True))[4] == tuple(tokens.before[1, 1, 1])
    assert before.groups == [0, 0, 0, 1, 1, 1] and before.shades == [0, 0.5, 1, 0, 0.5, 1]
    (after,) = [f.chart for f in section.figures if f.shown_if == {"beta": 2, "layer": 1}][:1]
    assert "6 of 6 tokens are distinct afterwards" in after.note
    assert list(zip(after.x, after.y, strict=True))[2] == tuple(tokens.after[1, 1, 0, 2])


def test_the_slider_starts_at_the_nearest_temperature_by_ratio() -> None:
    section = retrieval_section(replace(planted_basins(), trained_beta=0.5), None, "images")
    assert section.choices[0].start == 1  # half of 1, but ten times 0.05
    assert not [f for f in section.figures if isinstance(f.chart, Points)]


def planted_answers(num_classes: int) -> Answers:
    names = [f"c{i}" for i in range(num_classes)]
    confusion = 8 * np.eye(num_classes, dtype=np.int64)
    confusion[1, 0] = 2
    return Answers(
        classes=names,
        confusion=confusion,
        bins=np.array([0.0, 0.5, 1.0]),
        bin_items=np.array([0, 9]),
        bin_confidence=np.array([np.nan, 0.9]),
        bin_accuracy=np.array([np.nan, 0.8]),
        calibration_error=0.1,
        worst=np.array([3]),
        worst_labels=np.array([1]),
        worst_predicted=np.array([0]),
        worst_confidence=np.array([0.75]),
    )


def test_answers_are_drawn_as_shares_of_their_true_class() -> None:
    section = answers_section(planted_answers(3), [], [], "questions")
    heat, classes, calibration, sure = (figure.chart for figure in section.figures)
    assert heat.values == [[100, 0, 0], [20, 80, 0], [0, 0, 100]]
    assert classes.parts["accuracy, %"] == [100, 80, 100]
    assert (calibration.series[0].x, calibration.series[0].y) == ([0.9], [0.8])  # no empty bin
    assert (list(sure.labels), sure.parts["test questions"]) == (["50 to 100 %"], [9])
    assert (
        "correct on 24 of the 26 analyzed test questions (92.31 %)" in section.note
        and "10.0 percentage points" in section.note
    )
    bounds = classes.low[0], classes.high[0]
    assert bounds == pytest.approx((67.56, 100), abs=0.01)  # 8 of 8
    images = answers_section(planted_answers(3), [], [], "images")
    assert "(92.31 %, 95 % interval 75.86 to 97.86 %)" in images.note  # 24 of 26


def test_a_fitted_temperature_has_a_line_of_its_own_in_the_calibration() -> None:
    scaled = replace(
        planted_answers(3),
        temperature=1.5,
        scaled_confidence=np.array([np.nan, 0.75]),
        scaled_accuracy=np.array([np.nan, 0.8]),
        scaled_error=0.05,
    )
    section = answers_section(scaled, [], [], "images")
    (calibration,) = [f.chart for f in section.figures if f.chart.title.startswith("Calibration")]
    line = calibration.series[2]
    assert (line.name, line.x, line.y) == ("at temperature 1.500", [0.75], [0.8])
    assert "10.0 percentage points, and 5.0 at temperature 1.500" in section.note
    assert section.note.endswith("validation split.")


def test_with_many_classes_only_the_most_frequent_confusions_are_shown() -> None:
    section = answers_section(planted_answers(30), [], [], "images")
    pairs = section.figures[0].chart
    assert isinstance(pairs, Bars)
    assert (pairs.labels[0], pairs.parts["images"][0]) == ("c1 mistaken for c0", 2)
    assert not [figure for figure in section.figures if isinstance(figure.chart, Heat)]


def test_kinds_of_questions_replace_the_classes() -> None:
    kinds = [KindScore("all", 70.0, Interval(60.0, 80.0), 50.0, questions=9, images=3)]
    bars = answers_section(planted_answers(3), kinds, [], "questions").figures[0].chart
    assert bars.table.rows == [["all", "70", "60", "80", "50"]]


def test_the_memory_is_shown_after_the_epoch_of_the_saved_model() -> None:
    memory = np.random.default_rng(0).normal(size=(3, 1, 5, 2))
    memory[1, 0] = [[1, 0], [0, 1], [-1, 0], [0, -1], [2, 0]]
    section = memory_section(memory, epoch=2)
    heat, plane, drift, rank, _ = (figure.chart for figure in section.figures)
    assert np.array(heat.values)[0].tolist() == [1, 0, -1, 0, 1]
    assert heat.note == "Mean over pairs of different priors: -0.20."  # -4 of 20
    points = np.array([plane.x, plane.y]).T
    for i in range(5):  # two dimensions fit into the plane without loss
        for j in range(5):
            expected = np.linalg.norm(memory[1, 0, i] - memory[1, 0, j])
            assert np.linalg.norm(points[i] - points[j]) == pytest.approx(expected)
    assert list(drift.series[0].x) == [2, 3]  # there is no drift before the second epoch
    assert len(rank.series[0].y) == 3 and "after epoch 2" in section.note


def test_a_memory_of_one_epoch_has_no_drift() -> None:
    charts = [figure.chart for figure in memory_section(np.ones((1, 1, 4, 2)), epoch=1).figures]
    titles = [chart.title for chart in charts if isinstance(chart, Lines)]
    assert titles == ["Effective rank", "Distinct priors"]


def series_of(section: Section) -> dict[str, dict[str, dict[int, float]]]:
    """Return the values of each chart with lines by title, name of the line, and epoch."""
    return {
        figure.chart.title: {
            line.name: dict(zip(line.x, line.y, strict=True)) for line in figure.chart.series
        }
        for figure in section.figures
        if isinstance(figure.chart, Lines)
    }


def planted_memory() -> np.ndarray:
    """Return two layers of eight priors over four epochs: the second layer collapses in the third.

    It has two directions in epoch 2, but only one distinct prior of eight in epochs 3 and 4.
    """
    memory = np.tile(np.eye(8), (4, 2, 1, 1))
    memory[1, 1, 4:] = np.eye(8)[0]
    memory[2:, 1] = np.eye(8)[0]
    return memory


HEALTH = {"overlap": 0.1, "tokens_used": 0.75, "priors_winning": 1.0, "distinct": 8.0}


def test_the_memory_shows_its_health_in_each_epoch() -> None:
    rows: list[dict[str, Any]] = [
        {"epoch": epoch, "balance_loss": epoch / 10, "health": [HEALTH, {**HEALTH, "overlap": x}]}
        for epoch, x in enumerate((0.2, 0.4, None, 1.0), start=1)
    ]
    del rows[1]["health"]  # of an early version
    rows[2]["health"][1] = {"overlap": None}
    found = series_of(memory_section(planted_memory(), 4, metrics=rows))
    assert found["Distinct priors"] == {
        "layer 1": dict.fromkeys((1, 2, 3, 4), 8),
        "layer 2": {1: 8, 2: 4, 3: 1, 4: 1},
    }
    assert found["Overlap of winners"] == {
        "layer 1": dict.fromkeys((1, 3, 4), 0.1),
        "layer 2": {1: 0.2, 4: 1.0},
    }
    assert found["Tokens used"]["layer 2"] == {1: 0.75, 4: 0.75}
    assert found["Priors that win"]["layer 1"] == dict.fromkeys((1, 3, 4), 1.0)
    assert found["Balance loss of the memories"]["all layers"] == pytest.approx(
        {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}
    )


@pytest.mark.parametrize("rows", [[], [{"epoch": 1, "balance_loss": 0.0}]], ids=["none", "old"])
def test_runs_that_recorded_no_health_show_what_follows_from_their_memory(
    rows: list[dict[str, Any]],
) -> None:
    titles = set(series_of(memory_section(planted_memory(), 4, metrics=rows)))
    assert titles == {"Drift of the priors", "Effective rank", "Distinct priors"}


@pytest.mark.parametrize(("epoch", "expected"), [(1, ""), (2, ""), (3, "3"), (4, "3")])
def test_a_collapsed_memory_is_named_with_the_epoch_in_which_it_did(
    epoch: int, expected: str
) -> None:
    note = memory_section(planted_memory(), epoch).note
    assert "layer 1 has collapsed" not in note
    assert ("layer 2 has collapsed" in note) == bool(expected)
    if expected:
        assert f"(since epoch {expected}): 1 of 8 priors are distinct" in note
        assert note.endswith("with an effective rank of 1.0.")


def test_priors_that_images_start_from_are_called_learned() -> None:
    assert "learned" not in memory_section(planted_memory(), 1).note
    assert "which are learned" in memory_section(planted_memory(), 1, scope="image").note


def test_the_page_of_a_run_shows_the_health_of_its_memory(root: Path) -> None:
    page = Page(root / "ait" / "report.html")
    words = page.words_of("memory")
    for title in ("Distinct priors", "Overlap of winners", "Tokens used", "Priors that win"):
        assert title in words
    rows = [json.loads(line) for line in (root / "ait" / "metrics.jsonl").read_text().splitlines()]
    for layer in rows[-1]["health"]:
        assert format_number(layer["overlap"]) in words
    assert "Overlap of winners" not in Page(root / "vit" / "report.html").source


def test_equal_priors_are_drawn_at_one_point() -> None:
    memory = np.tile(np.array([0.6, 0.8]), (1, 1, 4, 1)) + 1e-9 * np.arange(8).reshape(4, 2)
    plane = memory_section(memory, epoch=1).figures[1].chart
    assert plane.x == [0, 0, 0, 0] and plane.y == [0, 0, 0, 0]


def planted_selection() -> SelectionStatistics:
    """Return statistics of four priors: the second is a duplicate, the third is dead."""
    layers, heads, priors, images, patches = 1, 2, 4, 3, 4
    overlap = np.tile(np.eye(priors), (layers, heads, 1, 1))
    overlap[..., 0, 1] = overlap[..., 1, 0] = 0.95
    taken = np.zeros((layers, heads, priors, images, patches), np.int64)
    taken[0, 0, 1, 0, 2], taken[0, 0, 3, 0, 2], taken[0, 1, 2, 1, 0] = 5, 2, 1
    winners = np.arange(layers * heads * priors * 2 * 2).reshape(layers, heads, priors, 2, 2) % 3
    return SelectionStatistics(
        num_images=3,
        pool_size=12,
        bottleneck=2,
        usage=np.array([[0.4, 0.3, 0.01, 0.29]]),
        entropy=np.arange(8.0).reshape(layers, heads, priors) / 4,
        coverage=np.ones((layers, heads)),
        overlap=overlap,
        head_overlap=np.ones((layers, priors, heads, heads)),
        similarity=np.tile(np.eye(priors), (layers, 1, 1)),
        effective_rank=np.ones(layers),
        winners=winners,
        winner_scores=np.ones(winners.shape[:-1]),
        taken=taken,
    )


def test_the_table_of_priors_marks_the_dead_and_the_duplicates() -> None:
    section = priors_section(planted_selection(), None, "images")
    rows = section.tables[0].rows
    assert [(row[0], row[3], row[4]) for row in rows] == [
        ("layer 1, prior 1", "", ""),
        ("layer 1, prior 2", "", "duplicate"),
        ("layer 1, prior 3", "dead", ""),
        ("layer 1, prior 4", "", ""),
    ]
    assert rows[1][1:3] == ["30.00", "0.75"]  # entropy 0.25 and 1.25 in the two heads
    assert "Number of dead priors: 1 of 4; number of duplicates: 1." in section.note


def test_heads_in_which_priors_never_win_are_named_and_a_collapsed_one_too() -> None:
    wins = np.array([[[0.3, 0.3, 0.2, 0.2], [0.99, 0.01, 0.0, 0.0]]])
    selection = replace(planted_selection(), wins=wins)
    section = priors_section(selection, None, "images")
    assert [row[5] for row in section.tables[0].rows] == ["", "head 2", "head 2", "head 2"]
    assert "Priors that never win: layer 1, head 2: 3 of 4." in section.note
    assert "Head 2 of layer 1 has collapsed: prior 1 wins 99 % of its tokens." in section.note
    (layer,) = list_cards(selection, None)
    assert [head["loser"].tolist() for head in layer["heads"]] == [
        [False] * 4,
        [False, True, True, True],
    ]
    even = replace(selection, wins=np.full((1, 2, 4), 0.25))
    assert "Every prior wins tokens." in priors_section(even, None, "images").note
    assert "--again" in priors_section(planted_selection(), None, "images").note


def test_a_card_has_the_winners_of_its_head_with_their_scores() -> None:
    selection = planted_selection()
    (layer,) = list_cards(selection, None)
    card = layer["heads"][1]["winners"][2]
    expected = [(*winner, 1.0) for winner in selection.winners[0, 1, 2].tolist()]
    assert card == expected


def test_items_with_the_best_winners_come_first_and_only_once() -> None:
    selection = planted_selection()
    winners = np.zeros_like(selection.winners)
    winners[0, :, :, 0, 0] = [[4, 5, 6, 4], [7, 5, 4, 6]]
    winners[0, :, :, 1, 0] = 9
    assert list(winning_items(replace(selection, winners=winners))) == [4, 5, 6, 7, 9]


def test_the_priors_that_take_a_patch_are_listed_best_first_and_counted() -> None:
    taken = np.array([[3, 0, 1], [1, 0, 0], [2, 0, 0], [9, 0, 4]])  # (M, P)
    assert list_takers(taken) == [[0, 4, 1, 2, 0], [2, 2, 0, 3]]


def test_a_retrieval_trace_has_falling_energies_and_the_nearest_prior() -> None:
    config = SortOfClevrConfig(num_train=2, num_test=3, num_questions=2)
    workspace = replace(WORKSPACE, beta=2.0)
    model_config = replace(
        MODEL, image_size=75, patch_size=25, num_classes=10, question_dim=18, workspace=workspace
    )
    model = AiT(model_config).eval()
    split = config.load_test(torch.device("cpu")).test.take(torch.arange(5))
    traced = trace_retrieval(model, split)
    assert traced.energy is not None and traced.nearest is not None
    assert traced.energy.shape == (2, 5, 10, 5) and traced.nearest.shape == (2, 5, 10)
    assert (np.diff(traced.energy, axis=-1) <= 1e-4).all()
    (batch,) = split.eval_batches(5)
    assert traced.predicted == model(batch.images, batch.questions).logits.argmax(dim=-1).tolist()
    block = model.blocks[0]
    inputs: list[torch.Tensor] = []
    block.workspace.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    model(batch.images, batch.questions)
    (u,) = inputs
    attractors = block.workspace.to_attractor(block.workspace.priors)
    by_hand = hopfield_energy(u[3, 7], attractors, 2.0).item()
    assert traced.energy[0, 3, 7, 0] == pytest.approx(by_hand, rel=1e-5)
    assert traced.nearest[0, 3, 7] == (attractors @ u[3, 7]).argmax().item()


def test_a_model_that_reads_by_attention_has_no_energy() -> None:
    model = AiT(replace(MODEL, image_size=64, patch_size=32, read="cross_attention")).eval()
    data = TriangleConfig(num_train=2, num_test=3).load_test(torch.device("cpu"))
    traced = trace_retrieval(model, data.test)
    assert (traced.energy, traced.nearest, len(traced.predicted)) == (None, None, 3)


# --- images ---


def decode(source: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2])))


def test_small_images_are_kept_unchanged_and_large_ones_are_scaled_down() -> None:
    pixels = torch.randint(256, (3, 32, 32), dtype=torch.uint8)
    source = encode_image(pixels / 255)
    assert source.startswith("data:image/png;base64,")
    assert np.array_equal(np.asarray(decode(source)), pixels.movedim(0, -1).numpy())
    gray = decode(encode_image(torch.full((1, 64, 64), 2.0)))
    assert (gray.mode, gray.getpixel((5, 5))) == ("L", 255)
    large = encode_image(torch.rand(3, 224, 224))
    assert large.startswith("data:image/jpeg;base64,") and max(decode(large).size) == 128


def test_questions_about_a_picture_share_it_and_have_texts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded: list[str] = []
    monkeypatch.setattr(
        gallery, "encode_image", lambda image: encoded.append(encode_image(image)) or encoded[-1]
    )
    config = SortOfClevrConfig(num_train=2, num_test=3, num_questions=2)
    data = config.load_test(torch.device("cpu"))
    loaded = load_gallery(data, config, [0, 1], [2, 11, 0])
    assert list(loaded.items) == [0, 1, 2, 11]
    assert (
        set(loaded.sources) == set(data.test.rows[[0, 1, 2, 11]].tolist())
        and len(loaded.sources) == 2
    )
    assert len(encoded) == 2
    item = loaded.items[0]
    assert item.text == f"{item.question}? {item.classes[item.label]}"
    assert item.question and item.label == data.test.labels[0]
    whole = np.asarray(decode(loaded.sources[item.row]))
    assert whole.shape == (75, 75, 3) and whole.max() == 255


def test_optional_images_stop_at_the_size_limit_of_the_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = TriangleConfig(num_train=2, num_test=200)
    data = config.load_test(torch.device("cpu"))
    monkeypatch.setattr(gallery, "MAX_BYTES", 1)
    loaded = load_gallery(data, config, range(150, 200), range(200))
    assert len(loaded.items) == 50 + gallery.CHUNK_SIZE


# --- the file ---


def test_data_can_neither_close_its_element_nor_contain_invalid_numbers() -> None:
    values = {
        "a": "</script><!--<script>&",
        "b": [np.float64("nan"), np.inf, 1 / 3],
        3: (True, None),
    }
    text = to_json(values | {"c": np.arange(2), "d": Series("n", [1], [0.5])})
    assert not re.search("[<>&]", text)
    read = json.loads(text)
    assert read["a"] == values["a"] and read["b"] == [None, None, 0.3333]
    assert read["3"] == [True, None] and read["c"] == [0, 1] and read["d"]["y"] == [0.5]


def test_names_are_shown_as_text_everywhere(root: Path) -> None:
    page = Page(root / "ait" / "report.html")
    assert [tag for tag, _ in page.elements].count("script") == 2  # the data and the script
    assert not [attrs for tag, attrs in page.elements if tag == "b" or "onerror" in attrs]
    assert any("<script>" in text for text in page.texts["th"])  # confusion
    assert any(text.startswith("<b>odd<|b>, seed 0") for text in page.texts["h1"])
    assert {item["text"] for item in page.data["items"].values()} == set(CLASSES)


def test_the_page_refers_to_no_other_file_and_allows_no_other_script(root: Path) -> None:
    page = Page(root / "ait" / "report.html")
    links = [*page.all("a", "href"), *page.all("img", "src"), *page.all("link", "href")]
    assert links and all(link.startswith(("#", "data:")) for link in links)
    assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org/2000/svg)", page.source)
    (policy,) = [text for text in page.all("meta", "content") if "default-src" in text]
    script = page.source.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'") and f"script-src 'sha256-{digest}'" in policy
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]


def test_every_section_is_present_and_has_a_link(root: Path) -> None:
    page = Page(root / "ait" / "report.html")
    assert page.all("section", "id") == [*SECTIONS, "cost"]
    names = ["content", *page.all("section", "id")]
    assert page.all("a", "href") == [f"#{name}" for name in names]
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert set(page.all("label", "for")) <= set(ids)


def test_every_chart_has_data_and_a_text_alternative(root: Path) -> None:
    page = Page(root / "ait" / "report.html")
    numbers = [int(number) for number in page.all("figure", "data-chart")]
    assert numbers == list(range(len(page.data["charts"]))) and len(numbers) > 40
    titles = [text for text in page.texts["figcaption"] if text]
    assert titles == [chart["title"] for chart in page.data["charts"]]
    figures = re.findall(r"<figure.*?</figure>", page.source, re.DOTALL)
    assert all("<details>" in figure or 'class="note"' in figure for figure in figures)


def test_the_page_counts_the_images_of_each_split_and_class(root: Path) -> None:
    page = Page(root / "ait" / "report.html")
    summary = json.loads((root / "ait" / "data.json").read_text())
    test = next(split for split in summary["splits"] if split["name"] == "test")
    assert sum(test["classes"].values()) == 14
    for name, count in test["classes"].items():
        assert f"{escape(name)} 12 {count} {12 + count}" in page.words_of("data-set")


def test_results_tables_and_mistakes_need_no_script(root: Path) -> None:
    page = Page(root / "ait" / "report.html")
    result = json.loads((root / "ait" / "result.json").read_text())
    low, high = result["test_interval"]
    score = f"{result['test_accuracy']:.2f} % ({low:.2f} to {high:.2f}) on 14 images"
    assert score in page.words_of("run")
    balanced = f"balanced accuracy {result['test_balanced_accuracy']:.2f} %"
    assert balanced in page.words_of("run")
    error = f"expected calibration error {result['test_calibration']['error']:.2f} points"
    assert error in page.words_of("run")
    assert "layer 2, prior 4" in page.words_of("priors")
    assert f"{result['live_parameters']:,}" in page.words_of("cost")
    answers = load_analysis(root / "ait").answers
    assert answers is not None and len(answers.worst) > 0
    assert len(page.all("img", "src")) == len(answers.worst)


def test_the_image_view_has_the_data_of_the_analysis(root: Path) -> None:
    page = Page(root / "ait" / "report.html")
    selection = load_analysis(root / "ait").selection
    assert selection is not None
    assert len(page.data["images"]) == selection.taken.shape[3] == 14
    shown = page.data["images"][5]["taken"][1][0]
    assert shown == list_takers(selection.taken[1, 0, :, 5])
    run = load_run(root / "ait")
    split = sample(run.experiment.data.load_test(torch.device("cpu")).test)
    label = run.classes[int(split.labels[5])]  # indices are those of the shuffled split
    assert page.data["items"]["5"]["text"] == label


def test_the_images_of_a_page_equal_the_files(root: Path) -> None:
    page = Page(root / "ait" / "report.html")
    for item in page.data["items"].values():
        shown = np.asarray(decode(page.data["sources"][str(item["row"])]))
        files = (root / "images" / "test" / item["text"]).glob("*.png")
        assert any(np.array_equal(shown, np.asarray(Image.open(file))) for file in files)


def test_the_memory_of_the_best_epoch_is_shown_if_its_model_was_saved(runs: Path) -> None:
    result = json.loads((runs / "ait" / "result.json").read_text())
    scores = {key: value for key, value in result.items() if key.startswith("test_")}
    best = {"epoch": 1, "validation_accuracy": 20.0, **scores, "test_accuracy": 12.5}
    best["test_interval"] = [2.5, 39.5]
    best["test_calibration"] = {"error": 9.25, "temperature": 1.5, "scaled_error": 3.5}
    result["best_validation"] = best
    (runs / "ait" / "result.json").write_text(json.dumps(result))
    page = Page(write_report(runs / "ait"))
    assert "after epoch 1." in page.words_of("memory")
    when = "saved model, after epoch 1, the best on validation"
    low, high = result["test_interval"]
    for line in (
        f"test accuracy, {when} 12.50 % (2.50 to 39.50) on 14 images",
        f"expected calibration error, {when} 9.25 points; 3.50 at temperature 1.500, fitted",
        f"test accuracy, after the last epoch {result['test_accuracy']:.2f} % "
        f"({low:.2f} to {high:.2f}) on 14 images",
    ):
        assert line in page.words_of("run")
    head = (
        "12.50 % accuracy (95 % interval 2.50 to 39.50 %) of the saved model "
        "(epoch 1, the best on validation), "
    )
    assert f"{head}{result['test_accuracy']:.2f} % after the last epoch, on 14" in page.source


def test_a_page_is_small(root: Path) -> None:
    assert (root / "ait" / "report.html").stat().st_size < 1_000_000


def test_a_run_on_questions_names_them_and_shows_the_first_48(tmp_path: Path) -> None:
    model = replace(MODEL, image_size=75, patch_size=15, num_classes=10, question_dim=18, depth=1)
    data = SortOfClevrConfig(num_train=4, num_test=10, num_questions=5)
    folder = tmp_path / "run"
    train(Experiment("asked", data, model, replace(TRAIN, epochs=1, batch_size=20)), folder)
    path = write_report(folder)
    assert path.stat().st_size < 10_000_000
    page = Page(path)
    assert (len(page.data["images"]), page.data["noun"]) == (48, "question")
    for section in ("competition", "priors", "images", "evaluation"):
        assert "test questions" in page.words_of(section)
        assert "test images" not in page.words_of(section)
    assert "Hues distinguish the 8 questions" in page.words_of("beta")
    assert re.search(r"accuracy \(95 % interval .+ %\) on 100 test questions of s", page.source)
    assert "The token of the question comes before those of the patches." in page.words_of(
        "images"
    )


def test_a_page_names_recipe_data_set_and_seed(root: Path) -> None:
    page = Page(root / "ait" / "report.html")
    assert any(text.startswith("<b>odd<|b>, seed 0") for text in page.texts["h1"])
    assert "on 14 test images of own images, not CIFAR-10 (2 classes instead" in page.source
    assert "data set own images, not CIFAR-10" in page.words_of("run")
    assert "test questions" not in page.source and page.data["noun"] == "image"


def test_a_section_without_content_has_one_short_note(root: Path) -> None:
    page = Page(root / "vit" / "report.html")
    assert page.all("section", "id") == [*SECTIONS, "cost"]
    for section in ("priors", "images", "roles", "memory", "beta", "recall"):
        assert "This model" in page.words_of(section)
        assert len(page.words_of(section)) < 150
    assert "layer 1" in page.words_of("competition")
    assert not {"priors", "images"} & page.data.keys()


def test_a_stored_analysis_is_reused_unless_again_is_set(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested: list[int | None] = []

    def analyze(*arguments: Any, **_: Any) -> Any:  # noqa: ANN401
        requested.append(arguments[3])
        return load_analysis(arguments[1])

    monkeypatch.setattr(report, "analyze", analyze)
    write_report(runs / "ait")
    assert requested == []
    write_report(runs / "ait", options=AnalysisOptions(num_images=5, again=True))
    assert requested == [5]
    (runs / "images").rename(runs / "moved")
    with pytest.raises(UserError):
        write_report(runs / "ait", options=AnalysisOptions(source=str(runs / "images")))
    path = write_report(runs / "ait", runs / "x.html", AnalysisOptions(source=str(runs / "moved")))
    assert path == runs / "x.html" and "Evaluation" in path.read_text()


def test_images_of_other_classes_are_refused(runs: Path) -> None:
    for split in ("train", "test"):
        (runs / "images" / split / "<script>").rename(runs / "images" / split / "other")
    with pytest.raises(UserError, match="the data has the classes"):
        write_report(runs / "ait", options=AnalysisOptions(source=str(runs / "images")))


def test_an_unfinished_run_has_a_page_with_what_is_known_so_far(runs: Path) -> None:
    folder = runs / "ait"
    for name in ("result.json", "model.safetensors", "report.html"):
        (folder / name).unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines()[:1]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    page = Page(write_report(folder))
    assert page.all("section", "id") == [*SECTIONS, "cost"]
    assert "unfinished: 1 of 2 epochs" in page.words_of(
        "run"
    ) and "not available yet" in page.words_of("run")
    for section in ("competition", "priors", "images", "roles", "beta", "recall", "evaluation"):
        assert "Available once the run is complete." in page.words_of(section)
    assert "after epoch 1" in page.words_of("memory")
    titles = [chart["title"] for chart in page.data["charts"]]
    assert "Loss" in titles and "Cosine similarity of the priors, layer 1" in titles
    assert "Drift of the priors" not in titles  # a single epoch has no drift


@pytest.mark.parametrize(
    ("num_classes", "words"),
    [
        (2, "own images, not CIFAR-10 (2 classes instead of 10)"),
        (10, "a folder passed as cifar10, to be compared with CIFAR-10 when the run is complete"),
    ],
)
def test_an_unfinished_run_does_not_claim_the_data_set_of_its_recipe(
    num_classes: int, words: str, tmp_path: Path
) -> None:
    recipe = RECIPES["cifar10-ait-small"]
    data = replace(recipe.data, source="mine")
    changed = replace(recipe, data=data, model=replace(recipe.model, num_classes=num_classes))
    folder = put_run(tmp_path / "a", changed)
    (folder / "result.json").unlink()
    facts = read_facts(folder)
    assert facts.summary == f"Unfinished: 0 of 100 epochs, on {words}."
    values = cells(run_section(facts))
    assert values["data set"] == words
    assert "published" not in values
    save_experiment(recipe, folder / "experiment.yaml")
    facts = read_facts(folder)
    assert facts.summary == "Unfinished: 0 of 100 epochs, on cifar10."
    assert cells(run_section(facts))["published"] == "83.34 %"


def test_a_run_without_a_complete_epoch_has_a_page(runs: Path) -> None:
    for name in ("result.json", "metrics.jsonl", "memory.npz", "environment.json"):
        (runs / "ait" / name).unlink()
    page = Page(write_report(runs / "ait"))
    assert "No epoch is complete yet." in page.words_of("training")
    assert "Available once the run is complete." in page.words_of("memory")


def test_a_complete_run_without_its_history_says_what_is_missing(runs: Path) -> None:
    (runs / "ait" / "metrics.jsonl").unlink()
    page = Page(write_report(runs / "ait"))
    for section in ("training", "memory"):
        words = page.words_of(section)
        assert "metrics.jsonl is missing: copy it again from the original run folder" in words
        assert "yet" not in words and "This model" not in words
    (runs / "vit" / "metrics.jsonl").unlink()
    page = Page(write_report(runs / "vit"))
    assert "This model has no memory." in page.words_of("memory")


def test_an_unfinished_run_promises_no_section_that_its_model_cannot_have(runs: Path) -> None:
    (runs / "vit" / "result.json").unlink()
    page = Page(write_report(runs / "vit"))
    for section in ("competition", "evaluation"):
        assert "Available once the run is complete." in page.words_of(section)
    for section in ("priors", "images", "roles", "memory", "beta", "recall"):
        assert "This model" in page.words_of(section)


@pytest.mark.parametrize("has_energy", [True, False])
def test_the_image_view_mentions_the_energy_only_if_there_is_one(has_energy: bool) -> None:
    section = images_section(planted_selection(), "images", has_energy)
    assert ("energy" in section.note) == has_energy


# --- two runs ---


def test_two_runs_are_shown_side_by_side(runs: Path) -> None:
    path = write_comparison(runs / "ait", runs / "vit")
    assert path == runs / "ait" / "comparison.html"
    page = Page(path)
    names = ["run", "results", "differences", "training", "data-set", "competition", "roles"]
    assert page.all("section", "id") == [*names, "memory", "beta", "recall", "evaluation", "cost"]
    for name in ("run", "competition", "memory", "beta", "evaluation", "cost"):
        assert "Run A" in page.words_of(name) and "Run B" in page.words_of(name)
    assert "model.kind ait vit" in page.words_of("differences")
    series = {c["title"]: c.get("series") for c in page.data["charts"]}
    assert [s["name"] for s in series["Loss"]] == ["A training", "B training"]
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_differences_ignore_the_name_and_include_the_seed() -> None:
    recipe = RECIPES["cifar10-ait-tiny"]
    assert "the same" in differences_section(recipe, replace(recipe, name="other")).note
    other = replace(recipe, train=replace(recipe.train, seed=4, lr=1.0))
    (grid,) = differences_section(recipe, other).tables
    assert grid.rows == [["train.lr", "0.001", "1.0"], ["train.seed", "0", "4"]]


def test_field_names_may_wrap_between_their_parts_but_numbers_may_not() -> None:
    names = ["model.num_heads", "<b>.x", "0.05"]
    grid = Grid(["field", "A"], [[name, "1"] for name in names])
    page = render("t", "s", [[Section("a", "A", tables=[grid])]], {})
    heads = re.findall(r'<th scope="row">(.*?)</th>', page, re.DOTALL)
    assert [head.strip() for head in heads] == [
        "model.<wbr>num_<wbr>heads",
        "&lt;b&gt;.<wbr>x",
        "0.05",
    ]


def test_results_of_two_runs_alternate_by_kind_of_question(tmp_path: Path) -> None:
    recipe = RECIPES["sort-of-clevr-ait-small"]

    def answers(binary: float, overall: float) -> RunResult:
        kinds = [kind_of("binary", binary, 50.0), kind_of("all", overall, 50.0)]
        return put_result(tmp_path, answers_of(recipe, test_kinds=kinds))

    a, b = answers(10.0, 30.0), answers(20.0, 40.0)
    bars = results_section({"A": a, "B": b}).figures[0].chart
    assert [(row[0], row[1]) for row in bars.table.rows] == [
        ("binary, A", "10"),
        ("binary, B", "20"),
        ("all, A", "30"),
        ("all, B", "40"),
    ]
    assert bars.hues == [0, 1, 0, 1]
    image_run = put_result(tmp_path, result_of(RECIPES["cifar10-ait-tiny"], 7.0))
    mixed = results_section({"A": image_run, "B": None}).figures[0].chart
    assert mixed.table.rows == [["all, A", "7", "6.516", "7.517"]]  # of 10,000 images
    assert not results_section({"A": None, "B": None}).figures


# --- commands ---


@pytest.mark.parametrize("has_browser", [True, False])
def test_the_page_is_opened_in_a_browser_on_request(
    has_browser: bool, ait: Ait, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(
        "webbrowser.open_new_tab", lambda address: opened.append(address) or has_browser
    )
    assert ait("report", runs / "ait").code == 0 and opened == []
    done = ait("report", runs / "ait", "--open", "--output", "page.html")
    assert done.code == 0 and opened == [Path("page.html").resolve().as_uri()]
    assert ("no web browser was found: open page.html yourself" in done.err) != has_browser


def test_the_command_prints_the_path_of_the_page(ait: Ait, runs: Path) -> None:
    result = ait("report", runs / "ait")
    assert (result.code, result.out) == (0, f"written: {runs / 'ait' / 'report.html'}\n")
    result = ait("report", runs / "ait", runs / "vit", "--output", "both.html")
    assert (result.code, result.out) == (0, "written: both.html\n") and Path("both.html").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("a b c", ["1 or 2 runs", "3"]),
        ("", ["1 or 2 runs", "0"]),
        ("nowhere", ["not a run folder"]),
        ("{runs}/ait --images 0", ["images must be at least 1"]),
        ("{runs}/ait --output missing/x.html", ["no folder missing"]),
        ("{runs}/ait --device nope", ["nope"]),
        ("{runs}", ["contains the runs ait, vit"]),
    ],
)
def test_the_command_refuses_bad_input(
    arguments: str, words: list[str], ait: Ait, runs: Path
) -> None:
    assert_refused(ait("report", *arguments.format(runs=runs).split()), *words)


def test_a_run_on_generated_images_has_no_source(ait: Ait, tmp_path: Path) -> None:
    experiment = replace(
        RECIPES["triangle-ait-tiny"],
        data=TriangleConfig(num_train=8, num_test=4),
        model=replace(MODEL, image_size=64, patch_size=32),
        train=replace(TRAIN, epochs=1),
    )
    train(experiment, tmp_path / "run")
    assert_refused(ait("report", tmp_path / "run", "--source", "x"), "generated", "--source")


def test_training_rewrites_the_page_regularly_and_completes_it_at_the_end(
    ait: Ait, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[int, bool]] = []

    def record(folder: Path, *_: Any, **__: Any) -> Path:  # noqa: ANN401
        epochs = len((folder / "metrics.jsonl").read_text().splitlines())
        written.append((epochs, (folder / "result.json").exists()))
        return folder / "report.html" if written[-1][1] else write_report(folder)

    monkeypatch.setattr(report, "write_report", record)
    flags = (
        "--data.num-train 16 --data.num-test 4 --train.batch-size 8 --train.epochs 5 "
        "--model.embed-dim 8 --model.depth 1 --model.num-heads 1 --train.device cpu"
    )
    result = ait("train", "triangle-ait-tiny", *flags.split(), "--report-every", 2, "--name", "x")
    assert result.code == 0
    assert written == [(2, False), (4, False), (5, True)]
    assert f"report        {Path('runs/x/0/report.html')}" in result.out
    assert "unfinished: 4 of 5" in Page(Path("runs/x/0/report.html")).words_of("run")
    refused = ait("train", "triangle-ait-tiny", *flags.split(), "--report-every", 0, "--name", "y")
    assert_refused(refused, "--report-every must be at least 1")
    assert not Path("runs/y").exists()


# --- other images, other folders ---


def test_stored_numbers_are_not_shown_with_other_images(runs: Path) -> None:
    """The same names and labels, but other pixels, or fewer images."""
    other = shutil.copytree(runs / "images", runs / "other")
    paths = sorted((other / "test").rglob("*.png"))
    shutil.copy(paths[0], paths[1])
    options = AnalysisOptions(source=str(other))
    with pytest.raises(UserError, match=r"not those that the run in .* scored on.*--source"):
        write_report(runs / "ait", options=options)
    shutil.copy(runs / "images" / paths[1].relative_to(other), paths[1])
    write_report(runs / "ait", options=options)
    paths[0].unlink()
    with pytest.raises(UserError, match="not those that the run in"):
        write_report(runs / "ait", options=options)


def test_an_early_run_without_a_digest_refuses_another_number_of_images(runs: Path) -> None:
    result = json.loads((runs / "ait" / "result.json").read_text())
    del result["data_of_test"]
    (runs / "ait" / "result.json").write_text(json.dumps(result))
    next((runs / "images" / "test").rglob("*.png")).unlink()
    with pytest.raises(UserError, match="not those that the run in"):
        write_report(runs / "ait", options=AnalysisOptions(source=str(runs / "images")))


def test_a_run_that_cannot_be_written_is_reported_elsewhere(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, _: bytes) -> None:
        raise UserError(f"cannot write {path}: Read-only file system")

    shutil.rmtree(runs / "ait" / "analysis")
    monkeypatch.setattr("associative_transformer.analysis.storage.write_file", refuse)
    path = write_report(runs / "ait", runs / "elsewhere.html")
    assert "Evaluation" in path.read_text()
    assert "the analysis is not stored: cannot write" in capsys.readouterr().err


def test_a_page_holds_no_path_of_this_machine(runs: Path) -> None:
    page = write_report(runs / "ait").read_text()
    assert str(runs) not in page
    assert "FOLDER" in page
