"""Training steps of a tiny AiT, and batches for them."""

from typing import Any

import torch
from accelerate.utils import ProjectConfiguration
from torch import Tensor, nn

from associative_transformer.experiment import TrainConfig
from associative_transformer.interface import Batch
from associative_transformer.models.ait import AiT, AiTConfig
from associative_transformer.training.launch import make_accelerator
from associative_transformer.training.step import TrainingStep
from associative_transformer.workspace_config import WorkspaceConfig

CONFIG = AiTConfig(
    image_size=64,
    patch_size=32,
    embed_dim=16,
    depth=2,
    num_heads=2,
    head_dim=8,
    num_classes=2,
    workspace=WorkspaceConfig(num_priors=4, prior_dim=8, num_heads=2, bottleneck=16, dropout=0.0),
)
PROJECT = ProjectConfiguration("unused")


def make_step(model: nn.Module | None = None, **train: Any) -> TrainingStep:  # noqa: ANN401
    config = TrainConfig(**{"batch_size": 8, "lr": 0.01, "device": "cpu", **train})
    return TrainingStep(model or AiT(CONFIG), config, make_accelerator(config, PROJECT))


def make_batch(num_images: int = 8) -> Batch:
    images = torch.randn(num_images, 3, 64, 64)
    return Batch(images, None, torch.randint(2, (num_images,)))


def snapshot(step: TrainingStep) -> list[Tensor]:
    """Return copies of the weights, the memory, the moments and the averaged weights."""
    states = [part.state_dict()["state"].values() for part in step.optimizer.parts]
    tensors = [*step.model.state_dict().values()]
    tensors += [t for moments in states for m in moments for t in m.values()]
    if step.average is not None:
        tensors += [*step.average.averages, step.average.num_updates]
    return [tensor.clone() for tensor in tensors]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def spoil(batch: Batch) -> Batch:
    """Return the batch with an infinite last image."""
    images = batch.images.clone()
    images[-1] = torch.inf
    return batch._replace(images=images)
