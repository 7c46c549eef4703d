"""What passes between data, models and training.

Dims     B batch   C channels   H height   W width   Q question features   O classes
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # UserError is needed by commands that do not wait for torch
    from jaxtyping import Float, Int
    from torch import Tensor

PADDING = -1
"""Label of a row that only fills up the last evaluation batch; it is never scored."""


class UserError(ValueError):
    """What the user can put right: the command line prints it as one sentence and exits with 2."""


class Batch(NamedTuple):
    """One batch of normalized images, with the questions asked of them, where there are any."""

    images: Float[Tensor, "B C H W"]
    questions: Float[Tensor, "B Q"] | None
    labels: Int[Tensor, " B"]  # class indices, or PADDING


class ModelOutput(NamedTuple):
    """What every model returns."""

    logits: Float[Tensor, "B O"]
    aux_loss: Float[Tensor, ""]  # added to the cross-entropy; zero where a model has none
