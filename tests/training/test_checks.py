"""Runs that are refused for their size or their outcome, and settings that need a word."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from associative_transformer import distributed
from associative_transformer.data import SortOfClevrConfig, TriangleConfig
from associative_transformer.experiment import Experiment, TrainConfig
from associative_transformer.interface import Batch, UserError
from associative_transformer.optimization import Schedule
from associative_transformer.runs.environment import find_version
from associative_transformer.training import checks
from associative_transformer.training.loop import train
from associative_transformer.training.step import TrainingStep
from making.trained import CPU, EXPERIMENT, STEPS, WITH_QUESTIONS, Steps, vary

# --- sizes ---


def with_depth(depth: int) -> Experiment:
    return replace(EXPERIMENT, model=replace(EXPERIMENT.model, depth=depth))


HUGE = {
    "training images": (vary(data={"num_train": 10**10}), "--data.num-train 10,000,000,000"),
    "test images": (vary(data={"num_test": 10**12}), "--data.num-test 1,000,000,000,000"),
    "pictures": (
        replace(WITH_QUESTIONS, data=SortOfClevrConfig(num_train=10**10)),
        "--data.num-train 10,000,000,000",
    ),
    "layers": (with_depth(10**9), "--model.depth 1,000,000,000"),
    "width": (replace(EXPERIMENT, model=replace(EXPERIMENT.model, embed_dim=10**7)), "the model"),
    "overflow": (
        replace(EXPERIMENT, model=replace(EXPERIMENT.model, embed_dim=10**12)),
        "the model",
    ),
}


@pytest.mark.parametrize("case", HUGE)
def test_a_run_that_cannot_fit_is_refused_with_its_memory_and_the_limit(
    case: str, tmp_path: Path
) -> None:
    experiment, name = HUGE[case]
    with pytest.raises(UserError, match=rf"{name}.* at least [\d,.inf]+ GiB .* has [\d,.]+ GiB"):
        train(experiment, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_the_memory_of_a_container_limits_that_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "CONTAINER_LIMIT", tmp_path / "missing")
    total = checks.total_memory(CPU)
    assert 2**28 < total < math.inf
    monkeypatch.setattr(checks, "CONTAINER_LIMIT", tmp_path / "memory.max")
    (tmp_path / "memory.max").write_text("max\n")
    assert checks.total_memory(CPU) == total
    (tmp_path / "memory.max").write_text("1048576\n")
    assert checks.total_memory(CPU) == 2**20
    with pytest.raises(UserError, match=r"has 0\.0 GiB"):
        checks.check_size(replace(EXPERIMENT, data=TriangleConfig(num_train=10_000)), CPU)


# --- the start ---


@pytest.mark.parametrize(
    ("warmup", "epochs", "last"), [(5, 3, "4.6e-05"), (3, 3, "7e-05"), (9, 1, "1e-05")]
)
def test_a_warm_up_longer_than_the_run_is_named_with_the_highest_rate(
    warmup: int, epochs: int, last: str
) -> None:
    (note,) = checks.list_notes(TrainConfig(epochs=epochs, schedule=Schedule(warmup)))
    assert f"warmup-epochs {warmup} is not below --train.epochs {epochs}" in note
    assert f"ends at {last}, never reaching 0.0001" in note


def test_a_warm_up_per_step_that_is_too_long_is_named_with_the_rate_of_the_last_step() -> None:
    schedule = Schedule(4, warmup_lr=0.0, per="step")
    (note,) = checks.list_notes(TrainConfig(epochs=3, lr=0.1, schedule=schedule), 10)
    assert "ends at 0.0725, never reaching 0.1" in note  # 2.9 of 4 epochs


def test_a_warm_up_that_lowers_the_learning_rate_is_named() -> None:
    (note,) = checks.list_notes(TrainConfig(lr=2e-6))
    assert "--train.schedule.warmup-lr 1e-05 is above --train.lr 2e-06" in note


@pytest.mark.parametrize(
    "train",
    [
        TrainConfig(),
        TrainConfig(epochs=6),
        TrainConfig(epochs=1, schedule=Schedule(0)),
        TrainConfig(epochs=1, lr=1e-5, schedule=Schedule(5)),
    ],
    ids=str,
)
def test_an_ordinary_schedule_needs_no_word(train: TrainConfig) -> None:
    assert checks.list_notes(train) == []


def test_a_run_says_once_at_its_start_that_its_warm_up_is_too_long(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(vary(schedule=Schedule(3, warmup_lr=0.005)), tmp_path / "run")
    first, _, *others = capsys.readouterr().err.splitlines()
    assert "--train.schedule.warmup-epochs 3 is not below --train.epochs 3" in first
    assert [line.split()[0] for line in others] == ["epoch"] * 3


# --- several processes ---


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[object], object]], None]:
    """Return a function that makes a second process give what it returns for our values."""

    def join(other: Callable[[object], object]) -> None:
        monkeypatch.setattr(distributed, "num_ranks", lambda: 2)
        monkeypatch.setattr(distributed, "gather_objects", lambda value: [value, other(value)])

    return join


def differ(name: str, value: object) -> Callable[[object], object]:
    def other(ours: object) -> object:
        if not isinstance(ours, tuple):
            return ours
        settings, host = ours
        assert name in settings
        return {**settings, name: value}, host

    return other


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("--train.lr", 1e-3, "0.01 and 0.001"),
        ("--train.seed", 7, "0 and 7"),
        ("--train.checkpoint-every", 5, "None and 5"),
        ("--train.log-every", 5, "50 and 5"),
        ("--train.device", "auto", "cpu and auto"),
        ("--data.num-train", 32, "64 and 32"),
        ("--data.seed", 1, "0 and 1"),
        ("--model.workspace.beta", 2.0, "1.0 and 2.0"),
        ("--name", "other", "tiny and other"),
        ("--resume", True, "False and True"),
        ("--overwrite", True, "False and True"),
        ("run folder", "elsewhere", "run and elsewhere"),
        (
            "version of associative-transformer",
            "0",
            f"{find_version('associative-transformer')} and 0",
        ),
        ("version of torch", "1.0", f"{find_version('torch')} and 1.0"),
    ],
)
def test_processes_with_different_settings_are_refused_with_both_values(
    name: str, value: object, shown: str, two: Callable[[Callable[[object], object]], None]
) -> None:
    two(differ(name, value))
    with pytest.raises(UserError) as error:
        checks.check_processes(EXPERIMENT, Path("run"), resume=False, overwrite=False)
    assert f"differ in {name} ({shown}): start all processes with the same" in str(error.value)


def test_processes_that_do_not_share_the_run_folder_are_refused(
    two: Callable[[Callable[[object], object]], None],
) -> None:
    two(lambda ours: True if ours is False else ours)
    with pytest.raises(UserError, match="share the run folder"):
        checks.check_processes(EXPERIMENT, Path("run"), resume=True, overwrite=False)


def test_under_a_launcher_resume_also_starts_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resumes() -> bool:
        return checks.check_processes(EXPERIMENT, tmp_path, resume=True, overwrite=False)

    assert resumes()  # and is refused, as there is no run
    monkeypatch.setattr(distributed, "is_launched", lambda: True)
    assert not resumes()
    (tmp_path / "experiment.yaml").touch()
    assert resumes()


# --- the outcome ---


@pytest.mark.parametrize(
    ("bad", "is_refused"),
    [(range(1, 13), True), ({1, 2, 4, 6, 8, 10, 12}, True), (range(6), False)],
)
def test_a_run_with_most_steps_skipped_has_no_result(
    bad: set[int], is_refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = vary(epochs=2) if len(bad) == 12 else EXPERIMENT
    Steps(bad=set(bad)).install(monkeypatch)
    if not is_refused:
        assert train(experiment, tmp_path / "run").skipped_steps == 5
        return
    with pytest.raises(UserError, match=r"of (8|12) steps were skipped.*lower --train\.lr"):
        train(experiment, tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "run" / "model.safetensors").exists()
    with pytest.raises(UserError, match="steps were skipped"):
        train(experiment, tmp_path / "run", resume=True)


def test_an_epoch_with_skipped_steps_says_how_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Steps(bad={1, 2, 3, 4, 9}).install(monkeypatch)
    train(EXPERIMENT, tmp_path / "run")
    _, first, second, third = capsys.readouterr().err.splitlines()
    assert first.endswith("4 of 4 steps skipped")
    assert "skipped" not in second
    assert third.endswith("1 of 4 steps skipped")


def test_a_run_whose_last_loss_is_not_finite_has_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_step, count = TrainingStep.__call__, 0

    def explode(step: TrainingStep, batch: Batch) -> torch.Tensor:
        nonlocal count
        count += 1
        sums = take_step(step, batch)
        if count == 3 * STEPS:  # as after a step that is too large
            step.model.head[-1].weight.data.fill_(torch.inf)
        return sums

    monkeypatch.setattr(TrainingStep, "__call__", explode)
    with pytest.raises(UserError, match=r"test loss of the last epoch is nan.*lower --train\.lr"):
        train(EXPERIMENT, tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])


@pytest.mark.parametrize("lr", [1e10, 1e30, 1e38])
def test_a_learning_rate_that_ruins_the_model_is_not_a_result(lr: float, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lower --train\.lr"):
        train(vary(lr=lr), tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()
