"""Competition inside the self-attention, as boxes: a box for each head."""

from associative_transformer.analysis.competition import Competition
from associative_transformer.report.charts import Boxes, Choice, Figure, Section

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
TITLE = "Competition in self-attention"


def competition_section(found: Competition | None, items: str) -> Section:
    """Draw how many tokens make up most of the attention of a token, head by head.

    The `items` of the test split are images or questions.
    """
    if found is None:
        return Section("competition", TITLE, "This model has no self-attention among tokens.")
    num_tokens = found.counts.shape[-1] - 1
    bounds = {"one token": 1, "uniform attention": found.uniform}
    quantiles = [found.quantile(share).tolist() for share in QUANTILES]
    figures = []
    for place, layer in enumerate(found.layers):
        heads = list(zip(*(quantile[place] for quantile in quantiles), strict=True))
        labels = [f"head {head + 1}" for head in range(len(heads))]
        title = (
            f"Tokens that make up {100 * found.share:.0f} % of the attention, layer {layer + 1}"
        )
        chart = Boxes(title, f"tokens, of {num_tokens}", labels, heads, bounds)
        figures.append(Figure(chart, {"layer": place}))
    note = (
        f"How many tokens each token needs for {100 * found.share:.0f} % of what it attends to, "
        f"over {found.num_images:,} test {items}. A small number is a strong competition; uniform "
        f"attention needs {found.uniform} of {num_tokens}. Over all tokens the mean is "
        f"{found.mean.mean():.1f}."
    )
    names = [f"layer {layer + 1}" for layer in found.layers]
    return Section("competition", TITLE, note, figures, [Choice("layer", "Layer", names)])
