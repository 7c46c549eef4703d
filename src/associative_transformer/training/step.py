"""One step of training: forward, backward and update, or no change if the gradient is not finite.

A step never waits for the device: the gradient is checked, and skipped steps are counted, there.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Bool, Float
from torch import Tensor, nn

from associative_transformer import distributed
from associative_transformer.compute import autocast, choose_precision
from associative_transformer.experiment import TrainConfig
from associative_transformer.interface import Batch, UserError
from associative_transformer.kernels import over_ranks
from associative_transformer.training.anomaly import REMEDY, find_anomaly
from associative_transformer.training.averaging import WeightAverage
from associative_transformer.training.loss import Loss, count_correct
from associative_transformer.training.optimizers import build_optimizer
from associative_transformer.training.parameters import freeze, set_training_mode
from associative_transformer.training.schedule import learning_rate
from associative_transformer.workspace import GlobalWorkspace

MAX_BAD_STEPS = 10
"""Training stops after this many steps in a row without a finite gradient."""


class Sums(NamedTuple):
    """Sums over images; dividing them by `images` gives the means."""

    loss: Float[Tensor, ""]  # cross-entropy in nats
    balance_loss: Float[Tensor, ""]
    correct: Float[Tensor, ""]
    images: Float[Tensor, ""]


class SkippedSteps:
    """Counts of skipped steps, kept on the device; reading a count waits for the device."""

    def __init__(self, device: torch.device) -> None:
        counts = torch.zeros(3, dtype=torch.int64, device=device)
        self._total, self._in_a_row, self._longest = counts  # longest streak since the last check

    def count(self, is_bad: Bool[Tensor, ""]) -> None:
        """Count a step, which was skipped if `is_bad`."""
        self._total += is_bad
        self._in_a_row.add_(1).mul_(is_bad)
        torch.maximum(self._longest, self._in_a_row, out=self._longest)

    @property
    def total(self) -> int:
        """Number of steps skipped so far."""
        return int(self._total)

    @property
    def in_a_row(self) -> int:
        """Number of steps skipped since the last good one."""
        return int(self._in_a_row)

    def restore(self, total: int, in_a_row: int) -> None:
        """Continue from the counts of a checkpoint."""
        self._total.fill_(total)
        self._in_a_row.fill_(in_a_row)
        self._longest.fill_(in_a_row)

    def check(self) -> None:
        """Raise UserError if `MAX_BAD_STEPS` steps in a row were skipped since the last check."""
        if int(self._longest) >= MAX_BAD_STEPS:
            raise UserError(
                f"the gradient was not finite for {MAX_BAD_STEPS} steps in a row: {REMEDY}; "
                "--train.detect-anomaly names the operation"
            )
        self._longest.copy_(self._in_a_row)


class TrainingStep:
    """A step of the optimizer, with the gradient averaged over the micro-batches of a batch.

    A step whose loss or gradient is not finite changes neither the weights nor the memory nor the
    statistics of a BatchNorm; `skipped` counts it.
    """

    def __init__(
        self,
        model: nn.Module,
        train: TrainConfig,
        accelerator: Accelerator,
        loss: Loss | None = None,
    ) -> None:
        self.train, self.accelerator = train, accelerator
        self.loss = Loss(train.loss) if loss is None else loss
        _check_ranks(model, train)
        self.model = model.to(accelerator.device)
        freeze(model, train.freeze)
        set_training_mode(model, train.freeze)
        self.workspaces = [m for m in model.modules() if isinstance(m, GlobalWorkspace)]
        pools = {over_ranks.num_pools(workspace.config.pool) for workspace in self.workspaces}
        self.num_pools = max(pools, default=1)
        self.precision = choose_precision(train.precision, accelerator.device, None).precision
        has_unused = any(not w.config.differentiable_write for w in self.workspaces)
        has_unused |= getattr(getattr(model, "config", None), "read", None) == "none"
        self.replica = distributed.replicate(self.model, accelerator.device, has_unused)
        self.optimizer = build_optimizer(self.model, train)
        ema = train.ema_decay
        self.average = None if ema is None else WeightAverage(self.model, ema)
        self.skipped = SkippedSteps(accelerator.device)

    def __call__(self, batch: Batch) -> Float[Tensor, "4"]:
        """Take the step and return the `Sums` of its images, all zero if it was skipped.

        If several processes train together, each passes its share of the batch and gets the sums
        over that share.
        """
        old_buffers = [buffer.clone() for buffer in self.model.buffers()]
        *first, last = self._split(batch)
        with find_anomaly(self.model) if self.train.detect_anomaly else nullcontext():
            with distributed.without_exchange(self.replica):
                parts = [self._accumulate(micro) for micro in first]
            parts.append(self._accumulate(last))
        sums = torch.stack([torch.stack(part).double() for part in parts]).sum(dim=0)
        is_bad = ~self._clip().isfinite()
        self.optimizer.step(is_bad)
        if self.average is not None:
            self.average.update(is_bad)
        for buffer, old in zip(self.model.buffers(), old_buffers, strict=True):
            buffer.copy_(torch.where(is_bad, old, buffer))
        self.skipped.count(is_bad)
        return torch.where(is_bad, 0.0, sums)

    @property
    def learning_rate(self) -> float:
        """The rate of the latest step, or of the next one if it is already set.

        With a layer decay, it is that of the head.
        """
        return float(max(group["lr"] for group in self.optimizer.param_groups))

    def set_learning_rate(self, epoch: int, step: int, steps_per_epoch: int) -> None:
        """Set the rate for a step of an epoch, both counted from 0."""
        moment = epoch + step / steps_per_epoch
        rate = learning_rate(self.train, moment, steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)

    def set_training_mode(self) -> None:
        """Set the model to training mode, except for what is frozen."""
        set_training_mode(self.model, self.train.freeze)

    def averaged(self) -> AbstractContextManager[None]:
        """Let the model have averaged weights, if there are any, inside a `with` block."""
        return nullcontext() if self.average is None else self.average.in_use()

    def finish(self) -> None:
        """Let the model keep averaged weights, if there are any: the training is over."""
        if self.average is not None:
            self.average.swap()
            self.average = None

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs in addition to the model: moments and averages."""
        moments = self.optimizer.state_dict()
        if self.average is None:
            return moments
        return {"optimizer": moments, "average": self.average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore moments and averages. Raises ValueError if they are those of another step."""
        if (self.average is not None) != ("average" in state):
            raise ValueError("averaged weights are missing, or there are some")
        if self.average is not None:
            self.average.load_state_dict(state["average"])
            state = state["optimizer"]
        self.optimizer.load_state_dict(state)

    def try_out(self, batch: Batch) -> None:
        """Compute the gradient of a batch, but keep weights, memory and random state."""
        old_buffers = [buffer.clone() for buffer in self.model.buffers()]
        with torch.random.fork_rng():
            for micro in self._split(batch):
                self._accumulate(micro)
        self.optimizer.zero_grad()
        for buffer, old in zip(self.model.buffers(), old_buffers, strict=True):
            buffer.copy_(old)

    def compile(self) -> None:
        """Compile the model when it is called next: one graph for training, one for evaluation."""
        self.model.compile(fullgraph=True)

    def undo_compile(self) -> None:
        """Return to the model as it was before `compile`; torch has no public way to do this."""
        self.model._compiled_call_impl = None

    def seed(self, *position: int) -> None:
        """Seed torch from the position in the run, so that a resumed run draws the same numbers.

        Several processes draw the same numbers if the model has a workspace, which they share;
        otherwise each draws its own.
        """
        rank = 0 if self.workspaces else distributed.rank()
        own = [rank] if rank else []  # a single process draws the same as rank 0
        sequence = np.random.SeedSequence((self.train.seed, *position, *own))
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))

    def reset_memories(self, epoch: int) -> None:
        """Draw new memories for the workspaces that are reset at the start of each epoch."""
        if self.train.freeze != "none":
            return
        self.seed(epoch, 0)
        for workspace in self.workspaces:
            if workspace.config.reset_each_epoch:
                workspace.reset()

    def _accumulate(self, batch: Batch) -> Sums:
        """Add the gradient of a micro-batch and return the sums over its images."""
        with autocast(self.accelerator.device, self.precision):
            logits, aux_loss = self.replica(batch.images, batch.questions)
        loss = self.loss(logits.float(), batch.labels)
        total = loss + aux_loss
        # a loss that is not finite must give a NaN gradient, which reaches all ranks
        total = total * torch.where(total.isfinite(), 1.0, torch.nan)
        self.accelerator.backward(total / self.train.accumulation_steps)
        correct = count_correct(logits, batch.labels)
        size = torch.full_like(correct, len(batch.labels))
        return Sums(loss.detach() * size, aux_loss.detach() * size, correct, size)

    def _split(self, batch: Batch) -> list[Batch]:
        parts = self.train.accumulation_steps
        columns = [[None] * parts if x is None else x.chunk(parts) for x in batch]
        return [Batch(*micro) for micro in zip(*columns, strict=True)]

    def _clip(self) -> Float[Tensor, ""]:
        """Return the norm of the gradient, after clipping it if `clip_norm` is set."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.train.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(
                self.model.parameters(), self.train.clip_norm, norm
            )
        return norm


def _check_ranks(model: nn.Module, train: TrainConfig) -> None:
    """Raise UserError if the processes cannot divide a batch or would change the result."""
    ranks, parts = distributed.num_ranks(), train.accumulation_steps
    if train.batch_size % (ranks * parts):
        raise UserError(
            f"--train.batch-size {train.batch_size} cannot be divided among {ranks} processes "
            f"with --train.accumulation-steps {parts}: choose a multiple of {ranks * parts}"
        )
    has_statistics = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    if ranks > 1 and has_statistics and train.freeze != "backbone":
        raise UserError(
            f"{type(model).__name__} has a BatchNorm, whose statistics would differ between "
            f"{ranks} processes: train it in one process"
        )
