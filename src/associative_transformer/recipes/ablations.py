"""The ablations of AiT-Small: each changes one part, on all three data sets of Table 1.

`ait train cifar10-ait-small-without-bottleneck`, `ait run-table ablations`, `ait table ablations`.
Without memory and workspace AiT-Small is ViT-Small, and the published averages of the two are
equal: that row shows the recipe of ViT-Small.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from associative_transformer.experiment import Experiment
from associative_transformer.models.ait import AiTConfig
from associative_transformer.recipes import classification


class Ablation(NamedTuple):
    """A row of the paper's table."""

    title: str
    average: float  # published, over the three data sets, in percent
    recipes: tuple[str, ...]  # one for each data set
    change: Callable[[AiTConfig], AiTConfig] | None = None  # None: a recipe of Table 1


def _model(**changes: Any) -> Callable[[AiTConfig], AiTConfig]:  # noqa: ANN401
    return lambda model: replace(model, **changes)


def _workspace(**changes: Any) -> Callable[[AiTConfig], AiTConfig]:  # noqa: ANN401
    return lambda model: replace(model, workspace=replace(model.workspace, **changes))


ROWS = [  # published: the CVPR version
    Ablation(
        "AiT-Small", 79.70, ("cifar10-ait-small", "cifar100-ait-small", "triangle-ait-small")
    ),
    Ablation(
        "w/o bottleneck",
        72.75,
        (
            "cifar10-ait-small-without-bottleneck",
            "cifar100-ait-small-without-bottleneck",
            "triangle-ait-small-without-bottleneck",
        ),
        _workspace(bottleneck=None),
    ),
    Ablation(
        "w/o self-attention",
        73.31,
        (
            "cifar10-ait-small-without-self-attention",
            "cifar100-ait-small-without-self-attention",
            "triangle-ait-small-without-self-attention",
        ),
        _model(use_self_attention=False),
    ),
    Ablation(
        "w/o memory", 77.40, ("cifar10-vit-small", "cifar100-vit-small", "triangle-vit-small")
    ),
    Ablation(
        "w/o Hopfield",
        78.48,
        (
            "cifar10-ait-small-without-hopfield",
            "cifar100-ait-small-without-hopfield",
            "triangle-ait-small-without-hopfield",
        ),
        _model(read="cross_attention"),
    ),
    Ablation(
        "w/o balance loss",
        78.68,
        (
            "cifar10-ait-small-without-balance-loss",
            "cifar100-ait-small-without-balance-loss",
            "triangle-ait-small-without-balance-loss",
        ),
        _workspace(balance_weight=0.0),
    ),
    Ablation(
        "reset memory",
        79.12,
        (
            "cifar10-ait-small-reset-memory",
            "cifar100-ait-small-reset-memory",
            "triangle-ait-small-reset-memory",
        ),
        _workspace(reset_each_epoch=True),
    ),
]


def _ablate(name: str, recipe: str, change: Callable[[AiTConfig], AiTConfig]) -> Experiment:
    """Return a recipe of AiT-Small, changed and under another name."""
    full = next(row for row in classification.ROWS if row.name == recipe).experiment
    if not isinstance(full.model, AiTConfig):
        raise ValueError(f"{recipe} does not train an AiT, so it has no ablations")
    return replace(full, name=name, model=change(full.model))


EXPERIMENTS = [
    _ablate(row.recipes[column], full, row.change)
    for column, full in enumerate(ROWS[0].recipes)
    for row in ROWS
    if row.change is not None
]
