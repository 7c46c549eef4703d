"""The shared global workspace: tokens compete to write a small memory, then read it back.

Dims     B batch   N tokens per image   T = B * N pooled tokens   E token width
         M priors  D prior width        S heads of the bottleneck attention
Symbols  `priors` gamma^t, the explicit memory   `attractors` f_LT(gamma)   `smoothing` alpha
         `beta` inverse temperature              `bottleneck` k             `balance_weight` sigma
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from associative_transformer import kernels
from associative_transformer.arguments import check_tokens
from associative_transformer.float32 import Float32LayerNorm
from associative_transformer.functional import (
    ImageSelection,
    Selection,
    balance_loss_per_image,
    hopfield_retrieve,
    update_priors,
)
from associative_transformer.kernels import Attend, Merge, per_image
from associative_transformer.kernels.plain_linear import keys_and_values
from associative_transformer.kernels.protected_copy import protected_copy
from associative_transformer.workspace_config import WorkspaceConfig

Retrieve = Callable[[Tensor, Tensor, float, int], Tensor]
"""The Hopfield retrieval, with the signature of `functional.hopfield_retrieve`."""
KEPT = 16
"""Images of a training step whose tokens are kept for `health.memory_health`."""


class WriteOutput(NamedTuple):
    """What a pool of tokens writes."""

    priors: Float[Tensor, "M D"]  # gamma-hat, before the moving average
    balance_loss: Float[Tensor, ""]  # weighted; zero if it is turned off
    selection: Selection


class ImageWriteOutput(NamedTuple):
    """What the tokens of each image write."""

    priors: Float[Tensor, "B M D"]  # the memory of each image
    balance_loss: Float[Tensor, ""]
    selection: ImageSelection


class WorkspaceOutput(NamedTuple):
    """What the tokens get back from the workspace."""

    read: Float[Tensor, "B N E"]  # to be added to the tokens
    balance_loss: Float[Tensor, ""]  # to be added to the loss; zero in evaluation


class Winners(NamedTuple):
    """The tokens that each prior attends to, most attended first; B only with scope "image"."""

    score: Float[Tensor, "*B S M K"]  # attention, sums to 1
    chosen: Int[Tensor, "*B S M K"]  # positions in the pool, or in the image


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

    In both scopes, tokens read what later tokens have written: the layer is not causal.

    `attend` is the bottleneck attention of scope "batch". The default uses the fastest
    implementation for the device, which can be differentiated once. With several processes (an
    initialized process group), it pools the tokens of all of them, or of those that `config.pool`
    selects, and keeps the memory the same on all. `kernels.PoolAttention` makes an `attend` from
    another implementation, such as `functional.pooled_attention`, which can be differentiated
    twice. An `attend` gets the weights of `to_k` and `to_v`. If one of these layers has been
    replaced, parametrized (LoRA, pruning) or hooked, both are called, and `attend` gets their
    outputs instead of the tokens, with weights that select the columns of each head.

    `merge` combines what several pools write; the default is the method `merge` of `attend`, if
    it has one. Likewise, dropout is applied by the method `share` of `attend`, if it has one: by
    default, all processes use the mask of rank 0, whatever their seeds. Custom functions have to
    ensure that all processes write the same values. See `kernels` for the types of all three.

    `retrieve` is the Hopfield retrieval of scope "batch". A `reader`, called with the tokens and
    the attractors of each image, replaces it.

    With scope "batch", keep this module outside the region that activation checkpointing
    recomputes, because a second forward pass would move the memory again.
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
        check_tokens(u, self.embed_dim, key_padding_mask, self.config.scope == "image")
        if self.config.scope == "image":
            u = per_image.fill_padding(u, key_padding_mask)
            if self.training:
                seen = (u, key_padding_mask)
                self.last_step = tuple(x if x is None else x[:KEPT].detach().clone() for x in seen)
            of_images = self.write_images(u, key_padding_mask)
            read = self.read_images(u, of_images.priors, key_padding_mask)
            return WorkspaceOutput(read, of_images.balance_loss)
        if self.is_frozen or not self.training:  # nothing competes, nothing is written
            return WorkspaceOutput(self.read(u, self.priors), self.priors.new_zeros(()))
        written = self.write(u.flatten(0, 1))  # (T, E): one pool for the whole batch
        self.last_step = (u.shape[:2].numel(), *(x.detach() for x in written.selection[1:]))
        priors = self.remember(written.priors)
        return WorkspaceOutput(self.read(u, priors), written.balance_loss)

    def write(self, tokens: Float[Tensor, "T E"]) -> WriteOutput:
        """Let the tokens of the pool compete to write; the memory does not move yet.

        Step 3:  gamma-hat = LN(gamma^t + Dropout([h_1 .. h_S] W^O))
        """
        c = self.config
        priors = protected_copy(self.priors)  # `remember` overwrites them before backward
        q = rearrange(self.to_q(priors), "m (s d) -> s m d", s=c.num_heads)
        sources = keys_and_values(tokens, self.to_k, self.to_v, q, c.differentiable_write)
        limit = cast(int | None, c.bottleneck)
        rules = kernels.rules_that_are_on(c.competition, c.center_values)
        selection, unevenness = self.attend(q, *sources, limit, c.pool, **rules)
        h = rearrange(selection.value, "s m d -> m (s d)")
        update = self.share(self.dropout, self.to_prior(h))
        written = self.merge(self.norm(priors + update), c.pool)
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
        read = self.read_norm(read).to(u.dtype)
        if key_padding_mask is None:
            return read
        return read.masked_fill(key_padding_mask[..., None], 0.0)

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
        check_tokens(u, self.embed_dim, key_padding_mask, self.config.scope == "image")
        if self.config.scope == "image":
            u = per_image.fill_padding(u, key_padding_mask)
            selection = self.write_images(u, key_padding_mask).selection
            most = int(selection.chosen.sum(dim=-1).max())
            # a winner's score may be rounded to 0
            best = selection.score.masked_fill(~selection.chosen, -1.0).topk(most, dim=-1)
            return Winners(best.values.clamp(min=0), best.indices)
        score, chosen = self.write(u.flatten(0, 1)).selection[1:]
        score, order = score.sort(dim=-1, descending=True)
        return Winners(score, chosen.gather(-1, order))

    def freeze(self, is_frozen: bool = True) -> None:
        """Stop the memory, in training too: tokens read it, but nothing is written.

        Raises ValueError with scope "image", since nothing moves between passes.
        """
        if self.config.scope == "image":
            raise ValueError("scope image has no memory to freeze: use requires_grad_ on priors")
        self.is_frozen = is_frozen

    @torch.no_grad()
    def reset(self) -> None:
        """Draw the memory anew from N(0, 1). Raises ValueError with scope "image"."""
        if self.config.scope == "image":
            raise ValueError("scope image has no memory to reset: build a new workspace instead")
        self.priors.normal_()
