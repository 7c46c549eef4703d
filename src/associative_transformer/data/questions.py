"""The questions of Sort-of-CLEVR: their kinds, vectors, wording and answers.

Source: kimhc6028/relational-networks, after Santoro et al. 2017, arXiv 1706.01427. Its questions
differ from those on the slides of the paper: for example, it asks for the shape of the closest
object instead of its color.

Dims     N questions
"""

import re
from difflib import get_close_matches
from functools import cache
from itertools import permutations
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from associative_transformer.interface import UserError

COLORS = ("red", "green", "blue", "orange", "gray", "yellow")
QuestionType = Literal["non-relational", "binary", "ternary"]
TYPES: tuple[QuestionType, ...] = ("non-relational", "binary", "ternary")
YES, NO, SQUARE, CIRCLE, ONE = range(5)
CLASS_NAMES = ("yes", "no", "square", "circle", "1", "2", "3", "4", "5", "6")
QUESTION_DIM = 18
NUM_SUBTYPES = 3  # of each type
NO_COLOR = -1
NUM_TERNARY_COLORS = 5  # the source never asks a ternary question about yellow


class Kind(NamedTuple):
    """A kind of question: one of the three types, and a subtype of it."""

    type: str
    subtype: str
    words: str  # with A and B in place of the colors

    @property
    def name(self) -> str:
        """Type and subtype, such as "binary/closest"."""
        return f"{self.type}/{self.subtype}"


KINDS = (  # the index of a kind is NUM_SUBTYPES * type + subtype
    Kind("non-relational", "shape", "shape of the A object"),
    Kind("non-relational", "left", "is the A object in the left half"),
    Kind("non-relational", "top", "is the A object in the top half"),
    Kind("binary", "closest", "shape of the object closest to the A one"),
    Kind("binary", "furthest", "shape of the object furthest from the A one"),
    Kind("binary", "count", "number of objects with the shape of the A one"),
    Kind("ternary", "box", "number of other objects in the box from the A to the B one"),
    Kind("ternary", "line", "is another object near the line through the A and the B one"),
    Kind(
        "ternary",
        "obtuse",
        "number of objects that form a right or obtuse triangle with the A and the B one",
    ),
)
BOX, OBTUSE = 6, 8  # counts that exclude A and B


class Questions(NamedTuple):
    """Questions as arrays with one entry per question."""

    kind: Int[np.ndarray, " N"]  # index in KINDS
    first: Int[np.ndarray, " N"]  # color of A, an index in COLORS
    second: Int[np.ndarray, " N"]  # color of B in ternary questions, otherwise NO_COLOR


def encode(questions: Questions) -> Float[np.ndarray, "N 18"]:
    """Return question vectors: color of A, color of B, type and subtype, each one-hot."""
    kind, first, second = questions
    vectors = np.zeros((len(kind), QUESTION_DIM), np.float32)
    row = np.arange(len(kind))
    vectors[row, first] = 1
    has_second = second != NO_COLOR
    vectors[row[has_second], 6 + second[has_second]] = 1
    vectors[row, 12 + kind // NUM_SUBTYPES] = 1
    vectors[row, 15 + kind % NUM_SUBTYPES] = 1
    return vectors


def decode(vectors: Float[np.ndarray, "N 18"]) -> Questions:
    """Return the questions that `encode` turned into these vectors."""
    first, second, type_, subtype = (
        vectors[:, a:b].argmax(axis=1) for a, b in ((0, 6), (6, 12), (12, 15), (15, 18))
    )
    has_second = vectors[:, 6:12].any(axis=1)
    return Questions(NUM_SUBTYPES * type_ + subtype, first, np.where(has_second, second, NO_COLOR))


def describe_questions(questions: Questions) -> list[str]:
    """Put questions into words that `parse_question` understands."""
    return [
        _sentence(*numbers) for numbers in zip(*map(np.ndarray.tolist, questions), strict=True)
    ]


def answer_words(kind: int) -> tuple[str, ...]:
    """Return the ten classes as answers to questions of a kind.

    Two ternary counts exclude A and B, so the class that the source calls "1" means that no object
    was counted; here it is called "0".
    """
    if kind in (BOX, OBTUSE):
        return (*CLASS_NAMES[:ONE], *(str(count) for count in range(6)))
    return CLASS_NAMES


def parse_question(sentence: str, types: tuple[str, ...] = TYPES) -> Questions:
    """Parse a question of one of these types, worded like those of `describe_questions`.

    Case, articles, a final question mark and a leading "what is the" are ignored. Raises UserError
    with a list of the possible questions if it is not one of them.
    """
    known = _known_questions()
    normalized = _normalize(sentence)
    numbers = known.get(normalized)
    if numbers is not None and (type_ := KINDS[numbers[0]].type) not in types:
        raise UserError(
            f"{sentence!r} is a {type_} question, but this run was not trained on that type: "
            f"ask one of\n{list_questions(types)}"
        )
    if numbers is None:
        allowed = [name for name, (kind, *_) in known.items() if KINDS[kind].type in types]
        close = get_close_matches(normalized, allowed, n=1)
        hint = f" (did you mean {_sentence(*known[close[0]])!r}?)" if close else ""
        raise UserError(
            f"{sentence!r} is not a known question{hint}: ask one of\n{list_questions(types)}"
        )
    return Questions(*(np.array([number]) for number in numbers))


def list_questions(types: tuple[str, ...] = TYPES) -> str:
    """Return the possible questions of these types, one per line."""
    lines = [kind.words for kind in KINDS if kind.type in types]
    colors = f"A is one of {', '.join(COLORS)}"
    if "ternary" in types:
        colors += f"; B is a different color; in questions with B, neither is {COLORS[-1]}"
    return "\n".join(f"  {line}" for line in [*lines, colors])


def example_question(types: tuple[str, ...] = TYPES) -> str:
    """Return a question of one of these types."""
    return _sentence(*_all_questions(types)[0])


@cache
def _known_questions() -> dict[str, tuple[int, int, int]]:
    """Return the kind and colors of every question by its normalized sentence."""
    return {_normalize(_sentence(*numbers)): numbers for numbers in _all_questions(TYPES)}


def _sentence(kind: int, first: int, second: int) -> str:
    colors = {"A": COLORS[first], "B": COLORS[second]}
    return re.sub(r"\b[AB]\b", lambda letter: colors[letter[0]], KINDS[kind].words)


def _normalize(sentence: str) -> str:
    """Remove what `parse_question` ignores."""
    text = re.sub(r"^\W*what(.s| is) ", "", sentence.lower().replace("grey", "gray"))
    return " ".join(word for word in re.findall(r"\w+", text) if word not in ("a", "an", "the"))


def _all_questions(types: tuple[str, ...]) -> list[tuple[int, int, int]]:
    single = [(color, NO_COLOR) for color in range(len(COLORS))]
    pairs = list(permutations(range(NUM_TERNARY_COLORS), 2))
    return [
        (kind, *colors)
        for kind, (type_, *_) in enumerate(KINDS)
        if type_ in types
        for colors in (pairs if type_ == "ternary" else single)
    ]
