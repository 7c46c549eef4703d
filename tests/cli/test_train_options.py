"""`ait train` with --config, --print-config, --dry-run and --seeds."""

import json
import re
import shlex
import signal
from pathlib import Path
from statistics import mean

import pytest

from associative_transformer.cli.options import parse
from associative_transformer.cli.sweep import SweepOptions
from associative_transformer.cli.train import TrainOptions
from associative_transformer.recipes import RECIPES
from associative_transformer.runs.plan import PlannedRun
from associative_transformer.sweeps.space import parse_grid, parse_search
from associative_transformer.training import run_all
from associative_transformer.training.signals import Interrupted
from making.commands import MODEL, TRIANGLE, Ait, assert_refused
from making.plant import complete_planned

TINY = """
data: {num-train: 64, num_test: 20}
train: {batch_size: 16, epochs: 2, device: cpu, lr: 2e-3}
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "mine.yaml").write_text(TINY)
    return "mine.yaml"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[PlannedRun]:
    """Complete runs without training, and return them in their order."""
    runs: list[PlannedRun] = []
    monkeypatch.setattr(run_all, "_train", lambda run: runs.append(run) or complete_planned(run))
    return runs


# --- files and what is printed ---


def test_options_take_precedence_over_the_file_and_the_file_over_the_recipe(
    file: str, ait: Ait
) -> None:
    command = ["train", "triangle-ait-tiny", "--config", file, "--train.epochs", 1]
    printed = ait(*command, "--print-config").out
    values = dict(re.findall(r"^  (\w+): (\S+)$", printed, re.MULTILINE))
    assert (values["epochs"], values["lr"], values["num_train"]) == ("1", "0.002", "64")
    assert values["weight_decay"] == "0.05"  # the recipe's


def test_the_printed_experiment_is_the_saved_one_and_trains_the_same_run(
    ait: Ait, tmp_path: Path
) -> None:
    printed = ait("train", *TRIANGLE, "--print-config").out
    assert not (tmp_path / "runs").exists()
    assert ait("train", *TRIANGLE).code == 0
    (path,) = tmp_path.glob("runs/*/0/experiment.yaml")
    assert path.read_text() == printed
    again = ait("train", "triangle-ait-tiny", "--config", path, "--resume")
    assert again.code == 0  # the same configuration in the same folder
    assert f"run folder    runs/{path.parts[-3]}/0" in again.out


def test_a_file_of_a_run_with_its_own_name_keeps_it(ait: Ait, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(ait("train", *TRIANGLE, "--name", "mine", "--print-config").out)
    printed = ait("train", "triangle-ait-tiny", "--config", path, "--print-config").out
    assert printed == path.read_text()


def test_a_dry_run_writes_nothing_and_names_what_would_run(ait: Ait, tmp_path: Path) -> None:
    done = ait("train", *TRIANGLE, "--dry-run")
    assert done.code == 0, done.err
    assert list(tmp_path.iterdir()) == []
    titles = [line[:15].strip() for line in done.out.splitlines()]
    for title in ("run folder", "data", "tokens", "peak memory", "time per step", "compiled"):
        assert title in titles
    assert "4 per epoch, 8 in 2 epochs" in done.out
    assert "64 training, 20 test images, 2 classes" in done.out
    assert "2 seeds" not in done.out
    more = ait("train", *TRIANGLE, "--dry-run", "--seeds", 3, 4)
    assert "seeds           3, 4, each with the time above" in more.out


def test_a_dry_run_says_that_the_folder_exists(ait: Ait) -> None:
    assert ait("train", *TRIANGLE).code == 0
    before = sorted(Path("runs").rglob("*"))
    assert "(exists: pass --resume or --overwrite)" in ait("train", *TRIANGLE, "--dry-run").out
    assert sorted(Path("runs").rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: {lrr: 1}", ["mine.yaml", "train.lrr", "did you mean train.lr"]),
        ("train: {lr: high}", ["mine.yaml: train.lr", "'high'"]),
        ("train: {epochs: 0}", ["mine.yaml", "epochs must be at least 1"]),
        ("train: {lr: 1, lr: 2}", ["mine.yaml", "'lr' twice"]),
        ("[", ["mine.yaml is not valid YAML"]),
    ],
)
def test_a_bad_file_is_refused_before_anything_is_written(
    text: str, words: list[str], ait: Ait, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    for command in ("train", "sweep"):
        assert_refused(ait(command, *TRIANGLE, "--config", "mine.yaml"), *words)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


# --- seeds ---


def test_seeds_are_trained_one_after_another_and_averaged(
    ait: Ait, trained: list[PlannedRun]
) -> None:
    done = ait("train", *TRIANGLE, "--seeds", 3, 1, "--report-every", 2)
    assert done.code == 0, done.err
    assert [run.experiment.train.seed for run in trained] == [3, 1]
    assert all(run.arguments[-3:-1] == ["--report-every", "2"] for run in trained)
    results = [json.loads((run.folder / "result.json").read_text()) for run in trained]
    accuracies = [result["test_accuracy"] for result in results]
    (line,) = [line for line in done.out.splitlines() if "mean of 2" in line]
    assert f"{mean(accuracies):.2f} ±" in line


def test_existing_seeds_are_refused_resumed_or_overwritten(
    ait: Ait, trained: list[PlannedRun]
) -> None:
    command = ["train", *TRIANGLE, "--seeds", 0, 1]
    assert ait(*command).code == 0
    assert_refused(ait(*command, 2), "exists: pass --resume to continue it or --overwrite")
    assert len(trained) == 2
    assert ait(*command, 2, "--resume").code == 0
    assert [run.experiment.train.seed for run in trained] == [0, 1, 2]
    assert ait(*command, "--overwrite").code == 0
    assert [run.experiment.train.seed for run in trained] == [0, 1, 2, 0, 1]
    assert_refused(ait(*command, "--resume", "--overwrite"), "exclude each other")


def test_an_overwritten_seed_that_was_not_reached_is_not_taken_for_a_new_one(
    ait: Ait, trained: list[PlannedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", *TRIANGLE, "--seeds", 0, 1]
    assert ait(*command).code == 0

    def stop(run: PlannedRun) -> int:
        raise Interrupted(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(run_all, "_train", stop)
        done = ait(*command, "--overwrite")
    assert done.code == 130
    assert done.err.rstrip().endswith("--seeds 0 1 --resume")
    assert ait(*command, "--resume").code == 0
    assert [run.experiment.train.seed for run in trained] == [0, 1, 0, 1]


def test_a_folder_with_another_configuration_is_refused_before_a_seed_is_trained(
    ait: Ait, trained: list[PlannedRun]
) -> None:
    command = ["train", *TRIANGLE, "--name", "mine", "--seeds"]
    assert ait(*command, 1).code == 0
    done = ait(*command, 0, 1, "--train.lr", 0.125, "--resume")
    assert_refused(done, "train.lr (0.125 here, 0.001 there)")
    assert len(trained) == 1


def test_a_seed_that_fails_is_named_and_the_others_are_trained(
    ait: Ait, trained: list[PlannedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_all._train
    monkeypatch.setattr(
        run_all, "_train", lambda run: 3 if run.experiment.train.seed == 1 else whole(run)
    )
    done = ait("train", *TRIANGLE, "--seeds", 0, 1, 2)
    assert done.code == 2
    assert "1 of 3 runs failed: triangle-ait-tiny, seed 1 (exit code 3)" in done.err
    assert [run.experiment.train.seed for run in trained] == [0, 2]


@pytest.mark.thorough
@pytest.mark.slow
def test_a_seed_of_several_is_the_same_run_as_one_alone(ait: Ait) -> None:
    done = ait("train", *TRIANGLE, "--seeds", 0, 1)
    assert done.code == 0, done.err
    assert "[2/2] triangle-ait-tiny, seed 1" in done.out
    assert len(list(Path("runs").glob("*/*/result.json"))) == 2
    assert ait("train", *TRIANGLE, "--seeds", 1, "--runs", "alone").code == 0
    (alone,), (several,) = Path("alone").glob("*/1"), Path("runs").glob("*/1")
    name = "model.safetensors"
    assert (alone / name).read_bytes() == (several / name).read_bytes()


# --- documentation ---

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "sweeps.md").read_text()
DOCUMENTED = [
    line
    for block in re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.parametrize("line", DOCUMENTED)
def test_every_command_of_the_page_can_be_parsed(line: str) -> None:
    _, command, name, *words = shlex.split(line)
    recipe = RECIPES[name]
    if command == "train":
        parse(TrainOptions, words, name, TrainOptions(recipe))
        return
    options = parse(SweepOptions, words, name, SweepOptions(recipe))
    assert parse_grid(options.grid, recipe) or parse_search(options.search, recipe)


def test_the_file_of_the_page_can_be_used(ait: Ait, tmp_path: Path) -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "mine.yaml").write_text(text)
    words = ["--config", "mine.yaml", "--train.batch-size", 64, *MODEL.split()]
    done = ait("train", "triangle-ait-tiny", *words, "--dry-run")
    assert "15 per epoch, 75 in 5 epochs" in done.out
