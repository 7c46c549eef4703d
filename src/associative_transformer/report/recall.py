"""The section on how well corrupted patterns are recalled, next to what the theory promises."""

from collections.abc import Iterator

from associative_transformer.analysis.recall import NEAR, Recall
from associative_transformer.interface import format_count
from associative_transformer.report.charts import (
    Chart,
    Choice,
    Figure,
    Grid,
    Lines,
    Section,
    Series,
    format_number,
)

TITLE = "Recall of corrupted patterns"


def recall_section(recall: Recall | None) -> Section:
    """Return the section on the recall of the attractors of a trained memory."""
    if recall is None:
        return Section("recall", TITLE, "This model retrieves nothing from an associative memory.")
    layers = [f"layer {layer + 1}" for layer in range(recall.error.shape[1])]
    figures = [
        Figure(chart, {"layer": layer})
        for layer, name in enumerate(layers)
        for chart in _draw(recall, layer, name)
    ]
    note = (
        f"The attractors of the memory are patterns of width {recall.width}, in "
        f"{format_count(recall.num_networks, 'network')}. Noise is added to them, and they are "
        "retrieved until they no longer move. The error is the distance from the pattern; a "
        f"pattern is recalled if it is at most {NEAR:g} mean pattern norms. A pattern that is far "
        "enough from all others is stored for certain. The run was trained with "
        f"β = {recall.trained_beta:g}."
    )
    rows = [
        [f"β = {beta:g}", *(_write(float(number)) for number in row)]
        for beta, row in zip(recall.betas, recall.capacity, strict=True)
    ]
    caption = (
        "Random patterns of this width and length that the theory can store; the memory has "
        f"{int(recall.loads[-1])}"
    )
    table = Grid(["inverse temperature", *layers], rows, caption)
    return Section("recall", TITLE, note, figures, [Choice("layer", "Layer", layers)], [table])


def _draw(recall: Recall, layer: int, name: str) -> Iterator[Chart]:
    betas = [f"β = {beta:g}" for beta in recall.betas.tolist()]
    noise, loads = recall.noise.tolist(), recall.loads.tolist()
    errors = [
        Series(label, noise, recall.error[i, layer, -1].tolist()) for i, label in enumerate(betas)
    ]
    title = f"Error after retrieval with {format_count(loads[-1], 'pattern')}, {name}"
    x_label = "length of the noise, in mean pattern norms"
    yield Lines(title, x_label, "distance, in mean pattern norms", errors, start=0)
    for title, shares in (
        (
            f"Patterns recalled with noise {recall.noise[recall.middle]:g}",
            recall.recalled[:, layer, :, recall.middle],
        ),
        ("Patterns that are stored for certain", recall.guaranteed[:, layer]),
    ):
        lines = [
            Series(label, loads, (100 * share).tolist())
            for label, share in zip(betas, shares, strict=True)
        ]
        x_label = "number of patterns in the memory"
        yield Lines(f"{title}, {name}", x_label, "patterns, %", lines, is_log=True, start=0)


def _write(number: float) -> str:
    return "none" if number == 0 else format_number(number)
