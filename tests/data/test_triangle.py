"""Triangle compared with a slow twin that generates one image at a time, and its statistics."""

import math
from itertools import permutations

import numpy as np
import pytest

from associative_transformer.data.triangle import (
    BLOCK,
    EQUILATERAL,
    IMAGE_SIZE,
    OTHER,
    TEST,
    TRAIN,
    TriangleConfig,
    Triangles,
    _is_accepted,
    draw_points,
    generate_triangles,
    third_vertex,
)


@pytest.fixture(scope="module")
def many() -> Triangles:
    return generate_triangles(TriangleConfig(), TRAIN, 20 * BLOCK)


def naive_third_vertex(x1: int, y1: int, x2: int, y2: int) -> tuple[int, int]:
    dx, dy = x2 - x1, y2 - y1
    x3 = x1 + dx / 2 + math.sqrt(3) / 2 * dy
    y3 = y1 - math.sqrt(3) / 2 * dx + dy / 2
    return math.trunc(x3), math.trunc(y3)


def vertices_of_the_source(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Rotate by 60 degrees as the source does: its cosine is 0.5000000000000001."""
    (x, y), (dx, dy) = first.T, (second - first).T
    alpha = 60.0 / 180 * math.pi
    x3 = x + math.cos(alpha) * dx + math.sin(alpha) * dy
    y3 = y + math.sin(-alpha) * dx + math.cos(alpha) * dy
    return np.stack([x3, y3], axis=-1).astype(int)  # toward zero, as int()


def naive_image(points: list[tuple[int, int]]) -> np.ndarray:
    image = np.zeros((64, 64), np.uint8)
    for row in range(64):
        for column in range(64):
            if any(abs(column - x) + abs(row - y) <= 2 for x, y in points):
                image[row, column] = 255
    return image


def naive_block(
    rng: np.random.Generator, num_images: int
) -> tuple[list[np.ndarray], list[int], list[list[tuple[int, int]]]]:
    """Generate a block item by item with the same random draws."""
    labels = rng.integers(2, size=BLOCK).tolist()
    vertices: list[list[tuple[int, int]]] = [[] for _ in range(BLOCK)]
    pending = list(range(BLOCK))
    while pending:
        draws = rng.integers(1, 64, size=(len(pending), 3, 2)).tolist()
        for item, (first, second, third) in zip(pending, draws, strict=True):
            if labels[item] == 0:
                third = naive_third_vertex(*first, *second)
            if all(1 <= coordinate <= 63 for coordinate in third):
                vertices[item] = [tuple(first), tuple(second), tuple(third)]
        pending = [item for item in pending if not vertices[item]]
    pairs = rng.integers(-1, 2, size=(BLOCK, 3, 4, 2)).tolist()
    images = []
    for item in range(num_images):
        points = []
        for (x, y), offsets in zip(vertices[item], pairs[item], strict=True):
            for cx, cy in offsets:
                points += [(x + cx, y + cy), (x - cx, y - cy)]
        images.append(naive_image(points))
    return images, labels, vertices


def sides(vertices: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vertices - np.roll(vertices, 1, axis=1), axis=-1)


@pytest.mark.parametrize("split", [TRAIN, TEST])
def test_items_equal_those_of_a_slow_twin(split: int) -> None:
    generated = generate_triangles(TriangleConfig(seed=5), split, BLOCK + 12)
    for block, start, num_images in ((0, 0, 12), (1, BLOCK, 12)):
        rng = np.random.default_rng((5, split, block))
        images, labels, vertices = naive_block(rng, num_images)
        part = slice(start, start + num_images)
        assert np.array_equal(generated.images[part], images)
        assert generated.labels[part].tolist() == labels[:num_images]
        assert np.array_equal(generated.vertices[part], vertices[:num_images])


def test_a_disc_is_a_diamond_of_13_pixels_clipped_at_the_border() -> None:
    points = [[(10, 20)], [(0, 0)], [(64, 64)], [(64, 0)], [(63, 5)]]
    images = draw_points(np.array(points))
    assert [int((image > 0).sum()) for image in images] == [13, 6, 1, 3, 9]
    assert images[0, 20, 8:13].tolist() == [255] * 5  # the row is the second coordinate
    for image, point in zip(images, points, strict=True):
        assert np.array_equal(image, naive_image(point))


def test_the_third_vertex_truncates_toward_zero_after_the_sum() -> None:
    pairs = np.random.default_rng(1).integers(1, 64, size=(2000, 2, 2))
    third = third_vertex(pairs[:, 0], pairs[:, 1])
    for (first, second), ours in zip(pairs.tolist(), third.tolist(), strict=True):
        assert naive_third_vertex(*first, *second) == tuple(ours)
    assert (third < 0).any()  # for which truncation and floor differ


def fits(vertices: np.ndarray) -> np.ndarray:
    return ((vertices >= 1) & (vertices <= 63)).all(axis=1)


def test_the_third_vertex_of_the_source_may_be_one_pixel_less_if_it_is_a_whole_number() -> None:
    span = np.arange(1, 64)
    x, y, other = (axis.ravel() for axis in np.meshgrid(span, span, span))
    is_new = other != y  # pairs of equal vertices are already among those in a row
    in_a_row = np.stack([x, y, other, y], axis=1)
    in_a_column = np.stack([x, y, x, other], axis=1)[is_new]
    first, second = np.split(np.concatenate([in_a_row, in_a_column]), 2, axis=1)
    ours, theirs = third_vertex(first, second), vertices_of_the_source(first, second)
    less, move = ours - theirs, second - first
    is_less = less != 0
    assert (less[is_less] == 1).all()
    assert (move[is_less] < 0).all() and (move[is_less] % 2 == 0).all()
    assert not move[is_less[:, ::-1]].any()
    assert np.array_equal(fits(ours), fits(theirs))

    pairs = np.random.default_rng(3).integers(1, 64, size=(100_000, 2, 2))
    is_slanted = (pairs[:, 0] != pairs[:, 1]).all(axis=1)
    first, second = pairs[is_slanted, 0], pairs[is_slanted, 1]  # not a whole number: no difference
    assert np.array_equal(third_vertex(first, second), vertices_of_the_source(first, second))

    is_different, share = is_less.any(axis=1), fits(third_vertex(pairs[:, 0], pairs[:, 1])).mean()
    assert is_different.sum() / 63**4 == pytest.approx(0.0024, abs=0.0001)
    of_fitting = (is_different & fits(ours)).sum() / (share * 63**4)
    assert of_fitting == pytest.approx(0.0022, abs=0.0001)


def test_more_than_half_of_the_equilateral_triangles_fit_into_the_image() -> None:
    pairs = np.random.default_rng(2).integers(1, 64, size=(200_000, 2, 2))
    third = third_vertex(pairs[:, 0], pairs[:, 1])
    fits = ((third >= 1) & (third <= 63)).all(axis=1)
    assert fits.mean() == pytest.approx(0.568, abs=0.005)


def test_classes_are_balanced_and_every_vertex_is_inside_the_image(many: Triangles) -> None:
    assert many.labels.mean() == pytest.approx(0.5, abs=0.015)
    assert many.vertices.min() == 1
    assert many.vertices.max() == 63


def test_random_triangles_rarely_obey_the_rule_of_equilateral_ones(
    many: Triangles,
) -> None:
    obeys = np.zeros(len(many.labels), bool)
    for i, j, k in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        third = third_vertex(many.vertices[:, i], many.vertices[:, j])
        obeys |= (third == many.vertices[:, k]).all(axis=1)
    assert obeys[many.labels == EQUILATERAL].all()
    assert 0 < obeys[many.labels == OTHER].mean() < 0.002


def test_the_longest_side_alone_classifies_three_quarters_correctly(many: Triangles) -> None:
    longest = sides(many.vertices).max(axis=1)
    accuracy = [((longest > at) == (many.labels == OTHER)).mean() for at in range(20, 60)]
    assert max(accuracy) == pytest.approx(0.738, abs=0.015)


def test_the_exact_ratio_of_the_sides_classifies_almost_all_correctly(many: Triangles) -> None:
    lengths = sides(many.vertices)
    ratio = lengths.max(axis=1) / np.maximum(lengths.min(axis=1), 1e-9)
    bounds = np.linspace(1.0, 1.5, 501)
    accuracy = [((ratio > bound) == (many.labels == OTHER)).mean() for bound in bounds]
    assert max(accuracy) == pytest.approx(0.977, abs=0.005)


def test_an_item_depends_only_on_seed_split_and_index() -> None:
    few = generate_triangles(TriangleConfig(num_train=10), TRAIN, 10)
    some = generate_triangles(TriangleConfig(num_train=99), TRAIN, BLOCK + 1)
    for a, b in zip(few, some, strict=True):
        assert np.array_equal(a, b[:10])
    for other in (
        generate_triangles(TriangleConfig(), TEST, 10),
        generate_triangles(TriangleConfig(seed=1), TRAIN, 10),
    ):
        assert not np.array_equal(few.vertices, other.vertices)
    again = generate_triangles(TriangleConfig(), TRAIN, BLOCK + 1)
    assert all(np.array_equal(a, b) for a, b in zip(some, again, strict=True))
    assert not np.array_equal(some.vertices[0], some.vertices[BLOCK])


def test_near_equilateral_triangles_are_redrawn_on_request() -> None:
    for is_rejecting in (False, True):
        config = TriangleConfig(reject_near_equilateral=is_rejecting)
        generated = generate_triangles(config, TRAIN, 4 * BLOCK)
        length = sides(generated.vertices)
        is_near = length.max(axis=1) <= 1.1 * length.min(axis=1)
        assert is_near[generated.labels == OTHER].any() == (not is_rejecting)
        assert (generated.labels == EQUILATERAL).mean() == pytest.approx(0.5, abs=0.03)


def test_a_random_triangle_that_is_equilateral_but_for_rounding_is_redrawn() -> None:
    bent, tall = [(10, 10), (12, 10), (11, 8)], [(10, 10), (12, 10), (11, 30)]
    assert naive_third_vertex(10, 10, 12, 10) == (11, 8)
    assert sides(np.array([bent])).max() > 1.1 * sides(np.array([bent])).min()
    drawn = np.array([[bent[i] for i in order] for order in permutations(range(3))] + [tall] * 2)
    for is_rejecting in (False, True):
        config = TriangleConfig(reject_near_equilateral=is_rejecting)
        random = _is_accepted(config, drawn, is_equilateral=np.zeros(8, bool))
        assert random.tolist() == [not is_rejecting] * 6 + [True] * 2
        assert _is_accepted(config, drawn, is_equilateral=np.ones(8, bool)).all()


def test_no_side_is_shorter_than_the_minimum() -> None:
    generated = generate_triangles(TriangleConfig(min_side=20.0), TRAIN, BLOCK)
    assert sides(generated.vertices).min() >= 20
    assert sides(generate_triangles(TriangleConfig(), TRAIN, BLOCK).vertices).min() < 5


def test_images_are_black_and_white() -> None:
    images = generate_triangles(TriangleConfig(), TRAIN, 50).images
    assert images.shape == (50, IMAGE_SIZE, IMAGE_SIZE)
    assert set(np.unique(images)) == {0, 255}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_train", 0),
        ("num_test", -1),
        ("channels", 0),
        ("seed", -1),
        ("val_fraction", 1.0),
        ("val_fraction", -0.1),
        ("min_side", -1.0),
        ("min_side", 50.0),
    ],
)
def test_an_impossible_setting_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"(?s){field}.*{value}"):
        TriangleConfig(**{field: value})  # type: ignore[arg-type]
