"""A layer for `nn.TransformerEncoder` with a separate memory for each sequence.

Dims     B batch   N tokens of a sequence   E token width, `d_model`
         I J   B N or, unless `batch_first` is set, N B
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn.functional import gelu, relu

from associative_transformer.arguments import check_shape
from associative_transformer.workspace import GlobalWorkspace
from associative_transformer.workspace_config import WorkspaceConfig

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {"relu": relu, "gelu": gelu}


class WorkspaceEncoderLayer(nn.Module):
    """`nn.TransformerEncoderLayer` with a workspace of scope "image" after its feed-forward.

    x <- x + Attention(LN(x)),  u = LN(FFN(LN(x))),  x <- x + u + r, with r read from the memory

    >>> layer = WorkspaceEncoderLayer(d_model=64, nhead=4, batch_first=True, norm_first=True)
    >>> encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
    >>> padding = torch.arange(10) >= torch.tensor([[10], [7]])  # True for padding
    >>> encoder(torch.randn(2, 10, 64), src_key_padding_mask=padding).shape
    torch.Size([2, 10, 64])

    The layer is not causal: each token reads what later tokens of its sequence have written.
    Therefore `forward` raises ValueError if it gets a `src_mask`, or if `is_causal` is set.

    The arguments are those of `nn.TransformerEncoderLayer`, with two additions. If `nhead` is
    None, the layer has no self-attention, and tokens exchange information only through the memory,
    at a cost linear in the number of tokens. `workspace` configures the memory; its
    `balance_weight` must be 0, since the layer returns only tokens. Weights that both layers have
    share their names, so that `load_state_dict(weights, strict=False)` loads them; `norm3` and
    `workspace` are new.

    Without `norm_first`, x is normalized after each of the two additions instead of before
    attention and feed-forward. In either case, u is normalized.
    """

    def __init__(
        self,
        d_model: int,
        nhead: int | None,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | Activation = relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        workspace: WorkspaceConfig | None = None,
    ) -> None:
        super().__init__()
        memory = WorkspaceConfig(scope="image") if workspace is None else workspace
        _check_memory(memory)
        self.d_model, self.batch_first, self.norm_first = d_model, batch_first, norm_first
        self.activation = _find_activation(activation)
        self.self_attn = (
            _NoAttention(batch_first)
            if nhead is None
            else nn.MultiheadAttention(d_model, nhead, dropout, bias, batch_first=batch_first)
        )
        has_attention = nhead is not None
        self.norm1 = nn.LayerNorm(d_model, layer_norm_eps, bias=bias) if has_attention else None
        self.linear1 = nn.Linear(d_model, dim_feedforward, bias)
        self.linear2 = nn.Linear(dim_feedforward, d_model, bias)
        self.norm2 = nn.LayerNorm(d_model, layer_norm_eps, bias=bias)
        self.norm3 = nn.LayerNorm(d_model, layer_norm_eps, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.workspace = GlobalWorkspace(d_model, memory)
        self.to(device=device, dtype=dtype)

    def forward(
        self,
        src: Float[Tensor, "I J E"],
        src_mask: Shaped[Tensor, "..."] | None = None,
        src_key_padding_mask: Shaped[Tensor, "B N"] | None = None,
        is_causal: bool = False,
    ) -> Float[Tensor, "I J E"]:
        """Pass the tokens through the layer.

        `src_key_padding_mask` is True for padding if it is bool, or -inf if it is floating-point.
        """
        if src_mask is not None or is_causal:
            raise ValueError(
                "src_mask must be None and is_causal False, because each token reads what later "
                "tokens have written: to use a mask, use nn.TransformerEncoderLayer"
            )
        sizes = ("B", "N") if self.batch_first else ("N", "B")
        check_shape("src", src, *sizes, self.d_model)
        padding, x = src_key_padding_mask, src
        if padding is not None and padding.is_floating_point():  # from nn.TransformerEncoder
            padding = padding == -torch.inf
        if self.norm_first:
            if self.norm1 is not None:
                x = x + self._attend(self.norm1(x), padding)
            return x + self._share(self.norm2(x), padding)
        if self.norm1 is not None:
            x = self.norm1(x + self._attend(x, padding))
        return self.norm2(x + self._share(x, padding))

    def _attend(
        self, x: Float[Tensor, "I J E"], padding: Bool[Tensor, "B N"] | None
    ) -> Float[Tensor, "I J E"]:
        attended, _ = self.self_attn(x, x, x, key_padding_mask=padding, need_weights=False)
        return self.dropout(attended)

    def _share(
        self, x: Float[Tensor, "I J E"], padding: Bool[Tensor, "B N"] | None
    ) -> Float[Tensor, "I J E"]:
        """Return the output of the feed-forward plus what the tokens read, after dropout."""
        u = self.norm3(self.linear2(self.dropout(self.activation(self.linear1(x)))))
        if self.batch_first:
            read = self.workspace(u, padding).read
        else:
            read = self.workspace(u.transpose(0, 1), padding).read.transpose(0, 1)
        return self.dropout(u + read)


class _NoAttention(nn.Module):
    """Placeholder for the attention; `nn.TransformerEncoder` reads its `batch_first`."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first


def _check_memory(config: WorkspaceConfig) -> None:
    """Raise ValueError if the memory is shared between sequences, or has a balance loss."""
    if config.scope != "image":
        raise ValueError(f'workspace must have scope "image", not "{config.scope}"')
    if config.balance_weight:
        raise ValueError(
            f"workspace.balance_weight must be 0, not {config.balance_weight}, because the layer "
            "returns no loss: use GlobalWorkspace instead"
        )


def _find_activation(activation: str | Activation) -> Activation:
    if not isinstance(activation, str):
        return activation
    if activation not in ACTIVATIONS:
        choices = " or ".join(ACTIVATIONS)
        raise ValueError(f"activation must be {choices} or a function, not {activation}")
    return ACTIVATIONS[activation]
