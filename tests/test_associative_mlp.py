"""The feed-forward with a workspace, in models of other libraries."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from associative_transformer.associative_mlp import AssociativeMlp
from associative_transformer.balance import collect_balance_loss
from associative_transformer.workspace_config import ImageMemoryConfig, WorkspaceConfig

BATCH = WorkspaceConfig(num_priors=4, prior_dim=8, num_heads=2, bottleneck=7)
IMAGE = WorkspaceConfig(
    num_priors=4, prior_dim=8, num_heads=2, scope="image", image=ImageMemoryConfig(8)
)
both = pytest.mark.parametrize("config", [BATCH, IMAGE], ids=["batch", "image"])


def build(config: WorkspaceConfig, **changes: object) -> AssociativeMlp:
    return AssociativeMlp(16, 24, workspace=config, **changes).double()  # type: ignore[arg-type]


@both
def test_the_output_is_what_the_docstring_says_and_the_balance_loss_is_attached(
    config: WorkspaceConfig,
) -> None:
    ours = build(config)
    theirs, x = copy.deepcopy(ours), torch.randn(3, 5, 16, dtype=torch.float64)
    torch.manual_seed(1)
    output = ours(x)
    output.sin().sum().backward()
    torch.manual_seed(1)
    u = theirs.output_norm(theirs.fc2(nn.functional.gelu(theirs.fc1(x))))
    read, balance_loss = theirs.workspace(u)
    ((u + read).sin().sum() + balance_loss).backward()
    torch.testing.assert_close(output, u + read)
    assert (balance_loss > 0) == (config is BATCH)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-12, atol=1e-12)


def test_a_loss_that_is_not_attached_is_collected() -> None:
    layer, x = build(BATCH, loss_scale=None), torch.randn(3, 5, 16, dtype=torch.float64)
    attached = copy.deepcopy(layer)
    attached.loss_scale = 1.0
    torch.manual_seed(1)
    (layer(x).sum() + collect_balance_loss(nn.Sequential(layer))).backward()
    torch.manual_seed(1)
    attached(x).sum().backward()
    for mine, other in zip(layer.parameters(), attached.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-12, atol=1e-12)
    layer.eval()(x)
    with pytest.raises(RuntimeError):
        collect_balance_loss(layer)


@both
def test_tokens_may_form_a_grid(config: WorkspaceConfig) -> None:
    layer = build(config).eval()
    x = torch.randn(2, 3, 4, 16, dtype=torch.float64)
    torch.testing.assert_close(layer(x), layer(x.flatten(1, 2)).view_as(x))


def test_another_output_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"out_features must be None or in_features \(16\)"):
        AssociativeMlp(16, out_features=8)


def test_with_one_memory_for_the_batch_only_training_lets_a_token_read_the_future() -> None:
    layer, x = build(BATCH), torch.randn(2, 5, 16, dtype=torch.float64)
    changed = x.clone()
    changed[:, 3:] = torch.randn(2, 2, 16, dtype=torch.float64)  # the future of the first three

    def outputs(mode: bool) -> list[Tensor]:
        layers = [copy.deepcopy(layer).train(mode) for _ in range(2)]
        for each in layers:
            each.workspace.dropout.p = 0.0
        return [each(y)[:, :3] for each, y in zip(layers, (x, changed), strict=True)]

    assert torch.equal(*outputs(False))
    assert not torch.allclose(*outputs(True))


@both
@pytest.mark.parametrize("depth", [2])
def test_a_vit_of_timm_takes_it_as_its_feed_forward(config: WorkspaceConfig, depth: int) -> None:
    timm = pytest.importorskip("timm")
    changes = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "num_heads": 2}
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224",
        mlp_layer=partial(AssociativeMlp, workspace=config),
        depth=depth,
        num_classes=3,
        **changes,
    )
    images, labels = torch.randn(12, 3, 16, 16), torch.arange(12) % 3
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.CrossEntropyLoss()(model(images), labels)
        loss.backward()
        optimizer.step()
    assert all(p.grad is not None for p in model.parameters())
    assert loss < 0.1
