"""The section on competition in self-attention, with a box plot for each head."""

from associative_transformer.analysis.competition import Competition
from associative_transformer.interface import format_count
from associative_transformer.report.charts import Boxes, Choice, Figure, Section

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
TITLE = "Competition in self-attention"


def competition_section(competition: Competition | None, items: str) -> Section:
    """Return the section on how many tokens receive most of a token's attention in each head.

    `items` is "images" or "questions".
    """
    if competition is None:
        return Section("competition", TITLE, "This model has no self-attention among tokens.")
    num_tokens = competition.counts.shape[-1] - 1
    percent = f"{100 * competition.share:.0f} %"
    bounds = {"one token": 1, "uniform attention": competition.uniform}
    quantiles = [competition.quantile(share).tolist() for share in QUANTILES]
    figures = []
    for i, layer in enumerate(competition.layers):
        heads = list(zip(*(quantile[i] for quantile in quantiles), strict=True))
        labels = [f"head {head + 1}" for head in range(len(heads))]
        title = f"Tokens that receive {percent} of the attention, layer {layer + 1}"
        chart = Boxes(title, f"tokens, out of {num_tokens}", labels, heads, bounds)
        figures.append(Figure(chart, {"layer": i}))
    count = format_count(competition.num_images, f"test {items.removesuffix('s')}")
    note = (
        f"The charts show how many tokens receive {percent} of a token's attention, measured on "
        f"{count}. The smaller the number, the stronger the competition. It is "
        f"{competition.uniform} (of {format_count(num_tokens, 'token')}) if the attention is "
        f"uniform; its mean over all tokens is {competition.mean.mean():.1f}."
    )
    names = [f"layer {layer + 1}" for layer in competition.layers]
    return Section("competition", TITLE, note, figures, [Choice("layer", "Layer", names)])
