"""One step of training: forward, backward and update on the device, or nothing at all.

Dims     B batch   C channels   H W image side   O classes
"""

import math
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType, ProjectConfiguration
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from associative_transformer.experiment import TrainConfig
from associative_transformer.interface import Batch, UserError
from associative_transformer.workspace import GlobalWorkspace

MAX_BAD_STEPS = 10
"""Steps in a row without a finite gradient after which training gives up."""


class Sums(NamedTuple):
    """Sums over images, to be divided by their number."""

    loss: Float[Tensor, ""]  # cross-entropy in nats
    balance_loss: Float[Tensor, ""]
    correct: Float[Tensor, ""]
    images: Float[Tensor, ""]


class TrainingStep:
    """Update a model with AdamW, over the micro-batches of a batch.

    A step whose gradient is not finite changes nothing, neither weights nor memory nor the
    statistics of a BatchNorm; it is counted in `num_skipped`. The last of `MAX_BAD_STEPS` such
    steps in a row raises UserError.
    """

    def __init__(self, model: nn.Module, train: TrainConfig, accelerator: Accelerator) -> None:
        self.train, self.accelerator = train, accelerator
        self.model = model.to(accelerator.device)
        if train.compile:
            self.model.compile()
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            train.lr,
            train.betas,
            weight_decay=train.weight_decay,
            fused=True,
        )
        self.workspaces = [m for m in model.modules() if isinstance(m, GlobalWorkspace)]
        self.num_skipped = 0
        self.num_bad = 0  # skipped in a row

    def __call__(self, batch: Batch) -> Float[Tensor, "4"]:
        """Take the step and return the `Sums` of its images, zero where it was skipped."""
        before = [buffer.clone() for buffer in self.model.buffers()]
        parts = [self._accumulate(micro) for micro in self._split(batch)]
        sums = torch.stack([torch.stack(part).double() for part in parts]).sum(dim=0)
        limit = self.train.clip_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        if norm.isfinite():
            self.optimizer.step()
            self.num_bad = 0
        else:
            self._skip(before)
            sums = torch.zeros_like(sums)
        self.optimizer.zero_grad()
        return sums

    def _accumulate(self, batch: Batch) -> Sums:
        with self.accelerator.autocast():
            logits, aux_loss = self.model(batch.images, batch.questions)
        loss = cross_entropy(logits.float(), batch.labels)
        self.accelerator.backward((loss + aux_loss) / self.train.accumulation_steps)
        correct = (logits.detach().argmax(dim=-1) == batch.labels).float().sum()
        size = torch.full_like(correct, len(batch.labels))
        return Sums(loss.detach() * size, aux_loss.detach() * size, correct, size)

    def _split(self, batch: Batch) -> list[Batch]:
        parts = self.train.accumulation_steps
        columns = [[None] * parts if x is None else x.chunk(parts) for x in batch]
        return [Batch(*micro) for micro in zip(*columns, strict=True)]

    def _skip(self, before: list[Tensor]) -> None:
        for buffer, value in zip(self.model.buffers(), before, strict=True):
            buffer.copy_(value)
        self.num_skipped += 1
        self.num_bad += 1
        if self.num_bad == MAX_BAD_STEPS:
            raise UserError(
                f"the gradient was not finite {MAX_BAD_STEPS} steps in a row: start again with "
                "a lower --train.lr, or with --train.clip-norm 1.0"
            )


def make_accelerator(train: TrainConfig, project: ProjectConfiguration) -> Accelerator:
    """Choose device, precision and tracker. Raises UserError where one is not to be had."""
    has_gpu = train.device == "auto" and torch.cuda.is_available()
    precision = train.precision
    if precision == "auto":
        is_fast = has_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bfloat16" if is_fast else "float32"
    tracker = None if train.tracker == "none" else train.tracker
    if tracker and LoggerType(tracker) not in get_available_trackers():
        raise UserError(f"the tracker {tracker} is not installed: pip install {tracker}")
    AcceleratorState._reset_state(reset_partial_state=True)  # what an earlier run here has fixed
    accelerator = Accelerator(
        cpu=not has_gpu,
        mixed_precision="bf16" if precision == "bfloat16" else "no",
        log_with=tracker,
        project_config=project,
    )
    if accelerator.num_processes > 1:
        raise UserError(
            "training on several processes is not supported yet, since each would hold a memory "
            "of its own: start one process"
        )
    return accelerator
