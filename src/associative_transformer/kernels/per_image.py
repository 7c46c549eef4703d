"""The workspace per image, with fewer operations than `functional`.

The value map is applied after the weighted sum, W^V (A u), so values are not computed. With at
most D priors and without autocast, the key map is applied to the queries, q W^K, so keys are not
computed either. Time and memory are linear in the number of tokens.

Dims     B images   N tokens of an image   E token width   S heads   M priors   D head width
         R = S * M rows of queries   K selected   H heads of the read   d their width
"""

import math

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import linear

from associative_transformer.float32 import without_autocast
from associative_transformer.functional import ImageSelection, count_winners
from associative_transformer.kernels.largest import select_largest


def attend(
    q: Float[Tensor, "S M D"],
    tokens: Float[Tensor, "B N E"],
    w_k: Float[Tensor, "S D E"],
    w_v: Float[Tensor, "S D E"],
    bottleneck: int | float | None,
    key_padding_mask: Bool[Tensor, "B N"] | None = None,
    competition: str = "none",
    center_values: bool = False,
) -> ImageSelection:
    """Compute `functional.bottleneck_attention_per_image`, with k = u W^K and v = u W^V.

    Similarities and scores are at least float32, also under autocast.
    """
    similarity = _similarities(q, tokens, w_k)  # (B, S, M, N)
    if competition == "priors":
        similarity = similarity.log_softmax(dim=2)
    chosen = _choose(similarity.detach(), bottleneck, key_padding_mask)
    is_dense = chosen.stride()[-1] == 0  # all tokens, without a mask
    if key_padding_mask is not None:
        # finite, since the gradient of a softmax over values that are all -inf is NaN
        lowest = torch.finfo(similarity.dtype).min
        score = similarity.masked_fill(~chosen, lowest).softmax(dim=-1) * chosen
    else:
        kept = similarity if is_dense else similarity.masked_fill(~chosen, -torch.inf)
        score = kept.softmax(dim=-1)
    # not einsum, which would copy the tokens for each head
    mixed = score.flatten(1, 2).to(tokens.dtype) @ tokens  # (B, R, E)
    mixed = rearrange(mixed, "b (s m) e -> s (b m) e", s=len(q))
    if center_values:
        mixed = mixed - _means(tokens, key_padding_mask).repeat_interleave(q.shape[1], dim=0)
    value = rearrange(mixed @ w_v.mT, "s (b m) d -> b s m d", b=tokens.shape[0])
    return ImageSelection(value, score, chosen)


def retrieve(
    state: Float[Tensor, "B N E"],
    attractors: Float[Tensor, "B M E"],
    beta: float,
    head_dim: int,
    num_steps: int = 1,
) -> Float[Tensor, "B N E"]:
    """Compute `functional.hopfield_retrieve_per_image`, in at least float32."""
    dtype = torch.promote_types(state.dtype, torch.float32)
    with without_autocast(state.device.type):
        state, stored = (
            rearrange(x.to(dtype), "b n (h d) -> b h n d", d=head_dim) for x in (state, attractors)
        )
        for _ in range(num_steps):
            score = (beta / math.sqrt(head_dim) * (state @ stored.mT)).softmax(dim=-1)
            state = score @ stored
        return rearrange(state, "b h n d -> b n (h d)")


def fill_padding(
    tokens: Float[Tensor, "B N E"], key_padding_mask: Bool[Tensor, "B N"] | None
) -> Float[Tensor, "B N E"]:
    """Return the tokens with padding, which may contain any values, even NaN, set to 0."""
    if key_padding_mask is None:
        return tokens
    return tokens.masked_fill(key_padding_mask[..., None], 0.0)


def _similarities(
    q: Float[Tensor, "S M D"], tokens: Float[Tensor, "B N E"], w_k: Float[Tensor, "S D E"]
) -> Float[Tensor, "B S M N"]:
    """Return q kᵀ / sqrt(D) in at least float32."""
    num_heads, num_priors, width = q.shape
    dtype = torch.promote_types(q.dtype, torch.float32)
    scaled = q.to(dtype) / math.sqrt(width)
    device = tokens.device.type
    is_available = torch.amp.is_autocast_available(device)  # False for the meta device
    if num_priors <= width and not (is_available and torch.is_autocast_enabled(device)):
        queries = (scaled @ w_k.to(dtype)).flatten(0, 1)  # (R, E)
        similarity = queries @ tokens.to(dtype).mT  # (B, R, N)
        return rearrange(similarity, "b (s m) n -> b s m n", s=num_heads)
    k = rearrange(linear(tokens, w_k.flatten(0, 1)), "b n (s d) -> b s d n", s=num_heads)
    with without_autocast(device):
        return scaled @ k.to(dtype)


def _choose(
    similarity: Float[Tensor, "B S M N"],
    bottleneck: int | float | None,
    key_padding_mask: Bool[Tensor, "B N"] | None,
) -> Bool[Tensor, "B S M N"]:
    """Return which tokens each prior of each head attends to."""
    num_tokens = most = similarity.shape[-1]
    if isinstance(bottleneck, float):
        most = max(1, math.ceil(bottleneck * num_tokens - 1e-9))
    elif bottleneck is not None:
        most = min(bottleneck, num_tokens)
    if key_padding_mask is None:
        if most == num_tokens:  # expanded, so it allocates no memory
            return similarity.new_ones((), dtype=torch.bool).expand(similarity.shape)
        index = select_largest(similarity.flatten(0, 2), most).view(*similarity.shape[:3], most)
        return torch.zeros_like(similarity, dtype=torch.bool).scatter_(-1, index, True)
    is_real = ~key_padding_mask[:, None, None]  # (B, 1, 1, N)
    index = similarity.masked_fill(~is_real, -torch.inf).topk(most, dim=-1).indices
    counts = count_winners(bottleneck, is_real.sum(dim=-1).flatten())  # (B,)
    wins = torch.arange(most, device=similarity.device) < counts[:, None, None, None]
    chosen = torch.zeros_like(similarity, dtype=torch.bool)
    return chosen.scatter_(-1, index, wins.expand_as(index)) & is_real


def _means(
    tokens: Float[Tensor, "B N E"], key_padding_mask: Bool[Tensor, "B N"] | None
) -> Float[Tensor, "B E"]:
    """Return the mean of the tokens of each image, without its padding."""
    if key_padding_mask is None:
        return tokens.mean(dim=1)
    is_real = (~key_padding_mask)[..., None].to(tokens.dtype)
    return (tokens * is_real).sum(dim=1) / is_real.sum(dim=1).clamp(min=1)
