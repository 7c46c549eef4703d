"""Sort-of-CLEVR one pixel and one question at a time, written from the rules of the source."""

import math
from fractions import Fraction
from typing import NamedTuple

Point = tuple[int, int]

RGB = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 156, 0), (128, 128, 128), (255, 255, 0)]
ANSWERS = ["yes", "no", "square", "circle", "1", "2", "3", "4", "5", "6"]


class Scene(NamedTuple):
    """The center (column, row) of each object, and whether it is a square."""

    centers: list[Point]
    is_square: list[bool]


def pixel(scene: Scene, column: int, row: int) -> tuple[int, int, int]:
    color = (255, 255, 255)
    for (x, y), is_square, rgb in zip(scene.centers, scene.is_square, RGB, strict=True):
        dx, dy = column - x, row - y
        is_hit = max(abs(dx), abs(dy)) <= 5 if is_square else dx * dx + dy * dy <= 25
        if is_hit:
            color = rgb
    return color


def picture(scene: Scene) -> list[list[list[int]]]:
    colors = [[pixel(scene, column, row) for column in range(75)] for row in range(75)]
    return [[[color[channel] for color in line] for line in colors] for channel in range(3)]


def squared_distance(a: Point, b: Point) -> int:
    return (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2


def answer(scene: Scene, kind: str, a: int, b: int, strict: bool) -> int:
    """Answer a question about objects a and b of a scene; b is -1 unless it is ternary."""
    return ANSWERS.index(_answer(scene, kind, a, b, strict))


def _answer(scene: Scene, kind: str, a: int, b: int, strict: bool) -> str:
    shapes = ["square" if is_square else "circle" for is_square in scene.is_square]
    centers = scene.centers
    x, y = centers[a]
    others = [c for c in range(6) if c not in (a, b)]
    match kind:
        case "non-relational/shape":
            return shapes[a]
        case "non-relational/left":
            return "yes" if x < 37.5 else "no"
        case "non-relational/top":
            return "yes" if y < 37.5 else "no"
        case "binary/closest":
            return shapes[closest(centers, a, strict)]
        case "binary/furthest":
            return shapes[furthest(centers, a)]
        case "binary/count":
            return str(1 + sum(shapes[c] == shapes[a] for c in others))
        case "ternary/box":
            return str(1 + sum(is_in_box(centers[a], centers[b], centers[c]) for c in others))
        case "ternary/line":
            is_near = any(is_near_line(centers[a], centers[b], centers[c]) for c in others)
            return "yes" if is_near else "no"
        case "ternary/obtuse":
            return str(1 + sum(is_obtuse(centers[a], centers[b], centers[c]) for c in others))
    raise ValueError(kind)


def closest(centers: list[Point], a: int, strict: bool) -> int:
    """Return the object closest to a; in the source, the distance of a to itself is 999."""
    least, nearest = None, -1
    for c, center in enumerate(centers):
        distance = squared_distance(centers[a], center)
        if c == a:
            if strict:
                continue
            distance = 999
        if least is None or distance < least:
            least, nearest = distance, c
    return nearest


def furthest(centers: list[Point], a: int) -> int:
    greatest, farthest = -1, -1
    for c, center in enumerate(centers):
        distance = squared_distance(centers[a], center)
        if c != a and distance > greatest:
            greatest, farthest = distance, c
    return farthest


def is_in_box(a: Point, b: Point, c: Point) -> bool:
    is_between = [min(a[i], b[i]) <= c[i] <= max(a[i], b[i]) for i in (0, 1)]
    return is_between[0] and is_between[1]


def is_near_line(a: Point, b: Point, c: Point) -> bool:
    slope = (b[1] - a[1]) / (b[0] - a[0] + 1e-10)
    intercept = a[1] - slope * a[0]
    return abs(c[1] - (slope * c[0] + intercept)) <= 12


def is_obtuse(a: Point, b: Point, c: Point) -> bool:
    """Return whether the largest angle, opposite the longest side, is in [90, 180) degrees."""
    *short, longest = sorted(
        [squared_distance(a, b), squared_distance(b, c), squared_distance(c, a)]
    )
    excess = longest - sum(short)  # = -2 * short[0] ** 0.5 * short[1] ** 0.5 * cosine
    if excess < 0:
        return False
    return Fraction(excess**2, 4 * short[0] * short[1]) < 1


def largest_angle(a: Point, b: Point, c: Point) -> float:
    """Return the largest angle in degrees, by the law of cosines."""
    angles = []
    for p, q, r in ((a, b, c), (b, c, a), (c, a, b)):
        u, v, w = math.dist(p, q), math.dist(p, r), math.dist(q, r)
        cosine = (u * u + v * v - w * w) / (2 * u * v)
        angles.append(math.degrees(math.acos(max(-1.0, min(1.0, cosine)))))
    return max(angles)


def ternary_answer_of_the_source(scene: Scene, kind: str, a: int, b: int) -> int:
    """Answer a ternary question with the floating-point formulas of the source."""
    (ax, ay), (bx, by) = scene.centers[a], scene.centers[b]
    others = [scene.centers[c] for c in range(6) if c not in (a, b)]
    if kind == "ternary/box":
        across = [min(ax, bx) <= x <= max(ax, bx) for x, _ in others]
        upright = [min(ay, by) <= y <= max(ay, by) for _, y in others]
        return 4 + sum(i and j for i, j in zip(across, upright, strict=True))
    if kind == "ternary/line":
        m = (by - ay) / ((bx - ax) + 1e-10)
        lines = [(m * x) + (ay - (m * ax)) for x, _ in others]
        near = [y - 12 <= other[1] <= y + 12 for y, other in zip(lines, others, strict=True)]
        return 0 if any(near) else 1
    return 4 + sum(is_obtuse_in_the_source((ax, ay), (bx, by), other) for other in others)


def is_obtuse_in_the_source(a: Point, b: Point, c: Point) -> bool:
    """Compare the largest angle with 90 and 180 degrees, in floating-point numbers.

    An angle whose cosine is rounded to more than 1 is NaN there. Python's `max` returns NaN if it
    comes first, and skips it otherwise.
    """
    to_a, to_b, base = (math.sqrt(squared_distance(*pair)) for pair in ((b, c), (c, a), (a, b)))
    angles = []
    for u, v, w in ((to_b, base, to_a), (to_a, base, to_b), (to_a, to_b, base)):
        cosine = (u * u + v * v - w * w) / (2 * u * v)
        angles.append(math.degrees(math.acos(cosine)) if abs(cosine) <= 1 else math.nan)
    return 90 <= max(angles) < 180
