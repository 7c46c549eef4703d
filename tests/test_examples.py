"""The scripts in examples/: from one's own images to a file that runs without this package."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from making.commands import make_images

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def test_the_page_shows_the_script_that_runs_the_file() -> None:
    code = (EXAMPLES / "classify_onnx.py").read_text().partition("import json")[2]
    page = (ROOT / "docs" / "how-to" / "elsewhere.md").read_text()
    shown = re.search(r"```py\n(.*?)```", page, re.DOTALL)
    assert shown is not None
    assert code.strip() in shown[1]


@pytest.mark.interop
@pytest.mark.slow
def test_the_walk_from_images_to_a_file_without_this_package(tmp_path: Path) -> None:
    """This installs PyTorch in a fresh environment, which takes minutes."""
    pytest.importorskip("onnxruntime")
    base = ["train", "cifar10-ait-image-tiny", "--data.limit", "8", "--train.epochs", "1"]
    base += ["--train.batch-size", "8", "--name", "base", "--runs", "runs"]
    few = make_images(tmp_path / "few")
    base += ["--data.source", str(few), "--model.num-classes", "2"]
    ait = [sys.executable, "-m", "associative_transformer"]
    subprocess.run([*ait, *base], cwd=tmp_path, check=True)
    images = make_images(tmp_path / "images", ("blue", "green", "red"), ("blue", "green", "red"))
    options = ["--train.epochs", "20", "--train.batch-size", "12", "--data.augment", "none"]
    done = subprocess.run(
        ["bash", EXAMPLES / "own_images.sh", "runs/base/0", images, "out", *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    predicted = next(line for line in lines if line.startswith(str(images)))
    assert predicted.split(",")[1] == lines[-1] == "blue"  # the class of the first test image
    names = {"README.md", "config.json", "model.safetensors", "priors.png"}
    assert {path.name for path in (tmp_path / "out" / "model").iterdir()} == names
