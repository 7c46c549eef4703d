"""`ait export`: files that agree with the other commands, what it prints, and refusals."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn

from associative_transformer.data.questions import encode, parse_question
from associative_transformer.export import OPSET, OPSETS, SUFFIXES
from associative_transformer.models import build_model, load_model
from associative_transformer.runs.saved import load_run
from making.commands import Ait, assert_refused
from making.tiny import TINY


def exporting(test: Callable[..., None]) -> Any:  # noqa: ANN401
    """Mark a test that runs torch.export, which cannot trace shape-checked functions."""
    return pytest.mark.interop(pytest.mark.compiled(test))


def predict(ait: Ait, *arguments: object) -> dict[str, float]:
    """Return the probability of each class, by its name, for one image."""
    done = ait("predict", *arguments, "--format", "jsonl", "--top", 10)
    return {x["class"]: x["probability"] for x in json.loads(done.out)["predictions"]}


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


# --- agreement with other commands ---


@exporting
def test_an_onnx_file_and_its_metadata_are_enough_to_predict(
    ait: Ait, trained: Path, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    done = ait("export", trained / "colors" / "0", "--output", "colors.onnx", "--no-speed")
    assert done.code == 0
    session = onnxruntime.InferenceSession("colors.onnx")
    texts = session.get_modelmeta().custom_metadata_map
    how, classes = json.loads(texts["preprocessing"]), json.loads(texts["class_names"])
    path = trained / "images" / "test" / "red" / "0.png"
    pixels = np.asarray(Image.open(path).convert(how["mode"]))
    assert list(pixels.shape[:2]) == how["image_size"]
    normalized = (pixels / 255 - how["mean"]) / how["std"]
    images = normalized.transpose(2, 0, 1)[None].astype(np.float32)
    (logits,) = session.run(["logits"], {"images": images})
    expected = predict(ait, trained / "colors" / "0", path)
    assert dict(zip(classes, softmax(logits[0]), strict=True)) == pytest.approx(expected, abs=1e-5)


@exporting
@pytest.mark.parametrize("name", ["asked.onnx", "asked.pt2"])
def test_a_model_that_takes_questions_is_exported_with_them(
    name: str, ait: Ait, trained: Path, picture: Path
) -> None:
    run = trained / "asked" / "0"
    done = ait("export", run, "--output", name, "--no-speed")
    assert done.code == 0
    assert "inputs       images (batch, 3, 75, 75), questions (batch, 18), float32\n" in done.out
    sentence = "shape of the red object"
    inputs = load_run(run).model.preprocess(picture), encode(parse_question(sentence))
    if name.endswith(".pt2"):
        program = torch.export.load(name).module()
        logits = program(inputs[0], torch.from_numpy(inputs[1])).detach().numpy()
    else:
        session = pytest.importorskip("onnxruntime").InferenceSession(name)
        feeds = {"images": inputs[0].numpy(), "questions": inputs[1]}
        (logits,) = session.run(["logits"], feeds)
    expected = predict(ait, run, picture, "--question", sentence)
    assert sorted(softmax(logits[0])) == pytest.approx(sorted(expected.values()), abs=1e-5)


def test_a_safetensors_file_contains_the_weights_of_the_run(ait: Ait, trained: Path) -> None:
    run = trained / "triangle" / "0"
    assert ait("export", run, "--output", "triangle.safetensors").code == 0
    with (
        safe_open("triangle.safetensors", "pt") as ours,
        safe_open(run / "model.safetensors", "pt") as theirs,
    ):
        assert {*ours.keys()} == {*theirs.keys()}
        assert all(
            torch.equal(ours.get_tensor(name), theirs.get_tensor(name))
            for name in theirs.keys()  # noqa: SIM118
        )
        texts = ours.metadata()
    assert json.loads(texts["class_names"]) == list(load_run(run).classes)
    assert json.loads(texts["preprocessing"])["mode"] == "L"
    saved = json.loads((run / "config.json").read_text())
    config = json.loads(texts["config"])
    assert {name: saved[name] for name in config} == config


def test_a_model_saved_in_any_folder_is_exported(ait: Ait, tmp_path: Path) -> None:
    build_model(TINY["ait"]).save_pretrained(tmp_path / "saved")
    done = ait("export", "saved", "--output", "ait.safetensors")
    assert done.code == 0
    assert "the file contains no preprocessing or class names" in done.err
    with safe_open("ait.safetensors", "pt") as file:
        assert file.metadata()["preprocessing"] == file.metadata()["class_names"] == "null"
        weights = load_model("saved").state_dict()
        assert all(torch.equal(file.get_tensor(name), x) for name, x in weights.items())


# --- what is printed ---


@exporting
def test_the_differences_the_size_and_the_speed_are_printed(
    ait: Ait, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.Module, "compile", lambda _: None)  # it would take a minute
    onnx = ait("export", trained / "triangle" / "0", "--output", "a.onnx", "--opset", 18)
    torch_file = ait("export", trained / "triangle" / "0", "--output", "a.pt2")
    for done, words in (
        (onnx, ["(onnx, opset 18)", "speed        onnxruntime ", " ms, eager ", ", compiled "]),
        (torch_file, ["(torch)", "speed        exported ", " ms, eager ", " ms for 8 images"]),
    ):
        assert done.code == 0
        words += [
            "written      a.",
            " MB ",
            "for 1 image, ",
            "for 5 images; the tolerance is 1e-04",
        ]
        words += ["images (batch, 1, 64, 64)", "logits (batch, 2)"]
        assert [word for word in words if word not in done.out] == []
    assert "compiled" not in torch_file.out
    assert "compiling" in onnx.err and "compiling" not in torch_file.err


def test_the_help_states_the_versions_of_onnx(ait: Ait) -> None:
    done = ait("export", "--help")
    text = " ".join(done.out.replace("│", " ").split())
    assert f"from {OPSETS[0]} to {OPSETS[-1]}; None: {OPSET}" in text
    assert ", ".join([*SUFFIXES][:-1]) in text


# --- refusals ---


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("", ["needs RUN", "ait export --help"]),
        ("RUN", ["needs --output", "such as ait.onnx"]),
        ("RUN --output", ["--output"]),
        ("RUN --output x.bin", ["x.bin has none of the extensions", ".onnx", "--format"]),
        ("RUN --output x.onnx --format tflite", ["--format", "tflite", "onnx"]),
        ("RUN --output x.onnx --opset 9", ["--opset must be from 18 to 23, not 9"]),
        ("RUN --output x.onnx --opset new", ["--opset", "new"]),
        ("RUN --output x.pt2 --opset 18", ["--opset 18 is only for the format onnx"]),
        ("RUN --output x.safetensors --opset 18", ["only for the format onnx"]),
        ("RUN --output missing/x.pt2", ["no folder missing", "--output"]),
        ("RUN --output .", ["it is a folder"]),
        ("RUN --output /dev/null --format torch", ["is a device"]),
        ("RUN --output RUN/model.pt2", ["reserved for the run itself"]),
        ("RUN --output RUN/model.safetensors", ["would replace an input"]),
        ("RUN --output RUN/config.json --format torch", ["would replace an input"]),
        ("RUN --output link.pt2", ["is a symbolic link"]),
        ("RUN --output hard.safetensors", ["would replace an input"]),
        ("nowhere --output x.pt2", ["nowhere is not a run folder"]),
        ("RUNS --output x.pt2", ["contains the runs 0"]),
        ("IMAGES --output x.pt2", ["is not a run folder"]),
    ],
    ids=str,
)
def test_export_refuses_bad_input_and_writes_nothing(
    flags: str, words: list[str], ait: Ait, runs: Path, tmp_path: Path
) -> None:
    run = runs / "colors" / "0"
    (tmp_path / "link.pt2").symlink_to(run / "model.safetensors")
    (tmp_path / "hard.safetensors").hardlink_to(run / "model.safetensors")
    names = {"RUNS": run.parent, "RUN": run, "IMAGES": runs / "images"}
    for name, path in names.items():
        flags = flags.replace(name, str(path))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert_refused(ait("export", *flags.split()), *words)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["onnx", "onnxruntime", "onnxscript"])
def test_onnx_needs_packages_that_are_not_always_installed(
    name: str, ait: Ait, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in ("onnx", "onnxruntime", "onnxscript"):
        monkeypatch.setitem(sys.modules, each, None if each == name else sys)
    done = ait("export", trained / "colors" / "0", "--output", "x.onnx")
    assert_refused(
        done,
        "--format onnx needs onnx, onnxruntime and onnxscript",
        'pip install "associative-transformer[onnx]"',
    )
    assert not Path("x.onnx").exists()


def test_a_damaged_run_is_not_exported(ait: Ait, runs: Path) -> None:
    weights = runs / "colors" / "0" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert_refused(ait("export", runs / "colors" / "0", "--output", "x.safetensors"), "is damaged")
    assert not Path("x.safetensors").exists()


def test_an_existing_file_is_replaced_and_the_run_is_left_alone(
    ait: Ait, runs: Path, tmp_path: Path
) -> None:
    run, path = runs / "colors" / "0", tmp_path / "x.safetensors"
    before = {each: each.read_bytes() for each in run.rglob("*") if each.is_file()}
    shutil.copy(run / "config.json", path)
    assert ait("export", run, "--output", path).code == 0
    assert path.stat().st_size > len(before[run / "config.json"])
    assert {each: each.read_bytes() for each in run.rglob("*") if each.is_file()} == before
    with safe_open(path, "pt") as file:
        assert file.keys()
    assert ait("export", run, "--output", run / "x.safetensors").code == 0
    assert ait("export", run, "--output", run / "x.safetensors").code == 0  # not an own file
