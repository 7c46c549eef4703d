"""The laptop edition of the paper's tables: small models, trained in minutes without a GPU.

`ait train cifar10-laptop-ait`, `ait run-table classification --budget laptop`,
`ait table classification --budget laptop`; the same for `ablations`. On each data set,
all models have about half a million parameters (0.4 to 0.6 million on CIFAR-10), see the same
images in three epochs, and are trained in the same way; only BRIMs, whose steps take long, sees
10,000 of them. On Triangle, patches have 8 pixels, so that all models see 64 tokens. `ait-image`
has a memory for each image and no self-attention; it is not part of the paper. `ait-6`, `ait-12`,
`vit-6` and `vit-12` have more layers and more parameters.
"""

from dataclasses import replace
from typing import Any, NamedTuple

from associative_transformer.data import ImagesConfig, SplitsConfig, TriangleConfig
from associative_transformer.experiment import Experiment, TrainConfig
from associative_transformer.models import ModelConfig
from associative_transformer.models.ait import AiTConfig
from associative_transformer.models.brims import BRIMS, BRIMsConfig
from associative_transformer.models.coordination import (
    COORDINATION,
    COORDINATION_D,
    COORDINATION_DH,
    COORDINATION_H,
)
from associative_transformer.models.luna import LUNA_SMALL
from associative_transformer.models.perceiver import PERCEIVER
from associative_transformer.models.resnet import RESNET_20
from associative_transformer.models.set_transformer import SET_TRANSFORMER
from associative_transformer.models.stem import StemConfig
from associative_transformer.models.vit import ViTConfig
from associative_transformer.optimization import LossConfig, Schedule
from associative_transformer.workspace_config import WorkspaceConfig

PER_STEP = Schedule(warmup_epochs=1, warmup_lr=0.0, min_lr=0.0, shape="one_cycle", per="step")
THREE_EPOCHS = TrainConfig(
    epochs=3, batch_size=128, lr=1e-3, weight_decay=0.05, clip_norm=1.0, schedule=PER_STEP
)
BRIMS_IMAGES = 10_000

AIT = AiTConfig(
    embed_dim=128,
    num_heads=4,
    head_dim=32,
    mlp_ratio=3.0,
    workspace=WorkspaceConfig(num_heads=4, bottleneck=128),  # of 8,192 tokens, the paper's share
)
AIT_IMAGE = replace(AIT, use_self_attention=False, workspace=WorkspaceConfig(scope="image"))
VIT = ViTConfig(embed_dim=128, num_heads=4, head_dim=32, mlp_ratio=3.0)
SHARED = replace(COORDINATION, embed_dim=128)
SHARED_DEEP = replace(COORDINATION_D, embed_dim=128)
UNSHARED = replace(COORDINATION_H, embed_dim=56)
UNSHARED_DEEP = replace(COORDINATION_DH, embed_dim=40)
PERCEIVER_SMALL = replace(
    PERCEIVER, num_latents=64, latent_dim=80, depth=2, num_heads=4, head_dim=32, cross_dim=32
)
SETS = replace(SET_TRANSFORMER, embed_dim=120, hidden_dim=120)
BRIMS_SMALL = replace(BRIMS, embed_dim=168, module_dim=28)
LUNA = replace(LUNA_SMALL, embed_dim=128, num_heads=4)

HOUR_AIT = AiTConfig(
    pos="learned",
    embed_dim=160,
    depth=4,
    num_heads=5,
    head_dim=32,
    mlp_ratio=2.0,
    head="mean",
    use_self_attention=False,
    stem=StemConfig("conv", width=64, depth=2),
    workspace=WorkspaceConfig(num_priors=16, num_heads=4, scope="image"),
)
HOUR_PUBLISHED = replace(
    HOUR_AIT,
    use_self_attention=True,
    workspace=WorkspaceConfig(num_priors=16, num_heads=4, bottleneck=128),  # of 8,192 tokens
)
HOUR_VIT = ViTConfig(
    pos="learned",
    embed_dim=160,
    depth=4,
    num_heads=5,
    head_dim=32,
    mlp_ratio=2.0,
    head="mean",
    stem=HOUR_AIT.stem,
)
HOUR = TrainConfig(
    epochs=30,
    batch_size=128,
    lr=2e-3,
    weight_decay=0.05,
    decay_on="matrices",
    clip_norm=1.0,
    schedule=PER_STEP,
    loss=LossConfig(label_smoothing=0.1),
)


def _with_memory(**changes: Any) -> AiTConfig:  # noqa: ANN401
    return replace(AIT, workspace=replace(AIT.workspace, **changes))


class Row(NamedTuple):
    """A row of the table: a model, and the names of its recipes."""

    title: str
    cifar10: str
    triangle: str | None  # None: CIFAR-10 only
    model: ModelConfig


def _on_triangle(model: ModelConfig) -> ModelConfig:
    """Return a model of CIFAR-10 for Triangle."""
    changes = {"image_size": 64, "num_classes": 2}
    if hasattr(model, "patch_size"):
        changes["patch_size"] = 8
    return replace(model, **changes)


ROWS = [
    Row("AiT", "cifar10-laptop-ait", "triangle-laptop-ait", AIT),
    Row(
        "AiT, memory per image", "cifar10-laptop-ait-image", "triangle-laptop-ait-image", AIT_IMAGE
    ),
    Row("ViT", "cifar10-laptop-vit", "triangle-laptop-vit", VIT),
    Row("Coordination", "cifar10-laptop-coordination", "triangle-laptop-coordination", SHARED),
    Row(
        "Coordination-D",
        "cifar10-laptop-coordination-d",
        "triangle-laptop-coordination-d",
        SHARED_DEEP,
    ),
    Row(
        "Coordination-H",
        "cifar10-laptop-coordination-h",
        "triangle-laptop-coordination-h",
        UNSHARED,
    ),
    Row(
        "Coordination-DH",
        "cifar10-laptop-coordination-dh",
        "triangle-laptop-coordination-dh",
        UNSHARED_DEEP,
    ),
    Row("Perceiver", "cifar10-laptop-perceiver", "triangle-laptop-perceiver", PERCEIVER_SMALL),
    Row(
        "Set Transformer",
        "cifar10-laptop-set-transformer",
        "triangle-laptop-set-transformer",
        SETS,
    ),
    Row("BRIMs", "cifar10-laptop-brims", "triangle-laptop-brims", BRIMS_SMALL),
    Row("Luna", "cifar10-laptop-luna", "triangle-laptop-luna", LUNA),
    Row("AiT, 6 layers", "cifar10-laptop-ait-6", None, replace(AIT, depth=6)),
    Row("AiT, 12 layers", "cifar10-laptop-ait-12", None, replace(AIT, depth=12)),
    Row("ViT, 6 layers", "cifar10-laptop-vit-6", None, replace(VIT, depth=6)),
    Row("ViT, 12 layers", "cifar10-laptop-vit-12", None, replace(VIT, depth=12)),
]
ABLATIONS = [
    Row("AiT", "cifar10-laptop-ait", "triangle-laptop-ait", AIT),
    Row(
        "w/o bottleneck",
        "cifar10-laptop-ait-without-bottleneck",
        "triangle-laptop-ait-without-bottleneck",
        _with_memory(bottleneck=None),
    ),
    Row(
        "w/o self-attention",
        "cifar10-laptop-ait-without-self-attention",
        "triangle-laptop-ait-without-self-attention",
        replace(AIT, use_self_attention=False),
    ),
    Row("w/o memory", "cifar10-laptop-vit", "triangle-laptop-vit", VIT),
    Row(
        "w/o Hopfield",
        "cifar10-laptop-ait-without-hopfield",
        "triangle-laptop-ait-without-hopfield",
        replace(AIT, read="cross_attention"),
    ),
    Row(
        "w/o balance loss",
        "cifar10-laptop-ait-without-balance-loss",
        "triangle-laptop-ait-without-balance-loss",
        _with_memory(balance_weight=0.0),
    ),
    Row(
        "reset memory",
        "cifar10-laptop-ait-reset-memory",
        "triangle-laptop-ait-reset-memory",
        _with_memory(reset_each_epoch=True),
    ),
    Row(
        "w/o read",
        "cifar10-laptop-ait-without-read",
        "triangle-laptop-ait-without-read",
        replace(AIT, read="none"),
    ),
    Row(
        "ViT + norm",
        "cifar10-laptop-vit-norm",
        "triangle-laptop-vit-norm",
        replace(VIT, use_output_norm=True),
    ),
]

TABLE_ROWS = {"classification": ROWS, "ablations": ABLATIONS}
"""The rows of each table."""


def _build(name: str, data: ImagesConfig | TriangleConfig, model: ModelConfig) -> Experiment:
    """Return a recipe; BRIMs sees fewer images, with pixels from 0 to 1."""
    if not isinstance(model, BRIMsConfig):
        return Experiment(name, data, model, THREE_EPOCHS)
    if isinstance(data, ImagesConfig):
        splits = SplitsConfig(train_limit=BRIMS_IMAGES)
        data = replace(data, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), splits=splits)
    else:
        data = replace(data, num_train=BRIMS_IMAGES)
    return Experiment(name, data, model, THREE_EPOCHS)


_MODELS = {row.cifar10: row for rows in TABLE_ROWS.values() for row in rows}  # each row once
EXPERIMENTS = [
    *(_build(name, ImagesConfig("cifar10"), row.model) for name, row in _MODELS.items()),
    *(
        _build(row.triangle, TriangleConfig(), _on_triangle(row.model))
        for row in _MODELS.values()
        if row.triangle is not None
    ),
    Experiment("cifar10-ait-laptop", ImagesConfig("cifar10"), HOUR_AIT, HOUR),
    Experiment("cifar10-ait-published-laptop", ImagesConfig("cifar10"), HOUR_PUBLISHED, HOUR),
    Experiment("cifar10-vit-laptop", ImagesConfig("cifar10"), HOUR_VIT, HOUR),
    Experiment("cifar10-resnet-laptop", ImagesConfig("cifar10"), RESNET_20, HOUR),
]
