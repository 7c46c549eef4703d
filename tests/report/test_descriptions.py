"""Charts in words: the description of every kind names its most important values."""

from math import nan

import pytest

from associative_transformer.report.charts import Bars, Boxes, Chart, Heat, Lines, Points, Series
from associative_transformer.report.descriptions import describe

LONG = [f"p{i}" for i in range(40)]
CHARTS: dict[str, tuple[Chart, str]] = {
    "lines": (
        Lines(
            "t",
            "epoch",
            "loss",
            [
                Series("a", [1, 2, 3], [5.0, nan, 2.0]),
                Series("b", [2], [7]),
                Series("c", [1], [nan]),
            ],
        ),
        "Line chart: loss by epoch. a: 5 at 1, 2 at 3, between 2 and 5. b: 7 at 2. c: no values.",
    ),
    "bars": (
        Bars("t", "share, %", ["x", "y"], {"part": [1.5, 2]}),
        "Bar chart: share, %. part: x 1.5, y 2.",
    ),
    "many bars": (
        Bars("t", "share, %", LONG, {"part": list(range(40))}),
        "Bar chart: share, %. part: 40 bars, the largest 39 (p39), the smallest 0 (p0).",
    ),
    "boxes": (
        Boxes("t", "tokens", ["head 1"], [[1, 2, 3.5, 4, 5]], {"uniform": 9}),
        "Box plot: tokens. Medians: head 1 3.5. Compare with: uniform 9.",
    ),
    "heat": (
        Heat("t", "to", "from", ["r", "s"], ["c", "d"], [[1, nan], [4, 2]], 0, 5, unit="%"),
        "Matrix: from by to. 2 rows and 2 columns. Largest value: 4 % (row s, column c); "
        "smallest: 1 % (row r, column c).",
    ),
    "points": (
        Points("t", "x", "y", [0, 2], [-1.5, 3], "note"),
        "Scatter plot of 2 points: y by x. x from 0 to 2; y from -1.5 to 3.",
    ),
}


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_is_described_by_its_values(name: str) -> None:
    chart, words = CHARTS[name]
    assert describe(chart) == words


def test_only_the_first_of_many_lines_are_described() -> None:
    chart = Lines("t", "x", "y", [Series(f"line {i}", [0, 1], [i, i]) for i in range(11)])
    assert "line 7:" in describe(chart) and "line 8:" not in describe(chart)
    assert describe(chart).endswith("And 3 more lines.")
