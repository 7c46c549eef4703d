"""`ait show`: draw test images with their classes, or with their questions and answers."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from associative_transformer.cli.options import check_counts, check_output, parse
from associative_transformer.data import (
    DataConfig,
    HeldOut,
    ImagesConfig,
    SortOfClevrConfig,
    TriangleConfig,
    load_test,
)
from associative_transformer.data.questions import (
    KINDS,
    TYPES,
    answer_words,
    decode,
    describe_questions,
)
from associative_transformer.figures import draw_sheet, write_images
from associative_transformer.interface import UserError

DATA: dict[str, DataConfig] = {
    "sort-of-clevr": SortOfClevrConfig(question_types=TYPES),
    "triangle": TriangleConfig(),
    "cifar10": ImagesConfig("cifar10"),
    "cifar100": ImagesConfig("cifar100"),
}
MAX_IMAGES = 64  # a sheet of more takes minutes
ASKED = 2  # questions of each type below a picture


@dataclass(frozen=True)
class ShowOptions:
    """Draw the first test images of a data set."""

    data: DataConfig
    """The data set."""
    num_images: int = 8
    """Images to draw."""
    output: Path | None = None
    """PNG, SVG or PDF file to write; None: DATA.png."""
    pictures: Path | None = None
    """Folder to write the images themselves to, as 0.png and so on; None: none."""

    def __post_init__(self) -> None:
        check_counts(num_images=self.num_images)
        if self.num_images > MAX_IMAGES:
            raise ValueError(f"num_images must be at most {MAX_IMAGES}, not {self.num_images}")


def run(arguments: list[str]) -> None:
    """Write a sheet of test images."""
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print("usage: ait show DATA [--help] [options]\n\ndata:", *DATA, sep="\n  ")
        return
    if name not in DATA:
        raise UserError(f"there is no data set {name!r} to show: {', '.join(DATA)}")
    options = parse(ShowOptions, arguments[1:], f"show {name}", ShowOptions(DATA[name]))
    output = options.output or Path(f"{name}.png")
    check_output(output)
    data = load_test(options.data, torch.device("cpu"))
    rows = torch.unique(data.test.rows)[: options.num_images]
    (images,) = data.test.loader.load(rows[None], None)
    mean, std = (torch.tensor(x)[:, None, None] for x in (options.data.mean, options.data.std))
    captions = [_caption(data, row) for row in rows]
    images = images * std + mean
    draw_sheet(images, captions, output, f"{name}: first test images")
    print(f"written: {output}")
    if options.pictures is not None:
        write_images(images, options.pictures)
        print(f"written: {len(images)} images to {options.pictures}")


def _caption(data: HeldOut, row: Tensor) -> str:
    items = (data.test.rows == row).nonzero()[:, 0]
    answers = data.test.labels[items].tolist()
    if data.test.questions is None:
        return data.class_names[answers[0]]
    questions = decode(data.test.questions[items].numpy())
    kinds, words = questions.kind.tolist(), describe_questions(questions)
    shown = [
        place
        for type_ in TYPES
        for place in [i for i, kind in enumerate(kinds) if KINDS[kind].type == type_][:ASKED]
    ]
    return "\n".join(f"{words[i]}: {answer_words(kinds[i])[answers[i]]}" for i in shown)
