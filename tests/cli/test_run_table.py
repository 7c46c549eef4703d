"""`ait run-table`: what it trains, what it says, what it refuses."""

import json
import re
import shlex
import signal
from pathlib import Path

import pytest

from associative_transformer.recipes import RECIPES, ROWS
from associative_transformer.recipes.budgets import shorten
from associative_transformer.tables.run_all import Clock, Job
from associative_transformer.training.signals import Interrupted
from making.commands import Ait, Child, assert_refused

A, B = "triangle-vit-small", "triangle-ait-small"


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """What would be trained, without training it."""
    found: list[Job] = []

    def note(jobs: list[Job], tell: object, clock: Clock) -> list[object]:
        found.extend(jobs)
        return []

    monkeypatch.setattr("associative_transformer.cli.run_table.run_jobs", note)
    return found


# --- what is trained ---


@pytest.mark.parametrize(
    ("table", "first", "runs"),
    [
        ("classification", ["cifar10-ait-base", "cifar100-ait-base", "triangle-ait-base"], 135),
        ("ablations", ["cifar10-ait-small", "cifar100-ait-small", "triangle-ait-small"], 63),
        ("relational", ["sort-of-clevr-ait-small", "sort-of-clevr-ait-medium"], 54),
    ],
)
def test_a_whole_table_is_all_its_rows_with_three_seeds(
    table: str, first: list[str], runs: int, ait: Ait, planned: list[Job]
) -> None:
    said = ait("run-table", table)
    assert said.code == 0
    assert f"{runs} runs, 0 of them complete\n" in said.out
    names = [name for row in ROWS[table].values() for name in row]
    assert [job.recipe for job in planned] == names * 3
    assert names[: len(first)] == first
    seeds = [job.experiment.train.seed for job in planned]
    assert seeds == [0] * len(names) + [1] * len(names) + [2] * len(names)
    assert all(job.folder.parent.parent == Path("runs") for job in planned)
    assert all(job.experiment.name == job.recipe for job in planned)  # the paper's budget


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
def test_rows_and_single_recipes_can_be_chosen_and_come_once(
    words: str, recipes: list[str], ait: Ait, planned: list[Job]
) -> None:
    said = ait("run-table", "classification", "--rows", *words.split(), "--seeds", 4)
    assert said.code == 0
    assert [job.recipe for job in planned] == recipes
    assert {job.experiment.train.seed for job in planned} == {4}


def test_budget_folder_and_local_copies_go_to_every_run(
    ait: Ait, planned: list[Job], tmp_path: Path
) -> None:
    (tmp_path / "copy").mkdir()
    flags = "--rows vit-small --seeds 1 0 --budget smoke --runs mine --sources cifar10 copy"
    assert ait("run-table", "classification", *flags.split()).code == 0
    smoke = [shorten(RECIPES[name], "smoke").name for name in ROWS["classification"]["vit-small"]]
    expected = [Path("mine", name, seed) for seed in ("1", "0") for name in smoke]
    assert [job.folder for job in planned] == expected
    assert [job.source for job in planned] == [Path("copy"), None, None] * 2


# --- what is said ---


def test_each_run_is_announced_and_the_table_comes_next(ait: Ait, child: Child) -> None:
    log = child("")
    said = ait("run-table", "classification", "--rows", A, B, "--seeds", 0)
    assert said.code == 0
    first, *lines = [line for line in said.out.splitlines() if line]
    assert first == "2 runs, 0 of them complete"
    assert lines[0] == f"[1/2] {A}, seed 0"
    left = r"; about \d:\d\d:\d\d left for all"
    assert re.fullmatch(rf"\[2/2\] {B}, seed 0{left}", lines[1])
    assert lines[2].split() == ["next", "ait", "table", "classification", "--runs", "runs"]
    assert len(log.read_text().splitlines()) == 2


def test_the_same_command_goes_on_where_it_stopped_and_leaves_alone_what_is_complete(
    ait: Ait, child: Child, tmp_path: Path
) -> None:
    log = child("")
    command = ["run-table", "classification", "--seeds", 0, "--rows", A]
    assert ait(*command).code == 0
    assert len(log.read_text().splitlines()) == 1
    (tmp_path / "runs" / B / "0").mkdir(parents=True)
    (tmp_path / "runs" / B / "0" / "experiment.yaml").touch()
    command.append(B)
    said = ait(*command)
    assert said.out.startswith("2 runs, 1 of them complete\n")
    assert f"[2/2] {B}, seed 0" in said.out
    assert "[1/2]" not in said.out
    _, line = log.read_text().splitlines()
    assert line == f"train {B} --train.seed 0 --runs runs --resume"
    said = ait(*command)
    assert said.code == 0
    assert said.out.startswith("2 runs, 2 of them complete\n")
    assert len(log.read_text().splitlines()) == 2


def test_runs_that_fail_are_named_with_exit_code_and_command_and_the_others_go_on(
    ait: Ait, child: Child, tmp_path: Path
) -> None:
    child(f"case $name in {A}) echo no disk >&2; exit 7;; {B}) kill -9 $$;; esac")
    rows = [A, "triangle-luna-small", B]
    said = ait("run-table", "classification", "--rows", *rows, "--seeds", 1)
    assert said.code == 2
    assert "no disk" in said.err
    assert "2 of 3 runs failed" in said.err
    failed = f"{A}, seed 1 (exit code 7); {B}, seed 1 (killed by signal 9)."
    assert failed in said.err
    assert f"ait train {A} --train.seed 1 --runs runs --resume" in said.err
    assert "next" not in said.out
    complete = [path.parts[-3] for path in tmp_path.glob("runs/*/*/result.json")]
    assert complete == ["triangle-luna-small"]


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"]
)
def test_a_stopped_sweep_says_how_to_go_on(
    signum: int, code: int, ait: Ait, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise Interrupted(signum)

    monkeypatch.setattr("associative_transformer.cli.run_table.run_jobs", stop)
    command = ["run-table", "relational", "--rows", "cnn-rn", "--budget", "smoke"]
    said = ait(*command)
    assert said.code == code
    assert f"saved; go on with ait {shlex.join(command)} " in said.err
    assert "--resume" not in said.err


# --- what is refused ---


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("", ["table", "required"]),
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
        ("relational --seeds", ["seeds", "at least one"]),
        ("relational --seeds 0 -1", ["seeds must be 0 or more", "-1"]),
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
    flags: str, words: list[str], ait: Ait, planned: list[Job], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    assert_refused(ait("run-table", *flags.split()), *words)
    assert planned == []


# --- a real run ---


@pytest.mark.slow
def test_a_smoke_run_fills_its_section_of_the_table_and_no_other(ait: Ait, tmp_path: Path) -> None:
    name = "sort-of-clevr-cnn-mlp-tiny"
    command = ["run-table", "relational", "--rows", name, "--seeds", 0, "--budget", "smoke"]
    said = ait(*command)
    assert said.code == 0, said.err
    (path,) = tmp_path.glob("runs/*/0/result.json")
    assert path.parent.parent.name == shorten(RECIPES[name], "smoke").name
    result = json.loads(path.read_text())
    assert (result["test_images"], result["test_questions"], result["epochs"]) == (40, 80, 1)
    assert "1 of them complete" in ait(*command).out
    table = ait("table", "relational", "--format", "markdown").out
    above, below = table.split("### budget smoke: not comparable with any row above")
    assert "| cnn-mlp-tiny | - |" in above
    (row,) = [line for line in below.splitlines() if line.startswith("| cnn-mlp-tiny")]
    assert f"| {result['test_kinds'][0]['accuracy']:.2f} |" in row
    assert "### " not in below
