"""The ablations of AiT-Small: each takes one part away, on all three sets of Table 1.

`ait train cifar10-ait-small-without-bottleneck`, `ait run-table ablations`, `ait table ablations`.
Without memory and workspace AiT-Small is ViT-Small, and the published averages of the two are
equal: that row is the recipe of ViT-Small.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from associative_transformer.experiment import Experiment
from associative_transformer.models.ait import AiTConfig


class Ablation(NamedTuple):
    """A row of the paper's table."""

    title: str
    recipe: str  # after the name of the set
    average: float  # published, over the three sets, in percent


def _model(**changes: Any) -> Callable[[AiTConfig], AiTConfig]:  # noqa: ANN401
    return lambda model: replace(model, **changes)


def _workspace(**changes: Any) -> Callable[[AiTConfig], AiTConfig]:  # noqa: ANN401
    return lambda model: replace(model, workspace=replace(model.workspace, **changes))


# fmt: off
ROWS = [  # published: the CVPR version
    Ablation("AiT-Small",          "ait-small",                        79.70),
    Ablation("w/o bottleneck",     "ait-small-without-bottleneck",     72.75),
    Ablation("w/o self-attention", "ait-small-without-self-attention", 73.31),
    Ablation("w/o memory",         "vit-small",                        77.40),
    Ablation("w/o Hopfield",       "ait-small-without-hopfield",       78.48),
    Ablation("w/o balance loss",   "ait-small-without-balance-loss",   78.68),
    Ablation("reset memory",       "ait-small-reset-memory",           79.12),
]
CHANGES = {  # what makes AiT-Small the model of a row; the other rows stand in Table 1
    "ait-small-without-bottleneck":     _workspace(bottleneck=None),
    "ait-small-without-self-attention": _model(use_self_attention=False),
    "ait-small-without-hopfield":       _model(read="cross_attention"),
    "ait-small-without-balance-loss":   _workspace(balance_weight=0.0),
    "ait-small-reset-memory":           _workspace(reset_each_epoch=True),
}
# fmt: on


def ablate(recipe: Experiment) -> list[Experiment]:
    """Give the ablations of a recipe of AiT-Small."""
    if not isinstance(recipe.model, AiTConfig):
        raise ValueError(f"{recipe.name} has no AiT to take parts from")
    name = recipe.name.removesuffix("ait-small")
    return [
        replace(recipe, name=f"{name}{row}", model=change(recipe.model))
        for row, change in CHANGES.items()
    ]
