"""Evaluation, compared with loops over single images and questions."""

import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from associative_transformer.calibration import Calibration, measure_reliability
from associative_transformer.data import HeldOut, Split
from associative_transformer.data.questions import CLASS_NAMES, KINDS, NO_COLOR, Questions, encode
from associative_transformer.evaluate import (
    Evaluation,
    KindScore,
    describe_kinds,
    evaluate,
    evaluate_split,
    save_evaluation,
    score_kinds,
    summarize,
)
from associative_transformer.interface import Batch, ModelOutput
from associative_transformer.models.ait import AiT, AiTConfig
from associative_transformer.scores import Interval, interval_by_image, wilson_interval
from associative_transformer.workspace_config import WorkspaceConfig

CPU = torch.device("cpu")
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
    """A loader of images in memory."""

    device = CPU

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def load(self, rows: Tensor, seed: np.random.SeedSequence | None) -> Iterator[Tensor]:
        return (self.images[batch] for batch in rows)


def make_split(num_items: int, num_classes: int = 3) -> Split:
    images = torch.randn(num_items, 3, 16, 16)
    labels = torch.randint(num_classes, (num_items,))
    return Split(labels, torch.arange(num_items), Images(images))


# --- accuracy ---


@pytest.mark.parametrize("batch_size", [1, 2, 7, 23, 24, 100])
def test_every_image_is_scored_once_for_any_batch_size(batch_size: int) -> None:
    split, model = make_split(23), AiT(CONFIG).eval()
    confusion, loss, predicted = [[0] * 3 for _ in range(3)], 0.0, []
    with torch.no_grad():
        for image, label in zip(split.loader.images, split.labels.tolist(), strict=True):
            probabilities = model(image[None]).logits[0].double().softmax(dim=0)
            loss -= math.log(probabilities[label])
            predicted.append(int(probabilities.argmax()))
            confusion[label][predicted[-1]] += 1
    evaluation = evaluate(model, split.eval_batches(batch_size), 3)
    assert evaluation.confusion.tolist() == confusion
    assert evaluation.predicted.tolist() == predicted
    correct = sum(confusion[c][c] for c in range(3))
    assert evaluation.accuracy == pytest.approx(100 * correct / 23)
    assert evaluation.loss == pytest.approx(loss / 23, rel=1e-5)
    shares = [100 * confusion[c][c] / sum(confusion[c]) for c in range(3)]
    assert evaluation.class_accuracy == pytest.approx(shares)


class Fixed(nn.Module):
    """A model that predicts the class stored in the first pixel."""

    def forward(self, images: Tensor, questions: Tensor | None) -> ModelOutput:
        logits = 10 * nn.functional.one_hot(images[:, 0, 0, 0].long(), 3).float()
        return ModelOutput(logits, torch.zeros(()))


def batch_of(predicted: list[int], labels: list[int]) -> Batch:
    images = torch.tensor(predicted).float()[:, None, None, None].expand(-1, 3, 16, 16)
    return Batch(images, None, torch.tensor(labels))


class OnGpu(Split):
    """A split that pretends to be on a GPU with memory for `room` images."""

    room = 5

    def eval_batches(self, batch_size: int) -> Iterator[Batch]:
        tried.append(batch_size)
        if batch_size > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        on_cpu = Split(self.labels, self.rows, Images(self.loader.images))
        return on_cpu.eval_batches(batch_size)


class GpuImages(Images):
    device = torch.device("cuda")


tried: list[int] = []


def test_a_gpu_uses_the_largest_batch_that_fits_and_a_cpu_the_given_one() -> None:
    model, split = AiT(CONFIG), make_split(23)
    expected = evaluate_split(model, split, 4, 3)
    on_gpu = OnGpu(split.labels, split.rows, GpuImages(split.loader.images))
    tried.clear()
    evaluation = evaluate_split(model, on_gpu, 4, 3)
    assert tried == [23, 11, 5]
    assert evaluation.accuracy == expected.accuracy
    assert evaluation.loss == pytest.approx(expected.loss, rel=1e-5)
    assert torch.equal(evaluation.confusion, expected.confusion)


def test_a_gpu_without_room_for_one_image_raises_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    split = make_split(3)
    on_gpu = OnGpu(split.labels, split.rows, GpuImages(split.loader.images))
    monkeypatch.setattr(OnGpu, "room", 0)
    with pytest.raises(RuntimeError, match="No executable batch size"):
        evaluate_split(AiT(CONFIG), on_gpu, 4, 3)


def test_a_model_that_fails_returns_to_its_previous_mode() -> None:
    model, split = AiT(CONFIG), make_split(3)
    with pytest.raises(ValueError, match="images must"):
        evaluate(model, [Batch(torch.zeros(1, 3, 8, 8), None, split.labels[:1])], 3)
    assert model.training


def test_rows_of_the_confusion_matrix_are_true_classes_and_padding_is_ignored() -> None:
    batches = [batch_of([0, 1, 1], [0, 0, 2]), batch_of([1, 2, 2], [1, -1, -1])]
    evaluation = evaluate(Fixed(), batches, 3)
    assert evaluation.confusion.tolist() == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]
    assert evaluation.predicted.tolist() == [0, 1, 1, 1]
    assert evaluation.accuracy == 50
    assert evaluation.class_accuracy == [50, 100, 0]
    right, wrong = math.log(1 + 2 * math.exp(-10)), math.log(math.exp(10) + 2)
    assert evaluation.loss == pytest.approx((2 * right + 2 * wrong) / 4, rel=1e-5)


def test_a_class_without_images_has_no_accuracy() -> None:
    shares = evaluate(Fixed(), [batch_of([0], [0])], 3).class_accuracy
    assert shares[0] == 100
    assert all(math.isnan(share) for share in shares[1:])


@pytest.mark.parametrize("is_training", [False, True])
def test_evaluation_changes_neither_mode_nor_weights_nor_memory(is_training: bool) -> None:
    model, split = AiT(CONFIG).train(is_training), make_split(9)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = evaluate(model, split.eval_batches(4), 3)
    second = evaluate(model, split.eval_batches(4), 3)
    assert model.training == is_training
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    assert torch.equal(first.confusion, second.confusion)
    assert first.loss == second.loss


# --- kinds of questions ---


def ask(kinds: list[int], each: int) -> Split:
    """Return random questions of these kinds with random answers, `each` of them per image."""
    n = len(kinds)
    kind, first = np.array(kinds), np.random.randint(6, size=n)
    second = np.where(kind >= 6, (first + 1) % 5, NO_COLOR)
    vectors = torch.from_numpy(encode(Questions(kind, first, second)))
    labels, rows = torch.randint(10, (n,)), torch.arange(n) // each + 100
    return Split(labels, rows, Images(torch.zeros(1)), vectors)


@pytest.mark.parametrize("kinds", [range(9), range(3, 6), (0, 4, 8)], ids=str)
def test_scores_by_kind_are_those_of_a_loop(kinds: range) -> None:
    asked = np.random.choice(list(kinds), 300).tolist()
    split, guesses = ask(asked, each=4), torch.randint(10, (9,))
    predicted = torch.where(torch.rand(300) < 0.6, split.labels, torch.randint(10, (300,)))
    right, guessed, image_rows = defaultdict(list), defaultdict(list), defaultdict(list)
    for i, kind in enumerate(asked):
        label = int(split.labels[i])
        for name in (KINDS[kind].type, KINDS[kind].name, "all"):
            right[name].append(int(predicted[i]) == label)
            guessed[name].append(int(guesses[kind]) == label)
            image_rows[name].append(int(split.rows[i]))
    scores = score_kinds(predicted, split, guesses)
    assert {score.name for score in scores} == set(right)
    for score in scores:
        is_right, images = right[score.name], image_rows[score.name]
        assert score.accuracy == pytest.approx(100 * sum(is_right) / len(is_right))
        is_guessed = guessed[score.name]
        assert score.guess == pytest.approx(100 * sum(is_guessed) / len(is_guessed))
        assert (score.questions, score.images) == (len(is_right), len(set(images)))
        expected = interval_by_image(torch.tensor(is_right), torch.tensor(images))
        assert score.interval == pytest.approx(expected)


def test_a_type_comes_before_its_subtypes_and_absent_kinds_are_omitted() -> None:
    split = ask([5, 0, 3, 5, 0, 3], each=2)
    names = [score.name for score in score_kinds(split.labels, split, torch.zeros(9).long())]
    expected = ["non-relational", "non-relational/shape"]
    assert names == [*expected, "binary", "binary/closest", "binary/count", "all"]


def test_each_kind_has_its_own_guess() -> None:
    split = ask([0] * 10 + [1] * 10, each=5)
    split.labels[:] = torch.tensor([2] * 7 + [3] * 3 + [0] * 6 + [1] * 4)
    guesses = torch.tensor([2, 0, 9, 9, 9, 9, 9, 9, 9])
    scores = score_kinds(torch.full((20,), 3), split, guesses)
    assert [score.guess for score in scores] == pytest.approx([65, 70, 60, 65])
    assert [score.accuracy for score in scores] == pytest.approx([15, 30, 0, 15])


def test_images_without_questions_have_no_kinds() -> None:
    split = make_split(5)
    with pytest.raises(ValueError, match="no questions"):
        score_kinds(split.labels, split, torch.zeros(9).long())


def test_the_summary_of_images_counts_them() -> None:
    split = make_split(12)
    evaluation = evaluate(AiT(CONFIG), split.eval_batches(5), 3)
    summary = summarize(evaluation, HeldOut(split, ("a", "b", "c")))
    assert (summary.accuracy, summary.loss) == (evaluation.accuracy, evaluation.loss)
    assert summary.images == 12
    share = evaluation.accuracy / 100
    assert summary.interval == pytest.approx(wilson_interval(share, 12))
    names = ["accuracy", "loss", "images", *SCORES]
    assert list(summary.to_dict()) == names  # neither questions, nor top-5 of three classes
    assert list(summary.to_dict()["calibration"].values())[1:] == [None, None]


SCORES = ["interval", "balanced_accuracy", "mean_precision", "mean_f1", "calibration"]


def test_the_temperature_changes_the_calibration_and_no_other_score() -> None:
    split = make_split(40)
    evaluation = evaluate(AiT(CONFIG), split.eval_batches(8), 3)
    data = HeldOut(split, ("a", "b", "c"))
    plain, scaled = summarize(evaluation, data), summarize(evaluation, data, 0.25)
    assert scaled.calibration == Calibration(
        plain.calibration.error,
        0.25,
        100 * measure_reliability(4 * evaluation.logits, evaluation.labels).error,
    )
    assert scaled == replace(plain, calibration=scaled.calibration)


@pytest.mark.parametrize("num_classes", [5, 6])
def test_more_than_five_classes_have_a_top_five(num_classes: int) -> None:
    split = make_split(50, num_classes)
    model = AiT(replace(CONFIG, num_classes=num_classes))
    evaluation = evaluate(model, split.eval_batches(8), num_classes)
    summary = summarize(evaluation, HeldOut(split, tuple("abcdef"[:num_classes])))
    if num_classes == 5:
        assert summary.top5_accuracy is summary.top5_interval is None
        return
    last = evaluation.logits.argmin(dim=-1)
    assert summary.top5_accuracy == pytest.approx(
        100 - 100 * (last == split.labels).double().mean()
    )
    assert summary.top5_interval == wilson_interval(summary.top5_accuracy / 100, 50)


def test_a_diverged_model_is_summarized_without_a_calibration() -> None:
    split = make_split(7)
    evaluation = evaluate(AiT(CONFIG), split.eval_batches(8), 3)
    broken = evaluation._replace(logits=evaluation.logits * float("nan"))
    assert summarize(broken, HeldOut(split, ("a", "b", "c"))).calibration is None
    assert broken.fit_temperature() is None


def test_the_logits_and_labels_of_all_items_are_kept_in_order_without_padding() -> None:
    split, model = make_split(23), AiT(CONFIG).eval()
    evaluation = evaluate(model, split.eval_batches(7), 3)
    with torch.no_grad():
        logits = model(split.loader.images).logits
    assert torch.allclose(evaluation.logits, logits, atol=1e-5)
    assert torch.equal(evaluation.labels, split.labels)


def test_the_summary_of_questions_counts_images_once_and_is_ready_for_json() -> None:
    split, guesses = ask([0, 1, 3, 4] * 5, each=4), torch.zeros(9).long()
    confusion, logits = torch.zeros(10, 10).long(), torch.zeros(20, 10)
    evaluation = Evaluation(25.0, 1.5, confusion, split.labels, split.labels, logits)
    summary = summarize(evaluation, HeldOut(split, CLASS_NAMES, guesses=guesses))
    assert (summary.images, summary.questions) == (5, 20)
    scores = score_kinds(split.labels, split, guesses)
    assert list(summary.kinds) == scores
    content = json.loads(json.dumps(summary.to_dict()))
    names = ["accuracy", "loss", "images", "questions", "kinds", "interval", "top5_accuracy"]
    assert list(content) == [*names, "top5_interval", *SCORES[1:]]
    assert content["interval"] == content["kinds"][-1]["interval"]  # of all questions, by image
    for kind, score in zip(content["kinds"], scores, strict=True):
        assert list(kind) == ["name", "accuracy", "interval", "guess", "questions", "images"]
        assert kind == {**vars(score), "interval": list(score.interval)}


def test_the_guess_is_next_to_every_accuracy() -> None:
    text = describe_kinds(
        [
            KindScore("binary", 76.824, Interval(74.0, 79.5), 42.71, 2000, 200),
            KindScore("binary/closest", 100.0, Interval(98.1, 100.0), 51.0, 2000, 200),
        ]
    )
    header, *lines = text.splitlines()
    assert header.split() == ["accuracy", "95", "%", "interval", "guess", "questions", "images"]
    assert " ".join(lines[0].split()) == "76.82 % 74.00 to 79.50 % 42.71 % 2,000 200 binary"
    assert " ".join(lines[1].split()) == (
        "100.00 % 98.10 to 100.00 % 51.00 % 2,000 200 binary/closest"
    )
    assert len({line.index("2,000") for line in lines}) == 1


# --- files ---


def test_a_summary_is_saved_with_the_accuracy_of_each_class_and_the_confusion_matrix(
    tmp_path: Path,
) -> None:
    confusion = torch.tensor([[2, 1, 0], [1, 0, 0], [0, 0, 0]])
    predicted, labels = torch.tensor([0, 0, 1, 0]), torch.tensor([0, 0, 0, 1])
    evaluation = Evaluation(50.0, 0.75, confusion, predicted, labels, torch.zeros(4, 3))
    summary = {"accuracy": 50.0, "kinds": [{"name": "binary"}], "source": None}
    save_evaluation(evaluation, summary, ["cat", "a, b", "none"], tmp_path)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == {
        **summary,
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
