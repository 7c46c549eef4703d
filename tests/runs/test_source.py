"""Runs that start from the weights of a run, a saved model or an official checkpoint."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from associative_transformer.experiment import Experiment
from associative_transformer.interface import UserError
from associative_transformer.models import build_model
from associative_transformer.models.ait import AiT
from associative_transformer.runs.saved import load_run
from associative_transformer.runs.source import INITIALIZATION, load_source
from associative_transformer.training.loop import train
from associative_transformer.training.signals import Interrupted
from making.official_state import to_official
from making.trained import EXPERIMENT, MODEL, RELATIONS, Steps, assert_same_outcome

ONE_EPOCH = replace(EXPERIMENT, train=replace(EXPERIMENT.train, epochs=1))


def starting_from(source: Path | str, experiment: Experiment = ONE_EPOCH, **t: Any) -> Experiment:  # noqa: ANN401
    return replace(experiment, init=str(source), train=replace(experiment.train, **t))


def read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / INITIALIZATION).read_text())
    return content


def test_a_run_that_trains_nothing_keeps_the_weights_of_its_source(
    undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    still = replace(EXPERIMENT.train.schedule, warmup_lr=0.0, min_lr=0.0)
    settings = {"lr": 1e-30, "weight_decay": 0.0, "schedule": still, "freeze": "memory"}
    train(starting_from(undisturbed, **settings), run)
    theirs = load_run(undisturbed).model.state_dict()
    for name, value in load_run(run).model.state_dict().items():
        assert torch.equal(value, theirs[name]), name


def test_what_was_loaded_and_drawn_anew_is_printed_and_kept(
    undisturbed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    larger = replace(MODEL, depth=2)
    train(replace(starting_from(undisturbed), model=larger), tmp_path / "run")
    kept = read(tmp_path / "run")
    assert kept["source"] == str(undisturbed)
    in_source = load_run(undisturbed).model.state_dict()
    assert set(kept["weights"]["loaded"]) == set(in_source)
    assert set(kept["weights"]["drawn"]) == set(build_model(larger).state_dict()) - set(in_source)
    printed = capfd.readouterr()
    text = printed.out + printed.err
    assert f"initial weights from {undisturbed}" in text
    assert "new        blocks.1." in text


def test_a_saved_model_and_an_official_checkpoint_are_sources_too(tmp_path: Path) -> None:
    model = AiT(replace(MODEL, num_heads=1, head_dim=64))  # the official width of a head
    model.save_pretrained(tmp_path / "saved")
    state = to_official(model)
    torch.save(state, tmp_path / "official.pt")
    torch.save({"net": state, "epoch": 3}, tmp_path / "nested.pt")
    for source in ("saved", "official.pt", "nested.pt"):
        loaded = load_source(str(tmp_path / source)).state_dict()
        for name, value in model.state_dict().items():
            torch.testing.assert_close(loaded[name], value)


def test_resuming_changes_neither_the_result_nor_the_record(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shutil.copytree(undisturbed, tmp_path / "source")
    experiment = starting_from(source, EXPERIMENT, freeze="backbone", layer_decay=0.75)
    train(experiment, tmp_path / "whole")
    with monkeypatch.context() as patch:
        Steps(interrupts={6}).install(patch)
        with pytest.raises(Interrupted):
            train(experiment, tmp_path / "stopped")
    record = (tmp_path / "stopped" / INITIALIZATION).read_bytes()
    shutil.rmtree(source)  # no longer needed
    train(experiment, tmp_path / "stopped", resume=True)
    assert (tmp_path / "stopped" / INITIALIZATION).read_bytes() == record
    assert_same_outcome(tmp_path / "whole", tmp_path / "stopped")


def test_a_source_that_changed_before_the_first_checkpoint_is_noticed(
    undisturbed: Path, tmp_path: Path
) -> None:
    load_run(undisturbed).model.save_pretrained(tmp_path / "source")
    experiment = starting_from(tmp_path / "source")
    train(experiment, tmp_path / "run")
    for name in ("checkpoint", "result.json"):  # as if killed before the first checkpoint
        path = tmp_path / "run" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    build_model(MODEL).save_pretrained(tmp_path / "source")
    with pytest.raises(UserError, match=r"has changed since the run .* was started"):
        train(experiment, tmp_path / "run", resume=True)


def test_a_linear_probe_trains_only_the_classifier_and_the_memory_stays(
    undisturbed: Path, tmp_path: Path
) -> None:
    train(starting_from(undisturbed, freeze="backbone"), tmp_path / "run")
    before = load_run(undisturbed).model.state_dict()
    after = load_run(tmp_path / "run").model.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"head.2.weight", "head.2.bias"}


def test_a_frozen_backbone_may_not_be_random(undisturbed: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="freeze backbone would keep random weights: pass --init"):
        replace(ONE_EPOCH, train=replace(ONE_EPOCH.train, freeze="backbone"))
    deeper = replace(starting_from(undisturbed, freeze="backbone"), model=replace(MODEL, depth=2))
    with pytest.raises(UserError, match=r"would keep random weights, because .* blocks\.1\.norm1"):
        train(deeper, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def no_such_folder(folder: Path) -> Path:
    return folder / "nowhere"


def a_text_file(folder: Path) -> Path:
    (folder / "notes.txt").write_text("no weights")
    return folder / "notes.txt"


def an_empty_folder(folder: Path) -> Path:
    return folder


def a_list(folder: Path) -> Path:
    torch.save([torch.zeros(2)], folder / "list.pt")
    return folder / "list.pt"


def weights_of_something_else(folder: Path) -> Path:
    torch.save({"layer.weight": torch.zeros(2, 2)}, folder / "other.pt")
    return folder / "other.pt"


def the_file_of_the_weights(folder: Path) -> Path:
    build_model(MODEL).save_pretrained(folder / "model")
    return folder / "model" / "model.safetensors"


def another_kind_of_model(folder: Path) -> Path:
    build_model(RELATIONS.model).save_pretrained(folder / "model")
    return folder / "model"


WRONG = {
    no_such_folder: "is not a folder, and no model of that name can be loaded",
    a_text_file: "is not a checkpoint of the official code that torch can read",
    an_empty_folder: "is not a run folder",
    a_list: "does not contain a state dict",
    weights_of_something_else: "the official checkpoint lacks",
    the_file_of_the_weights: "is part of a saved model: pass its folder instead",
    another_kind_of_model: "shares no weight with a AiT",
}


@pytest.mark.parametrize("make", WRONG, ids=lambda make: make.__name__)
def test_a_source_that_cannot_be_used_is_one_sentence_and_nothing_is_written(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(UserError, match=WRONG[make]) as caught:
        train(starting_from(make(tmp_path / "source")), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
