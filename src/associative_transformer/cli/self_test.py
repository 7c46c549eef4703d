"""A small test of the installation, which `ait doctor` runs: a tiny model computes and learns."""

import torch
from torch.nn import functional as F

from associative_transformer import functional
from associative_transformer.kernels import FASTEST
from associative_transformer.models.ait import AiT, AiTConfig
from associative_transformer.workspace import GlobalWorkspace
from associative_transformer.workspace_config import WorkspaceConfig

TOLERANCE = 1e-3
"""Largest difference of logits between a device and the CPU; GPUs may multiply in TF32."""
SMALL = AiTConfig(
    image_size=8,
    patch_size=4,
    num_classes=2,
    embed_dim=16,
    depth=1,
    num_heads=2,
    head_dim=8,
    workspace=WorkspaceConfig(num_priors=4, prior_dim=8, num_heads=2, bottleneck=8),
)


def find_problems(device: torch.device) -> list[str]:
    """Return what does not work on a device, in one sentence each; empty if all is well.

    Errors of torch, such as one for a driver that does not match, are problems too.
    """
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            model, images = AiT(SMALL), torch.randn(4, 3, 8, 8)
            return [*_compare_with_cpu(model, images, device), *_train(model, images, device)]
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]


def _compare_with_cpu(model: AiT, images: torch.Tensor, device: torch.device) -> list[str]:
    """Compare the logits with those of the CPU, and the write with the plain equations."""
    found = []
    with torch.no_grad():
        expected = model.eval().cpu()(images).logits
        logits = model.to(device)(images.to(device)).logits.cpu()
    if not torch.allclose(logits, expected, atol=TOLERANCE):
        found.append(f"logits differ from those of the CPU by {(logits - expected).abs().max()}")
    fastest = FASTEST.get(device.type, functional)
    q, tokens = torch.randn(2, 4, 8, device=device), torch.randn(32, 16, device=device)
    w_k, w_v = torch.randn(2, 2, 8, 16, device=device)
    ours = fastest.pooled_attention(q, tokens, w_k, w_v, 8)
    plain = functional.pooled_attention(q, tokens, w_k, w_v, 8)
    if not torch.allclose(ours.value, plain.value, atol=TOLERANCE):
        found.append("the fast write of the workspace differs from the plain one")
    return found


def _train(model: AiT, images: torch.Tensor, device: torch.device) -> list[str]:
    """Train for one step, which must change the memory, and the weights to finite values."""
    model.to(device).train()
    (workspace,) = [part for part in model.modules() if isinstance(part, GlobalWorkspace)]
    before = workspace.priors.clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    logits, aux_loss = model(images.to(device))
    labels = torch.tensor([0, 1, 0, 1], device=device)
    (F.cross_entropy(logits, labels) + aux_loss).backward()
    optimizer.step()
    found = []
    if not all(p.isfinite().all() for p in model.parameters()):
        found.append("weights are not finite after a step")
    if torch.equal(before, workspace.priors):
        found.append("a step of training does not change the memory")
    return found
