"""The ablations of AiT-Small: each changes one part, on all three data sets of Table 1.

`ait train cifar10-ait-small-without-bottleneck`, `ait run-table ablations`, `ait table ablations`.
The published average without memory is that of ViT-Small: that row shows the recipe of ViT-Small,
which lacks the normalization behind the feed-forward too. The last two rows, which the paper does
not have, separate the two: AiT-Small whose tokens write but do not read, and ViT-Small with that
normalization.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from associative_transformer.experiment import Experiment
from associative_transformer.models import ModelConfig
from associative_transformer.models.ait import AiTConfig
from associative_transformer.recipes import classification


class Ablation(NamedTuple):
    """A row of the paper's table."""

    title: str
    average: float | None  # published, over the three data sets, in percent
    recipes: tuple[str, ...]  # one for each data set
    change: Callable[[ModelConfig], ModelConfig] | None = None  # None: a recipe of Table 1
    of: str = "ait-small"  # the recipe that is changed, without its data set


def _model(**changes: Any) -> Callable[[ModelConfig], ModelConfig]:  # noqa: ANN401
    return lambda model: replace(model, **changes)


def _workspace(**changes: Any) -> Callable[[ModelConfig], ModelConfig]:  # noqa: ANN401
    def change(model: ModelConfig) -> ModelConfig:
        if not isinstance(model, AiTConfig):
            raise ValueError(f"a model of kind {model.kind} has no workspace to change")
        return replace(model, workspace=replace(model.workspace, **changes))

    return change


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
    Ablation(
        "w/o read",
        None,
        (
            "cifar10-ait-small-without-read",
            "cifar100-ait-small-without-read",
            "triangle-ait-small-without-read",
        ),
        _model(read="none"),
    ),
    Ablation(
        "ViT + norm",
        None,
        ("cifar10-vit-small-norm", "cifar100-vit-small-norm", "triangle-vit-small-norm"),
        _model(use_output_norm=True),
        of="vit-small",
    ),
]


def _ablate(name: str, row: Ablation) -> Experiment:
    """Return the recipe that a row changes, on the data set of `name`, changed and renamed."""
    recipe = f"{name.partition('-')[0]}-{row.of}"
    full = next(other for other in classification.ROWS if other.name == recipe).experiment
    return replace(full, name=name, model=row.change(full.model) if row.change else full.model)


EXPERIMENTS = [
    _ablate(row.recipes[column], row)
    for column in range(len(classification.DATA_SETS))
    for row in ROWS
    if row.change is not None
]

WITHOUT_DROPOUT = Ablation(
    "w/o dropout of the write", None, ("cifar10-ait-small-nodropout",), _workspace(dropout=0.0)
)
"""Not a row of the paper: its memory soon has only a few distinct priors."""
FURTHER = [_ablate(name, WITHOUT_DROPOUT) for name in WITHOUT_DROPOUT.recipes]
