"""Sort-of-CLEVR (Santoro et al. 2017, arXiv 1706.01427): questions about six colored objects.

Array operations in place of the source's loops (kimhc6028/relational-networks): a picture depends
on the seed, its split and its index, and on nothing else. Channels are RGB and the picture is not
transposed, unlike there: x is the column and y the row.

Dims     P pictures   N questions   C objects
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from numpy.random import Generator, SeedSequence, default_rng

from associative_transformer.data.augment import Preparation
from associative_transformer.data.batches import DataSet, HeldOut, Split
from associative_transformer.data.loaders import ResidentLoader
from associative_transformer.data.questions import (
    CIRCLE,
    CLASS_NAMES,
    COLORS,
    KINDS,
    NO,
    NO_COLOR,
    NUM_SUBTYPES,
    NUM_TERNARY_COLORS,
    ONE,
    SQUARE,
    TYPES,
    YES,
    Questions,
    QuestionType,
    encode,
)

PICTURE_SIZE = 75
TRAIN, TEST = 0, 1  # split ids
BLOCK = 1024  # pictures that share a generator

RADIUS = 5
MIN_SQUARED_DISTANCE = 100  # between centers; squares may still overlap
MIDDLE = PICTURE_SIZE / 2
LINE_WIDTH = 12  # pixels above and below the line through A and B, measured vertically
FAULTY_SQUARED_DISTANCE = 999  # of an object to itself in the source: others may be further away

REACH = range(-RADIUS, RADIUS + 1)
SQUARE_PIXELS = np.array([(x, y) for x in REACH for y in REACH])
CIRCLE_PIXELS = np.array([p for p in SQUARE_PIXELS if p @ p <= RADIUS**2])  # OpenCV's 81
WHITE = len(COLORS)
PALETTE = np.array(
    [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (255, 156, 0),
        (128, 128, 128),
        (255, 255, 0),
        (255, 255, 255),
    ],
    np.uint8,
)


@dataclass(frozen=True)
class SortOfClevrConfig:
    """Generated pictures of 75x75 pixels with questions about their six objects."""

    kind: Literal["sort-of-clevr"] = "sort-of-clevr"
    """Tells the data sets apart in a saved experiment."""
    num_train: int = 9_800
    """Training pictures."""
    num_test: int = 200
    """Test pictures."""
    num_questions: int = 10
    """Questions of each type about a picture."""
    question_types: tuple[QuestionType, ...] = ("non-relational", "binary")
    """Types to train and test on, together; "binary" are the paper's relational questions."""
    strict: bool = True
    """False: now and then the object closest to another is that one itself, as in the source."""
    seed: int = 0
    """Seed of the generation; it is not the seed of the training run."""
    val_fraction: float = 0.0
    """Share of the training pictures set aside for validation."""

    def __post_init__(self) -> None:
        counts = (self.num_train, self.num_test, self.num_questions)
        if min(counts) < 1:
            raise ValueError(
                f"num_train, num_test, num_questions must be at least 1, got {counts}"
            )
        types = self.question_types
        if not types or len(set(types)) < len(types) or not set(types) <= set(TYPES):
            raise ValueError(
                f"question_types must name one type or several, each once, of {', '.join(TYPES)}, "
                f"got {types}"
            )
        in_order = tuple(name for name in TYPES if name in types)  # another one changes nothing
        object.__setattr__(self, "question_types", in_order)
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction must lie in [0, 1), got {self.val_fraction}")

    @property
    def mean(self) -> tuple[float, float, float]:
        """Zeros: pixels are scaled to [0, 1], not normalized."""
        return (0.0, 0.0, 0.0)

    @property
    def std(self) -> tuple[float, float, float]:
        """Ones, for the same reason."""
        return (1.0, 1.0, 1.0)


class Scenes(NamedTuple):
    """What the pictures show: one object of each color."""

    centers: Int[np.ndarray, "P 6 2"]  # (column, row), from 5 to 69
    is_square: Bool[np.ndarray, "P 6"]  # else a circle


class Items(NamedTuple):
    """Questions about pictures, picture by picture and type by type."""

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
    asked = zip(*(block.questions for block in blocks), strict=True)
    answers = np.concatenate([block.answers for block in blocks])
    picture = np.arange(num_pictures).repeat(len(answers) // num_pictures)
    return Items(scenes, picture, Questions(*map(np.concatenate, asked)), answers)


def best_guesses(train: Items) -> Int[np.ndarray, "9"]:
    """Find the most frequent answer to each kind of training question.

    It is the best guess without a look at the picture, the question's colors aside.
    """
    counts = np.zeros((len(KINDS), ONE + len(COLORS)), np.int64)
    np.add.at(counts, (train.questions.kind, train.answers), 1)
    return counts.argmax(axis=1)


def draw_pictures(scenes: Scenes) -> UInt8[np.ndarray, "P 3 75 75"]:
    """Draw the objects in the order of their colors: later ones cover earlier ones."""
    pictures = np.empty((len(scenes.centers), 3, PICTURE_SIZE, PICTURE_SIZE), np.uint8)
    for start in range(0, len(pictures), BLOCK):
        part = Scenes(*(array[start : start + BLOCK] for array in scenes))
        canvas = np.full((len(part.centers), PICTURE_SIZE, PICTURE_SIZE), WHITE, np.uint8)
        for color in range(len(COLORS)):
            for is_square, pixels in ((True, SQUARE_PIXELS), (False, CIRCLE_PIXELS)):
                drawn = np.flatnonzero(part.is_square[:, color] == is_square)
                x, y = np.moveaxis(part.centers[drawn, color, None] + pixels, -1, 0)
                canvas[drawn[:, None], y, x] = color
        pictures[start : start + BLOCK] = np.moveaxis(PALETTE[canvas], -1, 1)
    return pictures


def answer(
    scenes: Scenes, picture: Int[np.ndarray, " N"], questions: Questions, strict: bool = True
) -> Int[np.ndarray, " N"]:
    """Answer questions about scenes, as indices in CLASS_NAMES; ties go to the first color."""
    kind, first, second = questions
    row, colors = np.arange(len(kind)), np.arange(len(COLORS))
    centers = scenes.centers[picture]  # (N, 6, 2)
    shape = np.where(scenes.is_square[picture], SQUARE, CIRCLE)  # (N, 6)
    a, b = centers[row, first], centers[row, second]  # each (N, 2)
    is_other = (colors != first[:, None]) & (colors != second[:, None])  # (N, 6)
    distance = _squared(centers - a[:, None])  # (N, 6)
    to_others = distance.copy()
    to_others[row, first] = distance.max() + 1 if strict else FAULTY_SQUARED_DISTANCE
    answers = [
        shape[row, first],
        np.where(a[:, 0] < MIDDLE, YES, NO),
        np.where(a[:, 1] < MIDDLE, YES, NO),
        shape[row, to_others.argmin(axis=1)],
        shape[row, distance.argmax(axis=1)],
        ONE + (shape == shape[row, first, None]).sum(axis=1) - 1,
        ONE + (is_other & _is_in_box(centers, a, b)).sum(axis=1),
        np.where((is_other & _is_near_line(centers, a, b)).any(axis=1), YES, NO),
        ONE + (is_other & _is_obtuse(centers, a, b)).sum(axis=1),
    ]
    return np.choose(kind, answers)


def _generate_block(config: SortOfClevrConfig, split: int, block: int, num_pictures: int) -> Items:
    """Make all pictures of a block, so that each is the same however many are asked for."""
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
            distance = _squared(centers[pending, :color] - drawn[:, None])
            pending = pending[(distance < MIN_SQUARED_DISTANCE).any(axis=1)]
    return Scenes(centers, rng.integers(2, size=(BLOCK, len(COLORS))) == 1)


def _draw_questions(num_questions: int, rng: Generator) -> list[Int[np.ndarray, "P 3 Q"]]:
    """Draw kind, first and second color of the questions of all types."""
    size = (BLOCK, len(TYPES), num_questions)
    pairs = (BLOCK, num_questions, 2)
    kind = NUM_SUBTYPES * np.arange(len(TYPES))[:, None] + rng.integers(NUM_SUBTYPES, size=size)
    first, second = rng.integers(len(COLORS), size=size), np.full(size, NO_COLOR)
    drawn = rng.integers([NUM_TERNARY_COLORS, NUM_TERNARY_COLORS - 1], size=pairs)
    color, step = np.moveaxis(drawn, -1, 0)
    first[:, -1] = color
    second[:, -1] = (color + 1 + step) % NUM_TERNARY_COLORS  # never A itself
    return [kind, first, second]


def _squared(vectors: Int[np.ndarray, "N C 2"]) -> Int[np.ndarray, "N C"]:
    return (vectors**2).sum(axis=-1)


def _is_in_box(
    centers: Int[np.ndarray, "N 6 2"], a: Int[np.ndarray, "N 2"], b: Int[np.ndarray, "N 2"]
) -> Bool[np.ndarray, "N 6"]:
    low, high = np.minimum(a, b)[:, None], np.maximum(a, b)[:, None]
    return ((low <= centers) & (centers <= high)).all(axis=-1)


def _is_near_line(
    centers: Int[np.ndarray, "N 6 2"], a: Int[np.ndarray, "N 2"], b: Int[np.ndarray, "N 2"]
) -> Bool[np.ndarray, "N 6"]:
    x, y = np.moveaxis(centers, -1, 0)  # each (N, 6)
    slope = (b[:, 1] - a[:, 1]) / (b[:, 0] - a[:, 0] + 1e-10)
    height = a[:, 1] - slope * a[:, 0]
    return np.abs(y - (slope[:, None] * x + height[:, None])) <= LINE_WIDTH


def _is_obtuse(
    centers: Int[np.ndarray, "N 6 2"], a: Int[np.ndarray, "N 2"], b: Int[np.ndarray, "N 2"]
) -> Bool[np.ndarray, "N 6"]:
    """Say whether the largest angle of ABC is at least 90 and below 180 degrees, in integers."""
    to_a, to_b, base = centers - a[:, None], centers - b[:, None], (b - a)[:, None]
    sides = np.stack([_squared(to_a), _squared(to_b), _squared(to_a - to_b)])  # (3, N, 6)
    is_flat = to_a[..., 0] * base[..., 1] == to_a[..., 1] * base[..., 0]
    return (2 * sides.max(axis=0) >= sides.sum(axis=0)) & ~is_flat


def load_questions(config: SortOfClevrConfig, device: torch.device) -> DataSet:
    """Generate all splits."""
    items = generate_items(config, TRAIN)
    train, validation = _questions(items, config, device).split_validation(config.val_fraction)
    test = _questions(generate_items(config, TEST), config, device)
    return DataSet(
        train, validation, test, CLASS_NAMES, guesses=torch.from_numpy(best_guesses(items))
    )


def load_test_questions(config: SortOfClevrConfig, device: torch.device) -> HeldOut:
    """Generate the test split only, and the training questions for their best guesses."""
    test = _questions(generate_items(config, TEST), config, device)
    guesses = torch.from_numpy(best_guesses(generate_items(config, TRAIN)))
    return HeldOut(test, CLASS_NAMES, guesses=guesses)


def _questions(items: Items, config: SortOfClevrConfig, device: torch.device) -> Split:
    scenes, picture, questions, answers = items
    preparation = Preparation(config.mean, config.std, device=device)
    loader = ResidentLoader(torch.from_numpy(draw_pictures(scenes)), preparation)
    vectors = torch.from_numpy(encode(questions))
    return Split(torch.from_numpy(answers), torch.from_numpy(picture), loader, vectors)
