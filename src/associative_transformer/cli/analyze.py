"""`ait analyze`: measure what a trained model has learned."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from associative_transformer.cli.options import check_counts, choose_device, parse, say
from associative_transformer.files import check_writable


@dataclass(frozen=True)
class AnalyzeOptions:
    """Measure on test images what a trained model has learned; write results and figures."""

    run: Path
    """Folder of the run, such as runs/triangle-ait-tiny/0."""
    images: int = 1000
    """Number of test images to use, or of test questions if the data set has questions."""
    source: str | None = None
    """Folder of the images, if they have moved since training."""
    batch_size: int | None = None
    """Images per batch, whose tokens form one pool; None: as in training."""
    device: str = "auto"
    """cpu, cuda, or another device that torch knows; auto: a GPU if there is one."""

    def __post_init__(self) -> None:
        check_counts(images=self.images)
        if self.batch_size is not None:
            check_counts(batch_size=self.batch_size)


def run(arguments: list[str]) -> None:
    """Analyze a run, print the main results, and write results and figures to its folder."""
    options = parse(AnalyzeOptions, arguments, "analyze")
    from associative_transformer.analysis import analyze, sample
    from associative_transformer.figures import draw_analysis
    from associative_transformer.runs.result import name_test_data
    from associative_transformer.runs.saved import load_run, load_test_split

    device = choose_device(options.device)
    saved = load_run(options.run)
    check_writable(options.run)
    data = load_test_split(saved, options.source, device)
    saved.model.to(device)
    analysis = analyze(saved, options.run, data, options.images, options.batch_size)
    say("\n".join(analysis.describe()))
    if missing := [name for name, result in analysis._asdict().items() if result is None]:
        say(f"this run has no {', '.join(missing)}")
    if saved.result and not saved.result.is_tested_on(data):
        say("these are not the test images that the run was scored on after training")
    config, train = saved.experiment.data, saved.experiment.train
    items = config.item_noun
    described = name_test_data(saved.result, config, data)
    name = f"{saved.experiment.name}, seed {train.seed}, test {items} of {described}"
    image_of = partial(config.original_image, sample(data.test))
    figures = draw_analysis(analysis, image_of, options.run, name, items)
    say(f"written: {options.run / 'analysis'}")
    if figures:
        names = dict.fromkeys(path.stem for path in figures)
        say(f"drawn:   {', '.join(names)} in {figures[0].parent}")
