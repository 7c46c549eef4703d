"""The contents of a page without markup: charts, tables, pictures and sections of them.

Every chart comes with a table of its values, except for large matrices and points without labels,
which are described by their `note`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import Literal

Number = float | int
MAX_COLUMNS = 40  # of a matrix that is also written as a table


@dataclass(frozen=True)
class Grid:
    """A table of text whose first column names the rows."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    is_folded: bool = False  # shown only on request


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str
    x: Sequence[Number]
    y: Sequence[Number]
    spread: Sequence[Number] = ()  # half the width of a band around the line
    is_dashed: bool = False
    hue: int | None = None  # index of its color; None: its position among the lines


@dataclass(frozen=True)
class Lines:
    """Lines with a common x axis."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    note: str = ""
    is_log: bool = False  # whether the x axis is logarithmic
    start: Number | None = None  # of the y axis; None: the smallest value
    kind: Literal["lines"] = "lines"

    @property
    def table(self) -> Grid:
        """The values, with one row for each x."""
        values = [dict(zip(line.x, line.y, strict=True)) for line in self.series]
        rows = [
            [format_number(x), *(format_number(by_x.get(x)) for by_x in values)]
            for x in sorted(set().union(*values))
        ]
        return Grid([self.x_label, *(line.name for line in self.series)], rows)


@dataclass(frozen=True)
class Bars:
    """Horizontal bars, one for each label, each of which may be stacked from several parts."""

    title: str
    x_label: str
    labels: Sequence[str]
    parts: Mapping[str, Sequence[Number]]  # one value for each label
    note: str = ""
    low: Sequence[Number] = ()  # interval around the value; only with a single part
    high: Sequence[Number] = ()
    marks: Mapping[str, Sequence[Number]] = field(default_factory=dict)  # strokes across the bars
    end: Number | None = None  # of the axis; None: the largest value
    hues: Sequence[int] = ()  # indices of the colors of the labels; only with a single part
    kind: Literal["bars"] = "bars"

    @property
    def table(self) -> Grid:
        """The values, with one row for each label."""
        columns = {**self.parts}
        if self.low:
            columns |= {"from": self.low, "to": self.high}
        return _tabulate(self.labels, columns | {**self.marks})


@dataclass(frozen=True)
class Boxes:
    """Distributions: a line from 5 to 95 %, a box from 25 to 75 %, a stroke at the median."""

    title: str
    x_label: str
    labels: Sequence[str]
    quantiles: Sequence[Sequence[Number]]  # 5, 25, 50, 75 and 95 % for each label
    bounds: Mapping[str, Number]  # named values to compare with
    note: str = ""
    kind: Literal["boxes"] = "boxes"

    @property
    def table(self) -> Grid:
        """The quantiles, with one row for each label, followed by the bounds."""
        shares = ("5 %", "25 %", "median", "75 %", "95 %")
        columns = dict(zip(shares, zip(*self.quantiles, strict=True), strict=True))
        bounds = [
            [name, "", "", format_number(value), "", ""] for name, value in self.bounds.items()
        ]
        grid = _tabulate(self.labels, columns)
        return Grid(grid.columns, [*grid.rows, *bounds])


@dataclass(frozen=True)
class Heat:
    """A matrix drawn in colors."""

    title: str
    x_label: str
    y_label: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[Number]]
    low: Number
    high: Number
    note: str = ""
    colors: Literal["viridis", "diverging"] = "viridis"
    unit: str = ""
    kind: Literal["heat"] = "heat"

    @property
    def table(self) -> Grid | None:
        """The matrix; None if it has too many columns for a table."""
        if len(self.columns) > MAX_COLUMNS:
            return None
        rows = [
            [name, *map(format_number, row)]
            for name, row in zip(self.rows, self.values, strict=True)
        ]
        return Grid([f"{self.y_label} \\ {self.x_label}", *self.columns], rows)


@dataclass(frozen=True)
class Points:
    """Points in a plane, either labeled or colored by group and shaded within each group."""

    title: str
    x_label: str
    y_label: str
    x: Sequence[Number]
    y: Sequence[Number]
    note: str
    labels: Sequence[str] = ()
    groups: Sequence[int] = ()
    shades: Sequence[Number] = ()  # from 0 to 1
    kind: Literal["points"] = "points"

    @property
    def table(self) -> Grid | None:
        """The coordinates, with one row for each label; None without labels."""
        if not self.labels:
            return None
        return _tabulate(self.labels, {self.x_label: self.x, self.y_label: self.y})


Chart = Lines | Bars | Boxes | Heat | Points


@dataclass(frozen=True)
class Figure:
    """A chart that is shown if certain options are selected."""

    chart: Chart
    shown_if: Mapping[str, int] = field(default_factory=dict)  # choice -> its selected option


@dataclass(frozen=True)
class Choice:
    """A control in a section that selects one of several options."""

    name: str
    title: str
    options: Sequence[str]
    start: int = 0  # index of the option that is selected initially
    is_slider: bool = False


@dataclass(frozen=True)
class Picture:
    """An image with a text below it."""

    source: str  # a data URL
    text: str


@dataclass(frozen=True)
class Section:
    """A part of a page; it has only a `note` if the run has nothing to show."""

    name: str
    title: str
    note: str = ""
    figures: Sequence[Figure] = ()
    choices: Sequence[Choice] = ()
    tables: Sequence[Grid] = ()
    pictures: Sequence[Picture] = ()
    widget: Literal["none", "priors", "images"] = "none"  # drawn by the script from its own data


def format_number(value: Number | None) -> str:
    """Return an integer in full, a float with four significant digits, None or nan as a dash."""
    if value is None or isnan(value):
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _tabulate(labels: Sequence[str], columns: Mapping[str, Sequence[Number]]) -> Grid:
    values = zip(*columns.values(), strict=True)
    rows = [[label, *map(format_number, row)] for label, row in zip(labels, values, strict=True)]
    return Grid(["", *columns], rows)
