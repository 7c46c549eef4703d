"""Evaluation, compared with loops over single images and questions."""

import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from associative_transformer.data import HeldOut, Split
from associative_transformer.data.questions import CLASS_NAMES, KINDS, NO_COLOR, Questions, encode
from associative_transformer.evaluate import (
    Evaluation,
    Interval,
    KindScore,
    Summary,
    describe_kinds,
    evaluate,
    evaluate_split,
    interval_by_image,
    save_evaluation,
    score_kinds,
    summarize,
)
from associative_transformer.interface import Batch, ModelOutput
from associative_transformer.models.ait import AiT, AiTConfig
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


# --- intervals ---


def wilson(share: float, n: float) -> tuple[float, float]:
    """Return the interval in percent by Wilson's formula (1927)."""
    z = 1.959964
    center, spread = share + z * z / (2 * n), share * (1 - share) / n + z * z / (4 * n * n)
    low, high = ((center + side * z * math.sqrt(spread)) / (1 + z * z / n) for side in (-1, 1))
    return 100 * low, 100 * high


def interval(answers: list[list[bool]]) -> Interval:
    """Return the interval of answers that are grouped by image."""
    images = [image for image, of_image in enumerate(answers) for _ in of_image]
    is_right = [right for of_image in answers for right in of_image]
    return interval_by_image(torch.tensor(is_right), torch.tensor(images))


def test_wilson_in_this_file_gives_published_numbers() -> None:
    assert wilson(8 / 10, 10) == pytest.approx((49.02, 94.33), abs=0.01)
    assert wilson(1.0, 10) == pytest.approx((72.25, 100.0), abs=0.01)


@pytest.mark.parametrize(("num_right", "num_images"), [(8, 10), (75, 100), (1, 200)])
def test_with_one_question_per_image_the_interval_is_that_of_independent_answers(
    num_right: int, num_images: int
) -> None:
    share = num_right / num_images
    bounds = interval([[i < num_right] for i in range(num_images)])
    assert bounds == pytest.approx(wilson(share, num_images), abs=1e-4)


@pytest.mark.parametrize("each", [2, 10])
@pytest.mark.parametrize(("num_right", "num_images"), [(8, 10), (150, 200)])
def test_identical_answers_about_an_image_count_once(
    num_right: int, num_images: int, each: int
) -> None:
    bounds = interval([[i < num_right] * each for i in range(num_images)])
    assert bounds == pytest.approx(wilson(num_right / num_images, num_images), abs=1e-4)


def test_another_error_never_raises_the_interval() -> None:
    for each in (2, 10):
        flat = [True] * 200 * each
        bounds = []
        for errors in range(30):
            answers = [False] * errors + flat[errors:]
            bounds.append(interval([answers[i::200] for i in range(200)]))
        for before, after in pairwise(bounds):
            assert after.low <= before.low + 0.1  # percent
            assert after.high <= before.high + 0.1


@pytest.mark.parametrize("is_right", [True, False])
def test_if_all_answers_are_right_or_all_are_wrong_the_number_of_images_counts(
    is_right: bool,
) -> None:
    for num_images in (1, 7, 200):
        bounds = interval([[is_right] * 10] * num_images)
        assert bounds == pytest.approx(wilson(float(is_right), num_images), abs=1e-4)
        assert bounds[is_right] == pytest.approx(100 * is_right)


def test_the_interval_of_a_single_image_is_wide() -> None:
    low, high = interval([[True] * 6 + [False] * 2])
    assert (low, high) == pytest.approx(wilson(0.75, 1), abs=1e-4)
    assert high - low > 60


def test_neither_the_order_nor_the_numbers_of_the_images_matter() -> None:
    is_right = torch.rand(60) < 0.7
    images = torch.arange(60) // 6
    order = torch.randperm(60)
    bounds = interval_by_image(is_right[order], 5 * images[order] + 3)
    assert bounds == pytest.approx(interval_by_image(is_right, images))


def test_an_interval_contains_the_accuracy_and_is_never_narrower_than_wilsons() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        sizes = random.integers(1, 12, size=random.integers(1, 30))
        shares = random.beta(0.5, 0.2, size=len(sizes))
        answers = [(random.random(n) < p).tolist() for n, p in zip(sizes, shares, strict=True)]
        flat = [right for of_image in answers for right in of_image]
        share, (low, high) = sum(flat) / len(flat), interval(answers)
        naive_low, naive_high = wilson(share, len(flat))
        assert 0 <= low <= 100 * share + 1e-9
        assert 100 * share - 1e-9 <= high <= 100
        assert high - low >= naive_high - naive_low - 1e-3


@pytest.mark.parametrize(("share", "least"), [(0.75, 0.92), (0.99, 0.92)])
def test_the_interval_covers_the_true_accuracy_even_if_that_of_independent_answers_does_not(
    share: float, least: float
) -> None:
    random = np.random.default_rng(0)
    num_images, each, num_trials = 200, 10, 1500
    covered, covered_by_wilson = 0, 0
    images = torch.arange(num_images).repeat_interleave(each)
    for _ in range(num_trials):
        of_image = random.beta(2 * share, 2 * (1 - share), size=(num_images, 1))
        is_right = random.random((num_images, each)) < of_image
        low, high = interval_by_image(torch.from_numpy(is_right.ravel()), images)
        covered += low <= 100 * share <= high
        low, high = wilson(float(is_right.mean()), num_images * each)
        covered_by_wilson += low <= 100 * share <= high
    assert least <= covered / num_trials <= 0.99
    assert covered_by_wilson / num_trials < 0.8


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
    assert summary == Summary(accuracy=evaluation.accuracy, loss=evaluation.loss, images=12)
    expected = {"accuracy": evaluation.accuracy, "loss": evaluation.loss, "images": 12}
    assert summary.to_dict() == expected


def test_the_summary_of_questions_counts_images_once_and_is_ready_for_json() -> None:
    split, guesses = ask([0, 1, 3, 4] * 5, each=4), torch.zeros(9).long()
    evaluation = Evaluation(25.0, 1.5, torch.zeros(10, 10).long(), split.labels)
    summary = summarize(evaluation, HeldOut(split, CLASS_NAMES, guesses=guesses))
    assert (summary.images, summary.questions) == (5, 20)
    scores = score_kinds(split.labels, split, guesses)
    assert list(summary.kinds) == scores
    content = json.loads(json.dumps(summary.to_dict()))
    assert list(content) == ["accuracy", "loss", "images", "questions", "kinds"]
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
    evaluation = Evaluation(50.0, 0.75, confusion, torch.tensor([0, 0, 1, 0]))
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
