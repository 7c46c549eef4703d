"""The image view: who takes the patches of test images, and how their tokens are retrieved.

Dims     I images   L layers   S heads of the workspace   M priors   P patches
         N tokens per image, patches last   X states, before and after each retrieval step
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from associative_transformer.analysis.selection import Selected
from associative_transformer.analysis.trace import trace
from associative_transformer.data import Split
from associative_transformer.functional import hopfield_energy, hopfield_retrieve
from associative_transformer.models import AiT
from associative_transformer.report.charts import Choice, Section
from associative_transformer.workspace import GlobalWorkspace

NUM_STEPS = 4  # of the retrieval
MAX_TAKERS = 3  # of a patch that are named
TITLE = "Image view"


class Followed(NamedTuple):
    """Answers to some items, and the retrieval of their tokens."""

    predicted: list[int]
    confidence: list[float]
    energy: Float[np.ndarray, "L I N X"] | None  # None where tokens don't read by Hopfield
    nearest: Int[np.ndarray, "L I N"] | None  # prior that weighs most in what a token reads


@torch.no_grad()
def follow(model: AiT, split: Split) -> Followed:
    """Pass the items of a split through a model and retrieve their tokens again and again."""
    (batch,) = split.eval_batches(len(split))
    traced = trace(model, batch)
    confidence, predicted = traced.logits.float().softmax(dim=-1).max(dim=-1)
    energies, nearest = [], []
    for layer in traced.layers:
        workspace, state = cast(GlobalWorkspace, layer.workspace), cast(Tensor, layer.handed)
        if workspace.reader is not None:
            return Followed(predicted.tolist(), confidence.tolist(), None, None)
        beta, attractors = workspace.config.beta, workspace.to_attractor(workspace.priors)
        nearest.append((state @ attractors.mT).argmax(dim=-1))
        states = [state]
        for _ in range(NUM_STEPS):
            states.append(hopfield_retrieve(states[-1], attractors, beta))
        energy = [hopfield_energy(state, attractors, beta) for state in states]
        energies.append(torch.stack(energy, dim=-1))
    return Followed(
        predicted.tolist(),
        confidence.tolist(),
        torch.stack(energies).cpu().numpy(),
        torch.stack(nearest).cpu().numpy(),
    )


def images_section(found: Selected | None, num_shown: int, items: str) -> Section:
    """Introduce the image view, which is made from `list_images`.

    The `items` of the test split are images or questions.
    """
    if found is None:
        return Section("images", TITLE, "This model has no priors that take patches.")
    num_layers, num_heads = found.entropy.shape[:2]
    note = (
        f"The first {num_shown} test {items}: choose one to see which of its patches the priors "
        "of a head take, and the energy of its tokens along the retrieval. A patch bears the "
        "number of the prior that ranks it highest, and a plus where others take it too."
    )
    if items == "questions":
        note += " The first token is the question."
    choices = [
        Choice("layer", "Layer", [f"layer {i + 1}" for i in range(num_layers)]),
        Choice("head", "Head", [f"head {i + 1}" for i in range(num_heads)]),
    ]
    return Section("images", TITLE, note, choices=choices, widget="images")


def list_images(
    found: Selected, followed: Followed, classes: Sequence[Sequence[str]]
) -> list[dict[str, Any]]:
    """Give the data of the image view; `classes` are the possible answers to each item."""
    energy, nearest = followed.energy, followed.nearest
    return [
        {
            "predicted": classes[image][followed.predicted[image]],
            "confidence": followed.confidence[image],
            "taken": [
                [list_takers(head[:, image]) for head in layer]  # (M, P) each
                for layer in found.taken
            ],
            "energy": None if energy is None else energy[:, image],
            "nearest": None if nearest is None else nearest[:, image],
        }
        for image in range(len(followed.predicted))
    ]


def list_takers(taken: Int[np.ndarray, "M P"]) -> list[list[int]]:
    """List the patches that are taken, how often, and by whom, the one who ranks it best first."""
    found = []
    for patch in np.flatnonzero(taken.any(axis=0)).tolist():
        ranks = taken[:, patch]
        priors = np.flatnonzero(ranks)
        best = priors[ranks[priors].argsort(kind="stable")][:MAX_TAKERS]
        found.append([patch, len(priors), *best.tolist()])
    return found
