"""Dropout of values and of whole branches, in training only.

Dims     B batch   N tokens   E token width
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import dropout


@dataclass(frozen=True)
class Regularization:
    """What is dropped in training; nothing is in the paper."""

    dropout: float = 0.0
    """Share of values set to zero in the tokens, in the hidden layer of the feed-forward and at
    the end of each residual branch (Dosovitskiy et al. 2021)."""
    stochastic_depth: float = 0.0
    """Share of images for which the branches of the last block are skipped; it grows linearly from
    0 for the first block (Huang et al. 2016, arXiv 1603.09382)."""

    def __post_init__(self) -> None:
        for name, rate in vars(self).items():
            if not 0 <= rate < 1:
                raise ValueError(
                    f"regularization.{name} must be at least 0 and less than 1, not {rate}"
                )


class StochasticDepth(nn.Module):
    """Set a residual branch to zero for a share of the images, and scale it up for the others.

    The expected value of the branch does not change. In evaluation, nothing is dropped.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
        if not self.training:
            return x
        return x * dropout(x.new_ones(len(x), 1, 1), self.rate)

    def extra_repr(self) -> str:
        """Return what `print` shows of the module."""
        return f"rate={self.rate}"


def build_dropout(rate: float) -> nn.Module:
    """Return a dropout of single values, or the identity for a rate of 0."""
    return nn.Dropout(rate) if rate else nn.Identity()


def build_branch_end(regularization: Regularization, block: int, depth: int) -> nn.Module:
    """Return what a block, counted from 0, applies to the output of its residual branches."""
    r = regularization
    rate = r.stochastic_depth * block / max(depth - 1, 1)
    if not rate:
        return build_dropout(r.dropout)
    return nn.Sequential(build_dropout(r.dropout), StochasticDepth(rate))
