"""`ait fit`: from a folder of images to a trained model, without a recipe."""

import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from PIL import Image

from associative_transformer import report
from associative_transformer.data.listing import print_once
from associative_transformer.experiment import Experiment, load_experiment, save_experiment
from associative_transformer.runs.result import read_result
from associative_transformer.training import throughput
from associative_transformer.training.throughput import Throughput
from making.commands import Ait, assert_refused, make_images
from making.overrides import IMAGES

SLOW = Throughput(step=1.5, scored_image=0.001, save=0.1)


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan with a slow machine, so that few epochs fit, and keep caches in the test's folder."""
    monkeypatch.setattr(throughput, "measure_throughput", lambda experiment: SLOW)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    print_once.cache_clear()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Write class folders without splits, an image that cannot be read among them."""
    made = make_images(tmp_path / "made", test=())
    folder = shutil.move(made / "train", tmp_path / "my colors")
    (tmp_path / "my colors" / "red" / "broken.png").write_bytes(b"not an image")
    return Path(folder)


def fit(ait: Ait, images: Path, *words: object) -> str:
    done = ait("fit", images, "--time", "25s", "--device", "cpu", "--data.num-workers", 0, *words)
    assert done.code == 0, done.err
    return done.out


def test_a_folder_becomes_a_model_with_scores_a_report_and_the_next_commands(
    ait: Ait, images: Path
) -> None:
    out = fit(ait, images, "--no-flip")
    run = Path("runs/fit-my-colors/0")
    result, saved = read_result(run), load_experiment(run / "experiment.yaml")
    assert result is not None and result.skipped_images == 1
    assert saved.data.resolved_augmentation.flip == "none"
    assert (run / "report.html").is_file() and (run / "evaluation.json").is_file()
    for words in ("my colors: class folders without splits", "1 unreadable image left out"):
        assert words in out
    assert re.search(r"50\.00 %  for always answering (blue|red)", out)
    for command in (
        "predict runs/fit",
        "export runs/fit",
        "eval runs/fit",
        "--time 2m --overwrite",
    ):
        assert command in out
    assert f"plan: {saved.train.epochs} epoch" in out
    picture = next(images.glob("blue/*.png"))
    assert ait("predict", run, picture, "--device", "cpu").code == 0


@pytest.fixture
def unreported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write no report, which takes seconds."""
    monkeypatch.setattr(report, "write_report", lambda folder, *_: folder / "report.html")


@pytest.mark.usefixtures("unreported")
def test_the_printed_command_repeats_the_run(ait: Ait, images: Path) -> None:
    out = fit(ait, images)
    words = out.split("repeat")[1].split("associative_transformer ")[-1].split("ait ")[-1].split()
    assert ait(*words).code == 0
    first = Path("runs/fit-my-colors/0/model.safetensors")
    again = Path("runs/fit-my-colors-again/0/model.safetensors")
    assert first.read_bytes() == again.read_bytes()


@pytest.mark.usefixtures("unreported")
def test_a_resumed_run_keeps_its_epochs_and_measures_nothing(
    ait: Ait, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(ait, images)
    run = Path("runs/fit-my-colors/0")
    weights, epochs = (run / "model.safetensors").read_bytes(), _epochs(run)
    for name in ("result.json", "model.safetensors", "config.json"):
        (run / name).unlink()
    moved = images.rename("moved")

    def refuse(experiment: Experiment) -> Throughput:
        raise AssertionError("measured again")

    monkeypatch.setattr(throughput, "measure_throughput", refuse)
    out = fit(ait, moved, "--resume", "--time", "3h", "--name", "fit-my-colors")
    assert "--time has no effect" in out
    assert (run / "model.safetensors").read_bytes() == weights
    assert _epochs(run) == epochs


def _epochs(run: Path) -> int:
    return load_experiment(run / "experiment.yaml").train.epochs


@pytest.mark.usefixtures("unreported")
def test_the_suggested_longer_run_replaces_the_first_one(ait: Ait, images: Path) -> None:
    out = fit(ait, images, "--no-flip")
    words = out.split("more time")[1].splitlines()[0].split(" fit ")[1]
    assert words.endswith("--no-flip --time 2m --overwrite") and words.count("--time") == 1
    assert ait("fit", *shlex.split(words), "--time", "25s").code == 0


@pytest.mark.usefixtures("unreported")
def test_a_run_can_start_from_another_one(ait: Ait, images: Path) -> None:
    fit(ait, images, "--name", "first")
    out = fit(ait, images, "--name", "second", "--init", "runs/first/0")
    assert (
        "initial weights from runs/first/0" in out
        or Path("runs/second/0/initialization.json").is_file()
    )


def test_an_existing_run_is_refused_before_the_images_are_read(ait: Ait, images: Path) -> None:
    (run := Path("runs/fit-my-colors/0")).mkdir(parents=True)
    save_experiment(load_experiment_of(images), run / "experiment.yaml")
    (images / "red" / "broken.png").unlink()
    shutil.rmtree(images / "blue")
    done = ait("fit", images)
    assert_refused(done, "runs/fit-my-colors/0 exists", "--resume", "--overwrite", "--name")


def load_experiment_of(images: Path) -> Experiment:
    """Return a tiny experiment on these images."""
    data = replace(IMAGES.data, source=str(images), on_error="skip", num_workers=0)
    model, training = replace(IMAGES.model, num_classes=2), replace(IMAGES.train, batch_size=4)
    return replace(IMAGES, name="fit-my-colors", data=data, model=model, train=training)


def test_wrong_input_is_refused_in_one_sentence(ait: Ait, images: Path, tmp_path: Path) -> None:
    assert_refused(ait("fit", "nowhere"), "nowhere does not exist")
    assert_refused(ait("fit", images, "--resume"), "no run", "remove --resume")
    assert_refused(ait("fit", images, "--init", images), "my colors")
    (tmp_path / "one" / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "one" / "cat" / "0.png")
    done = ait("fit", tmp_path / "one", "--data.num-workers", 0)
    assert done.code == 2 and len(done.err) < 500
    assert not (tmp_path / "runs").exists()


def test_measuring_takes_real_steps_and_writes_nothing(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    measured = throughput.measure_throughput(load_experiment_of(images))
    assert min(measured.step, measured.scored_image, measured.save) > 0
    assert list((tmp_path / "empty").iterdir()) == []
