"""`ait analyze`: measure what a trained model has learned."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from associative_transformer.analysis import (
    Analysis,
    Basins,
    Competition,
    Selected,
    analyze,
    sample,
)
from associative_transformer.cli.options import check_counts, choose_device, parse
from associative_transformer.data import name_data, name_items, show_image
from associative_transformer.figures import draw_analysis
from associative_transformer.runs.saved import load_run, load_test_of


@dataclass(frozen=True)
class AnalyzeOptions:
    """Measure what a trained model has learned, on test images; write analysis and figures."""

    run: Path
    """Folder of the run, such as runs/triangle-ait-tiny/0."""
    images: int = 1000
    """Test images to look at; of a run with questions, test questions."""
    source: str | None = None
    """Folder of the images, where they no longer lie where they lay in training."""
    batch_size: int | None = None
    """Images at a time, and so in a pool; None: as in training."""
    device: str = "auto"
    """auto, cpu, cuda, or another device that torch knows."""

    def __post_init__(self) -> None:
        check_counts(images=self.images)
        if self.batch_size is not None:
            check_counts(batch_size=self.batch_size)


def run(arguments: list[str]) -> None:
    """Measure, write results and figures beside the run, and print the main numbers."""
    options = parse(AnalyzeOptions, arguments, "analyze")
    device = choose_device(options.device)
    saved = load_run(options.run)
    data = load_test_of(saved, options.source, device)
    saved.model.to(device)
    found = analyze(saved, options.run, data, options.images, options.batch_size)
    print("\n".join(_describe(found)))
    experiment, split = saved.experiment, sample(data.test)
    items, seed = name_items(experiment.data), experiment.train.seed
    caption = f"{experiment.name}, {name_data(experiment.data)}, seed {seed}, test {items}"
    image_of = partial(show_image, split, config=experiment.data)
    drawn = draw_analysis(found, image_of, options.run, caption, items)
    print(f"written: {options.run / 'analysis'}")
    if drawn:
        print(f"drawn:   {', '.join(path.stem for path in drawn[::2])} in {drawn[0].parent}")


def _describe(analysis: Analysis) -> Iterator[str]:
    """Say the main numbers in a few lines."""
    if (answers := analysis.answers) is not None:
        items, right = int(answers.confusion.sum()), int(answers.confusion.trace())
        yield (
            f"{100 * right / items:.2f} % of {items:,} items right, "
            f"calibration error {100 * answers.calibration_error:.2f} %"
        )
    if (competition := analysis.competition) is not None:
        yield from _describe_competition(competition)
    if (selection := analysis.selection) is not None:
        yield from _describe_selection(selection)
    if (basins := analysis.basins) is not None:
        yield from _describe_basins(basins)
    if missing := [name for name, result in analysis._asdict().items() if result is None]:
        yield f"this run has no {', '.join(missing)}"


def _describe_competition(found: Competition) -> Iterator[str]:
    share, even = f"{found.share:.0%}".replace("%", " %"), found.uniform
    together = replace(found, counts=found.counts.sum(axis=1, keepdims=True))  # all heads
    yield f"tokens that get {share} of the attention of a token (median; {even} if it were even):"
    for layer, median in zip(found.layers, together.quantile(0.5)[:, 0], strict=True):
        yield f"  layer {layer + 1}: {median:.0f}"


def _describe_selection(found: Selected) -> Iterator[str]:
    num_priors = found.usage.shape[1]
    yield f"memory of {num_priors} priors, each taking {found.bottleneck} of {found.pool_size:,}:"
    pair = np.triu_indices(num_priors, k=1)
    for layer, overlap in enumerate(found.overlap):
        alike = f", mean overlap {overlap[:, *pair].mean():.2f}" if num_priors > 1 else ""
        dead, duplicate = found.is_dead[layer].sum(), found.is_duplicate[layer].sum()
        rank = found.effective_rank[layer]
        counts = f"{dead} dead, {duplicate} duplicate"
        yield f"  layer {layer + 1}: effective rank {rank:.1f}, {counts}{alike}"


def _describe_basins(found: Basins) -> Iterator[str]:
    yield (
        "% of tokens that rest at one attractor / an average of several / the mean of all "
        f"(trained at beta {found.trained_beta:g}):"
    )
    for layer in range(found.single.shape[1]):
        kinds = (found.single[:, layer], found.metastable[:, layer], found.uniform[:, layer])
        shares = [
            f"beta {beta:g}: " + " / ".join(f"{100 * share:.0f}" for share in at_beta)
            for beta, *at_beta in zip(found.betas, *kinds, strict=True)
        ]
        yield f"  layer {layer + 1}: {', '.join(shares)}"
