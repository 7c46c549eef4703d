"""Models with a memory for each image: a tiny random one, and one whose choices are planted."""

from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor, nn

from associative_transformer.interface import Batch
from associative_transformer.models.ait import AiT, AiTConfig
from associative_transformer.models.layers import TokenEmbed, patchify
from associative_transformer.workspace import GlobalWorkspace
from associative_transformer.workspace_config import ImageMemoryConfig, WorkspaceConfig
from twins.naive_image import ImageWeights, Settings

TINY = AiTConfig(
    image_size=16,
    patch_size=8,
    num_classes=3,
    embed_dim=12,
    depth=2,
    num_heads=2,
    head_dim=8,
    mlp_ratio=2.0,
    workspace=WorkspaceConfig(
        num_priors=4,
        prior_dim=8,
        num_heads=3,
        bottleneck=2,
        scope="image",
        image=ImageMemoryConfig(read_head_dim=4),
    ),
)

SHARED = replace(
    TINY, workspace=WorkspaceConfig(num_priors=4, prior_dim=8, num_heads=3, bottleneck=2)
)
"""The same with one memory for the batch."""


def make_model(config: AiTConfig = TINY) -> AiT:
    """Return a model whose priors choose and read more distinctly than those of a new one."""
    model = AiT(config).eval()
    with torch.no_grad():
        for block in model.blocks:
            block.workspace.to_k.weight *= 3
            block.workspace.to_attractor.weight *= 3
            block.workspace.to_attractor.bias.normal_()
    return model


def with_workspace(config: AiTConfig = TINY, **changes: object) -> AiTConfig:
    return replace(config, workspace=replace(config.workspace, **changes))  # type: ignore[arg-type]


def make_batches(*sizes: int, question_dim: int = 0, side: int = 16) -> list[Batch]:
    return [
        Batch(
            torch.randn(size, 3, side, side),
            torch.randn(size, question_dim) if question_dim else None,
            torch.randint(3, (size,)),
        )
        for size in sizes
    ]


def weights_of(workspace: GlobalWorkspace) -> tuple[ImageWeights, Settings]:
    """Return the weights of a workspace in float64, and its settings, for the slow twin."""
    c, w = workspace.config, workspace
    tensors = [
        w.priors,
        w.to_q.weight,
        w.to_k.weight,
        w.to_v.weight,
        w.to_prior.weight,
        w.norm.weight,
        w.norm.bias,
        w.to_attractor.weight,
        w.to_attractor.bias,
        w.read_norm.weight,
        w.read_norm.bias,
    ]
    weights = ImageWeights(*(tensor.detach().double() for tensor in tensors))
    settings = Settings(
        c.num_heads,
        c.bottleneck,  # type: ignore[arg-type]
        c.image.read_head_dim,
        c.competition == "priors",
        c.center_values,
        c.beta,
        c.num_steps,
    )
    return weights, settings


# --- planted choices: a patch is one pixel, whose channels say what it does ---


class Pixels(TokenEmbed):
    """An embedding whose tokens are the pixels of the image."""

    def forward(self, images: Tensor, questions: Tensor | None = None) -> Tensor:
        return patchify(images, 1)


def planted(
    num_priors: int, bottleneck: int | float | None = 1, side: int = 2, num_classes: int = 3
) -> AiT:
    """Return an AiT of one layer whose images are made by `images_of`.

    The write has one head, the read three. The similarity of a patch to prior m is its entry m of
    `write`. It reads most, in the second head, from the prior with its largest entry of `read`.
    """
    width = 3 * num_priors
    workspace = WorkspaceConfig(
        num_priors=num_priors,
        prior_dim=num_priors,
        num_heads=1,
        bottleneck=bottleneck,
        scope="image",
        image=ImageMemoryConfig(read_head_dim=num_priors),
    )
    model = AiT(
        AiTConfig(
            image_size=side,
            patch_size=1,
            num_channels=width,
            num_classes=num_classes,
            embed_dim=width,
            depth=1,
            use_self_attention=False,
            head="mean",
            workspace=workspace,
        )
    )
    model.embed = Pixels(side, 1, width, width)
    block, identity = model.blocks[0], torch.eye(num_priors)
    block.norm2, block.feed_forward, block.norm3 = nn.Identity(), nn.Identity(), nn.Identity()
    block.workspace.norm = nn.Identity()
    with torch.no_grad():
        block.workspace.priors.copy_(identity)
        block.workspace.to_q.weight.copy_(identity)
        to_k = torch.cat([identity, torch.zeros(num_priors, 2 * num_priors)], dim=1)
        block.workspace.to_k.weight.copy_(num_priors**0.5 * to_k)
        block.workspace.to_prior.weight.zero_()
        block.workspace.to_attractor.weight.copy_(identity.repeat(3, 1))
        block.workspace.to_attractor.bias.zero_()
    return model.eval()


def images_of(write: Tensor, read: Tensor | None = None, content: Tensor | None = None) -> Tensor:
    """Return images (B, 3 M, side, side) from what their patches do, each (B, N, M)."""
    nothing = torch.zeros_like(write)
    parts = [write, nothing if read is None else read, nothing if content is None else content]
    side = round(write.shape[1] ** 0.5)
    return rearrange(torch.cat(parts, dim=-1), "b (h w) c -> b c h w", h=side)
