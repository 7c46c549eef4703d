"""`ait bench`: what is measured for which options, what is written, and the ratios on record."""

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from associative_transformer import bench
from associative_transformer.bench import (
    Benchmark,
    Entry,
    Measured,
    PoolSizes,
    Ratios,
    measure_again,
    read_ratios,
    timing,
    write_ratios,
)
from associative_transformer.bench.ratios import judge
from associative_transformer.bench.timing import peak_memory
from associative_transformer.cli import bench as command
from associative_transformer.experiment import TrainConfig
from associative_transformer.interface import UserError
from associative_transformer.recipes import RECIPES
from associative_transformer.workspace import WorkspaceConfig
from making.commands import Ait, assert_refused


class Call(NamedTuple):
    """Workload would be measured."""

    forms: list[Benchmark]
    rival: str
    train: TrainConfig
    rounds: int
    use_memory: bool


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Workload would be measured, without measuring it: each twice as slow as the one before.

    In its fastest round each is three times as slow as the one before.
    """
    calls: list[Call] = []

    def note(
        forms: list[Benchmark],
        rival: str,
        train: TrainConfig,
        rounds: int,
        use_memory: bool = True,
    ) -> list[Measured]:
        calls.append(Call(forms, rival, train, rounds, use_memory))
        place = [form.name for form in forms].index(rival)
        return [
            Measured(
                form.name,
                12.34 * 2**i,
                5_186.4 / 2**i,
                2.0 ** (i - place),
                3.0 ** (i - place),
                1.5,
                None if form.operations is None else 0.256 / 2**i,
            )
            for i, form in enumerate(forms)
        ]

    monkeypatch.setattr(command, "measure", note)
    return calls


def names(call: Call) -> list[str]:
    return [form.name for form in call.forms]


def experiment_of(form: Benchmark) -> Any:  # noqa: ANN401
    return form.prepare.args[0].experiment  # type: ignore[attr-defined]


# --- what is measured ---


def test_recipes_are_measured_as_the_options_say(ait: Ait, calls: list[Call]) -> None:
    assert ait("bench", "infer", "--device", "cpu").code == 0
    flags = "cifar10-luna-lra cifar10-set-transformer --batch-size 8 --rounds 3"
    flags += " --precision bfloat16 --device cpu --compile"
    assert ait("bench", "step", *flags.split()).code == 0
    usual, chosen = calls
    assert names(usual) == ["cifar10-vit-small", "cifar10-ait-small"]
    assert names(chosen) == ["cifar10-luna-lra", "cifar10-set-transformer"]
    assert (usual.rival, chosen.rival) == ("cifar10-vit-small", "cifar10-luna-lra")
    assert (usual.rounds, chosen.rounds) == (10, 3)
    assert usual.use_memory
    assert chosen.use_memory
    for call, what, size, values in (
        (usual, "infer", 64, ("float32", False, "cpu")),
        (chosen, "step", 8, ("bfloat16", True, "cpu")),
    ):
        assert (call.train.precision, call.train.compile, call.train.device) == values
        for form in call.forms:
            experiment = experiment_of(form)
            train = experiment.train
            assert form.prepare.args[1] == what  # type: ignore[attr-defined]
            assert (train.precision, train.compile, train.device) == values
            assert train.batch_size == form.samples == size
            assert experiment.model == RECIPES[form.name].model


def test_a_rival_is_measured_too_and_once(ait: Ait, calls: list[Call]) -> None:
    recipes = ["cifar10-vit-small", "cifar10-ait-tiny"]
    ait("bench", "step", *recipes, "--rival", "plain:cifar10-ait-tiny")
    ait("bench", "step", *recipes, "--rival", "cifar10-ait-tiny")
    ait("bench", "step", recipes[0], *recipes)
    assert [(call.rival, names(call)) for call in calls] == [
        ("plain:cifar10-ait-tiny", ["plain:cifar10-ait-tiny", *recipes]),
        ("cifar10-ait-tiny", recipes),
        ("cifar10-vit-small", recipes),
    ]


def test_the_write_is_measured_as_the_options_say(ait: Ait, calls: list[Call]) -> None:
    assert ait("bench", "write").code == 0
    flags = "--tokens 9 --embed-dim 8 --num-priors 7 --prior-dim 6 --num-heads 5 --bottleneck 4"
    assert ait("bench", "write", *flags.split(), "--rival", "dense", "--rounds", "2").code == 0
    usual, chosen = calls
    assert names(usual) == names(chosen) == ["sparse", "plain", "dense"]
    assert (usual.rival, chosen.rival, chosen.rounds) == ("plain", "dense", 2)
    sizes = [call.forms[0].prepare.args[1] for call in calls]  # type: ignore[attr-defined]
    assert sizes == [
        PoolSizes(4_096, 768, WorkspaceConfig()),
        PoolSizes(9, 8, WorkspaceConfig(7, 6, 5, 4)),
    ]


def test_data_is_measured_as_the_options_say(
    ait: Ait, calls: list[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def note(variant: Any, num_batches: int) -> list[Benchmark]:  # noqa: ANN401
        seen.append((variant.experiment, num_batches))
        return [Benchmark("step", int, 8, 1), Benchmark("resident", int, 8, batches=num_batches)]

    monkeypatch.setattr(command, "loading_benchmarks", note)
    flags = ["--source", "here", "--num-workers", "3", "--batch-size", "8", "--batches", "5"]
    said = ait("bench", "data", "cifar10-ait-tiny", *flags)
    assert said.code == 0
    assert ait("bench", "data", "triangle-ait-tiny").code == 0
    (images, batches), (triangle, usual_batches) = seen
    assert (images.data.source, images.data.num_workers) == ("here", 3)
    assert (images.train.batch_size, batches) == (8, 5)
    assert triangle.data == RECIPES["triangle-ait-tiny"].data
    assert usual_batches == 20
    assert calls[0].rival == "step"
    assert "times step" in said.out
    assert "cifar10-ait-tiny, 5 batches a round" in said.out
    (line,) = (line for line in said.out.splitlines() if "resident" in line)
    assert line.split("│")[-2].strip() == "-"  # of matrix peak
    assert_refused(ait("bench", "data", "triangle-ait-tiny", "--source", "x"), "generates", "--so")


# --- what is written ---

CELLS = [
    ["cifar10-vit-small", "12.3", "5,186", "1.00", "1.50", "26 %"],
    ["cifar10-ait-small", "24.7", "2,593", "2.00", "1.50", "13 %"],
]


@pytest.mark.parametrize(("form", "bar"), [("markdown", "|"), ("terminal", "│")])
def test_a_table_compares_each_with_the_rival(
    form: str, bar: str, ait: Ait, calls: list[Call]
) -> None:
    said = ait("bench", "step", "--format", form, "--device", "cpu", "--compile")
    assert said.code == 0
    lines = [line for line in said.out.splitlines() if line[:1] == bar and "10-" in line[:20]]
    assert [[cell.strip() for cell in line.split(bar)[1:-1]] for line in lines] == CELLS
    text = " ".join(re.split(r"[\s│┃]+", said.out))
    words = (
        f"Training step on {os.uname().machine}, {torch.get_num_threads()} threads, torch ",
        "batch 64, float32, compiled",  # not auto
        "Medians of 10 rounds",
        "libraries",
    )
    assert [word for word in words if word not in text] == []
    assert ("## " in said.out) == (form == "markdown")
    if form == "markdown":
        assert "| times cifar10-vit-small |" in said.out
        assert "compiled" not in ait("bench", "infer", "--format", form).out
    assert "Prediction on" in ait("bench", "infer").out
    said = ait("bench", "write", "--format", form)
    text = " ".join(re.split(r"[\s│┃]+", said.out))
    words = ("times plain", "tokens/s", "4096 ", "num_priors 32", "beyond libraries")
    assert [word for word in words if word not in text] == []


def test_json_has_the_numbers_the_options_and_the_environment(
    ait: Ait, calls: list[Call], tmp_path: Path
) -> None:
    words = ["bench", "step", "--format", "json", "--device", "cpu", "--output", "b.json"]
    said = ait(*words)
    assert (said.code, said.out) == (0, "")
    written = json.loads((tmp_path / "b.json").read_text())
    assert written["rows"][1] == {
        "name": "cifar10-ait-small",
        "milliseconds": 24.68,
        "samples_per_second": 2_593.2,
        "times_rival": 2.0,
        "best_times_rival": 3.0,
        "peak_memory": 1.5,
        "peak_share": 0.128,
    }
    assert (written["what"], written["rival"]) == ("step", "cifar10-vit-small")
    options = written["options"]
    assert (options["batch_size"], options["rounds"], options["precision"]) == (64, 10, "float32")
    assert options["recipes"] == ["cifar10-vit-small", "cifar10-ait-small"]
    assert written["device"] == os.uname().machine
    assert written["threads"] == torch.get_num_threads()
    assert torch.__version__.startswith(written["packages"]["torch"])
    assert {"python", "platform", "cuda", "commit"} <= set(written)
    assert json.loads(ait(*words[:-2]).out)["rows"] == written["rows"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("", ["step", "infer", "write", "data"]),
        ("train", ["train", "step", "infer"]),
        ("step cifar10-vit-smal", ["no recipe 'cifar10-vit-smal'", "cifar10-vit-small"]),
        ("step --rival cifar10-vit-smal", ["no recipe 'cifar10-vit-smal'"]),
        ("step --batch-size 0", ["batch_size", "at least 1", "0"]),
        ("step --rounds 0", ["rounds", "at least 1", "0"]),
        ("step --precision float16", ["--precision", "float16", "bfloat16"]),
        ("step --device quantum", ["--device", "quantum"]),
        ("step --format html", ["--format", "html", "json"]),
        ("step --output missing/b.json", ["no folder missing", "--output"]),
        ("step --tokens 5", ["--tokens"]),
        ("write --tokens 0", ["tokens", "at least 1", "0"]),
        ("write --bottleneck 0", ["bottleneck", "at least 1", "0"]),
        ("write --rival cifar10-vit-small", ["--rival", "cifar10-vit-small", "plain"]),
        ("data cifar10-vit-smal", ["no recipe 'cifar10-vit-smal'"]),
        ("data --batches 0", ["batches", "at least 1", "0"]),
        ("--check missing.json", ["can't read missing.json", "repository"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_refused_before_anything_is_measured(
    flags: str, words: list[str], ait: Ait, calls: list[Call]
) -> None:
    assert_refused(ait("bench", *flags.split()), *words)
    assert calls == []


@pytest.mark.parametrize("words", ["", "step", "write", "data", "--check"])
def test_help_says_what_there_is(words: str, ait: Ait) -> None:
    said = ait("bench", *words.split(), "--help")
    assert said.code == 0
    expected = {
        "": ["step", "infer", "write", "data", "--check"],
        "step": ["--rival", "plain:NAME", "timm:NAME", "--batch-size"],
        "write": ["--tokens", "--rival"],
        "data": ["--source", "--batches"],
        "--check": ["benchmarks/ratios.json", "--update"],
    }[words]
    assert [word for word in expected if word.lower() not in said.out.lower()] == []


# --- the ratios on record ---

COMMANDS = (
    "step cifar10-vit-small cifar10-ait-tiny --device cpu",
    "write --device cpu --rounds 4",
)
RECORD = {
    "tolerance": 0.125,
    "reason": "noise",
    "entries": [
        {"command": COMMANDS[0], "device": "cpu", "ratios": {"cifar10-ait-tiny": 3.0}},
        {"command": "infer", "device": "cuda", "ratios": {"cifar10-ait-small": 1.0}},
        {"command": COMMANDS[1], "device": "cpu", "ratios": {"sparse": 1 / 3, "dense": 3.0}},
    ],
}
CHECK = ("bench", "--check", "ratios.json", "--device", "cpu")


@pytest.fixture
def record(tmp_path: Path) -> Path:
    path = tmp_path / "ratios.json"
    path.write_text(json.dumps(RECORD))
    return path


def edit(path: Path, **ratios: float) -> None:
    """Let the first entry have other ratios."""
    saved = json.loads(path.read_text())
    saved["entries"][0]["ratios"] = {name.replace("_", "-"): x for name, x in ratios.items()}
    path.write_text(json.dumps(saved))


@pytest.mark.parametrize(
    ("recorded", "words"),
    [
        (3.0, "as recorded"),
        (2.67, "as recorded"),  # 3 is 12.4 % more
        (2.66, "slower"),  # and 12.8 %
        (3.42, "as recorded"),
        (3.43, "faster"),
        (None, "not on record"),
    ],
)
def test_a_ratio_may_be_smaller_or_larger_within_the_tolerance(
    recorded: float | None, words: str
) -> None:
    verdict = judge("step", "a", recorded, 3.0, 0.125)
    assert verdict == ("step", "a", recorded, 3.0, words)
    assert verdict.is_good == (words in ("as recorded", "faster"))


def test_a_check_measures_the_fastest_rounds_of_this_kind_of_device_again(
    ait: Ait, calls: list[Call], record: Path
) -> None:
    before = record.read_bytes()
    said = ait(*CHECK)
    assert said.code == 0
    assert [call.rounds for call in calls] == [10, 4]
    assert [call.use_memory for call in calls] == [False, False]
    lines = [[x.strip() for x in y.split("│")[1:-1]] for y in said.out.splitlines() if "│" in y]
    assert lines == [
        ["step", "", "", "", ""],
        ["cifar10-ait-tiny", "3.00", "3.00", "+0%", "as recorded"],
        ["write", "", "", "", ""],
        ["sparse", "0.33", "0.33", "+0%", "as recorded"],
        ["dense", "3.00", "3.00", "+0%", "as recorded"],
    ]
    for words in (*COMMANDS, f"on {os.uname().machine}", "12%"):
        assert words in said.out
    assert record.read_bytes() == before


@pytest.mark.parametrize(
    ("measured", "now", "words"),
    [
        ([4.0, 4.0, 3.0], 3.0, "as recorded"),
        ([4.0, 3.1, 9.0], 3.1, "as recorded"),
        ([4.0, 3.8, 3.9, 3.0], 3.8, "slower"),
        ([2.0, 9.0], 2.0, "faster"),
    ],
)
def test_what_is_worse_is_measured_three_times(
    measured: list[float], now: float, words: str
) -> None:
    left = iter(measured)
    entry = Entry("step", "cpu", {"a": 3.0})
    new, (verdict,) = measure_again(
        Ratios(0.125, "", [entry]), "cpu", lambda _: {"a": next(left)}, "here"
    )
    assert (verdict.now, verdict.words) == (now, words)
    assert new.entries == [Entry("step", "cpu", {"a": now}, "here")]


@pytest.mark.parametrize(
    ("ratios", "code", "cells"),
    [
        ({"cifar10_ait_tiny": 2.0}, 1, ["2.00", "3.00", "+50%", "slower"]),
        ({"cifar10_ait_tiny": 6.0}, 0, ["6.00", "3.00", "-50%", "faster"]),
        ({}, 1, ["-", "3.00", "-", "not on record"]),
    ],
    ids=["slower", "faster", "new"],
)
def test_a_check_fails_where_a_ratio_is_worse(
    ratios: dict[str, float],
    code: int,
    cells: list[str],
    ait: Ait,
    calls: list[Call],
    record: Path,
) -> None:
    edit(record, **ratios)
    said = ait(*CHECK)
    assert said.code == code
    (line,) = (line for line in said.out.splitlines() if line.startswith("│ cifar10-ait-tiny"))
    assert [cell.strip() for cell in line.split("│")[2:-1]] == cells
    again = 3 if "slower" in cells else 1
    assert len(calls) == again + 1  # the others are measured all the same
    said = ait(*CHECK, "--update")
    assert said.code == 0
    assert ait(*CHECK).code == 0


def test_an_update_records_this_kind_of_device_and_nothing_else(
    ait: Ait, calls: list[Call], record: Path
) -> None:
    edit(record, cifar10_ait_tiny=2.0)
    assert ait(*CHECK, "--update").code == 0
    written = json.loads(record.read_text())
    assert (written["tolerance"], written["reason"]) == (0.125, "noise")
    step, infer, write = written["entries"]
    where = step.pop("where")
    assert step == RECORD["entries"][0]
    assert infer == {**RECORD["entries"][1], "where": ""}
    assert write["ratios"] == {"sparse": 0.333, "dense": 3.0}
    for words in (os.uname().machine, "threads", torch.__version__, "commit"):
        assert words in where


def test_a_record_without_this_kind_of_device_is_refused(
    ait: Ait, calls: list[Call], record: Path
) -> None:
    saved = json.loads(record.read_text())
    saved["entries"] = saved["entries"][1:2]
    record.write_text(json.dumps(saved))
    assert_refused(ait(*CHECK), "no ratio is on record for cpu")
    assert calls == []


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"tolerance": 0.125, ', "", r"ratios.json.tolerance: Field required"),
        ('"noise"', '"noise", "more": 1', r"ratios.json.more: Unexpected"),
        ('"cuda"', '"tpu"', r"ratios.json.entries.1.device: .*cpu.*cuda"),
        ("{", "", r"ratios.json: Invalid JSON"),
    ],
)
def test_a_damaged_record_is_refused(old: str, new: str, words: str, record: Path) -> None:
    text = record.read_text()
    assert old in text
    record.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=words):
        read_ratios(record)


def test_a_record_is_read_as_it_was_written(record: Path) -> None:
    ratios = read_ratios(record)
    write_ratios(record, ratios)
    assert read_ratios(record) == ratios


def test_the_record_of_the_repository_can_be_measured(ait: Ait, calls: list[Call]) -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "ratios.json"
    ratios: Ratios = read_ratios(path)
    assert 0 < ratios.tolerance < 1
    assert ratios.reason
    for entry in ratios.entries:
        now = command._measure_ratios(entry.command)
        assert now.keys() == entry.ratios.keys()
        assert all(ratio > 0 for ratio in entry.ratios.values())
        assert entry.where
        assert ("--device cpu" in entry.command) == (entry.device == "cpu")
    assert len(calls) == len(ratios.entries) > 0


def test_the_commands_of_the_documentation_are_understood() -> None:
    page = Path(__file__).parents[2] / "docs" / "performance.md"
    lines = re.findall(r"^ait bench ([^#\n]*)", page.read_text(), flags=re.MULTILINE)
    assert {line.split()[0] for line in lines} == {"step", "infer", "write", "data", "--check"}
    for line in lines:
        if not line.startswith("--check"):
            command._read(line.split())


# --- for real ---


@pytest.mark.slow
def test_recipes_are_measured_from_the_command_line(ait: Ait) -> None:
    recipes = ["sort-of-clevr-cnn-mlp-tiny", "dense:cifar10-ait-tiny"]
    flags = ["--batch-size", "2", "--rounds", "1", "--device", "cpu", "--format", "json"]
    said = ait("bench", "step", *recipes, *flags)
    assert said.code == 0, said.err
    rows = json.loads(said.out)["rows"]
    assert [row["name"] for row in rows] == recipes
    assert all(row["milliseconds"] > 0 and 0.1 < row["peak_memory"] < 10 for row in rows)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("write --tokens 600 --embed-dim 16 --num-priors 4", ["sparse", "plain", "dense"]),
        ("data triangle-ait-tiny --batch-size 2 --batches 3", ["step", "resident"]),
    ],
)
def test_write_and_data_are_measured_from_the_command_line(
    words: str, names: list[str], ait: Ait, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "CPU_MATRIX_SIZE", 64)
    here = lambda name, *rest: peak_memory(*rest)  # noqa: E731
    monkeypatch.setattr(bench, "measure_memory", here)  # not in processes of their own
    said = ait("bench", *words.split(), "--rounds", "1", "--device", "cpu", "--format", "json")
    assert said.code == 0, said.err
    rows = json.loads(said.out)["rows"]
    assert [row["name"] for row in rows] == names
    assert all(row["samples_per_second"] > 0 and row["peak_memory"] is not None for row in rows)
