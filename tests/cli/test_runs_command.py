"""`ait runs`: which runs are listed, with what, and in which order."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from associative_transformer.recipes import RECIPES
from making.commands import Ait, assert_refused
from making.plant import put_run, result_of

A, B = RECIPES["triangle-ait-tiny"], RECIPES["cifar10-vit-192"]


def timing(date: str) -> dict[str, Any]:
    return {"timing": {"seconds": 9.0, "samples_per_second": 5.0, "finished": date}}


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """Return a folder with three complete runs and an unfinished one, at different depths."""
    runs = tmp_path / "runs"
    put_run(runs, A, 0, result_of(A, 70.0, **timing("2026-11-02")))
    best = {"epoch": 1, "validation_accuracy": 1.0, "test_accuracy": 95.0}
    best |= {"test_loss": 0.5, "test_images": 200}
    put_run(runs, A, 1, result_of(A, 60.0, best_validation=best, **timing("2026-11-01")))
    put_run(runs / "old", B, 0, result_of(B, 80.0, **timing("2026-11-03")))
    stopped = put_run(runs, A, 2)
    (stopped / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n')
    return runs


def listed(ait: Ait, *arguments: object) -> list[dict[str, Any]]:
    done = ait("runs", *arguments, "--format", "json")
    assert done.code == 0
    return json.loads(done.out)


def test_every_run_is_listed_with_recipe_data_accuracy_date_and_folder(
    ait: Ait, planted: Path
) -> None:
    runs = {run["folder"]: run for run in listed(ait)}
    assert list(runs) == [
        f"runs/old/{B.name}/0",
        *(f"runs/{A.name}/{seed}" for seed in (0, 1, 2)),
    ]
    first = runs[f"runs/{A.name}/0"]
    assert (first["recipe"], first["seed"], first["data"]) == (A.name, 0, "triangle")
    assert (first["accuracy"], first["date"], first["state"]) == (70.0, "2026-11-02", "complete")
    assert first["interval"] == pytest.approx([63.3, 75.9], abs=0.1)  # of 200 images
    assert runs[f"runs/{A.name}/1"]["accuracy"] == 95.0  # of the saved model
    stopped = runs[f"runs/{A.name}/2"]
    assert (stopped["accuracy"], stopped["state"], stopped["epochs"]) == (None, "unfinished", 2)
    assert stopped["epochs_planned"] == A.train.epochs
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", stopped["date"])


@pytest.mark.parametrize(
    ("order", "seeds"),
    [("recipe", [0, 0, 1, 2]), ("accuracy", [1, 0, 0, 2]), ("folder", [0, 0, 1, 2])],
)
def test_runs_are_sorted(order: str, seeds: list[int], ait: Ait, planted: Path) -> None:
    runs = listed(ait, "--sort", order)
    assert [run["seed"] for run in runs] == seeds
    first = {"recipe": B.name, "accuracy": A.name, "folder": B.name}[order]
    if order == "folder":
        assert [run["folder"] for run in runs] == sorted(run["folder"] for run in runs)
    else:
        assert runs[0]["recipe"] == first


def test_the_latest_run_comes_first_by_date(ait: Ait, planted: Path) -> None:
    dates = [run["date"] for run in listed(ait, "--sort", "date", "old")]
    dates += [run["date"] for run in listed(ait, "--sort", "date", A.name)]
    assert dates[0] == "2026-11-03" and dates[2:] == ["2026-11-02", "2026-11-01"]
    assert dates[1] > "2026-11-02"  # the unfinished run, of today


def test_only_runs_with_all_words_are_listed(ait: Ait, planted: Path) -> None:
    assert [run["seed"] for run in listed(ait, "triangle", "/2")] == [2]
    assert listed(ait, "nothing") == []


@pytest.mark.parametrize("output_format", ["terminal", "markdown", "html"])
def test_a_table_has_a_row_for_each_run(output_format: str, ait: Ait, planted: Path) -> None:
    done = ait("runs", "--format", output_format)
    assert done.code == 0
    for words in ("95.00", "2 of ", "2026-11-03", f"{planted.name}/old/{B.name}/0"):
        assert words in done.out
    assert "4 runs in runs, 3 of them complete." in done.out
    written = ait("runs", "--format", output_format, "--output", "r.txt")
    assert written.out == "written: r.txt\n" and Path("r.txt").read_text() == done.out


def test_damaged_runs_are_named_and_the_others_are_listed(ait: Ait, planted: Path) -> None:
    (planted / A.name / "0" / "result.json").write_text("{")
    done = ait("runs", "--format", "json")
    assert done.code == 0 and len(json.loads(done.out)) == 3
    assert f"Left out: runs/{A.name}/0/result.json is damaged" in done.err
    assert f"Left out: runs/{A.name}/0/result.json is damaged" in ait("runs").out.replace(
        "\n", " "
    )


def test_a_missing_folder_is_refused_but_the_default_may_be_empty(ait: Ait) -> None:
    assert_refused(ait("runs", "--runs", "nowhere"), "there is no folder nowhere")
    assert "0 runs in runs, 0 of them complete." in ait("runs").out
