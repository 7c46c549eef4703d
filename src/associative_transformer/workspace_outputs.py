"""What a workspace returns.

Dims     B batch   N tokens per image   E token width   M priors   D prior width
         S heads of the bottleneck attention   K tokens that a prior attends to
"""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from associative_transformer.functional import ImageSelection, Selection


class WriteOutput(NamedTuple):
    """What a pool of tokens writes."""

    priors: Float[Tensor, "M D"]  # gamma-hat, before the moving average
    balance_loss: Float[Tensor, ""]  # weighted; zero if it is turned off
    selection: Selection


class ImageWriteOutput(NamedTuple):
    """What the tokens of each image write."""

    priors: Float[Tensor, "B M D"]  # the memory of each image
    balance_loss: Float[Tensor, ""]
    selection: ImageSelection


class WorkspaceOutput(NamedTuple):
    """What the tokens get back from the workspace."""

    read: Float[Tensor, "B N E"]  # to be added to the tokens
    balance_loss: Float[Tensor, ""]  # to be added to the loss; zero in evaluation


class Winners(NamedTuple):
    """The tokens that each prior attends to, most attended first; B only with scope "image"."""

    score: Float[Tensor, "*B S M K"]  # attention, sums to 1
    chosen: Int[Tensor, "*B S M K"]  # positions in the pool, or in the image
