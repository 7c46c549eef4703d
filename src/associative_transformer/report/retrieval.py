"""The associative memory for a range of inverse temperatures: energy, rest, basins, tokens."""

from collections.abc import Iterator, Sequence

import numpy as np

from associative_transformer.analysis.basins import Basins
from associative_transformer.analysis.reconstruction import Reconstruction
from associative_transformer.report.charts import (
    Bars,
    Chart,
    Choice,
    Figure,
    Lines,
    Points,
    Section,
    Series,
)

TITLE = "Inverse temperature"
MAX_BASINS = 16  # shown one by one


def retrieval_section(
    basins: Basins | None, reconstruction: Reconstruction | None, items: str
) -> Section:
    """Draw, for each stored inverse temperature, where retrieval takes the tokens.

    The `items` of the test split are images or questions.
    """
    if basins is None:
        note = "This model retrieves nothing from an associative memory."
        return Section("beta", TITLE, note)
    betas = basins.betas.tolist()
    words = [f"{beta:g}" for beta in betas]
    layers = [f"layer {layer + 1}" for layer in range(basins.energy.shape[1])]
    figures = []
    for layer, name in enumerate(layers):
        if reconstruction is not None:
            figures.append(
                Figure(_draw_before(reconstruction, layer, name, items), {"layer": layer})
            )
        for place, word in enumerate(words):
            where, charts = f"β = {word}, {name}", list[Chart]()
            if reconstruction is not None:
                charts += _draw_plane(reconstruction, betas[place], layer, where, items)
            charts += _draw_one(basins, place, layer, where)
            figures += [Figure(chart, {"beta": place, "layer": layer}) for chart in charts]
        figures += [
            Figure(chart, {"layer": layer}) for chart in _draw_all(basins, words, layer, name)
        ]
    start = int(np.abs(np.log(basins.betas / basins.trained_beta)).argmin())
    choices = [
        Choice("beta", "Inverse temperature β", words, start, is_slider=True),
        Choice("layer", "Layer", layers),
    ]
    note = (
        f"{basins.num_tokens:,} tokens of each layer, retrieved again and again until they stay. "
        "A small β averages over all attractors, a large one picks a single one; between them lie "
        f"metastable states. The run was trained with β = {basins.trained_beta:g}."
    )
    if reconstruction is not None:
        stored = ", ".join(f"{beta:g}" for beta in reconstruction.betas.tolist())
        note += f" Tokens in a plane are stored for β = {stored}."
    return Section("beta", TITLE, note, figures, choices)


def _draw_one(found: Basins, beta: int, layer: int, where: str) -> Iterator[Chart]:
    energy = found.energy[beta, layer].tolist()
    steps = list(range(len(energy)))
    spread = found.energy_spread[beta, layer].tolist()
    lines = [Series("mean ± standard deviation", steps, energy, spread)]
    yield Lines(f"Energy along the retrieval, {where}", "retrieval steps", "energy", lines)
    shares = {"share of the tokens, %": _percent(found, beta, layer)}
    kinds = ("single attractor", "metastable", "mean of all")
    yield Bars(f"Where tokens come to rest, {where}", "tokens, %", kinds, shares, end=100)
    sizes = 100 * found.basins[beta, layer][:MAX_BASINS]
    number = int(found.num_fixed_points[beta, layer])
    labels = [f"fixed point {i + 1}" for i in range(min(len(sizes), max(number, 1)))]
    parts = {"share of the tokens, %": sizes[: len(labels)].tolist()}
    title = f"Basins by fixed point ({number} in all), {where}"
    yield Bars(title, "tokens, %", labels, parts, end=100)


def _draw_all(found: Basins, betas: Sequence[str], layer: int, name: str) -> Iterator[Chart]:
    """Draw what compares the inverse temperatures."""
    shares = np.array([_percent(found, place, layer) for place in range(len(betas))])
    kinds = ("single attractor", "metastable", "mean of all")
    parts = {kind: column.tolist() for kind, column in zip(kinds, shares.T, strict=True)}
    labels = [f"β = {beta}" for beta in betas]
    yield Bars(
        f"Where tokens come to rest for each β, {name}", "tokens, %", labels, parts, end=100
    )
    lines = [
        Series(f"β = {beta}", found.noise.tolist(), (100 * found.recall[place, layer]).tolist())
        for place, beta in enumerate(betas)
    ]
    label = "noise, in mean attractor norms"
    yield Lines(f"Recall under noise, {name}", label, "attractors recalled, %", lines, start=0)


def _percent(found: Basins, beta: int, layer: int) -> list[float]:
    kinds = (found.single, found.metastable, found.uniform)
    return [100 * float(kind[beta, layer]) for kind in kinds]


def _draw_before(found: Reconstruction, layer: int, name: str, items: str) -> Points:
    note = f"The plane holds {100 * found.explained[layer]:.0f} % of the variance of these tokens."
    return _scatter(found.before[layer], f"Tokens before the retrieval, {name}", note, items)


def _draw_plane(
    found: Reconstruction, beta: float, layer: int, where: str, items: str
) -> Iterator[Points]:
    for place in np.flatnonzero(np.isclose(found.betas, beta)):
        tokens = found.after[place, layer]
        distinct, total = int(found.num_distinct[place, layer]), tokens.shape[0] * tokens.shape[1]
        note = f"{total:,} tokens become {distinct:,} that differ."
        yield _scatter(tokens, f"Tokens after one retrieval, {where}", note, items)


def _scatter(tokens: np.ndarray, title: str, note: str, items: str) -> Points:
    """Give an item a hue and its patches shades of it."""
    num_items, num_tokens = tokens.shape[:2]
    x, y = tokens.reshape(-1, 2).T.tolist()
    note = f"{note} One hue for each of {num_items} {items}, a shade for each of its tokens."
    return Points(
        title,
        "component 1",
        "component 2",
        x,
        y,
        note,
        groups=np.repeat(np.arange(num_items), num_tokens).tolist(),
        shades=np.tile(np.linspace(0, 1, num_tokens), num_items).tolist(),
    )
