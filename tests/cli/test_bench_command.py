"""`ait bench`: what is measured, what is written, and the recorded ratios."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from associative_transformer import bench
from associative_transformer.bench import (
    Benchmark,
    BenchmarkResult,
    Entry,
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
from associative_transformer.workspace_config import WorkspaceConfig
from making.commands import Ait, assert_refused


class Call(NamedTuple):
    """The arguments of one call of `measure`."""

    benchmarks: list[Benchmark]
    rival: str
    train: TrainConfig
    rounds: int
    use_memory: bool


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Record the calls of `measure` instead of measuring.

    Each benchmark is reported twice as slow as the previous one, and in its fastest round three
    times as slow.
    """
    calls: list[Call] = []

    def record(
        benchmarks: list[Benchmark],
        rival: str,
        train: TrainConfig,
        rounds: int,
        use_memory: bool = True,
    ) -> list[BenchmarkResult]:
        calls.append(Call(benchmarks, rival, train, rounds, use_memory))
        rival_index = [benchmark.name for benchmark in benchmarks].index(rival)
        return [
            BenchmarkResult(
                benchmark.name,
                12.34 * 2**i,
                5_186.4 / 2**i,
                2.0 ** (i - rival_index),
                3.0 ** (i - rival_index),
                1.5,
                None if benchmark.operations is None else 0.256 / 2**i,
            )
            for i, benchmark in enumerate(benchmarks)
        ]

    monkeypatch.setattr(bench, "measure", record)
    monkeypatch.setattr(bench.benchmarks, "count_operations", lambda _: 1_000)
    monkeypatch.setattr(bench.benchmarks, "count_write", lambda *_: 1_000)
    return calls


def names(call: Call) -> list[str]:
    return [benchmark.name for benchmark in call.benchmarks]


def experiment_of(benchmark: Benchmark) -> Any:  # noqa: ANN401
    return benchmark.prepare.args[0].experiment  # type: ignore[attr-defined]


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
    for call, workload, size, values in (
        (usual, "infer", 64, ("float32", "off", "cpu")),
        (chosen, "step", 8, ("bfloat16", "on", "cpu")),
    ):
        assert (call.train.precision, call.train.compile, call.train.device) == values
        for benchmark in call.benchmarks:
            experiment = experiment_of(benchmark)
            train = experiment.train
            assert benchmark.prepare.args[1] == workload  # type: ignore[attr-defined]
            assert (train.precision, train.compile, train.device) == values
            assert train.batch_size == benchmark.samples == size
            assert experiment.model == RECIPES[benchmark.name].model


def test_a_rival_is_also_measured_and_only_once(ait: Ait, calls: list[Call]) -> None:
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
    sizes = [call.benchmarks[0].prepare.args[1] for call in calls]  # type: ignore[attr-defined]
    assert sizes == [
        PoolSizes(4_096, 768, WorkspaceConfig()),
        PoolSizes(9, 8, WorkspaceConfig(7, 6, 5, 4)),
    ]


def test_data_is_measured_as_the_options_say(
    ait: Ait, calls: list[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def record(variant: Any, num_batches: int) -> list[Benchmark]:  # noqa: ANN401
        seen.append((variant.experiment, num_batches))
        return [Benchmark("step", int, 8, 1), Benchmark("resident", int, 8, batches=num_batches)]

    monkeypatch.setattr(bench.benchmarks, "loading_benchmarks", record)
    flags = ["--source", "here", "--num-workers", "3", "--batch-size", "8", "--batches", "5"]
    result = ait("bench", "data", "cifar10-ait-tiny", *flags)
    assert result.code == 0
    assert ait("bench", "data", "triangle-ait-tiny").code == 0
    (images, batches), (triangle, usual_batches) = seen
    assert (images.data.source, images.data.num_workers) == ("here", 3)
    assert (images.train.batch_size, batches) == (8, 5)
    assert triangle.data == RECIPES["triangle-ait-tiny"].data
    assert usual_batches == 20
    assert calls[0].rival == "step"
    assert "times" in result.out
    assert "cifar10-ait-tiny, 5 batches per round" in result.out
    (line,) = (line for line in result.out.splitlines() if "resident" in line)
    assert line.split("│")[-2].strip() == "-"  # of matrix peak
    assert_refused(ait("bench", "data", "triangle-ait-tiny", "--source", "x"), "generates", "--so")


@pytest.mark.parametrize(("number", "code"), [(0, 0), (-1, 2)])
def test_batches_are_measured_without_workers_but_not_with_a_negative_number(
    number: int, code: int, ait: Ait, calls: list[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def record(variant: Any, num_batches: int) -> list[Benchmark]:  # noqa: ANN401
        seen.append(variant.experiment.data.num_workers)
        return [Benchmark("step", int, 8, 1)]

    monkeypatch.setattr(bench.benchmarks, "loading_benchmarks", record)
    result = ait("bench", "data", "cifar10-ait-tiny", "--num-workers", number)
    assert result.code == code
    assert seen == [number] * (code == 0)


# --- what is written ---

CELLS = [
    ["cifar10-vit-small", "float32", "on", "12.3", "5,186", "1.00", "1.50", "26 %"],
    ["cifar10-ait-small", "float32", "on", "24.7", "2,593", "2.00", "1.50", "13 %"],
]


@pytest.mark.parametrize(("layout", "bar"), [("markdown", "|"), ("terminal", "│")])
def test_a_table_compares_each_variant_with_the_rival(
    layout: str, bar: str, ait: Ait, calls: list[Call]
) -> None:
    result = ait("bench", "step", "--format", layout, "--device", "cpu", "--compile")
    assert result.code == 0
    lines = [line for line in result.out.splitlines() if line[:1] == bar and "10-" in line[:20]]
    assert [[cell.strip() for cell in line.split(bar)[1:-1]] for line in lines] == CELLS
    text = " ".join(re.split(r"[\s│┃]+", result.out))
    words = (
        f"Training step on {os.uname().machine}, {torch.get_num_threads()} threads, torch ",
        "batch 64",
        "Medians of 10 rounds",
        "libraries",
    )
    assert [word for word in words if word not in text] == []
    assert ("## " in result.out) == (layout == "markdown")
    if layout == "markdown":
        assert "| times cifar10-vit-small |" in result.out
        assert "| off |" in ait("bench", "infer", "--format", layout).out
    assert "Prediction on" in ait("bench", "infer").out
    result = ait("bench", "write", "--format", layout)
    text = " ".join(re.split(r"[\s│┃]+", result.out))
    words = ("times plain", "tokens/s", "4096 ", "num_priors 32", "without libraries")
    assert [word for word in words if word not in text] == []


def test_json_has_the_numbers_the_options_and_the_environment(
    ait: Ait, calls: list[Call], tmp_path: Path
) -> None:
    words = ["bench", "step", "--format", "json", "--device", "cpu", "--output", "b.json"]
    result = ait(*words)
    assert (result.code, result.out) == (0, "")
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
        ("step --batch-size 0", ["--batch-size must be at least 1", "not 0"]),
        ("step --rounds 0", ["--rounds must be at least 1", "not 0"]),
        ("step --precision float16", ["--precision", "float16", "bfloat16"]),
        ("step --device quantum", ["--device", "quantum"]),
        ("step --format html", ["--format", "html", "json"]),
        ("step --output missing/b.json", ["no folder missing", "--output"]),
        ("step --tokens 5", ["--tokens"]),
        ("write --tokens 0", ["--tokens must be at least 1", "not 0"]),
        ("write --bottleneck 0", ["--bottleneck must be at least 1", "not 0"]),
        ("write --rival cifar10-vit-small", ["--rival", "cifar10-vit-small", "plain"]),
        ("data cifar10-vit-smal", ["no recipe 'cifar10-vit-smal'"]),
        ("data --batches 0", ["--batches must be at least 1", "not 0"]),
        ("--check missing.json", ["cannot read missing.json", "repository"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_refused_before_anything_is_measured(
    flags: str, words: list[str], ait: Ait, calls: list[Call]
) -> None:
    assert_refused(ait("bench", *flags.split()), *words)
    assert calls == []


@pytest.mark.parametrize("words", ["", "step", "write", "data", "--check"])
def test_help_lists_benchmarks_and_options(words: str, ait: Ait) -> None:
    result = ait("bench", *words.split(), "--help")
    assert result.code == 0
    expected = {
        "": ["step", "infer", "write", "data", "--check"],
        "step": ["--rival", "plain:NAME", "timm:NAME", "--batch-size"],
        "write": ["--tokens", "--rival"],
        "data": ["--source", "--batches"],
        "--check": ["benchmarks/ratios.json", "--update"],
    }[words]
    assert [word for word in expected if word.lower() not in result.out.lower()] == []


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
    """Change the ratios of the first entry."""
    saved = json.loads(path.read_text())
    saved["entries"][0]["ratios"] = {name.replace("_", "-"): x for name, x in ratios.items()}
    path.write_text(json.dumps(saved))


@pytest.mark.parametrize(
    ("recorded", "outcome"),
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
    recorded: float | None, outcome: str
) -> None:
    verdict = judge("step", "a", recorded, 3.0, 0.125)
    assert verdict == ("step", "a", recorded, 3.0, outcome)
    assert verdict.is_good == (outcome in ("as recorded", "faster"))


def test_a_check_measures_the_fastest_rounds_of_this_kind_of_device_again(
    ait: Ait, calls: list[Call], record: Path
) -> None:
    before = record.read_bytes()
    result = ait(*CHECK)
    assert result.code == 0
    assert [call.rounds for call in calls] == [10, 4]
    assert [call.use_memory for call in calls] == [False, False]
    lines = [[x.strip() for x in y.split("│")[1:-1]] for y in result.out.splitlines() if "│" in y]
    assert lines == [
        ["step", "", "", "", ""],
        ["cifar10-ait-tiny", "3.00", "3.00", "+0%", "as recorded"],
        ["write", "", "", "", ""],
        ["sparse", "0.33", "0.33", "+0%", "as recorded"],
        ["dense", "3.00", "3.00", "+0%", "as recorded"],
    ]
    for words in (*COMMANDS, f"on {os.uname().machine}", "12%"):
        assert words in result.out
    assert record.read_bytes() == before


@pytest.mark.parametrize(
    ("measured", "smallest", "outcome"),
    [
        ([4.0, 4.0, 3.0], 3.0, "as recorded"),
        ([4.0, 3.1, 9.0], 3.1, "as recorded"),
        ([4.0, 3.8, 3.9, 3.0], 3.8, "slower"),
        ([2.0, 9.0], 2.0, "faster"),
    ],
)
def test_a_worse_ratio_is_measured_up_to_three_times(
    measured: list[float], smallest: float, outcome: str
) -> None:
    left = iter(measured)
    entry = Entry("step", "cpu", {"a": 3.0})
    new, (verdict,) = measure_again(
        Ratios(0.125, "", [entry]), "cpu", lambda _: {"a": next(left)}, "a machine"
    )
    assert (verdict.measured, verdict.outcome) == (smallest, outcome)
    assert new.entries == [Entry("step", "cpu", {"a": smallest}, "a machine")]


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_an_entry_in_bfloat16_is_measured_only_where_there_are_instructions_for_it(
    has_bfloat16: bool,
) -> None:
    always = Entry("step", "cpu", {"a": 3.0})
    entries = [always, Entry("write", "cpu", {"a": 3.0}, "elsewhere", needs_bfloat16=True)]
    new, verdicts = measure_again(
        Ratios(0.1, "", entries), "cpu", lambda _: {"a": 3.1}, "here", has_bfloat16
    )
    assert [verdict.command for verdict in verdicts] == ["step", "write"][: 1 + has_bfloat16]
    assert new.entries[0].where == "here"
    assert (new.entries[1] == entries[1]) == (not has_bfloat16)


@pytest.mark.parametrize(
    ("ratios", "code", "cells"),
    [
        ({"cifar10_ait_tiny": 2.0}, 1, ["2.00", "3.00", "+50%", "slower"]),
        ({"cifar10_ait_tiny": 6.0}, 0, ["6.00", "3.00", "-50%", "faster"]),
        ({}, 1, ["-", "3.00", "-", "not on record"]),
    ],
    ids=["slower", "faster", "new"],
)
def test_a_check_fails_if_a_ratio_is_worse_or_not_on_record(
    ratios: dict[str, float],
    code: int,
    cells: list[str],
    ait: Ait,
    calls: list[Call],
    record: Path,
) -> None:
    edit(record, **ratios)
    result = ait(*CHECK)
    assert result.code == code
    (line,) = (line for line in result.out.splitlines() if line.startswith("│ cifar10-ait-tiny"))
    assert [cell.strip() for cell in line.split("│")[2:-1]] == cells
    attempts = 3 if "slower" in cells else 1
    assert len(calls) == attempts + 1  # the other entry is still measured
    result = ait(*CHECK, "--update")
    assert result.code == 0
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
    assert step == {**RECORD["entries"][0], "needs_bfloat16": False}
    assert infer == {**RECORD["entries"][1], "where": "", "needs_bfloat16": False}
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


def test_a_record_survives_writing_and_reading(record: Path) -> None:
    ratios = read_ratios(record)
    write_ratios(record, ratios)
    assert read_ratios(record) == ratios


def test_the_record_of_the_repository_can_be_measured(ait: Ait, calls: list[Call]) -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "ratios.json"
    ratios: Ratios = read_ratios(path)
    assert 0 < ratios.tolerance < 1
    assert ratios.reason
    for entry in ratios.entries:
        measured = command._measure_ratios(entry.command)
        assert measured.keys() == entry.ratios.keys()
        assert all(ratio > 0 for ratio in entry.ratios.values())
        assert entry.where
        assert ("--device cpu" in entry.command) == (entry.device == "cpu")
    assert len(calls) == len(ratios.entries) > 0


def test_the_commands_of_the_documentation_parse() -> None:
    page = Path(__file__).parents[2] / "docs" / "explanation" / "performance.md"
    lines = re.findall(r"^ait bench ([^#\n]*)", page.read_text(), flags=re.MULTILINE)
    assert {line.split()[0] for line in lines} == {"step", "infer", "write", "data", "--check"}
    for line in lines:
        if not line.startswith("--check"):
            command._parse(line.split())


# --- real measurements ---


@pytest.mark.slow
def test_recipes_are_measured_from_the_command_line(ait: Ait) -> None:
    recipes = ["sort-of-clevr-cnn-mlp-tiny", "dense:cifar10-ait-tiny"]
    flags = ["--batch-size", "2", "--rounds", "1", "--device", "cpu", "--format", "json"]
    result = ait("bench", "step", *recipes, *flags)
    assert result.code == 0, result.err
    rows = json.loads(result.out)["rows"]
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
    recipe = RECIPES["triangle-ait-tiny"]
    few = replace(recipe, data=replace(recipe.data, num_train=16, num_test=4))
    monkeypatch.setitem(RECIPES, recipe.name, few)
    monkeypatch.setattr(timing, "CPU_MATRIX_SIZE", 64)
    in_this_process = lambda name, *rest: peak_memory(*rest)  # noqa: E731
    monkeypatch.setattr(bench, "measure_memory", in_this_process)
    result = ait("bench", *words.split(), "--rounds", "1", "--device", "cpu", "--format", "json")
    assert result.code == 0, result.err
    rows = json.loads(result.out)["rows"]
    assert [row["name"] for row in rows] == names
    assert all(row["samples_per_second"] > 0 and row["peak_memory"] is not None for row in rows)
