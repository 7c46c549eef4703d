"""The section on the associative memory at several inverse temperatures."""

from collections.abc import Iterator, Sequence

import numpy as np

from associative_transformer.analysis.basins import Basins
from associative_transformer.analysis.reconstruction import Reconstruction
from associative_transformer.interface import format_count
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
MAX_BASINS = 16  # fixed points that are drawn as bars
KINDS_OF_FIXED_POINTS = ("single attractor", "metastable", "mean of all")


def retrieval_section(
    basins: Basins | None, reconstruction: Reconstruction | None, items: str
) -> Section:
    """Return the section on where tokens come to rest at each stored inverse temperature.

    `items` is "images" or "questions".
    """
    if basins is None:
        return Section("beta", TITLE, "This model retrieves nothing from an associative memory.")
    betas = [f"{beta:g}" for beta in basins.betas.tolist()]
    layers = [f"layer {layer + 1}" for layer in range(basins.energy.shape[1])]
    figures: list[Figure] = []
    for layer, name in enumerate(layers):
        if reconstruction is not None:
            before = _draw_before(reconstruction, layer, name, items)
            figures.append(Figure(before, {"layer": layer}))
        for i, beta in enumerate(betas):
            setting, charts = f"β = {beta}, {name}", list[Chart]()
            if reconstruction is not None:
                value = float(basins.betas[i])
                charts += _draw_after(reconstruction, value, layer, setting, items)
            charts += _draw_beta(basins, i, layer, setting)
            figures += [Figure(chart, {"beta": i, "layer": layer}) for chart in charts]
        figures += [
            Figure(chart, {"layer": layer}) for chart in _compare_betas(basins, betas, layer, name)
        ]
    start = int(np.abs(np.log(basins.betas / basins.trained_beta)).argmin())
    choices = [
        Choice("beta", "Inverse temperature β", betas, start, is_slider=True),
        Choice("layer", "Layer", layers),
    ]
    return Section("beta", TITLE, _introduce(basins, reconstruction), figures, choices)


def _introduce(basins: Basins, reconstruction: Reconstruction | None) -> str:
    note = (
        f"The tokens of each layer ({basins.num_tokens:,}) are retrieved repeatedly until they no "
        "longer move. A small β averages over all attractors, a large β selects a single one, "
        "and a β in between averages over some (metastable states). The run was trained with "
        f"β = {basins.trained_beta:g}."
    )
    if reconstruction is not None:
        stored = ", ".join(f"{beta:g}" for beta in reconstruction.betas.tolist())
        note += f" Plots of the tokens after retrieval are available for β = {stored}."
    return note


def _draw_beta(basins: Basins, beta: int, layer: int, setting: str) -> Iterator[Chart]:
    """Draw energy, kinds of fixed points and basins at one inverse temperature."""
    energy = basins.energy[beta, layer].tolist()
    steps = list(range(len(energy)))
    spread = basins.energy_spread[beta, layer].tolist()
    lines = [Series("mean ± standard deviation", steps, energy, spread)]
    yield Lines(f"Energy during retrieval, {setting}", "retrieval steps", "energy", lines)
    shares = {"share of the tokens, %": _percent(basins, beta, layer)}
    title = f"Where tokens come to rest, {setting}"
    yield Bars(title, "tokens, %", KINDS_OF_FIXED_POINTS, shares, end=100)
    sizes = 100 * basins.basins[beta, layer][:MAX_BASINS]
    num_points = int(basins.num_fixed_points[beta, layer])
    labels = [f"fixed point {i + 1}" for i in range(min(len(sizes), max(num_points, 1)))]
    parts = {"share of the tokens, %": sizes[: len(labels)].tolist()}
    title = f"Basins by fixed point ({num_points} in total), {setting}"
    yield Bars(title, "tokens, %", labels, parts, end=100)


def _compare_betas(basins: Basins, betas: Sequence[str], layer: int, name: str) -> Iterator[Chart]:
    """Draw kinds of fixed points and recall at all inverse temperatures."""
    labels = [f"β = {beta}" for beta in betas]
    shares = np.array([_percent(basins, i, layer) for i in range(len(betas))])
    parts = dict(zip(KINDS_OF_FIXED_POINTS, shares.T.tolist(), strict=True))
    title = f"Where tokens come to rest for each β, {name}"
    yield Bars(title, "tokens, %", labels, parts, end=100)
    lines = [
        Series(label, basins.noise.tolist(), (100 * basins.recall[i, layer]).tolist())
        for i, label in enumerate(labels)
    ]
    x_label = "length of the noise, in mean attractor norms"
    yield Lines(f"Recall under noise, {name}", x_label, "attractors recalled, %", lines, start=0)


def _percent(basins: Basins, beta: int, layer: int) -> list[float]:
    shares = (basins.single, basins.metastable, basins.uniform)
    return [100 * float(share[beta, layer]) for share in shares]


def _draw_before(tokens: Reconstruction, layer: int, name: str, items: str) -> Points:
    percent = 100 * tokens.explained[layer]
    note = f"The plane explains {percent:.0f} % of the variance of these tokens."
    return _scatter(tokens.before[layer], f"Tokens before retrieval, {name}", note, items)


def _draw_after(
    tokens: Reconstruction, beta: float, layer: int, setting: str, items: str
) -> Iterator[Points]:
    """Draw the tokens after one retrieval, if they are stored for this inverse temperature."""
    for i in np.flatnonzero(np.isclose(tokens.betas, beta)):
        after = tokens.after[i, layer]
        num_distinct, total = int(tokens.num_distinct[i, layer]), after.shape[0] * after.shape[1]
        note = f"{num_distinct:,} of {total:,} tokens are distinct afterwards."
        yield _scatter(after, f"Tokens after one retrieval, {setting}", note, items)


def _scatter(tokens: np.ndarray, title: str, note: str, items: str) -> Points:
    """Draw each item in its own hue, and each of its tokens in its own shade."""
    num_items, num_tokens = tokens.shape[:2]
    x, y = tokens.reshape(-1, 2).T.tolist()
    count = format_count(num_items, items.removesuffix("s"))
    note = f"{note} Hues distinguish the {count}, shades the tokens of each."
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
