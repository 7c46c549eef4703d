"""The Associative Transformer (Sun et al., CVPR 2025, arXiv 2309.12862).

Dims     B batch   C channels   H W image side   N tokens   E token width   Q question features
Sizes    AiT-Small 2, AiT-Medium 6, AiT-Base 12 layers at E 768, 12 heads of width 64
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isqrt
from typing import Literal, NamedTuple, cast

import torch
from einops import rearrange
from jaxtyping import Float
from pydantic import ConfigDict, with_config
from torch import Tensor, nn

from associative_transformer import kernels
from associative_transformer.functional import hopfield_retrieve
from associative_transformer.interface import ADDED_LATER, ModelOutput, UserError
from associative_transformer.kernels import Attend
from associative_transformer.models.heads import HeadKind, build_head
from associative_transformer.models.layers import (
    CrossAttention,
    FeedForward,
    SelfAttention,
    run_block,
)
from associative_transformer.models.pretrained import PretrainedModel
from associative_transformer.models.transformer import TransformerConfig, build_embed
from associative_transformer.workspace import GlobalWorkspace, Retrieve
from associative_transformer.workspace_config import WorkspaceConfig


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class AiTConfig(TransformerConfig):
    """Sizes and ablations of an Associative Transformer; the defaults are those of AiT-Small."""

    kind: Literal["ait"] = "ait"
    """Name of the model in saved configurations."""
    head: HeadKind = field(default="flatten", metadata=ADDED_LATER)
    """Classify from all tokens, concatenated (flatten), from their mean, from a class token (cls)
    or from the token of the question; flatten is the paper's."""
    use_self_attention: bool = True
    """False: ablation without self-attention, whose weights are not registered."""
    use_output_norm: bool = field(default=True, metadata=ADDED_LATER)
    """Normalize the output of the feed-forward (norm3), as in the paper."""
    read: Literal["hopfield", "cross_attention", "none"] = "hopfield"
    """How tokens read the memory. Ablations: cross_attention replaces the Hopfield network, and
    with none the tokens write, but nothing is read."""
    workspace: WorkspaceConfig = field(default_factory=WorkspaceConfig)
    """The memory of each block."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workspace.scope == "image":
            self.workspace.image.check_width(self.embed_dim)
            if self.read != "hopfield":
                raise ValueError(
                    f'read must be "hopfield" with workspace.scope "image", not "{self.read}"'
                )


class BlockOutput(NamedTuple):
    """Output of a block."""

    tokens: Float[Tensor, "B N E"]
    balance_loss: Float[Tensor, ""]


class Block(nn.Module):
    """Self-attention and feed-forward, then the workspace: write, remember, read."""

    def __init__(self, config: AiTConfig, attend: Attend, retrieve: Retrieve) -> None:
        super().__init__()
        c, dim = config, config.embed_dim
        self.norm1 = nn.LayerNorm(dim) if c.use_self_attention else None
        self.attention = (
            SelfAttention(dim, c.num_heads, c.head_dim) if c.use_self_attention else None
        )
        self.norm2 = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, round(dim * c.mlp_ratio))
        self.norm3 = nn.LayerNorm(dim) if c.use_output_norm else nn.Identity()
        by_attention = c.read == "cross_attention"
        reader = CrossAttention(dim, dim, c.num_heads, c.head_dim) if by_attention else None
        self.is_read = c.read != "none"
        memory = c.workspace
        if not self.is_read:  # no gradient reaches the write, with one process or with several
            memory = replace(memory, differentiable_write=False)
        self.workspace = GlobalWorkspace(dim, memory, attend, reader, retrieve)
        self.recompute = False

    def forward(self, x: Float[Tensor, "B N E"]) -> BlockOutput:
        """Pass the tokens through one layer.

        Step 1:  x <- x + Attention(LN(x))
        Step 2:  u = LN(FFN(LN(x)))
        Step 7:  x <- x + u + r, with r read from the workspace (steps 3 to 6)
        """

        def before_workspace(
            x: Float[Tensor, "B N E"],
        ) -> tuple[Float[Tensor, "B N E"], Float[Tensor, "B N E"]]:
            if self.attention is not None and self.norm1 is not None:
                x = x + self.attention(self.norm1(x))
            u = self.norm3(self.feed_forward(self.norm2(x)))
            return x, u

        x, u = run_block(before_workspace, x, recompute=self.recompute)
        read, balance_loss = self.workspace(u)  # never recomputed: the memory must move only once
        return BlockOutput(x + u + read if self.is_read else x + u, balance_loss)


class AiT(PretrainedModel, tags=["associative-transformer"]):
    """Image classifier whose tokens share one associative memory per layer.

    `attend` and `retrieve` are passed to each `GlobalWorkspace`.

    >>> images = torch.randn(8, 3, 32, 32)
    >>> logits, aux_loss = AiT(AIT_SMALL)(images)  # in training this also moves the memories
    """

    def __init__(
        self,
        config: AiTConfig,
        attend: Attend = kernels.attend,
        retrieve: Retrieve = hopfield_retrieve,
    ) -> None:
        super().__init__()
        c = self.config = config
        self.embed = build_embed(c)
        self.blocks = nn.ModuleList(Block(c, attend, retrieve) for _ in range(c.depth))
        self.head = build_head(c.head, self.embed.num_tokens, c.embed_dim, c.num_classes)

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        questions: Float[Tensor, "B Q"] | None = None,
    ) -> ModelOutput:
        x = self.embed(images, questions)
        aux_loss = torch.zeros((), device=x.device)
        for block in self.blocks:
            x, balance_loss = block(x)
            aux_loss = aux_loss + balance_loss
        return ModelOutput(self.head(x), aux_loss)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute attention and feed-forward in the backward pass, which saves memory."""
        for block in self.blocks:
            cast(Block, block).recompute = enable

    def reference_parameters(self) -> int:
        """Count parameters as the paper's table does.

        In addition to the live parameters it counts the memories, and a 5x5 convolution stem, a
        class token and positions, which the official code registers but never uses.
        """
        c = self.config
        stem = (25 * c.num_channels + 1) * c.embed_dim
        unused_rows = (c.head != "cls") + (c.pos == "none") * (self.embed.num_patches + 1)
        memories = sum(buffer.numel() for buffer in self.buffers())
        live = super().reference_parameters()
        return live + stem + unused_rows * c.embed_dim + memories


AIT_SMALL = AiTConfig()
AIT_MEDIUM = AiTConfig(depth=6)
AIT_BASE = AiTConfig(depth=12)


def load_official(
    state_dict: Mapping[str, Tensor], bottleneck: int = 512, beta: float = 1.0
) -> AiT:
    """Build an AiT from a checkpoint of the official code (yuweisunn/associative-transformer).

    All sizes follow from the shapes, except for `bottleneck` and `beta`, which a state dict does
    not contain. The write is detached, as in that code, and the model is in evaluation mode.
    Raises UserError if a key is unknown or missing, or a value does not fit.
    """
    state_dict = {key.removeprefix("module."): value for key, value in state_dict.items()}
    for key, value in state_dict.items():
        if not value.is_floating_point() or value.nbytes > value.untyped_storage().nbytes():
            raise UserError(f"{key!r} of the official checkpoint does not hold all its numbers")
    try:
        config = _official_config(state_dict, bottleneck, beta)
        with torch.device("meta"):  # whose weights take no memory: the sizes may be wrong
            outline = AiT(config)
            renamed = _rename_official(state_dict, outline)
            outline.load_state_dict(renamed, assign=True)
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"the official checkpoint lacks {error}") from None
    except Exception as error:  # shapes of another model can raise nearly anything
        reason = " ".join(str(error).split())
        raise UserError(f"the shapes of the official checkpoint do not fit: {reason}") from error
    model = AiT(config)
    model.load_state_dict(renamed)
    return model.eval()


def _rename_official(state_dict: Mapping[str, Tensor], model: AiT) -> dict[str, Tensor]:
    """Return the weights of an official checkpoint under our names."""
    wanted = model.state_dict().keys()
    renamed: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        name = _official_name(key)
        if name is None:
            continue
        if name not in wanted:
            raise UserError(f"{key!r} is not a weight of the official Associative Transformer")
        if name.endswith("workspace.to_prior.weight"):  # heads merge as (D, S) there, (S, D) here
            value = rearrange(value, "o (d s) -> o (s d)", s=model.config.workspace.num_heads)
        renamed[name] = value
    if missing := wanted - renamed.keys():
        raise UserError(
            f"the official checkpoint lacks the weights for {', '.join(sorted(missing))}"
        )
    return renamed


def _official_config(state_dict: Mapping[str, Tensor], bottleneck: int, beta: float) -> AiTConfig:
    shape = {key: tuple(value.shape) for key, value in state_dict.items()}
    block, head_dim = "transformer.layers.0.1.fn.", 64
    num_classes, width = shape["mlp_head.1.weight"]
    embed_dim, patch = shape["to_patch_embedding.2.weight"]
    num_channels = 3 if patch % 3 == 0 and isqrt(patch // 3) ** 2 == patch // 3 else 1
    patch_size = isqrt(patch // num_channels)
    num_priors, prior_dim = shape[block + "memoryupdate.memory"]
    old_share = float(state_dict[block + "memoryupdate.beta"])
    return AiTConfig(
        image_size=isqrt(width // embed_dim) * patch_size,
        patch_size=patch_size,
        num_channels=num_channels,
        num_classes=num_classes,
        embed_dim=embed_dim,
        depth=len({key.split(".")[2] for key in shape if key.startswith("transformer.layers.")}),
        num_heads=shape["transformer.layers.0.0.fn.to_qkv.weight"][0] // (3 * head_dim),
        mlp_ratio=shape[block + "fc1.weight"][0] / embed_dim,
        workspace=WorkspaceConfig(
            num_priors=num_priors,
            prior_dim=prior_dim,
            num_heads=shape[block + "memoryupdate.mha.w_qs.weight"][0] // prior_dim,
            bottleneck=bottleneck,
            beta=beta,
            smoothing=round(1 - old_share, 6),
            differentiable_write=False,
            dropout=0.0,
        ),
    )


_OFFICIAL_ENDS = {
    "to_patch_embedding.1": "embed.patches.0",
    "to_patch_embedding.2": "embed.patches.1",
    "to_patch_embedding.3": "embed.patches.2",
    "mlp_head.0": "head.1",
    "mlp_head.1": "head.2",
}
_OFFICIAL_BLOCK = {
    "0.norm": "norm1",
    "0.fn.to_qkv": "attention.to_qkv",
    "0.fn.to_out.0": "attention.to_out",
    "1.norm": "norm2",
    "1.fn.fc1": "feed_forward.0",
    "1.fn.fc2": "feed_forward.2",
    "1.fn.norm": "norm3",
    "1.fn.memoryupdate.mha.w_qs": "workspace.to_q",
    "1.fn.memoryupdate.mha.w_ks": "workspace.to_k",
    "1.fn.memoryupdate.mha.w_vs": "workspace.to_v",
    "1.fn.memoryupdate.mha.fc": "workspace.to_prior",
    "1.fn.memoryupdate.mha.layer_norm": "workspace.norm",
    "1.fn.memoryupdate": "workspace",
    "1.fn.fc3": "workspace.to_attractor",
}


def _official_name(key: str) -> str | None:
    """Translate a key of the official state dict; return None if that code never uses it."""
    module, _, leaf = key.rpartition(".")
    if key in ("pos_embedding", "cls_token") or module == "to_patch_embedding_cnn.0":
        return None
    if module in _OFFICIAL_ENDS:
        return f"{_OFFICIAL_ENDS[module]}.{leaf}"
    layer, _, part = module.removeprefix("transformer.layers.").partition(".")
    if part == "1.fn.memoryupdate":
        if leaf == "beta":  # share of the old memory: `smoothing` in our configuration
            return None
        leaf = {"memory": "priors"}.get(leaf, leaf)
    return f"blocks.{layer}.{_OFFICIAL_BLOCK.get(part, part)}.{leaf}"
