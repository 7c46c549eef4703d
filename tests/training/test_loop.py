"""Whole runs: their files, and resumed runs, which must equal undisturbed ones."""

import errno
import json
import os
import shutil
import signal
import socket
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, load_file

from associative_transformer.data import DataSet, ImagesConfig
from associative_transformer.evaluate import Evaluation, evaluate, evaluate_split, summarize
from associative_transformer.experiment import Experiment, load_experiment
from associative_transformer.interface import Batch, UserError
from associative_transformer.kernels import over_ranks
from associative_transformer.models import MODELS, load_model
from associative_transformer.models.ait import AiT
from associative_transformer.runs.folder import History
from associative_transformer.runs.result import read_result
from associative_transformer.training import loop as train_module
from associative_transformer.training.loop import TrainingRun, train
from associative_transformer.training.schedule import learning_rate
from associative_transformer.training.signals import Interrupted
from associative_transformer.training.step import TrainingStep
from making.trained import (
    CPU,
    EXPERIMENT,
    RELATIONS,
    STEPS,
    VARIATIONS,
    WITH_QUESTIONS,
    Crash,
    Steps,
    assert_same_outcome,
    outcome,
    train_to_the_end,
    vary,
)

# --- the files of a run ---


def test_a_complete_run_has_these_files_and_no_others(undisturbed: Path) -> None:
    files = {
        str(path.relative_to(undisturbed)) for path in undisturbed.rglob("*") if path.is_file()
    }
    assert files == {
        "README.md",  # the model card
        "priors.png",
        "config.json",
        "environment.json",
        "experiment.yaml",
        "memory.npz",
        "metrics.jsonl",
        "model.safetensors",
        "result.json",
        *(
            f"checkpoint/{which}/{name}"
            for which in ("last", "previous")
            for name in ("model.safetensors", "optimizer.pt", "state.json")
        ),
    }
    assert [path.name for path in undisturbed.parent.iterdir()] == ["run"]


def test_a_result_has_what_tables_need(undisturbed: Path) -> None:
    result = read_result(undisturbed)
    saved = json.loads((undisturbed / "result.json").read_text())
    assert set(saved) == {
        "name",
        "seed",
        "question_types",
        "test_accuracy",
        "test_loss",
        "test_images",
        "test_interval",
        "test_balanced_accuracy",
        "test_mean_precision",
        "test_mean_f1",
        "test_calibration",
        "best_validation",
        "model",
        "epochs",
        "skipped_steps",
        "skipped_images",
        "data",
        "train_images",
        "data_of_test",
        "weights",
        "precision",
        "test_precision",
        "compiled",
        "live_parameters",
        "total_parameters",
        "classes",
        "timing",
    }
    assert set(saved["timing"]) == {"seconds", "samples_per_second", "finished"}
    assert date.fromisoformat(result.timing.finished) <= date.today()
    assert result.name == "tiny"
    assert result.question_types == ()
    assert result.test_images == 60
    assert result.best_validation is None
    assert result.model == "last epoch"
    assert result.classes == ("equilateral", "other")
    model = load_model(undisturbed)
    assert result.live_parameters == sum(p.numel() for p in model.parameters())
    assert result.total_parameters == model.reference_parameters()
    rate = 3 * STEPS * 16 / result.timing.seconds
    assert result.timing.samples_per_second == pytest.approx(rate)


def test_the_saved_model_has_the_scores_of_the_result(undisturbed: Path) -> None:
    result = read_result(undisturbed)
    test = EXPERIMENT.data.load(CPU).test
    scores = evaluate(load_model(undisturbed), test.eval_batches(7), 2)
    assert scores.accuracy == result.test_accuracy
    assert scores.loss == pytest.approx(result.test_loss, rel=1e-6)


def test_metrics_and_memory_have_one_entry_per_epoch(undisturbed: Path) -> None:
    rows = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["lr"] for row in rows] == [learning_rate(EXPERIMENT.train, e) for e in range(3)]
    for row in rows:
        assert set(row) == {
            "epoch",
            "lr",
            "loss",
            "balance_loss",
            "accuracy",
            "skipped_steps",
            "health",
            "timing",
        }
        assert 0 <= row["accuracy"] <= 100
        assert row["balance_loss"] > 0
    with np.load(undisturbed / "memory.npz") as saved:
        priors = saved["priors"]
    assert priors.shape == (3, 1, 4, 8)
    last = load_file(undisturbed / "model.safetensors")["blocks.0.workspace.priors"]
    assert np.array_equal(priors[-1, 0], last.numpy())
    assert not np.array_equal(priors[0], priors[1])


def test_the_learning_rate_of_each_epoch_is_the_one_the_optimizer_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch_rates(monkeypatch)
    train(EXPERIMENT, tmp_path / "run")
    assert seen == [learning_rate(EXPERIMENT.train, e) for e in range(3) for _ in range(STEPS)]


PER_STEP = VARIATIONS["learning rate per step"]


def watch_rates(patch: pytest.MonkeyPatch) -> list[float]:
    """Return a list that collects the learning rate of each step."""
    seen: list[float] = []
    take_step = TrainingStep.__call__

    def watched(step: TrainingStep, batch: Batch) -> torch.Tensor:
        sums = take_step(step, batch)
        (rate,) = {group["lr"] for group in step.optimizer.param_groups}
        seen.append(rate)
        return sums

    patch.setattr(TrainingStep, "__call__", watched)
    return seen


@pytest.mark.parametrize("stops", [(), (2, 7, 2 * STEPS, 3 * STEPS)], ids=["whole", "resumed"])
def test_per_step_each_step_has_its_own_learning_rate_and_an_epoch_shows_its_last(
    stops: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch_rates(monkeypatch)
    Steps(interrupts=set(stops)).install(monkeypatch)
    assert train_to_the_end(PER_STEP, tmp_path / "run") == len(stops)
    expected = [
        learning_rate(PER_STEP.train, epoch + step / STEPS, STEPS)
        for epoch in range(3)
        for step in range(STEPS)
    ]
    assert seen == expected
    assert len(set(seen)) == 3 * STEPS
    assert seen[-1] == pytest.approx(PER_STEP.train.schedule.min_lr)
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [row["lr"] for row in rows] == seen[STEPS - 1 :: STEPS]


def test_the_metrics_of_an_epoch_are_means_over_its_images_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[float]] = []
    take_step = TrainingStep.__call__

    def watched(step: TrainingStep, batch: Batch) -> torch.Tensor:
        sums = take_step(step, batch)
        seen.append(sums.tolist())
        return sums

    monkeypatch.setattr(TrainingStep, "__call__", watched)
    train(EXPERIMENT, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    for epoch, row in enumerate(map(json.loads, lines)):
        loss, balance_loss, correct, images = map(
            sum, zip(*seen[epoch * STEPS : (epoch + 1) * STEPS], strict=True)
        )
        assert images == 64
        assert row["loss"] == pytest.approx(loss / 64, rel=1e-12)
        assert row["balance_loss"] == pytest.approx(balance_loss / 64, rel=1e-12)
        assert row["accuracy"] == pytest.approx(100 * correct / 64, rel=1e-12)


def test_a_run_saves_its_experiment(undisturbed: Path) -> None:
    assert load_experiment(undisturbed / "experiment.yaml") == EXPERIMENT


def test_the_same_seed_repeats_a_run_and_another_seed_does_not(
    tmp_path: Path, undisturbed: Path
) -> None:
    torch.manual_seed(99)  # random numbers drawn earlier in the process must not matter
    train(EXPERIMENT, tmp_path / "same")
    assert_same_outcome(tmp_path / "same", undisturbed)
    train(vary(seed=1), tmp_path / "other")
    assert outcome(tmp_path / "other")["model"] != outcome(undisturbed)["model"]


def test_a_model_without_memory_can_be_trained(tmp_path: Path) -> None:
    result = train(VARIATIONS["vit"], tmp_path / "run")
    assert result.live_parameters > 0
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(row)["balance_loss"] for row in rows} == {0.0}
    assert not any("health" in json.loads(row) for row in rows)


def make_image_folder(root: Path) -> Path:
    """Write noisy images of two classes, one red and one blue."""
    noise = np.random.default_rng(0)
    for split, count in (("train", 64), ("test", 20)):
        for channel, name in ((0, "red"), (2, "blue")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count // 2):
                pixels = noise.integers(0, 60, size=(16, 16, 3), dtype=np.uint8)
                pixels[..., channel] += 150
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


def easy_experiment(source: Path, **data: Any) -> Experiment:  # noqa: ANN401
    images = ImagesConfig(
        "colors", source=str(source), image_size=16, num_workers=0, crop_padding=2, **data
    )
    model = replace(EXPERIMENT.model, image_size=16, patch_size=8)
    return Experiment("easy", images, model, replace(EXPERIMENT.train, batch_size=16))


def test_a_result_on_questions_has_their_types_and_a_score_for_each_kind(
    tmp_path: Path,
) -> None:
    result = train(WITH_QUESTIONS, tmp_path / "run")
    assert read_result(tmp_path / "run") == result
    assert result.question_types == ("non-relational", "binary")  # together by default
    assert (result.test_images, result.test_questions) == (6, 24)
    assert len(result.classes) == 10
    kinds = {kind.name: kind for kind in result.test_kinds}
    data, model = WITH_QUESTIONS.data.load(CPU), load_model(tmp_path / "run")
    summary = summarize(evaluate(model, data.test.eval_batches(7), 10), data)
    assert summary.kinds == result.test_kinds
    for name in ("non-relational", "binary"):
        assert (kinds[name].questions, kinds[name].images) == (12, 6)
        subtypes = [kind for full, kind in kinds.items() if full.startswith(f"{name}/")]
        assert sum(kind.questions for kind in subtypes) == 12
        correct = sum(kind.accuracy * kind.questions for kind in subtypes)
        assert correct == pytest.approx(12 * kinds[name].accuracy)
    both = (kinds["binary"].accuracy + kinds["non-relational"].accuracy) / 2
    assert result.test_accuracy == pytest.approx(both)


def test_a_result_on_one_type_of_questions_has_only_this_type(tmp_path: Path) -> None:
    data = replace(WITH_QUESTIONS.data, question_types=("binary",), num_questions=4)
    result = train(replace(WITH_QUESTIONS, data=data), tmp_path / "run")
    assert result.question_types == ("binary",)
    assert {kind.name.split("/")[0] for kind in result.test_kinds} == {"binary", "all"}
    assert result.test_accuracy == pytest.approx(result.test_kinds[0].accuracy)


def test_an_easy_task_is_learned(tmp_path: Path) -> None:
    result = train(easy_experiment(make_image_folder(tmp_path / "data")), tmp_path / "run")
    assert result.test_accuracy == 100
    assert result.classes == ("blue", "red")
    rows = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_unreadable_images_are_counted_in_the_result(tmp_path: Path) -> None:
    source = make_image_folder(tmp_path / "data")
    for name in ("train/red/3.png", "test/blue/1.png"):
        (source / name).write_bytes(b"no image")
    with pytest.raises(UserError, match=r"(3|1)\.png.*--data\.on-error skip"):
        train(easy_experiment(source), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    result = train(easy_experiment(source, on_error="skip"), tmp_path / "run")
    assert result.skipped_images == 2
    assert result.test_images == 19


# --- stopping and resuming ---


def test_a_run_is_resumed_only_with_its_own_data_and_pools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = replace(EXPERIMENT, train=replace(EXPERIMENT.train, epochs=2))

    def stop(run: TrainingRun, last: Evaluation) -> None:
        raise Interrupted(signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(TrainingRun, "_finish", stop)
        train(first, tmp_path / "run")
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"same --data\.source"):
        patch.setattr(DataSet, "digest", "of other data")
        train(first, tmp_path / "run", resume=True)
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"with 1 pools .* have 4"):
        patch.setattr(over_ranks, "num_pools", lambda _: 4)
        train(first, tmp_path / "run", resume=True)
    assert train(first, tmp_path / "run", resume=True).epochs == 2


@pytest.mark.parametrize(
    "variation",
    [
        # the other models differ only in what they compute
        pytest.param(name, marks=[pytest.mark.thorough] * (name in MODELS and name != "ait"))
        for name in VARIATIONS
    ],
)
def test_a_run_stopped_anywhere_and_resumed_equals_the_undisturbed_run_bit_for_bit(
    variation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = VARIATIONS[variation]
    train(experiment, tmp_path / "undisturbed")
    # within the first epoch, twice in a row, at the end of an epoch, in the very last step
    stops = {2, 6, 7, 2 * STEPS, 3 * STEPS}
    steps = Steps(interrupts=stops).install(monkeypatch)
    assert train_to_the_end(experiment, tmp_path / "resumed") == len(stops)
    assert steps.count == 3 * STEPS  # no step was repeated
    assert_same_outcome(tmp_path / "resumed", tmp_path / "undisturbed")


def test_a_resumed_run_augments_images_like_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_image_folder(tmp_path / "data")
    experiment = easy_experiment(source)
    train(experiment, tmp_path / "undisturbed")
    Steps(interrupts={2, 5}).install(monkeypatch)
    assert train_to_the_end(experiment, tmp_path / "resumed") == 2
    assert_same_outcome(tmp_path / "resumed", tmp_path / "undisturbed")


def test_sigterm_stops_a_run_as_well_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Steps(interrupts={2}, signum=signal.SIGTERM).install(monkeypatch)
    with pytest.raises(Interrupted, match="SIGTERM") as stopped:
        train(EXPERIMENT, tmp_path / "run")
    assert stopped.value.signum == signal.SIGTERM
    state = json.loads((tmp_path / "run" / "checkpoint" / "last" / "state.json").read_text())
    assert (state["epoch"], state["step"]) == (0, 2)
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_run_restores_the_signal_handlers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    train(EXPERIMENT, tmp_path / "run")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    Steps(interrupts={1}).install(monkeypatch)
    with pytest.raises(Interrupted):
        train(EXPERIMENT, tmp_path / "other")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_second_signal_acts_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Steps(interrupts={2}).install(monkeypatch)
    counted = TrainingStep.__call__

    def impatient(step: TrainingStep, batch: Batch) -> torch.Tensor:
        sums = counted(step, batch)
        if steps.count == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return sums

    monkeypatch.setattr(TrainingStep, "__call__", impatient)
    with pytest.raises(KeyboardInterrupt):
        train(EXPERIMENT, tmp_path / "run")
    assert steps.count == 2


@pytest.mark.parametrize("checkpoint_every", [None, 1, 3])
def test_a_killed_run_continues_from_its_last_checkpoint(
    checkpoint_every: int | None,
    tmp_path: Path,
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    experiment = vary(checkpoint_every=checkpoint_every)
    steps = Steps(crashes={3, 11}).install(monkeypatch)
    assert train_to_the_end(experiment, tmp_path / "killed") == 2
    repeated = {None: 2 + 3, 1: 0, 3: 2}[checkpoint_every]  # steps since the last checkpoint
    assert steps.count == 3 * STEPS + len(steps.crashes) + repeated
    assert_same_outcome(tmp_path / "killed", undisturbed)


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the complete run of TWO_EPOCHS with validation accuracies of 50 and 60 %."""
    folder = tmp_path_factory.mktemp("two_epochs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        script_validation(patch, iter([50.0, 60.0]))
        train(TWO_EPOCHS, folder)
    return folder


TWO_EPOCHS = vary(data={"val_fraction": 0.25}, epochs=2)


@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (train_module, "save_checkpoint"),
        (train_module, "save_best"),
        (train_module, "write_result"),
        (History, "write"),
        (AiT, "save_pretrained"),
    ],
    ids=["checkpoint", "best", "result", "history", "model"],
)
def test_a_crash_between_two_files_of_a_run_changes_nothing_after_resuming(
    owner: Any,  # noqa: ANN401
    name: str,
    is_done: bool,
    tmp_path: Path,
    two_epochs: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    act, calls = getattr(owner, name), []
    in_second_epoch = name not in ("write_result", "save_pretrained")
    is_repeated = in_second_epoch and not (name == "save_checkpoint" and is_done)

    def crashing(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        calls.append(name)
        if len(calls) != 1 + in_second_epoch:
            return act(*args, **kwargs)
        if is_done:
            act(*args, **kwargs)
        raise Crash

    script_validation(monkeypatch, iter([50.0, 60.0, *[60.0] * is_repeated]))
    monkeypatch.setattr(owner, name, crashing)
    assert train_to_the_end(TWO_EPOCHS, tmp_path / "crashed") == 1
    assert_same_outcome(tmp_path / "crashed", two_epochs)


def test_a_damaged_last_checkpoint_costs_only_time(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Steps(interrupts={10}).install(monkeypatch)
    with pytest.raises(Interrupted):
        train(EXPERIMENT, tmp_path / "run")
    damaged = tmp_path / "run" / "checkpoint" / "last" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    train(EXPERIMENT, tmp_path / "run", resume=True)
    assert_same_outcome(tmp_path / "run", undisturbed)


def test_a_run_without_a_checkpoint_is_resumed_from_its_start(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Steps(crashes={1}).install(monkeypatch)
    assert train_to_the_end(EXPERIMENT, tmp_path / "run") == 1
    assert_same_outcome(tmp_path / "run", undisturbed)


def test_skipped_steps_are_counted_across_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        Steps(bad={2, 3, 9}).install(patch)
        result = train(EXPERIMENT, tmp_path / "undisturbed")
    assert result.skipped_steps == 3
    Steps(bad={2, 3, 9}, interrupts={2, 9}).install(monkeypatch)
    assert train_to_the_end(EXPERIMENT, tmp_path / "resumed") == 2
    assert_same_outcome(tmp_path / "resumed", tmp_path / "undisturbed")
    rows = (tmp_path / "resumed" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["skipped_steps"] for row in rows] == [2, 2, 3]


def test_ten_bad_steps_in_a_row_end_a_run_even_if_it_was_resumed_between_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(bad=set(range(2, 12)), interrupts={6}).install(monkeypatch)
    with pytest.raises(UserError, match="not finite for 10 steps in a row"):
        train_to_the_end(EXPERIMENT, tmp_path / "run")
    assert steps.count == 12  # the count is checked at the end of each epoch


def test_a_run_that_gives_up_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        Steps(bad=set(range(6, 20))).install(patch)
        with pytest.raises(UserError, match=r"10 steps in a row.*--train\.lr.*--train\.detect"):
            train(vary(epochs=4, checkpoint_every=5), tmp_path / "run")
    saved = load_file(tmp_path / "run" / "checkpoint" / "last" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in saved.values())
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        Steps(interrupts={5}).install(patch)
        train(vary(epochs=4), tmp_path / "good")
    good = load_file(tmp_path / "good" / "checkpoint" / "last" / "model.safetensors")
    assert all(torch.equal(saved[name], good[name]) for name in good)


def test_a_complete_run_is_not_trained_again(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(undisturbed, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    steps = Steps().install(monkeypatch)
    assert train(EXPERIMENT, folder, resume=True) == read_result(undisturbed)
    assert steps.count == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


# --- checkpoints ---


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        (None, [(1, 0), (2, 0), (3, 0)]),
        (3, [(0, 3), (1, 0), (1, 3), (2, 0), (2, 3), (3, 0)]),
        (4, [(1, 0), (2, 0), (3, 0)]),
        (100, [(1, 0), (2, 0), (3, 0)]),
    ],
)
def test_checkpoints_are_saved_every_epoch_and_every_n_steps(
    every: int | None,
    expected: list[tuple[int, int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saved = []
    save = train_module.save_checkpoint

    def watched(folder: Path, model: Any, optimizer: Any, state: dict[str, Any]) -> None:  # noqa: ANN401
        saved.append((state["epoch"], state["step"]))
        save(folder, model, optimizer, state)

    monkeypatch.setattr(train_module, "save_checkpoint", watched)
    train(vary(checkpoint_every=every), tmp_path / "run")
    assert saved == expected


def script_validation(patch: pytest.MonkeyPatch, accuracies: Any) -> list[int]:  # noqa: ANN401
    """Make validation return `accuracies` in turn; return a list that collects the split sizes."""
    sizes: list[int] = []

    def scripted(*arguments: Any) -> Evaluation:  # noqa: ANN401
        scored = evaluate_split(*arguments)
        sizes.append(int(scored.confusion.sum()))
        is_test = sizes[-1] == EXPERIMENT.data.num_test
        return scored if is_test else scored._replace(accuracy=next(accuracies, 0.0))

    patch.setattr(train_module, "evaluate_split", scripted)
    return sizes


@pytest.mark.parametrize(
    ("accuracies", "best"),
    [([50.0, 60.0, 55.0], 2), ([60.0, 50.0, 55.0], 1), ([50.0, 60.0, 60.0], 2), ([0.0] * 3, 1)],
    ids=str,
)
def test_the_first_best_validation_epoch_is_saved_and_reported_and_the_last_one_too(
    accuracies: list[float], best: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = script_validation(monkeypatch, iter(accuracies))
    experiment = vary(data={"val_fraction": 0.25}, batch_size=12)
    folder, weights = tmp_path / "run", []

    def remember(folder: Path) -> None:
        weights.append((folder / "checkpoint" / "last" / "model.safetensors").read_bytes())

    result = train(experiment, folder, on_epoch_end=remember)
    assert result.model == "best validation epoch"
    assert result.best_validation.epoch == best
    assert result.best_validation.validation_accuracy == accuracies[best - 1]
    assert load_weights(folder / "model.safetensors") == load_weights_of(weights[best - 1])
    assert len(set(weights)) == 3

    test = experiment.data.load(CPU).test
    model = load_model(folder)
    scored = evaluate(model, test.eval_batches(12), 2)
    assert result.best_validation.test_accuracy == scored.accuracy
    model.load_state_dict(load_file(folder / "checkpoint" / "last" / "model.safetensors"))
    assert result.test_accuracy == evaluate(model, test.eval_batches(12), 2).accuracy
    # each epoch scores the validation images; only the end of the run scores the test images, and
    # the validation images of the best epoch once more, to fit the temperature
    assert sizes == [16, 16, 16, 60, 16, 60]
    validation = evaluate(
        load_model(folder), experiment.data.load(CPU).validation.eval_batches(12), 2
    )
    temperature = result.best_validation.test_calibration.temperature
    assert temperature == validation.fit_temperature() == load_model(folder).temperature
    assert result.test_calibration.temperature is None  # of the last epoch


def load_weights(path: Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}


def load_weights_of(content: bytes) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load(content).items()}


def test_validation_images_are_not_trained_on_and_are_scored_after_each_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps().install(monkeypatch)
    train(vary(data={"val_fraction": 0.25}), tmp_path / "run")
    assert steps.count == 3 * (48 // 16)
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        assert set(json.loads(line)["validation"]) == {"accuracy", "loss"}


def test_questions_are_validated_on_pictures_that_are_not_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps().install(monkeypatch)
    result = train(RELATIONS, tmp_path / "run")
    assert steps.count == 3 * (12 * 2 * 2 // 12)
    assert result.best_validation.epoch in (1, 2, 3)
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        accuracy = json.loads(line)["validation"]["accuracy"]
        assert accuracy * 16 / 100 == pytest.approx(round(accuracy * 16 / 100))  # 4 x 4 questions


# --- runs that are refused ---


def test_a_folder_that_is_not_a_run_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    for arguments in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(UserError, match=str(folder)):
            train(EXPERIMENT, folder, **arguments)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


def test_overwrite_starts_a_run_again(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, other = shutil.copytree(undisturbed, tmp_path / "run"), vary(lr=0.001)
    with pytest.raises(UserError, match="exists"):
        train(other, folder)
    steps = Steps().install(monkeypatch)
    train(other, folder, overwrite=True)
    assert steps.count == 3 * STEPS
    assert load_experiment(folder / "experiment.yaml") == other


def test_overwrite_keeps_the_old_run_if_the_new_one_cannot_start(
    tmp_path: Path, undisturbed: Path
) -> None:
    folder = shutil.copytree(undisturbed, tmp_path / "run")
    with pytest.raises(UserError):
        train(vary(batch_size=128), folder, overwrite=True)
    assert_same_outcome(folder, undisturbed)


@pytest.mark.parametrize(
    ("experiment", "names"),
    [
        (vary(batch_size=128), ["64", "128"]),
        (replace(EXPERIMENT, model=replace(EXPERIMENT.model, num_classes=3)), ["2 cl", "is 3"]),
        (vary(data={"val_fraction": 0.001}), ["--data.val-fraction"]),
        (
            replace(WITH_QUESTIONS, train=replace(EXPERIMENT.train, batch_size=65)),
            ["64 questions", "65"],
        ),
        (
            replace(WITH_QUESTIONS, model=replace(WITH_QUESTIONS.model, num_classes=9)),
            ["10 cl", "is 9"],
        ),
    ],
    ids=["batch", "classes", "validation", "questions", "answers"],
)
def test_an_experiment_that_cannot_be_trained_is_refused_before_anything_is_written(
    experiment: Experiment, names: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        train(experiment, tmp_path / "runs" / "run")
    assert all(name in str(error.value) for name in names)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_not_resumed_with_a_different_configuration(
    tmp_path: Path, undisturbed: Path
) -> None:
    folder = shutil.copytree(undisturbed, tmp_path / "run")
    with pytest.raises(UserError, match=r"train\.lr \(0\.001 here, 0\.01 there\)"):
        train(vary(lr=0.001), folder, resume=True)
    assert_same_outcome(folder, undisturbed)


def test_a_run_ended_by_a_full_disk_can_be_resumed(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, fsync = 0, os.fsync

    def fill_up(file: int) -> None:
        nonlocal count
        count += 1
        if count > 14:  # in the second epoch
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fill_up)
        with pytest.raises(UserError, match="No space left"):
            train(EXPERIMENT, tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.partial"))
    train(EXPERIMENT, tmp_path / "run", resume=True)
    assert_same_outcome(tmp_path / "run", undisturbed)


def test_a_run_whose_model_cannot_be_saved_reports_it_and_writes_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_up(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(AiT, "save_pretrained", fill_up)
        with pytest.raises(UserError, match="No space left"):
            train(EXPERIMENT, tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()
    train(EXPERIMENT, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "result.json").exists()


def test_a_run_opens_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        pytest.fail("a run opened a connection")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    train(EXPERIMENT, tmp_path / "run")


# --- progress and trackers ---


def test_on_epoch_end_is_called_after_the_epoch_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []

    def look(folder: Path) -> None:
        state = json.loads((folder / "checkpoint" / "last" / "state.json").read_text())
        seen.append((state["epoch"], len((folder / "metrics.jsonl").read_text().splitlines())))

    Steps(interrupts={STEPS + 1}).install(monkeypatch)
    with pytest.raises(Interrupted):
        train(EXPERIMENT, tmp_path / "run", on_epoch_end=look)
    assert seen == [(1, 1)]
    train(EXPERIMENT, tmp_path / "run", resume=True, on_epoch_end=look)
    assert seen == [(1, 1), (2, 2), (3, 3)]


def test_tensorboard_gets_the_numbers_and_the_run_stays_the_same(
    tmp_path: Path, undisturbed: Path
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(vary(tracker="tensorboard", log_every=2), tmp_path / "run")
    files = list((tmp_path / "run" / "tracker").rglob("events.out.tfevents.*"))
    assert files
    scalars: dict[str, list[int]] = {}
    for folder in {file.parent for file in files}:
        events = accumulator.EventAccumulator(str(folder)).Reload()
        for tag in events.Tags()["scalars"]:
            scalars[tag] = [event.step for event in events.Scalars(tag)]
    for name in ("loss", "balance_loss", "accuracy", "samples_per_second", "lr"):
        assert scalars[f"train/{name}"] == [2, 4, 6, 8, 10, 12]
    for name in ("effective_rank", "distinct", "overlap", "tokens_used", "priors_winning"):
        assert scalars[f"memory/layer1/{name}"] == [2, 4, 6, 8, 10, 12]
    assert_same_outcome(tmp_path / "run", undisturbed)


def test_the_tracker_gets_the_learning_rate_of_the_latest_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[float] = []
    track = TrainingRun._track

    def watched(run: TrainingRun, part: str, values: dict[str, float]) -> None:
        track(run, part, values)
        if part == "train":
            logged.append(values["lr"])

    monkeypatch.setattr(TrainingRun, "_track", watched)
    seen = watch_rates(monkeypatch)
    train(replace(PER_STEP, train=replace(PER_STEP.train, log_every=2)), tmp_path / "run")
    assert logged == seen[1::2]


@pytest.mark.parametrize("checkpoint_every", [None, 1, 3])
@pytest.mark.parametrize("validated", [0.0, 0.25], ids=str)
def test_no_step_is_logged_twice_after_a_stop_or_a_crash(
    checkpoint_every: int | None, validated: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    writer = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    # numbers of the same length: event files are read in the order of their names
    monkeypatch.setattr(writer, "_global_uid", writer.AtomicCounter(1_000))
    experiment = vary(
        data={"val_fraction": validated},
        batch_size=12,
        tracker="tensorboard",
        log_every=1,
        checkpoint_every=checkpoint_every,
    )
    per_epoch = 5 if validated == 0 else 4
    Steps(interrupts={3}, crashes={per_epoch + 2, 2 * per_epoch}).install(monkeypatch)
    assert train_to_the_end(experiment, tmp_path / "run") == 3
    events = accumulator.EventAccumulator(str(tmp_path / "run/tracker/associative_transformer"))
    events.Reload()
    scalars = {
        tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }
    last = 3 * per_epoch
    assert scalars["train/loss"] == list(range(1, last + 1))
    assert scalars["test/accuracy"] == [last]
    if validated:
        assert scalars["validation/loss"] == [per_epoch, 2 * per_epoch, last]


def test_a_crash_after_the_test_logs_its_scores_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def crash(*_: object) -> None:
        raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(train_module, "write_result", crash)
        train(vary(tracker="tensorboard"), tmp_path / "run")
    train(vary(tracker="tensorboard"), tmp_path / "run", resume=True)
    events = accumulator.EventAccumulator(str(tmp_path / "run/tracker/associative_transformer"))
    events.Reload()
    assert len(events.Scalars("test/accuracy")) == 1


def test_without_a_terminal_a_run_writes_a_plain_line_per_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(vary(data={"val_fraction": 0.25}), tmp_path / "run")
    captured = capsys.readouterr()
    assert captured.out == ""
    computing, *lines = captured.err.splitlines()
    assert computing.startswith("float32: ")
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    for line in lines:
        for word in ("loss", "balance", "accuracy", "samples/s", "validation"):
            assert word in line
    assert "\x1b" not in captured.err


# --- signals during long work ---


def interrupt_and_wait(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    pytest.fail("the signal had to wait")


def position(folder: Path) -> tuple[int, int]:
    state = json.loads((folder / "checkpoint" / "last" / "state.json").read_text())
    return state["epoch"], state["step"]


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the complete run of VALIDATED with scripted accuracies, the first one best."""
    folder = tmp_path_factory.mktemp("validated") / "run"
    with pytest.MonkeyPatch.context() as patch:
        script_validation(patch, iter([60.0, 50.0, 55.0]))
        train(VALIDATED, folder)
    return folder


VALIDATED = VARIATIONS["validation"]


def test_a_signal_does_not_wait_for_the_validation(
    tmp_path: Path, validated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "evaluate_split", interrupt_and_wait)
        with pytest.raises(Interrupted, match="SIGTERM"):
            train(VALIDATED, tmp_path / "run")
    assert position(tmp_path / "run") == (0, STEPS)
    script_validation(monkeypatch, iter([60.0, 50.0, 55.0]))
    steps = Steps().install(monkeypatch)
    train(VALIDATED, tmp_path / "run", resume=True)
    assert steps.count == 2 * STEPS
    assert_same_outcome(tmp_path / "run", validated)


def test_a_signal_does_not_wait_for_a_report(tmp_path: Path, undisturbed: Path) -> None:
    with pytest.raises(Interrupted, match="SIGTERM"):
        train(EXPERIMENT, tmp_path / "run", on_epoch_end=interrupt_and_wait)
    assert position(tmp_path / "run") == (1, 0)
    train(EXPERIMENT, tmp_path / "run", resume=True)
    assert_same_outcome(tmp_path / "run", undisturbed)


def test_a_signal_does_not_wait_for_the_test(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(train_module, "evaluate_split", interrupt_and_wait)
        with pytest.raises(Interrupted, match="SIGTERM"):
            train(EXPERIMENT, tmp_path / "run")
    assert position(tmp_path / "run") == (3, 0)
    train(EXPERIMENT, tmp_path / "run", resume=True)
    assert_same_outcome(tmp_path / "run", undisturbed)


def test_a_signal_while_the_best_epoch_is_scored_does_not_change_the_last_checkpoint(
    tmp_path: Path, validated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        script_validation(patch, iter([60.0, 50.0, 55.0]))
        load = train_module.load_best

        def interrupted(*arguments: Any) -> None:  # noqa: ANN401
            load(*arguments)
            interrupt_and_wait()

        patch.setattr(train_module, "load_best", interrupted)
        with pytest.raises(Interrupted):
            train(VALIDATED, tmp_path / "run")
    train(VALIDATED, tmp_path / "run", resume=True)
    assert_same_outcome(tmp_path / "run", validated)
