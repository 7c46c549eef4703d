"""The scripts in `benchmarks/`: they can be imported, and variants compute the same results."""

import argparse
import importlib
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from associative_transformer.interface import UserError
from associative_transformer.models.ait import AIT_SMALL
from associative_transformer.models.brims import BRIMsConfig
from associative_transformer.recipes import RECIPES
from making.commands import MODEL, make_images
from making.official_code import write_hopfield, write_official

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "benchmarks").glob("*.py"))
SCRIPTS = [path.name for path in FILES if "def main(" in path.read_text()]  # not their parts


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        name.removesuffix(".py"), ROOT / "benchmarks" / name
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, *arguments: object) -> list[list[str]]:
    """Run a script and return the cells of the tables that it prints."""
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / name, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    cells = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if not row[0].startswith("---")]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_can_be_imported_and_its_docstring_and_docs_quote_its_command(
    name: str,
) -> None:
    module = load(name)
    command = f"python benchmarks/{name}"
    assert callable(module.main)
    assert command in (module.__doc__ or "")
    pages = [page.read_text() for page in (ROOT / "docs").rglob("*.md")]
    assert any(command in page for page in pages)


@torch.no_grad()
def test_the_variants_of_brims_that_are_compared_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    script = load("brims.py")
    monkeypatch.setattr(script.BRIMs, "compile", lambda model: None)  # takes minutes
    plain, *others = script.build_variants(BRIMsConfig(resolution=3)).values()
    images = torch.rand(2, 3, 32, 32)
    logits = plain.eval()(images)[0]
    assert len(others) == 4
    assert all(torch.allclose(other.eval()(images)[0], logits, atol=1e-5) for other in others)


@torch.no_grad()
def test_the_variants_of_the_relation_network_that_are_compared_agree(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = load("relation_network.py")
    monkeypatch.setattr(script, "BATCH", 2)
    answers = []
    for variant in script.build_variants().values():
        torch.manual_seed(0)  # the same dropout
        answers.append(variant())
    assert all(torch.allclose(other, answers[0], atol=1e-5) for other in answers[1:])


# --- throughput.py ---


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return make_images(tmp_path / "set")


SMALL = f"--data.image-size 16 --model.image-size 16 --model.num-classes 2 {MODEL}".split()


@pytest.mark.thorough
@pytest.mark.slow
def test_two_versions_train_in_turn(images: Path, tmp_path: Path) -> None:
    flags = ["--source", images, "--baseline", "HEAD", "--rounds", 1, "--seconds", 0]
    result = tmp_path / "rates.json"
    recipe = ["cifar10-ait-192", *flags, "--json", result, "--", "--train.batch-size", 8]
    recipe += ["--train.epochs", 10]  # too few for compilation to pay off
    header, *rows = run("throughput.py", "train", *recipe, *SMALL)
    assert header == ["recipe", "version", "images/s", "times baseline", "rounds"]
    assert [row[:2] for row in rows] == [["cifar10-ait-192", "now"], ["cifar10-ait-192", "HEAD"]]
    rates = json.loads(result.read_text())["rates"]["cifar10-ait-192"]
    assert {version: len(rounds) for version, rounds in rates.items()} == {"now": 1, "HEAD": 1}
    assert all(rate > 0 for rounds in rates.values() for rate in rounds)
    assert str(images) not in result.read_text()


@pytest.mark.thorough
@pytest.mark.slow
def test_prediction_is_compared_with_the_baseline_and_with_torchvision(images: Path) -> None:
    flags = ["--source", images, "--baseline", "HEAD", "--rounds", 1, "--images", 4]
    _, *rows = run("throughput.py", "predict", "cifar10-ait-tiny", *flags, "--", *SMALL)
    assert [row[1] for row in rows] == ["now", "HEAD", "torchvision"]
    assert rows[1][3] == "1.00"
    assert all(float(row[2]) > 0 for row in rows)


def test_the_time_to_score_is_that_of_all_test_images(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load("throughput.py")
    evaluate = importlib.import_module("associative_transformer.evaluate")
    monkeypatch.setattr(evaluate, "evaluate_split", evaluate.evaluate_split)  # restored at the end
    monkeypatch.setattr(sys, "argv", sys.argv)
    done = script.time_scoring()
    copy = shutil.copytree(undisturbed, tmp_path / "run")
    script.run_ait("eval", copy)
    assert done["images"] == 60
    assert 0 < done["seconds"] < 60


def test_a_measurement_of_the_wrong_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load("throughput.py")
    monkeypatch.setitem(script.TASKS, "train", lambda: 1.0)
    task = {"name": "train", "values": [], "output": str(tmp_path / "rate.json")}
    script.run_task({**task, "source": str(ROOT / "src")})
    assert (tmp_path / "rate.json").read_text() == "1.0"
    with pytest.raises(SystemExit, match=r"imported .*, which is not in"):
        script.run_task({**task, "source": str(tmp_path)})


def test_the_narrow_recipes_are_written_as_options_of_the_small_ones() -> None:
    script = load("throughput.py")
    options = argparse.Namespace(source="copy", passed=["--train.batch-size", "8"])
    written = script.write_recipe("cifar10-vit-192", options)
    name = written.index("--name")  # of the folder
    assert written[:name] == [
        *("cifar10-vit-small", "--model.embed-dim", "192", "--model.num-heads", "3"),
    ]
    assert written[name + 2 :] == ["--data.source", "copy", "--train.batch-size", "8"]
    assert set(script.CHANGES) | set(script.CHANGES.values()) <= set(RECIPES)


# --- official.py ---

NARROW = replace(AIT_SMALL, embed_dim=128, num_heads=2)


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Return the script; whatever it changes is restored at the end."""
    monkeypatch.setattr(torch.Tensor, "cuda", torch.Tensor.cuda)
    monkeypatch.setattr(torch.nn.Module, "cuda", torch.nn.Module.cuda)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield load("official.py")
    for name in ("MHA", "vit_hn", "hflayers"):
        sys.modules.pop(name, None)


def test_our_logits_are_those_of_a_checkout_with_the_same_weights(
    official: ModuleType, tmp_path: Path
) -> None:
    official.ignore_cuda()
    folder, package = write_official(tmp_path / "code"), write_hopfield(tmp_path / "hopfield")
    assert official.compare_logits(folder, package, NARROW) < 1e-4
    loss, correct = official.prepare_official(folder, package, NARROW, 4, "bfloat16")()
    assert loss > 0
    assert 0 <= correct <= 4


@pytest.mark.parametrize("missing", ["hflayers", "MHA"])
def test_a_missing_part_of_the_official_code_is_named_in_one_sentence(
    missing: str, official: ModuleType, tmp_path: Path
) -> None:
    folder = write_official(tmp_path / "code")
    if missing == "MHA":
        (folder / "MHA.py").unlink()
    with pytest.raises(UserError, match=f"No module named '{missing}'.*: pass the folder"):
        official.build_official(folder, None, NARROW)


@pytest.mark.thorough
@pytest.mark.slow
def test_the_official_step_and_ours_are_measured_in_both_precisions(tmp_path: Path) -> None:
    folder, package = write_official(tmp_path / "code"), write_hopfield(tmp_path / "hopfield")
    sizes = ["--embed-dim", 128, "--batch-size", 2, "--rounds", 1]
    header, *rows = run("official.py", folder, "--hopfield", package, *sizes)
    assert header[:2] == ["code, precision", "step, ms"]
    codes = [f"{code}, {precision}" for precision in ("float32", "bfloat16") for code in CODES]
    assert [row[0] for row in rows] == codes
    assert all(float(cell) > 0 for row in rows for cell in row[1:])


CODES = ("official", "ours")


# --- scaling_law.py ---


def test_slopes_of_a_law_are_fitted_to_the_three_largest_values() -> None:
    script = load("scaling_law.py")
    points = [script.Sizes(T=4**i, M=32, S=8, k=16, E=8) for i in range(4, 9)]
    costs = {p: script.Cost(1e-6 * p.T**1.5, 1e-5 * p.T**0.5) for p in points}
    costs[points[0]] = script.Cost(1.0, 0.1)  # overhead
    slopes = script.fit("read", "T", costs)
    assert slopes.fitted == [4**6, 4**7, 4**8]
    exponents = (slopes.seconds, slopes.seconds_on_paper, slopes.memory, slopes.memory_on_paper)
    assert exponents == pytest.approx((1.5, 1.0, 0.5, 1.0))


def test_memory_too_small_to_measure_is_left_out_of_a_slope() -> None:
    script = load("scaling_law.py")
    points = [script.Sizes(T=T, M=4, S=2, k=16, E=8) for T in (64, 128, 256)]
    few = {p: script.Cost(1.0, memory) for p, memory in zip(points, (0.0, 0.0, 0.5), strict=True)}
    assert math.isnan(script.fit("write", "T", few).memory)
    more = few | {points[1]: script.Cost(1.0, 0.25)}
    assert script.fit("write", "T", more).memory == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("part", "varied", "seconds", "memory"),
    [
        ("write", "T", 1.0, 0.0),  # from 65,536 tokens on
        ("write", "S", 1.0, 1.0),
        ("read", "M", 1.0, None),
        ("read", "S", 0.0, 0.0),
        ("read", "k", 0.0, 0.0),
        ("step", "T", 1.0, 1.0),
        ("step", "S", None, 0.0),
    ],
)
def test_the_orders_on_paper_have_their_known_slopes(
    part: str, varied: str, seconds: float | None, memory: float | None
) -> None:
    script = load("scaling_law.py")
    values = script.VALUES[varied]
    points = [script.Sizes(**script.BASE | {"E": 192, varied: value}) for value in values]
    slopes = script.fit(part, varied, dict.fromkeys(points, script.Cost(1.0, 1.0)))
    assert slopes.seconds == slopes.memory == 0.0
    if seconds is not None:
        assert slopes.seconds_on_paper == pytest.approx(seconds, abs=0.03)
    if memory is not None:
        assert slopes.memory_on_paper == pytest.approx(memory, abs=0.03)


@pytest.mark.thorough
@pytest.mark.slow
def test_time_and_memory_are_measured_for_every_size(tmp_path: Path) -> None:
    result = tmp_path / "slopes.json"
    rows = run("scaling_law.py", "--small", "--rounds", 1, "--json", result)
    slopes = rows.index(next(row for row in rows if row[1] == "varied"))
    assert [row[0] for row in rows[1:slopes]] == ["write", "write", "read", "read", "step", "step"]
    assert [row[1] for row in rows[slopes + 1 :]] == ["T", "M", "S", "k"] * 3
    assert len(json.loads(result.read_text())["rows"]) == 6
