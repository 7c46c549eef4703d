"""What each prior of each head takes, as data for the cards and as a table.

Dims     L layers   S heads of the workspace   M priors
"""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np

from associative_transformer.analysis.selection import DEAD, DUPLICATE, Selected
from associative_transformer.analysis.specialization import VARIABLES, Specialization
from associative_transformer.report.charts import Choice, Grid, Section

TITLE = "Priors and the patches they take"
SHOWN = 8  # winners on a card


def priors_section(found: Selected | None, special: Specialization | None, items: str) -> Section:
    """Say what the priors are like; the cards are made from `list_cards`.

    The `items` of the test split are images or questions.
    """
    if found is None:
        return Section("priors", TITLE, "This model has no priors.")
    num_layers, num_heads, num_priors = found.entropy.shape
    dead, twice = found.is_dead, found.is_duplicate
    note = (
        f"Each layer has {num_priors} priors, and with each of {num_heads} heads a prior takes "
        f"{found.bottleneck:,} of the {found.pool_size:,} tokens of a pool ({found.num_images:,} "
        f"test {items} in all). A card shows the patches that win and what they tell of the "
        "class, their position and their brightness, beside chance. Dead: retrieved less than "
        f"{DEAD:g} of an even part. Duplicate: takes the same tokens as a prior before it, to an "
        f"overlap above {DUPLICATE:g}. "
        f"{int(dead.sum())} of {dead.size} are dead, {int(twice.sum())} are duplicates."
    )
    columns = ["layer and prior", "usage, %", "entropy, bits", "dead", "duplicate"]
    if special is not None:
        columns += [f"says about {name}, bits" for name in VARIABLES]
    rows = [
        _row(found, special, layer, prior)
        for layer in range(num_layers)
        for prior in range(num_priors)
    ]
    choices = [
        Choice("layer", "Layer", [f"layer {i + 1}" for i in range(num_layers)]),
        Choice("head", "Head", [f"head {i + 1}" for i in range(num_heads)]),
    ]
    table = Grid(columns, rows, "All priors; entropy and information are means over the heads")
    return Section("priors", TITLE, note, choices=choices, tables=[table], widget="priors")


def list_cards(found: Selected, special: Specialization | None) -> list[dict[str, Any]]:
    """Give the data of the cards, by layer."""
    return [
        {
            "usage": found.usage[layer],
            "dead": found.is_dead[layer],
            "duplicate": found.is_duplicate[layer],
            "heads": [
                {
                    "entropy": found.entropy[layer, head],
                    "winners": [
                        [[*place, score] for place, score in zip(places, scores, strict=True)]
                        for places, scores in zip(
                            found.winners[layer, head, :, :SHOWN].tolist(),
                            found.winner_scores[layer, head, :, :SHOWN].tolist(),
                            strict=True,
                        )
                    ],
                    "special": None if special is None else _specialize(special, layer, head),
                }
                for head in range(found.entropy.shape[1])
            ],
        }
        for layer in range(found.entropy.shape[0])
    ]


def winning_items(found: Selected) -> Iterator[int]:
    """Name the items with the patches on the cards, the best winners of all priors first."""
    by_rank = np.moveaxis(found.winners[..., :SHOWN, 0], -1, 0)
    yield from dict.fromkeys(cast(list[int], by_rank.ravel().tolist()))


def _specialize(special: Specialization, layer: int, head: int) -> dict[str, Any]:
    by_class = special.by_class[layer, head]  # (M, O)
    best = by_class.argmax(axis=-1)
    return {
        "information": special.information[:, layer, head],
        "baseline": special.baseline[:, layer, head],
        "p": special.p_value[:, layer, head],
        "class": [special.classes[i] for i in best],
        "share": by_class.max(axis=-1),
        "position": special.by_position[layer, head],
    }


def _row(found: Selected, special: Specialization | None, layer: int, prior: int) -> list[str]:
    row = [
        f"layer {layer + 1}, prior {prior + 1}",
        f"{100 * found.usage[layer, prior]:.2f}",
        f"{found.entropy[layer, :, prior].mean():.2f}",
        "dead" if found.is_dead[layer, prior] else "",
        "duplicate" if found.is_duplicate[layer, prior] else "",
    ]
    if special is not None:
        means = special.information[:, layer, :, prior].mean(axis=-1)
        chance = special.baseline[:, layer, :, prior].mean(axis=-1)
        row += [f"{x:.4f} (chance {y:.4f})" for x, y in zip(means, chance, strict=True)]
    return row
