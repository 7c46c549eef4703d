"""Table 1 of the paper, image classification, and two small recipes for a machine without GPU.

`ait train cifar10-ait-small`; the accuracy that the paper reports stands in `PUBLISHED`, our own,
with times and devices, in `docs/reproduce.md`. The paper trains all rows alike: AdamW, 100 epochs.
"""

from dataclasses import replace
from typing import TypeVar

from associative_transformer.data import ImagesConfig, TriangleConfig
from associative_transformer.experiment import Experiment, Schedule, TrainConfig
from associative_transformer.models import (
    AIT_BASE,
    AIT_MEDIUM,
    AIT_SMALL,
    VIT_BASE,
    VIT_MEDIUM,
    VIT_SMALL,
    AiTConfig,
    ViTConfig,
)
from associative_transformer.workspace import WorkspaceConfig

Model = TypeVar("Model", AiTConfig, ViTConfig)

CIFAR10, CIFAR100, TRIANGLE = ImagesConfig("cifar10"), ImagesConfig("cifar100"), TriangleConfig()
STANDARD = TrainConfig()


def for_cifar100(model: Model) -> Model:
    """Give the model of CIFAR-100."""
    return replace(model, num_classes=100)


def for_triangle(model: Model) -> Model:
    """Give the model of Triangle: four patches an image, and with AiT a bottleneck of 64."""
    model = replace(model, image_size=64, patch_size=32, num_classes=2)
    if isinstance(model, AiTConfig):
        return replace(model, workspace=replace(model.workspace, bottleneck=64))
    return model


CIFAR10_TINY = AiTConfig(
    pos="learned",
    embed_dim=192,
    num_heads=3,
    mlp_ratio=2.0,
    workspace=WorkspaceConfig(num_priors=16, prior_dim=16, num_heads=4, bottleneck=256),
)
TRIANGLE_TINY = replace(for_triangle(CIFAR10_TINY), num_channels=1)
GRAY = TriangleConfig(channels=1)
FAST = TrainConfig(
    epochs=4,
    batch_size=128,
    lr=1e-3,
    weight_decay=0.05,
    clip_norm=1.0,
    schedule=Schedule(warmup_epochs=1, warmup_lr=1e-4),
)
FAST_TRIANGLE = replace(FAST, epochs=9)

# fmt: off
EXPERIMENTS = [
    Experiment("triangle-ait-tiny",  GRAY,     TRIANGLE_TINY,            FAST_TRIANGLE),
    Experiment("cifar10-ait-tiny",   CIFAR10,  CIFAR10_TINY,             FAST),
    Experiment("cifar10-ait-small",  CIFAR10,  AIT_SMALL,                STANDARD),
    Experiment("cifar10-ait-medium", CIFAR10,  AIT_MEDIUM,               STANDARD),
    Experiment("cifar10-ait-base",   CIFAR10,  AIT_BASE,                 STANDARD),
    Experiment("cifar10-vit-small",  CIFAR10,  VIT_SMALL,                STANDARD),
    Experiment("cifar10-vit-medium", CIFAR10,  VIT_MEDIUM,               STANDARD),
    Experiment("cifar10-vit-base",   CIFAR10,  VIT_BASE,                 STANDARD),
    Experiment("cifar100-ait-small", CIFAR100, for_cifar100(AIT_SMALL),  STANDARD),
    Experiment("cifar100-ait-medium",CIFAR100, for_cifar100(AIT_MEDIUM), STANDARD),
    Experiment("cifar100-ait-base",  CIFAR100, for_cifar100(AIT_BASE),   STANDARD),
    Experiment("cifar100-vit-small", CIFAR100, for_cifar100(VIT_SMALL),  STANDARD),
    Experiment("cifar100-vit-medium",CIFAR100, for_cifar100(VIT_MEDIUM), STANDARD),
    Experiment("cifar100-vit-base",  CIFAR100, for_cifar100(VIT_BASE),   STANDARD),
    Experiment("triangle-ait-small", TRIANGLE, for_triangle(AIT_SMALL),  STANDARD),
    Experiment("triangle-ait-medium",TRIANGLE, for_triangle(AIT_MEDIUM), STANDARD),
    Experiment("triangle-ait-base",  TRIANGLE, for_triangle(AIT_BASE),   STANDARD),
    Experiment("triangle-vit-small", TRIANGLE, for_triangle(VIT_SMALL),  STANDARD),
    Experiment("triangle-vit-medium",TRIANGLE, for_triangle(VIT_MEDIUM), STANDARD),
    Experiment("triangle-vit-base",  TRIANGLE, for_triangle(VIT_BASE),   STANDARD),
]

PUBLISHED = {  # percent; slides and, for ViT-Medium, the CVPR version
    "cifar10-ait-small": 83.34, "cifar100-ait-small": 56.30, "triangle-ait-small": 99.47,
    "cifar10-ait-medium": 84.59, "cifar100-ait-medium": 60.58, "triangle-ait-medium": 99.57,
    "cifar10-ait-base": 85.44, "cifar100-ait-base": 60.78, "triangle-ait-base": 99.59,
    "cifar10-vit-small": 79.53, "cifar100-vit-small": 53.19, "triangle-vit-small": 99.47,
    "cifar10-vit-medium": 82.41, "cifar100-vit-medium": 55.78, "triangle-vit-medium": 99.62,
    "cifar10-vit-base": 83.82, "cifar100-vit-base": 57.92, "triangle-vit-base": 99.63,
}
# fmt: on
