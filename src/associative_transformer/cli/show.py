"""`ait show`: draw images with their classes, or with their questions and answers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
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
NOUNS = {"test": "test", "validation": "validation", "train": "training"}
USAGE = """usage: ait show DATA [--help] [options]

Draw the first images of a data set; `ait show DATA --help` lists the options.

data sets:"""


@dataclass(frozen=True)
class ShowOptions:
    """Draw the first images of a data set."""

    data: DataConfig
    """The data set."""
    num_images: int = 8
    """Number of images to draw."""
    output: Path | None = None
    """PNG, SVG or PDF file to write; None: DATA.png."""
    pictures: Path | None = None
    """Folder to write the images to as separate files, 0.png, 1.png, ...; None: do not."""
    split: Literal["test", "validation", "train"] = "test"
    """Split to draw."""
    augment: bool = False
    """Draw the first training images of a run with seed 0 as it sees them, with --split train."""

    def __post_init__(self) -> None:
        check_counts(num_images=self.num_images)
        if self.num_images > MAX_IMAGES:
            raise ValueError(f"--num-images must be at most {MAX_IMAGES}, not {self.num_images}")
        if self.augment and self.split != "train":
            raise ValueError("--augment needs --split train: only training images are augmented")
        if self.augment and self.data.is_generated:
            raise ValueError(f"{self.data.kind} is generated and not augmented: omit --augment")


class Shown(NamedTuple):
    """Images with values in [0, 1], and a caption for each."""

    images: Float[Tensor, "N C H W"]
    captions: list[str]


def run(arguments: list[str]) -> None:
    """Draw images on one sheet."""
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
    images, captions = _augmented(options) if options.augment else _stored(options)
    title = name if source is None else Path(source).absolute().name
    kind = "augmented training" if options.augment else NOUNS[options.split]
    draw_sheet(images, captions, output, f"{title}: first {kind} images")
    say(f"written: {output}")
    if options.pictures is not None:
        write_images(images, options.pictures)
        say(f"written: {format_count(len(images), 'image')} to {options.pictures}")


def _stored(options: ShowOptions) -> Shown:
    """Return the first images of a split as they are stored."""
    config, device = options.data, torch.device("cpu")
    if options.split == "test":
        data = config.load_test(device)
    else:
        loaded = config.load(device)
        split = loaded.train if options.split == "train" else loaded.validation
        if split is None:
            raise UserError(
                "there are no validation images: pass --data.val-fraction, or --split train"
            )
        data = HeldOut(split, loaded.class_names)
        config = config.as_loaded(loaded)
    rows = torch.unique(data.test.rows)[: options.num_images]
    (images,) = data.test.loader.load(rows[None], None)
    return Shown(config.denormalize(images), [_caption(config, data, row) for row in rows])


def _augmented(options: ShowOptions) -> Shown:
    """Return the images of the first training batch, with their share of each class."""
    data = options.data.load_for_new_run(torch.device("cpu"))
    batch = next(data.train.train_batches(min(options.num_images, len(data.train)), 0, 0))
    captions = [_name_shares(label, data.class_names) for label in batch.labels]
    return Shown(options.data.as_loaded(data).denormalize(batch.images), captions)


def _name_shares(label: Tensor, names: tuple[str, ...]) -> str:
    """Return the class of an image, or its share of each class if it is mixed."""
    if label.ndim == 0:
        return names[int(label)]
    classes = label.nonzero()[:, 0].tolist()
    if len(classes) == 1:
        return names[classes[0]]
    return ", ".join(f"{names[i]} {float(label[i]):.2f}" for i in classes)


def _caption(config: DataConfig, data: HeldOut, row: Tensor) -> str:
    """Return the class of an image, or its first questions of each type with their answers."""
    items = config.describe_items(data, (data.test.rows == row).nonzero()[:, 0])
    lines: list[str] = []
    for question_type in config.question_types:
        asked = [item for item in items if item.question_type == question_type]
        lines += [f"{item.question}: {item.answer}" for item in asked[:QUESTIONS_PER_TYPE]]
    return "\n".join(lines) if lines else items[0].answer
