"""Answers of a model that returns given logits, and of real models compared with loops."""

import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from associative_transformer.analysis.answers import Answers, measure_answers
from associative_transformer.analysis.storage import load_result, save_result
from associative_transformer.data import Split
from associative_transformer.evaluate import evaluate
from associative_transformer.interface import Batch, ModelOutput, UserError
from associative_transformer.models import build_model
from associative_transformer.models.ait import AiTConfig
from associative_transformer.models.relation_network import ConvMLPConfig
from associative_transformer.workspace_config import WorkspaceConfig
from making.splits import Images

AIT = AiTConfig(
    image_size=16,
    patch_size=8,
    embed_dim=16,
    depth=1,
    num_heads=2,
    head_dim=8,
    num_classes=3,
    question_dim=5,
    workspace=WorkspaceConfig(num_priors=4, prior_dim=8, num_heads=2, bottleneck=16),
)


class Echo(nn.Module):
    """A model that returns the images as logits."""

    def forward(self, images: Tensor, questions: Tensor | None = None) -> ModelOutput:
        return ModelOutput(images.flatten(1), torch.zeros(()))


def split_of(logits: Tensor, labels: list[int]) -> Split:
    """Return a split for which `Echo` returns these logits."""
    rows = torch.arange(len(labels))
    return Split(torch.tensor(labels), rows, Images(logits[:, None, None, :]))


def two_classes(confidence: list[float], predicted: list[int]) -> Tensor:
    """Return logits that predict one of two classes, with a confidence of at least one half."""
    probability = torch.tensor(confidence, dtype=torch.float64)
    is_first = torch.tensor(predicted) == 0
    pairs = torch.stack([1 - probability, probability], dim=-1)
    return torch.where(is_first[:, None], pairs.flip(-1), pairs).log()


def answers(logits: Tensor, labels: list[int], batch_size: int = 3, **options: int) -> Answers:
    classes = [f"class {i}" for i in range(logits.shape[1])]
    return measure_answers(
        Echo(), split_of(logits, labels).eval_batches(batch_size), classes, **options
    )


# --- calibration ---


def test_the_calibration_of_four_answers_agrees_with_a_calculation_by_hand() -> None:
    logits = two_classes([0.95, 0.95, 0.75, 0.55], predicted=[0, 1, 1, 0])
    result = answers(logits, labels=[0, 0, 1, 1], num_bins=10)
    nan = float("nan")
    assert result.bins == pytest.approx(np.arange(11) / 10)
    assert result.bin_items.tolist() == [0, 0, 0, 0, 0, 1, 0, 1, 0, 2]
    confidence = [nan, nan, nan, nan, nan, 0.55, nan, 0.75, nan, 0.95]
    accuracy = [nan, nan, nan, nan, nan, 0.0, nan, 1.0, nan, 0.5]
    assert result.bin_confidence == pytest.approx(confidence, nan_ok=True)
    assert result.bin_accuracy == pytest.approx(accuracy, nan_ok=True)
    # two of four with a gap of 0.45, one with 0.25, one with 0.55
    assert result.calibration_error == pytest.approx((2 * 0.45 + 0.25 + 0.55) / 4)
    assert result.confusion.tolist() == [[1, 1], [1, 1]]


def test_a_model_as_accurate_as_it_is_confident_has_no_calibration_error() -> None:
    logits = two_classes([0.75] * 4 + [0.6] * 5, predicted=[1] * 9)
    result = answers(logits, labels=[1, 1, 0, 1, 0, 1, 1, 0, 1], num_bins=10)
    assert result.calibration_error == pytest.approx(0, abs=1e-12)


def test_gaps_of_opposite_sign_in_two_bins_do_not_cancel() -> None:
    logits = two_classes([0.7, 0.7, 0.9, 0.9], predicted=[1] * 4)
    result = answers(logits, labels=[1, 1, 1, 0], num_bins=5)
    assert result.calibration_error == pytest.approx((0.3 + 0.4) / 2)


def test_full_confidence_belongs_to_the_last_bin() -> None:
    logits = torch.tensor([[1000.0, 0.0, 0.0], [0.0, 0.0, 1000.0]])
    result = answers(logits, labels=[0, 0])
    assert result.bin_items.tolist() == [0] * 14 + [2]
    assert result.bin_confidence[-1] == 1.0
    assert result.bin_accuracy[-1] == 0.5


def test_a_confidence_on_an_edge_belongs_to_the_lower_bin_as_in_the_paper() -> None:
    result = answers(torch.zeros(2, 4), labels=[0, 1], num_bins=4)  # each 0.25, in (0, 0.25]
    assert result.bin_items.tolist() == [2, 0, 0, 0]
    result = answers(torch.zeros(2, 2), labels=[0, 1], num_bins=4)  # each 0.5, in (0.25, 0.5]
    assert result.bin_items.tolist() == [0, 2, 0, 0]


def test_one_bin_compares_the_means() -> None:
    logits = two_classes([0.6, 0.8], predicted=[0, 0])
    result = answers(logits, labels=[0, 1], num_bins=1)
    assert result.bin_items.tolist() == [2]
    assert result.calibration_error == pytest.approx(0.7 - 0.5)


def test_the_temperature_of_a_model_changes_its_confidence_and_no_answer() -> None:
    logits, labels = 3 * torch.randn(60, 4), torch.randint(4, (60,)).tolist()
    model = Echo()
    plain = answers(logits, labels)
    assert plain.temperature is plain.scaled_confidence is plain.scaled_error is None
    model.temperature = 2.5
    classes = [f"class {i}" for i in range(4)]
    warm = measure_answers(model, split_of(logits, labels).eval_batches(7), classes)
    cooler = answers(logits / 2.5, labels)
    assert warm.calibration_error == pytest.approx(plain.calibration_error)
    assert warm.scaled_error == pytest.approx(cooler.calibration_error)
    assert warm.scaled_confidence == pytest.approx(cooler.bin_confidence, nan_ok=True)
    assert warm.scaled_accuracy == pytest.approx(cooler.bin_accuracy, nan_ok=True)
    assert warm.confusion.tolist() == plain.confusion.tolist()
    assert warm.worst.tolist() == plain.worst.tolist()
    first, second = (next(each.describe()) for each in (plain, warm))
    assert second.startswith(first) and "% at temperature 2.500" in second


# --- worst mistakes ---


def test_the_worst_mistakes_are_the_most_confident_wrong_answers() -> None:
    confidence = [0.6, 0.99, 0.7, 0.9, 0.8, 0.95, 0.65]
    logits = two_classes(confidence, predicted=[1, 1, 0, 0, 1, 1, 0])
    result = answers(logits, labels=[0, 1, 1, 1, 0, 0, 0], batch_size=2, num_worst=3)
    assert result.worst.tolist() == [5, 3, 4]  # 1 and 6 are correct
    assert result.worst_labels.tolist() == [0, 1, 0]
    assert result.worst_predicted.tolist() == [1, 0, 1]
    assert result.worst_confidence == pytest.approx([0.95, 0.9, 0.8])


def test_fewer_mistakes_than_requested_are_all_listed() -> None:
    logits = two_classes([0.6, 0.9, 0.7], predicted=[1, 1, 1])
    assert answers(logits, labels=[0, 1, 0]).worst.tolist() == [2, 0]
    flawless = answers(logits, labels=[1, 1, 1])
    assert flawless.worst.tolist() == flawless.worst_confidence.tolist() == []


@pytest.mark.parametrize("batch_size", [1, 2, 5, 9, 40])
def test_equally_confident_mistakes_keep_their_order(batch_size: int) -> None:
    logits = two_classes([0.75] * 9, predicted=[1] * 9)
    result = answers(logits, [0, 1, 0, 0, 1, 0, 0, 0, 0], batch_size, num_worst=4)
    assert result.worst.tolist() == [0, 2, 3, 5]


# --- compared with loops ---


@pytest.mark.parametrize("batch_size", [1, 7, 40, 41, 64])
def test_every_item_is_counted_once_for_any_batch_size(batch_size: int) -> None:
    logits, labels = 2 * torch.randn(40, 5), torch.randint(5, (40,)).tolist()
    result = answers(logits, labels, batch_size, num_bins=8, num_worst=6)
    confusion, bins, mistakes = np.zeros((5, 5), dtype=int), [[] for _ in range(8)], []
    for item, (row, label) in enumerate(zip(logits.double(), labels, strict=True)):
        probabilities = row.softmax(dim=0).tolist()
        confidence = max(probabilities)
        predicted = probabilities.index(confidence)
        confusion[label, predicted] += 1
        its_bin = next(b for i, b in enumerate(bins, start=1) if confidence <= i / 8)
        its_bin.append((confidence, predicted == label))
        if predicted != label:
            mistakes.append((-confidence, item, label, predicted))
    assert result.confusion.tolist() == confusion.tolist()
    assert result.bin_items.tolist() == [len(b) for b in bins]
    for i, answered in enumerate(bins):
        if answered:
            confidence, is_correct = np.array(answered).mean(axis=0)
            assert result.bin_confidence[i] == pytest.approx(confidence)
            assert result.bin_accuracy[i] == pytest.approx(is_correct)
        else:
            assert np.isnan([result.bin_confidence[i], result.bin_accuracy[i]]).all()
    gaps = [abs(sum(sure - is_correct for sure, is_correct in answered)) for answered in bins]
    assert result.calibration_error == pytest.approx(sum(gaps) / 40)
    worst = sorted(mistakes)[:6]
    assert len(worst) == 6
    assert result.worst.tolist() == [item for _, item, _, _ in worst]
    assert result.worst_labels.tolist() == [label for _, _, label, _ in worst]
    assert result.worst_predicted.tolist() == [predicted for *_, predicted in worst]
    assert result.worst_confidence == pytest.approx([-confidence for confidence, *_ in worst])


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize(
    "config",
    [AIT, ConvMLPConfig(image_size=16, num_classes=3, question_dim=5)],
    ids=lambda c: c.kind,
)
def test_answers_agree_with_the_evaluation_of_any_model(
    config: AiTConfig | ConvMLPConfig, is_training: bool
) -> None:
    model = build_model(config).train(is_training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images, questions = torch.randn(10, 3, 16, 16), torch.randn(10, 5)
    split = Split(torch.randint(3, (10,)), torch.arange(10), Images(images), questions)
    result = measure_answers(model, split.eval_batches(4), ["a", "b", "<c>"])
    scored = evaluate(model, split.eval_batches(4), 3)
    assert result.classes == ["a", "b", "<c>"]
    assert result.confusion.tolist() == scored.confusion.tolist()
    assert model.training is is_training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_model_answers_in_evaluation_mode() -> None:
    model = nn.Sequential(Echo())
    modes: list[bool] = []
    model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    model.forward = lambda images, questions: model[0](images, questions)  # type: ignore[assignment]
    split = split_of(torch.randn(5, 3), [0, 1, 2, 0, 1])
    measure_answers(model.train(), split.eval_batches(2), ["a", "b", "c"])
    assert modes == [False, False, False]
    assert model.training


# --- errors, memory and storage ---


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_predicts_nan_is_refused(value: float) -> None:
    logits = torch.randn(5, 3)
    logits[3, 1] = value
    with pytest.raises(UserError, match="nan"):
        answers(logits, labels=[0, 1, 2, 0, 1])


@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", "c", "d"]])
def test_a_wrong_number_of_class_names_is_refused(names: list[str]) -> None:
    split = split_of(torch.randn(5, 3), [0, 1, 1, 0, 1])
    model = Echo().train()
    with pytest.raises(ValueError, match=f"predicts 3 classes, but {len(names)} are given"):
        measure_answers(model, split.eval_batches(5), names)
    assert model.training  # its own mode, after an error too


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(ValueError, match="no items"):
        measure_answers(Echo(), [], ["a", "b"])


def test_no_batch_is_kept() -> None:
    alive: list[weakref.ref[Tensor]] = []

    def batches() -> Iterator[Batch]:
        for _ in range(5):
            images = torch.randn(2, 1, 1, 3)
            assert all(ref() is None for ref in alive[:-1])
            alive.append(weakref.ref(images))
            yield Batch(images, None, torch.zeros(2, dtype=torch.int64))

    assert measure_answers(Echo(), batches(), ["a", "b", "c"]).confusion.sum() == 10


@pytest.mark.parametrize("temperature", [None, 1.5])
def test_the_result_can_be_saved_and_read_back(tmp_path: Path, temperature: float | None) -> None:
    model, split = Echo(), split_of(torch.randn(9, 3), [0, 1, 2] * 3)
    model.temperature = temperature
    result = measure_answers(model, split.eval_batches(4), ["a", "b", "c"])
    save_result(result, tmp_path, "answers")
    again = load_result(Answers, tmp_path, "answers")
    for name, value in vars(result).items():
        is_optional = value is None or isinstance(value, float)
        equal_nan = not is_optional and name.startswith(("bin_", "scaled_"))
        assert np.array_equal(getattr(again, name), value, equal_nan=equal_nan), name
