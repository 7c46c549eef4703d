"""Sort-of-CLEVR compared with slow loops, known scenes and published statistics."""

import math
import random
import re
from collections import Counter
from itertools import combinations, permutations

import numpy as np
import pytest

from associative_transformer.data.questions import CLASS_NAMES, KINDS, NO_COLOR, TYPES, Questions
from associative_transformer.data.sort_of_clevr import (
    BLOCK,
    TEST,
    TRAIN,
    Items,
    Scenes,
    SortOfClevrConfig,
    answer,
    best_guesses,
    draw_pictures,
    generate_items,
)
from twins import slow_clevr as slow

KIND_NAMES = [kind.name for kind in KINDS]
CLOSEST = KIND_NAMES.index("binary/closest")
ASKABLE = [
    *((kind, a, NO_COLOR) for kind in range(6) for a in range(6)),
    *((kind, a, b) for kind in (6, 7, 8) for a, b in permutations(range(5), 2)),
]
RED, GREEN, BLUE, ORANGE, GRAY, YELLOW = range(6)
MEASURED = 4_000  # pictures behind the published shares, with ten questions of each type

Point = tuple[int, int]


@pytest.fixture(scope="module")
def many() -> Items:
    return generate_items(SortOfClevrConfig(question_types=TYPES), TRAIN)


@pytest.fixture(scope="module")
def grid() -> list[slow.Scene]:
    """Scenes full of equal distances, right angles and objects in line."""
    rng = random.Random(3)
    cells = [(x, y) for x in range(5, 70, 10) for y in range(5, 70, 10)]
    return [
        slow.Scene(rng.sample(cells, 6), [rng.random() < 0.5 for _ in range(6)])
        for _ in range(250)
    ]


def to_slow(scenes: Scenes) -> list[slow.Scene]:
    centers = [[(x, y) for x, y in scene] for scene in scenes.centers.tolist()]
    return [slow.Scene(*pair) for pair in zip(centers, scenes.is_square.tolist(), strict=True)]


def from_slow(scenes: list[slow.Scene]) -> Scenes:
    centers, is_square = zip(*scenes, strict=True)
    return Scenes(np.array(centers), np.array(is_square))


def numbers_of(items: Items) -> list[tuple[int, int, int, int]]:
    """Return picture, kind, A and B of each question."""
    columns = (array.tolist() for array in (items.picture, *items.questions))
    return list(zip(*columns, strict=True))


def same(a: Items, b: Items) -> bool:
    left, right = ((*x.scenes, x.picture, *x.questions, x.answers) for x in (a, b))
    return all(np.array_equal(i, j) for i, j in zip(left, right, strict=True))


def first_pictures(items: Items, num_pictures: int) -> Items:
    is_kept = items.picture < num_pictures
    return Items(
        Scenes(*(array[:num_pictures] for array in items.scenes)),
        items.picture[is_kept],
        Questions(*(array[is_kept] for array in items.questions)),
        items.answers[is_kept],
    )


def of_types(items: Items, types: tuple[str, ...]) -> Items:
    is_kept = np.array([KINDS[kind].type in types for kind in items.questions.kind])
    return Items(
        items.scenes,
        items.picture[is_kept],
        Questions(*(array[is_kept] for array in items.questions)),
        items.answers[is_kept],
    )


def ask(
    subtype: str,
    centers: list[Point],
    a: int = RED,
    b: int = NO_COLOR,
    squares: tuple[int, ...] = (),
    strict: bool = True,
) -> str:
    """Answer one question about a scene whose objects are circles except for `squares`."""
    scene = slow.Scene(centers, [color in squares for color in range(6)])
    (kind,) = [i for i, name in enumerate(KIND_NAMES) if name.endswith(subtype)]
    question = Questions(*(np.array([number]) for number in (kind, a, b)))
    (result,) = answer(from_slow([scene]), np.array([0]), question, strict).tolist()
    assert result == slow.answer(scene, KIND_NAMES[kind], a, b, strict)
    return CLASS_NAMES[result]


# Pictures


def test_pictures_equal_those_drawn_pixel_by_pixel(grid: list[slow.Scene]) -> None:
    generated = generate_items(SortOfClevrConfig(seed=5), TRAIN).scenes
    scenes = [*to_slow(generated)[:12], *grid[:6]]
    pictures = draw_pictures(from_slow(scenes))
    assert pictures.dtype == np.uint8
    assert pictures.tolist() == [slow.picture(scene) for scene in scenes]


def test_a_picture_is_rgb_on_white_with_the_column_last() -> None:
    centers = [(5, 69), (20, 20), (35, 20), (50, 20), (65, 20), (50, 50)]
    scenes = from_slow([slow.Scene(centers, [True, False] * 3)])
    (picture,) = draw_pictures(scenes)
    assert picture.shape == (3, 75, 75)
    rgb = [tuple(picture[:, y, x].tolist()) for x, y in centers]
    assert rgb == [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (255, 156, 0),
        (128, 128, 128),
        (255, 255, 0),
    ]
    colors = Counter(map(tuple, picture.reshape(3, -1).T.tolist()))
    assert [colors[color] for color in rgb] == [121, 81] * 3  # a square's and a circle's pixels
    assert colors[(255, 255, 255)] == 75 * 75 - 3 * (121 + 81)
    assert picture[:, 74, 0].tolist() == [255, 0, 0]  # the square reaches the corner


def test_later_colors_cover_earlier_ones() -> None:
    away = [(69, 69), (69, 50), (50, 69), (5, 69)]
    scene = slow.Scene([(30, 30), (40, 30), *away], [True, False, *[True] * 4])
    other = slow.Scene([(40, 30), (30, 30), *away], [False, True, *[True] * 4])
    pictures = draw_pictures(from_slow([scene, other]))
    assert pictures[0, :, 30, 35].tolist() == [0, 255, 0]
    assert pictures[0, :, 26, 35].tolist() == [255, 0, 0]  # a corner the circle does not cover
    assert pictures[1, :, 30, 35].tolist() == [0, 255, 0]
    assert pictures[1, :, 30, 36].tolist() == [255, 0, 0]


def test_a_picture_does_not_depend_on_those_drawn_with_it() -> None:
    scenes = generate_items(SortOfClevrConfig(num_train=BLOCK + 3), TRAIN).scenes
    together = draw_pictures(scenes)
    for i in (0, BLOCK - 1, BLOCK, BLOCK + 2):
        alone = draw_pictures(Scenes(*(array[i : i + 1] for array in scenes)))
        assert np.array_equal(alone[0], together[i])


# Answers


@pytest.mark.parametrize("strict", [True, False])
def test_answers_equal_those_of_slow_loops(strict: bool) -> None:
    config = SortOfClevrConfig(num_train=400, question_types=TYPES, strict=strict, seed=7)
    items = generate_items(config, TRAIN)
    assert min(Counter(items.questions.kind.tolist()).values()) > 1_000
    scenes = to_slow(items.scenes)
    expected = [
        slow.answer(scenes[picture], KIND_NAMES[kind], a, b, strict)
        for picture, kind, a, b in numbers_of(items)
    ]
    assert items.answers.tolist() == expected


@pytest.mark.parametrize("strict", [True, False])
def test_answers_equal_those_of_slow_loops_for_objects_on_a_grid(
    grid: list[slow.Scene], strict: bool
) -> None:
    asked = [(i, *numbers) for i in range(len(grid)) for numbers in ASKABLE]
    picture, *questions = np.array(asked).T
    answers = answer(from_slow(grid), picture, Questions(*questions), strict)
    expected = [slow.answer(grid[i], KIND_NAMES[kind], a, b, strict) for i, kind, a, b in asked]
    assert answers.tolist() == expected


def test_the_grid_contains_ties_right_angles_and_objects_in_line(grid: list[slow.Scene]) -> None:
    num_ties = num_right = num_flat = num_upright = 0
    for centers, _ in grid:
        from_red = sorted(slow.squared_distance(centers[0], center) for center in centers[1:])
        num_ties += from_red[0] == from_red[1]
        angle = slow.largest_angle(*centers[:3])
        num_right += abs(angle - 90) < 1e-6
        num_flat += angle > 179.99
        num_upright += centers[0][0] == centers[1][0]
    assert min(num_ties, num_right, num_upright) > 20
    assert num_flat > 5


def test_the_integer_rule_for_obtuse_triangles_agrees_with_angles() -> None:
    rng = random.Random(0)
    num_obtuse = 0
    for _ in range(5_000):
        a, b, c = ((rng.randint(5, 69), rng.randint(5, 69)) for _ in range(3))
        if len({a, b, c}) < 3:
            continue
        angle = slow.largest_angle(a, b, c)
        if abs(angle - 90) < 1e-3 or angle > 180 - 1e-3:
            continue
        assert slow.is_obtuse(a, b, c) == (angle > 90)
        num_obtuse += angle > 90
    assert 2_500 < num_obtuse < 4_500


@pytest.mark.parametrize("subtype", ["left", "top"])
@pytest.mark.parametrize(("position", "expected"), [(5, "yes"), (37, "yes"), (38, "no")])
def test_the_middle_is_between_37_and_38(subtype: str, position: int, expected: str) -> None:
    for across in (5, 69):
        center = (position, across) if subtype == "left" else (across, position)
        assert ask(subtype, [(50, 50)] * 4 + [center] + [(20, 20)], a=GRAY) == expected


@pytest.mark.parametrize("squares", [(), (YELLOW,), (RED, GREEN, BLUE, ORANGE, GRAY)])
def test_shape_is_that_of_the_object_itself(squares: tuple[int, ...]) -> None:
    centers = [(5 + 12 * i, 40) for i in range(6)]
    for color in range(6):
        expected = "square" if color in squares else "circle"
        assert ask("/shape", centers, a=color, squares=squares) == expected


def test_ties_in_distance_go_to_the_first_color() -> None:
    middle, left, right = (37, 37), (5, 37), (69, 37)
    below, beside, above = (37, 47), (47, 37), (37, 27)
    centers = [middle, left, right, below, beside, above]
    assert ask("furthest", centers, squares=(GREEN,)) == "square"
    assert ask("furthest", centers, squares=(RED, BLUE, ORANGE, GRAY, YELLOW)) == "circle"
    assert ask("closest", centers, squares=(ORANGE,)) == "square"
    assert ask("closest", centers, squares=(RED, GREEN, BLUE, GRAY, YELLOW)) == "circle"
    backward = centers[::-1]  # the object asked about comes last
    assert ask("furthest", backward, a=YELLOW, squares=(ORANGE,)) == "square"
    assert ask("furthest", backward, a=YELLOW, squares=(GRAY,)) == "circle"
    assert ask("closest", backward, a=YELLOW, squares=(RED,)) == "square"
    assert ask("closest", backward, a=YELLOW, squares=(GREEN, BLUE, YELLOW)) == "circle"


@pytest.mark.parametrize(
    ("nearest", "loose"),
    [((35, 15), "square"), ((15, 35), "square"), ((36, 11), "circle"), ((15, 5), "circle")],
)
def test_an_object_is_its_own_neighbor_only_under_the_loose_rule(
    nearest: Point, loose: str
) -> None:
    """The squared distances are 1000, 1000, 997 and 100; the source uses 999 for itself."""
    away = [(69, 69), (69, 50), (50, 69), (60, 60)]
    for a in (RED, YELLOW):
        centers = [(5, 5), nearest, *away] if a == RED else [*away, nearest, (5, 5)]
        assert ask("closest", centers, a=a, squares=(a,), strict=True) == "circle"
        assert ask("closest", centers, a=a, squares=(a,), strict=False) == loose


def test_the_furthest_object_is_never_the_object_itself() -> None:
    centers = [(5, 5), (15, 5), (5, 15), (15, 15), (25, 5), (5, 26)]
    for strict in (True, False):
        assert ask("furthest", centers, squares=(YELLOW,), strict=strict) == "square"
        assert ask("furthest", centers, squares=(RED,), strict=strict) == "circle"


@pytest.mark.parametrize(
    ("squares", "expected"),
    [((GRAY,), "1"), ((GRAY, RED), "2"), ((RED,), "5"), ((), "6"), (tuple(range(6)), "6")],
)
def test_a_count_of_shapes_includes_the_object_itself(
    squares: tuple[int, ...], expected: str
) -> None:
    centers = [(5 + 12 * i, 40) for i in range(6)]
    assert ask("count", centers, a=GRAY, squares=squares) == expected


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([(9, 25), (41, 25), (25, 9), (25, 41)], "1"),
        ([(10, 40), (41, 25), (25, 9), (25, 41)], "2"),
        ([(10, 25), (40, 25), (25, 9), (60, 60)], "3"),
        ([(25, 10), (25, 40), (25, 25), (60, 60)], "4"),
        ([(10, 40), (40, 10), (25, 25), (25, 40)], "5"),
    ],
)
def test_the_box_includes_its_border(others: list[Point], expected: str) -> None:
    for a, b in (((10, 10), (40, 40)), ((40, 10), (10, 40))):
        assert ask("box", [a, b, *others], a=RED, b=GREEN) == expected
        assert ask("box", [a, b, *others], a=GREEN, b=RED) == expected


def test_the_box_of_two_objects_in_a_row_is_the_line_between_them() -> None:
    others = [(25, 30), (10, 31), (45, 30), (25, 29)]
    assert ask("box", [(10, 30), (40, 30), *others], a=RED, b=GREEN) == "2"


@pytest.mark.parametrize(
    ("a", "b", "c", "expected"),
    [
        ((5, 20), (15, 20), (60, 32), "yes"),
        ((5, 20), (15, 20), (60, 33), "no"),
        ((5, 20), (15, 20), (60, 8), "yes"),
        ((5, 20), (15, 20), (60, 7), "no"),
        ((5, 5), (15, 25), (30, 66), "yes"),  # at column 30 the line is in row 55
        ((5, 5), (15, 25), (30, 68), "no"),  # although it is less than 6 away
        # 1e-10 tilts the line, so the order of A and B matters at the edge of the band.
        ((5, 5), (15, 15), (40, 52), "no"),
        ((15, 15), (5, 5), (40, 52), "yes"),
        # Same column: the line is so steep that only A is on it.
        ((30, 10), (30, 60), (30, 21), "yes"),
        ((30, 10), (30, 60), (30, 40), "no"),
        ((30, 60), (30, 10), (30, 49), "yes"),
        ((30, 60), (30, 10), (30, 40), "no"),
        ((30, 10), (30, 60), (31, 35), "no"),
    ],
)
def test_the_band_around_the_line_is_measured_vertically(
    a: Point, b: Point, c: Point, expected: str
) -> None:
    assert ask("line", [a, b, c, c, c, c], a=RED, b=GREEN) == expected


@pytest.mark.parametrize("color", [GREEN, BLUE, GRAY, YELLOW])
def test_any_other_object_may_be_near_the_line(color: int) -> None:
    centers = [(5, 20), (60, 60), (60, 60), (15, 20), (60, 60), (60, 60)]
    assert ask("line", centers, a=RED, b=ORANGE) == "no"  # A and B do not count
    centers[color] = (60, 32)
    assert ask("line", centers, a=RED, b=ORANGE) == "yes"


@pytest.mark.parametrize(
    ("c", "is_counted"),
    [
        ((10, 50), True),  # right at A
        ((60, 50), True),  # right at B
        ((20, 30), True),  # right at C
        ((20, 29), True),
        ((20, 31), False),
        ((9, 50), True),
        ((11, 50), False),
        ((35, 60), False),
        ((69, 10), False),  # in line, beyond B
        ((35, 10), False),  # in line, between A and B
        ((5, 10), False),  # in line, before A
        ((35, 11), True),  # almost in line
        ((69, 11), True),
    ],
)
def test_right_and_obtuse_triangles_count_and_flat_ones_do_not(c: Point, is_counted: bool) -> None:
    acute, obtuse = (36, 65), (5, 15)
    for a, b in ((RED, GREEN), (GREEN, RED)):
        centers = [(10, 10), (60, 10), acute, c, obtuse, acute]
        assert ask("obtuse", centers, a=a, b=b) == str(2 + is_counted)
    assert ask("obtuse", [(5, 5), (69, 68), (37, 36), *[(37, 37)] * 3], a=RED, b=GREEN) == "5"
    assert ask("obtuse", [(5, 5), (69, 69), *[(37, 37)] * 4], a=RED, b=GREEN) == "1"


def test_only_answers_about_right_and_flat_triples_differ_from_those_of_the_source(
    many: Items,
) -> None:
    items = of_types(first_pictures(many, 4_000), ("ternary",))
    scenes, asked, different = to_slow(items.scenes), Counter(), Counter()
    faults: dict[int, list[bool]] = {90: [], 180: []}
    for (i, number, a, b), ours in zip(numbers_of(items), items.answers.tolist(), strict=True):
        theirs = slow.ternary_answer_of_the_source(scenes[i], KIND_NAMES[number], a, b)
        asked[number], different[number] = asked[number] + 1, different[number] + (theirs != ours)
        first, second = scenes[i].centers[a], scenes[i].centers[b]
        for third in set(scenes[i].centers) - {first, second} if number == 8 else ():
            triple = first, second, third
            is_faulty = slow.is_obtuse_in_the_source(*triple) != slow.is_obtuse(*triple)
            angle = slow.largest_angle(*triple)
            kind = next((kind for kind in faults if abs(angle - kind) < 1e-4), None)
            assert kind or not is_faulty
            if kind:
                faults[kind].append(is_faulty)
    assert [different[kind] > 0 for kind in (6, 7, 8)] == [False, False, True]
    assert different[8] / asked[8] == pytest.approx(0.0031, abs=0.0015)  # three standard errors
    assert different[8] / asked.total() == pytest.approx(0.0010, abs=0.0005)
    for (
        is_faulty
    ) in faults.values():  # right triangles that the source misses, flat ones it counts
        assert sum(is_faulty) / len(is_faulty) == pytest.approx(1 / 6, abs=0.15)


# Statistics


def tolerance(share: float, n: int, measured: int, rounding: float = 0.005) -> float:
    """Return `rounding` plus three standard errors of the difference between two samples."""
    return rounding + 3 * math.sqrt(share * (1 - share) * (1 / n + 1 / measured))


BINOMIAL = [math.comb(5, others) / 32 for others in range(6)]


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("non-relational/shape", {"square": 1 / 2, "circle": 1 / 2}),
        ("non-relational/left", {"yes": 33 / 65, "no": 32 / 65}),
        ("non-relational/top", {"yes": 33 / 65, "no": 32 / 65}),
        ("binary/closest", {"square": 1 / 2, "circle": 1 / 2}),
        ("binary/furthest", {"square": 1 / 2, "circle": 1 / 2}),
        ("binary/count", {str(1 + others): BINOMIAL[others] for others in range(6)}),
        ("ternary/box", {"1": 0.69, "2": 0.21, "3": 0.07, "4": 0.02, "5": 0.01}),
        ("ternary/line", {"yes": 0.5, "no": 0.5}),
        ("ternary/obtuse", {"1": 0.01, "2": 0.08, "3": 0.28, "4": 0.41, "5": 0.21}),
    ],
)
def test_answers_have_their_published_shares(
    many: Items, name: str, shares: dict[str, float]
) -> None:
    answers = many.answers[many.questions.kind == KIND_NAMES.index(name)]
    counts = Counter(CLASS_NAMES[index] for index in answers.tolist())
    assert set(counts) == set(shares)
    for word, share in shares.items():
        if name.startswith("ternary"):
            width = tolerance(share, len(answers), MEASURED * 10 // 3)
        else:  # known exactly; all questions about a picture count as one sample
            width = 3 * math.sqrt(share * (1 - share) / len(many.scenes.centers))
        assert counts[word] / len(answers) == pytest.approx(share, abs=width), word


def test_best_guesses_are_right_as_often_as_published(many: Items) -> None:
    guesses = best_guesses(many)
    kind, answers = many.questions.kind, many.answers
    for type_, share in (("non-relational", 0.512), ("binary", 0.442), ("ternary", 0.536)):
        is_asked = np.array([KINDS[index].type == type_ for index in range(9)])[kind]
        is_right = guesses[kind[is_asked]] == answers[is_asked]
        width = tolerance(share, is_asked.sum(), MEASURED * 10, rounding=0.0005)
        assert is_right.mean() == pytest.approx(share, abs=width), type_
        if type_ == "non-relational":
            prior = (1 / 2 + 33 / 65 + 33 / 65) / 3
            width = 4 * math.sqrt(0.25 / (6 * 9800))  # an object is one sample
            assert is_right.mean() == pytest.approx(prior, abs=width)


def test_the_best_guess_is_the_most_frequent_answer() -> None:
    config = SortOfClevrConfig(num_train=50, question_types=TYPES, seed=2)
    items = generate_items(config, TRAIN)
    guesses = best_guesses(items)
    for kind in range(9):
        counts = Counter(items.answers[items.questions.kind == kind].tolist())
        assert counts[guesses[kind]] == max(counts.values())


def test_objects_are_inside_the_picture_and_at_least_ten_pixels_apart(many: Items) -> None:
    centers = many.scenes.centers
    assert centers.shape == (9800, 6, 2)
    assert centers.min(axis=(0, 1)).tolist() == [5, 5]
    assert centers.max(axis=(0, 1)).tolist() == [69, 69]
    pairs = [centers[:, i] - centers[:, j] for i, j in combinations(range(6), 2)]
    assert min((pair**2).sum(axis=-1).min() for pair in pairs) == 100
    is_overlapping = np.any([abs(pair).max(axis=-1) <= 10 for pair in pairs], axis=0)
    width = tolerance(0.36, len(centers), MEASURED)
    assert is_overlapping.mean() == pytest.approx(0.36, abs=width)


def test_positions_and_shapes_are_uniform(many: Items) -> None:
    num_pictures = len(many.scenes.centers)
    for axis in (0, 1):  # red is placed first, when no position is taken yet
        counts = np.bincount(many.scenes.centers[:, RED, axis], minlength=70)[5:]
        assert_uniform(counts, num_pictures)
    patterns = many.scenes.is_square @ (1 << np.arange(6))
    assert_uniform(np.bincount(patterns, minlength=64), num_pictures)


def assert_uniform(counts: np.ndarray, n: int) -> None:
    """Fail if a count is more than five standard errors from the mean."""
    assert counts.sum() == n
    share = 1 / len(counts)
    assert abs(counts - n * share).max() < 5 * math.sqrt(n * share * (1 - share))


def test_scenes_equal_those_of_a_slow_twin() -> None:
    """The twin places the objects one by one with the same random draws."""
    items = generate_items(SortOfClevrConfig(seed=5, num_test=2 * BLOCK), TEST)
    for block in (0, 1):
        seeds = np.random.SeedSequence((5, TEST, block)).spawn(2)
        rng = np.random.default_rng(seeds[0])
        centers: list[list[Point]] = [[] for _ in range(BLOCK)]
        for color in range(6):
            pending = [scene for scene in centers if len(scene) == color]
            while pending:
                draws = rng.integers(5, 70, size=(len(pending), 2)).tolist()
                for scene, (x, y) in zip(pending, draws, strict=True):
                    if all((x - i) ** 2 + (y - j) ** 2 >= 100 for i, j in scene):
                        scene.append((x, y))
                pending = [scene for scene in pending if len(scene) == color]
        is_square = (rng.integers(2, size=(BLOCK, 6)) == 1).tolist()
        part = slice(block * BLOCK, (block + 1) * BLOCK)
        assert items.scenes.centers[part].tolist() == [[[*p] for p in scene] for scene in centers]
        assert items.scenes.is_square[part].tolist() == is_square


def test_questions_are_uniform_in_subtype_and_colors(many: Items) -> None:
    asked = Counter(numbers[1:] for numbers in numbers_of(many))
    assert set(asked) == set(ASKABLE)  # ternary: never yellow, never the same object twice
    for kinds in ((0, 1, 2), (3, 4, 5), (6, 7, 8)):
        counts = [asked[numbers] for numbers in ASKABLE if numbers[0] in kinds]
        assert_uniform(np.array(counts), 98_000)


def test_questions_are_drawn_independently_of_the_pictures(many: Items) -> None:
    """With one generator for both, a coordinate and a subtype would come from the same draw."""
    coordinates = many.scenes.centers[:BLOCK, RED].reshape(-1)
    subtypes = many.questions.kind[: 2 * BLOCK] % 3
    assert abs(np.corrcoef(coordinates, subtypes)[0, 1]) < 4 / math.sqrt(2 * BLOCK)


def test_every_picture_has_its_questions_in_the_order_of_the_types(many: Items) -> None:
    assert many.picture.tolist() == [picture for picture in range(9800) for _ in range(30)]
    types = many.questions.kind.reshape(-1, 3, 10) // 3
    assert (types == np.arange(3)[:, None]).all()


def test_questions_may_repeat_in_a_picture_but_differ_between_pictures(many: Items) -> None:
    per_picture = np.stack(many.questions, axis=-1).reshape(9800, 30, 3)
    num_distinct = [len(set(map(tuple, picture.tolist()))) for picture in per_picture[:100]]
    assert max(num_distinct) <= 30
    assert min(num_distinct) < 25  # drawn with replacement
    assert len(np.unique(per_picture.reshape(9800, -1), axis=0)) == 9800


def test_an_object_is_its_own_neighbor_in_7_percent_of_questions_under_the_loose_rule() -> None:
    strict, loose = (
        generate_items(
            SortOfClevrConfig(num_train=4_000, question_types=("binary",), strict=strict), TRAIN
        )
        for strict in (True, False)
    )
    scenes = to_slow(strict.scenes)
    num_faults = num_closest = num_changed = 0
    for (i, kind, a, _), right, loose_answer in zip(
        numbers_of(strict), strict.answers.tolist(), loose.answers.tolist(), strict=True
    ):
        if kind != CLOSEST:
            assert right == loose_answer
            continue
        centers, is_square = scenes[i]
        is_faulty = all(
            slow.squared_distance(centers[a], center) > 999
            for c, center in enumerate(centers)
            if c != a
        )
        own = CLASS_NAMES.index("square" if is_square[a] else "circle")
        assert loose_answer == (own if is_faulty else right)
        num_closest, num_faults = num_closest + 1, num_faults + is_faulty
        num_changed += right != loose_answer
    width = tolerance(0.069, num_closest, MEASURED * 10 // 3, rounding=0.0005)
    assert num_faults / num_closest == pytest.approx(0.069, abs=width)
    assert num_changed / num_faults == pytest.approx(0.5, abs=4 * math.sqrt(0.25 / num_faults))


# Determinism


def test_the_same_settings_generate_the_same_data() -> None:
    config = SortOfClevrConfig(num_train=BLOCK + 20, question_types=TYPES)
    assert same(generate_items(config, TRAIN), generate_items(config, TRAIN))


@pytest.mark.parametrize("num_train", [1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 3000])
def test_a_picture_does_not_depend_on_the_number_of_pictures(many: Items, num_train: int) -> None:
    few = generate_items(SortOfClevrConfig(num_train=num_train, question_types=TYPES), TRAIN)
    assert len(few.scenes.centers) == num_train
    assert same(few, first_pictures(many, num_train))


def test_a_test_picture_does_not_depend_on_the_number_of_pictures() -> None:
    few, some = (
        generate_items(SortOfClevrConfig(num_train=3, num_test=num_test), TEST)
        for num_test in (200, BLOCK + 200)
    )
    assert len(few.scenes.centers) == 200
    assert same(few, first_pictures(some, 200))


@pytest.mark.parametrize(
    "types", [chosen for n in (1, 2, 3) for chosen in permutations(TYPES, n)], ids="+".join
)
def test_the_questions_of_a_type_do_not_depend_on_the_other_types(
    many: Items, types: tuple[str, ...]
) -> None:
    config = SortOfClevrConfig(num_train=BLOCK + 20, question_types=types)  # type: ignore[arg-type]
    assert same(generate_items(config, TRAIN), of_types(first_pictures(many, BLOCK + 20), types))


def test_the_number_of_questions_does_not_change_the_pictures() -> None:
    few, some = (
        generate_items(SortOfClevrConfig(num_train=BLOCK + 9, num_questions=n), TRAIN)
        for n in (1, 13)
    )
    assert all(np.array_equal(a, b) for a, b in zip(few.scenes, some.scenes, strict=True))
    for items, n in ((few, 2), (some, 26)):
        assert items.picture.tolist() == [i for i in range(BLOCK + 9) for _ in range(n)]
        assert len(items.answers) == n * (BLOCK + 9)


def test_the_loose_rule_changes_nothing_but_answers() -> None:
    strict, loose = (
        generate_items(SortOfClevrConfig(num_train=300, strict=strict), TRAIN)
        for strict in (True, False)
    )
    assert same(strict, loose._replace(answers=strict.answers))
    is_changed = strict.answers != loose.answers
    assert set(strict.questions.kind[is_changed].tolist()) == {CLOSEST}


def test_splits_seeds_and_blocks_differ(many: Items) -> None:
    others = [
        generate_items(SortOfClevrConfig(num_test=300, question_types=TYPES), TEST),
        generate_items(SortOfClevrConfig(num_train=300, question_types=TYPES, seed=1), TRAIN),
        generate_items(SortOfClevrConfig(num_test=300, question_types=TYPES, seed=1), TEST),
    ]
    seen = [items.scenes.centers[:300] for items in (many, *others)]
    seen.append(many.scenes.centers[BLOCK : BLOCK + 300])
    asked = [items.questions.first[:9000] for items in (many, *others)]
    asked.append(many.questions.first[30 * BLOCK : 30 * BLOCK + 9000])
    for group in (seen, asked):
        assert all((a != b).mean() > 0.7 for a, b in combinations(group, 2))
    pictures = np.concatenate([many.scenes.centers, *(items.scenes.centers for items in others)])
    assert len(np.unique(pictures, axis=0)) == len(pictures)  # none is shared


def test_the_default_numbers_of_pictures_are_those_of_the_source() -> None:
    config = SortOfClevrConfig()
    assert config.strict
    assert config.question_types == ("non-relational", "binary")
    assert config.num_train == 9_800
    items = generate_items(config, TEST)
    assert len(items.scenes.centers) == 200
    assert len(items.answers) == 20 * 200


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_train", 0),
        ("num_test", -1),
        ("num_questions", 0),
        ("question_types", ()),
        ("question_types", ("binary", "ternary", "binary")),
        ("seed", -1),
        ("val_fraction", 1.0),
        ("val_fraction", -0.1),
    ],
)
def test_an_impossible_setting_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"(?s){field}.*{re.escape(str(value))}"):
        SortOfClevrConfig(**{field: value})  # type: ignore[arg-type]
