"""Layers that several models share: token embedding, attention, feed-forward, checks of sizes.

Dims     B batch   C channels   H W image side   P values of a patch, pixels times channels
         N tokens   Q question features   E token width   L context tokens   F context width
"""

import math
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from associative_transformer.arguments import check_count, check_shape, image_shape
from associative_transformer.kernels.attention import attention
from associative_transformer.models.stem import PATCHES, ConvStem, StemConfig

Output = TypeVar("Output")
Positions = Literal["none", "learned"]
MAY_BE_ZERO = ("question_dim", "vocabulary", "decoder_depth")  # 0: the model has none


class PatchTokens(nn.Module):
    """Tokens of an image and its question: class token, question, patches in raster order.

    A subclass sets the attributes below; those of an unused class token or question are None.
    Inside a patch the order is (row, column, channel), channel fastest.
    """

    patches: nn.Module  # P to E
    question: nn.Module | None  # Q to E
    class_token: nn.Parameter | None  # (1, E)

    def __init__(
        self,
        image_size: int | tuple[int, int],
        patch_size: int,
        num_channels: int,
        question_dim: int,
        use_class_token: bool,
    ) -> None:
        super().__init__()
        self.image_size, self.patch_size, self.num_channels = image_size, patch_size, num_channels
        self.question_dim = question_dim
        height, width = image_shape(image_size)
        self.grid = (height // patch_size, width // patch_size)  # patches per column and per row
        self.num_patches = self.grid[0] * self.grid[1]
        self.num_tokens = self.num_patches + (question_dim > 0) + use_class_token

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        questions: Float[Tensor, "B Q"] | None = None,
    ) -> Float[Tensor, "B N E"]:
        check_inputs(images, questions, self.image_size, self.num_channels, self.question_dim)
        tokens = [self.embed_patches(images)]
        if self.question is not None:
            tokens.insert(0, self.question(questions)[:, None])
        if self.class_token is not None:
            tokens.insert(0, self.class_token.expand(images.shape[0], 1, -1))
        return torch.cat(tokens, dim=1)

    def embed_patches(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N E"]:
        """Return the tokens of the patches, in raster order."""
        if isinstance(self.patches, ConvStem):
            return rearrange(self.patches(images), "b e h w -> b (h w) e")
        return self.patches(patchify(images, self.patch_size))


class TokenEmbed(PatchTokens):
    """Tokens from a linear map between two norms, with optional learned positions.

    With a `stem` of kind "conv", they come from convolutions instead. The official code declares
    positions but never adds them: `pos="none"`.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int],
        patch_size: int,
        num_channels: int,
        embed_dim: int,
        question_dim: int = 0,
        pos: Positions = "none",
        use_class_token: bool = False,
        stem: StemConfig = PATCHES,
    ) -> None:
        super().__init__(image_size, patch_size, num_channels, question_dim, use_class_token)
        self.patches: nn.Module = (
            _normalized_linear(patch_size**2 * num_channels, embed_dim)
            if stem.kind == "patch"
            else ConvStem(num_channels, embed_dim, patch_size, stem)
        )
        self.question = _normalized_linear(question_dim, embed_dim) if question_dim else None
        self.class_token = _small_normal(1, embed_dim) if use_class_token else None
        self.positions = _small_normal(self.num_tokens, embed_dim) if pos == "learned" else None

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        questions: Float[Tensor, "B Q"] | None = None,
    ) -> Float[Tensor, "B N E"]:
        x = super().forward(images, questions)
        return x if self.positions is None else x + self.positions


class LinearTokenEmbed(PatchTokens):
    """Tokens from a linear map alone; the caller adds positions."""

    patches: nn.Linear

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        num_channels: int,
        embed_dim: int,
        question_dim: int = 0,
        use_class_token: bool = False,
    ) -> None:
        super().__init__(image_size, patch_size, num_channels, question_dim, use_class_token)
        self.patches = nn.Linear(patch_size**2 * num_channels, embed_dim)
        self.question = nn.Linear(question_dim, embed_dim) if question_dim else None
        self.class_token = nn.Parameter(torch.randn(1, embed_dim)) if use_class_token else None


class SelfAttention(nn.Module):
    """Multi-head self-attention; only the output projection has a bias."""

    def __init__(self, embed_dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_qkv = nn.Linear(embed_dim, 3 * num_heads * head_dim, bias=False)
        self.to_out = nn.Linear(num_heads * head_dim, embed_dim)

    def forward(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
        qkv = rearrange(self.to_qkv(x), "b n (z h d) -> z b h n d", z=3, h=self.num_heads)
        attended = attention(*qkv)
        return self.to_out(rearrange(attended, "b h n d -> b n (h d)"))

    def scores(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B H N N"]:
        """Return the attention weights of each token over all tokens, for analysis."""
        qkv = rearrange(self.to_qkv(x), "b n (z h d) -> z b h n d", z=3, h=self.num_heads)
        return (qkv[0] @ qkv[1].mT / math.sqrt(qkv.shape[-1])).softmax(dim=-1)


class CrossAttention(nn.Module):
    """Multi-head attention from tokens to a context; only the output projection has a bias."""

    def __init__(self, embed_dim: int, context_dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(embed_dim, num_heads * head_dim, bias=False)
        self.to_kv = nn.Linear(context_dim, 2 * num_heads * head_dim, bias=False)
        self.to_out = nn.Linear(num_heads * head_dim, embed_dim)

    def forward(
        self, x: Float[Tensor, "B N E"], context: Float[Tensor, "B L F"]
    ) -> Float[Tensor, "B N E"]:
        q = rearrange(self.to_q(x), "b n (h d) -> b h n d", h=self.num_heads)
        k, v = rearrange(self.to_kv(context), "b l (z h d) -> z b h l d", z=2, h=self.num_heads)
        attended = attention(q, k, v)
        return self.to_out(rearrange(attended, "b h n d -> b n (h d)"))


class FeedForward(nn.Sequential):
    """Two linear maps with an exact GELU in between, and dropout after it."""

    def __init__(self, embed_dim: int, hidden_dim: int, dropout: float = 0.0) -> None:
        activation = nn.Sequential(nn.GELU(), nn.Dropout(dropout)) if dropout else nn.GELU()
        super().__init__(
            nn.Linear(embed_dim, hidden_dim), activation, nn.Linear(hidden_dim, embed_dim)
        )


def patchify(images: Float[Tensor, "B C H W"], patch_size: int) -> Float[Tensor, "B N P"]:
    """Cut images into patches, in raster order; inside a patch the channel varies fastest."""
    p = patch_size
    return rearrange(images, "b c (h i) (w j) -> b (h w) (i j c)", i=p, j=p)


def shared_workspace_positions(num_tokens: int, embed_dim: int) -> Float[Tensor, "N E"]:
    """Return the fixed position code of anirudh9119/shared_workspace: sigmoid(1) * PE.

    Even columns c of PE hold sines and odd ones cosines of the angle t / 10000^(2c / E). That is
    twice the usual exponent, so the sine and the cosine of a pair have different frequencies. The
    gate sigmoid(1) is a parameter in that code, but no gradient reaches it.
    """
    column = torch.arange(embed_dim, dtype=torch.float64)
    position = torch.arange(num_tokens, dtype=torch.float64)[:, None]
    angle = position / 10_000 ** (2 * column / embed_dim)
    code = torch.where(column % 2 == 0, angle.sin(), angle.cos())
    return (torch.sigmoid(torch.ones(())) * code).float()


def check_inputs(
    images: Float[Tensor, "B C H W"],
    questions: Float[Tensor, "B Q"] | None,
    image_size: int | tuple[int, int],
    num_channels: int,
    question_dim: int = 0,
) -> None:
    """Raise ValueError if images or questions do not have the shape and type of the model."""
    check_shape("images", images, "B", num_channels, *image_shape(image_size))
    if questions is None and question_dim:
        raise ValueError(f"the model takes questions of shape (B, {question_dim}), but got none")
    if questions is None:
        return
    if not question_dim:
        raise ValueError(
            f"the model takes no questions, but got some of shape {tuple(questions.shape)}"
        )
    check_shape("questions", questions, "B", question_dim)
    if questions.shape[0] != images.shape[0]:
        raise ValueError(f"got {len(questions)} questions for {len(images)} images")


def check_sizes(config: object, may_be_zero: tuple[str, ...] = ()) -> None:
    """Check the sizes in a model's configuration: counts `num_x`, widths `x_dim`, and so on.

    Raises ValueError with the field and its value if a size is out of range or the patch does not
    divide the image.
    """
    sizes = vars(config)
    for name, value in sizes.items():
        is_size = name.startswith("num_") or name.endswith(("_dim", "_size", "depth"))
        is_size |= name in ("resolution", "vocabulary")
        minimum = 0 if name in (*MAY_BE_ZERO, *may_be_zero) else 1
        if is_size:
            for each in value if name == "image_size" and isinstance(value, tuple) else [value]:
                check_count(name, each, minimum)
        if name.endswith("dropout") and not 0 <= value < 1:
            raise ValueError(f"{name} must be at least 0 and less than 1, not {value}")
    if not 0 < sizes.get("mlp_ratio", 1.0) < math.inf:
        raise ValueError(f"mlp_ratio must be positive, not {sizes['mlp_ratio']}")
    if "mlp_ratio" in sizes and round(sizes["embed_dim"] * sizes["mlp_ratio"]) < 1:
        raise ValueError(
            f"mlp_ratio {sizes['mlp_ratio']} makes the feed-forward 0 wide with embed_dim "
            f"{sizes['embed_dim']}: choose a larger one"
        )
    if any(side % sizes.get("patch_size", 1) for side in image_shape(sizes["image_size"])):
        raise ValueError(
            f"patch_size {sizes['patch_size']} does not divide image_size {sizes['image_size']}"
        )


def run_block(
    block: Callable[..., Output],
    *inputs: object,
    recompute: bool,
) -> Output:
    """Return `block(*inputs)`, computed again in the backward pass if `recompute` is set.

    Then only the inputs are kept until the backward pass, not the activations inside the block.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)


def _normalized_linear(in_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(in_dim), nn.Linear(in_dim, out_dim), nn.LayerNorm(out_dim))


def _small_normal(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * 0.02)
