"""A new data set is one new file and its entry in data/__init__.py, as CONTRIBUTING.md says."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import associative_transformer
from associative_transformer.data import DATA_SETS, DataSetConfig

PACKAGE = Path(associative_transformer.__file__).parent

STRIPES = '''
"""Stripes: are they horizontal or vertical?"""

from dataclasses import dataclass, replace
from typing import Literal

import torch

from associative_transformer.data.augment import Preparation
from associative_transformer.data.batches import DataSet, HeldOut, Split
from associative_transformer.data.config import DataSetConfig, InputSize
from associative_transformer.data.loaders import ResidentLoader

CLASS_NAMES = ("horizontal", "vertical")


@dataclass(frozen=True)
class StripesConfig(DataSetConfig):
    """Generated images of 16x16 pixels."""

    kind: Literal["stripes"] = "stripes"
    """Name of this data set in a saved experiment."""
    num_images: int = 400
    """Training and test images each."""

    @property
    def input_size(self) -> InputSize:
        """16x16 pixels in RGB."""
        return InputSize(16, 3, question_dim=0)

    def load(self, device: torch.device) -> DataSet:
        """Generate both splits."""
        split = _generate(self, device)
        return DataSet(split, None, split, CLASS_NAMES)

    def load_test(self, device: torch.device) -> HeldOut:
        """Generate the test split."""
        return HeldOut(_generate(self, device), CLASS_NAMES)

    def shortened(self, num_images: int) -> "StripesConfig":
        """Return a version with `num_images` images in each split."""
        return replace(self, num_images=num_images)


def _generate(config: StripesConfig, device: torch.device) -> Split:
    items = torch.arange(config.num_images)
    stripes = (torch.arange(16) % 4 < 2).byte().mul(255).expand(16, 16)
    images = torch.stack([stripes.mT if item % 2 == 0 else stripes for item in items])
    loader = ResidentLoader(images[:, None], Preparation(config.mean, config.std, device=device))
    return Split(items % 2, items, loader)
'''

SCRIPT = """
import contextlib, io, json, sys
from pathlib import Path

from associative_transformer.cli import main
from associative_transformer.data import DATA_SETS
from associative_transformer.data.stripes import StripesConfig
from associative_transformer.experiment import Experiment, TrainConfig, load_experiment
from associative_transformer.models.vit import ViTConfig
from associative_transformer.recipes.budgets import shorten
from associative_transformer.training.loop import train

model = ViTConfig(
    image_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, head_dim=8, num_classes=2
)
experiment = Experiment("stripes", StripesConfig(), model, TrainConfig(lr=0.01, device="cpu"))
smoke = shorten(experiment, "smoke")
train(smoke, Path("run"))


def ait(*arguments):
    sys.argv = ["ait", *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main()
    return [code, out.getvalue()]


answers = {
    "num_images": smoke.data.num_images,
    "is_registered": StripesConfig in DATA_SETS,
    "is_read_back": load_experiment(Path("run/experiment.yaml")) == smoke,
    "eval": ait("eval", "run"),
    "predict": ait("predict", "run", "image.png"),
    "show": ait("show", "stripes", "--data.num-images", "3"),
    "source": ait("eval", "run", "--source", "elsewhere"),
}
Path("answers.json").write_text(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Register a data set in a copy of the package and use it there."""
    root = tmp_path_factory.mktemp("stripes")
    copy = root / "src" / PACKAGE.name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "data" / "stripes.py").write_text(STRIPES)
    table = copy / "data" / "__init__.py"
    text = table.read_text().replace(
        "\nAnyData = ",
        "\nfrom associative_transformer.data.stripes import StripesConfig"
        "\n\nAnyData = StripesConfig | ",
    )
    table.write_text(text)
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(root / "image.png")
    environment = os.environ | {"PYTHONPATH": str(root / "src")}
    subprocess.run([sys.executable, "-c", SCRIPT], cwd=root, env=environment, check=True)
    return root


@pytest.fixture(scope="module")
def answers(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "answers.json").read_text())


@pytest.mark.slow
def test_a_data_set_is_registered_by_its_entry_alone(answers: dict[str, Any]) -> None:
    assert answers["is_registered"] and answers["is_read_back"]


@pytest.mark.slow
def test_a_registered_data_set_trains_within_the_smoke_budget(
    answers: dict[str, Any], folder: Path
) -> None:
    assert answers["num_images"] == 40
    result = json.loads((folder / "run" / "result.json").read_text())
    assert (result["test_images"], result["classes"]) == (40, ["horizontal", "vertical"])
    (metrics,) = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(metrics)["loss"] > 0


@pytest.mark.slow
def test_a_registered_data_set_evaluates_predicts_and_shows(
    answers: dict[str, Any], folder: Path
) -> None:
    code, output = answers["eval"]
    assert code == 0 and "40" in output
    code, output = answers["predict"]
    header, row = output.splitlines()
    assert code == 0 and header.startswith("path,class_1") and "horizontal" in row
    assert answers["show"] == [0, "written: stripes.png\n"]
    with Image.open(folder / "stripes.png") as image:
        assert image.width > 100


@pytest.mark.slow
def test_a_registered_data_set_refuses_a_source_if_it_is_generated(
    answers: dict[str, Any],
) -> None:
    assert answers["source"][0] == 2


@pytest.mark.parametrize("data_set", DATA_SETS, ids=lambda data_set: data_set.__name__)
def test_the_properties_of_every_data_set_are_consistent(data_set: type[DataSetConfig]) -> None:
    for name, config in data_set.examples().items():
        assert name in (config.kind, config.display_name)
        size = config.input_size
        assert len(config.mean) == len(config.std) == size.num_channels
        assert bool(config.question_types) == bool(size.question_dim)
        assert config.item_noun == ("questions" if size.question_dim else "images")
        short = config.shortened(10)
        assert type(short) is data_set and short.input_size == size
        assert short.shortened(10) == short
        assert config.is_generated or config.with_storage() == config
