"""Sort-of-CLEVR (Santoro et al. 2017, arXiv 1706.01427): questions about six colored objects.

Array operations replace the loops of the source (kimhc6028/relational-networks). A picture depends
only on the seed, its split and its index. Unlike in the source, channels are RGB and the picture
is not transposed: x is the column and y the row.

Dims     P pictures   N questions   Q questions of each type about a picture   C objects
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from numpy.random import Generator, SeedSequence, default_rng
from torch import Tensor

from associative_transformer.data.augment import Preparation
from associative_transformer.data.batches import DataSet, HeldOut, Split
from associative_transformer.data.config import (
    DataSetConfig,
    DescribedItem,
    InputSize,
    check_settings,
)
from associative_transformer.data.loaders import ResidentLoader
from associative_transformer.data.questions import (
    CLASS_NAMES,
    COLORS,
    KINDS,
    NO_COLOR,
    NUM_SUBTYPES,
    NUM_TERNARY_COLORS,
    ONE,
    QUESTION_DIM,
    TYPES,
    Questions,
    QuestionType,
    answer_words,
    decode,
    describe_questions,
    encode,
)
from associative_transformer.data.scenes import (
    PICTURE_SIZE,
    RADIUS,
    Scenes,
    answer,
    draw_pictures,
    squared_length,
)

TRAIN, TEST = 0, 1  # split ids
BLOCK = 1024  # pictures generated from one random generator
MIN_SQUARED_DISTANCE = 100  # between centers; squares may still overlap


@dataclass(frozen=True)
class SortOfClevrConfig(DataSetConfig):
    """Generated pictures of 75x75 pixels with questions about their six objects."""

    kind: Literal["sort-of-clevr"] = "sort-of-clevr"
    """Name of this data set in a saved experiment."""
    num_train: int = 9_800
    """Number of training pictures."""
    num_test: int = 200
    """Number of test pictures."""
    num_questions: int = 10
    """Number of questions of each type about each picture."""
    question_types: tuple[QuestionType, ...] = ("non-relational", "binary")
    """Question types to train and test on together; the paper calls "binary" relational."""
    strict: bool = True
    """Never count an object as its own closest neighbor, which the source sometimes does."""
    seed: int = 0
    """Seed of the generated data, independent of the seed of the training run."""
    val_fraction: float = 0.0
    """Fraction of the training pictures set aside for validation."""

    def __post_init__(self) -> None:
        check_settings(self, "num_train", "num_test", "num_questions")
        types = self.question_types
        if not types or len(set(types)) < len(types) or not set(types) <= set(TYPES):
            raise ValueError(
                f"question_types must be one or more of {', '.join(TYPES)}, each at most once, "
                f"got {types}"
            )
        in_order = tuple(name for name in TYPES if name in types)  # the order has no effect
        object.__setattr__(self, "question_types", in_order)

    @property
    def input_size(self) -> InputSize:
        """75x75 pixels in RGB, and questions."""
        return InputSize(PICTURE_SIZE, 3, QUESTION_DIM)

    @classmethod
    def examples(cls) -> "dict[str, SortOfClevrConfig]":
        """Return the data set with questions of all types."""
        config = cls(question_types=TYPES)
        return {config.kind: config}

    def load(self, device: torch.device) -> DataSet:
        """Generate all splits."""
        items = generate_items(self, TRAIN)
        train, validation = _split(self, items, device).split_validation(self.val_fraction)
        test = _split(self, generate_items(self, TEST), device)
        guesses = torch.from_numpy(best_guesses(items))
        return DataSet(train, validation, test, CLASS_NAMES, guesses=guesses)

    def load_test(self, device: torch.device) -> HeldOut:
        """Generate the test split, and the training questions to find the best guesses."""
        test = _split(self, generate_items(self, TEST), device)
        guesses = torch.from_numpy(best_guesses(generate_items(self, TRAIN)))
        return HeldOut(test, CLASS_NAMES, guesses=guesses)

    def shortened(self, num_images: int) -> "SortOfClevrConfig":
        """Return a version with one question of each type about each of `num_images` pictures."""
        return replace(self, num_train=num_images, num_test=num_images, num_questions=1)

    def describe_items(self, data: HeldOut, items: Int[Tensor, " N"]) -> list[DescribedItem]:
        """Put test questions and their answers into words."""
        if data.test.questions is None:
            raise ValueError("the test split has no questions")
        questions = decode(data.test.questions[items].cpu().numpy())
        sentences, kinds = describe_questions(questions), questions.kind.tolist()
        images = super().describe_items(data, items)
        return [
            image._replace(
                classes=answer_words(kind), question=sentence, question_type=KINDS[kind].type
            )
            for image, sentence, kind in zip(images, sentences, kinds, strict=True)
        ]


class Items(NamedTuple):
    """Questions about pictures, ordered by picture and then by type."""

    scenes: Scenes
    picture: Int[np.ndarray, " N"]  # index of the scene that each question is about
    questions: Questions
    answers: Int[np.ndarray, " N"]  # indices in CLASS_NAMES


def generate_items(config: SortOfClevrConfig, split: int) -> Items:
    """Generate the scenes of a split, the questions about them and their answers."""
    num_pictures = config.num_train if split == TRAIN else config.num_test
    blocks = [
        _generate_block(config, split, start // BLOCK, min(BLOCK, num_pictures - start))
        for start in range(0, num_pictures, BLOCK)
    ]
    scenes = Scenes(*map(np.concatenate, zip(*(block.scenes for block in blocks), strict=True)))
    questions = zip(*(block.questions for block in blocks), strict=True)
    answers = np.concatenate([block.answers for block in blocks])
    picture = np.arange(num_pictures).repeat(len(answers) // num_pictures)
    return Items(scenes, picture, Questions(*map(np.concatenate, questions)), answers)


def best_guesses(train: Items) -> Int[np.ndarray, "9"]:
    """Return the most frequent answer to each kind of training question.

    It is the best guess that uses neither the picture nor the colors in the question.
    """
    counts = np.zeros((len(KINDS), ONE + len(COLORS)), np.int64)
    np.add.at(counts, (train.questions.kind, train.answers), 1)
    return counts.argmax(axis=1)


def _generate_block(config: SortOfClevrConfig, split: int, block: int, num_pictures: int) -> Items:
    """Generate a whole block, so that a picture does not depend on how many are used."""
    seeds = SeedSequence((config.seed, split, block)).spawn(2)
    scenes = _draw_scenes(default_rng(seeds[0]))
    drawn = _draw_questions(config.num_questions, default_rng(seeds[1]))
    types = [TYPES.index(name) for name in TYPES if name in config.question_types]
    scenes = Scenes(*(array[:num_pictures] for array in scenes))
    questions = Questions(*(array[:num_pictures, types].reshape(-1) for array in drawn))
    picture = np.arange(num_pictures).repeat(len(types) * config.num_questions)
    return Items(scenes, picture, questions, answer(scenes, picture, questions, config.strict))


def _draw_scenes(rng: Generator) -> Scenes:
    centers = np.empty((BLOCK, len(COLORS), 2), np.int64)
    for color in range(len(COLORS)):
        pending = np.arange(BLOCK)
        while len(pending):
            drawn = rng.integers(RADIUS, PICTURE_SIZE - RADIUS, size=(len(pending), 2))
            centers[pending, color] = drawn
            distance = squared_length(centers[pending, :color] - drawn[:, None])
            pending = pending[(distance < MIN_SQUARED_DISTANCE).any(axis=1)]
    return Scenes(centers, rng.integers(2, size=(BLOCK, len(COLORS))) == 1)


def _draw_questions(num_questions: int, rng: Generator) -> list[Int[np.ndarray, "P 3 Q"]]:
    """Draw the kind, first color and second color of questions of all types."""
    size = (BLOCK, len(TYPES), num_questions)
    pairs = (BLOCK, num_questions, 2)
    kind = NUM_SUBTYPES * np.arange(len(TYPES))[:, None] + rng.integers(NUM_SUBTYPES, size=size)
    first, second = rng.integers(len(COLORS), size=size), np.full(size, NO_COLOR)
    drawn = rng.integers([NUM_TERNARY_COLORS, NUM_TERNARY_COLORS - 1], size=pairs)
    color, step = np.moveaxis(drawn, -1, 0)
    first[:, -1] = color
    second[:, -1] = (color + 1 + step) % NUM_TERNARY_COLORS  # never A itself
    return [kind, first, second]


def _split(config: SortOfClevrConfig, items: Items, device: torch.device) -> Split:
    scenes, picture, questions, answers = items
    preparation = Preparation(*config.normalization, device=device)
    loader = ResidentLoader(torch.from_numpy(draw_pictures(scenes)), preparation)
    vectors = torch.from_numpy(encode(questions))
    return Split(torch.from_numpy(answers), torch.from_numpy(picture), loader, vectors)
