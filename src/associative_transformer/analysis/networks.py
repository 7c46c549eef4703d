"""The Hopfield networks that tokens read: one for the batch, or one for each head of an image.

The patterns of a network are the attractors of the memory. With scope "image", each image has its
own attractors, and each head of the read uses a slice of their channels. The LayerNorm after the
read is not part of the network.

Dims     B images   N tokens per image   E token width   H heads of the read   d width of a head
         M priors   G networks: none for a memory of the batch, otherwise images and heads
         T tokens that read from the same network, or of a pool   Q pools
         L layers   S heads of the write   C noisy copies
"""

import math
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple, cast

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from associative_transformer.analysis.trace import first_images, in_evaluation, trace_all
from associative_transformer.functional import hopfield_energy, hopfield_retrieve
from associative_transformer.interface import Batch, UserError
from associative_transformer.models.ait import AiT
from associative_transformer.models.layers import CrossAttention
from associative_transformer.models.pretrained import PretrainedModel
from associative_transformer.workspace import GlobalWorkspace
from associative_transformer.workspace_outputs import Winners

MAX_IMAGES = 64
"""Largest number of images whose memories are examined."""
SHARE = 0.9
"""Share of the softmax that the counted attractors must make up."""


class Networks(NamedTuple):
    """The patterns of a layer, and the tokens that read from them."""

    state: Float[Tensor, "*G T d"]
    patterns: Float[Tensor, "*G M d"]
    scale: float  # of the inverse temperature: 1, or 1 / sqrt(d) with scope "image"


class Rest(NamedTuple):
    """States at rest."""

    state: Float[Tensor, "*B E"]
    num_steps: Int[Tensor, "*B"]  # steps that moved the state; if `max_steps`, it may still move


def with_networks(model: PretrainedModel) -> AiT:
    """Return an AiT that reads by Hopfield retrieval; raise UserError for any other model."""
    if not isinstance(model, AiT):
        raise UserError(f"{type(model).__name__} has no memory to retrieve from: use a run of AiT")
    if model.config.read == "none":
        raise UserError(
            "this AiT writes its memory but does not read it: use a run with --model.read hopfield"
        )
    if model.config.read != "hopfield":
        raise UserError(
            "this AiT reads its memory by cross-attention, which has neither energy nor basins: "
            "use a run with --model.read hopfield"
        )
    return model


@torch.no_grad()
def networks_of(workspace: GlobalWorkspace, u: Float[Tensor, "B N E"]) -> Networks:
    """Return the networks from which the tokens of some images read, in evaluation mode."""
    if workspace.config.scope == "batch":
        return Networks(u.flatten(0, 1), workspace.to_attractor(workspace.priors), 1.0)
    width = workspace.config.image.read_head_dim
    attractors = workspace.to_attractor(memories_of(workspace, u))
    state, patterns = (rearrange(x, "b n (h d) -> b h n d", d=width) for x in (u, attractors))
    return Networks(state, patterns, 1 / math.sqrt(width))


@torch.no_grad()
def memories_of(workspace: GlobalWorkspace, u: Float[Tensor, "B N E"]) -> Float[Tensor, "B M D"]:
    """Return the memory that each image reads; with scope "batch", it is the same for all."""
    if workspace.config.scope == "batch":
        return workspace.priors.expand(len(u), -1, -1)
    with in_evaluation(workspace):
        return workspace.write_images(u).priors


@torch.no_grad()
def read_weights(
    workspace: GlobalWorkspace, u: Float[Tensor, "B N E"]
) -> Float[Tensor, "B H N M"]:
    """Return the weight of each attractor in the last retrieval step of each token."""
    c, num_images = workspace.config, len(u)
    if isinstance(reader := workspace.reader, CrossAttention):
        attractors = workspace.to_attractor(workspace.priors)
        q = rearrange(reader.to_q(u), "b n (h d) -> b h n d", h=reader.num_heads)
        k, _ = rearrange(reader.to_kv(attractors), "m (z h d) -> z h m d", z=2, h=q.shape[1])
        return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1)
    state, patterns, scale = networks_of(workspace, u)
    beta = scale * c.beta
    weights = weigh(retrieve(state, patterns, beta, c.num_steps - 1), patterns, beta)
    return (
        weights if c.scope == "image" else rearrange(weights, "(b n) m -> b 1 n m", b=num_images)
    )


@torch.no_grad()
def select(workspace: GlobalWorkspace, u: Float[Tensor, "B N E"]) -> Winners:
    """Return the tokens that write in each pool, and their scores.

    The leading dimension of the results is the number of pools: one or, with scope "image", one
    for each image. The memory is not updated.
    """
    with in_evaluation(workspace):
        if workspace.config.scope == "batch":
            return Winners(*(each[None] for each in workspace.select(u)))
        _, score, chosen = workspace.write_images(u).selection
    num_chosen = int(chosen.sum(dim=-1).max())
    return Winners(*score.masked_fill(~chosen, -1.0).topk(num_chosen, dim=-1))  # scores may be 0


@torch.no_grad()
def similarities(
    workspace: GlobalWorkspace, pools: Float[Tensor, "Q T E"]
) -> Float[Tensor, "Q S M T"]:
    """Return the logits of the bottleneck attention, after the competition between priors."""
    c = workspace.config
    q = rearrange(workspace.to_q(workspace.priors), "m (s d) -> s m d", s=c.num_heads)
    k = rearrange(workspace.to_k(pools), "q t (s d) -> q s t d", s=c.num_heads)
    logits = q @ k.mT / math.sqrt(q.shape[-1])
    return logits.log_softmax(dim=2) if c.competition == "priors" else logits


def retrieve(
    state: Float[Tensor, "*B E"],
    patterns: Float[Tensor, "*G M E"],
    beta: float,
    num_steps: int = 1,
) -> Float[Tensor, "*B E"]:
    """Compute `functional.hopfield_retrieve` in each network."""
    step = partial(hopfield_retrieve, beta=beta, num_steps=num_steps)
    if patterns.ndim == 2:
        return step(state, patterns)
    last = patterns.ndim - 3  # of the dimensions that count networks
    return torch.vmap(step)(state.flatten(0, last), patterns.flatten(0, last)).view_as(state)


def energy(
    state: Float[Tensor, "*B E"], patterns: Float[Tensor, "*G M E"], beta: float
) -> Float[Tensor, "*B"]:
    """Compute `functional.hopfield_energy` in each network."""
    if patterns.ndim == 2:
        return hopfield_energy(state, patterns, beta)
    return torch.vmap(partial(energy, beta=beta))(state, patterns)


def weigh(
    state: Float[Tensor, "*B E"], patterns: Float[Tensor, "*G M E"], beta: float
) -> Float[Tensor, "*B M"]:
    """Return the weight of each pattern in one retrieval step."""
    return (beta * state @ patterns.mT).softmax(dim=-1)


def retrieve_until_rest(
    state: Float[Tensor, "*B E"],
    patterns: Float[Tensor, "*G M E"],
    beta: float,
    max_steps: int = 100,
    tolerance: float = 1e-4,
) -> Rest:
    """Retrieve each state until a step moves it by at most `tolerance` times the mean norm.

    If the patterns have leading dimensions, one for each network, so must the states.
    """
    networks = patterns.reshape(-1, *patterns.shape[-2:])  # (G, M, E)
    rest = state.reshape(len(networks), -1, state.shape[-1]).clone()  # (G, T, E)
    limit = tolerance * mean_norm(networks)[:, None]
    num_steps = torch.zeros(rest.shape[:-1], dtype=torch.int64, device=rest.device)
    is_moving = torch.ones_like(num_steps, dtype=torch.bool)
    for _ in range(max_steps):
        left = is_moving.any(dim=1).nonzero()[:, 0]  # networks in which a state still moves
        if len(left) == 0:
            break
        retrieved = retrieve(rest[left], networks[left], beta)
        moves = (retrieved - rest[left]).norm(dim=-1) > limit[left]
        rest[left] = torch.where(is_moving[left, :, None], retrieved, rest[left])
        is_moving[left] &= moves
        num_steps[left] += is_moving[left]
    return Rest(rest.view_as(state), num_steps.view(state.shape[:-1]))


def mean_norm(patterns: Float[Tensor, "*G M E"]) -> Float[Tensor, "*G"]:
    """Return the mean length of the patterns of each network."""
    return patterns.norm(dim=-1).mean(dim=-1)


def num_needed(weights: Float[Tensor, "*B M"], share: float = SHARE) -> Int[Tensor, "*B"]:
    """Return the smallest number of weights that make up `share` of a row; rows sum to 1."""
    sums = weights.double().sort(dim=-1, descending=True).values.cumsum(dim=-1)
    return (sums < share - 1e-6).sum(dim=-1) + 1  # 9 of 10 equal weights sum to 0.9


def sample_tokens(
    model: PretrainedModel,
    batches: Iterable[Batch],
    num_tokens: int,
    generator: torch.Generator,
) -> Float[Tensor, "L N E"]:
    """Draw from the tokens that the workspaces of an AiT receive, each with equal probability.

    Each token is assigned a random number, and the tokens with the smallest numbers are kept.
    Raises ValueError if there are no tokens.
    """
    numbers, kept = torch.empty(0, dtype=torch.float64), torch.empty(0)
    for traced in trace_all(model, batches):
        pools = [cast(Tensor, layer.workspace_input).flatten(0, 1) for layer in traced.layers]
        kept = kept if len(numbers) else torch.stack([pool[:0] for pool in pools])
        drawn = torch.rand(len(pools[0]), generator=generator, dtype=torch.float64)
        numbers, num_kept = torch.cat([numbers, drawn]), len(numbers)
        order = numbers.argsort()[:num_tokens]
        old, new = order[order < num_kept], order[order >= num_kept]
        numbers = numbers[torch.cat([old, new])]
        old, new = old.to(kept.device), new.to(kept.device) - num_kept
        added = torch.stack([pool[new] for pool in pools])
        kept = torch.cat([kept[:, old], added], dim=1)
    if len(numbers) == 0:
        raise ValueError("there are no tokens to retrieve")
    return kept


def gather_networks(
    ait: AiT, batches: Iterable[Batch], num_tokens: int, generator: torch.Generator
) -> list[Networks]:
    """Return the networks of each layer, with a sample of tokens.

    With scope "image", they are all tokens of the first images: of as many as have at least
    `num_tokens` in total, but at most 64.
    """
    workspaces = [cast(GlobalWorkspace, block.workspace) for block in ait.blocks]
    if ait.config.workspace.scope == "batch":
        sample = sample_tokens(ait, batches, num_tokens, generator)[:, None]  # (L, 1, N, E)
    else:
        num_images = min(math.ceil(num_tokens / ait.embed.num_tokens), MAX_IMAGES)
        sample = torch.stack(first_images(ait, batches, num_images))  # (L, B, N, E)
    return [networks_of(each, u) for each, u in zip(workspaces, sample, strict=True)]


def draw_noise(
    patterns: Float[Tensor, "*G M d"], num_draws: int, generator: torch.Generator
) -> Float[Tensor, "*G C M d"]:
    """Return noise whose length (root mean square) is the mean norm of each network's patterns.

    C is `num_draws` for a single network, and 1 with scope "image", which has many networks.
    """
    *networks, num_priors, width = patterns.shape
    num_draws = 1 if networks else num_draws
    draws = torch.randn(*networks, num_draws, num_priors, width, generator=generator)
    return mean_norm(patterns)[..., None, None, None] / width**0.5 * draws.to(patterns)
