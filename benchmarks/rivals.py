"""Other ways to mix the tokens of an image.

The mixers of `build_mixer` replace the workspace of a block. They are called like
`GlobalWorkspace`, with the normalized output u of the feed-forward, and return what each token
reads, normalized by the same LayerNorm (eps 1e-5, affine) unless it is zero. `RegisterViT` and
`PlacedViT` change a ViT instead.

Dims     B images   N tokens of an image   E token width   M vectors   D their width   S heads
"""

from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import elu

from associative_transformer import AiT, AiTConfig, WorkspaceConfig
from associative_transformer.float32 import Float32LayerNorm
from associative_transformer.functional import ImageSelection
from associative_transformer.models.layers import CrossAttention
from associative_transformer.models.set_transformer import ISAB
from associative_transformer.models.vit import ViT, ViTConfig
from associative_transformer.workspace import GlobalWorkspace
from associative_transformer.workspace_outputs import ImageWriteOutput, WorkspaceOutput

CONTENTS = ("priors", "inducing", "patterns", "registers")
"""Names of the learned vectors, which have no weight decay, like the contents of a workspace."""
SMOOTHING = 0.1
"""Share of the new write in the moving average of `MovingContents`."""

Kind = Literal["none", "inducing", "slots", "mean", "linear", "hopfield", "moving-average"]


class Mixer(nn.Module):
    """Base class of the mixers that are not workspaces: mix the tokens, then normalize."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.read_norm = Float32LayerNorm(embed_dim)

    def forward(self, u: Float[Tensor, "B N E"]) -> WorkspaceOutput:
        return WorkspaceOutput(self.read_norm(self.mix(u)), u.new_zeros(()))

    def mix(self, u: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
        """Return what each token reads, before the LayerNorm."""
        raise NotImplementedError


class NoWorkspace(nn.Module):
    """No mixing: every token reads zeros."""

    def forward(self, u: Float[Tensor, "B N E"]) -> WorkspaceOutput:
        return WorkspaceOutput(torch.zeros_like(u), u.new_zeros(()))


class InducingPoints(Mixer):
    """The block of the Set Transformer (Lee et al. 2019, arXiv 1810.00825)."""

    def __init__(self, embed_dim: int, num_points: int, num_heads: int) -> None:
        super().__init__(embed_dim)
        self.block = ISAB(embed_dim, embed_dim, num_heads, num_points)

    def mix(self, u: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
        """Return ISAB(u) = MAB(u, MAB(I, u)) with the inducing points I."""
        return self.block(u)


class MeanMemory(Mixer):
    """The mean of the tokens as the only memory, which all tokens read: r = LN(f(mean u))."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__(embed_dim)
        self.to_attractor = nn.Linear(embed_dim, embed_dim)

    def mix(self, u: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
        """Return the mapped mean for each token."""
        return self.to_attractor(u.mean(dim=1, keepdim=True)).expand_as(u)


class LinearAttention(Mixer):
    """Linear attention (Katharopoulos et al. 2020, arXiv 2006.16236), without a mask.

    r_j = phi(q_j) sum_i phi(k_i)ᵀ v_i / (phi(q_j) · sum_i phi(k_i)),  phi(x) = elu(x) + 1
    """

    def __init__(self, embed_dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__(embed_dim)
        self.num_heads = num_heads
        self.to_qkv = nn.Linear(embed_dim, 3 * num_heads * head_dim, bias=False)
        self.to_out = nn.Linear(num_heads * head_dim, embed_dim)

    def mix(self, u: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
        """Return the attention of all tokens to all tokens, at linear cost."""
        q, k, v = rearrange(self.to_qkv(u), "b n (z s d) -> z b s n d", z=3, s=self.num_heads)
        q, k = elu(q) + 1, elu(k) + 1
        total = q @ k.sum(dim=2)[..., None]  # (B, S, N, 1)
        attended = q @ (k.mT @ v) / total
        return self.to_out(rearrange(attended, "b s n d -> b n (s d)"))


class HopfieldLookup(Mixer):
    """A Hopfield layer with learned patterns (Ramsauer et al. 2021, arXiv 2008.02217).

    Each token retrieves from the same patterns, on its own: nothing passes between tokens.
    """

    def __init__(self, embed_dim: int, num_patterns: int, num_heads: int, head_dim: int) -> None:
        super().__init__(embed_dim)
        self.patterns = nn.Parameter(torch.randn(num_patterns, embed_dim))
        self.retrieve = CrossAttention(embed_dim, embed_dim, num_heads, head_dim)

    def mix(self, u: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
        """Return what each token retrieves from the patterns."""
        return self.retrieve(u, self.patterns.expand(len(u), -1, -1))


class Slots(GlobalWorkspace):
    """The workspace per image with the write of Slot Attention (Locatello et al. 2020).

    a = softmax over the slots of q kᵀ / sqrt(D),  h = a v / (sum of a over the tokens)

    It runs one iteration, with heads as in the workspace. Memory and read are unchanged.
    """

    def write_images(
        self, u: Float[Tensor, "B N E"], key_padding_mask: Tensor | None = None
    ) -> ImageWriteOutput:
        """Write the weighted mean of the tokens into the slots of each image."""
        s = self.config.num_heads
        q = rearrange(self.to_q(self.priors), "m (s d) -> s m d", s=s)
        k, v = (rearrange(to(u), "b n (s d) -> b s n d", s=s) for to in (self.to_k, self.to_v))
        similarity = q @ k.mT * self.config.prior_dim**-0.5  # (B, S, M, N)
        dtype = torch.promote_types(similarity.dtype, torch.float32)
        share = similarity.to(dtype).softmax(dim=2) + 1e-8
        score = share / share.sum(dim=-1, keepdim=True)
        value = score.to(v.dtype) @ v
        h = rearrange(value, "b s m d -> b m (s d)")
        priors = self.norm(self.priors + self.to_prior(h))
        selection = ImageSelection(value, score, torch.ones_like(score, dtype=torch.bool))
        return ImageWriteOutput(priors, self.priors.new_zeros(()), selection)


class MovingContents(GlobalWorkspace):
    """The workspace per image whose initial contents are a moving average instead of learned.

    gamma <- (1 - alpha) gamma + alpha mean over the images of gamma_b,  once per training step
    """

    def __init__(self, embed_dim: int, config: WorkspaceConfig) -> None:
        super().__init__(embed_dim, config)
        contents = self.priors.detach()
        del self.priors
        self.register_buffer("priors", contents)

    def write_images(
        self, u: Float[Tensor, "B N E"], key_padding_mask: Tensor | None = None
    ) -> ImageWriteOutput:
        """Write as usual; in training, the contents then move."""
        written = super().write_images(u, key_padding_mask)
        if self.training:  # into a new tensor, since backward needs the old one
            mean = written.priors.detach().to(self.priors.dtype).mean(dim=0)
            self.priors = (1 - SMOOTHING) * self.priors + SMOOTHING * mean
        return written


class MixerAiT(AiT):
    """An AiT whose workspaces are replaced by another mixer."""

    def __init__(self, config: AiTConfig, kind: Kind) -> None:
        super().__init__(config)
        for block in self.blocks:
            block.workspace = build_mixer(kind, config)

    def no_weight_decay(self) -> set[str]:
        """Return the names of the learned vectors."""
        return _contents(self)


class RegisterViT(ViT):
    """A ViT with learned tokens that the head does not see (Darcet et al. 2024, 2309.16588)."""

    def __init__(self, config: ViTConfig, num_registers: int) -> None:
        super().__init__(config)
        self.registers = nn.Parameter(torch.randn(num_registers, config.embed_dim) * 0.02)

    def encode(
        self, images: Float[Tensor, "B C H W"], questions: Tensor | None = None
    ) -> tuple[Float[Tensor, "B N E"], Float[Tensor, ""]]:
        """Return the tokens after the last block, without the registers, and a loss of zero."""
        x = self.embed(images, questions)
        x = torch.cat([x, self.registers.expand(len(x), -1, -1)], dim=1)
        for block in self.blocks:
            x = block(x)
        return x[:, : -len(self.registers)], x.new_zeros(())

    def no_weight_decay(self) -> set[str]:
        """Return the names of the registers."""
        return _contents(self)


class PlacedWorkspace(nn.Module):
    """A workspace per image that replaces self-attention: W r(x), or r(x) without a map."""

    def __init__(self, embed_dim: int, config: WorkspaceConfig, has_map: bool) -> None:
        super().__init__()
        self.workspace = GlobalWorkspace(embed_dim, config)
        self.to_out = nn.Linear(embed_dim, embed_dim) if has_map else nn.Identity()

    def forward(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
        return self.to_out(self.workspace(x).read)


class PlacedViT(ViT):
    """A ViT whose self-attention is replaced by a workspace per image."""

    def __init__(self, config: ViTConfig, workspace: WorkspaceConfig, has_map: bool) -> None:
        super().__init__(config)
        for block in self.blocks:
            block.attention = PlacedWorkspace(config.embed_dim, workspace, has_map)

    def no_weight_decay(self) -> set[str]:
        """Return the names of the initial contents."""
        return _contents(self)


def build_mixer(kind: Kind, config: AiTConfig) -> nn.Module:
    """Return the mixer of a block, with as many vectors and heads as the workspace would have."""
    dim, workspace = config.embed_dim, config.workspace
    num_vectors, num_heads = workspace.num_priors, workspace.num_heads
    if kind == "inducing":
        return InducingPoints(dim, num_vectors, num_heads)
    if kind == "slots":
        return Slots(dim, workspace)
    if kind == "mean":
        return MeanMemory(dim)
    if kind == "linear":
        return LinearAttention(dim, num_heads, dim // num_heads)
    if kind == "hopfield":
        return HopfieldLookup(dim, num_vectors, num_heads, dim // num_heads)
    if kind == "moving-average":
        return MovingContents(dim, workspace)
    return NoWorkspace()


def _contents(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters() if name.split(".")[-1] in CONTENTS}
