"""The shared global workspace: tokens compete to write a small memory, then read it back.

Dims     B batch   N tokens per image   T = B * N pooled tokens   E token width
         M priors  D prior width        S heads of the bottleneck attention
Symbols  `priors` gamma^t, the explicit memory   `attractors` f_LT(gamma)   `smoothing` alpha
         `beta` inverse temperature              `bottleneck` k             `balance_weight` sigma
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from associative_transformer import distributed
from associative_transformer.functional import (
    Selection,
    balance_loss,
    hopfield_retrieve,
    update_priors,
)
from associative_transformer.kernels import over_ranks, pooled_attention

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, int | None], Selection]
Retrieve = Callable[[Tensor, Tensor, float, int], Tensor]


@dataclass(frozen=True)
class WorkspaceConfig:
    """The memory and the two attentions that write and read it."""

    num_priors: int = 32
    """M: rows of the explicit memory."""
    prior_dim: int = 32
    """D: width of a prior, and of a head of the bottleneck attention."""
    num_heads: int = 8
    """S: heads of the bottleneck attention."""
    bottleneck: int | None = 512
    """k: tokens of the pooled batch that one prior of one head attends to; None: all of them."""
    smoothing: float = 0.1
    """alpha: share of the new write in the moving average of the memory."""
    beta: float = 1.0
    """Inverse temperature of the Hopfield retrieval."""
    num_steps: int = 1
    """Retrieval steps of one read."""
    balance_weight: float = 0.01
    """sigma: weight of the balance loss; 0 switches it off."""
    dropout: float = 0.0
    """Dropout of what is written, before it is added to the priors."""
    differentiable_write: bool = True
    """Let gradients flow through the memory into the write; False is the official code."""
    reset_each_epoch: bool = False
    """Ask the training loop to draw the memory anew at the start of each epoch."""
    pool: over_ranks.Pool = "global"
    """global: the tokens of all processes form one pool; node: those of each machine do; local:
    those of each process, for comparison. The memory moves towards the mean of what they write."""

    def __post_init__(self) -> None:
        for name in ("num_priors", "prior_dim", "num_heads", "num_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.bottleneck is not None and self.bottleneck < 1:
            raise ValueError(f"bottleneck must be at least 1 (or None), not {self.bottleneck}")
        if not 0 < self.smoothing <= 1:
            raise ValueError(f"smoothing must be in (0, 1], not {self.smoothing}")
        if not 0 < self.beta < math.inf:
            raise ValueError(f"beta must be positive, not {self.beta}")
        if not 0 <= self.balance_weight < math.inf:
            raise ValueError(f"balance_weight must not be negative, not {self.balance_weight}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")


class WriteOutput(NamedTuple):
    """What one pool of tokens writes."""

    priors: Float[Tensor, "M D"]  # gamma-hat, before the moving average
    balance_loss: Float[Tensor, ""]  # weighted; zero without a balance loss
    selection: Selection


class WorkspaceOutput(NamedTuple):
    """What the workspace gives back to the tokens."""

    read: Float[Tensor, "B N E"]  # add it to the tokens
    balance_loss: Float[Tensor, ""]  # add it to the loss; zero in evaluation


@torch.library.custom_op(
    "associative_transformer::snapshot", mutates_args=(), schema="(Tensor memory) -> Tensor"
)
def snapshot(memory: Float[Tensor, "M D"]) -> Float[Tensor, "M D"]:
    """Copy the memory in a way that the compiler can't undo.

    torch.compile (inductor, torch 2.14) takes a plain `clone` of a buffer for a no-op, keeps the
    buffer itself for backward, and so computes gradients with the memory after its move.
    """
    return memory.clone()


@snapshot.register_fake
def _(memory: Tensor) -> Tensor:
    return torch.empty_like(memory)


class GlobalWorkspace(nn.Module):
    """WriteOutput the batch into a few priors through a bottleneck, then read the priors back.

    In training the tokens of all images form one pool and the memory moves once per forward. In
    evaluation the memory is frozen and the answer for an image does not depend on the others.

    `attend` is the bottleneck attention: `kernels.pooled_attention`, which takes the fastest form
    for the device, or `functional.pooled_attention`, the plain one, which can be differentiated
    twice. It gets the weights of `to_k` and `to_v`; their own forward is not called.

    `retrieve` is `functional.hopfield_retrieve` or its twin in Triton.

    `reader`, called with the tokens and the attractors of each image, replaces the Hopfield
    retrieval.

    Under activation checkpointing keep this module outside the recomputed region: a second
    forward would move the memory twice. With several processes (an initialized process group) the
    tokens of all of them form one pool (or of those that `config.pool` says), and the memory
    stays the same on all: `distributed` has the exchange, which takes the place of `attend`.
    """

    priors: Tensor

    def __init__(
        self,
        embed_dim: int,
        config: WorkspaceConfig | None = None,
        attend: Attend = pooled_attention,
        reader: nn.Module | None = None,
        retrieve: Retrieve = hopfield_retrieve,
    ) -> None:
        super().__init__()
        c = self.config = config or WorkspaceConfig()
        self.attend = attend
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
        if not self.training:  # the memory is frozen: nothing competes, nothing is written
            return WorkspaceOutput(self.read(u, self.priors), self.priors.new_zeros(()))
        written = self.write(u.flatten(0, 1))  # (T, E): one pool for the whole batch
        priors = self.remember(written.priors)
        return WorkspaceOutput(self.read(u, priors), written.balance_loss)

    def write(self, pool: Float[Tensor, "T E"]) -> WriteOutput:
        """Let the priors compete for the tokens of the pool."""
        c = self.config
        priors = snapshot(self.priors)  # `remember` moves the buffer before backward needs it
        q = rearrange(self.to_q(priors), "m (s d) -> s m d", s=c.num_heads)
        # no einops: it would note the type of a parameter, for which the compiler starts again
        w_k, w_v = (
            torch.unflatten(m.weight, 0, (c.num_heads, -1)) for m in (self.to_k, self.to_v)
        )
        if not c.differentiable_write:  # the exchange would bring a gradient of zeros, not none
            w_v = w_v.detach()
        ranks = over_ranks.ranks_of(c.pool)
        if ranks > 1:
            selection, unevenness = over_ranks.pooled_attention(
                q, pool, w_k, w_v, c.bottleneck, ranks
            )
        else:
            selection = self.attend(q, pool, w_k, w_v, c.bottleneck)
            unevenness = balance_loss(selection.score, selection.chosen, len(pool))
        taken = self.to_prior(rearrange(selection.value, "s m d -> m (s d)"))
        written = self.norm(priors + self.dropout(taken))
        if ranks < distributed.num_ranks():  # one memory for several pools
            written = distributed.mean(written)
        unevenness = unevenness if c.balance_weight else priors.new_zeros(())
        return WriteOutput(written, c.balance_weight * unevenness, selection)

    def remember(self, written: Float[Tensor, "M D"]) -> Float[Tensor, "M D"]:
        """Move the memory: gamma^t -> gamma^{t+1}. A write that is not finite changes nothing."""
        if not self.config.differentiable_write:
            written = written.detach()
        old = snapshot(self.priors)
        priors = update_priors(old, written, self.config.smoothing)
        priors = torch.where(priors.isfinite().all(), priors, old).to(old.dtype)
        with torch.no_grad():
            self.priors.copy_(priors)
        return priors

    def read(
        self, u: Float[Tensor, "B N E"], priors: Float[Tensor, "M D"]
    ) -> Float[Tensor, "B N E"]:
        """Retrieve each token from the attractors f_LT(priors)."""
        c, attractors = self.config, self.to_attractor(priors)
        if self.reader is not None:
            return self.reader(u, attractors.expand(len(u), -1, -1))
        return self.retrieve(u, attractors, c.beta, c.num_steps)

    @torch.no_grad()
    def reset(self) -> None:
        """Draw the memory anew from N(0, 1)."""
        self.priors.normal_()
