"""The section on what each prior of each head takes: data for its card, and a table.

Dims     L layers   S heads of the workspace   M priors   O classes
"""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
from jaxtyping import Bool

from associative_transformer.analysis.information import VARIABLES
from associative_transformer.analysis.selection import DUPLICATE, SelectionStatistics
from associative_transformer.analysis.specialization import Specialization
from associative_transformer.health import DEAD
from associative_transformer.interface import format_count
from associative_transformer.report.charts import Choice, Grid, Section

TITLE = "Priors and the patches they take"
MAX_WINNERS = 8  # on a card
COLLAPSED = 0.9  # share of the tokens of a head that one prior wins if the head has collapsed


def priors_section(
    selection: SelectionStatistics | None, specialization: Specialization | None, items: str
) -> Section:
    """Return the section on the priors; the script draws the cards from `list_cards`.

    `items` is "images" or "questions".
    """
    if selection is None:
        return Section("priors", TITLE, "This model has no priors.")
    num_layers, num_heads, num_priors = selection.entropy.shape
    num_dead, num_duplicates = int(selection.is_dead.sum()), int(selection.is_duplicate.sum())
    count = format_count(selection.num_images, f"test {items.removesuffix('s')}")
    tokens, per_image = format_count(selection.pool_size, "token"), selection.scope == "image"
    pool = f"{tokens} of each image" if per_image else f"{tokens} in a pool"
    note = (
        f"Each layer has {format_count(num_priors, 'prior')}. In each of "
        f"{format_count(num_heads, 'head')}, a prior takes {selection.bottleneck:,} of the "
        f"{pool} ({count} in total). A card shows "
        "the patches that a prior ranks highest, and how much its choice of patches says about "
        "their class, position and content (brightness), compared with chance. A prior is dead if "
        f"its usage is below {DEAD:g} times an equal share, and a duplicate if its tokens overlap "
        f"with those of an earlier prior by more than {DUPLICATE:g}. Number of dead priors: "
        f"{num_dead} of {selection.is_dead.size}; number of duplicates: {num_duplicates}."
    )
    note = " ".join([note, *_name_losers(selection)])
    if per_image:
        note += (
            " Every prior takes the same number of tokens from every image, so that its choice of "
            "patches says nothing about the class."
        )
    columns = ["layer and prior", "usage, %", "entropy, bits", "dead", "duplicate", "never wins"]
    if specialization is not None:
        columns += [f"information about {name}, bits" for name in VARIABLES]
    rows = [
        _row(selection, specialization, layer, prior)
        for layer in range(num_layers)
        for prior in range(num_priors)
    ]
    choices = [
        Choice("layer", "Layer", [f"layer {i + 1}" for i in range(num_layers)]),
        Choice("head", "Head", [f"head {i + 1}" for i in range(num_heads)]),
    ]
    caption = "All priors (entropy and information are means over the heads)"
    table = Grid(columns, rows, caption, is_folded=True)
    return Section("priors", TITLE, note, choices=choices, tables=[table], widget="priors")


def list_cards(
    selection: SelectionStatistics, specialization: Specialization | None
) -> list[dict[str, Any]]:
    """Return the data of the cards, one entry for each layer."""
    return [
        {
            "usage": selection.usage[layer],
            "dead": selection.is_dead[layer],
            "duplicate": selection.is_duplicate[layer],
            "heads": [
                {
                    "loser": selection.never_wins[layer, head],
                    "entropy": selection.entropy[layer, head],
                    "winners": _list_winners(selection, layer, head),
                    "special": (
                        None
                        if specialization is None
                        else _specialize(specialization, layer, head)
                    ),
                }
                for head in range(selection.entropy.shape[1])
            ],
        }
        for layer in range(selection.entropy.shape[0])
    ]


def winning_items(selection: SelectionStatistics) -> Iterator[int]:
    """Yield the items whose patches are on the cards, the best winners of all priors first."""
    best_first = np.moveaxis(selection.winners[..., :MAX_WINNERS, 0], -1, 0)
    yield from dict.fromkeys(cast(list[int], best_first.ravel().tolist()))


def _list_winners(
    selection: SelectionStatistics, layer: int, head: int
) -> list[list[tuple[int, int, float]]]:
    """Return item, patch and score of the winners of each prior."""
    winners = selection.winners[layer, head, :, :MAX_WINNERS].tolist()
    scores = selection.winner_scores[layer, head, :, :MAX_WINNERS].tolist()
    return [
        [(item, patch, score) for (item, patch), score in zip(pairs, of_prior, strict=True)]
        for pairs, of_prior in zip(winners, scores, strict=True)
    ]


def _specialize(specialization: Specialization, layer: int, head: int) -> dict[str, Any]:
    by_class = specialization.by_class[layer, head]  # (M, O)
    best = by_class.argmax(axis=-1)
    return {
        "information": specialization.information[:, layer, head],
        "baseline": specialization.baseline[:, layer, head],
        "p": specialization.p_value[:, layer, head],
        "class": [specialization.classes[i] for i in best],
        "share": by_class.max(axis=-1),
        "position": specialization.by_position[layer, head],
    }


def _row(
    selection: SelectionStatistics, specialization: Specialization | None, layer: int, prior: int
) -> list[str]:
    row = [
        f"layer {layer + 1}, prior {prior + 1}",
        f"{100 * selection.usage[layer, prior]:.2f}",
        f"{selection.entropy[layer, :, prior].mean():.2f}",
        "dead" if selection.is_dead[layer, prior] else "",
        "duplicate" if selection.is_duplicate[layer, prior] else "",
        _name_heads(selection.never_wins[layer, :, prior]),
    ]
    if specialization is not None:
        means = specialization.information[:, layer, :, prior].mean(axis=-1)
        chance = specialization.baseline[:, layer, :, prior].mean(axis=-1)
        row += [f"{x:.4f} (chance: {y:.4f})" for x, y in zip(means, chance, strict=True)]
    return row


def _name_losers(selection: SelectionStatistics) -> Iterator[str]:
    """Yield sentences about the heads in which priors never win a token."""
    if selection.wins is None:
        yield "This analysis is of an earlier version, which did not count wins: pass --again."
        return
    num_priors = selection.usage.shape[1]
    yield (
        "A prior wins a token if no other prior of the head attends more to it; it never wins if "
        f"its share of the tokens is below {DEAD:g} times an equal share."
    )
    losers = selection.never_wins
    parts = [
        f"layer {layer + 1}, head {head + 1}: {losers[layer, head].sum()} of {num_priors}"
        for layer, head in np.ndindex(*losers.shape[:2])
        if losers[layer, head].any()
    ]
    yield f"Priors that never win: {'; '.join(parts)}." if parts else "Every prior wins tokens."
    for layer, head in np.ndindex(*losers.shape[:2]):
        best = float(selection.wins[layer, head].max())
        if num_priors > 1 and best > COLLAPSED:
            prior = int(selection.wins[layer, head].argmax()) + 1
            yield (
                f"Head {head + 1} of layer {layer + 1} has collapsed: prior {prior} wins "
                f"{100 * best:.0f} % of its tokens."
            )


def _name_heads(is_loser: Bool[np.ndarray, " S"]) -> str:
    """Return the heads in which a prior never wins, counted from 1."""
    heads = (np.flatnonzero(is_loser) + 1).tolist()
    if not heads:
        return ""
    return f"head{'s' * (len(heads) > 1)} {', '.join(map(str, heads))}"
