"""Start a model from the weights of another one, whose sizes may differ.

Weights are matched by name. Learned positions are resized to another grid, and a patch embedding
is adapted to another number of channels; everything else that differs in shape is initialized
anew.

Dims     E token width   P values of a patch, pixels times channels   C channels   N tokens
         K channels of the model to start
"""

import math
from typing import NamedTuple

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from associative_transformer.interface import UserError, format_count
from associative_transformer.models.layers import TokenEmbed
from associative_transformer.models.stem import ConvStem
from associative_transformer.workspace import GlobalWorkspace

POSITIONS = "embed.positions"
KERNEL = "embed.patches.0.weight"  # of a convolutional stem
PATCHES = tuple(f"embed.patches.{x}" for x in ("0.weight", "0.bias", "1.weight", "1.bias"))


class Initialization(NamedTuple):
    """What became of each weight of a model that starts from another one."""

    loaded: tuple[str, ...]  # equal to those of the source
    resized: tuple[str, ...]  # positions, to another grid of patches
    adapted: tuple[str, ...]  # to another number of channels
    drawn: tuple[str, ...]  # not in the source, or of another shape
    unused: tuple[str, ...]  # only in the source

    def describe(self) -> str:
        """Return a line for each group of weights that has any."""
        total = len(self.loaded + self.resized + self.adapted + self.drawn)
        lines = [f"loaded     {len(self.loaded)} of {format_count(total, 'tensor')}"]
        groups = {"resized": self.resized, "adapted": self.adapted, "new": self.drawn}
        groups["not used"] = self.unused
        lines += [f"{title:10} {', '.join(names)}" for title, names in groups.items() if names]
        return "\n".join(lines)


@torch.no_grad()
def initialize(model: nn.Module, source: nn.Module) -> Initialization:
    """Copy the weights of `source` into `model`, as far as they fit.

    Raises UserError if nothing fits.
    """
    ours, theirs = model.state_dict(), source.state_dict()
    if not _have_same_stem(model, source):  # weights of the same name mean different things
        theirs = {name: x for name, x in theirs.items() if not name.startswith("embed.patches.")}
    changes = _change_embedding(model, source)
    groups: dict[str, list[str]] = {name: [] for name in Initialization._fields}
    for name, value in ours.items():
        given = changes.get(name, theirs.get(name))
        if given is None or given.shape != value.shape:
            groups["drawn"].append(name)
            continue
        value.copy_(given)
        change = "resized" if name == POSITIONS else "adapted"
        groups[change if name in changes else "loaded"].append(name)
    groups["unused"] = [name for name in theirs if name not in ours]
    if not groups["loaded"]:
        raise UserError(
            f"a {type(source).__name__} shares no weight with a {type(model).__name__}: choose "
            "another source"
        )
    return Initialization(*(tuple(groups[name]) for name in Initialization._fields))


def copy_freezing(source: nn.Module, model: nn.Module) -> None:
    """Freeze the memories of a model that are frozen in another one, matched by name."""
    names = {name: m for name, m in model.named_modules() if isinstance(m, GlobalWorkspace)}
    for name, workspace in source.named_modules():
        if isinstance(workspace, GlobalWorkspace) and name in names:
            names[name].is_frozen = workspace.is_frozen


def resize_positions(source: TokenEmbed, target: TokenEmbed) -> Float[Tensor, "N E"] | None:
    """Return the positions of `source` for the tokens of `target`.

    Those of the patches are interpolated (bicubic) over the grid; those of a class token and of a
    question are kept. A token that only `target` has keeps its own.
    """
    if source.positions is None or target.positions is None:
        return None
    positions = target.positions.clone()
    for name, row in _extra_rows(source).items():
        if name in (rows := _extra_rows(target)):
            positions[rows[name]] = source.positions[row]
    first = source.num_tokens - source.num_patches
    grid = rearrange(source.positions[first:], "(h w) e -> 1 e h w", h=source.grid[0])
    if source.grid != target.grid:
        grid = interpolate(grid.float(), target.grid, mode="bicubic", antialias=True)
    patches = rearrange(grid, "1 e h w -> (h w) e")
    positions[target.num_tokens - target.num_patches :] = patches.to(positions.dtype)
    return positions


class PatchWeights(NamedTuple):
    """The norm of a patch and the linear map after it."""

    scale: Float[Tensor, " P"]
    shift: Float[Tensor, " P"]
    weight: Float[Tensor, "E P"]
    bias: Float[Tensor, " E"]


def adapt_channels(patches: PatchWeights, old: int, new: int) -> PatchWeights:
    """Return the weights of a patch embedding for another number of channels.

    An image whose channels are copies of each other gives the same tokens as before. For one
    channel, weights are summed over the channels, which includes the scale and shift of the norm.
    For more, they are repeated, and those of the linear map multiplied by `old / new`, as in timm.
    """
    scale, shift, weight, bias = patches
    if new == 1:
        summed = reduce(weight * scale, "e (i c) -> e i", "sum", c=old)
        ones = torch.ones_like(summed[0])
        return PatchWeights(ones, torch.zeros_like(ones), summed, bias + weight @ shift)

    def widen(x: Float[Tensor, "*E P"]) -> Float[Tensor, "*E Q"]:
        parts = rearrange(x, "... (i c) -> ... i c", c=old)  # the channel varies fastest
        repeated = repeat(parts, "... i c -> ... i (r c)", r=math.ceil(new / old))
        return rearrange(repeated[..., :new], "... i c -> ... (i c)")

    return PatchWeights(widen(scale), widen(shift), widen(weight) * old / new, bias)


def adapt_kernel(kernel: Float[Tensor, "E C h w"], num_channels: int) -> Float[Tensor, "E K h w"]:
    """Return the kernel of a first convolution for K channels instead of C.

    As in timm: for one channel, the kernel is summed over the channels; for more, it is repeated
    and multiplied by C / K.
    """
    old = kernel.shape[1]
    if num_channels == 1:
        return kernel.sum(dim=1, keepdim=True)
    repeated = repeat(kernel, "e c h w -> e (r c) h w", r=math.ceil(num_channels / old))
    return repeated[:, :num_channels] * old / num_channels


def _have_same_stem(model: nn.Module, source: nn.Module) -> bool:
    """Return whether both models make tokens of an image in the same way."""
    mine, other = (
        type(getattr(getattr(x, "embed", None), "patches", None)) for x in (model, source)
    )
    return mine is other


def _change_embedding(model: nn.Module, source: nn.Module) -> dict[str, Tensor]:
    """Return the weights of the source's embedding that differ in shape, for the model's sizes."""
    ours, theirs = (getattr(each, "embed", None) for each in (model, source))
    if not (isinstance(ours, TokenEmbed) and isinstance(theirs, TokenEmbed)):
        return {}
    changes: dict[str, Tensor] = {}
    positions = resize_positions(theirs, ours)
    is_same = (ours.grid, _extra_rows(ours)) == (theirs.grid, _extra_rows(theirs))
    if positions is not None and not is_same:
        changes[POSITIONS] = positions
    old, new = theirs.num_channels, ours.num_channels
    if old == new or not _have_same_stem(model, source):
        return changes
    state = theirs.state_dict()
    if isinstance(theirs.patches, ConvStem):
        changes[KERNEL] = adapt_kernel(state[KERNEL.removeprefix("embed.")], new)
    elif theirs.patch_size == ours.patch_size:
        patches = PatchWeights(*(state[name.removeprefix("embed.")] for name in PATCHES))
        changes |= dict(zip(PATCHES, adapt_channels(patches, old, new), strict=True))
    return changes


def _extra_rows(embed: TokenEmbed) -> dict[str, int]:
    """Return the rows of the tokens in front of the patches."""
    tokens = {"class": embed.class_token, "question": embed.question}
    names = [name for name, token in tokens.items() if token is not None]
    return {name: row for row, name in enumerate(names)}
