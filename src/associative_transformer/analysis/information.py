"""Information between priors and the patches linked to them, from counts, with permutations.

A link connects a prior of a head with a patch: the prior takes the patch, or the patch reads most
from the prior. Its variables are the class of the image, and the position and the content of
the patch.

Dims     B images of a batch   N patches of an image   R = 1 + number of permutations   L layers
         A heads   M priors   P = A * M pairs of a head and a prior   W links   X values
         V variables
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from associative_transformer.analysis.networks import read_weights, select
from associative_transformer.analysis.trace import LayerTrace
from associative_transformer.workspace import GlobalWorkspace

VARIABLES = ("class", "position", "content")
ROUNDING = 1e-9  # bits by which two sums of the same information may differ


class Links(NamedTuple):
    """Pairs of a prior and a patch."""

    prior: Int[Tensor, " W"]  # index of the pair of head and prior
    patch: Int[Tensor, " W"]  # index among the patches of the batch


class Tally:
    """Counts of links, first for the true variables, then for each permutation."""

    def __init__(
        self,
        shape: tuple[int, int, int],  # L, A, M
        sizes: Sequence[int],  # number of values of each variable
        num_permutations: int,
        device: torch.device,
    ) -> None:
        self.shape, self.num_images = shape, 0
        rows = (1 + num_permutations, shape[0], shape[1] * shape[2])
        self.taken = [  # one table per variable; its size does not depend on the number of images
            torch.zeros(*rows, size, dtype=torch.int32, device=device) for size in sizes
        ]
        self.total = [torch.zeros(size, dtype=torch.int64, device=device) for size in sizes]

    def add(
        self,
        links: Sequence[Links],  # of each layer
        labels: Int[Tensor, " B"],
        content: Int[Tensor, "B N"],
        generator: torch.Generator,
    ) -> None:
        self.num_images += len(labels)
        variables = _variables(labels, content)
        for total, values in zip(self.total, variables, strict=True):
            total += values.flatten().bincount(minlength=len(total))
        for permutation in range(len(self.taken[0])):
            if permutation > 0:
                variables = _shuffle(labels, content, generator)
            for taken, values in zip(self.taken, variables, strict=True):
                values = values.flatten()
                for layer, (prior, patch) in enumerate(links):
                    rows, size = taken.shape[-2:]
                    pairs = prior * size + values[patch]
                    counts = pairs.bincount(minlength=rows * size).view(rows, size)
                    taken[permutation, layer] += counts

    def measure(
        self, statistic: Callable[[Tensor, Tensor], Tensor]
    ) -> Float[np.ndarray, "R V L A *M"]:
        """Compute a statistic of each head from its links (M, X), and from all patches (X)."""
        results = [
            statistic(counts.view(*self.shape[1:], -1), total)
            for taken, total in zip(self.taken, self.total, strict=True)
            for permutation in taken
            for counts in permutation
        ]
        stacked = torch.stack(results)
        by_variable = stacked.view(len(self.taken), -1, self.shape[0], *stacked.shape[1:])
        return by_variable.transpose(0, 1).cpu().numpy()

    def shares(self) -> Iterator[Float[np.ndarray, "L A M X"]]:
        """Yield the share of each value among the patches of a prior, for each variable."""
        for taken in self.taken:
            counts = taken[0].view(*self.shape, -1).double()
            yield (counts / counts.sum(dim=-1, keepdim=True).clamp(min=1)).cpu().numpy()


def mutual_information(
    taken: Int[Tensor, "*P X"], total: Int[Tensor, " X"]
) -> Float[Tensor, "*P"]:
    """Return the information between a variable and being linked to a prior, in bits.

    `total` counts all patches by the value of the variable, `taken` those of the prior.
    """
    p_x = total / total.sum().double()  # p(x)
    p_taken = taken / total.sum().double()  # p(taken, x)
    joint = torch.stack([p_taken, p_x - p_taken])  # (2, *P, X): taken, not taken
    independent = joint.sum(dim=-1, keepdim=True) * p_x
    nats = torch.xlogy(joint, joint) - torch.xlogy(joint, independent)
    return (nats.sum(dim=(0, -1)) / math.log(2)).clamp(min=0)


def choice_information(
    taken: Int[Tensor, "A M X"], total: Int[Tensor, " X"]
) -> Float[Tensor, " A"]:
    """Return the information between a variable and which prior a patch is linked to, in bits.

    It is computed over the links, and is 0 if all priors have the same distribution of values.
    """
    joint = taken / taken.sum(dim=(-2, -1), keepdim=True).clamp(min=1).double()  # p(m, x)
    independent = joint.sum(dim=-1, keepdim=True) * joint.sum(dim=-2, keepdim=True)
    nats = torch.xlogy(joint, joint) - torch.xlogy(joint, independent)
    return (nats.sum(dim=(-2, -1)) / math.log(2)).clamp(min=0)


def focus(taken: Int[Tensor, "A M X"], total: Int[Tensor, " X"]) -> Float[Tensor, "A M"]:
    """Return how much the patches of each prior differ from all patches, in bits.

    sum over x of p(x | prior) log2(p(x | prior) / p(x)); 0 if the prior has no patches. A prior
    that always takes one of N equally frequent values has log2 N.
    """
    p_x = total / total.sum().double()
    p = taken / taken.sum(dim=-1, keepdim=True).clamp(min=1).double()  # p(x | prior)
    nats = torch.xlogy(p, p) - torch.xlogy(p, p_x)
    return (nats.sum(dim=-1) / math.log(2)).clamp(min=0)


class Compared(NamedTuple):
    """A statistic, and the same after permutations."""

    true: Float[np.ndarray, "V L *A"]
    baseline: Float[np.ndarray, "V L *A"]  # mean over the permutations
    p_value: Float[np.ndarray, "V L *A"]  # (1 + permutations at or above it) / (1 + permutations)


def compare(statistic: Float[np.ndarray, "R V L *A"]) -> Compared:
    """Compare the first value of a statistic with those of the permutations."""
    true, permuted = statistic[0], statistic[1:]
    num_as_much = (permuted >= true - ROUNDING).sum(axis=0)
    return Compared(true, permuted.mean(axis=0), (1 + num_as_much) / (1 + len(permuted)))


def links_of_writing(layer: LayerTrace, num_patches: int) -> Links:
    """Link each prior of each head to the patches that it takes from its pool."""
    u, workspace = cast(Tensor, layer.workspace_input), cast(GlobalWorkspace, layer.workspace)
    num_images, num_tokens = u.shape[:2]
    chosen = select(workspace, u).chosen  # (Q, S, M, K)
    starts = torch.arange(len(chosen), device=u.device) * (num_images * num_tokens // len(chosen))
    chosen = rearrange(chosen + starts[:, None, None, None], "q s m k -> (s m) (q k)")
    image, patch = chosen // num_tokens, chosen % num_tokens - (num_tokens - num_patches)
    is_patch = patch >= 0  # the class token and the question come first
    return Links(is_patch.nonzero()[:, 0], (image * num_patches + patch)[is_patch])


def links_of_reading(layer: LayerTrace, num_patches: int) -> Links:
    """Link each patch, in each head of the read, to the prior from which it reads most."""
    u, workspace = cast(Tensor, layer.workspace_input), cast(GlobalWorkspace, layer.workspace)
    weights = read_weights(workspace, u)[:, :, -num_patches:]  # (B, H, N, M)
    num_heads, num_priors = weights.shape[1], weights.shape[3]
    heads = torch.arange(num_heads, device=u.device)[:, None] * num_priors
    prior = rearrange(weights.argmax(dim=-1), "b h n -> h (b n)") + heads
    patch = torch.arange(prior.shape[1], device=u.device).expand_as(prior)
    return Links(prior.flatten(), patch.flatten())


def _variables(labels: Int[Tensor, " B"], content: Int[Tensor, "B N"]) -> list[Tensor]:
    position = torch.arange(content.shape[1], device=content.device)
    return [labels[:, None].expand_as(content), position.expand_as(content), content]


def _shuffle(
    labels: Int[Tensor, " B"], content: Int[Tensor, "B N"], generator: torch.Generator
) -> list[Tensor]:
    """Shuffle each variable within the batch; drawn on the CPU, so that all devices agree."""
    device = content.device
    images = torch.randperm(len(labels), generator=generator).to(device)
    positions = torch.rand(content.shape, generator=generator).argsort(dim=1).to(device)
    tokens = torch.randperm(content.numel(), generator=generator).to(device)
    shuffled = content.flatten()[tokens].view_as(content)
    return [labels[images, None].expand_as(content), positions, shuffled]
