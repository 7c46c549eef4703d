"""A dry run: it counts and measures what a run would do, and leaves nothing behind."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from associative_transformer.experiment import Experiment, format_experiment
from associative_transformer.interface import UserError
from associative_transformer.models import build_model
from associative_transformer.training import dry_run as module
from associative_transformer.training.dry_run import dry_run, resolve
from associative_transformer.training.duration import format_seconds
from associative_transformer.training.loop import train
from making.commands import make_images
from making.overrides import IMAGES, QUESTIONS, TRIANGLE
from making.trained import EXPERIMENT


def test_sizes_are_those_of_the_run(undisturbed: Path) -> None:
    measured = dry_run(EXPERIMENT)
    model = build_model(EXPERIMENT.model)
    config, data, size = EXPERIMENT.train, EXPERIMENT.data, EXPERIMENT.train.batch_size
    assert measured.parameters == sum(p.numel() for p in model.parameters())
    assert measured.tokens == (64 // 32) ** 2
    assert measured.steps_per_epoch == 4
    assert measured.num_steps == 4 * config.epochs
    assert measured.image_bytes >= data.num_train * 64**2
    assert measured.peak_bytes > measured.image_bytes
    assert measured.seconds_per_step > 0
    words = measured.describe()
    assert words["tokens"] == f"4 per image, {4 * size:,} per batch of {size}"
    assert words["compiled"].startswith("no: ")


def test_it_takes_real_steps_but_neither_writes_nor_changes_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    measured = dry_run(EXPERIMENT)
    assert list(tmp_path.iterdir()) == []
    assert module.MIN_MEASURED <= measured.measured_steps <= module.MAX_MEASURED
    train(EXPERIMENT, tmp_path / "run")
    name = "model.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (undisturbed / name).read_bytes()


def test_a_model_without_tokens_and_questions_has_none() -> None:
    experiment = replace(QUESTIONS, train=replace(QUESTIONS.train, batch_size=16))
    measured = dry_run(experiment)
    assert measured.tokens is None
    assert measured.describe()["tokens"] == "none"
    assert measured.describe()["data"].endswith("classes")
    assert "test questions" in measured.describe()["data"]


@pytest.mark.parametrize(
    ("setting", "seconds", "word"),
    [
        ("off", 1e6, "no: --train.compile off"),
        ("on", 0.0, "yes: "),
        ("auto", 1.0, "no: the run is too short"),
        ("auto", 1e6, "tried at the start"),
    ],
)
def test_compilation_is_foreseen_from_the_time_of_the_whole_training(
    setting: str, seconds: float, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "time_steps", lambda run: [seconds / 8])
    experiment = replace(TRIANGLE, train=replace(TRIANGLE.train, compile=setting, epochs=30))
    assert dry_run(experiment).compilation.startswith(word)


def test_what_a_run_would_refuse_is_refused() -> None:
    with pytest.raises(UserError, match="256 images, fewer than one batch of 512"):
        dry_run(replace(TRIANGLE, train=replace(TRIANGLE.train, batch_size=512)))


def own_images(folder: Path) -> Experiment:
    source = make_images(folder / "images")
    return replace(
        IMAGES,
        data=replace(IMAGES.data, source=str(source), num_workers=0),
        model=replace(IMAGES.model, num_classes=2),
        train=replace(IMAGES.train, batch_size=8, epochs=1),
    )


@pytest.mark.parametrize("make", [lambda _: EXPERIMENT, own_images], ids=["triangle", "images"])
def test_the_resolved_experiment_is_what_the_run_saves(
    make: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make(tmp_path)  # type: ignore[operator]
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    printed = format_experiment(resolve(experiment, folder, resume=False))
    assert not folder.exists()
    train(experiment, folder)
    assert printed == (folder / "experiment.yaml").read_text()
    again = format_experiment(resolve(experiment, folder, resume=True))
    assert again == printed
    assert yaml.safe_load(printed)["name"] == experiment.name


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.84, "0.8 s"),
        (59.6, "1 min 00 s"),
        (11, "11 s"),
        (130, "2 min 10 s"),
        (11_100, "3 h 05 min"),
    ],
)
def test_times_are_written_in_words(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
