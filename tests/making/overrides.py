"""Experiments with another value for every field, to test what depends on all fields."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

from associative_transformer.data import ImagesConfig, SortOfClevrConfig, TriangleConfig
from associative_transformer.data.augment import RAW
from associative_transformer.experiment import Experiment, TrainConfig
from associative_transformer.models.ait import AiTConfig
from associative_transformer.models.dense import DenseConfig
from associative_transformer.models.relation_network import ConvMLPConfig, RelationNetworkConfig
from associative_transformer.models.vit import ViTConfig
from associative_transformer.workspace_config import WorkspaceConfig

SIZES: dict[str, Any] = {"patch_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2}
TRIANGLE = Experiment(
    "tiny",
    TriangleConfig(num_train=256, num_test=64),
    AiTConfig(
        **SIZES,
        image_size=64,
        head_dim=8,
        num_classes=2,
        workspace=WorkspaceConfig(num_priors=4, prior_dim=8, num_heads=2, bottleneck=16),
    ),
    TrainConfig(epochs=2, batch_size=64, device="cpu"),
)
IMAGES = replace(
    TRIANGLE, data=ImagesConfig("cifar10"), model=ViTConfig(**SIZES, image_size=32, head_dim=8)
)
QUESTIONS = replace(
    TRIANGLE, data=SortOfClevrConfig(num_train=20), model=RelationNetworkConfig(dropout=0.25)
)
CONVOLUTIONS = replace(QUESTIONS, model=ConvMLPConfig())
DENSE = replace(QUESTIONS, model=DenseConfig())

# Another value for every field; the fields of one row must change together.
WORKSPACE_CHANGES: list[dict[str, Any]] = [
    {"model.workspace.num_priors": 5},
    {"model.workspace.prior_dim": 16},
    {"model.workspace.num_heads": 4},
    {"model.workspace.bottleneck": None},
    {"model.workspace.smoothing": 0.25},
    {"model.workspace.beta": 4.0},
    {"model.workspace.num_steps": 2},
    {"model.workspace.balance_weight": 0.0},
    {"model.workspace.dropout": 0.5},
    {"model.workspace.differentiable_write": False},
    {"model.workspace.reset_each_epoch": True},
    {"model.workspace.pool": "local"},
    {"model.workspace.competition": "priors"},
    {"model.workspace.center_values": True},
    {"model.workspace.scope": "image", "model.workspace.image.read_head_dim": 8},
    {
        "model.workspace.scope": "image",
        "model.workspace.bottleneck": 0.25,
        "model.workspace.dropout": 0.0,
        "model.workspace.image.read_head_dim": 16,
        "model.workspace.image.use_read_norm": False,
    },
]
MODEL_CHANGES: list[dict[str, Any]] = [
    {"model.patch_size": 16},
    {"model.num_classes": 7},
    {"model.pos": "learned"},
    {"model.embed_dim": 32},
    {"model.depth": 3},
    {"model.num_heads": 4},
    {"model.head_dim": 16},
    {"model.mlp_ratio": 2.5},
    {"model.stem.kind": "conv"},
    {"model.stem.width": 16},
    {"model.stem.depth": 2},
    {"model.regularization.dropout": 0.25},
    {"model.regularization.stochastic_depth": 0.25},
]
TRAIN_CHANGES: list[dict[str, Any]] = [
    {"train.epochs": 3},
    {"train.batch_size": 32},
    {"train.lr": 3e-4},
    {"train.betas": (0.8, 0.95)},
    {"train.weight_decay": 0.0},
    {"train.schedule.warmup_epochs": 0},
    {"train.schedule.warmup_lr": 2e-5},
    {"train.schedule.min_lr": 3e-7},
    {"train.schedule.per": "step"},
    {"train.schedule.shape": "one_cycle"},
    {"train.clip_norm": 1.0},
    {"train.accumulation_steps": 2},
    {"train.freeze": "memory"},
    {"train.layer_decay": 0.75},
    {"train.optimizer": "muon"},
    {"train.decay_on": "matrices"},
    {"train.loss.label_smoothing": 0.1},
    {"train.loss.class_weights": "balanced"},
    {"train.ema_decay": 0.99},
    {"train.stopping.best_by": "loss"},
    {"train.stopping.patience": 3},
    {"train.stopping.min_delta": 0.5},
    {"train.schedule.decay_share": 0.5},
    {"init": "runs/other/0"},
    {"train.precision": "bfloat16"},
    {"train.compile": "on"},
]
TRIANGLE_CHANGES: list[dict[str, Any]] = [
    {"data.num_train": 300},
    {"data.num_test": 65},
    {"data.channels": 1, "model.num_channels": 1},
    {"data.seed": 1},
    {"data.val_fraction": 0.25},
    {"data.reject_near_equilateral": True},
    {"data.min_side": 8.0},
    {"data.raw": True},
    {"model.use_self_attention": False},
    {"model.read": "cross_attention"},
    {"model.read": "none"},
    {"model.head": "mean"},
    {"model.use_output_norm": False},
]
IMAGES_CHANGES: list[dict[str, Any]] = [
    {"data.name": "cifar100"},
    {"data.image_column": "img"},
    {"data.label_column": "coarse_label"},
    {"data.image_size": 64, "model.image_size": 64},
    {"data.augment": "none"},
    {"data.augment": "strong"},
    {"data.sampling": "balanced"},
    {"data.augmentation.flip": "none"},
    {"data.augmentation.scale": (0.5, 1.0)},
    {"data.augmentation.color_jitter": 0.4},
    {"data.augmentation.policy": "trivialaugment"},
    {"data.augmentation.policy": "randaugment", "data.augmentation.num_ops": 3},
    {"data.augmentation.policy": "randaugment", "data.augmentation.magnitude": 5},
    {"data.augmentation.erase": 0.25},
    {"data.augmentation.mixup": 0.2},
    {"data.augmentation.cutmix": 1.0},
    {"data.augment": "strong", "data.augmentation.mix_probability": 0.5},
    {"data.crop_padding": 2},
    {"data.mean": (0.5, 0.4, 0.3)},
    {"data.std": (0.5, 0.4, 0.3)},
    {"data.val_fraction": 0.1},
    {"data.splits.test_split": "dev"},
    {"data.splits.config": "small"},
    {"data.splits.revision": "main"},
    {"data.splits.classes": ("cat", "dog")},
    {"data.splits.train_limit": 50},
    {"data.splits.test_fraction": 0.3},
    {"data.splits.test_seed": 1},
    {"data.on_error": "skip"},
    {"data.limit": 100},
    {"model.head": "cls"},
    {"model.use_output_norm": True},
]
QUESTIONS_CHANGES: list[dict[str, Any]] = [
    {"data.num_train": 30},
    {"data.num_test": 65},
    {"data.num_questions": 3},
    {"data.question_types": ("binary",)},
    {"data.strict": False},
    {"data.seed": 1},
    {"data.val_fraction": 0.25},
]
CONVOLUTION_CHANGES: list[dict[str, Any]] = [
    {"model.num_classes": 7},
    {"model.conv_dim": 8},
    {"model.num_convs": 3},
    {"model.hidden_dim": 16},
    {"model.dropout": 0.125},
]
RELATION_CHANGES: list[dict[str, Any]] = [
    *CONVOLUTION_CHANGES,
    {"model.num_objects": 3},
    {"model.num_relation_layers": 2},
]
DENSE_CHANGES: list[dict[str, Any]] = [
    {"model.num_classes": 7},
    {"model.patch_size": 25},
    {"model.pos": "learned"},
    {"model.embed_dim": 32},
    {"model.depth": 3},
    {"model.mlp_ratio": 2.5},
]
TRIANGLE_IDENTITY = TRIANGLE_CHANGES + MODEL_CHANGES + WORKSPACE_CHANGES + TRAIN_CHANGES
IMAGES_IDENTITY = IMAGES_CHANGES + MODEL_CHANGES + TRAIN_CHANGES
QUESTIONS_IDENTITY = QUESTIONS_CHANGES + RELATION_CHANGES + TRAIN_CHANGES
CIRCUMSTANCES: list[dict[str, Any]] = [
    {"train.seed": 7},
    {"train.checkpoint_every": 3},
    {"train.log_every": 1},
    {"train.tracker": "tensorboard"},
    {"train.device": "auto"},
    {"train.detect_anomaly": True},
]
IMAGES_CIRCUMSTANCES: list[dict[str, Any]] = [
    *CIRCUMSTANCES,
    {"data.source": "elsewhere"},
    {"data.splits.validation": "random"},
    {"data.measured": RAW},
    {"data.num_workers": 0},
    {"data.memory_budget": 0.5},
]
CONFIGURATION_CHANGES = [
    *((TRIANGLE, change) for change in TRIANGLE_IDENTITY),
    *((IMAGES, change) for change in IMAGES_IDENTITY),
    *((QUESTIONS, change) for change in QUESTIONS_IDENTITY),
    *((CONVOLUTIONS, change) for change in CONVOLUTION_CHANGES),
    *((DENSE, change) for change in DENSE_CHANGES),
]
CIRCUMSTANCE_CHANGES = [
    *((TRIANGLE, change) for change in CIRCUMSTANCES),
    *((IMAGES, change) for change in IMAGES_CIRCUMSTANCES),
    *((QUESTIONS, change) for change in CIRCUMSTANCES),
]


def label(parameter: object) -> str:
    """Return the id of a test parameter: an experiment, or some changes."""
    if isinstance(parameter, Experiment):
        return f"{parameter.data.kind}-{parameter.model.kind}"
    return "+".join(parameter) if isinstance(parameter, dict) else ""


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """Return values by dotted name as a tree of dictionaries."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *parents, leaf = name.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[leaf] = value
    return tree


def change_fields(config: Any, tree: dict[str, Any]) -> Any:  # noqa: ANN401
    new = {
        key: change_fields(getattr(config, key), value) if isinstance(value, dict) else value
        for key, value in tree.items()
    }
    return replace(config, **new)


def changed(experiment: Experiment, values: dict[str, Any]) -> Experiment:
    """Return an experiment with other values for some fields, by dotted name."""
    return change_fields(experiment, nested(values))


def leaves(config: object, prefix: str = "") -> set[str]:
    """Return the dotted names of all fields."""
    names: set[str] = set()
    for item in fields(config):  # type: ignore[arg-type]
        value = getattr(config, item.name)
        name = f"{prefix}{item.name}"
        names |= leaves(value, f"{name}.") if is_dataclass(value) else {name}
    return names
