"""Models trained by Lightning, in one process and in two.

`python tests/drivers/lightning_ranks.py FOLDER` trains every case in two processes, the second of
which Lightning starts. Each writes what it has at the end to FOLDER/RANK.pt.

Dims     L layers   M priors   D prior width
"""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from associative_transformer.models import build_model
from associative_transformer.training.parameters import parameter_groups
from associative_transformer.workspace import GlobalWorkspace
from making.tiny import MEMORY, TINY, VARIANTS

BATCH, IMAGES = 12, 48
CONFIGS = {"ait": TINY["ait"], "ait-image": VARIANTS["ait-image"], "vit": TINY["vit"]}


class Classifier(lightning.LightningModule):
    """Train a model of this package, as the documentation shows."""

    def __init__(self, model: Any, lr: float = 1e-3) -> None:  # noqa: ANN401
        super().__init__()
        self.model, self.lr = model, lr

    def on_fit_start(self) -> None:
        self.train()  # a loaded model is in evaluation mode, and Lightning leaves it there

    def training_step(self, batch: list[Tensor]) -> Tensor:
        images, labels = batch
        logits, aux_loss = self.model(images)
        return cross_entropy(logits, labels) + aux_loss

    def validation_step(self, batch: list[Tensor]) -> None:
        images, labels = batch
        is_right = self.model(images).logits.argmax(dim=1) == labels
        self.log("val_accuracy", is_right.float().mean(), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameter_groups(self.model), self.lr)


class Watcher(Callback):
    """Record the images of each training batch, and the memories after it."""

    def __init__(self) -> None:
        self.memories: list[Tensor] = []
        self.images: list[Tensor] = []

    def on_train_batch_end(
        self,
        trainer: Any,  # noqa: ANN401
        module: Any,  # noqa: ANN401
        outputs: Any,  # noqa: ANN401
        batch: list[Tensor],
        batch_idx: int,
    ) -> None:
        self.memories.append(memories(module))
        self.images.append(batch[0])


def memories(module: torch.nn.Module) -> Tensor:
    """Return copies of the memories of a batch, or of the learned contents of those of images."""
    found = [m.priors for m in module.modules() if isinstance(m, GlobalWorkspace)]
    return torch.stack(found).detach().clone() if found else torch.zeros(0)


def draw() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(IMAGES, 3, 8, 8, generator=generator)
    return TensorDataset(images, torch.randint(5, (IMAGES,), generator=generator))


def fit(
    module: Classifier,
    loader: DataLoader[Any] | None = None,
    checkpoint: Path | None = None,
    **options: Any,  # noqa: ANN401
) -> lightning.Trainer:
    """Train for two epochs, validating after each, and return the trainer."""
    fixed: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "max_epochs": 2, "logger": False}
    fixed |= {"enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(**fixed | {"enable_model_summary": False} | options)
    training, validation = loader or DataLoader(draw(), BATCH), DataLoader(draw(), BATCH)
    trainer.fit(module, training, validation, ckpt_path=checkpoint)
    return trainer


class Case(NamedTuple):
    """What two processes train, and with which options of the trainer."""

    model: Any
    options: dict[str, Any]
    is_shuffled: bool = False  # by Lightning, which does so in several processes by default


AS_ONE = {"precision": "64-true"}  # so that rounding does not decide which tokens win
CASES = {
    "shuffled": Case(replace(TINY["ait"], workspace=replace(MEMORY, dropout=0.1)), {}, True),
    "ait": Case(TINY["ait"], AS_ONE),
    "ait-image": Case(VARIANTS["ait-image"], AS_ONE),
    "vit": Case(TINY["vit"], AS_ONE),
    "accumulation": Case(TINY["ait"], AS_ONE | {"accumulate_grad_batches": 2}),
    "bfloat16": Case(TINY["ait"], {"precision": "bf16-mixed"}),
}


class Outcome(NamedTuple):
    """What a process has at the end."""

    number: float  # drawn after training
    images: Tensor  # of all batches
    memories: Tensor  # (steps, L, M, D); empty without a workspace
    state: dict[str, Tensor]
    accuracy: float


def train(name: str, rank: int, world: int) -> Outcome:
    """Train with the rank as the seed; all ranks start from the weights and memory of rank 0."""
    torch.manual_seed(rank)
    case, watcher, data = CASES[name], Watcher(), draw()
    module = Classifier(build_model(case.model))
    sampler = None if case.is_shuffled else DistributedSampler(data, world, rank, shuffle=False)
    loader = DataLoader(data, BATCH // world, sampler=sampler)
    options = case.options | ({"strategy": "ddp", "devices": world} if world > 1 else {})
    trainer = fit(module, loader, callbacks=[watcher], **options)
    return Outcome(
        float(torch.rand(())),
        torch.cat(watcher.images),
        torch.stack(watcher.memories),
        {key: value.detach() for key, value in module.model.state_dict().items()},
        float(trainer.callback_metrics["val_accuracy"]),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    own_rank = int(os.environ.get("LOCAL_RANK", "0"))  # Lightning sets it in the second process
    outcomes = {name: train(name, own_rank, 2)._asdict() for name in CASES}
    torch.save(outcomes, Path(sys.argv[1]) / f"{own_rank}.pt")
