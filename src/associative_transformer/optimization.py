"""How a model is optimized: batches, optimizer, learning rate, and what is not trained."""

import math
from dataclasses import dataclass, field
from typing import Literal

from associative_transformer.interface import ADDED_LATER

MAX_EPOCHS = 1_000_000
Freeze = Literal["none", "backbone", "memory"]
DecayOn = Literal["all", "matrices"]
Metric = Literal["accuracy", "balanced_accuracy", "top5_accuracy", "loss"]


@dataclass(frozen=True)
class Schedule:
    """Learning rate of each epoch or each step: a warm-up followed by a decay.

    cosine: a linear warm-up, then a cosine stretched over the whole training, so its end is cut
    off, as in the official code. inverse_sqrt: a linear warm-up, then proportional to 1 /
    sqrt(epoch). one_cycle: a rising cosine, then a falling one that ends with the training.
    warmup_stable_decay: a linear warm-up, a constant rate, and a linear decay at the end.
    """

    warmup_epochs: int = 5
    """Length of the warm-up in epochs."""
    warmup_lr: float = 1e-5
    """Learning rate of the first warm-up epoch or step."""
    min_lr: float = 1e-6
    """Lowest learning rate of cosine, one_cycle and warmup_stable_decay."""
    shape: Literal["cosine", "inverse_sqrt", "one_cycle", "warmup_stable_decay"] = "cosine"
    """Decay after the warm-up; one_cycle also warms up along a cosine instead of linearly."""
    per: Literal["epoch", "step"] = field(default="epoch", metadata=ADDED_LATER)
    """Change the learning rate once per epoch, as in the paper, or at each step."""
    decay_share: float = field(default=0.2, metadata=ADDED_LATER)
    """Share of the training that the decay of warmup_stable_decay takes."""

    def __post_init__(self) -> None:
        require(0 < self.decay_share <= 1, "decay_share", "in (0, 1]", self.decay_share)
        for name in ("warmup_epochs", "warmup_lr", "min_lr"):
            require(0 <= getattr(self, name) < math.inf, name, "0 or more", getattr(self, name))
        wanted = f"at most {MAX_EPOCHS:,}"
        require(self.warmup_epochs <= MAX_EPOCHS, "warmup_epochs", wanted, self.warmup_epochs)


@dataclass(frozen=True)
class LossConfig:
    """The loss on the labels."""

    label_smoothing: float = 0.0
    """Share of each label that is spread evenly over all classes (Szegedy et al. 2016)."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: weight the loss of each class inversely to its number of training images."""

    def __post_init__(self) -> None:
        smoothing = self.label_smoothing
        require(0 <= smoothing < 1, "label_smoothing", "at least 0 and less than 1", smoothing)


@dataclass(frozen=True)
class Stopping:
    """Which epoch is the best one, and when training stops early; both use validation images."""

    best_by: Metric = "accuracy"
    """Metric of the validation images whose best epoch is kept; loss: the lowest."""
    patience: int | None = None
    """Stop after this many epochs in a row without an improvement of the metric; None: never."""
    min_delta: float = 0.0
    """Smallest change that counts as an improvement for patience, in percent, or nats for loss."""

    def __post_init__(self) -> None:
        patience, delta = self.patience, self.min_delta
        require(patience is None or patience >= 1, "patience", "at least 1, or None", patience)
        require(0 <= delta < math.inf, "min_delta", "0 or more", delta)


@dataclass(frozen=True)
class Optimization:
    """Optimizer, batches and learning rate; the defaults are the paper's."""

    epochs: int = 100
    """Passes over the training data."""
    batch_size: int = 512
    """Images per optimizer step, summed over all devices and accumulation steps."""
    lr: float = 1e-4
    """Learning rate after the warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's two moments."""
    weight_decay: float = 0.01
    """Decoupled weight decay of all parameters but the learned contents of memories."""
    schedule: Schedule = field(default_factory=Schedule)
    """Learning rate of each epoch or step."""
    clip_norm: float | None = None
    """Maximum norm of the gradient of all parameters; None: no clipping."""
    accumulation_steps: int = 1
    """Micro-batches per optimizer step; each forms a token pool and updates the memory once."""
    freeze: Freeze = field(default="none", metadata=ADDED_LATER)
    """What to freeze. backbone: everything except the linear map to the logits (a linear probe),
    in evaluation mode; memory: the memories of batches, which are no longer written, or the
    learned contents of those of images."""
    layer_decay: float | None = field(default=None, metadata=ADDED_LATER)
    """Learning rate of each block as a multiple of the next one's, as in BEiT; None: 1."""
    optimizer: Literal["adamw", "muon", "lion"] = field(default="adamw", metadata=ADDED_LATER)
    """muon trains the matrices of the blocks, and AdamW the other weights; lion needs timm."""
    decay_on: DecayOn = field(default="all", metadata=ADDED_LATER)
    """matrices: no weight decay of biases, norms and other vectors."""
    loss: LossConfig = field(default_factory=LossConfig, metadata=ADDED_LATER)
    """The loss on the labels."""
    ema_decay: float | None = field(default=None, metadata=ADDED_LATER)
    """Evaluate and save an exponential moving average of the weights, with this share of the old
    average at each step, such as 0.999; None: the weights themselves."""
    stopping: Stopping = field(default_factory=Stopping, metadata=ADDED_LATER)
    """Which epoch is the best one, and when training stops early."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulation_steps"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require(self.epochs <= MAX_EPOCHS, "epochs", f"at most {MAX_EPOCHS:,}", self.epochs)
        require(0 < self.lr < math.inf, "lr", "positive", self.lr)
        lowest = self.schedule.min_lr
        if self.schedule.shape != "inverse_sqrt":  # which has no lowest rate
            require(lowest <= self.lr, "schedule.min_lr", f"at most lr {self.lr}", lowest)
        require(0 <= self.weight_decay < math.inf, "weight_decay", "0 or more", self.weight_decay)
        require(all(0 <= b < 1 for b in self.betas), "betas", "in [0, 1)", self.betas)
        limit = 1.0 if self.clip_norm is None else self.clip_norm
        require(0 < limit < math.inf, "clip_norm", "positive and finite, or None", limit)
        average = 0.0 if self.ema_decay is None else self.ema_decay
        require(0 <= average < 1, "ema_decay", "at least 0 and less than 1, or None", average)
        decay = 1.0 if self.layer_decay is None else self.layer_decay
        require(0 < decay <= 1, "layer_decay", "above 0 and at most 1, or None", decay)
        if self.batch_size % self.accumulation_steps:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be split into accumulation_steps "
                f"{self.accumulation_steps} equal micro-batches: change one of them"
            )


def require(is_valid: bool, name: str, wanted: str, value: object) -> None:
    if not is_valid:
        raise ValueError(f"{name} must be {wanted}, not {value}")
