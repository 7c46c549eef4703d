"""Every damaged file of a run is named in one sentence, or was not needed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from associative_transformer.interface import UserError
from associative_transformer.report.facts import cost_section, read_facts, run_section
from associative_transformer.report.memory import memory_section
from associative_transformer.report.training import training_section
from associative_transformer.runs import reading
from associative_transformer.runs.reading import read_arrays
from associative_transformer.runs.result import read_result
from associative_transformer.runs.saved import digest_of_model, load_run, restore_result
from associative_transformer.training.loop import train
from making.damage import DAMAGES, make_bomb
from making.trained import EXPERIMENT, vary

READERS = {  # of each file; a damage that leaves it valid is not an error for the others
    "load_run": ("result.json", "config.json", "experiment.yaml", "model.safetensors"),
    "report": ("result.json", "metrics.jsonl", "memory.npz", "environment.json"),
}
HARMLESS = {  # these damages leave a valid file
    ("environment.json", "no values"),
    ("environment.json", "below range"),
    ("environment.json", "one epoch"),
}


def read(folder: Path, reader: str) -> None:
    if reader == "load_run":
        load_run(folder)
        return
    facts = read_facts(folder)
    run_section(facts)
    cost_section(facts)
    training_section({"": facts.history.metrics}, {"": facts.result})
    memory_section(facts.memory, facts.epoch)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_by_whatever_reads_it(
    damage: str, reader: str, undisturbed: Path, tmp_path: Path
) -> None:
    for file in READERS[reader]:
        folder = shutil.copytree(
            undisturbed, tmp_path / file, ignore=shutil.ignore_patterns("checkpoint")
        )
        DAMAGES[damage](folder / file)
        if (file, damage) in HARMLESS:
            read(folder, reader)
            continue
        with pytest.raises(UserError, match=file.replace(".", r"\.")) as error:
            read(folder, reader)
        assert str(error.value).count("\n") == 0 or file == "experiment.yaml"


def test_an_archive_that_unpacks_to_12_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    make_bomb(tmp_path / "bomb.npz")
    with pytest.raises(ValueError, match=r"unpacks to 4,2\d\d,\d{3},\d{3} bytes, more than"):
        read_arrays(tmp_path / "bomb.npz")
    np.savez(tmp_path / "plain.npz", priors=np.zeros(1000))
    assert list(read_arrays(tmp_path / "plain.npz")) == ["priors"]
    with pytest.raises(ValueError, match="more than 100"):
        read_arrays(tmp_path / "plain.npz", max_bytes=100)


def test_a_file_of_gigabytes_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "metrics.jsonl").open("wb") as file:
        file.truncate(3 * 2**30)
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("read"))
    for count in (reading.count_rows, lambda path: reading.read_rows(path, None)):
        with pytest.raises(ValueError, match="it has 3,221,225,472 bytes, more than"):
            count(tmp_path / "metrics.jsonl")


# --- what --resume restores ---


@pytest.fixture
def run(tmp_path: Path, undisturbed: Path) -> Path:
    return shutil.copytree(undisturbed, tmp_path / "run")


@pytest.mark.parametrize("damage", ["cut", "empty", "binary", "missing"])
@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_damaged_model_is_restored_from_the_checkpoint_without_training(
    file: str, damage: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, digest = (run / file).read_bytes(), digest_of_model(run)
    if damage == "missing":
        (run / file).unlink()
    else:
        DAMAGES[damage](run / file)
    with pytest.raises(UserError, match="pass --resume to ait train to restore it from the check"):
        load_run(run)
    monkeypatch.setattr("associative_transformer.training.loop.TrainingRun", pytest.fail)
    result = train(EXPERIMENT, run, resume=True)
    assert (run / file).read_bytes() == whole
    assert result.weights == digest == digest_of_model(run)
    load_run(run)


def test_changed_weights_are_noticed_by_their_digest(run: Path) -> None:
    content = bytearray((run / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (run / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"content of model\.safetensors has changed .*--resume"):
        load_run(run)
    values = json.loads((run / "result.json").read_text())
    del values["weights"]  # as in early runs
    (run / "result.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"model\.safetensors has changed since it was saved"):
        load_run(run)
    config = json.loads((run / "config.json").read_text())
    del config["weights_digest"]
    (run / "config.json").write_text(json.dumps(config))
    load_run(run)


def test_a_damaged_result_is_written_again_without_training(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text("{")
    monkeypatch.setattr("associative_transformer.training.step.TrainingStep.__call__", pytest.fail)
    train(EXPERIMENT, run, resume=True)
    after = json.loads((run / "result.json").read_text())
    assert {**after, "timing": None} == {**before, "timing": None}


def test_the_model_of_the_best_epoch_is_restored(tmp_path: Path) -> None:
    experiment = vary(data={"val_fraction": 0.25}, batch_size=12, epochs=2)
    train(experiment, tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert restore_result(tmp_path, experiment) == read_result(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == whole


def test_without_a_checkpoint_a_damaged_run_is_left_alone(run: Path) -> None:
    shutil.rmtree(run / "checkpoint")
    for file in ("model.safetensors", "result.json"):
        whole = (run / file).read_bytes()
        (run / file).write_bytes(b"")
        with pytest.raises(UserError, match="there is no checkpoint to restore it from"):
            train(EXPERIMENT, run, resume=True)
        assert (run / file).read_bytes() == b""
        (run / file).write_bytes(whole)
