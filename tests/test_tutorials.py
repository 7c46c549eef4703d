"""The tutorials of the docs: all their blocks run in order, with small models on small data."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from associative_transformer import cli
from making.commands import make_documented_images

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SMALL = shlex.split(
    "--train.epochs 1 --train.batch-size 8 --train.device cpu "
    "--model.embed-dim 32 --model.depth 1 --model.num-heads 2 --model.head-dim 16"
)
FEW = shlex.split("--data.num-train 16 --data.num-test 8")

pytestmark = pytest.mark.docs


def make_small(words: list[str]) -> list[str]:
    """Return a command with options that make it take seconds."""
    if words[1] == "train":
        return [*words, *SMALL, *([] if "--data.source" in words else FEW)]
    return [*words, "--time", "1s"] if words[1] == "fit" else words


def run_block(language: str, block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if language == "python":
        exec(compile(block, "block", "exec"), {"__name__": "__main__"})
        return
    for line in block.splitlines():
        words = shlex.split(line, comments=True)
        assert words[0] == "ait", "only commands of this package"
        if words[1] == "export":
            pytest.importorskip("onnxscript")
        monkeypatch.setattr(sys, "argv", make_small(words))
        assert cli.main() == 0, line
        if words[1] == "train":  # the commands that follow name the run without overrides
            (folder,) = Path("runs").glob(f"{words[2]}+*")
            folder.rename(Path("runs", words[2]))


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.name)
def test_the_blocks_of_a_tutorial_run_one_after_another(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_documented_images(tmp_path)
    blocks = BLOCK.findall(page.read_text())
    assert blocks
    for language, block in blocks:
        run_block(language, block, monkeypatch)
