"""The image view: which priors take the patches of test images, and how their tokens are read.

Dims     I images   L layers   S heads of the workspace   M priors   P patches
         N tokens per image, patches last   X states, before and after each retrieval step
         Z heads, and all of them together
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from associative_transformer.analysis.networks import (
    energy,
    networks_of,
    read_weights,
    retrieve,
)
from associative_transformer.analysis.selection import SelectionStatistics
from associative_transformer.analysis.trace import trace
from associative_transformer.data import Split
from associative_transformer.models.ait import AiT
from associative_transformer.report.charts import Choice, Section
from associative_transformer.workspace import GlobalWorkspace

MAX_IMAGES = 48  # test images, or questions, in the view
NUM_STEPS = 4  # of the retrieval
MAX_NAMED = 3  # priors listed for a patch; the others are only counted
TITLE = "Image view"


class RetrievalTrace(NamedTuple):
    """The answers to some items, and how their tokens are retrieved."""

    predicted: list[int]
    confidence: list[float]
    energy: Float[np.ndarray, "L I N X"] | None  # None: not read by Hopfield
    nearest: Int[np.ndarray, "L I N"] | None  # prior with the largest weight, a mean over heads


def count_shown(selection: SelectionStatistics) -> int:
    """Return the number of items in the image view."""
    return min(selection.taken.shape[3], MAX_IMAGES)


@torch.no_grad()
def trace_retrieval(model: AiT, split: Split) -> RetrievalTrace:
    """Pass the items of a split through a model and retrieve their tokens `NUM_STEPS` times.

    With scope "image", the energy of a token is the sum over the heads of the read.
    """
    (batch,) = split.eval_batches(len(split))
    traced = trace(model, batch)
    confidence, predicted = traced.logits.float().softmax(dim=-1).max(dim=-1)
    energies, nearest = [], []
    for layer in traced.layers:
        workspace, u = cast(GlobalWorkspace, layer.workspace), cast(Tensor, layer.workspace_input)
        if model.config.read != "hopfield":
            return RetrievalTrace(predicted.tolist(), confidence.tolist(), None, None)
        nearest.append(read_weights(workspace, u).mean(dim=1).argmax(dim=-1))  # (I, N)
        state, patterns, scale = networks_of(workspace, u)
        beta = scale * workspace.config.beta
        steps = []
        for _ in range(NUM_STEPS + 1):
            steps.append(energy(state, patterns, beta))
            state = retrieve(state, patterns, beta)
        along = torch.stack(steps, dim=-1)  # (I * N, X), or (I, H, N, X)
        energies.append(along.sum(dim=1) if along.ndim == 4 else along.view(*u.shape[:2], -1))
    return RetrievalTrace(
        predicted.tolist(),
        confidence.tolist(),
        torch.stack(energies).cpu().numpy(),
        torch.stack(nearest).cpu().numpy(),
    )


def images_section(
    selection: SelectionStatistics | None, items: str, has_energy: bool = True
) -> Section:
    """Return the section with the image view, which the script draws from `list_images`.

    `items` is "images" or "questions". `has_energy`: tokens are read by Hopfield retrieval, whose
    energy the view shows.
    """
    if selection is None:
        return Section("images", TITLE, "This model has no priors that take patches.")
    num_layers, num_heads = selection.entropy.shape[:2]
    note = (
        f"These are the first test {items} ({count_shown(selection)}). Select one to see which of "
        "its patches the priors of a head take"
        + ", and how the energy of its tokens falls during retrieval"
        * has_energy
        + ". The number on a patch identifies the prior that ranks it highest; a plus means that "
        "other priors take it too. The small pictures show what each prior takes"
        + (", the more clearly the more heads take a patch" if num_heads > 1 else "")
        + "."
    )
    if items == "questions":
        note += " The token of the question comes before those of the patches."
    heads = [f"head {i + 1}" for i in range(num_heads)] + ["all heads"] * (num_heads > 1)
    choices = [
        Choice("layer", "Layer", [f"layer {i + 1}" for i in range(num_layers)]),
        Choice("head", "Head", heads, len(heads) - 1),
    ]
    return Section("images", TITLE, note, choices=choices, widget="images")


def list_images(
    selection: SelectionStatistics, traced: RetrievalTrace, classes: Sequence[Sequence[str]]
) -> list[dict[str, Any]]:
    """Return the data of the image view; `classes` contains the possible answers to each item."""
    energy, nearest = traced.energy, traced.nearest
    return [
        {
            "predicted": classes[i][traced.predicted[i]],
            "confidence": traced.confidence[i],
            "taken": [
                [list_takers(taken) for taken in with_all_heads(layer[:, :, i])]
                for layer in selection.taken
            ],
            "patches": [
                [[to_digits(taken > 0) for taken in head[:, i]] for head in layer]
                for layer in selection.taken
            ],
            "energy": None if energy is None else energy[:, i],
            "nearest": None if nearest is None else nearest[:, i],
        }
        for i in range(len(traced.predicted))
    ]


def with_all_heads(taken: Int[np.ndarray, "S M P"]) -> Int[np.ndarray, "Z M P"]:
    """Append the earliest position in any head, if there are several."""
    if len(taken) == 1:
        return taken
    never = np.iinfo(taken.dtype).max
    earliest = np.where(taken > 0, taken, never).min(axis=0, keepdims=True)
    return np.concatenate([taken, np.where(earliest == never, 0, earliest)])


def to_digits(is_taken: Bool[np.ndarray, " P"]) -> str:
    """Return a hexadecimal number whose lowest bit is the first patch; empty if it is 0."""
    bits = "".join("1" if each else "0" for each in is_taken[::-1].tolist())
    return f"{int(bits, 2):x}" if "1" in bits else ""


def list_takers(taken: Int[np.ndarray, "M P"]) -> list[list[int]]:
    """Return `[patch, number of priors that take it, *best priors]` for each patch that is taken.

    `taken` contains the position of each patch in the order in which each prior takes patches,
    counted from 1; 0 if it does not take the patch. The best priors take the patch earliest.
    """
    takers = []
    for patch in np.flatnonzero(taken.any(axis=0)).tolist():
        positions = taken[:, patch]
        priors = np.flatnonzero(positions)
        best = priors[positions[priors].argsort(kind="stable")][:MAX_NAMED]
        takers.append([patch, len(priors), *best.tolist()])
    return takers
