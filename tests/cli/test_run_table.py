"""`ait run-table`: what it trains, prints and refuses."""

import json
import re
import shlex
import signal
from pathlib import Path

import pytest

from associative_transformer.recipes import RECIPES, TABLE_RECIPES
from associative_transformer.recipes.budgets import shorten
from associative_transformer.runs.plan import PlannedRun
from associative_transformer.training.signals import Interrupted
from making.commands import Ait, Child, assert_refused

A, B = "triangle-vit-small", "triangle-ait-small"


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[PlannedRun]:
    """Return the runs that the command would train; they are only recorded."""
    planned: list[PlannedRun] = []

    def record(runs: list[PlannedRun], on_start: object) -> list[object]:
        planned.extend(runs)
        return []

    monkeypatch.setattr("associative_transformer.training.run_all.train_runs", record)
    return planned


# --- what is trained ---


@pytest.mark.parametrize(
    ("table", "first", "runs"),
    [
        ("classification", ["cifar10-ait-base", "cifar100-ait-base", "triangle-ait-base"], 135),
        ("ablations", ["cifar10-ait-small", "cifar100-ait-small", "triangle-ait-small"], 81),
        ("relational", ["sort-of-clevr-ait-small", "sort-of-clevr-ait-medium"], 54),
    ],
)
def test_a_table_is_trained_with_all_its_rows_and_three_seeds(
    table: str, first: list[str], runs: int, ait: Ait, planned: list[PlannedRun]
) -> None:
    done = ait("run-table", table)
    assert done.code == 0
    assert f"{runs} runs, 0 of them complete\n" in done.out
    names = [name for row in TABLE_RECIPES[table].values() for name in row]
    assert [run.recipe for run in planned] == names * 3
    assert names[: len(first)] == first
    seeds = [run.experiment.train.seed for run in planned]
    assert seeds == [0] * len(names) + [1] * len(names) + [2] * len(names)
    assert all(run.folder.parent.parent == Path("runs") for run in planned)
    assert all(run.experiment.name == run.recipe for run in planned)  # the paper's budget


@pytest.mark.parametrize(
    ("words", "recipes"),
    [
        ("brims", ["cifar10-brims", "cifar100-brims", "triangle-brims"]),
        ("cifar10-luna-lra", ["cifar10-luna-lra"]),
        (
            "triangle-brims brims triangle-ait-tiny",
            ["triangle-brims", "cifar10-brims", "cifar100-brims", "triangle-ait-tiny"],
        ),
    ],
)
def test_rows_and_recipes_can_be_chosen_and_are_trained_once(
    words: str, recipes: list[str], ait: Ait, planned: list[PlannedRun]
) -> None:
    done = ait("run-table", "classification", "--rows", *words.split(), "--seeds", 4)
    assert done.code == 0
    assert [run.recipe for run in planned] == recipes
    assert {run.experiment.train.seed for run in planned} == {4}


def test_budget_folder_and_local_copies_apply_to_every_run(
    ait: Ait, planned: list[PlannedRun], tmp_path: Path
) -> None:
    (tmp_path / "copy").mkdir()
    flags = "--rows vit-small --seeds 1 0 --budget smoke --runs mine --sources cifar10 copy"
    assert ait("run-table", "classification", *flags.split()).code == 0
    smoke = [
        shorten(RECIPES[name], "smoke").name
        for name in TABLE_RECIPES["classification"]["vit-small"]
    ]
    expected = [Path("mine", name, seed) for seed in ("1", "0") for name in smoke]
    assert [run.folder for run in planned] == expected
    sources = [getattr(run.experiment.data, "source", None) for run in planned]
    assert sources == ["copy", None, None] * 2


# --- what is printed ---


def test_each_run_is_announced_and_the_next_command_is_printed(ait: Ait, child: Child) -> None:
    log = child("")
    done = ait("run-table", "classification", "--rows", A, B, "--seeds", 0)
    assert done.code == 0
    first, *lines = [line for line in done.out.splitlines() if line]
    assert first == "2 runs, 0 of them complete"
    assert lines[0] == f"[1/2] {A}, seed 0"
    assert re.fullmatch(rf"\[2/2\] {B}, seed 0, 0:00:\d\d left for all", lines[1])
    assert lines[2].split() == ["next", "ait", "table", "classification", "--runs", "runs"]
    assert len(log.read_text().splitlines()) == 2


def test_the_same_command_continues_and_skips_what_is_complete(
    ait: Ait, child: Child, tmp_path: Path
) -> None:
    log = child("")
    command = ["run-table", "classification", "--seeds", 1, "--rows", A]
    assert ait(*command).out.startswith("1 run, 0 of them complete\n")
    assert len(log.read_text().splitlines()) == 1
    (tmp_path / "runs" / B / "1").mkdir(parents=True)
    (tmp_path / "runs" / B / "1" / "experiment.yaml").touch()
    command.append(B)
    done = ait(*command)
    assert done.out.startswith("2 runs, 1 of them complete\n")
    assert f"[2/2] {B}, seed 1" in done.out
    assert "[1/2]" not in done.out
    _, line = log.read_text().splitlines()
    assert line == f"train {B} --train.seed 1 --runs runs --resume"
    done = ait(*command)
    assert done.code == 0
    assert done.out.startswith("2 runs, 2 of them complete\n")
    assert len(log.read_text().splitlines()) == 2


def test_a_run_with_a_damaged_result_is_not_counted_and_is_resumed(
    ait: Ait, child: Child, tmp_path: Path
) -> None:
    log = child("")
    command = ["run-table", "classification", "--seeds", 0, 1, "--rows", A]
    assert ait(*command).code == 0
    result = tmp_path / "runs" / A / "0" / "result.json"
    whole = result.read_text()
    result.write_text(whole[:-9])
    assert ait(*command).out.startswith("2 runs, 1 of them complete\n")
    assert log.read_text().splitlines()[2:] == [f"train {A} --runs runs --resume"]
    assert result.read_text() == whole
    assert ait(*command).out.startswith("2 runs, 2 of them complete\n")


def test_failed_runs_are_named_with_their_exit_codes_and_the_others_are_trained(
    ait: Ait, child: Child, tmp_path: Path
) -> None:
    child(f"case $name in {A}) echo no disk >&2; exit 7;; {B}) kill -9 $$;; esac")
    rows = [A, "triangle-luna-small", B]
    done = ait("run-table", "classification", "--rows", *rows, "--seeds", 1)
    assert done.code == 2
    assert "no disk" in done.err
    assert "2 of 3 runs failed" in done.err
    failed = f"{A}, seed 1 (exit code 7); {B}, seed 1 (killed by signal 9)."
    assert failed in done.err
    assert f"ait train {A} --train.seed 1 --runs runs --resume" in done.err
    assert "next" not in done.out
    complete = [path.parts[-3] for path in tmp_path.glob("runs/*/*/result.json")]
    assert complete == ["triangle-luna-small"]


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"]
)
def test_a_stopped_command_prints_how_to_continue(
    signum: int, code: int, ait: Ait, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise Interrupted(signum)

    monkeypatch.setattr("associative_transformer.training.run_all.train_runs", stop)
    command = ["run-table", "relational", "--rows", "cnn-rn", "--budget", "smoke"]
    done = ait(*command)
    assert done.code == code
    assert f"saved; continue with ait {shlex.join(command)} " in done.err
    assert "--resume" not in done.err


# --- what is refused ---


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("", ["needs TABLE", "ait run-table --help"]),
        ("images", ["images", "classification", "ablations", "relational"]),
        (
            "classification --rows ait-smal",
            ["classification has no row 'ait-smal'", "closest: ait-small, "],
        ),
        ("relational --rows luna-base", ["relational has no row 'luna-base'", "-luna-base"]),
        (
            "ablations --rows ait-small cifar10-ait-smal",
            ["no row 'cifar10-ait-smal'", "closest: cifar10-ait-small, "],
        ),
        ("relational --seeds", ["--seeds", "at least one"]),
        ("relational --seeds 0 -1", ["--seeds", "0 or more", "-1"]),
        ("relational --seeds one", ["--seeds", "one"]),
        ("relational --budget tiny", ["--budget", "tiny", "smoke"]),
        ("classification --sources cifar10 gone", ["no folder gone", "cifar10", "--sources"]),
        ("classification --sources cifar10 file", ["no folder file", "cifar10", "--sources"]),
        ("classification --sources cifar .", ["--sources has 'cifar'", "cifar10, cifar100"]),
        ("classification --sources triangle .", ["--sources has 'triangle'"]),
        ("classification --sources cifar10", ["--sources"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_refused_before_anything_is_trained(
    flags: str, words: list[str], ait: Ait, planned: list[PlannedRun], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    assert_refused(ait("run-table", *flags.split()), *words)
    assert planned == []


# --- a real run ---


@pytest.mark.slow
def test_a_smoke_run_appears_only_in_its_own_section(ait: Ait, tmp_path: Path) -> None:
    name = "sort-of-clevr-cnn-mlp-tiny"
    command = ["run-table", "relational", "--rows", name, "--seeds", 0, "--budget", "smoke"]
    done = ait(*command)
    assert done.code == 0, done.err
    (path,) = tmp_path.glob("runs/*/0/result.json")
    assert path.parent.parent.name == shorten(RECIPES[name], "smoke").name
    result = json.loads(path.read_text())
    assert (result["test_images"], result["test_questions"], result["epochs"]) == (40, 80, 1)
    assert "1 of them complete" in ait(*command).out
    table = ait("table", "relational", "--format", "markdown").out
    above, below = table.split("### budget smoke: not comparable with any row above")
    assert "| cnn-mlp-tiny | - |" in above
    (row,) = [line for line in below.splitlines() if line.startswith("| cnn-mlp-tiny")]
    assert f"| {result['test_kinds'][0]['accuracy']:.2f} (" in row
    assert "### " not in below
