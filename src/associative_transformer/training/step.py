"""One step of training: forward, backward and update on the device, or nothing at all.

A step never waits for the device: whether its gradient is finite is decided and counted there.

Dims     B batch   C channels   H W image side   O classes
"""

from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs, LoggerType, ProjectConfiguration
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from associative_transformer import distributed
from associative_transformer.distributed import INIT_METHOD
from associative_transformer.experiment import TrainConfig
from associative_transformer.interface import Batch, UserError
from associative_transformer.kernels import over_ranks
from associative_transformer.training.anomaly import REMEDY, find_anomaly
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
    statistics of a BatchNorm; it is counted. `check` reads the count.
    """

    def __init__(self, model: nn.Module, train: TrainConfig, accelerator: Accelerator) -> None:
        self.train, self.accelerator = train, accelerator
        _check_ranks(model, train)
        self.model = model.to(accelerator.device)
        self.workspaces = [m for m in model.modules() if isinstance(m, GlobalWorkspace)]
        pools = {over_ranks.num_pools(workspace.config.pool) for workspace in self.workspaces}
        self.num_pools = max(pools, default=1)
        if train.compile:
            self.model.compile(fullgraph=True)
        is_detached = any(not w.config.differentiable_write for w in self.workspaces)
        self.replica = distributed.replicate(self.model, accelerator.device, is_detached)
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            train.lr,
            train.betas,
            weight_decay=train.weight_decay,
            fused=True,
        )
        # steps skipped in all, in a row up to now, and most of them in a row since `check`
        self.skipped, self.bad, self.most_bad = torch.zeros(
            3, dtype=torch.int64, device=accelerator.device
        )

    def __call__(self, batch: Batch) -> Float[Tensor, "4"]:
        """Take the step and return the `Sums` of its images, zero where it was skipped.

        Of several processes each gives its share of the batch, and gets the sums over it.
        """
        before = [buffer.clone() for buffer in self.model.buffers()]
        *first, last = self._split(batch)
        with find_anomaly(self.model) if self.train.detect_anomaly else nullcontext():
            with distributed.without_exchange(self.replica):
                parts = [self._accumulate(micro) for micro in first]
            parts.append(self._accumulate(last))
        sums = torch.stack([torch.stack(part).double() for part in parts]).sum(dim=0)
        is_bad = ~self._clip().isfinite()
        # the fused AdamW leaves weights and moments alone where this tensor is 1
        self.optimizer.found_inf = is_bad.float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad()
        for buffer, value in zip(self.model.buffers(), before, strict=True):
            buffer.copy_(torch.where(is_bad, value, buffer))
        self.skipped += is_bad
        self.bad.add_(1).mul_(is_bad)
        torch.maximum(self.most_bad, self.bad, out=self.most_bad)
        return torch.where(is_bad, 0.0, sums)

    def seed(self, *place: int) -> None:
        """Seed torch from the position in the run, so that nothing depends on what came before.

        Processes draw alike for the workspace that they share, and for a model without one apart.
        """
        apart = [] if self.workspaces or distributed.rank() == 0 else [distributed.rank()]
        sequence = np.random.SeedSequence((self.train.seed, *place, *apart))
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))

    @property
    def num_skipped(self) -> int:
        """Count the steps without a finite gradient; waits for the device."""
        return int(self.skipped)

    @property
    def num_bad(self) -> int:
        """Count those of them since the last good step; waits for the device."""
        return int(self.bad)

    def restore_counts(self, num_skipped: int, num_bad: int) -> None:
        """Go on counting from here, as a resumed run does."""
        self.skipped.fill_(num_skipped)
        self.bad.fill_(num_bad)
        self.most_bad.fill_(num_bad)

    def check(self) -> None:
        """Raise UserError if `MAX_BAD_STEPS` steps in a row, or more, had no finite gradient."""
        if int(self.most_bad) >= MAX_BAD_STEPS:
            raise UserError(
                f"the gradient was not finite {MAX_BAD_STEPS} steps in a row: {REMEDY}; "
                "--train.detect-anomaly names the operation"
            )
        self.most_bad.copy_(self.bad)

    def _accumulate(self, batch: Batch) -> Sums:
        with self.accelerator.autocast():
            logits, aux_loss = self.replica(batch.images, batch.questions)
        loss = cross_entropy(logits.float(), batch.labels)
        total = loss + aux_loss
        # a loss that is not finite makes its gradient so too, and that of all ranks with it
        total = total * torch.where(total.isfinite(), 1.0, torch.nan)
        self.accelerator.backward(total / self.train.accumulation_steps)
        correct = (logits.detach().argmax(dim=-1) == batch.labels).float().sum()
        size = torch.full_like(correct, len(batch.labels))
        return Sums(loss.detach() * size, aux_loss.detach() * size, correct, size)

    def _split(self, batch: Batch) -> list[Batch]:
        parts = self.train.accumulation_steps
        columns = [[None] * parts if x is None else x.chunk(parts) for x in batch]
        return [Batch(*micro) for micro in zip(*columns, strict=True)]

    def _clip(self) -> Float[Tensor, ""]:
        """Give the norm of the gradient, and clip it where the configuration says so."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.train.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(
                self.model.parameters(), self.train.clip_norm, norm
            )
        return norm


def _check_ranks(model: nn.Module, train: TrainConfig) -> None:
    """Raise UserError where the processes can't share the batches, or give another answer."""
    ranks, parts = distributed.num_ranks(), train.accumulation_steps
    if train.batch_size % (ranks * parts):
        raise UserError(
            f"batch_size {train.batch_size} can't be shared by {ranks} processes with "
            f"accumulation_steps {parts}: take a multiple of {ranks * parts}"
        )
    has_statistics = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    if ranks > 1 and has_statistics:
        raise UserError(
            f"a {type(model).__name__} has a BatchNorm, whose statistics would differ between "
            f"{ranks} processes: start one process"
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
    return Accelerator(
        cpu=not has_gpu,
        mixed_precision="bf16" if precision == "bfloat16" else "no",
        log_with=tracker,
        project_config=project,
        kwargs_handlers=[InitProcessGroupKwargs(init_method=INIT_METHOD)],
    )
