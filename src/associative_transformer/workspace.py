"""The shared global workspace: tokens compete to write a small memory, then read it back.

Dims     B batch   N tokens per image   T = B * N pooled tokens   E token width
         M priors  D prior width        S heads of the bottleneck attention
Symbols  `priors` gamma^t, the explicit memory   `attractors` f_LT(gamma)   `smoothing` alpha
         `beta` inverse temperature              `bottleneck` k             `balance_weight` sigma
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from associative_transformer import kernels
from associative_transformer.functional import (
    AttendOutput,
    Selection,
    hopfield_retrieve,
    update_priors,
)
from associative_transformer.kernels.over_ranks import Pool
from associative_transformer.kernels.plain_linear import is_plain
from associative_transformer.kernels.protected_copy import protected_copy

MAX_FACTOR = 1e6
"""Largest inverse temperature, far beyond the point where each token retrieves one attractor, and
largest weight of a loss. Results of much larger ones are not finite."""
MAX_STEPS = 1_000
"""Largest number of times that a layer may repeat the same step."""
Attend = Callable[[Tensor, Tensor, Tensor, Tensor, int | None, Pool], AttendOutput]
"""A bottleneck attention: `attend(q, tokens, w_k, w_v, bottleneck, pool)` returns the selection
and its unevenness. It gets the queries (S, M, D), the tokens of this process (T, E), the weights
of keys and values (S, D, E), and the fields `bottleneck` and `pool` of `WorkspaceConfig`."""
Merge = Callable[[Tensor, Pool], Tensor]
"""A function that combines writes: `merge(written, pool)` gets what one pool writes (M, D) and
returns what all pools together write to the memory that they share."""
Retrieve = Callable[[Tensor, Tensor, float, int], Tensor]
"""The Hopfield retrieval, with the signature of `functional.hopfield_retrieve`."""


@dataclass(frozen=True)
class WorkspaceConfig:
    """The memory and the two attentions that write and read it.

    If there are several pools, the memory moves towards the mean of what they write.
    """

    num_priors: int = 32
    """M: rows of the explicit memory."""
    prior_dim: int = 32
    """D: width of a prior, and of a head of the bottleneck attention."""
    num_heads: int = 8
    """S: heads of the bottleneck attention."""
    bottleneck: int | None = 512
    """k: tokens of the pooled batch that each prior of each head attends to; None: all of them."""
    smoothing: float = 0.1
    """alpha: share of the new write in the moving average of the memory."""
    beta: float = 1.0
    """Inverse temperature of the Hopfield retrieval."""
    num_steps: int = 1
    """Retrieval steps of one read."""
    balance_weight: float = 0.01
    """sigma: weight of the balance loss; 0 turns it off."""
    dropout: float = 0.0
    """Dropout rate of what is written, before it is added to the priors."""
    differentiable_write: bool = True
    """Let gradients flow through the memory into the write; False: as in the official code."""
    reset_each_epoch: bool = False
    """Draw the memory anew at the start of each training epoch."""
    pool: Pool = "global"
    """Pool the tokens of all processes (global), each machine (node) or each process (local)."""

    def __post_init__(self) -> None:
        for name in ("num_priors", "prior_dim", "num_heads", "num_steps"):
            check_count(name, getattr(self, name))
        if self.num_steps > MAX_STEPS:
            raise ValueError(f"num_steps must be at most {MAX_STEPS:,}, not {self.num_steps}")
        if self.bottleneck is not None and self.bottleneck < 1:
            raise ValueError(f"bottleneck must be at least 1 (or None), not {self.bottleneck}")
        if not 0 < self.smoothing <= 1:
            raise ValueError(f"smoothing must be in (0, 1], not {self.smoothing}")
        check_factor("beta", self.beta)
        if self.balance_weight != 0:
            check_factor("balance_weight", self.balance_weight)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")


class Sources(NamedTuple):
    """What keys and values are computed from: k = u W^K and v = u W^V for each head."""

    tokens: Float[Tensor, "T E"]  # u
    w_k: Float[Tensor, "S D E"]
    w_v: Float[Tensor, "S D E"]


class WriteOutput(NamedTuple):
    """What a pool of tokens writes."""

    priors: Float[Tensor, "M D"]  # gamma-hat, before the moving average
    balance_loss: Float[Tensor, ""]  # weighted; zero if it is turned off
    selection: Selection


class WorkspaceOutput(NamedTuple):
    """What the tokens get back from the workspace."""

    read: Float[Tensor, "B N E"]  # to be added to the tokens
    balance_loss: Float[Tensor, ""]  # to be added to the loss; zero in evaluation


class GlobalWorkspace(nn.Module):
    """Write the batch into a few priors through a bottleneck, then read the priors back.

    In training, the tokens of all images form one pool and the memory moves once per forward
    pass. In evaluation, the memory is frozen and the output for an image does not depend on the
    others.

    >>> from associative_transformer import GlobalWorkspace, WorkspaceConfig
    >>> workspace = GlobalWorkspace(192, WorkspaceConfig(num_priors=16))
    >>> workspace(torch.randn(8, 64, 192)).read.shape
    torch.Size([8, 64, 192])

    `attend` is the bottleneck attention. The default uses the fastest implementation for the
    device, which can be differentiated once. With several processes (an initialized process
    group), it pools the tokens of all of them, or of those that `config.pool` selects, and keeps
    the memory the same on all. `kernels.PoolAttention` makes an `attend` from another
    implementation, such as `functional.pooled_attention`, which can be differentiated twice. An
    `attend` is called with the weights of `to_k` and `to_v`, not with their outputs. If one of
    these layers has been replaced, parametrized (LoRA, pruning) or hooked, both are called, and
    `attend` gets their outputs instead of the tokens, with weights that select the columns of
    each head.

    `merge` combines what several pools write. It defaults to the method `merge` of `attend`, and
    to the identity if there is none. A custom `attend` and `merge` together have to ensure that
    all processes write the same values.

    `retrieve` is the Hopfield retrieval. A `reader`, called with the tokens and the attractors of
    each image, replaces it.

    With activation checkpointing, keep this module outside the recomputed region, because a
    second forward pass would move the memory again.
    """

    priors: Tensor

    def __init__(
        self,
        embed_dim: int,
        config: WorkspaceConfig | None = None,
        attend: Attend = kernels.attend,
        reader: nn.Module | None = None,
        retrieve: Retrieve = hopfield_retrieve,
        merge: Merge | None = None,
    ) -> None:
        super().__init__()
        c = self.config = config or WorkspaceConfig()
        self.embed_dim = embed_dim
        self.attend = attend
        self.merge: Merge = getattr(attend, "merge", _identity) if merge is None else merge
        self.reader = reader
        self.retrieve = retrieve
        heads_dim = c.num_heads * c.prior_dim
        self.to_q = nn.Linear(c.prior_dim, heads_dim, bias=False)  # W^Q
        self.to_k = nn.Linear(embed_dim, heads_dim, bias=False)  # W^K
        self.to_v = nn.Linear(embed_dim, heads_dim, bias=False)  # W^V
        self.to_prior = nn.Linear(heads_dim, c.prior_dim, bias=False)  # W^O
        self.dropout = nn.Dropout(c.dropout)
        self.norm = nn.LayerNorm(c.prior_dim, eps=1e-6)
        self.to_attractor = nn.Linear(c.prior_dim, embed_dim)  # f_LT
        self.register_buffer("priors", torch.randn(c.num_priors, c.prior_dim))  # gamma

    def forward(self, u: Float[Tensor, "B N E"]) -> WorkspaceOutput:
        check_shape("tokens", u, "B", "N", self.embed_dim)
        if not self.training:  # the memory is frozen: nothing competes, nothing is written
            return WorkspaceOutput(self.read(u, self.priors), self.priors.new_zeros(()))
        written = self.write(u.flatten(0, 1))  # (T, E): one pool for the whole batch
        priors = self.remember(written.priors)
        return WorkspaceOutput(self.read(u, priors), written.balance_loss)

    def write(self, tokens: Float[Tensor, "T E"]) -> WriteOutput:
        """Let the tokens of the pool compete to write; the memory does not move yet.

        Step 3:  gamma-hat = LN(gamma^t + Dropout([h_1 .. h_S] W^O))
        """
        c = self.config
        priors = protected_copy(self.priors)  # `remember` overwrites them before backward
        q = rearrange(self.to_q(priors), "m (s d) -> s m d", s=c.num_heads)
        sources = self._sources(tokens, q.dtype)
        selection, unevenness = self.attend(q, *sources, c.bottleneck, c.pool)
        h = rearrange(selection.value, "s m d -> m (s d)")
        written = self.merge(self.norm(priors + self.dropout(self.to_prior(h))), c.pool)
        no_loss = priors.new_zeros(())
        balance_loss = c.balance_weight * unevenness if c.balance_weight else no_loss
        return WriteOutput(written, balance_loss, selection)

    def remember(self, written: Float[Tensor, "M D"]) -> Float[Tensor, "M D"]:
        """Move the memory towards the write, or leave it unchanged if the result is not finite.

        Step 4:  gamma^{t+1} = normalize((1 - alpha) gamma^t + alpha gamma-hat)
        """
        if not self.config.differentiable_write:
            written = written.detach()
        old = protected_copy(self.priors)
        priors = update_priors(old, written, self.config.smoothing)
        priors = torch.where(priors.isfinite().all(), priors, old).to(old.dtype)
        with torch.no_grad():
            self.priors.copy_(priors)
        return priors

    def read(
        self, u: Float[Tensor, "B N E"], priors: Float[Tensor, "M D"]
    ) -> Float[Tensor, "B N E"]:
        """Retrieve from the memory what each token is associated with.

        Step 6:  r = softmax(beta u Yᵀ) Y,  with Y = f_LT(gamma^{t+1})
        """
        c, attractors = self.config, self.to_attractor(priors)
        if self.reader is not None:
            return self.reader(u, attractors.expand(len(u), -1, -1))
        return self.retrieve(u, attractors, c.beta, c.num_steps)

    @torch.no_grad()
    def reset(self) -> None:
        """Draw the memory anew from N(0, 1)."""
        self.priors.normal_()

    def _sources(self, tokens: Float[Tensor, "T E"], dtype: torch.dtype) -> Sources:
        """Return what `attend` computes keys and values from."""
        c, is_differentiable = self.config, self.config.differentiable_write
        if all(is_plain(layer) and layer.bias is None for layer in (self.to_k, self.to_v)):
            # not with einops: torch.compile would guard on the type of a parameter and recompile
            w_k, w_v = (
                torch.unflatten(layer.weight, 0, (c.num_heads, -1))
                for layer in (self.to_k, self.to_v)
            )
        else:  # the layers have to be called, and a head selects its columns of their outputs
            k, v = self.to_k(tokens), self.to_v(tokens)
            tokens = torch.cat([k, v if is_differentiable else v.detach()], dim=-1).to(dtype)
            columns = torch.eye(tokens.shape[-1], dtype=dtype, device=tokens.device)
            w_k, w_v = columns.view(2, c.num_heads, c.prior_dim, -1)
        # a detached write gives W^V no gradient at all, rather than one of zeros
        return Sources(tokens, w_k, w_v if is_differentiable else w_v.detach())


def check_count(name: str, value: int | float, minimum: int = 1) -> None:
    """Raise ValueError if a count or a width is not an integer of at least `minimum`."""
    if not isinstance(value, int):
        raise ValueError(f"{name} must be an integer, not {value}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, not {value}")


def check_factor(name: str, value: float) -> None:
    """Raise ValueError if a factor is not positive, or larger than `MAX_FACTOR`."""
    if not 0 < value <= MAX_FACTOR:
        raise ValueError(f"{name} must be positive and at most {MAX_FACTOR:g}, not {value}")


def check_shape(name: str, x: Shaped[Tensor, "*any"], *sizes: int | str) -> None:
    """Raise ValueError if a tensor is empty, holds integers, or does not have the given sizes.

    A letter stands for any size.
    """
    shape, wanted = tuple(x.shape), f"({', '.join(map(str, sizes))})"
    pairs = zip(shape, sizes, strict=False)
    if len(shape) != len(sizes) or any(isinstance(b, int) and a != b for a, b in pairs):
        remedy = f": pass {name}[None]" if len(shape) == len(sizes) - 1 else ""
        raise ValueError(f"{name} must have shape {wanted}, not {shape}{remedy}")
    if 0 in shape:
        raise ValueError(f"{name} must not be empty: shape {wanted} is expected, not {shape}")
    if not x.is_floating_point():
        raise ValueError(
            f"{name} must be floating-point numbers of shape {wanted}, not {x.dtype} {shape}"
        )


def _identity(written: Float[Tensor, "M D"], pool: Pool) -> Float[Tensor, "M D"]:
    return written
