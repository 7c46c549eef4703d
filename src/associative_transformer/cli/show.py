"""`ait show`: draw test images with their classes, or with their questions and answers."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from associative_transformer.cli.mistakes import find_similar, join_or
from associative_transformer.cli.options import check_counts, check_output, parse, say
from associative_transformer.data import DATA_SETS, DataConfig, HeldOut
from associative_transformer.interface import UserError, format_count

DATA: dict[str, DataConfig] = {
    name: example for data_set in DATA_SETS for name, example in data_set.examples().items()
}
MAX_IMAGES = 64  # a larger sheet takes minutes to draw
QUESTIONS_PER_TYPE = 2  # below an image
USAGE = """usage: ait show DATA [--help] [options]

Draw the first test images of a data set; `ait show DATA --help` lists the options.

data sets:"""


@dataclass(frozen=True)
class ShowOptions:
    """Draw the first test images of a data set."""

    data: DataConfig
    """The data set."""
    num_images: int = 8
    """Number of images to draw."""
    output: Path | None = None
    """PNG, SVG or PDF file to write; None: DATA.png."""
    pictures: Path | None = None
    """Folder to write the images to as separate files, 0.png, 1.png, ...; None: do not."""

    def __post_init__(self) -> None:
        check_counts(num_images=self.num_images)
        if self.num_images > MAX_IMAGES:
            raise ValueError(f"--num-images must be at most {MAX_IMAGES}, not {self.num_images}")


def run(arguments: list[str]) -> None:
    """Draw test images on one sheet."""
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(USAGE, *DATA, sep="\n  ")
        return
    if name.startswith("-"):
        raise UserError(f"`ait show` needs DATA before {name}: choose from {', '.join(DATA)}")
    if name not in DATA:
        similar = find_similar(name, list(DATA))
        hint = f"did you mean {join_or(similar)}? Choose" if similar else "choose"
        raise UserError(f"there is no data set {name!r}: {hint} from {', '.join(DATA)}")
    options = parse(ShowOptions, arguments[1:], f"show {name}", ShowOptions(DATA[name]))
    from associative_transformer.figures import draw_sheet, write_images

    output = options.output or Path(f"{name}.png")
    source = getattr(options.data, "source", None)
    inputs = [] if source is None else [Path(source)]
    check_output(output, *inputs)
    if options.pictures is not None and options.pictures.is_dir():
        for number in range(options.num_images):
            check_output(options.pictures / f"{number}.png", *inputs, flag="--pictures")
    data = options.data.load_test(torch.device("cpu"))
    rows = torch.unique(data.test.rows)[: options.num_images]
    (images,) = data.test.loader.load(rows[None], None)
    images = options.data.denormalize(images)
    captions = [_caption(options.data, data, row) for row in rows]
    title = name if source is None else Path(source).absolute().name
    draw_sheet(images, captions, output, f"{title}: first test images")
    say(f"written: {output}")
    if options.pictures is not None:
        write_images(images, options.pictures)
        say(f"written: {format_count(len(images), 'image')} to {options.pictures}")


def _caption(config: DataConfig, data: HeldOut, row: Tensor) -> str:
    """Return the class of an image, or its first questions of each type with their answers."""
    items = config.describe_items(data, (data.test.rows == row).nonzero()[:, 0])
    lines: list[str] = []
    for question_type in config.question_types:
        asked = [item for item in items if item.question_type == question_type]
        lines += [f"{item.question}: {item.answer}" for item in asked[:QUESTIONS_PER_TYPE]]
    return "\n".join(lines) if lines else items[0].answer
