"""Reading runs back from their folders, with and without their models."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from associative_transformer.data import TriangleConfig
from associative_transformer.experiment import Experiment, TrainConfig, save_experiment
from associative_transformer.interface import UserError
from associative_transformer.models.ait import AiTConfig
from associative_transformer.models.vit import ViTConfig
from associative_transformer.runs.folder import History
from associative_transformer.runs.saved import load_run, load_test_split, read_run
from associative_transformer.workspace_config import WorkspaceConfig
from making.plant import make_complete_run, put_result, result_of

CPU = torch.device("cpu")
SIZES = {
    "image_size": 64,
    "patch_size": 32,
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 2,
    "head_dim": 8,
    "num_classes": 2,
}
WORKSPACE = WorkspaceConfig(num_priors=4, prior_dim=8, num_heads=2, bottleneck=16)
DATA, TRAIN = TriangleConfig(num_train=8, num_test=4), TrainConfig(epochs=2, device="cpu")
AIT = Experiment("tiny", DATA, AiTConfig(**SIZES, workspace=WORKSPACE), TRAIN)
VIT = Experiment("tiny", DATA, ViTConfig(**SIZES), TRAIN)


# --- without the model ---


def test_an_unfinished_run_has_no_result_but_its_history_so_far(tmp_path: Path) -> None:
    save_experiment(AIT, tmp_path / "experiment.yaml")
    run = read_run(tmp_path)
    assert (run.folder, run.experiment, run.num_epochs) == (tmp_path, AIT, 0)
    assert (run.result, run.environment, run.history.metrics) == (None, None, [])
    History([{"loss": 1.0}], [np.zeros((1, 4, 8))]).write(tmp_path)
    run = read_run(tmp_path)
    assert (run.num_epochs, run.history.metrics) == (1, [{"loss": 1.0}])


def test_a_complete_run_has_a_result_and_an_environment(tmp_path: Path) -> None:
    run = read_run(make_complete_run(tmp_path / "run", AIT))
    assert run.result is not None and run.result.classes == ("equilateral", "other")
    assert run.environment is not None and run.environment.threads == torch.get_num_threads()


def test_only_files_that_are_used_are_read(tmp_path: Path) -> None:
    folder = make_complete_run(tmp_path / "run", AIT)
    for name in ("environment.json", "metrics.jsonl"):
        (folder / name).write_text("{")
    run = read_run(folder)
    assert run.result is not None
    assert load_run(folder).experiment == AIT
    with pytest.raises(UserError, match=rf"{folder}/environment\.json is damaged"):
        run.environment  # noqa: B018
    with pytest.raises(UserError, match=rf"the history of the run in {folder} is damaged"):
        run.history  # noqa: B018


@pytest.mark.parametrize("read", [read_run, load_run])
def test_a_folder_that_is_not_a_run_folder_is_refused(
    read: Callable[[Path], object], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"{tmp_path / 'nowhere'} is not a run folder"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize("read", [read_run, load_run])
def test_the_error_for_a_folder_of_several_seeds_lists_them(
    read: Callable[[Path], object], tmp_path: Path
) -> None:
    for seed in ("0", "1"):
        (tmp_path / seed).mkdir()
        save_experiment(AIT, tmp_path / seed / "experiment.yaml")
    with pytest.raises(UserError, match=rf"contains the runs 0, 1: pass one .* {tmp_path}/0"):
        read(tmp_path)


# --- with the model ---


@pytest.mark.parametrize("experiment", [AIT, VIT], ids=["ait", "vit"])
def test_a_complete_run_is_loaded_in_evaluation_mode(
    experiment: Experiment, tmp_path: Path
) -> None:
    run = load_run(make_complete_run(tmp_path / "run", experiment))
    assert run.experiment == experiment
    assert run.classes == ("equilateral", "other")
    assert not run.model.training
    assert run.model.config == experiment.model


def test_the_error_for_an_unfinished_run_says_how_to_finish_it(tmp_path: Path) -> None:
    folder = make_complete_run(tmp_path / "run", AIT)
    (folder / "result.json").unlink()
    with pytest.raises(UserError, match=rf"{folder} is not complete: finish it with --resume"):
        load_run(folder)


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def make_empty(path: Path) -> None:
    path.write_bytes(b"")


def make_an_empty_list(path: Path) -> None:
    path.write_bytes(b"[]")


@pytest.mark.parametrize("damage", [remove, truncate, make_empty, make_an_empty_list])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_model_is_refused(
    name: str, damage: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = make_complete_run(tmp_path / "run", AIT)
    damage(folder / name)
    with pytest.raises(
        UserError, match=rf"the model of the run in {folder} is damaged .*--overwrite"
    ):
        load_run(folder)


@pytest.mark.parametrize("damage", [truncate, make_empty, make_an_empty_list])
def test_a_damaged_result_is_refused(damage: Callable[[Path], None], tmp_path: Path) -> None:
    folder = make_complete_run(tmp_path / "run", AIT)
    damage(folder / "result.json")
    with pytest.raises(UserError, match=rf"{folder}/result\.json is damaged .*--overwrite"):
        load_run(folder)


def test_a_result_with_other_classes_than_the_model_is_refused(tmp_path: Path) -> None:
    folder = make_complete_run(tmp_path / "run", AIT)
    put_result(folder, result_of(AIT, classes=["a", "b", "c"]))
    with pytest.raises(UserError, match="3 classes, but the model has 2"):
        load_run(folder)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    ours = make_complete_run(tmp_path / "ours", AIT)
    other = make_complete_run(tmp_path / "other", VIT)
    shutil.copy(other / "model.safetensors", ours)
    with pytest.raises(UserError, match=f"the run in {ours} is damaged"):
        load_run(ours)


def test_a_configuration_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = make_complete_run(tmp_path / "run", AIT)
    config = json.loads((folder / "config.json").read_text())
    config["workspace"]["beta"] = 2.0  # fits the weights
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config\.json and experiment\.yaml describe different"):
        load_run(folder)


# --- the test split ---


def test_the_test_split_of_a_run_comes_from_its_data(tmp_path: Path) -> None:
    run = load_run(make_complete_run(tmp_path / "run", AIT))
    assert torch.equal(
        load_test_split(run, None, CPU).test.labels, DATA.load_test(CPU).test.labels
    )


def test_generated_data_has_no_source(tmp_path: Path) -> None:
    run = load_run(make_complete_run(tmp_path / "run", AIT))
    with pytest.raises(UserError, match=r"triangle is generated .*--source"):
        load_test_split(run, "folder", CPU)


def test_the_error_for_data_with_other_classes_lists_both(tmp_path: Path) -> None:
    folder = make_complete_run(tmp_path / "run", AIT)
    put_result(folder, result_of(AIT, classes=["cat", "dog"]))
    with pytest.raises(UserError, match=r"classes cat, dog, but .* equilateral, other: pass"):
        load_test_split(load_run(folder), None, CPU)
