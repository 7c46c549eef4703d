"""Runs of version 0.1 can still be resumed, evaluated and reported, with the same results.

`fixtures/runs` contains two of them, each once stopped in its last epoch and once complete:
`plain`, a recipe without overrides, and `overrides`, a recipe with overrides of all kinds.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from making.commands import Ait

RUNS = Path(__file__).parent / "fixtures" / "runs"
CLOSE = {"rel": 1e-3, "abs": 0.5}
"""Another CPU rounds differently: a few of several hundred test images may change their class."""

pytestmark = pytest.mark.slow
every_run = pytest.mark.parametrize("name", ["plain", "overrides"])


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def put(name: str, state: str, runs: Path) -> Path:
    """Copy a saved run to where `ait train` looks for it."""
    result = load(RUNS / name / "complete" / "result.json")
    return shutil.copytree(RUNS / name / state, runs / result["name"] / str(result["seed"]))


def train(ait: Ait, name: str) -> str:
    """Resume a run with the command that started it; return what is printed on stderr."""
    command = (RUNS / name / "command.txt").read_text().split()
    done = ait(*command[1:], "--resume")
    assert done.code == 0, done.err
    return done.err


@every_run
def test_a_stopped_run_resumes_and_ends_with_the_same_result(
    name: str, ait: Ait, tmp_path: Path
) -> None:
    run = put(name, "stopped", tmp_path / "runs")
    train(ait, name)
    ours, theirs = load(run / "result.json"), load(RUNS / name / "complete" / "result.json")
    assert ours.keys() >= theirs.keys()  # later versions added optional keys
    for key, value in theirs.items():
        if key in ("test_accuracy", "test_loss"):
            assert ours[key] == pytest.approx(value, **CLOSE)
        elif key not in ("timing", "test_kinds", "best_validation"):
            assert ours[key] == value, key
    rows = (run / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == theirs["epochs"]


@every_run
def test_a_complete_run_is_not_trained_again(name: str, ait: Ait, tmp_path: Path) -> None:
    run = put(name, "complete", tmp_path / "runs")
    before = (run / "result.json").read_bytes()
    printed = train(ait, name)
    assert (run / "result.json").read_bytes() == before
    is_ait = load(run / "config.json")["kind"] == "ait"
    assert ("keeps model.workspace.dropout 0.0" in printed) == is_ait


@every_run
def test_a_complete_run_is_evaluated_with_the_same_scores(
    name: str, ait: Ait, tmp_path: Path
) -> None:
    run = put(name, "complete", tmp_path / "runs")
    theirs = load(run / "evaluation.json")
    (run / "evaluation.json").unlink()
    assert ait("eval", run).code == 0
    ours = load(run / "evaluation.json")
    assert ours.keys() >= theirs.keys()
    assert ours["accuracy"] == pytest.approx(theirs["accuracy"], **CLOSE)
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)


@every_run
def test_a_complete_run_is_reported(name: str, ait: Ait, tmp_path: Path) -> None:
    run = put(name, "complete", tmp_path / "runs")
    assert ait("report", run, "--images", 64).code == 0
    result, page = load(run / "result.json"), (run / "report.html").read_text()
    assert f"{result['test_accuracy']:.2f} %" in page
    assert result["name"] in page


@pytest.mark.parametrize(
    ("name", "table"), [("plain", "relational"), ("overrides", "classification")]
)
def test_a_complete_run_is_in_its_table(name: str, table: str, ait: Ait, tmp_path: Path) -> None:
    put(name, "complete", tmp_path / "runs")
    done = ait("table", table, "--runs", tmp_path / "runs")
    assert done.code == 0
    assert "Left out" not in done.out
    result = load(RUNS / name / "complete" / "result.json")
    accuracy = (
        result["test_kinds"][0]["accuracy"] if "test_kinds" in result else result["test_accuracy"]
    )
    assert f"{accuracy:.2f}" in done.out
