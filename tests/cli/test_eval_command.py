"""`ait eval`: what it writes, prints and refuses."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest

from associative_transformer import distributed
from associative_transformer.data.questions import CLASS_NAMES
from associative_transformer.experiment import load_experiment
from associative_transformer.interface import UserError
from making.commands import (
    QUESTIONS,
    Ait,
    assert_refused,
    make_images,
    scores_of_kinds,
)


def test_eval_writes_the_accuracy_of_each_class_and_the_confusion_matrix(
    ait: Ait, runs: Path
) -> None:
    for name, count, classes in (
        ("triangle", 20, ["equilateral", "other"]),
        ("colors", 10, ["blue", "red"]),
    ):
        folder = runs / name / "0"
        done = ait("eval", folder, "--batch-size", 7, "--device", "cpu")
        assert done.code == 0
        evaluation = json.loads((folder / "evaluation.json").read_text())
        result = json.loads((folder / "result.json").read_text())
        assert evaluation["images"] == count
        assert evaluation["accuracy"] == pytest.approx(result["test_accuracy"])
        assert list(evaluation["class_accuracy"]) == classes
        with (folder / "confusion.csv").open(newline="") as file:
            header, *rows = csv.reader(file)
        assert header[1:] == [row[0] for row in rows] == classes
        assert sum(int(cell) for row in rows for cell in row[1:]) == count
        assert f"{evaluation['accuracy']:6.2f} %  of all {count} test images" in done.out
        assert str(folder / "evaluation.json") in done.out


def test_eval_prints_and_writes_what_the_result_of_the_run_says(ait: Ait, runs: Path) -> None:
    folder = runs / "triangle" / "0"
    done = ait("eval", folder, "--device", "cpu")
    evaluation = json.loads((folder / "evaluation.json").read_text())
    result = json.loads((folder / "result.json").read_text())
    names = ("interval", "balanced_accuracy", "mean_precision", "mean_f1", "calibration")
    for name in names:
        value = evaluation[name]
        if name == "calibration":
            value, result["test_calibration"] = value["error"], result["test_calibration"]["error"]
        assert value == pytest.approx(result[f"test_{name}"])
    low, high = evaluation["interval"]
    assert f"of all 20 test images, 95 % interval {low:.2f} to {high:.2f} %" in done.out
    assert f"{evaluation['balanced_accuracy']:6.2f} %  balanced accuracy" in done.out
    assert f"{evaluation['calibration']['error']:6.2f} %  expected calibration error" in done.out
    recalls = {score["name"]: score["recall"] for score in evaluation["classes"]}
    assert recalls == pytest.approx(evaluation["class_accuracy"])
    assert sum(evaluation["reliability"]["items"]) == 20


def test_the_temperature_of_a_run_with_a_validation_split_is_used_by_eval_and_predict(
    ait: Ait, runs: Path
) -> None:
    folder = runs / "triangle" / "0"
    picture = next(runs.rglob("*.png"))
    plain = ait("predict", folder, picture)
    assert ait("eval", folder).code == 0
    before = json.loads((folder / "evaluation.json").read_text())
    assert before["calibration"]["temperature"] is None and "scaled_reliability" not in before
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"temperature": 1e6}))
    done = ait("eval", folder)
    assert "at temperature 1000000.000, which was fitted on the validation split" in done.out
    after = json.loads((folder / "evaluation.json").read_text())
    assert after["calibration"]["error"] == before["calibration"]["error"]
    assert after["calibration"]["scaled_error"] == pytest.approx(
        abs(after["accuracy"] - 50), abs=1e-2
    )  # of two classes, each has half
    scaled = ait("predict", folder, picture)
    assert "calibrated at temperature" in scaled.err and "calibrated" not in plain.err
    (row,) = csv.DictReader(scaled.out.splitlines())
    assert float(row["probability_1"]) == pytest.approx(0.5, abs=1e-4)
    (row,) = csv.DictReader(plain.out.splitlines())
    assert float(row["probability_1"]) > 0.5001
    for wrong in (0, -1.0, "warm"):
        (folder / "config.json").write_text(json.dumps(config | {"temperature": wrong}))
        assert_refused(ait("predict", folder, picture), "temperature")


def test_eval_prints_the_same_scores_of_questions_as_training(ait: Ait, runs: Path) -> None:
    folder = runs / "asked" / "0"
    # the run is complete, so it is not trained again
    from_training = ait("train", *QUESTIONS, "--name", "asked", "--runs", runs, "--resume")
    done = ait("eval", folder, "--device", "cpu")
    assert done.code == 0
    assert scores_of_kinds(done.out) == scores_of_kinds(from_training.out)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    result = json.loads((folder / "result.json").read_text())
    for name in ("accuracy", "images", "questions", "kinds"):
        assert evaluation[name] == result[f"test_{name}"]
    assert evaluation["loss"] == pytest.approx(result["test_loss"], rel=1e-5)
    assert list(evaluation["class_accuracy"]) == list(CLASS_NAMES)
    assert f"{evaluation['accuracy']:6.2f} %  of all 48 test questions" in done.out
    with (folder / "confusion.csv").open(newline="") as file:
        _, *rows = csv.reader(file)
    assert sum(int(cell) for row in rows for cell in row[1:]) == 48


def test_eval_refuses_processes_that_see_different_runs(
    ait: Ait, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "gather_objects", lambda seen: [seen, seen[::-1]])
    assert_refused(ait("eval", runs / "colors" / "0"), "share the run folder and the data")


def test_eval_reads_moved_images_from_source(ait: Ait, runs: Path, tmp_path: Path) -> None:
    config = runs / "colors" / "0" / "experiment.yaml"
    config.write_text(re.sub("source: .*", "source: gone", config.read_text()))
    assert load_experiment(config).data.source == "gone"
    assert_refused(ait("eval", runs / "colors" / "0"), "no longer in gone", "--source")
    moved = shutil.move(runs / "images", tmp_path / "moved")
    assert ait("eval", runs / "colors" / "0", "--source", moved).code == 0


def test_eval_refuses_images_of_other_classes(ait: Ait, runs: Path, tmp_path: Path) -> None:
    for i, names in enumerate([("red", "green"), ("red", "green", "blue")]):
        other = make_images(tmp_path / f"other{i}", names, names)
        done = ait("eval", runs / "colors" / "0", "--source", other)
        assert_refused(done, "classes", "green")
    assert not (runs / "colors" / "0" / "evaluation.json").exists()


def test_eval_needs_only_the_test_images(ait: Ait, runs: Path) -> None:
    folder = runs / "colors" / "0"
    assert ait("eval", folder).code == 0
    before = (folder / "evaluation.json").read_bytes(), (folder / "confusion.csv").read_bytes()
    shutil.rmtree(runs / "images" / "train")
    assert ait("eval", folder, "--source", runs / "images").code == 0
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["accuracy"] == json.loads(before[0])["accuracy"]
    assert (folder / "confusion.csv").read_bytes() == before[1]


def test_eval_keeps_the_scores_of_the_own_test_set_when_it_scores_another(
    ait: Ait, runs: Path, tmp_path: Path
) -> None:
    folder = runs / "colors" / "0"
    assert ait("eval", folder).code == 0
    own = (folder / "evaluation.json").read_bytes(), (folder / "confusion.csv").read_bytes()
    other = make_images(tmp_path / "other")
    for path in (other / "test" / "red").iterdir():  # the same names and labels, other pixels
        shutil.copy(next((other / "test" / "blue").iterdir()), path)
    done = ait("eval", folder, "--source", other)
    assert done.code == 0 and "not the test images that the run was scored on" in done.out
    assert (
        (folder / "evaluation.json").read_bytes(),
        (folder / "confusion.csv").read_bytes(),
    ) == own
    (path,) = folder.glob("evaluation-*.json")
    evaluation = json.loads(path.read_text())
    assert evaluation["data"] != json.loads(own[0])["data"]
    assert path.stem == f"evaluation-{evaluation['data'][:8]}"
    assert (folder / f"confusion-{evaluation['data'][:8]}.csv").exists()
    assert str(tmp_path) not in path.read_text()


def test_eval_of_a_run_that_cannot_be_written_prints_its_scores(
    ait: Ait, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, _: bytes) -> None:
        raise UserError(f"cannot write {path}: Read-only file system")

    monkeypatch.setattr("associative_transformer.evaluate.write_file", refuse)
    done = ait("eval", runs / "colors" / "0")
    assert done.code == 0 and "of all 10 test images" in done.out
    assert "Read-only file system" in done.err
    assert not (runs / "colors" / "0" / "evaluation.json").exists()


def test_a_class_without_test_images_has_no_accuracy_and_is_named(ait: Ait, runs: Path) -> None:
    folder = runs / "colors" / "0"
    assert ait("eval", folder).code == 0
    whole = json.loads((folder / "evaluation.json").read_text())["class_accuracy"]
    shutil.rmtree(runs / "images" / "train")
    shutil.rmtree(runs / "images" / "test" / "blue")  # so that red becomes the first class
    done = ait("eval", folder, "--source", runs / "images")
    assert done.code == 0
    assert json.loads((folder / "evaluation.json").read_text())["class_accuracy"] == whole
    (path,) = folder.glob("evaluation-*.json")  # other test images than those of the run
    evaluation = json.loads(path.read_text())
    assert evaluation["class_accuracy"] == {"blue": None, "red": whole["red"]}
    assert (evaluation["images"], evaluation["accuracy"]) == (5, whole["red"])
    assert "no test images of blue" in done.err
    assert re.search(r"^ +- +- +- +- +0  blue$", done.out, re.MULTILINE)
    assert "nan" not in done.out
    assert evaluation["balanced_accuracy"] == whole["red"]
    with (folder / f"confusion-{evaluation['data'][:8]}.csv").open(newline="") as file:
        _, blue, red = csv.reader(file)
    assert blue[1:] == ["0", "0"] and sum(map(int, red[1:])) == 5


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("nowhere", ["nowhere is not a run folder"]),
        ("RUN/result.json", ["result.json is not a run folder"]),
        ("", ["needs RUN", "ait eval --help"]),
        ("RUN --batch-size 0", ["batch", "at least 1", "0"]),
        ("RUN --batch-size -3", ["batch", "at least 1", "-3"]),
        ("RUN --batch-size many", ["--batch-size", "many"]),
        ("RUN --device quantum", ["no device 'quantum'"]),
        ("RUN --source x", ["--source"]),
        ("ASKED --source x", ["sort-of-clevr is generated", "--source"]),
        ("RUN --sauce x", ["--sauce", "--source"]),
    ],
    ids=str,
)
def test_eval_refuses_bad_input(flags: str, words: list[str], ait: Ait, trained: Path) -> None:
    folder = trained / "triangle" / "0"
    before = sorted(folder.iterdir())
    flags = flags.replace("ASKED", str(trained / "asked" / "0"))
    done = ait("eval", *flags.replace("RUN", str(folder)).split())
    assert_refused(done, *words)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("command", ["eval", "predict"])
def test_an_incomplete_or_damaged_run_is_refused(command: str, ait: Ait, runs: Path) -> None:
    folder = runs / "triangle" / "0"
    arguments = [command, folder, *["x.png"] * (command == "predict")]
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert_refused(ait(*arguments), f"the run in {folder} is damaged")
    (folder / "result.json").unlink()
    assert_refused(ait(*arguments), f"the run in {folder} is not complete", "--resume")
