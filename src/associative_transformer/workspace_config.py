"""The configuration of a workspace: one memory for the whole batch, or one for each image."""

from dataclasses import dataclass, field, fields
from typing import Literal, get_args

from associative_transformer.arguments import MAX_STEPS, check_count, check_factor
from associative_transformer.interface import ADDED_LATER
from associative_transformer.kernels.over_ranks import Pool

Scope = Literal["batch", "image"]
Competition = Literal["none", "priors"]
SHARED_ONLY = ("smoothing", "reset_each_epoch", "differentiable_write", "pool")
"""Fields that have no meaning with scope "image", since no memory is kept between batches."""


@dataclass(frozen=True)
class ImageMemoryConfig:
    """How the memory of an image is read; only for the scope "image"."""

    read_head_dim: int = 32
    """d: width of a head of the read; divides the token width E."""
    use_read_norm: bool = True
    """Normalize what is read (LayerNorm over E)."""

    def __post_init__(self) -> None:
        check_count("read_head_dim", self.read_head_dim)

    def check_width(self, embed_dim: int) -> None:
        """Raise ValueError if the heads of the read do not fill the width of the tokens."""
        if embed_dim % self.read_head_dim:
            raise ValueError(
                f"image.read_head_dim {self.read_head_dim} does not divide the token width "
                f"{embed_dim}: choose a divisor"
            )


@dataclass(frozen=True)
class MemorySizes:
    """Sizes of a memory and of the attention that writes it."""

    num_priors: int = 32
    """M: rows of the explicit memory."""
    prior_dim: int = 32
    """D: width of a prior, and of a head of the bottleneck attention."""
    num_heads: int = 8
    """S: heads of the bottleneck attention."""


@dataclass(frozen=True)
class WorkspaceConfig(MemorySizes):
    """The memory and the two attentions that write and read it.

    If there are several pools, the memory moves towards the mean of what they write.

    The defaults of three fields depend on the scope: `bottleneck`, `balance_weight` and `dropout`
    are 512, 0.01 and 0.1 for a memory of the batch, and a share of 0.25, 0 and 0 for those of
    images. After construction, the fields hold these values: to change the scope of an existing
    configuration, also set them to "auto", None and None.
    """

    bottleneck: int | float | Literal["auto"] | None = "auto"
    """k: tokens of the pooled batch, or of the image, that each prior of each head attends to; a
    number between 0 and 1 is a share of the tokens of the image, None means all tokens."""
    smoothing: float = 0.1
    """alpha: share of the new write in the moving average of the memory."""
    beta: float = 1.0
    """Inverse temperature of the Hopfield retrieval."""
    num_steps: int = 1
    """Retrieval steps of one read."""
    balance_weight: float | None = None
    """sigma: weight of the balance loss; 0 turns it off."""
    dropout: float | None = None
    """Dropout rate of what is written, before it is added to the priors. Without dropout, the
    priors of a batch-wide memory soon become equal, and equal priors never separate again."""
    differentiable_write: bool = True
    """Let gradients flow through the memory into the write; False: as in the official code."""
    reset_each_epoch: bool = False
    """Draw the memory anew at the start of each training epoch."""
    pool: Pool = "global"
    """Pool the tokens of all processes (global), each machine (node) or each process (local)."""
    scope: Scope = field(default="batch", metadata=ADDED_LATER)
    """batch: one memory for all images of the batch, as in the paper; image: one for each image,
    which starts from learned contents."""
    competition: Competition = field(default="none", metadata=ADDED_LATER)
    """priors: the priors of a head compete for each token (log-softmax over the priors) before
    they choose their tokens."""
    center_values: bool = field(default=False, metadata=ADDED_LATER)
    """Subtract the mean over the tokens from the values, so that it is not written."""
    image: ImageMemoryConfig = field(default_factory=ImageMemoryConfig, metadata=ADDED_LATER)
    """How the memory of an image is read."""

    def __post_init__(self) -> None:
        for name, choices in (("scope", Scope), ("competition", Competition)):
            if getattr(self, name) not in get_args(choices):
                wanted = " or ".join(get_args(choices))
                raise ValueError(f"{name} must be {wanted}, not {getattr(self, name)}")
        is_shared = self.scope == "batch"
        if self.bottleneck == "auto":
            object.__setattr__(self, "bottleneck", 512 if is_shared else 0.25)
        if self.balance_weight is None:
            object.__setattr__(self, "balance_weight", 0.01 if is_shared else 0.0)
        if self.dropout is None:
            object.__setattr__(self, "dropout", 0.1 if is_shared else 0.0)
        for name in ("num_priors", "prior_dim", "num_heads", "num_steps"):
            check_count(name, getattr(self, name))
        if self.num_steps > MAX_STEPS:
            raise ValueError(f"num_steps must be at most {MAX_STEPS:,}, not {self.num_steps}")
        if not 0 < self.smoothing <= 1:
            raise ValueError(f"smoothing must be in (0, 1], not {self.smoothing}")
        check_factor("beta", self.beta)
        if self.balance_weight:
            check_factor("balance_weight", self.balance_weight)
        if self.dropout and not 0 < self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")
        _check_bottleneck(self)
        _check_scope(self)


def _check_bottleneck(c: WorkspaceConfig) -> None:
    """Raise ValueError if the bottleneck is neither a number of tokens nor a share of them."""
    value = c.bottleneck
    if isinstance(value, float):
        if c.scope == "batch":
            raise ValueError(
                f"bottleneck must be an integer or None with scope batch, not {value}: a share of "
                "the tokens needs scope image"
            )
        if not 0 < value < 1:
            raise ValueError(
                f"bottleneck must be an integer or a share between 0 and 1, not {value}"
            )
    elif isinstance(value, int) and value < 1:
        raise ValueError(f"bottleneck must be at least 1 (or None), not {value}")


def _check_scope(c: WorkspaceConfig) -> None:
    """Raise ValueError if a field has no meaning in the scope but is not at its default."""
    if c.scope == "batch":
        if c.image != ImageMemoryConfig():
            raise ValueError(f"image must be at its defaults with scope batch, not {c.image}")
        return
    defaults = {each.name: each.default for each in fields(c)}
    for name in SHARED_ONLY:
        if getattr(c, name) != defaults[name]:
            raise ValueError(
                f"{name} has no meaning with scope image, which keeps no memory from batch to "
                f"batch: leave it at {defaults[name]}, not {getattr(c, name)}"
            )
