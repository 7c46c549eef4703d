"""Predictions for image files, and answers to a question about them."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from associative_transformer.data import (
    ImagesConfig,
    SortOfClevrConfig,
    TriangleConfig,
)
from associative_transformer.data.listing import name_skipped
from associative_transformer.data.questions import encode, parse_question
from associative_transformer.decoding import UnreadableImage
from associative_transformer.interface import UserError
from associative_transformer.models.ait import AiT, AiTConfig
from associative_transformer.models.preprocessing import Preprocessing
from associative_transformer.models.relation_network import ConvMLP, ConvMLPConfig
from associative_transformer.predict import Prediction, predict_files, write_predictions
from associative_transformer.workspace_config import WorkspaceConfig

DATA = ImagesConfig("some", image_size=16)
PREPARE = DATA.preprocessing
CONFIG = AiTConfig(
    image_size=16,
    patch_size=8,
    embed_dim=16,
    depth=1,
    num_heads=2,
    head_dim=8,
    num_classes=3,
    workspace=WorkspaceConfig(num_priors=4, prior_dim=8, num_heads=2, bottleneck=16),
)


def save_image(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(256, size=(16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def paths_of(
    paths: list[Path], batch_size: int = 4, on_error: str = "stop", model: nn.Module | None = None
) -> list[Path]:
    model = model or AiT(CONFIG)
    return [path for path, _ in predict_files(model, paths, PREPARE, batch_size, on_error)]


def test_files_are_predicted_in_the_order_of_the_arguments(tmp_path: Path) -> None:
    files = [save_image(tmp_path / f"{name}.png") for name in "cab"]
    assert paths_of(files, batch_size=2) == files


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_file_passed_twice_is_predicted_twice(batch_size: int, tmp_path: Path) -> None:
    file = save_image(tmp_path / "a.png")
    assert paths_of([file, file, tmp_path], batch_size) == [file] * 3


def test_all_images_below_a_folder_are_predicted_in_sorted_order(tmp_path: Path) -> None:
    names = ["b.png", "a.PNG", "sub/c.jpg", "sub/deeper/d.webp", "e.bmp"]
    files = [save_image(tmp_path / name, seed) for seed, name in enumerate(names)]
    assert paths_of([tmp_path]) == sorted(files)


@pytest.mark.parametrize(
    "name", [".hidden.png", ".cache/a.png", "notes.txt", "table.csv", "paper.pdf", "noending"]
)
def test_hidden_files_and_other_files_are_ignored(name: str, tmp_path: Path) -> None:
    image = save_image(tmp_path / "a.png")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("not an image")
    assert paths_of([tmp_path]) == [image]


def test_a_folder_named_like_an_image_is_searched(tmp_path: Path) -> None:
    image = save_image(tmp_path / "album.png" / "a.png")
    assert paths_of([tmp_path]) == [image]


def test_a_hidden_folder_is_searched_if_it_is_passed_by_name(tmp_path: Path) -> None:
    image = save_image(tmp_path / ".hidden" / "a.png")
    assert paths_of([tmp_path / ".hidden"]) == [image]


def test_a_file_passed_by_name_is_read_whatever_its_extension(tmp_path: Path) -> None:
    image = save_image(tmp_path / "a.png").rename(tmp_path / "a.download")
    assert paths_of([image]) == [image]


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no file {tmp_path / 'nothing.png'}"):
        paths_of([tmp_path / "nothing.png"])


@pytest.mark.parametrize("name", [None, "notes.txt"])
def test_a_folder_without_images_is_named(name: str | None, tmp_path: Path) -> None:
    if name:
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"no images in {tmp_path}"):
        paths_of([tmp_path])


def test_an_unreadable_image_stops_prediction_or_is_skipped_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [save_image(tmp_path / f"{i}.png", i) for i in range(4)]
    for name in ("0b.png", "2b.png", "2c.png"):
        (tmp_path / name).write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"0b\.png"):
        paths_of([tmp_path], batch_size=2)
    assert paths_of([tmp_path], batch_size=2, on_error="skip") == good  # one batch is empty
    assert "3 unreadable images were skipped" in capsys.readouterr().err


def test_each_skipped_file_is_named_once_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_image(tmp_path / "a.png")
    bad = tmp_path / "b.png"
    bad.write_bytes(b"not an image")
    skipped: list[UnreadableImage] = []
    paths = [tmp_path, bad, bad]
    assert list(predict_files(AiT(CONFIG), paths, PREPARE, 1, "skip", skipped=skipped))
    assert [error.name for error in skipped] == [str(bad)]
    err = capsys.readouterr().err
    assert err.count("b.png") == 1 and f"{bad} (not an image in PNG, JPEG" in err


def test_only_the_first_skipped_files_are_named_on_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    name_skipped([UnreadableImage(f"{i}\x1b[2J", "it is empty") for i in range(1000)])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "1,000 unreadable images were skipped:"
    assert lines[1] == "  0\\x1b[2J (it is empty)"
    assert (len(lines), lines[-1]) == (22, "  and 980 more")


def test_without_workers_only_one_batch_of_images_is_read_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    decode = Preprocessing.decode

    def watched(preprocessing: Preprocessing, path: Path) -> Tensor:
        read.append(path)
        return decode(preprocessing, path)

    monkeypatch.setattr(Preprocessing, "decode", watched)
    for i in range(6):
        save_image(tmp_path / f"{i}.png", i)
    predictions = predict_files(AiT(CONFIG), [tmp_path], PREPARE, 2, num_workers=0)
    next(predictions)
    assert len(read) == 2


@pytest.mark.parametrize("num_workers", [None, 2])
def test_workers_change_neither_predictions_nor_what_is_skipped(
    num_workers: int | None, tmp_path: Path
) -> None:
    model = AiT(CONFIG)
    for i in range(7):
        save_image(tmp_path / f"{i}.png", i)
    for name in ("2b.png", "6b.png"):
        (tmp_path / name).write_bytes(b"not an image")
    outcomes = []
    for workers in (0, num_workers):
        skipped: list[UnreadableImage] = []
        predictions = list(
            predict_files(
                model,
                [tmp_path],
                PREPARE,
                2,
                "skip",
                skipped=skipped,
                num_workers=workers,
            )
        )
        outcomes.append(([p.path for p in predictions], [error.name for error in skipped]))
        outcomes[-1] += (torch.stack([p.probabilities for p in predictions]),)
    (paths, names, expected), (their_paths, their_names, theirs) = outcomes
    assert (paths, names) == (their_paths, their_names)
    assert torch.equal(expected, theirs)
    with pytest.raises(UnreadableImage, match=r"2b\.png.*--on-error skip"):
        list(predict_files(model, [tmp_path], PREPARE, 2, num_workers=num_workers))


def test_probabilities_do_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    for i in range(7):
        save_image(tmp_path / f"{i}.png", i)
    model = AiT(CONFIG)
    alone = list(predict_files(model, [tmp_path], PREPARE, 1))
    for batch_size in (2, 3, 7, 50):
        together = list(predict_files(model, [tmp_path], PREPARE, batch_size))
        assert [path for path, _ in together] == [path for path, _ in alone]
        for (_, ours), (_, theirs) in zip(together, alone, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
            assert float(ours.sum()) == pytest.approx(1, abs=1e-5)
    assert len({tuple(p.tolist()) for _, p in alone}) == 7


def test_files_are_prepared_like_test_images_and_predicted_in_evaluation_mode(
    tmp_path: Path,
) -> None:
    path, model = save_image(tmp_path / "a.png"), AiT(CONFIG).train()
    memory = [buffer.clone() for buffer in model.buffers()]
    (prediction,) = predict_files(model, [path], PREPARE, 4)
    with torch.no_grad():
        logits = model.eval()(DATA.load_image(path)[None]).logits
    torch.testing.assert_close(prediction.probabilities, logits[0].softmax(dim=-1))
    assert all(map(torch.equal, memory, model.buffers()))


def test_image_files_of_triangles_are_predicted(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64), np.uint8)
    pixels[10:20, 10:20] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    model = AiT(
        AiTConfig(
            image_size=64,
            patch_size=32,
            embed_dim=16,
            depth=1,
            num_heads=2,
            head_dim=8,
            num_classes=2,
            workspace=CONFIG.workspace,
        )
    )
    ((_, probabilities),) = predict_files(model, [tmp_path], TriangleConfig().preprocessing, 1)
    images = torch.from_numpy(pixels / 255).float().expand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.eval()(images).logits[0].softmax(dim=-1)
    torch.testing.assert_close(probabilities, expected)


# --- questions ---


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_same_question_is_asked_about_every_picture(batch_size: int, tmp_path: Path) -> None:
    data = SortOfClevrConfig()
    files = [save_image(tmp_path / f"{i}.png", i) for i in range(3)]
    model = ConvMLP(ConvMLPConfig(conv_dim=4, hidden_dim=16)).train()
    seen = []
    for sentence in ("shape of the red object", "is the blue object in the top half"):
        question = parse_question(sentence)
        vector = torch.from_numpy(encode(question))
        prepare = data.preprocessing
        predictions = list(predict_files(model, files, prepare, batch_size, question=question))
        assert [path for path, _ in predictions] == files
        for path, probabilities in predictions:
            with torch.no_grad():
                logits = model.eval()(data.load_image(path)[None], vector).logits[0]
            torch.testing.assert_close(probabilities, logits.softmax(dim=-1))
            seen.append(tuple(probabilities.tolist()))
    assert len(set(seen)) == 6


def test_a_picture_is_resized_to_the_data_set_and_scaled_to_0_and_1(
    tmp_path: Path,
) -> None:
    Image.new("RGB", (150, 150), (255, 0, 51)).save(tmp_path / "a.png")
    image = SortOfClevrConfig().load_image(tmp_path / "a.png")
    assert image.shape == (3, 75, 75)
    for channel, value in zip(image, (1.0, 0.0, 0.2), strict=True):
        torch.testing.assert_close(channel, torch.full((75, 75), value))


# --- writing ---

PROBABILITIES = torch.tensor([0.125, 0.625, 0.25])
CLASSES = ("yes", "no, or so", "2")


def write(file_format: str, top: int = 5, question: str | None = None) -> str:
    file = io.StringIO()
    predictions = [Prediction(Path("a, b.png"), PROBABILITIES)] * 2
    write_predictions(predictions, CLASSES, top, file_format, file, question)
    return file.getvalue()


@pytest.mark.parametrize("question", [None, 'shape of the "red" one, please'])
def test_a_row_contains_path_question_and_classes_by_probability(
    question: str | None,
) -> None:
    columns = [] if question is None else [question]
    header, *rows = csv.reader(io.StringIO(write("csv", 2, question)))
    names = ["path", *["question"] * len(columns)]
    assert header == [*names, "class_1", "probability_1", "class_2", "probability_2"]
    assert rows == [["a, b.png", *columns, "no, or so", "0.625000", "2", "0.250000"]] * 2


def test_json_is_an_array_of_the_same_objects_as_lines_of_json() -> None:
    assert json.loads(write("json")) == [json.loads(x) for x in write("jsonl").splitlines()]
    file = io.StringIO()
    write_predictions([], CLASSES, 5, "json", file)
    assert json.loads(file.getvalue()) == []


@pytest.mark.parametrize("question", [None, 'shape of the "red" one, please'])
def test_a_line_of_json_contains_the_same(question: str | None) -> None:
    columns = {} if question is None else {"question": question}
    lines = [json.loads(line) for line in write("jsonl", 9, question).splitlines()]
    best = [("no, or so", 0.625), ("2", 0.25), ("yes", 0.125)]
    expected = [{"class": name, "probability": p} for name, p in best]
    assert lines == [{"path": "a, b.png", **columns, "predictions": expected}] * 2
