"""Speed and memory: turns, warm-up, arithmetic, and what the command writes."""

import json
import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from associative_transformer import bench
from associative_transformer.bench import (
    Measured,
    measure,
    measure_matrix_peak,
    measure_memory,
    prepare,
    random_batch,
    time_in_turn,
)
from associative_transformer.data import SortOfClevrConfig, TriangleConfig
from associative_transformer.experiment import Experiment, TrainConfig
from associative_transformer.interface import UserError
from associative_transformer.models import ConvMLPConfig, ViTConfig, count_operations
from associative_transformer.recipes import RECIPES
from conftest import Ait, assert_refused

CPU = torch.device("cpu")
VIT = ViTConfig(
    image_size=64,
    patch_size=32,
    num_channels=1,
    num_classes=2,
    embed_dim=16,
    num_heads=2,
    head_dim=8,
)
TRAIN = TrainConfig(batch_size=4, device="cpu", precision="float32")
SMALL = Experiment("small", TriangleConfig(channels=1), VIT, TRAIN)
ASKED = Experiment(
    "asked",
    SortOfClevrConfig(),
    ConvMLPConfig(conv_dim=2, hidden_dim=4),
    replace(TRAIN, batch_size=3),
)


# --- turns ---


class Clock:
    """A clock that only moves when a function runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.calls: list[str] = []
        monkeypatch.setattr(bench.time, "perf_counter", lambda: self.now)

    def form(self, name: str, seconds: list[float]) -> Callable[[], None]:
        """Make a function that takes these seconds, one call after another."""
        left = iter(seconds)

        def run() -> None:
            self.calls.append(name)
            self.now += next(left)

        return run


def test_the_forms_take_turns_and_the_first_two_rounds_do_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    forms = {"a": clock.form("a", [64.0, 32.0, 1.0, 2.0, 4.0])}
    forms["b"] = clock.form("b", [64.0, 32.0, 0.5, 0.25, 8.0])
    assert time_in_turn(forms, 3, CPU) == {"a": [1.0, 2.0, 4.0], "b": [0.5, 0.25, 8.0]}
    assert clock.calls == ["a", "b"] * 5


def test_a_gpu_is_waited_for_before_and_after_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    wait = clock.form("wait", [1.0] * 99)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: wait())
    form = clock.form("a", [10.0] * 3)
    # what the wait after a call takes is part of it, what was under way before is not
    assert time_in_turn({"a": form}, 1, torch.device("cuda")) == {"a": [11.0]}
    assert clock.calls == ["wait", "a", "wait"] * 3


# --- what is timed ---


@pytest.mark.parametrize("experiment", [SMALL, ASKED], ids=lambda e: e.name)
def test_a_batch_is_made_up_in_the_size_that_the_model_takes(experiment: Experiment) -> None:
    images, questions, labels = random_batch(experiment, CPU)
    model, size = experiment.model, experiment.train.batch_size
    assert images.shape == (size, model.num_channels, model.image_size, model.image_size)
    assert 0 <= images.min() < images.max() <= 1
    if model.question_dim:
        assert questions is not None
        assert questions.shape == (size, model.question_dim)
    else:
        assert questions is None
    assert labels.shape == (size,)
    assert 0 <= labels.min() <= labels.max() < model.num_classes


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The models that are built."""
    models: list[nn.Module] = []

    def build(config: object) -> nn.Module:
        models.append(build_model(config))
        return models[-1]

    build_model = bench.build_model
    monkeypatch.setattr(bench, "build_model", build)
    return models


@pytest.mark.parametrize("experiment", [SMALL, ASKED], ids=lambda e: e.name)
def test_a_step_trains_and_inference_does_not(
    experiment: Experiment, built: list[nn.Module]
) -> None:
    step, infer = prepare(experiment, "step"), prepare(experiment, "infer")
    trained, used = built
    before = [[p.clone() for p in model.parameters()] for model in built]
    step()
    first, second = infer(), infer()
    same = [
        all(map(torch.equal, old, model.parameters()))
        for old, model in zip(before, built, strict=True)
    ]
    assert same == [False, True]
    assert trained.training
    assert torch.equal(first.logits, second.logits)  # without dropout
    assert not first.logits.requires_grad
    assert not used.training


def test_precision_and_compilation_are_those_of_the_experiment(
    built: list[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    assert prepare(SMALL, "infer")().logits.dtype == torch.float32
    prepare(SMALL, "step")
    assert compiled == []
    train = replace(TRAIN, precision="bfloat16", compile=True)
    infer = prepare(replace(SMALL, train=train), "infer")
    prepare(replace(SMALL, train=train), "step")
    assert infer().logits.dtype == torch.bfloat16
    assert compiled == built[2:]


# --- figures ---


@pytest.mark.parametrize(("what", "passes"), [("step", 3), ("infer", 1)])
def test_figures_follow_from_the_median_of_the_rounds(
    what: str, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"small": [9.0, 2.0, 1.0], "asked": [0.5, 0.5, 8.0]}

    def time(forms: dict[str, object], rounds: int, device: torch.device) -> dict[str, Any]:
        assert (list(forms), rounds, device.type) == (["small", "asked"], 3, "cpu")
        return given

    monkeypatch.setattr(bench, "time_in_turn", time)
    monkeypatch.setattr(bench, "measure_matrix_peak", lambda experiment: 1e9)
    monkeypatch.setattr(bench, "measure_memory", lambda experiment, what: len(what) / 8)
    small, asked = measure([SMALL, ASKED], what, 3)
    assert (small.name, small.milliseconds, small.samples_per_second) == ("small", 2_000.0, 2.0)
    assert small.peak_share == pytest.approx(passes * count_operations(VIT) * 4 / 2.0 / 1e9)
    assert (asked.name, asked.milliseconds, asked.samples_per_second) == ("asked", 500.0, 6.0)
    share = passes * count_operations(ASKED.model) * 3 / 0.5 / 1e9
    assert asked.peak_share == pytest.approx(share)
    assert small.peak_memory == asked.peak_memory == len(what) / 8


def test_two_small_models_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "CPU_MATRIX_SIZE", 64)
    monkeypatch.setattr(bench, "measure_memory", bench._peak_memory)  # here, not on its own
    measured = measure([SMALL, ASKED], "step", 2)
    assert [row.name for row in measured] == ["small", "asked"]
    for row, size in zip(measured, (4, 3), strict=True):
        assert row.milliseconds > 0
        assert row.samples_per_second == pytest.approx(1e3 * size / row.milliseconds)
        assert 0.05 < row.peak_memory < 100  # GiB: no KiB, no bytes
        assert row.peak_share > 0


def test_the_matrix_peak_is_that_of_the_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []

    def time(forms: dict[str, Any], rounds: int, device: torch.device) -> dict[str, Any]:
        ((name, product),) = forms.items()
        shapes.append((product().shape, product().dtype))
        return {name: [0.5, 0.25, 1.0]}

    monkeypatch.setattr(bench, "CPU_MATRIX_SIZE", 8)
    monkeypatch.setattr(bench, "time_in_turn", time)
    assert measure_matrix_peak(SMALL) == 2 * 8**3 / 0.25
    half = replace(SMALL, train=replace(TRAIN, precision="bfloat16"))
    measure_matrix_peak(half)
    assert shapes == [((8, 8), torch.float32), ((8, 8), torch.bfloat16)]


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_its_own() -> None:
    before = measure_memory(SMALL, "step")
    np.ones(2**26).sum()  # half a GiB here
    after = measure_memory(SMALL, "step")
    assert after == pytest.approx(before, abs=0.1)
    large = replace(SMALL, train=replace(TRAIN, batch_size=16_384))  # 0.25 GiB of pixels
    assert measure_memory(large, "infer") > before + 0.25


def die(experiment: Experiment, what: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_process_that_is_killed_for_its_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_peak_memory", die)
    with pytest.raises(UserError, match=r"memory of small was killed: lower --batch-size"):
        measure_memory(SMALL, "step")


# --- the command ---

Calls = list[tuple[list[Experiment], str, int]]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What would be measured, without measuring it: each twice as slow as the one before."""
    calls: Calls = []

    def note(experiments: list[Experiment], what: str, rounds: int) -> list[Measured]:
        calls.append((experiments, what, rounds))
        return [
            Measured(e.name, 12.34 * 2**i, 5_186.4 / 2**i, 1.5, 0.256 / 2**i)
            for i, e in enumerate(experiments)
        ]

    monkeypatch.setattr("associative_transformer.commands.bench.measure", note)
    return calls


def test_recipes_are_measured_as_the_options_say(ait: Ait, measured: Calls) -> None:
    assert ait("bench", "infer").code == 0
    flags = "cifar10-luna-lra triangle-brims --batch-size 8 --rounds 3"
    flags += " --precision bfloat16 --device cpu --compile"
    assert ait("bench", "step", *flags.split()).code == 0
    (usual, what, rounds), (chosen, other_what, other_rounds) = measured
    assert [e.name for e in usual] == ["cifar10-vit-small", "cifar10-ait-small"]
    assert (what, rounds, other_what, other_rounds) == ("infer", 10, "step", 3)
    for experiment in usual:
        train = replace(RECIPES[experiment.name].train, batch_size=64)
        assert experiment == replace(RECIPES[experiment.name], train=train)
    changes = {"batch_size": 8, "precision": "bfloat16", "device": "cpu", "compile": True}
    assert [e.name for e in chosen] == ["cifar10-luna-lra", "triangle-brims"]
    for experiment in chosen:
        train = replace(RECIPES[experiment.name].train, **changes)
        assert experiment == replace(RECIPES[experiment.name], train=train)


CELLS = [
    ["cifar10-vit-small", "12.3", "5,186", "1.00", "1.50", "26 %"],
    ["cifar10-ait-small", "24.7", "2,593", "2.00", "1.50", "13 %"],
]


@pytest.mark.parametrize(("form", "bar"), [("markdown", "|"), ("terminal", "│")])
def test_a_table_compares_each_recipe_with_the_first(
    form: str, bar: str, ait: Ait, measured: Calls
) -> None:
    said = ait("bench", "step", "--format", form, "--device", "cpu")
    assert said.code == 0
    lines = [line for line in said.out.splitlines() if "cifar10" in line]
    assert [[cell.strip() for cell in line.split(bar)[1:-1]] for line in lines] == CELLS
    words = (
        f"Training step on {os.uname().machine}, {torch.get_num_threads()} threads, torch ",
        *("recipe", "times the first", "batch 64, auto", "Medians of 10 rounds"),
    )
    text = " ".join(re.split(r"[\s│┃]+", said.out))
    assert [word for word in words if word not in text] == []
    assert ("## " in said.out) == (form == "markdown")
    assert "Prediction on" in ait("bench", "infer").out


def test_json_has_the_numbers_the_options_and_the_environment(
    ait: Ait, measured: Calls, tmp_path: Path
) -> None:
    command = ["bench", "step", "--format", "json", "--device", "cpu", "--output", "b.json"]
    said = ait(*command)
    assert (said.code, said.out) == (0, "")
    written = json.loads((tmp_path / "b.json").read_text())
    assert written["rows"][1] == {
        "name": "cifar10-ait-small",
        "milliseconds": 24.68,
        "samples_per_second": 2_593.2,
        "peak_memory": 1.5,
        "peak_share": 0.128,
    }
    options = written["options"]
    assert (options["what"], options["batch_size"], options["rounds"]) == ("step", 64, 10)
    assert options["recipes"] == ["cifar10-vit-small", "cifar10-ait-small"]
    assert written["device"] == os.uname().machine
    assert written["threads"] == torch.get_num_threads()
    assert torch.__version__.startswith(written["packages"]["torch"])
    assert {"python", "platform", "cuda", "commit"} <= set(written)
    assert json.loads(ait(*command[:-2]).out)["rows"] == written["rows"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("", ["step", "infer", "required"]),
        ("train", ["train", "step", "infer"]),
        ("step cifar10-vit-smal", ["no recipe 'cifar10-vit-smal'", "cifar10-vit-small"]),
        ("step --batch-size 0", ["batch_size", "at least 1", "0"]),
        ("step --rounds 0", ["rounds", "at least 1", "0"]),
        ("step --precision float16", ["--precision", "float16", "bfloat16"]),
        ("step --device quantum", ["--device", "quantum"]),
        ("step --format html", ["--format", "html", "json"]),
        ("step --output missing/b.json", ["no folder missing", "--output"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_refused_before_anything_is_measured(
    flags: str, words: list[str], ait: Ait, measured: Calls
) -> None:
    assert_refused(ait("bench", *flags.split()), *words)
    assert measured == []


@pytest.mark.slow
def test_recipes_are_measured_from_the_command_line(ait: Ait) -> None:
    recipes = ["sort-of-clevr-cnn-mlp-tiny", "cifar10-ait-tiny"]
    flags = ["--batch-size", "2", "--rounds", "1", "--device", "cpu", "--format", "json"]
    said = ait("bench", "step", *recipes, *flags)
    assert said.code == 0, said.err
    rows = json.loads(said.out)["rows"]
    assert [row["name"] for row in rows] == recipes
    assert all(row["milliseconds"] > 0 and 0.1 < row["peak_memory"] < 10 for row in rows)
