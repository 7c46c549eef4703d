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
from associative_transformer.interface import UserError

DATA: dict[str, DataConfig] = {
    "sort-of-clevr": SortOfClevrConfig(question_types=TYPES),
    "triangle": TriangleConfig(),
    "cifar10": ImagesConfig("cifar10"),
    "cifar100": ImagesConfig("cifar100"),
}
MAX_IMAGES = 64  # a larger sheet takes minutes to draw
QUESTIONS_PER_TYPE = 2  # written below a picture


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
    """Folder in which to write each image to its own file, 0.png, 1.png, ...; None: do not."""

    def __post_init__(self) -> None:
        check_counts(num_images=self.num_images)
        if self.num_images > MAX_IMAGES:
            raise ValueError(f"--num-images must be at most {MAX_IMAGES}, not {self.num_images}")


def run(arguments: list[str]) -> None:
    """Draw test images on one sheet."""
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print("usage: ait show DATA [--help] [options]\n\ndata sets:", *DATA, sep="\n  ")
        return
    if name not in DATA:
        raise UserError(f"there is no data set {name!r}: choose from {', '.join(DATA)}")
    options = parse(ShowOptions, arguments[1:], f"show {name}", ShowOptions(DATA[name]))
    from associative_transformer.figures import draw_sheet, write_images

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
    """Return the class of an image, or its first questions of each type with their answers."""
    items = (data.test.rows == row).nonzero()[:, 0]
    answers = data.test.labels[items].tolist()
    if data.test.questions is None:
        return data.class_names[answers[0]]
    questions = decode(data.test.questions[items].numpy())
    kinds, sentences = questions.kind.tolist(), describe_questions(questions)
    chosen: list[int] = []
    for type_ in TYPES:
        of_type = [i for i, kind in enumerate(kinds) if KINDS[kind].type == type_]
        chosen += of_type[:QUESTIONS_PER_TYPE]
    return "\n".join(f"{sentences[i]}: {answer_words(kinds[i])[answers[i]]}" for i in chosen)
