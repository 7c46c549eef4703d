"""Trained runs that the tests of several commands share."""

import shutil
import sys
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

from making.commands import IMAGES, QUESTIONS, TRIANGLE, make_images


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return `images` and the complete runs `triangle/0`, `colors/0` and `asked/0`."""
    main = import_module("associative_transformer.cli").main  # after shape checks are switched on
    root = tmp_path_factory.mktemp("trained")
    images = make_images(root / "images")
    with pytest.MonkeyPatch.context() as patch:
        for name, recipe in (
            ("triangle", TRIANGLE),
            ("colors", [*IMAGES, "--data.source", str(images)]),
            ("asked", QUESTIONS),
        ):
            arguments = ["ait", "train", *recipe, "--name", name, "--runs", str(root)]
            patch.setattr(sys, "argv", arguments)
            assert main() == 0
    return root


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of `trained`, without checkpoints, that a test may change."""
    ignored = shutil.ignore_patterns("checkpoint")
    return shutil.copytree(trained, tmp_path / "trained", ignore=ignored)


@pytest.fixture
def picture(trained: Path, tmp_path: Path) -> Path:
    """Return the third test picture of the run `asked`, as a file."""
    experiment = import_module("associative_transformer.experiment")
    clevr = import_module("associative_transformer.data.sort_of_clevr")
    config = experiment.load_experiment(trained / "asked" / "0" / "experiment.yaml").data
    drawn = clevr.draw_pictures(clevr.generate_items(config, clevr.TEST).scenes)[2]
    Image.fromarray(drawn.transpose(1, 2, 0)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"
