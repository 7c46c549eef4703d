"""The commands and Python blocks in the README and the docs work.

The quick start runs with small models on generated images; commands that would download images
are only parsed. `test_tutorials.py` runs the tutorials.
"""

import json
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from associative_transformer import cli
from associative_transformer.recipes import RECIPES
from making.commands import make_documented_images
from making.plant import put_result, result_of

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.parent.name != "tutorials"),
]
SMALL = (
    "--train.epochs 1 --train.batch-size 8 --model.embed-dim 16 --model.depth 1 --train.device cpu"
)

OPTIONAL = ("timm", "transformers", "lightning", "peft", "onnxruntime", "torchao")
"""Libraries whose blocks run only if they are installed."""

pytestmark = pytest.mark.slow


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path, program: str) -> list[str]:
    lines = "\n".join(blocks(page, "sh")).splitlines()
    without_comments = [line.partition("#")[0].strip() for line in lines]
    return [line for line in without_comments if line.split()[:1] == [program]]


RUN_BLOCKS = """
import json, sys
for name, block in json.load(sys.stdin):
    exec(compile(block, name, "exec"), {"__name__": "__main__"})
"""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_blocks_run(page: Path, tmp_path: Path) -> None:
    missing = [name for name in OPTIONAL if find_spec(name) is None]
    named = [
        (f"block {i} of {page.name}", block)
        for i, block in enumerate(blocks(page, "python"))
        if not any(re.search(rf"(import|from) {name}\b", block) for name in missing)
    ]
    if not named:
        pytest.skip("no block to run")
    done = subprocess.run(
        [sys.executable, "-c", RUN_BLOCKS],
        cwd=tmp_path,
        input=json.dumps(named),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_readme_has_examples_and_two_make_commands() -> None:
    assert len(blocks(PAGES[0], "python")) >= 2
    assert len(commands(PAGES[0], "ait")) >= 6
    assert [line.split()[1] for line in commands(PAGES[0], "make")] == ["demo", "test"]


@pytest.mark.parametrize("target", ["demo", "test", "check"])
def test_the_makefile_has_the_documented_targets(target: str) -> None:
    done = subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def run(line: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    return cli.main()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_training_command_can_be_parsed(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = RECIPES["cifar10-ait-tiny"]
    result, calls = put_result(tmp_path, result_of(recipe)), []
    monkeypatch.setattr(
        "associative_transformer.training.loop.train",
        lambda *args, **options: calls.append(args) or result,
    )
    lines = [line for line in commands(page, "ait") if line.startswith("ait train")]
    assert [run(line, monkeypatch) for line in lines] == [0] * len(lines)
    assert len(calls) == len(lines)


def test_the_quick_start_of_the_readme_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_documented_images(tmp_path)
    lines = commands(PAGES[0], "ait")
    for line in sorted(lines, key=lambda line: not line.startswith("ait train")):
        if line.startswith("ait fit"):
            assert run(f"{line} --time 1s", monkeypatch) == 0, line
        elif not line.startswith("ait train"):
            assert run(line, monkeypatch) == 0, line
        elif "--data.source" in line or "sort-of-clevr" in line:  # the others would download
            few = "" if "--data.source" in line else " --data.num-train 8 --data.num-test 4"
            before = set((tmp_path / "runs").glob("*"))
            assert run(f"{line} {SMALL}{few}", monkeypatch) == 0, line
            (trained,) = set((tmp_path / "runs").iterdir()) - before
            trained.rename(tmp_path / "runs" / line.split()[2])  # the name without overrides
    assert (tmp_path / "runs/cifar10-ait-tiny/0/confusion.csv").exists()
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 3
    assert (tmp_path / "sort-of-clevr.png").exists()
    printed = capsys.readouterr().out
    assert "class_1,probability_1" in printed
    assert "pictures/0.png,is the red object in the left half," in printed
    assert "Relational reasoning on Sort-of-CLEVR" in printed
