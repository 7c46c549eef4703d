"""Arguments and results of `ait` commands, and images to run them on.

This file imports nothing from the package, because conftest.py imports it before shape checks are
switched on.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

MODEL = (
    "--model.embed-dim 16 --model.depth 1 --model.num-heads 2 --model.head-dim 8 "
    "--model.workspace.num-priors 4 --model.workspace.prior-dim 8 "
    "--model.workspace.num-heads 2 --model.workspace.bottleneck 16 --train.device cpu"
)

TRIANGLE_OPTIONS = "--data.num-train 64 --data.num-test 20 --train.batch-size 16 --train.epochs 2"

IMAGES_OPTIONS = (
    "--data.num-workers 0 --data.image-size 16 --model.image-size 16 --model.patch-size 8 "
    "--model.num-classes 2 --train.batch-size 8 --train.epochs 2"
)

QUESTIONS_OPTIONS = (
    "--data.num-train 16 --data.num-test 6 --data.num-questions 4 --train.batch-size 16 "
    "--train.epochs 1"
)

TRIANGLE = f"triangle-ait-tiny {TRIANGLE_OPTIONS} {MODEL}".split()

IMAGES = f"cifar10-ait-tiny {IMAGES_OPTIONS} {MODEL}".split()

QUESTIONS = f"sort-of-clevr-ait-tiny {QUESTIONS_OPTIONS} --model.patch-size 25 {MODEL}".split()


class CommandResult(NamedTuple):
    """Exit code and output of a command of `ait`."""

    code: int
    out: str
    err: str  # in one line, without the frames that tyro draws


Ait = Callable[..., CommandResult]

Child = Callable[[str], Path]


def assert_refused(done: CommandResult, *words: object) -> None:
    """Assert that a command was refused with a message that contains all `words`."""
    assert done.code == 2
    assert done.out == ""
    assert [word for word in words if str(word) not in done.err] == []


def make_images(
    root: Path, train: tuple[str, ...] = ("blue", "red"), test: tuple[str, ...] = ("blue", "red")
) -> Path:
    """Write images to SPLIT/CLASS, each in the color of its class, or red."""
    colors = {"blue": 2, "red": 0, "green": 1}
    noise = np.random.default_rng(0)
    for split, classes, count in (("train", train, 12), ("test", test, 5)):
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = noise.integers(0, 60, size=(16, 16, 3), dtype=np.uint8)
                pixels[..., colors.get(name, 0)] += 150
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


def make_documented_images(root: Path) -> None:
    """Write images to the paths that commands in the docs name, such as PATH/TO/cifar10."""
    ten = [f"class {i}" for i in range(10)]
    _write_noise(root / "PATH/TO/cifar10/train", ten, 2)
    _write_noise(root / "PATH/TO/cifar10/test", ten, 1)
    _write_noise(root / "PATH/TO/IMAGES", ["a"], 3)
    _write_noise(root / "PATH/TO/FOLDER", ["cat", "dog"], 10)


def _write_noise(folder: Path, names: list[str], each: int) -> None:
    random = np.random.default_rng(0)
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(each):
            pixels = random.integers(256, size=(32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


def scores_of_kinds(text: str) -> dict[str, str]:
    """Return the line of the output with the score of each kind of question, by kind."""
    kind = re.compile(r"(?:.* )?((?:non-relational|binary|ternary)(?:/\w+)?|all)")
    return {match[1]: line for line in text.splitlines() if (match := kind.fullmatch(line))}
