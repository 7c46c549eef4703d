"""The section on what the priors do: whether they specialize, and what happens if one is silenced.

Dims     V variables   L layers   A heads of the write or of the read   M priors
"""

from collections.abc import Iterator

import numpy as np

from associative_transformer.analysis.information import VARIABLES
from associative_transformer.analysis.roles import Act, Roles
from associative_transformer.analysis.silencing import Silencing
from associative_transformer.interface import format_count
from associative_transformer.report.charts import (
    Bars,
    Chart,
    Choice,
    Figure,
    Grid,
    Heat,
    Section,
)

TITLE = "Roles of the priors"
MAX_CLASSES = 20  # for which the change of each logit is drawn


def roles_section(roles: Roles | None, silencing: Silencing | None, items: str) -> Section:
    """Return the section on the roles of priors; `items` is "images" or "questions"."""
    if roles is None and silencing is None:
        return Section("roles", TITLE, "This model has no priors that tokens read.")
    notes, tables = list[str](), list[Grid]()
    charts: list[tuple[int, Chart]] = []
    if roles is not None:
        notes.append(_introduce(roles, items))
        charts += _draw_information(roles)
        tables.append(_tabulate_contents(roles))
    if silencing is not None:
        count = format_count(silencing.num_images, f"test {items.removesuffix('s')}")
        notes.append(
            "A silenced prior is taken out of what the tokens of one layer read: its attractor is "
            f"removed from the softmax. The whole model is correct on "
            f"{100 * silencing.accuracy:.2f} % of {count}."
        )
        charts += _draw_silencing(silencing)
    num_layers = max(layer for layer, _ in charts) + 1
    choices = [Choice("layer", "Layer", [f"layer {i + 1}" for i in range(num_layers)])]
    figures = [Figure(chart, {"layer": layer}) for layer, chart in charts]
    return Section("roles", TITLE, " ".join(notes), figures, choices, tables)


def _introduce(roles: Roles, items: str) -> str:
    num_priors = roles.write_focus.shape[-1]
    count = format_count(roles.num_images, f"test {items.removesuffix('s')}")
    return (
        "Does it depend on the class, the position or the content of a patch which prior takes "
        "it, and from which prior it reads most? The charts show the information in bits, at most "
        f"{np.log2(num_priors):.3g} with {format_count(num_priors, 'prior')}, on {count}, next to "
        f"the mean of {format_count(roles.num_permutations, 'permutation')}. Content is one of "
        f"{format_count(roles.num_clusters, 'cluster')} of patches, found by k-means. Every prior "
        "takes the same number of patches from every image, so that only reading can depend on "
        "the class. The matrices show each prior alone: how much its patches differ from all "
        "patches."
    )


def _draw_information(roles: Roles) -> Iterator[tuple[int, Chart]]:
    acts = (("taken", "Prior that takes a patch", roles.write), ("read", "Prior read", roles.read))
    for layer in range(roles.write_information.shape[1]):
        for verb, title, act in acts:
            names = [name for name in VARIABLES if (verb, name) != ("taken", "class")]
            yield layer, _compare_heads(act, layer, f"{title}, layer {layer + 1}", names)
        for verb, _, act in acts:
            names = [name for name in VARIABLES if (verb, name) != ("taken", "class")]
            title = f"Patches {verb}, prior by prior, layer {layer + 1}"
            yield layer, _compare_priors(act, layer, title, names)


def _compare_heads(act: Act, layer: int, title: str, names: list[str]) -> Bars:
    labels, values, chance = [], [], []
    for name in names:
        variable = VARIABLES.index(name)
        for head in range(act.information.shape[2]):
            labels.append(f"{name}, head {head + 1}")
            values.append(float(act.information[variable, layer, head]))
            chance.append(float(act.baseline[variable, layer, head]))
    smallest = min(act.p_value[VARIABLES.index(name), layer].min() for name in names)
    return Bars(
        title,
        "information, bits",
        labels,
        {"information, bits": values},
        note=f"Smallest p-value: {smallest:.3g}.",
        marks={"permuted": chance},
    )


def _compare_priors(act: Act, layer: int, title: str, names: list[str]) -> Heat:
    """Draw how much the patches of a prior differ from all patches, a row per variable."""
    rows = np.stack([act.focus[VARIABLES.index(name), layer].mean(axis=0) for name in names])
    return Heat(
        title,
        "prior",
        "variable",
        rows=names,
        columns=[str(prior + 1) for prior in range(rows.shape[1])],
        values=np.maximum(rows, 0).tolist(),
        low=0,
        high=max(float(rows.max()), 1e-3),
        note="Mean over the heads, above the mean of the permutations.",
        unit="bits",
    )


def _tabulate_contents(roles: Roles) -> Grid:
    """Return the most frequent position and content of what each prior takes, and its readers."""
    grid = round(roles.write_by_position.shape[-1] ** 0.5)
    rows = []
    for layer, prior in np.ndindex(*roles.write_focus.shape[1:4:2]):
        position, content, by_class = (
            shares[layer, :, prior].mean(axis=0)
            for shares in (roles.write_by_position, roles.write_by_content, roles.read_by_class)
        )
        row, column = divmod(int(position.argmax()), grid)
        rows.append(
            [
                f"layer {layer + 1}, prior {prior + 1}",
                f"row {row + 1}, column {column + 1} ({100 * position.max():.0f} %)",
                f"cluster {int(content.argmax()) + 1} ({100 * content.max():.0f} %)",
                f"{roles.classes[int(by_class.argmax())]} ({100 * by_class.max():.0f} %)",
            ]
        )
    columns = ["layer and prior", "takes most at", "takes most of", "read most by"]
    caption = "What each prior takes, and who reads it (means over the heads)"
    return Grid(columns, rows, caption, is_folded=True)


def _draw_silencing(silencing: Silencing) -> Iterator[tuple[int, Chart]]:
    priors = [f"without prior {i + 1}" for i in range(silencing.shift.shape[1])]
    for layer in range(len(silencing.shift)):
        name = f"layer {layer + 1}"
        accuracy = (100 * silencing.silenced_accuracy[layer]).tolist()
        yield (
            layer,
            Bars(
                f"Accuracy without a prior, {name}",
                "accuracy, %",
                priors,
                {"accuracy, %": accuracy},
                marks={"whole model": [100 * silencing.accuracy] * len(priors)},
                end=100,
            ),
        )
        parts = {"answers, %": (100 * silencing.changed[layer]).tolist()}
        yield layer, Bars(f"Answers that change without a prior, {name}", "%", priors, parts)
        shift = {"mean absolute change": silencing.shift[layer].tolist()}
        title = f"Change of the logits without a prior, {name}"
        yield layer, Bars(title, "mean absolute change of a logit", priors, shift)
        if len(silencing.classes) <= MAX_CLASSES:
            yield layer, _draw_logits(silencing, layer, name)


def _draw_logits(silencing: Silencing, layer: int, name: str) -> Heat:
    change = silencing.logit_change[layer]
    largest = max(float(np.abs(change).max()), 1e-6)
    return Heat(
        f"Mean change of each logit without a prior, {name}",
        "class",
        "prior",
        rows=[str(prior + 1) for prior in range(len(change))],
        columns=silencing.classes,
        values=change.tolist(),
        low=-largest,
        high=largest,
        colors="diverging",
    )
