"""The result of a run, written and read back with strict types."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from associative_transformer.data.augment import Normalization
from associative_transformer.experiment import Experiment, load_data
from associative_transformer.interface import UserError
from associative_transformer.recipes import RECIPES
from associative_transformer.runs.result import (
    accuracy_interval,
    name_unfinished_data,
    read_result,
    write_result,
)
from making.commands import make_images
from making.plant import answers_of, kind_of, put_result, result_of

IMAGES, QUESTIONS = RECIPES["triangle-ait-tiny"], RECIPES["sort-of-clevr-ait-tiny"]
SCORES = {"test_accuracy": 60.0, "test_loss": 0.75, "test_images": 200}
BEST = {"epoch": 3, "validation_accuracy": 61.5, **SCORES}
ANSWERS = answers_of(QUESTIONS)
ASKED = {key: ANSWERS[key] for key in ("test_questions", "test_kinds")}
IMAGE_KEYS = [
    *("name", "seed", "question_types", "test_accuracy", "test_loss", "test_images"),
    *("best_validation", "model", "epochs", "skipped_steps", "skipped_images", "data"),
    *("precision", "live_parameters", "total_parameters", "classes"),
    *("test_precision", "compiled", "timing"),
]
ADDED = {"test_precision": "float32", "compiled": False}  # what the earliest results do not hold
QUESTION_KEYS = [*IMAGE_KEYS[:6], "test_questions", "test_kinds", *IMAGE_KEYS[6:]]


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        (result_of(IMAGES), IMAGE_KEYS),
        (result_of(IMAGES, best_validation=BEST), IMAGE_KEYS),
        (ANSWERS, QUESTION_KEYS),
        (answers_of(QUESTIONS, best_validation=BEST | ASKED), QUESTION_KEYS),
    ],
    ids=["images", "images and validation", "questions", "questions and validation"],
)
def test_a_result_is_written_as_it_was_read_with_its_keys_in_order(
    content: dict[str, Any], keys: list[str], tmp_path: Path
) -> None:
    result = put_result(tmp_path, content)
    write_result(tmp_path, result)
    written = json.loads((tmp_path / "result.json").read_text())
    assert written == content | ADDED
    assert list(written) == keys
    assert (tmp_path / "result.json").read_text() == json.dumps(written, indent=2)
    assert read_result(tmp_path) == result


def test_keys_about_questions_also_follow_the_scores_of_the_best_epoch(tmp_path: Path) -> None:
    result = put_result(tmp_path, answers_of(QUESTIONS, best_validation=BEST | ASKED))
    write_result(tmp_path, result)
    best = json.loads((tmp_path / "result.json").read_text())["best_validation"]
    assert list(best) == [*BEST, "test_questions", "test_kinds"]
    kind = best["test_kinds"][0]
    assert list(kind) == ["name", "accuracy", "interval", "guess", "questions", "images"]


FULL = {
    "test_interval": [53.0, 66.5],
    "test_top5_accuracy": 90.0,
    "test_top5_interval": [85.0, 93.5],
    "test_balanced_accuracy": 58.0,
    "test_mean_precision": 59.0,
    "test_mean_f1": 57.5,
    "test_calibration": {"error": 4.5, "temperature": 1.5, "scaled_error": 2.0},
}


def test_all_scores_are_written_after_those_of_the_first_version(tmp_path: Path) -> None:
    content = result_of(IMAGES, **FULL, best_validation=BEST | FULL)
    result = put_result(tmp_path, content)
    write_result(tmp_path, result)
    written = json.loads((tmp_path / "result.json").read_text())
    assert written == content | ADDED
    assert list(written) == [*IMAGE_KEYS[:6], *FULL, *IMAGE_KEYS[6:]]
    assert list(written["best_validation"]) == [*BEST, *FULL]
    assert read_result(tmp_path) == result


def test_the_interval_of_an_early_run_follows_from_its_number_of_images(tmp_path: Path) -> None:
    early = put_result(tmp_path, result_of(IMAGES, 80.0, test_images=10))
    assert accuracy_interval(early) == pytest.approx((49.02, 94.33), abs=0.01)
    kinds = [kind_of("binary", 60.0, 40.0), kind_of("all", 75.0, 45.0)]
    asked = put_result(tmp_path, answers_of(QUESTIONS, test_kinds=kinds))
    assert accuracy_interval(asked) == (65.0, 85.0)  # by image, as the run recorded it
    recorded = put_result(tmp_path, result_of(IMAGES, 80.0, **FULL, test_images=10))
    assert accuracy_interval(recorded) == (53.0, 66.5)


def test_a_run_without_a_result_is_not_complete(tmp_path: Path) -> None:
    assert read_result(tmp_path) is None


def test_the_score_of_a_kind_is_found_by_its_name(tmp_path: Path) -> None:
    result = put_result(tmp_path, answers_of(QUESTIONS, binary=70.0))
    assert result.score("binary").accuracy == 70.0
    assert result.score("ternary") is None
    assert put_result(tmp_path, result_of(IMAGES)).score("binary") is None


def test_unknown_keys_of_a_later_version_are_ignored(tmp_path: Path) -> None:
    plain = put_result(tmp_path, result_of(IMAGES))
    assert put_result(tmp_path, result_of(IMAGES, energy=3.5)) == plain


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"null", b"[" * 100_000])
def test_the_error_for_a_damaged_result_says_how_to_fix_it(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(
        UserError, match=r"result\.json is damaged \(.+\): there is no checkpoint .* --overwrite"
    ):
        read_result(tmp_path)
    (tmp_path / "checkpoint" / "last").mkdir(parents=True)
    (tmp_path / "checkpoint" / "last" / "state.json").touch()
    with pytest.raises(UserError, match=r"\): pass --resume to ait train to restore it from"):
        read_result(tmp_path)


def test_a_folder_in_place_of_the_result_is_refused(tmp_path: Path) -> None:
    (tmp_path / "result.json").mkdir()
    with pytest.raises(UserError, match=r"result\.json is damaged \(Is a directory\): there is"):
        read_result(tmp_path)
    (tmp_path / "checkpoint" / "last").mkdir(parents=True)
    (tmp_path / "checkpoint" / "last" / "state.json").touch()
    with pytest.raises(UserError, match=r"\(Is a directory\): remove it and pass --resume to ait"):
        read_result(tmp_path)


@pytest.mark.parametrize(
    "key", [key for key in IMAGE_KEYS if key not in ("best_validation", "timing", *ADDED)]
)
def test_a_missing_key_is_named(key: str, tmp_path: Path) -> None:
    content = result_of(IMAGES)
    del content[key]
    (tmp_path / "result.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"damaged \({key}: Field required\)"):
        read_result(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": "100"}, "epochs: "),
        ({"epochs": 1.5}, "epochs: "),
        ({"test_accuracy": "80"}, "test_accuracy: "),
        ({"test_accuracy": None}, "test_accuracy: "),
        ({"classes": "ab"}, "classes: "),
        ({"classes": ["a", 2]}, r"classes\.1: "),
        ({"best_validation": {**BEST, "epoch": "3"}}, r"best_validation\.epoch: "),
        ({"best_validation": SCORES}, r"best_validation\.epoch: Field required"),
        ({"timing": {"seconds": "9"}}, r"timing\.seconds: "),
        ({"timing": {"seconds": 9.0, "finished": 3}}, r"timing\.finished: "),
        ({"test_kinds": [{"name": "binary"}]}, r"test_kinds\.0\.accuracy: Field required"),
        ({"test_interval": [1.0]}, r"test_interval"),
        ({"test_calibration": {"error": 1.0, "temperature": -1.0}}, "test_calibration"),
        ({"test_calibration": {"error": 1.0, "temperature": 2.0}}, "test_calibration: .*together"),
        ({"question_types": ["binary"]}, "test_kinds is missing although .* are binary"),
    ],
    ids=str,
)
def test_a_wrong_value_is_named(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(result_of(IMAGES, **changes)))
    with pytest.raises(UserError, match=rf"damaged \({words}"):
        read_result(tmp_path)


# --- what the data are ---

CIFAR, OWN = RECIPES["cifar10-ait-tiny"], {"classes": ["cat", "dog"]}


def from_folder(experiment: Experiment, num_classes: int = 10, **data: Any) -> Experiment:  # noqa: ANN401
    """Return an experiment on the images of a folder."""
    model = replace(experiment.model, num_classes=num_classes)
    data = replace(experiment.data, source="mine", **data)
    return replace(experiment, data=data, model=model)


@pytest.mark.parametrize(
    ("experiment", "changes", "words"),
    [
        (IMAGES, {}, "triangle"),
        (CIFAR, {}, "cifar10"),
        (from_folder(CIFAR), {}, "cifar10"),
        (
            from_folder(CIFAR),
            OWN,
            "own images, not CIFAR-10 (2 classes instead of 10): 10,000 test images of 2 classes "
            "(cat, dog)",
        ),
        (from_folder(CIFAR), {"test_images": 9}, "own images, not CIFAR-10 (9 test images"),
        (
            from_folder(CIFAR, name="food101"),
            OWN | {"test_images": 9},
            "a folder passed as food101: 9 test images of 2 classes (cat, dog)",
        ),
    ],
    ids=["generated", "hub", "copy", "own", "fewer", "other name"],
)
def test_the_data_of_a_complete_run_are_named_by_their_classes_and_sizes(
    experiment: Experiment, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    result = put_result(tmp_path, result_of(CIFAR, **changes))
    assert result.name_data(experiment.data).startswith(words)


@pytest.mark.parametrize(
    ("experiment", "words"),
    [
        (IMAGES, "triangle"),
        (CIFAR, "cifar10"),
        (from_folder(CIFAR, 2), "own images, not CIFAR-10 (2 classes instead of 10)"),
        (
            from_folder(CIFAR, measured=Normalization((0.5,) * 3, (0.2,) * 3)),
            "own images, not CIFAR-10",
        ),
        (
            from_folder(CIFAR, mean="auto", measured=Normalization((0.5,) * 3, (0.2,) * 3)),
            "a folder passed as cifar10, to be compared with CIFAR-10 when the run is complete",
        ),
        (
            from_folder(CIFAR),
            "a folder passed as cifar10, to be compared with CIFAR-10 when the run is complete",
        ),
        (from_folder(CIFAR, 2, name="food101"), "a folder passed as food101"),
    ],
    ids=["generated", "hub", "classes", "measured", "auto", "copy or own", "other name"],
)
def test_the_data_of_an_unfinished_run_are_named_only_if_they_are_known(
    experiment: Experiment, words: str
) -> None:
    assert name_unfinished_data(experiment) == words


def test_a_run_computes_the_mean_only_of_images_that_are_not_the_known_ones(
    tmp_path: Path,
) -> None:
    """This is how `name_unfinished_data` can tell them apart, although all have ten classes."""
    images = make_images(tmp_path / "images", train=("blue", "red"), test=("blue", "red"))
    for split in ("train", "test"):
        for number in range(8):
            shutil.copytree(images / split / "red", images / split / f"red {number}")
    data = replace(CIFAR.data, source=str(images), image_size=16, num_workers=0)
    model = replace(CIFAR.model, image_size=16, patch_size=8)
    experiment = replace(CIFAR, data=data, model=model)
    assert "compared with CIFAR-10" in name_unfinished_data(experiment)
    loaded = load_data(experiment, torch.device("cpu"), is_resumed=False)
    started = replace(experiment, data=data.as_loaded(loaded))
    assert name_unfinished_data(started) == "own images, not CIFAR-10"
