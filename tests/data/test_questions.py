"""The vectors, wording and answers of the questions of Sort-of-CLEVR."""

from itertools import permutations

import numpy as np
import pytest

from associative_transformer.data.questions import (
    BOX,
    CLASS_NAMES,
    COLORS,
    KINDS,
    NO_COLOR,
    OBTUSE,
    QUESTION_DIM,
    TYPES,
    Questions,
    answer_words,
    decode,
    describe_questions,
    encode,
    list_questions,
    parse_question,
)
from associative_transformer.interface import UserError

NAMES = [kind.name for kind in KINDS]
RED, GREEN, BLUE, ORANGE, GRAY, YELLOW = range(6)
ASKABLE = [
    *((kind, a, NO_COLOR) for kind in range(6) for a in range(6)),
    *((kind, a, b) for kind in (6, 7, 8) for a, b in permutations(range(5), 2)),
]


def ask(*numbers: tuple[int, int, int]) -> Questions:
    return Questions(*np.array(numbers).T)


def numbers_of(questions: Questions) -> list[tuple[int, ...]]:
    return list(zip(*(array.tolist() for array in questions), strict=True))


def refusal(sentence: str, types: tuple[str, ...] = TYPES) -> str:
    with pytest.raises(UserError) as caught:
        parse_question(sentence, types)
    return str(caught.value)


def test_kinds_classes_and_colors_have_the_order_of_the_source() -> None:
    assert NAMES == [
        "non-relational/shape",
        "non-relational/left",
        "non-relational/top",
        "binary/closest",
        "binary/furthest",
        "binary/count",
        "ternary/box",
        "ternary/line",
        "ternary/obtuse",
    ]
    assert [NAMES[kind].split("/")[1] for kind in (BOX, OBTUSE)] == ["box", "obtuse"]
    assert COLORS == ("red", "green", "blue", "orange", "gray", "yellow")
    assert CLASS_NAMES == ("yes", "no", "square", "circle", "1", "2", "3", "4", "5", "6")


@pytest.mark.parametrize(
    ("name", "a", "b", "ones"),
    [
        ("non-relational/shape", RED, NO_COLOR, [0, 12, 15]),
        ("non-relational/left", BLUE, NO_COLOR, [2, 12, 16]),
        ("non-relational/top", YELLOW, NO_COLOR, [5, 12, 17]),
        ("binary/closest", GREEN, NO_COLOR, [1, 13, 15]),
        ("binary/furthest", YELLOW, NO_COLOR, [5, 13, 16]),
        ("binary/count", ORANGE, NO_COLOR, [3, 13, 17]),
        ("ternary/box", RED, GRAY, [0, 10, 14, 15]),
        ("ternary/line", GRAY, RED, [4, 6, 14, 16]),
        ("ternary/obtuse", GREEN, ORANGE, [1, 9, 14, 17]),
    ],
)
def test_a_vector_has_ones_for_colors_type_and_subtype(
    name: str, a: int, b: int, ones: list[int]
) -> None:
    vectors = encode(ask((NAMES.index(name), a, b)))
    assert vectors.shape == (1, QUESTION_DIM)
    assert vectors.dtype == np.float32
    assert vectors[0].tolist() == [float(i in ones) for i in range(18)]


def test_all_questions_are_decoded_from_their_vectors() -> None:
    vectors = encode(ask(*ASKABLE))
    assert numbers_of(decode(vectors)) == ASKABLE
    assert len(np.unique(vectors, axis=0)) == len(ASKABLE) == 36 + 60


def test_all_questions_are_parsed_from_their_sentences() -> None:
    sentences = describe_questions(ask(*ASKABLE))
    assert len(set(sentences)) == len(ASKABLE)
    for sentence, numbers in zip(sentences, ASKABLE, strict=True):
        own_type = NAMES[numbers[0]].split("/")[0]
        assert numbers_of(parse_question(sentence)) == [numbers]
        assert numbers_of(parse_question(sentence, (own_type,))) == [numbers]


def test_the_colors_replace_a_and_b_in_the_words_of_a_question() -> None:
    assert describe_questions(ask((2, YELLOW, NO_COLOR), (3, RED, NO_COLOR), (7, GRAY, BLUE))) == [
        "is the yellow object in the top half",
        "shape of the object closest to the red one",
        "is another object near the line through the gray and the blue one",
    ]


@pytest.mark.parametrize(
    ("sentence", "numbers"),
    [
        ("What is the shape of the red object?", (0, RED, NO_COLOR)),
        ("what is shape of a red object", (0, RED, NO_COLOR)),
        ("  THE SHAPE   of the Red object ?", (0, RED, NO_COLOR)),
        ("Is an orange object in the left half?", (1, ORANGE, NO_COLOR)),
        ("is grey object in top half", (2, GRAY, NO_COLOR)),
        ("What is the shape of the object closest to the GREY one?", (3, GRAY, NO_COLOR)),
        ("shape of object furthest from yellow one", (4, YELLOW, NO_COLOR)),
        ("What is the number of objects with the shape of the blue one?", (5, BLUE, NO_COLOR)),
        ("number of other objects in a box from the grey to the red one", (6, GRAY, RED)),
        ("Is another object near the line through the red and the green one?", (7, RED, GREEN)),
        (
            "What is the number of objects that form a right or obtuse triangle with the green "
            "and the red one?",
            (8, GREEN, RED),
        ),
    ],
)
def test_case_articles_and_what_is_are_ignored(
    sentence: str, numbers: tuple[int, int, int]
) -> None:
    assert numbers_of(parse_question(sentence)) == [numbers]


@pytest.mark.parametrize(
    "types", [TYPES, ("binary",), ("non-relational", "ternary"), ("binary", "non-relational")]
)
def test_the_error_about_an_unknown_question_lists_the_possible_ones(
    types: tuple[str, ...],
) -> None:
    message = refusal("how many legs does it have?", types)
    assert "how many legs does it have?" in message
    assert message.endswith(f"\n{list_questions(types)}")
    *sentences, colors = (line.strip() for line in message.splitlines()[1:])
    assert sentences == [kind.words for kind in KINDS if kind.type in types]
    assert all(color in colors for color in COLORS)
    assert ("neither is yellow" in colors) == ("ternary" in types)


@pytest.mark.parametrize(
    ("sentence", "meant"),
    [
        ("shape of the bleu object", "shape of the blue object"),
        ("object closest to the green one", "shape of the object closest to the green one"),
        ("is the yellow object in the bottom half", "is the yellow object in the top half"),
        (
            "number of objects in the box from gray to red",
            "number of other objects in the box from the gray to the red one",
        ),
    ],
)
def test_the_nearest_question_is_suggested(sentence: str, meant: str) -> None:
    assert f"did you mean {meant!r}?" in refusal(sentence)


def test_no_question_is_suggested_if_none_is_similar_or_its_type_was_not_trained() -> None:
    assert "did you mean" not in refusal("xyzzy")
    message = refusal("shape of the object closest to the blue one", ("ternary",))
    assert "is a binary question, but this run was not trained on that type" in message


def test_a_question_of_a_type_that_was_not_trained_is_refused() -> None:
    for sentence, (kind, _, _) in zip(describe_questions(ask(*ASKABLE)), ASKABLE, strict=True):
        own_type = NAMES[kind].split("/")[0]
        message = refusal(sentence, tuple(name for name in TYPES if name != own_type))
        assert f"{sentence!r} is a {own_type} question" in message


@pytest.mark.parametrize("kind", [6, 7, 8])
@pytest.mark.parametrize(("a", "b"), [(YELLOW, RED), (GREEN, YELLOW), (BLUE, BLUE)])
def test_a_ternary_question_about_yellow_or_a_single_object_is_refused(
    kind: int, a: int, b: int
) -> None:
    (sentence,) = describe_questions(ask((kind, a, b)))
    assert COLORS[a] in sentence
    assert COLORS[b] in sentence
    assert f"{sentence!r} is not a known question" in refusal(sentence)


@pytest.mark.parametrize(
    "sentence",
    ["", "?", "what is the", "the", "A", "shape of the A object", "what is", "\n", "ß 红色"],
)
def test_fragments_are_refused(sentence: str) -> None:
    assert f"{sentence!r} is not a known question" in refusal(sentence)


def test_counts_start_at_zero_if_a_and_b_are_left_out() -> None:
    for kind in range(9):
        names = answer_words(kind)
        assert names[:4] == ("yes", "no", "square", "circle")
        first = 0 if kind in (BOX, OBTUSE) else 1
        assert names[4:] == tuple(str(count) for count in range(first, first + 6))
