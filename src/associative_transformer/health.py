"""What state a memory is in: its rank, its distinct priors, and how their winners overlap.

Priors that are equal get the same writes and the same gradients, so that only noise, such as the
dropout of the write, can separate them again.

Dims     B images   N tokens per image   E token width   S heads   M priors   D prior width
         K tokens that a prior takes
         G groups of tokens that compete: a whole pool, or each image by itself
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from associative_transformer import distributed
from associative_transformer.float32 import without_autocast
from associative_transformer.functional import effective_rank
from associative_transformer.workspace import GlobalWorkspace

SAME = 0.99
"""Priors count as the same if their cosine is above this."""
DEAD = 0.1
"""A prior is dead if its share of the tokens is less than this fraction of the mean share."""
MIN_RANK = 1.5
MIN_DISTINCT = 0.25
"""A memory has collapsed if its rank or its share of distinct priors is below these."""


class MemoryHealth(NamedTuple):
    """The state of one memory; the last three values are None if no tokens are known."""

    effective_rank: float  # directions in use; nan if the memory is not finite
    distinct: float  # number of priors, those that are nearly the same counted once
    num_priors: int
    overlap: float | None = None  # Jaccard, mean over pairs of different priors of a head
    tokens_used: float | None = None  # share of the tokens that at least one prior takes
    priors_winning: float | None = None  # share of the priors that are not dead in the write

    @property
    def is_collapsed(self) -> bool:
        """Whether the effective rank is close to 1 or few priors are distinct."""
        few = self.effective_rank < MIN_RANK or self.distinct < MIN_DISTINCT * self.num_priors
        return self.num_priors > 1 and few


@torch.no_grad()
def memory_health(
    model: nn.Module,
    images: Float[Tensor, "B ..."] | None = None,
    questions: Float[Tensor, "B ..."] | None = None,
    over_ranks: bool = False,
) -> list[MemoryHealth]:
    """Measure the memory of each `GlobalWorkspace` in a model, in the order of its modules.

    If images are passed, `model(images)` or `model(images, questions)` is run in evaluation mode
    to find which tokens the priors take. Otherwise, the tokens of the last training step are used
    or, with scope "image", those of its first images. Rank and distinct priors are those of the
    memory. With scope "image", they are those of the learned contents or, if images are passed,
    means over the memories of the images.

    A prior wins a token if no prior of the head attends more to it. It is dead if its share of the
    tokens that are taken, averaged over the heads, is below a tenth of the mean share, 1 / M.

    The modes of the modules, the memories and the state of the random number generators are not
    changed. With `over_ranks`, the tokens of all processes are counted. In that case, and if
    images are passed and several processes share a pool, every process must call this function.

    >>> layer = GlobalWorkspace(192)
    >>> output = layer(torch.randn(8, 64, 192))  # a training step
    >>> [health] = memory_health(layer)
    >>> health.num_priors, health.is_collapsed
    (32, False)
    """
    observers = [_Observer(m) for m in model.modules() if isinstance(m, GlobalWorkspace)]
    with _evaluating(model):
        if images is None:
            for observer in observers:
                observer.recall_last_step()
        else:
            _run(model, images, questions, observers)
    return [observer.conclude(over_ranks) for observer in observers]


def count_distinct(priors: Float[Tensor, "*B M D"]) -> Int[Tensor, "*B"]:
    """Count the distinct priors of each memory.

    A prior is distinct if it is not the same as an earlier distinct one, which means a cosine
    above 0.99, or that both are zero.
    """
    unit = nn.functional.normalize(priors.double(), dim=-1)
    is_zero = (priors == 0).all(dim=-1)
    is_same = unit @ unit.mT > SAME  # (*B, M, M)
    is_same |= is_zero[..., :, None] & is_zero[..., None, :]
    is_first = torch.zeros_like(is_zero)  # (*B, M)
    for i in range(priors.shape[-2]):
        is_first[..., i] = ~(is_same[..., i, :i] & is_first[..., :i]).any(dim=-1)
    return is_first.sum(dim=-1)


class _Counts(NamedTuple):
    """What the priors of a memory take from some groups of tokens."""

    shared: Float[Tensor, "G S M M"]  # tokens that both priors take
    wins: Float[Tensor, "S M"]  # tokens that a prior wins, in all groups
    totals: Float[Tensor, "2"]  # tokens that at least one prior takes, and all of them


class _Observer:
    """The memories of a workspace, and which tokens its priors take."""

    def __init__(self, workspace: GlobalWorkspace) -> None:
        self.workspace = workspace
        self.is_shared = workspace.config.scope == "batch"
        self.memories: list[Float[Tensor, "G M D"]] = []
        self.counts: list[_Counts] = []

    def recall_last_step(self) -> None:
        """Count what the priors took in the last training step, if there was one."""
        if self.workspace.last_step is None:
            return
        if self.is_shared:
            num_tokens, score, chosen = self.workspace.last_step
            size = max(num_tokens, 1)
            self.counts.append(_count(score[None], chosen[None], size, num_tokens))
        else:
            tokens, mask = self.workspace.last_step
            # under autocast they may have been bfloat16
            self._select(tokens.to(self.workspace.priors.dtype), mask)

    def watch(
        self, workspace: GlobalWorkspace, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Count what the priors take from the inputs of a workspace; a hook of its forward."""
        u, mask = _read_arguments(*args, **kwargs)
        self._select(u, mask)
        if not self.is_shared:
            u = u if mask is None else u.masked_fill(mask[..., None], 0.0)
            self.memories.append(workspace.write_images(u, mask).priors)

    def _select(self, u: Float[Tensor, "B N E"], mask: Bool[Tensor, "B N"] | None) -> None:
        score, chosen = self.workspace.select(u, mask)
        size = u.shape[:2].numel()
        num_tokens = size if mask is None else int((~mask).sum())
        if self.is_shared:  # the images are one group
            self.counts.append(_count(score[None], chosen[None], size, num_tokens))
        else:
            self.counts.append(_count(score, chosen, u.shape[1], num_tokens))

    def conclude(self, over_ranks: bool) -> MemoryHealth:
        """Return the health of the memory."""
        priors = self.workspace.priors.detach()[None]
        memories = torch.cat(self.memories or [priors]).cpu()
        ranks = [_rank(memory) for memory in memories]
        distinct = count_distinct(memories).double().mean()
        health = MemoryHealth(sum(ranks) / len(ranks), float(distinct), priors.shape[1])
        if not self.counts:
            return health
        shared = torch.cat([each.shared for each in self.counts])
        wins = torch.stack([each.wins for each in self.counts]).sum(dim=0)
        totals = torch.stack([each.totals for each in self.counts]).sum(dim=0)
        if over_ranks:
            wins, totals = distributed.add(wins), distributed.add(totals)
            # the sets of a pool are spread over the ranks; those of an image are not
            add = distributed.add if self.is_shared else _gather
            shared = add(shared)
        used, num_tokens = totals.tolist()
        return health._replace(
            overlap=_mean_overlap(shared.cpu()),
            tokens_used=used / max(num_tokens, 1),
            priors_winning=_share_winning(wins.cpu()),
        )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, then restore the mode of each of its modules."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _run(
    model: nn.Module,
    images: Float[Tensor, "B ..."],
    questions: Float[Tensor, "B ..."] | None,
    observers: list[_Observer],
) -> None:
    """Run a model while its workspaces are watched; a compiled model would ignore the hooks."""
    devices = [images.device] if images.is_cuda else []
    with ExitStack() as cleanup:
        cleanup.enter_context(torch.random.fork_rng(devices))
        cleanup.enter_context(torch.compiler.set_stance("force_eager"))
        for observer in observers:
            hook = observer.workspace.register_forward_pre_hook(observer.watch, with_kwargs=True)
            cleanup.enter_context(hook)
        model(images) if questions is None else model(images, questions)


def _read_arguments(
    u: Float[Tensor, "B N E"], key_padding_mask: Bool[Tensor, "B N"] | None = None
) -> tuple[Float[Tensor, "B N E"], Bool[Tensor, "B N"] | None]:
    """Return the arguments of a workspace, whichever way they were passed."""
    return u, key_padding_mask


def _count(
    score: Float[Tensor, "G S M K"],
    chosen: Int[Tensor, "G S M K"],
    size: int,
    num_tokens: int,
) -> _Counts:
    """Count what the priors take from groups of `size` tokens, `num_tokens` of them not padding.

    A token with a score of 0 is not taken: it is padding, or tokens of another process win.
    """
    num_groups, num_heads, num_priors, _ = score.shape
    is_used = torch.zeros(num_groups, size, dtype=torch.bool, device=score.device)
    shared, wins = [], []
    with without_autocast(score.device.type):
        for head in range(num_heads):  # one by one, to save memory
            gates = score.new_zeros(num_groups, num_priors, size)
            gates.scatter_(-1, chosen[:, head], score[:, head])
            takes = (gates > 0).to(gates.dtype)
            shared.append(takes @ takes.mT)
            largest, winner = gates.max(dim=1)  # (G, T); the first of equal ones
            is_used |= largest > 0
            wins.append(winner[largest > 0].bincount(minlength=num_priors))
    totals = torch.stack([is_used.sum(), is_used.new_full((), num_tokens, dtype=torch.long)])
    return _Counts(torch.stack(shared, dim=1), torch.stack(wins).double(), totals.double())


def _rank(memory: Float[Tensor, "M D"]) -> float:
    return effective_rank(memory) if memory.isfinite().all() else math.nan


def _mean_overlap(shared: Float[Tensor, "G S M M"]) -> float:
    """Return the mean Jaccard overlap of two different priors of a head; 0 without any tokens."""
    size = shared.diagonal(dim1=-2, dim2=-1)  # (G, S, M)
    union = size[..., :, None] + size[..., None, :] - shared
    is_pair = torch.ones_like(shared[0, 0], dtype=torch.bool).triu(diagonal=1)
    has_tokens = size.sum(dim=(1, 2)) > 0
    overlap = (shared / union.clamp(min=1))[has_tokens][..., is_pair]
    return float(overlap.double().mean()) if overlap.numel() else 0.0


def _share_winning(wins: Float[Tensor, "S M"]) -> float:
    """Return the share of the priors that are not dead."""
    shares = wins / wins.sum(dim=-1, keepdim=True).clamp(min=1)
    is_dead = shares.mean(dim=0) < DEAD / wins.shape[1]  # (M,)
    return 1 - float(is_dead.double().mean())


def _gather(shared: Float[Tensor, "G S M M"]) -> Float[Tensor, "G2 S M M"]:
    return distributed.gather(shared).flatten(0, 1)
