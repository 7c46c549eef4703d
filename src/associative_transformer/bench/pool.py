"""The workspace's write alone: a pool of random tokens, forward and backward.

Dims     T pooled tokens   E token width
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from associative_transformer import functional
from associative_transformer.compute import Precision, autocast, choose_precision
from associative_transformer.experiment import TrainConfig
from associative_transformer.kernels import PoolAttention, sparse
from associative_transformer.training.launch import make_accelerator
from associative_transformer.workspace import GlobalWorkspace
from associative_transformer.workspace_config import WorkspaceConfig

ATTEND = {
    "sparse": PoolAttention(sparse.pooled_attention),
    "plain": PoolAttention(functional.pooled_attention),
    "dense": PoolAttention(functional.pooled_attention),  # with a bottleneck of None
}


@dataclass(frozen=True)
class PoolSizes:
    """The number and the width of the pooled tokens, and the configuration of the workspace."""

    tokens: int
    embed_dim: int
    config: WorkspaceConfig


TINY = PoolSizes(8, 8, WorkspaceConfig(num_priors=2, prior_dim=4, num_heads=2, bottleneck=2))


def prepare_write(name: str, sizes: PoolSizes, train: TrainConfig) -> Callable[[], object]:
    """Build the workspace and the pool on the device and return the function to time.

    A tiny pool is written first to load the libraries, so that the first call adds only the memory
    of the write (and, with `train.compile`, of the compiler) to the peak.
    """
    accelerator = make_accelerator(train, ProjectConfiguration())
    precision = choose_precision(train.precision, accelerator.device, None).precision
    _WriteBenchmark(build_workspace(name, TINY), TINY, accelerator, precision)()
    write = _WriteBenchmark(build_workspace(name, sizes), sizes, accelerator, precision)
    if train.compile == "on":
        write.write = torch.compile(write.write)
    return write


def build_workspace(name: str, sizes: PoolSizes) -> GlobalWorkspace:
    """Build a workspace that writes with the named implementation."""
    bottleneck = None if name == "dense" else sizes.config.bottleneck
    config = replace(sizes.config, bottleneck=bottleneck)
    return GlobalWorkspace(sizes.embed_dim, config, ATTEND[name])


def count_write(name: str, sizes: PoolSizes) -> int:
    """Return the floating-point operations of a forward write by the plain implementation."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        workspace = build_workspace("dense" if name == "dense" else "plain", sizes)
        workspace.write(torch.empty(sizes.tokens, sizes.embed_dim))
    return int(counter.get_total_flops())


class _WriteBenchmark:
    """Computes the gradient of the write with respect to a random pool and the weights."""

    def __init__(
        self,
        workspace: GlobalWorkspace,
        sizes: PoolSizes,
        accelerator: Accelerator,
        precision: Precision,
    ) -> None:
        self.accelerator, self.precision = accelerator, precision
        self.workspace = workspace.to(accelerator.device)
        self.write = self.workspace.write
        self.pool = torch.randn(sizes.tokens, sizes.embed_dim, device=accelerator.device)
        self.pool.requires_grad_()

    def __call__(self) -> Tensor:
        self.pool.grad = None
        self.workspace.zero_grad()
        with autocast(self.accelerator.device, self.precision):
            written = self.write(self.pool)
        loss = written.priors.square().sum() + written.balance_loss
        torch.autograd.backward(loss)
        return loss.detach()
