"""The tables of `benchmarks/memory.py`: which models they compare, and how these are trained.

Scope `image` of the workspace and everything in `rivals.py` are not part of the paper.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn

from associative_transformer import AiT, AiTConfig, WorkspaceConfig
from associative_transformer.data import (
    DataSetConfig,
    ImagesConfig,
    SortOfClevrConfig,
    TriangleConfig,
)
from associative_transformer.data.questions import QUESTION_DIM
from associative_transformer.models.vit import ViT, ViTConfig
from associative_transformer.workspace_config import ImageMemoryConfig
from rivals import Kind, MixerAiT, PlacedViT, RegisterViT

VALIDATION = 0.1
"""Share of the training images that are set aside if a run is scored on them."""
RATES = (5e-4, 1e-3, 2e-3, 4e-3)
"""Learning rates tried in the table `goal-rates`; `goal` uses the best one of each model."""
NUM_VECTORS = 16  # priors, slots, inducing points, patterns, registers


@dataclass(frozen=True)
class Settings:
    """How the rows of a table are trained."""

    data: Literal["cifar10", "triangle", "sort-of-clevr"] = "cifar10"
    num_train: int = 50_000
    """Number of images to generate for training and validation; CIFAR-10 always has 50,000."""
    num_test: int = 10_000
    """Number of test images to generate; CIFAR-10 always has 10,000."""
    epochs: int = 8
    head: Literal["flatten", "mean", "question"] = "mean"
    patch_size: int = 4
    lr: float = 1e-3
    scored_on: Literal["test", "validation"] = "test"
    use_shifts: bool = False
    """Whether the runs are also scored on changed test images."""
    batch_size: int = 128
    image_size: int = 32
    embed_dim: int = 128
    num_classes: int = 10

    @property
    def data_config(self) -> DataSetConfig:
        """The data set; its validation split is empty if the runs are scored on the test split."""
        val_fraction = VALIDATION if self.scored_on == "validation" else 0.0
        if self.data == "cifar10":
            config = ImagesConfig("cifar10", image_size=self.image_size, num_workers=0)
            return replace(config, val_fraction=val_fraction)
        generated = TriangleConfig() if self.data == "triangle" else SortOfClevrConfig()
        return replace(
            generated,
            num_train=self.num_train,
            num_test=self.num_test,
            val_fraction=val_fraction,
        )

    def small(self) -> "Settings":
        """Return smaller settings for a test that takes seconds."""
        small = replace(self, epochs=2, batch_size=8, embed_dim=32)
        if self.data == "cifar10":
            return replace(small, image_size=16, patch_size=8)
        return replace(small, num_train=10, num_test=10)


Build = Callable[[Settings], nn.Module]


@dataclass(frozen=True)
class Row:
    """A row of a table: a model, and what is special about its training."""

    title: str
    build: Build
    changes: dict[str, Any] = field(default_factory=dict)  # fields of Settings
    group: str = ""
    references: tuple[str, ...] = ()  # compared with the best of these rows
    home: tuple[str, str] | None = None  # table and row of the same run; None: its own
    rates: tuple[str, ...] = ()  # rows of `goal-rates`, of which the best sets the learning rate


@dataclass(frozen=True)
class Comparison:
    """A table: rows, and the settings that they share."""

    title: str
    settings: Settings
    rows: dict[str, Row]


def sizes(s: Settings) -> dict[str, Any]:
    """Return the sizes that all models share."""
    return {
        **{"image_size": s.image_size, "patch_size": s.patch_size, "num_classes": s.num_classes},
        **{"embed_dim": s.embed_dim, "depth": 2, "num_heads": 4, "head_dim": s.embed_dim // 4},
        **{"mlp_ratio": 2.0, "head": s.head, "pos": "learned"},
        "question_dim": QUESTION_DIM if s.data == "sort-of-clevr" else 0,
    }


def batch(**changes: object) -> WorkspaceConfig:
    """Return the paper's workspace, with its ratio of bottleneck to tokens: 128 of 8,192."""
    defaults = {"num_priors": NUM_VECTORS, "prior_dim": 32, "num_heads": 4, "bottleneck": 128}
    fields: dict[str, Any] = {**defaults, **changes}
    return WorkspaceConfig(**fields)


def image(**changes: object) -> WorkspaceConfig:
    """Return the workspace per image."""
    return batch(**{"scope": "image", "bottleneck": 0.25, **changes})


def ait(workspace: WorkspaceConfig, use_self_attention: bool = True, **changes: object) -> Build:
    """Return a function that builds an AiT."""

    def build(s: Settings) -> nn.Module:
        changed: dict[str, Any] = {
            "use_self_attention": use_self_attention,
            "workspace": workspace,
            **changes,
        }
        return AiT(AiTConfig(**sizes(s), **changed))

    return build


def vit(use_output_norm: bool) -> Build:
    """Return a function that builds a ViT."""
    return lambda s: ViT(ViTConfig(**sizes(s), use_output_norm=use_output_norm))


def registers(s: Settings) -> nn.Module:
    """Build a ViT with registers and the LayerNorm after the feed-forward."""
    return RegisterViT(ViTConfig(**sizes(s), use_output_norm=True), NUM_VECTORS)


def placed(workspace: WorkspaceConfig, has_map: bool, use_output_norm: bool = True) -> Build:
    """Return a function that builds a ViT with a workspace instead of self-attention."""
    return lambda s: PlacedViT(
        ViTConfig(**sizes(s), use_output_norm=use_output_norm), workspace, has_map
    )


def mixer(kind: Kind, workspace: WorkspaceConfig | None = None) -> Build:
    """Return a function that builds an AiT without self-attention and with another mixer."""
    chosen = workspace or image()
    return lambda s: MixerAiT(
        AiTConfig(**sizes(s), use_self_attention=False, workspace=chosen), kind
    )


VIT, VIT_NORM = Row("ViT", vit(False)), Row("ViT, norm after FFN", vit(True))
IMAGE = Row("workspace per image", ait(image(), False))
BOTH = Row("self-attention and workspace per image", ait(image()))
NO_READ = Row("AiT without read", ait(batch(), read="none"))
PUBLISHED = Row("AiT as published", ait(batch()))


def _per_image(title: str, use_output_norm: bool = True, **changes: object) -> Row:
    build = ait(image(**changes), False, use_output_norm=use_output_norm)
    return Row(f"workspace per image, {title}", build)


ABLATIONS = {
    "no-mixing": Row("no mixing of tokens", mixer("none")),
    "vit": VIT,
    "vit-norm": VIT_NORM,
    "image": IMAGE,
    "image-attention": BOTH,
    "batch": Row("published workspace, no self-attention", ait(batch(), False)),
    "batch-attention": PUBLISHED,
    "image-competition": _per_image("competition", competition="priors"),
    "image-eighth": _per_image("k 1/8 of the tokens", bottleneck=0.125),
    "image-all": _per_image("k all tokens", bottleneck=None),
    "image-no-read-norm": _per_image(
        "without read norm", image=ImageMemoryConfig(use_read_norm=False)
    ),
    "image-no-output-norm": _per_image("without norm after FFN", use_output_norm=False),
    "image-4": _per_image("4 priors", num_priors=4),
    "image-8": _per_image("8 priors", num_priors=8),
    "image-32": _per_image("32 priors", num_priors=32),
    "image-64": _per_image("64 priors", num_priors=64),
    "image-balance": _per_image("balance loss 0.01", balance_weight=0.01),
    "image-moving-average": Row(
        "workspace per image, contents by moving average, dropout 0.1",
        mixer("moving-average", image(dropout=0.1)),
    ),
    "inducing": Row("16 inducing points", mixer("inducing")),
    "slots": Row("16 slots (Slot Attention)", mixer("slots")),
    "mean": Row("mean of the tokens", mixer("mean")),
    "linear": Row("linear attention (elu + 1)", mixer("linear")),
    "registers": Row("self-attention, norm after FFN, 16 registers", registers),
    "hopfield": Row("Hopfield layer, 16 learned patterns", mixer("hopfield")),
    "ait-no-read": NO_READ,
}


def _ablations() -> dict[str, Row]:
    return {name: replace(row, references=("vit-norm",)) for name, row in ABLATIONS.items()}


def _at_patch_2() -> dict[str, Row]:
    names = ("vit", "vit-norm", "image", "image-attention")
    return {name: replace(ABLATIONS[name], references=("vit-norm",)) for name in names}


def _places() -> dict[str, Row]:
    """Return the rows with the workspace after the feed-forward and instead of attention."""
    bare = image(competition="priors", image=ImageMemoryConfig(use_read_norm=False))
    title = "workspace per image, instead of attention"
    rows = {
        "vit-norm": VIT_NORM,
        "image": replace(IMAGE, title="workspace per image, after the feed-forward"),
        "before": Row(f"{title}, both norms", placed(image(), False)),
        "before-map": Row(f"{title}, both norms, output map", placed(image(), True)),
        "before-bare": Row(
            f"{title}, competition, neither norm", placed(bare, False, use_output_norm=False)
        ),
    }
    return {
        name: replace(
            row,
            references=("vit-norm",),
            home=("ablations", name) if name in ABLATIONS else None,
        )
        for name, row in rows.items()
    }


def _generated() -> dict[str, Row]:
    """Return the rows of the generated data sets, compared with the better ViT."""
    return {name: replace(row, references=("vit", "vit-norm")) for name, row in GOAL.items()}


def _contributions() -> dict[str, Row]:
    without_both = ait(batch(), read="none", use_output_norm=False)
    healthy = batch(competition="priors", center_values=True)
    rows = {
        "vit": VIT,
        "vit-norm": VIT_NORM,
        "ait-no-read": NO_READ,
        "ait-no-read-no-norm": Row("AiT without read, without norm after FFN", without_both),
        "batch-attention": PUBLISHED,
        "batch-no-dropout": Row("AiT, write dropout 0", ait(batch(dropout=0.0))),
        "batch-healthy": Row("AiT, competition and centered values", ait(healthy)),
        "image": IMAGE,
        "image-attention": BOTH,
    }
    return {
        f"{head}-{name}": replace(
            row,
            changes={"head": head},
            group=f"{head} head",
            references=(f"{head}-vit",),
            home=("ablations", name) if head == "mean" and name in ABLATIONS else None,
        )
        for head in ("mean", "flatten")
        for name, row in rows.items()
    }


GOAL: dict[str, Row] = {"vit": VIT, "vit-norm": VIT_NORM, "image": IMAGE, "image-attention": BOTH}


def _goal_rates() -> dict[str, Row]:
    return {
        f"{name}-lr-{rate:g}": replace(
            row, title=f"{row.title}, {rate:g}", changes={"lr": rate}, group=row.title
        )
        for rate in RATES
        for name, row in GOAL.items()
    }


def _goal() -> dict[str, Row]:
    return {
        name: replace(
            row,
            references=("vit", "vit-norm"),
            rates=tuple(f"{name}-lr-{rate:g}" for rate in RATES),
        )
        for name, row in GOAL.items()
    }


SHIFTED = Settings(use_shifts=True)
TABLES = {
    "ablations": Comparison("Ways to mix the tokens", SHIFTED, _ablations()),
    "patch-2": Comparison(
        "Ways to mix the tokens, patch 2", Settings(epochs=6, patch_size=2), _at_patch_2()
    ),
    "contributions": Comparison("Contributions", SHIFTED, _contributions()),
    "goal-rates": Comparison("Learning rates", Settings(scored_on="validation"), _goal_rates()),
    "goal": Comparison(
        "Comparison with the better ViT, tuned learning rates", Settings(epochs=20), _goal()
    ),
    "place": Comparison("Place of the workspace", SHIFTED, _places()),
    "triangle": Comparison(
        "Triangle",
        Settings("triangle", epochs=4, patch_size=8, image_size=64, num_classes=2),
        _generated(),
    ),
    "sort-of-clevr": Comparison(
        "Sort-of-CLEVR",
        Settings(
            "sort-of-clevr",
            num_train=5_000,
            num_test=1_000,
            epochs=12,
            head="question",
            patch_size=15,
            image_size=75,
        ),
        _generated(),
    ),
}
