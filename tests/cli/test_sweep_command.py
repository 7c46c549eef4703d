"""`ait sweep`: what it trains, prints, writes and refuses."""

import json
import signal
from pathlib import Path
from types import ModuleType

import pytest

from associative_transformer.runs.plan import PlannedRun
from associative_transformer.runs.reading import exists
from associative_transformer.training import run_all
from associative_transformer.training.signals import Interrupted
from making.commands import TRIANGLE, Ait, assert_refused
from making.plant import complete_planned

SWEEP = ["sweep", *TRIANGLE, "--data.val-fraction", "0.25"]
GRID = ["--grid", "train.lr=1e-3,2e-3", "model.depth=1,2"]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[PlannedRun]:
    """Complete runs without training, and return them in their order."""
    runs: list[PlannedRun] = []
    monkeypatch.setattr(run_all, "_train", lambda run: runs.append(run) or complete_planned(run))
    return runs


def saved(folder: str = "runs") -> dict[str, object]:
    (path,) = Path(folder).glob("sweeps/*/sweep.json")
    return json.loads(path.read_text())


def test_a_grid_is_trained_once_with_each_seed_and_the_same_command_adds_nothing(
    ait: Ait, trained: list[PlannedRun]
) -> None:
    done = ait(*SWEEP, *GRID, "--seeds", 0, 1)
    assert done.code == 0, done.err
    assert done.out.startswith("8 runs of 4 combinations, 0 of them complete\n")
    assert "[3/8] train.lr=0.002 model.depth=1, seed 0" in done.out
    points = {(run.experiment.train.lr, run.experiment.model.depth) for run in trained}
    assert points == {(0.001, 1), (0.001, 2), (0.002, 1), (0.002, 2)}
    assert [run.experiment.train.seed for run in trained] == [0] * 4 + [1] * 4
    assert len({run.folder for run in trained}) == 8
    again = ait(*SWEEP, *GRID, "--seeds", 0, 1)
    assert again.out.startswith("8 runs of 4 combinations, 8 of them complete\n")
    assert again.out.partition("sweep of")[2] == done.out.partition("sweep of")[2]
    assert len(trained) == 8


def test_the_best_is_chosen_by_validation_and_its_command_trains_on_all_images(
    ait: Ait, trained: list[PlannedRun]
) -> None:
    done = ait(*SWEEP, *GRID)
    content = saved()
    trials = content["trials"]
    assert isinstance(trials, list)
    scores = {
        tuple(trial["values"].values()): trial["validation"][0]
        for trial in trials
        if trial["state"] == "complete"
    }
    for run in trained:
        result = json.loads((run.folder / "result.json").read_text())
        expected = result["best_validation"]["validation_accuracy"]
        point = (run.experiment.train.lr, run.experiment.model.depth)
        assert scores[point] == expected
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    assert content["best"] == trials[0]["values"]
    command = str(content["train_on_all"])
    assert command in done.out
    assert "--data.val-fraction" not in command
    before = len(list(Path("runs").iterdir()))
    assert ait(*command.split()[1:]).code == 0
    assert len(list(Path("runs").iterdir())) == before + 1


def test_failed_runs_are_named_and_the_others_are_compared(
    ait: Ait, trained: list[PlannedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_all._train
    monkeypatch.setattr(
        run_all, "_train", lambda run: 7 if run.experiment.model.depth == 2 else whole(run)
    )
    done = ait(*SWEEP, "--grid", "model.depth=1,2")
    assert done.code == 2
    assert "model.depth=2, seed 0 (exit code 7)" in done.err
    assert "ait train triangle-ait-tiny" in done.err
    assert "best          model.depth=1" in done.out
    assert [trial["state"] for trial in saved()["trials"]] == ["complete", "failed"]


def test_a_stopped_sweep_says_that_the_same_command_continues(
    ait: Ait, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(run: PlannedRun) -> int:
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr(run_all, "_train", stop)
    done = ait(*SWEEP, *GRID)
    assert done.code == 130
    assert done.err.rstrip().endswith(f"continue with ait {' '.join([*SWEEP, *GRID])}")
    assert not exists(Path("runs/sweeps/.lock"))


def test_a_file_can_set_what_all_runs_have_in_common(
    ait: Ait, trained: list[PlannedRun], tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text("train: {weight_decay: 0.5}\ndata: {val_fraction: 0.25}\n")
    done = ait("sweep", *TRIANGLE, "--config", "mine.yaml", "--grid", "train.lr=0.01")
    assert done.code == 0, done.err
    (run,) = trained
    assert (run.experiment.train.weight_decay, run.experiment.train.lr) == (0.5, 0.01)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("", ["needs values to try", "--grid FIELD=VALUE", "--search"]),
        ("--grid train.lr=1e-3 --search train.lr=1..2", ["--grid and --search exclude"]),
        ("--search train.lr=1..2 --seeds 0 1", ["--search takes one seed"]),
        ("--grid train.seed=0,1 --seeds 0 1", ["pass seeds with --seeds"]),
        ("--grid train.lr=1e-3 --seeds 1 1", ["each seed once"]),
        ("--grid train.lr=1e-3 --seeds 1 --train.seed 2", ["remove --train.seed"]),
        ("--grid model.patch_size=7", ["model.patch_size=7: ", "7", "64"]),
        ("--grid train.lr=1e-3 --data.val-fraction 0", ["never on test images", "0.1"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_sweep_that_cannot_be_run_is_refused_before_anything_is_written(
    flags: str, words: list[str], ait: Ait, tmp_path: Path
) -> None:
    assert_refused(ait(*SWEEP, *flags.split()), *words)
    assert list(tmp_path.iterdir()) == []


def test_without_optuna_one_sentence_says_how_to_install_it(
    ait: Ait, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    done = ait(*SWEEP, "--search", "train.lr=1e-4..1e-2:log")
    assert_refused(done, 'pip install "associative-transformer[optuna]"')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.interop
def test_a_search_trains_prints_and_continues(ait: Ait) -> None:
    assert isinstance(pytest.importorskip("optuna"), ModuleType)
    command = [*SWEEP, "--search", "train.lr=1e-4..1e-2:log", "model.depth=1..2"]
    done = ait(*command, "--trials", 2)
    assert done.code == 0, done.err
    assert "[2/2] train.lr=" in done.out
    assert len(saved()["trials"]) == 2
    more = ait(*command, "--trials", 3)
    assert "[2/3]" not in more.out
    assert "[3/3] train.lr=" in more.out
    assert len(saved()["trials"]) == 3
    assert len(list(Path("runs").glob("*/0/result.json"))) == 3
