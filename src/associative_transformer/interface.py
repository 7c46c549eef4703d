"""Types that pass between data, models and training.

Dims     B batch   C channels   H height   W width   Q question features   O classes
"""

from __future__ import annotations

import codecs
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # some commands need UserError but do not import torch
    from jaxtyping import Float, Int
    from torch import Tensor

PADDING = -1
"""Label of a row that only pads the last evaluation batch; it is never scored."""

ADDED_LATER = {"added_later": True}
"""Metadata of a configuration field that version 0.1 did not have.

`field(default=..., metadata=ADDED_LATER)` leaves the fingerprints of older experiments unchanged:
the field is omitted from the fingerprint if it equals its default. The default must reproduce
what earlier versions did, and must never change.
"""


_CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\udc80-\udc9f]"
)
"""Characters that move the cursor, change colors or reverse the direction of writing.

The last range stands for such bytes in file names."""


def printable(name: str) -> str:
    """Return a name of a file or class for a terminal, with control characters as escapes."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), name)


def printable_lines(text: str) -> str:
    """Return lines of text for a terminal, with other control characters as escapes."""
    return "\n".join(map(printable, text.split("\n")))


def format_count(number: int, noun: str) -> str:
    """Return a number with its noun, such as "1 image", "2,000 images" or "0 classes"."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{ending}"


def _show(error: UnicodeError) -> tuple[str | bytes, int]:
    """Return the bytes of a file name that is not UTF-8, or an escape of another character."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.backslashreplace_errors(error)


SHOWN = "associative_transformer.shown"
"""What to do with a character that an encoding lacks, for the argument `errors` of streams."""
codecs.register_error(SHOWN, _show)


class UserError(ValueError):
    """An error that the user can fix: the command line prints its message and exits with 2."""


class Batch(NamedTuple):
    """A batch of normalized images, with questions about them if the data set has any."""

    images: Float[Tensor, "B C H W"]
    questions: Float[Tensor, "B Q"] | None
    labels: Int[Tensor, " B"] | Float[Tensor, "B O"]  # class indices or PADDING; probabilities


class ModelOutput(NamedTuple):
    """The output of every model."""

    logits: Float[Tensor, "B O"]
    aux_loss: Float[Tensor, ""]  # added to the cross-entropy; zero if the model has none
