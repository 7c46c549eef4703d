"""Roles: whether priors specialize in the patches that they take and that read from them.

A prior of a head of the write is linked to the patches that it takes, and a prior of a head of the
read to the patches that read most from it. In the write, each prior takes the same number of
tokens from every image. Without a class token and questions, these are all patches, and only the
links of the read can depend on the class.

Dims     V variables   L layers   S heads of the write   H heads of the read   A heads of either
         M priors   N patches   K clusters   O classes   B images of a batch
         P pixels of a patch, times channels
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from associative_transformer.analysis.clusters import assign, find_clusters
from associative_transformer.analysis.information import (
    VARIABLES,
    Compared,
    Tally,
    choice_information,
    compare,
    focus,
    links_of_reading,
    links_of_writing,
)
from associative_transformer.analysis.trace import trace_all
from associative_transformer.arguments import check_count
from associative_transformer.interface import Batch, UserError
from associative_transformer.models.ait import AiT
from associative_transformer.models.layers import patchify
from associative_transformer.models.pretrained import PretrainedModel

NUM_CLUSTERS = 16
MAX_POINTS = 20_000  # patches of the first batch from which the clusters are found


@dataclass(frozen=True)
class Roles:
    """Information between priors and the class, the position and the content of patches, in bits.

    `information`: between a variable and which of the M priors of a head a patch is linked to; at
    most log2 M. `focus`: how much the patches of one prior differ from all patches, the sum over x
    of p(x | prior) log2(p(x | prior) / p(x)); log2 N for a prior whose patches all have the same
    one of N positions. Both are biased upward. The baseline estimates this bias: it is the mean
    after permutations, which shuffle the classes among the images of a batch, the positions within
    each image, and the contents among all patches of a batch.

    Content is one of K clusters of patches, found by k-means among the normalized pixels of the
    first batch, and the same for all batches.
    """

    num_images: int  # with questions: number of questions
    num_permutations: int
    num_clusters: int
    classes: list[str]  # with questions: answers
    write_information: Float[np.ndarray, "V L S"]
    write_information_baseline: Float[np.ndarray, "V L S"]
    write_p_value: Float[np.ndarray, "V L S"]  # (1 + permutations at or above it) / (1 + number)
    write_focus: Float[np.ndarray, "V L S M"]
    write_focus_baseline: Float[np.ndarray, "V L S M"]
    read_information: Float[np.ndarray, "V L H"]
    read_information_baseline: Float[np.ndarray, "V L H"]
    read_p_value: Float[np.ndarray, "V L H"]
    read_focus: Float[np.ndarray, "V L H M"]
    read_focus_baseline: Float[np.ndarray, "V L H M"]
    write_by_position: Float[np.ndarray, "L S M N"]  # share of the patches, sums to 1; 0 if none
    write_by_content: Float[np.ndarray, "L S M K"]
    read_by_position: Float[np.ndarray, "L H M N"]
    read_by_content: Float[np.ndarray, "L H M K"]
    read_by_class: Float[np.ndarray, "L H M O"]
    exemplars: Int[np.ndarray, "K 2"]  # (image, patch) of the first batch nearest to each center

    @property
    def write(self) -> "Act":
        """What the priors take."""
        return Act(
            self.write_information,
            self.write_information_baseline,
            self.write_p_value,
            self.write_focus - self.write_focus_baseline,
            self.write_by_position,
            self.write_by_content,
        )

    @property
    def read(self) -> "Act":
        """Which patches read most from the priors."""
        return Act(
            self.read_information,
            self.read_information_baseline,
            self.read_p_value,
            self.read_focus - self.read_focus_baseline,
            self.read_by_position,
            self.read_by_content,
        )

    def describe(self) -> Iterator[str]:
        """Yield the main numbers as lines of text."""
        yield (
            "bits between patches and the prior that takes them, or from which they read most "
            "(permuted), mean over the heads:"
        )
        for layer in range(self.write_information.shape[1]):
            parts = []
            for verb, act in (("taken", self.write), ("read", self.read)):
                bits = act.information[:, layer].mean(axis=-1)
                chance = act.baseline[:, layer].mean(axis=-1)
                parts += [
                    f"{verb} by {name} {bits[i]:.3f} ({chance[i]:.3f})"
                    for i, name in enumerate(VARIABLES)
                    if (verb, name) != ("taken", "class")  # which is always 0
                ]
            yield f"  layer {layer + 1}: {', '.join(parts)}"


class Act(NamedTuple):
    """The fields of `Roles` for the write or for the read."""

    information: Float[np.ndarray, "V L A"]
    baseline: Float[np.ndarray, "V L A"]
    p_value: Float[np.ndarray, "V L A"]
    focus: Float[np.ndarray, "V L A M"]  # above its baseline
    by_position: Float[np.ndarray, "L A M N"]
    by_content: Float[np.ndarray, "L A M K"]


@torch.no_grad()
def measure_roles(
    model: PretrainedModel,
    batches: Iterable[Batch],
    classes: Sequence[str],
    num_permutations: int = 20,
    seed: int = 0,
    num_clusters: int = NUM_CLUSTERS,
) -> Roles:
    """Measure whether each prior of an AiT takes, and is read by, certain kinds of patches.

    Only patches are counted, not the class token or questions. Raises UserError if the model is
    not an AiT with scope "image", and ValueError if there are no permutations, clusters or images.
    """
    if not isinstance(model, AiT) or model.config.workspace.scope != "image":
        raise UserError(
            f"this {type(model).__name__} has no memory for each image: use a run of AiT with "
            "--model.workspace.scope image"
        )
    check_count("num_permutations", num_permutations)
    check_count("num_clusters", num_clusters)
    c, num_patches = model.config, model.embed.num_patches
    sizes = (len(classes), num_patches, num_clusters)
    num_read_heads = c.embed_dim // c.workspace.image.read_head_dim
    device = next(model.parameters()).device
    write, read = (
        Tally((c.depth, heads, c.workspace.num_priors), sizes, num_permutations, device)
        for heads in (c.workspace.num_heads, num_read_heads)
    )
    kinds = _Kinds(c.patch_size, num_clusters, seed)
    generators = [torch.Generator().manual_seed(seed) for _ in range(2)]
    for traced in trace_all(model, batches):
        content = kinds.assign(traced.images)
        for tally, link, generator in zip(
            (write, read), (links_of_writing, links_of_reading), generators, strict=True
        ):
            links = [link(layer, num_patches) for layer in traced.layers]
            tally.add(links, traced.labels, content, generator)
    if write.num_images == 0:
        raise ValueError("there are no images to measure roles on")
    return _collect(write, read, kinds, num_permutations, classes)


class _Kinds:
    """Clusters of patches by their pixels."""

    def __init__(self, patch_size: int, num_clusters: int, seed: int) -> None:
        self.patch_size, self.num_clusters = patch_size, num_clusters
        self.generator = torch.Generator().manual_seed(seed)
        self.centers: Float[Tensor, "K P"] | None = None  # set by the first batch
        self.exemplars = torch.empty(0, 2, dtype=torch.int64)

    def assign(self, images: Float[Tensor, "B C H W"]) -> Int[Tensor, "B N"]:
        """Return the cluster of each patch."""
        patches = patchify(images, self.patch_size).float()  # (B, N, P)
        points = patches.flatten(0, 1)
        if self.centers is None:
            order = torch.randperm(len(points), generator=self.generator)[:MAX_POINTS]
            sample = points[order.to(points.device)]
            self.centers = find_clusters(sample, self.num_clusters, self.generator)
            nearest = torch.cdist(self.centers, points).argmin(dim=1)
            self.exemplars = torch.stack([nearest // patches.shape[1], nearest % patches.shape[1]])
        return assign(points, self.centers).view(patches.shape[:2])


def _collect(
    write: Tally,
    read: Tally,
    kinds: _Kinds,
    num_permutations: int,
    classes: Sequence[str],
) -> Roles:
    informed: list[Compared] = []
    for tally in (write, read):
        informed += [compare(tally.measure(each)) for each in (choice_information, focus)]
    written, write_focus, been_read, read_focus = informed
    (_, write_by_position, write_by_content), read_shares = write.shares(), list(read.shares())
    return Roles(
        num_images=write.num_images,
        num_permutations=num_permutations,
        num_clusters=kinds.num_clusters,
        classes=list(classes),
        write_information=written.true,
        write_information_baseline=written.baseline,
        write_p_value=written.p_value,
        write_focus=write_focus.true,
        write_focus_baseline=write_focus.baseline,
        read_information=been_read.true,
        read_information_baseline=been_read.baseline,
        read_p_value=been_read.p_value,
        read_focus=read_focus.true,
        read_focus_baseline=read_focus.baseline,
        write_by_position=write_by_position,
        write_by_content=write_by_content,
        read_by_position=read_shares[1],
        read_by_content=read_shares[2],
        read_by_class=read_shares[0],
        exemplars=kinds.exemplars.T.cpu().numpy(),
    )
