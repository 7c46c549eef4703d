"""The models of `benchmarks/memory_series.py`: ours in several variants, and the official one.

Dims     B batch   C channels   H W image side   L layers   S heads   M priors   D prior width
         T pooled tokens
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from associative_transformer import AIT_SMALL, AiT, AiTConfig, WorkspaceConfig
from associative_transformer.functional import effective_rank
from associative_transformer.health import count_distinct, memory_health
from associative_transformer.interface import ModelOutput
from associative_transformer.models.ait import Block
from official import build_official, ignore_cuda

OFFICIAL_FILES = ("ait.py", "MHA.py", "vit_hn.py")


@dataclass(frozen=True)
class Settings:
    """Sizes of the models, and how they are trained."""

    steps: int = 300
    every: int = 10  # steps between two records
    batch_size: int = 64
    test_images: int | None = None  # the first ones; None: all
    lr: float = 1e-4
    weight_decay: float = 0.01
    embed_dim: int = 768
    image_size: int = 32
    patch_size: int = 4
    num_classes: int = 10

    @property
    def bottleneck(self) -> int:
        """The paper's share of the tokens: 512 for a batch of 512 images."""
        return self.batch_size

    def small(self) -> "Settings":
        """Return settings for a test, which take seconds."""
        size = min(self.batch_size // 8, 16)
        return replace(self, batch_size=size, embed_dim=128, image_size=16, patch_size=8)

    def config(self, workspace: Mapping[str, Any]) -> AiTConfig:
        """Return the configuration of a model."""
        return replace(
            AIT_SMALL,
            embed_dim=self.embed_dim,
            num_heads=self.embed_dim // 64,
            image_size=self.image_size,
            patch_size=self.patch_size,
            num_classes=self.num_classes,
            workspace=WorkspaceConfig(bottleneck=self.bottleneck, **workspace),
        )


@dataclass(frozen=True)
class Variant:
    """A memory whose series is recorded."""

    title: str
    workspace: dict[str, Any] = field(default_factory=dict)  # fields of WorkspaceConfig
    is_official: bool = False
    batch_size: int = 64
    has_one_run: bool = False  # with the first seed only


COMPETITION: dict[str, Any] = {"dropout": 0.1, "competition": "priors"}
VARIANTS = {
    "official": Variant("official code as shipped", is_official=True),
    "no-dropout": Variant("ours, dropout 0", {"dropout": 0.0}),
    "dropout": Variant("ours, dropout 0.1", {"dropout": 0.1}),
    "competition": Variant("ours, dropout 0.1, competition", COMPETITION),
    "competition-centered": Variant(
        "ours, dropout 0.1, competition, centered values", {**COMPETITION, "center_values": True}
    ),
    "paper-batch": Variant(
        "ours, dropout 0.1, batch 512", {"dropout": 0.1}, batch_size=512, has_one_run=True
    ),
}


class MemoryState(NamedTuple):
    """The state of the memory of a layer after a training step."""

    effective_rank: float
    distinct: float  # number of priors; a cosine above 0.99 counts as the same
    overlap: float  # Jaccard overlap of the winners, mean over pairs of priors of a head


class Ours(nn.Module):
    """A model of this package whose memories are measured."""

    training_epochs = math.inf

    def __init__(self, config: AiTConfig) -> None:
        super().__init__()
        self.model = AiT(config)
        self.balance_losses: list[Float[Tensor, ""]] = []  # of the layers in the last step
        for block in self.model.blocks:
            workspace = cast(Block, block).workspace
            workspace.register_forward_hook(
                lambda _, inputs, output: self.balance_losses.append(output.balance_loss.detach())
            )

    def forward(self, images: Float[Tensor, "B C H W"], questions: None = None) -> ModelOutput:
        self.balance_losses.clear()
        return self.model(images)

    def measure(self) -> list[MemoryState]:
        """Return the state of each memory after a training step."""
        return [
            MemoryState(health.effective_rank, health.distinct, cast(float, health.overlap))
            for health in memory_health(self.model)
        ]


class Official(nn.Module):
    """The model of the official code, whose memories are measured."""

    training_epochs = 1
    """`ait.py` calls `eval()` after the first epoch and never `train()`; it still writes then."""

    def __init__(self, folder: Path, hopfield: Path | None, config: AiTConfig) -> None:
        super().__init__()
        ignore_cuda()
        self.model = build_official(folder, hopfield, config)
        layers = cast(Any, self.model).transformer.layers
        self.memories = [layer[1].fn.memoryupdate for layer in layers]
        self.balance_losses: list[Float[Tensor, ""]] = []
        self.gates: list[Float[Tensor, "M S T"]] = []  # attention; 0 for tokens that lose
        for memory in self.memories:
            memory.mha.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        self.gates.append(output[1].detach())
        self.balance_losses.append(output[2].detach())

    def forward(self, images: Float[Tensor, "B C H W"], questions: None = None) -> ModelOutput:
        self.gates.clear()
        self.balance_losses.clear()
        logits, aux_loss = self.model(images)
        return ModelOutput(logits, aux_loss.mean())

    def measure(self) -> list[MemoryState]:
        """Return the state of each memory after a training step."""
        return [
            MemoryState(
                effective_rank(memory.memory.data),
                float(count_distinct(memory.memory.data)),
                mean_overlap(gates.movedim(1, 0) > 0),
            )
            for memory, gates in zip(self.memories, self.gates, strict=True)
        ]


def mean_overlap(takes: Bool[Tensor, "S M T"]) -> float:
    """Return the Jaccard overlap of the tokens of two priors, mean over the pairs of a head."""
    count = takes.float()
    shared = count @ count.mT  # (S, M, M)
    size = count.sum(dim=-1)
    union = size[:, :, None] + size[:, None] - shared
    first, second = torch.triu_indices(shared.shape[1], shared.shape[1], offset=1)
    return float((shared / union.clamp(min=1))[:, first, second].double().mean())


def identify(folder: Path) -> dict[str, str]:
    """Return git's ids of the official files, as shown by `git ls-tree` for their commit."""
    contents = {name: (folder / name).read_bytes() for name in OFFICIAL_FILES}
    return {
        name: hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        for name, content in contents.items()
    }
