"""Commands of `ait` and what they leave behind."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

MODEL = (
    "--model.embed-dim 16 --model.depth 1 --model.num-heads 2 --model.head-dim 8 "
    "--model.workspace.num-priors 4 --model.workspace.prior-dim 8 "
    "--model.workspace.num-heads 2 --model.workspace.bottleneck 16 --train.device cpu"
)


OF_TRIANGLE = "--data.num-train 64 --data.num-test 20 --train.batch-size 16 --train.epochs 2"


OF_IMAGES = (
    "--data.num-workers 0 --data.image-size 16 --model.image-size 16 --model.patch-size 8 "
    "--model.num-classes 2 --train.batch-size 8 --train.epochs 2"
)


TRIANGLE = f"triangle-ait-tiny {OF_TRIANGLE} {MODEL}".split()


IMAGES = f"cifar10-ait-tiny {OF_IMAGES} {MODEL}".split()


class Said(NamedTuple):
    """What a command of `ait` left behind."""

    code: int
    out: str
    err: str  # in one line, without the boxes around it


Ait = Callable[..., Said]


Child = Callable[[str], Path]


def assert_refused(said: Said, *words: object) -> None:
    assert said.code == 2
    assert said.out == ""
    assert [word for word in words if str(word) not in said.err] == []
