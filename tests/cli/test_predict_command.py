"""`ait predict`: predictions for image files, answers to questions, and refusals."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from associative_transformer.data.questions import (
    CLASS_NAMES,
    answer_words,
    decode,
    describe_questions,
)
from associative_transformer.runs.saved import load_run
from making.commands import (
    QUESTIONS_OPTIONS,
    Ait,
    assert_refused,
)

TERNARY = (
    f"sort-of-clevr-cnn-mlp-tiny {QUESTIONS_OPTIONS} --data.question-types ternary "
    "--model.conv-dim 4 --model.hidden-dim 8 --train.device cpu"
).split()


# --- predict ---


def test_predict_writes_the_most_probable_classes_first(ait: Ait, trained: Path) -> None:
    images = trained / "images" / "test"
    done = ait("predict", trained / "colors" / "0", images, images / "red" / "0.png")
    assert done.code == 0
    header, *rows = csv.reader(done.out.splitlines())
    assert header == ["path", "class_1", "probability_1", "class_2", "probability_2"]
    expected = [str(images / name / f"{i}.png") for name in ("blue", "red") for i in range(5)]
    assert [row[0] for row in rows] == [*expected, str(images / "red" / "0.png")]
    for _, first, p, second, q in rows:
        assert {first, second} == {"blue", "red"}
        assert float(p) >= float(q)
        assert float(p) + float(q) == pytest.approx(1, abs=2e-6)


def test_predict_writes_json_lines_with_the_same_numbers(ait: Ait, trained: Path) -> None:
    command = ["predict", trained / "colors" / "0", trained / "images" / "test", "--top", 1]
    table = list(csv.DictReader(ait(*command).out.splitlines()))
    lines = [json.loads(line) for line in ait(*command, "--format", "jsonl").out.splitlines()]
    assert len(lines) == len(table) == 10
    for line, row in zip(lines, table, strict=True):
        (best,) = line["predictions"]
        assert (line["path"], best["class"]) == (row["path"], row["class_1"])
        assert f"{best['probability']:.6f}" == row["probability_1"]


def test_predict_agrees_with_eval(ait: Ait, runs: Path) -> None:
    ait("eval", runs / "colors" / "0")
    accuracy = json.loads((runs / "colors" / "0" / "evaluation.json").read_text())["accuracy"]
    done = ait("predict", runs / "colors" / "0", runs / "images" / "test")
    rows = list(csv.DictReader(done.out.splitlines()))
    right = [Path(row["path"]).parent.name == row["class_1"] for row in rows]
    assert 100 * sum(right) / len(right) == pytest.approx(accuracy)


def test_predict_accepts_gray_images_and_writes_to_a_file(
    ait: Ait, trained: Path, tmp_path: Path
) -> None:
    pixels = np.zeros((64, 64), np.uint8)
    pixels[10:20, 10:20] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    done = ait("predict", trained / "triangle" / "0", "a.png", "--output", "out.csv")
    assert (done.code, done.out) == (0, "")
    with (tmp_path / "out.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["path"] == "a.png"
    assert {row["class_1"], row["class_2"]} == {"equilateral", "other"}


def test_predict_skips_unreadable_images_on_request(ait: Ait, runs: Path, tmp_path: Path) -> None:
    images = runs / "images" / "test"
    (images / "red" / "2.png").write_bytes(b"no image")
    command = ["predict", runs / "colors" / "0", images, "--output", "out.csv"]
    assert_refused(ait(*command), images / "red" / "2.png")
    assert not (tmp_path / "out.csv").exists()
    done = ait(*command, "--on-error", "skip")
    assert done.code == 0
    assert "1 unreadable images were skipped" in done.err
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 1 + 9
    (skipped,) = map(json.loads, (tmp_path / "out.csv.skipped.jsonl").read_text().splitlines())
    assert skipped["image"] == str(images / "red" / "2.png")
    assert skipped["reason"].startswith("not an image in PNG")


@pytest.mark.parametrize(
    ("name", "flags", "kind"),
    [
        ("x.json", [], "json"),
        ("x.JSON", [], "json"),
        ("x.jsonl", [], "jsonl"),
        ("x.csv", [], "csv"),
        ("x.txt", [], "csv"),
        ("x.csv", ["--format", "json"], "json"),
        ("x.json", ["--format", "csv"], "csv"),
    ],
)
def test_the_extension_of_the_output_selects_its_format(
    name: str, flags: list[str], kind: str, ait: Ait, trained: Path, tmp_path: Path
) -> None:
    images = trained / "images" / "test"
    done = ait("predict", trained / "colors" / "0", images, "--output", name, *flags)
    assert (done.code, done.out) == (0, "")
    text = (tmp_path / name).read_text()
    if kind == "csv":
        assert len(list(csv.DictReader(text.splitlines()))) == 10
    else:
        rows = json.loads(text) if kind == "json" else [*map(json.loads, text.splitlines())]
        assert [len(row["predictions"]) for row in rows] == [2] * 10


def test_a_list_of_skipped_images_never_replaces_an_input(
    ait: Ait, runs: Path, tmp_path: Path
) -> None:
    image = shutil.copy(runs / "images" / "test" / "red" / "0.png", "out.csv.skipped.jsonl")
    before = Path(image).read_bytes()
    flags = ("--output", "out.csv", "--on-error", "skip")
    assert_refused(ait("predict", runs / "colors" / "0", image, *flags), "would replace an input")
    assert Path(image).read_bytes() == before


@pytest.mark.thorough
@pytest.mark.slow
def test_any_encoding_of_the_terminal_will_do(runs: Path, tmp_path: Path) -> None:
    folder, images = runs / "colors" / "0", tmp_path / "изображения"
    images.mkdir()
    shutil.copy(runs / "images" / "test" / "red" / "0.png", images / "Café 🐈.png")
    result = json.loads((folder / "result.json").read_text("utf-8"))
    result["classes"] = ["голубой", "rouge é"]
    (folder / "result.json").write_text(json.dumps(result), "utf-8")
    command = [sys.executable, "-m", "associative_transformer", "predict", folder, images]
    env = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(command, env=env, capture_output=True, check=True)
    assert b"rouge \xe9" in done.stdout and b"Caf\xe9" in done.stdout
    assert rb"\u0433\u043e\u043b" in done.stdout and b"Traceback" not in done.stderr
    subprocess.run([*command, "--output", tmp_path / "out.csv"], env=env, check=True)
    text = (tmp_path / "out.csv").read_text("utf-8")
    assert "голубой" in text and "изображения/Café 🐈.png" in text


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("RUN", ["image files or folders"]),
        ("", ["needs RUN", "ait predict --help"]),
        ("nowhere IMAGE", ["nowhere is not a run folder"]),
        ("IMAGE RUN", ["is not a run folder"]),
        ("RUN nothing.png", ["no file nothing.png"]),
        ("RUN IMAGE nothing.png", ["no file nothing.png"]),
        ("RUN EMPTY", ["no images in"]),
        ("RUN IMAGE --top 0", ["top", "at least 1", "0"]),
        ("RUN IMAGE --top -2", ["top", "at least 1", "-2"]),
        ("RUN IMAGE --batch-size 0", ["batch", "at least 1", "0"]),
        ("RUN IMAGE --format xml", ["--format", "xml", "csv"]),
        ("RUN IMAGE --on-error ignore", ["--on-error", "ignore", "skip"]),
        ("RUN IMAGE --device quantum", ["no device 'quantum'"]),
        ("RUN IMAGE --output missing/out.csv", ["no folder missing", "--output"]),
        ("RUN IMAGE --output IMAGE/out.csv", ["no folder", "--output"]),
        ("RUN IMAGE --output EMPTY", ["cannot write"]),
        ("RUN IMAGE --output .", ["cannot write"]),
    ],
    ids=str,
)
def test_predict_refuses_bad_input(
    flags: str, words: list[str], ait: Ait, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    paths = {
        "RUN": trained / "colors" / "0",
        "IMAGE": trained / "images" / "test" / "red" / "0.png",
        "EMPTY": tmp_path / "empty",
    }
    for name, path in paths.items():
        flags = flags.replace(name, str(path))
    before = sorted(trained.rglob("*"))
    assert_refused(ait("predict", *flags.split()), *words)
    assert sorted(trained.rglob("*")) == before
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "empty"]


# --- questions about a picture ---


def test_a_question_is_answered_in_words(ait: Ait, trained: Path, picture: Path) -> None:
    command = ["predict", trained / "asked" / "0", picture, picture, "--top", 10]
    asked = ["--question", "What is the SHAPE of a red object?"]
    done = ait(*command, *asked)
    assert done.code == 0
    header, *rows = csv.reader(done.out.splitlines())
    assert header[:4] == ["path", "question", "class_1", "probability_1"]
    assert len(header) == 2 + 2 * 10
    assert len(rows) == 2
    for path, question, *best in rows:
        assert (path, question) == (str(picture), "shape of the red object")
        assert set(best[::2]) == set(CLASS_NAMES)
        assert sum(map(float, best[1::2])) == pytest.approx(1, abs=1e-5)
    lines = [json.loads(line) for line in ait(*command, *asked, "--format=jsonl").out.splitlines()]
    for line, row in zip(lines, rows, strict=True):
        assert list(line) == ["path", "question", "predictions"]
        assert (line["path"], line["question"]) == tuple(row[:2])
        assert [answer["class"] for answer in line["predictions"]] == row[2::2]


def test_an_answer_is_the_same_as_in_the_test_set(ait: Ait, trained: Path, picture: Path) -> None:
    saved = load_run(trained / "asked" / "0")
    test = saved.experiment.data.load_test(torch.device("cpu")).test
    (batch,) = test.eval_batches(len(test))
    with torch.no_grad():
        expected = saved.model(batch.images, batch.questions).logits.softmax(dim=-1)
    questions = decode(test.questions.numpy())
    words, answers = describe_questions(questions), set()
    for item in (test.rows == 2).nonzero()[:, 0].tolist():
        done = ait(
            *("predict", trained / "asked" / "0", picture, "--question", words[item]),
            *("--format", "jsonl", "--top", 10),
        )
        predictions = json.loads(done.out)["predictions"]
        probabilities = {answer["class"]: answer["probability"] for answer in predictions}
        names = answer_words(int(questions.kind[item]))
        in_order = [probabilities[name] for name in names]
        assert in_order == pytest.approx(expected[item].tolist(), rel=1e-5)
        answers.add(tuple(probabilities.values()))
    assert len(answers) > 1


def test_answers_to_ternary_counts_start_at_zero(ait: Ait, picture: Path, tmp_path: Path) -> None:
    training = ait("train", *TERNARY, "--name", "ternary")
    assert "trained on    ternary questions\n" in training.out
    command = ["predict", tmp_path / "runs/ternary/0", picture, "--top", 10, "--question"]
    done = ait(*command, "number of other objects in the box from the red to the blue one")
    (row,) = csv.reader(done.out.splitlines()[1:])
    assert set(row[2::2]) == {"yes", "no", "square", "circle", *"012345"}
    assert_refused(ait(*command, "shape of the red object"), "was not trained on", "in the box")
    assert_refused(ait(*command, "number of other objects in the box from the red to the red one"))


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("color of the closest object", ["not a known question", "object closest to the A one"]),
        ("", ["not a known question", "shape of the A object"]),
        (
            "shape of the pink object",
            ["not a known question", "A is one of red, green", "did you mean"],
        ),
        (
            "number of other objects in the box from the red to the blue one",
            ["was not trained on", "shape of the A object"],
        ),
        (None, ["--question", "is the A object in the left half"]),
    ],
    ids=str,
)
def test_a_question_that_the_run_cannot_answer_is_refused_with_a_list_of_its_questions(
    question: str | None, words: list[str], ait: Ait, trained: Path, picture: Path
) -> None:
    asked = [] if question is None else ["--question", question]
    done = ait("predict", trained / "asked" / "0", picture, *asked, "--output", "out.csv")
    assert_refused(done, *words)
    if question is None or "number of other" not in question:
        assert "in the box" not in done.err  # this run was not trained on it
    assert not Path("out.csv").exists()


def test_a_run_without_questions_cannot_be_asked(ait: Ait, trained: Path) -> None:
    image = trained / "images" / "test" / "red" / "0.png"
    done = ait("predict", trained / "colors" / "0", image, "--question", "shape of the red object")
    assert_refused(done, "without questions", "leave --question out")


# --- a saved model without its run ---


@pytest.mark.parametrize("name", ["colors", "triangle", "asked"])
def test_predict_needs_only_the_folder_of_the_model(
    ait: Ait, trained: Path, tmp_path: Path, picture: Path, name: str
) -> None:
    run = trained / name / "0"
    (tmp_path / "model").mkdir()
    for file in ("config.json", "model.safetensors"):
        shutil.copy(run / file, tmp_path / "model")
    words = [picture, "--question", "shape of the red object"] if name == "asked" else [picture]
    of_run, of_model = (ait("predict", folder, *words) for folder in (run, tmp_path / "model"))
    assert (of_model.code, of_model.out) == (0, of_run.out)


def test_predict_refuses_a_model_that_does_not_say_how_to_prepare_images(
    ait: Ait, trained: Path, tmp_path: Path, picture: Path
) -> None:
    content = json.loads((trained / "colors" / "0" / "config.json").read_text())
    del content["preprocessing"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    shutil.copy(trained / "colors" / "0" / "model.safetensors", tmp_path)
    assert_refused(ait("predict", tmp_path, picture), "does not say how to prepare images")
