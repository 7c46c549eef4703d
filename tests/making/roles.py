"""Results about what priors do, with random numbers from a fixed seed."""

from typing import Any

import numpy as np

from associative_transformer.analysis.recall import Recall
from associative_transformer.analysis.roles import Roles
from associative_transformer.analysis.silencing import Silencing

CLASSES = ["$x_1$", "<script> & co"]


def plant_roles(layers: int, heads: int, priors: int) -> Roles:
    """Return roles with random numbers, with as many heads in the read as in the write."""
    g = np.random.default_rng(1)
    shape = (layers, heads, priors)
    information = g.uniform(0.1, 0.2, (3, layers, heads))
    focus = g.uniform(0.1, 0.2, (3, *shape))
    acts: dict[str, Any] = {}
    for act in ("write", "read"):
        acts[f"{act}_information"], acts[f"{act}_focus"] = information, focus
        acts[f"{act}_information_baseline"] = np.full_like(information, 0.05)
        acts[f"{act}_focus_baseline"] = np.full_like(focus, 0.05)
        acts[f"{act}_p_value"] = np.full_like(information, 0.2)
        acts[f"{act}_by_position"] = g.dirichlet(np.ones(4), shape)
        acts[f"{act}_by_content"] = g.dirichlet(np.ones(5), shape)
    return Roles(
        num_images=10,
        num_permutations=5,
        num_clusters=5,
        classes=CLASSES,
        read_by_class=g.dirichlet([1, 1], shape),
        exemplars=np.stack([np.arange(5), np.arange(5) % 4], axis=-1),
        **acts,
    )


def plant_silencing(layers: int, priors: int) -> Silencing:
    g = np.random.default_rng(2)
    return Silencing(
        num_images=8,
        classes=CLASSES,
        accuracy=0.5,
        silenced_accuracy=g.uniform(size=(layers, priors)),
        changed=g.uniform(size=(layers, priors)),
        shift=g.uniform(size=(layers, priors)),
        logit_change=g.normal(size=(layers, priors, 2)),
    )


def plant_recall(layers: int) -> Recall:
    g = np.random.default_rng(3)
    return Recall(
        betas=np.array([0.05, 4.0]),
        trained_beta=1.0,
        width=32,
        num_networks=20,
        loads=np.array([1, 4]),
        noise=np.array([0.0, 0.5, 1.0]),
        error=g.uniform(size=(2, layers, 2, 3)),
        recalled=g.uniform(size=(2, layers, 2, 3)),
        guaranteed=g.uniform(size=(2, layers, 2)),
        capacity=np.full((2, layers), 12.5),
    )
