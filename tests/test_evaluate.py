"""Scores against a loop over single images, and predictions for files.

Dims     N images   B batch   O classes
"""

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from associative_transformer import evaluate as evaluate_module
from associative_transformer.data import ImagesConfig, TriangleConfig, load_image
from associative_transformer.data.batches import Split
from associative_transformer.evaluate import (
    Evaluation,
    evaluate,
    predict_files,
    save_evaluation,
)
from associative_transformer.interface import Batch, ModelOutput, UserError
from associative_transformer.models import AiT, AiTConfig
from associative_transformer.workspace import WorkspaceConfig

CPU = torch.device("cpu")
DATA = ImagesConfig("some", image_size=16)
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


class Images:
    """A loader of images at hand."""

    device = CPU

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def load(self, rows: Tensor, seed: np.random.SeedSequence | None) -> Iterator[Tensor]:
        return (self.images[batch] for batch in rows)


def make_split(num_items: int, num_classes: int = 3) -> Split:
    images = torch.randn(num_items, 3, 16, 16)
    labels = torch.randint(num_classes, (num_items,))
    return Split(labels, torch.arange(num_items), Images(images))


# --- evaluation ---


@pytest.mark.parametrize("batch_size", [1, 2, 7, 23, 24, 100])
def test_every_image_is_scored_once_whatever_the_batch_size(batch_size: int) -> None:
    split, model = make_split(23), AiT(CONFIG).eval()
    confusion, loss = [[0] * 3 for _ in range(3)], 0.0
    with torch.no_grad():
        for image, label in zip(split.loader.images, split.labels.tolist(), strict=True):
            probabilities = model(image[None]).logits[0].double().softmax(dim=0)
            loss -= math.log(probabilities[label])
            confusion[label][int(probabilities.argmax())] += 1
    scored = evaluate(model, split.eval_batches(batch_size), 3)
    assert scored.confusion.tolist() == confusion
    correct = sum(confusion[c][c] for c in range(3))
    assert scored.accuracy == pytest.approx(100 * correct / 23)
    assert scored.loss == pytest.approx(loss / 23, rel=1e-5)
    shares = [100 * confusion[c][c] / sum(confusion[c]) for c in range(3)]
    assert scored.class_accuracy == pytest.approx(shares)


class Fixed(nn.Module):
    """Tells the class that stands in the first pixel."""

    def forward(self, images: Tensor, questions: Tensor | None) -> ModelOutput:
        logits = 10 * nn.functional.one_hot(images[:, 0, 0, 0].long(), 3).float()
        return ModelOutput(logits, torch.zeros(()))


def batch_of(predicted: list[int], labels: list[int]) -> Batch:
    images = torch.tensor(predicted).float()[:, None, None, None].expand(-1, 3, 16, 16)
    return Batch(images, None, torch.tensor(labels))


def test_rows_of_the_confusion_matrix_are_true_classes_and_padding_is_not_scored() -> None:
    batches = [batch_of([0, 1, 1], [0, 0, 2]), batch_of([1, 2, 2], [1, -1, -1])]
    scored = evaluate(Fixed(), batches, 3)
    assert scored.confusion.tolist() == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]
    assert scored.accuracy == 50
    assert scored.class_accuracy == [50, 100, 0]
    right, wrong = math.log(1 + 2 * math.exp(-10)), math.log(math.exp(10) + 2)
    assert scored.loss == pytest.approx((2 * right + 2 * wrong) / 4, rel=1e-5)


def test_a_class_without_images_has_no_accuracy() -> None:
    shares = evaluate(Fixed(), [batch_of([0], [0])], 3).class_accuracy
    assert shares[0] == 100
    assert all(math.isnan(share) for share in shares[1:])


@pytest.mark.parametrize("is_training", [False, True])
def test_evaluation_leaves_mode_weights_and_memory_as_they_were(is_training: bool) -> None:
    model, split = AiT(CONFIG).train(is_training), make_split(9)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = evaluate(model, split.eval_batches(4), 3)
    second = evaluate(model, split.eval_batches(4), 3)
    assert model.training == is_training
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    assert torch.equal(first.confusion, second.confusion)
    assert first.loss == second.loss


def test_evaluation_is_saved_as_numbers_by_class_and_a_matrix(tmp_path: Path) -> None:
    scored = Evaluation(50.0, 0.75, torch.tensor([[2, 1, 0], [1, 0, 0], [0, 0, 0]]))
    save_evaluation(scored, ["cat", "a, b", "none"], tmp_path)
    summary = json.loads((tmp_path / "evaluation.json").read_text())
    assert summary == {
        "accuracy": 50.0,
        "loss": 0.75,
        "images": 4,
        "class_accuracy": {"cat": pytest.approx(200 / 3), "a, b": 0.0, "none": None},
    }
    with (tmp_path / "confusion.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["true \\ predicted", "cat", "a, b", "none"],
        ["cat", "2", "1", "0"],
        ["a, b", "1", "0", "0"],
        ["none", "0", "0", "0"],
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["confusion.csv", "evaluation.json"]


# --- prediction ---


def save_image(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(256, size=(16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def paths_of(
    paths: list[Path], batch_size: int = 4, on_error: str = "stop", model: nn.Module | None = None
) -> list[Path]:
    model = model or AiT(CONFIG)
    return [path for path, _ in predict_files(model, paths, DATA, batch_size, on_error)]


def test_files_are_predicted_in_the_order_given(tmp_path: Path) -> None:
    files = [save_image(tmp_path / f"{name}.png") for name in "cab"]
    assert paths_of(files, batch_size=2) == files


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_file_given_twice_is_predicted_twice(batch_size: int, tmp_path: Path) -> None:
    file = save_image(tmp_path / "a.png")
    assert paths_of([file, file, tmp_path], batch_size) == [file] * 3


def test_a_folder_gives_its_images_sorted_and_those_below_it(tmp_path: Path) -> None:
    names = ["b.png", "a.PNG", "sub/c.jpg", "sub/deeper/d.webp", "e.bmp"]
    files = [save_image(tmp_path / name, seed) for seed, name in enumerate(names)]
    assert paths_of([tmp_path]) == sorted(files)


@pytest.mark.parametrize(
    "name", [".hidden.png", ".cache/a.png", "notes.txt", "table.csv", "paper.pdf", "noending"]
)
def test_hidden_files_and_those_of_another_kind_are_ignored(name: str, tmp_path: Path) -> None:
    image = save_image(tmp_path / "a.png")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("no image")
    assert paths_of([tmp_path]) == [image]


def test_a_folder_named_like_an_image_is_a_folder(tmp_path: Path) -> None:
    image = save_image(tmp_path / "album.png" / "a.png")
    assert paths_of([tmp_path]) == [image]


def test_a_hidden_folder_may_be_given_by_name(tmp_path: Path) -> None:
    image = save_image(tmp_path / ".hidden" / "a.png")
    assert paths_of([tmp_path / ".hidden"]) == [image]


def test_a_file_given_by_name_is_read_whatever_its_ending(tmp_path: Path) -> None:
    image = save_image(tmp_path / "a.png").rename(tmp_path / "a.download")
    assert paths_of([image]) == [image]


def test_a_path_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no file {tmp_path / 'nothing.png'}"):
        paths_of([tmp_path / "nothing.png"])


@pytest.mark.parametrize("name", [None, "notes.txt"])
def test_a_folder_without_images_is_named(name: str | None, tmp_path: Path) -> None:
    if name:
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"no image in {tmp_path}"):
        paths_of([tmp_path])


def test_an_unreadable_image_stops_or_is_skipped_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [save_image(tmp_path / f"{i}.png", i) for i in range(4)]
    for name in ("0b.png", "2b.png", "2c.png"):
        (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(UserError, match=r"0b\.png"):
        paths_of([tmp_path], batch_size=2)
    assert paths_of([tmp_path], batch_size=2, on_error="skip") == good  # one batch is empty
    assert "3 unreadable images were skipped" in capsys.readouterr().err


def test_only_the_images_of_a_batch_are_held_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    load = evaluate_module.load_image

    def watched(path: Path, data: ImagesConfig) -> Tensor:
        read.append(path)
        return load(path, data)

    monkeypatch.setattr(evaluate_module, "load_image", watched)
    for i in range(6):
        save_image(tmp_path / f"{i}.png", i)
    found = predict_files(AiT(CONFIG), [tmp_path], DATA, 2)
    next(found)
    assert len(read) == 2


def test_probabilities_do_not_depend_on_the_batch_an_image_is_in(tmp_path: Path) -> None:
    for i in range(7):
        save_image(tmp_path / f"{i}.png", i)
    model = AiT(CONFIG)
    alone = list(predict_files(model, [tmp_path], DATA, 1))
    for batch_size in (2, 3, 7, 50):
        found = list(predict_files(model, [tmp_path], DATA, batch_size))
        assert [path for path, _ in found] == [path for path, _ in alone]
        for (_, ours), (_, theirs) in zip(found, alone, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
            assert float(ours.sum()) == pytest.approx(1, abs=1e-5)
    assert len({tuple(p.tolist()) for _, p in alone}) == 7


def test_files_are_prepared_like_test_images_and_scored_in_evaluation_mode(tmp_path: Path) -> None:
    path, model = save_image(tmp_path / "a.png"), AiT(CONFIG).train()
    memory = [buffer.clone() for buffer in model.buffers()]
    (found,) = predict_files(model, [path], DATA, 4)
    with torch.no_grad():
        logits = model.eval()(load_image(path, DATA)[None]).logits
    torch.testing.assert_close(found.probabilities, logits[0].softmax(dim=-1))
    assert all(map(torch.equal, memory, model.buffers()))


def test_triangles_are_read_from_files_too(tmp_path: Path) -> None:
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
    ((_, probabilities),) = predict_files(model, [tmp_path], TriangleConfig(), 1)
    images = torch.from_numpy(pixels / 255).float().expand(1, 3, 64, 64)
    with torch.no_grad():
        expected = model.eval()(images).logits[0].softmax(dim=-1)
    torch.testing.assert_close(probabilities, expected)
