"""The shared global workspace: tokens compete to write a small memory, then read it back.

Dims     B batch   N tokens per image   T = B * N pooled tokens   E token width
         M priors  D prior width        S heads of the bottleneck attention
Symbols  `priors` gamma^t, the explicit memory   `attractors` f_LT(gamma)   `smoothing` alpha
         `beta` inverse temperature              `bottleneck` k             `balance_weight` sigma
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from associative_transformer import distributed, kernels
from associative_transformer.arguments import LOST_MEMORY, check_tokens
from associative_transformer.float32 import Float32LayerNorm
from associative_transformer.functional import (
    balance_loss_per_image,
    hopfield_retrieve,
    update_priors,
)
from associative_transformer.kernels import Attend, Merge, per_image
from associative_transformer.kernels.plain_linear import keys_and_values
from associative_transformer.kernels.protected_copy import protected_copy
from associative_transformer.recomputation import EarlierPasses, is_transformed
from associative_transformer.workspace_config import WorkspaceConfig
from associative_transformer.workspace_outputs import (
    ImageWriteOutput,
    Winners,
    WorkspaceOutput,
    WriteOutput,
)

Retrieve = Callable[[Tensor, Tensor, float, int], Tensor]
"""The Hopfield retrieval, with the signature of `functional.hopfield_retrieve`."""
KEPT = 16  # images of a training step whose tokens are kept for `health.memory_health`


class GlobalWorkspace(nn.Module):
    """Write the tokens into a few priors through a bottleneck, then read the priors back.

    >>> workspace = GlobalWorkspace(192, WorkspaceConfig(num_priors=16))
    >>> workspace(torch.randn(8, 64, 192)).read.shape
    torch.Size([8, 64, 192])

    With scope "batch", as in the paper, there is one memory, a buffer. In training, the tokens of
    all images form one pool, and the memory moves once per forward pass. In evaluation, the memory
    is frozen and the output for an image does not depend on the others.

    With scope "image", which is this package's own, each image has a memory, which starts from
    learned contents (a parameter) in every forward pass. Its tokens write it and read it, at a
    cost that is linear in their number. Training and evaluation are the same:

    >>> workspace = GlobalWorkspace(192, WorkspaceConfig(num_priors=16, scope="image"))
    >>> padding = torch.arange(64) >= torch.tensor([[64], [50]])  # True for padding
    >>> workspace(torch.randn(2, 64, 192), key_padding_mask=padding).read.shape
    torch.Size([2, 64, 192])

    The layer is not causal: in both scopes, tokens read what later tokens have written.

    With scope "batch", `attend`, `merge` and `retrieve` replace the bottleneck attention, the
    combination of what several pools write, and the Hopfield retrieval (see `kernels`). The
    defaults are the fastest for the device and can be differentiated once;
    `kernels.PoolAttention(functional.pooled_attention)` can be twice. With several processes, they
    pool the tokens of all, or of those that `config.pool` selects, and keep the memory the same on
    all. A `reader`, called with tokens and attractors, replaces the retrieval.

    Tokens of padding (`key_padding_mask`, True for padding, as in `nn.MultiheadAttention`) neither
    compete nor count in the balance loss, and what they read is zero. With scope "batch" and
    several processes that share a pool, pass a mask in all of them or in none.

    Activation checkpointing does not move the memory twice, except inside `torch.compile`.
    """

    priors: Tensor
    last_step: tuple[Any, ...] | None = None  # of training, for `health.memory_health`

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
        self.merge = kernels.merge_of(attend) if merge is None else merge
        self.share = kernels.share_of(attend)
        self.reader = reader
        self.retrieve = retrieve
        self.is_frozen = False
        self.earlier = EarlierPasses()
        heads_dim = c.num_heads * c.prior_dim
        self.to_q = nn.Linear(c.prior_dim, heads_dim, bias=False)  # W^Q
        self.to_k = nn.Linear(embed_dim, heads_dim, bias=False)  # W^K
        self.to_v = nn.Linear(embed_dim, heads_dim, bias=False)  # W^V
        self.to_prior = nn.Linear(heads_dim, c.prior_dim, bias=False)  # W^O
        self.dropout = nn.Dropout(c.dropout or 0.0)
        self.to_attractor = nn.Linear(c.prior_dim, embed_dim)  # f_LT
        priors = torch.randn(c.num_priors, c.prior_dim)  # gamma
        if c.scope == "batch":
            self.norm = nn.LayerNorm(c.prior_dim, eps=1e-6)
            self.register_buffer("priors", priors)
            return
        c.image.check_width(embed_dim)
        self.norm = Float32LayerNorm(c.prior_dim)
        length = priors.norm(dim=-1, keepdim=True)
        self.priors = nn.Parameter(priors / length * c.prior_dim**0.5)
        self.read_norm = Float32LayerNorm(embed_dim) if c.image.use_read_norm else nn.Identity()

    def forward(
        self,
        u: Float[Tensor, "B N E"],
        key_padding_mask: Bool[Tensor, "B N"] | None = None,
    ) -> WorkspaceOutput:
        check_tokens(u, self.embed_dim, key_padding_mask)
        u = per_image.fill_padding(u, key_padding_mask)
        if self.config.scope == "image":
            if self.training and not is_transformed():
                seen = (u, key_padding_mask)
                self.last_step = tuple(x if x is None else x[:KEPT].detach().clone() for x in seen)
            of_images = self.write_images(u, key_padding_mask)
            read = self.read_images(u, of_images.priors, key_padding_mask)
            return WorkspaceOutput(read, of_images.balance_loss)
        tokens = _pool(u, key_padding_mask)
        is_empty = not tokens.shape[0] and distributed.num_ranks() == 1
        if self.is_frozen or not self.training or is_empty:  # nothing competes or is written
            read, balance_loss = self.read(u, self.priors), self.priors.new_zeros(())
        else:
            before = self.earlier.start(u, self.priors)  # None in a first pass
            written = self.write(tokens, before, key_padding_mask is not None)
            if before is None and not is_transformed():
                self.last_step = (len(tokens), *(x.detach() for x in written.selection[1:]))
            read = self.read(u, self.remember(written.priors, before))
            balance_loss = written.balance_loss
        return WorkspaceOutput(per_image.fill_padding(read, key_padding_mask), balance_loss)

    def write(
        self,
        tokens: Float[Tensor, "T E"],
        before: Float[Tensor, "M D"] | None = None,
        is_ragged: bool = False,
    ) -> WriteOutput:
        """Let the tokens of the pool compete to write; the memory does not move yet.

        A repeated pass starts from `before`. With `is_ragged`, the processes that share a pool may
        have different numbers of tokens, or none.

        Step 3:  gamma-hat = LN(gamma^t + Dropout([h_1 .. h_S] W^O))
        """
        c = self.config
        # a copy, since `remember` overwrites the memory before backward
        priors = protected_copy(self.priors if before is None else before)
        q = rearrange(self.to_q(priors), "m (s d) -> s m d", s=c.num_heads)
        sources = keys_and_values(tokens, self.to_k, self.to_v, q, c.differentiable_write)
        limit = cast(int | None, c.bottleneck)
        rules = kernels.rules_that_are_on(c.competition, c.center_values, is_ragged)
        selection, unevenness = self.attend(q, *sources, limit, c.pool, **rules)
        h = rearrange(selection.value, "s m d -> m (s d)")
        update = self.share(self.dropout, self.to_prior(h))
        written = self.norm(priors + update)
        if not selection.score.shape[-1]:  # an empty pool, whose gradients are 0
            written = priors + 0 * written
        written = self.merge(written, c.pool)
        balance_loss = c.balance_weight * unevenness if c.balance_weight else priors.new_zeros(())
        return WriteOutput(written, balance_loss, selection)

    def remember(
        self, written: Float[Tensor, "M D"], before: Float[Tensor, "M D"] | None = None
    ) -> Float[Tensor, "M D"]:
        """Move the memory towards the write, or leave it unchanged if the result is not finite.

        In a repeated pass, which has started from `before`, the memory does not move again.

        Step 4:  gamma^{t+1} = normalize((1 - alpha) gamma^t + alpha gamma-hat)
        """
        if not self.config.differentiable_write:
            written = written.detach()
        old = protected_copy(self.priors if before is None else before)
        priors = update_priors(old, written, self.config.smoothing)
        priors = torch.where(priors.isfinite().all(), priors, old).to(old.dtype)
        if before is None:
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
            return self.reader(u, attractors.expand(u.shape[0], -1, -1))
        return self.retrieve(u, attractors, c.beta, c.num_steps)

    def write_images(
        self,
        u: Float[Tensor, "B N E"],
        key_padding_mask: Bool[Tensor, "B N"] | None = None,
    ) -> ImageWriteOutput:
        """Let the tokens of each image compete to write into its own memory.

        gamma_b = LN(gamma + Dropout([h_1 .. h_S] W^O))  for image b
        """
        c = self.config
        q = rearrange(self.to_q(self.priors), "m (s d) -> s m d", s=c.num_heads)
        sources = keys_and_values(u, self.to_k, self.to_v, q)
        limit = cast(int | float | None, c.bottleneck)
        selection = per_image.attend(
            q, *sources, limit, key_padding_mask, c.competition, c.center_values
        )
        h = rearrange(selection.value, "b s m d -> b m (s d)")
        priors = self.norm(self.priors + self.dropout(self.to_prior(h)))
        priors = priors.to(self.priors.dtype)  # the norms return at least float32
        balance_loss = self.priors.new_zeros(())
        if self.training and c.balance_weight:
            unevenness = balance_loss_per_image(*selection[1:], key_padding_mask)
            balance_loss = c.balance_weight * unevenness
        return ImageWriteOutput(priors, balance_loss, selection)

    def read_images(
        self,
        u: Float[Tensor, "B N E"],
        priors: Float[Tensor, "B M D"],
        key_padding_mask: Bool[Tensor, "B N"] | None = None,
    ) -> Float[Tensor, "B N E"]:
        """Retrieve from the memory of each image what each of its tokens is associated with.

        r = LN(concat_j softmax(beta u_j Y_bjᵀ / sqrt(d)) Y_bj),  with Y_b = f_LT(gamma_b)
        """
        c, attractors = self.config, self.to_attractor(priors)
        width = c.image.read_head_dim
        read = per_image.retrieve(u, attractors, c.beta, width, c.num_steps)
        return per_image.fill_padding(self.read_norm(read).to(u.dtype), key_padding_mask)

    @torch.no_grad()
    def select(
        self,
        u: Float[Tensor, "B N E"],
        key_padding_mask: Bool[Tensor, "B N"] | None = None,
    ) -> Winners:
        """Return the tokens that would write, and their scores; the memory does not move.

        With scope "batch", the images are one pool. With scope "image" and padding, an image may
        have fewer winners than others; the rest of its row has a score of 0.
        """
        check_tokens(u, self.embed_dim, key_padding_mask)
        u = per_image.fill_padding(u, key_padding_mask)
        if self.config.scope == "image":
            selection = self.write_images(u, key_padding_mask).selection
            most = int(selection.chosen.sum(dim=-1).max())
            # a winner's score may be rounded to 0
            best = selection.score.masked_fill(~selection.chosen, -1.0).topk(most, dim=-1)
            return Winners(best.values.clamp(min=0), best.indices)
        written = self.write(_pool(u, key_padding_mask), is_ragged=key_padding_mask is not None)
        score, chosen = written.selection[1:]
        score, order = score.sort(dim=-1, descending=True)
        chosen = chosen.gather(-1, order)
        if key_padding_mask is not None:
            positions = (~key_padding_mask).flatten().nonzero()[:, 0]
            chosen = nn.functional.pad(positions, (0, 1))[chosen]  # there may be none
        return Winners(score, chosen)

    def freeze(self, is_frozen: bool = True) -> None:
        """Stop the memory, in training too: tokens read it, but nothing is written.

        Raises ValueError with scope "image", since nothing moves between passes.
        """
        if self.config.scope == "image":
            raise ValueError("scope image has no memory to freeze: use requires_grad_ on priors")
        self.is_frozen = is_frozen

    def _replicate_for_data_parallel(self) -> Any:  # noqa: ANN401
        if self.config.scope == "batch" and self.training and not self.is_frozen:
            raise RuntimeError(LOST_MEMORY)
        return super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def reset(self) -> None:
        """Draw the memory anew from N(0, 1). Raises ValueError with scope "image"."""
        if self.config.scope == "image":
            raise ValueError("scope image has no memory to reset: build a new workspace instead")
        self.priors.normal_()


def _pool(
    u: Float[Tensor, "B N E"], key_padding_mask: Bool[Tensor, "B N"] | None
) -> Float[Tensor, "T E"]:
    """Return the tokens of all images, without padding."""
    return u.flatten(0, 1) if key_padding_mask is None else u[~key_padding_mask]
