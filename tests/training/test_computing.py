"""How a run computes: its precision, and whether its model is compiled."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from associative_transformer import compute
from associative_transformer.compute import choose_precision
from associative_transformer.evaluate import evaluate_split
from associative_transformer.experiment import load_experiment, save_experiment
from associative_transformer.recipes import find_recipe
from associative_transformer.runs.saved import load_run, load_test_split, read_run
from associative_transformer.training import computing
from associative_transformer.training.computing import choose_compilation
from associative_transformer.training.loop import train
from making.trained import EXPERIMENT, Steps, assert_same_outcome, train_to_the_end, vary

CPU = torch.device("cpu")
LONG = 100_000  # steps


class PlantedStep:
    """A step of planted durations, with a clock that shows them."""

    def __init__(
        self, plain: float, compiled: float, compiling: float, error: Exception | None = None
    ) -> None:
        self.plain, self.compiled, self.compiling, self.error = plain, compiled, compiling, error
        self.now, self.tried = 0.0, 0
        self.is_compiled, self.is_ready = False, False

    def try_out(self) -> None:
        self.tried += 1
        if self.is_compiled and self.error is not None:
            raise self.error
        self.now += self.compiled if self.is_compiled else self.plain
        if self.is_compiled and not self.is_ready:
            self.now += self.compiling
            self.is_ready = True

    def compile(self) -> None:
        self.is_compiled = True

    def undo_compile(self) -> None:
        self.is_compiled = False

    def choose(self, setting: compute.CompileSetting, num_steps: int) -> tuple[bool, str, str]:
        lines: list[str] = []
        chosen = choose_compilation(
            setting, self, self.try_out, num_steps, lines.append, lambda: self.now
        )
        assert chosen.is_on == self.is_compiled
        return chosen.is_on, chosen.reason, "\n".join(lines)


def test_a_long_run_is_compiled_if_that_saves_time_and_says_so() -> None:
    is_on, reason, lines = PlantedStep(0.4, 0.3, 60).choose("auto", LONG)
    assert is_on
    assert reason == "a step takes 300 ms instead of 400 ms; compiling took 60 s"
    assert lines == "compiling the model, which takes a minute or more"


@pytest.mark.parametrize("num_steps", [0, 3, 100, 1_400])  # 1,400 steps take 560 s
def test_a_short_run_is_not_compiled_and_hardly_tried(num_steps: int) -> None:
    step = PlantedStep(0.4, 0.3, 60)
    assert step.choose("auto", num_steps) == (False, "the run is too short for it to pay off", "")
    assert step.tried <= 1


@pytest.mark.parametrize(
    ("compiled", "num_steps"),
    [(4.1, LONG), (4.0, LONG), (3.0, 590)],  # slower; the same; 590 steps save 590 of 600 s
)
def test_a_run_is_not_compiled_if_that_does_not_pay_off(compiled: float, num_steps: int) -> None:
    is_on, reason, lines = PlantedStep(4.0, compiled, 600).choose("auto", num_steps)
    assert not is_on
    assert reason.startswith("it does not pay off: a step takes")
    assert lines


def test_a_run_is_compiled_if_that_just_pays_off() -> None:
    assert PlantedStep(4.0, 3.0, 600).choose("auto", 610)[0]


def test_on_compiles_a_short_run_too_and_off_compiles_nothing() -> None:
    assert PlantedStep(0.4, 0.5, 60).choose("on", 3)[:2] == (True, "compiling took 60 s")
    step = PlantedStep(0.4, 0.3, 60)
    assert step.choose("off", LONG) == (False, "--train.compile off", "")
    assert step.tried == 0


def failure() -> Exception:
    """Return what torch raises without a C++ compiler."""
    error = torch._inductor.exc.InvalidCxxCompiler()
    return torch._inductor.exc.InductorError(error, None)


@pytest.mark.parametrize("setting", ["auto", "on"])
def test_without_a_compiler_the_model_stays_as_it_is_and_one_line_says_so(setting: str) -> None:
    is_on, reason, _ = PlantedStep(0.4, 0.3, 60, failure()).choose(setting, LONG)
    assert not is_on
    assert reason.startswith("torch cannot compile here (")
    assert "C++ compiler" in reason
    assert "\n" not in reason


def test_other_errors_are_raised() -> None:
    with pytest.raises(RuntimeError, match="a fault of the model"):
        PlantedStep(0.4, 0.3, 60, RuntimeError("a fault of the model")).choose("auto", LONG)


@pytest.mark.parametrize(
    ("capabilities", "recipe", "expected", "why"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, "cifar10-ait-tiny", "bfloat16", "AMX-BF16"),
        ({"avx512_bf16": True}, "cifar10-ait-tiny", "bfloat16", "AVX512-BF16"),
        ({"avx512_bf16": False}, "cifar10-ait-tiny", "float32", "no instructions"),
        ({}, "cifar10-ait-tiny", "float32", "no instructions"),
        ({"avx512_bf16": True}, "cifar10-brims", "float32", "faster in float32"),
    ],
)
def test_precision_auto_follows_the_instructions_of_the_cpu_and_the_model(
    monkeypatch: pytest.MonkeyPatch,
    capabilities: dict[str, bool],
    recipe: str,
    expected: str,
    why: str,
) -> None:
    monkeypatch.setattr(compute, "CPU_BFLOAT16", ("amx_bf16", "avx512_bf16"))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    model = find_recipe(recipe).model
    choice = choose_precision("auto", CPU, model)
    assert choice.precision == expected
    assert why in choice.reason
    assert choose_precision("bfloat16", CPU, model).precision == "bfloat16"


@pytest.fixture
def with_bfloat16(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    def choose(has_bfloat16: bool) -> None:
        found = "AVX512-BF16" if has_bfloat16 else None
        monkeypatch.setattr(compute, "find_bfloat16", lambda device: found)

    return choose


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_a_run_keeps_its_precision_if_it_is_resumed_on_another_kind_of_machine(
    precision: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    with_bfloat16: Callable[[bool], None],
) -> None:
    with_bfloat16(precision == "bfloat16")
    train(EXPERIMENT, tmp_path / "undisturbed")
    prepare_step = computing.prepare_step

    def then_move(*arguments: Any) -> None:  # noqa: ANN401
        prepare_step(*arguments)
        with_bfloat16(precision != "bfloat16")

    monkeypatch.setattr("associative_transformer.training.loop.prepare_step", then_move)
    Steps(interrupts={4, 9}).install(monkeypatch)
    assert train_to_the_end(EXPERIMENT, tmp_path / "run") == 2
    assert_same_outcome(tmp_path / "run", tmp_path / "undisturbed")
    result = read_run(tmp_path / "run").result
    assert result is not None
    assert (result.precision, result.test_precision) == (precision, precision)


def test_a_model_is_scored_in_the_precision_of_its_run(
    tmp_path: Path, with_bfloat16: Callable[[bool], None]
) -> None:
    with_bfloat16(True)
    result = train(EXPERIMENT, tmp_path / "run")
    with_bfloat16(False)
    saved = load_run(tmp_path / "run")
    split = load_test_split(saved, None, CPU).test
    scores = evaluate_split(saved.model, split, 16, 2, saved.precision)
    assert scores.loss == result.test_loss
    assert evaluate_split(saved.model, split, 16, 2).loss != result.test_loss


@pytest.mark.thorough
@pytest.mark.compiled
def test_a_run_without_a_compiler_trains_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "no-such-compiler"))
    torch._inductor.cpp_builder.cpp_compiler_search.cache_clear()
    train(vary(compile="on"), tmp_path / "run")
    train(vary(compile="off"), tmp_path / "eager")
    first = capsys.readouterr().err.splitlines()
    assert "compiling the model" in first[0]
    assert "not compiled: torch cannot compile here" in first[1]
    results = [json.loads((tmp_path / n / "result.json").read_text()) for n in ("run", "eager")]
    assert results[0]["compiled"] is False
    assert results[0]["test_loss"] == results[1]["test_loss"]


def test_a_saved_boolean_is_read_as_the_setting_that_it_stood_for(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    save_experiment(EXPERIMENT, path)
    text = path.read_text()
    for value, setting in (("true", "on"), ("false", "off"), ("auto", "auto"), ("'on'", "on")):
        path.write_text(text.replace("compile: auto", f"compile: {value}"))
        assert load_experiment(path).train.compile == setting
