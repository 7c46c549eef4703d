"""What `docs/explanation/memory.md` says about memories: which tokens can reach which others."""

from dataclasses import replace

import torch
from torch import Tensor

from associative_transformer import AiT, AiTConfig, WorkspaceConfig

SIZES = AiTConfig(
    image_size=8,
    patch_size=4,
    num_channels=1,
    embed_dim=32,
    num_heads=2,
    head_dim=8,
    head="mean",
    workspace=WorkspaceConfig(num_priors=4, prior_dim=8, num_heads=2, bottleneck=3),
)
PER_IMAGE = WorkspaceConfig(num_priors=4, prior_dim=8, num_heads=2, scope="image", bottleneck=None)


def reach(config: AiTConfig) -> Tensor:
    """Return which tokens (columns) change the output of which others (rows), in evaluation."""
    torch.manual_seed(0)
    model = AiT(config).double()
    model(torch.randn(4, 1, 8, 8, dtype=torch.float64))  # the memory leaves its initial contents
    model.eval()

    def outputs(tokens: Tensor) -> Tensor:
        for block in model.blocks:
            tokens = block(tokens).tokens
        return tokens

    tokens = torch.randn(2, 4, 32, dtype=torch.float64)
    slope = torch.autograd.functional.jacobian(outputs, tokens)  # (2, 4, E, 2, 4, E)
    return slope.abs().amax(dim=(2, 5)).flatten(2).flatten(0, 1) > 0


WITHIN_IMAGES = torch.block_diag(torch.ones(4, 4), torch.ones(4, 4)).bool()


def test_a_frozen_memory_of_the_batch_carries_nothing_from_one_token_to_another() -> None:
    assert torch.equal(reach(replace(SIZES, use_self_attention=False)), torch.eye(8).bool())


def test_self_attention_connects_the_tokens_of_an_image() -> None:
    assert torch.equal(reach(SIZES), WITHIN_IMAGES)


def test_a_memory_for_each_image_connects_its_tokens_without_self_attention() -> None:
    config = replace(SIZES, use_self_attention=False, workspace=PER_IMAGE)
    assert torch.equal(reach(config), WITHIN_IMAGES)


def test_tokens_that_do_not_read_never_meet_without_self_attention() -> None:
    config = replace(SIZES, use_self_attention=False, read="none")
    assert torch.equal(reach(config), torch.eye(8).bool())
