"""What a page shows, free of markup: charts, tables, pictures and the sections that hold them.

A chart has a table that says the same in text, but for clouds of points and large matrices, whose
`note` does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import Literal

Number = float | int
MAX_COLUMNS = 40  # of the table of a matrix


@dataclass(frozen=True)
class Grid:
    """A table of text; its first column names the rows."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str
    x: Sequence[Number]
    y: Sequence[Number]
    spread: Sequence[Number] = ()  # half the width of a band around it
    is_dashed: bool = False
    hue: int | None = None  # where its color says something


@dataclass(frozen=True)
class Lines:
    """Lines over a common axis."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    note: str = ""
    is_log: bool = False  # the axis of x
    start: Number | None = None  # of the axis of y, where it is not the smallest value
    kind: Literal["lines"] = "lines"

    @property
    def table(self) -> Grid:
        """A row for each x."""
        places = sorted({x for line in self.series for x in line.x})
        found = [dict(zip(line.x, line.y, strict=True)) for line in self.series]
        rows = [
            [format_number(x), *(format_number(values.get(x)) for values in found)] for x in places
        ]
        return Grid([self.x_label, *(line.name for line in self.series)], rows)


@dataclass(frozen=True)
class Bars:
    """Horizontal bars, one for each label, or parts of them that are put end to end."""

    title: str
    x_label: str
    labels: Sequence[str]
    parts: Mapping[str, Sequence[Number]]  # a value for each label
    note: str = ""
    low: Sequence[Number] = ()  # interval around the value, where there is one part
    high: Sequence[Number] = ()
    marks: Mapping[str, Sequence[Number]] = field(default_factory=dict)  # beside the bars
    end: Number | None = None  # of the axis, where it is not the largest value
    hues: Sequence[
        int
    ] = ()  # for each label, where there is one part and its color says something
    kind: Literal["bars"] = "bars"

    @property
    def table(self) -> Grid:
        """A row for each label."""
        columns = {**self.parts}
        if self.low:
            columns |= {"from": self.low, "to": self.high}
        return _by_label(self.labels, columns | {**self.marks})


@dataclass(frozen=True)
class Boxes:
    """Distributions: a line from 5 to 95 %, a box from 25 to 75 %, a stroke at the median."""

    title: str
    x_label: str
    labels: Sequence[str]
    quantiles: Sequence[Sequence[Number]]  # 5, 25, 50, 75 and 95 % for each label
    bounds: Mapping[str, Number]  # values to compare with, by their names
    note: str = ""
    kind: Literal["boxes"] = "boxes"

    @property
    def table(self) -> Grid:
        """A row for each label, and one for each bound."""
        shares = ("5 %", "25 %", "median", "75 %", "95 %")
        columns = dict(zip(shares, zip(*self.quantiles, strict=True), strict=True))
        bounds = [
            [name, "", "", format_number(value), "", ""] for name, value in self.bounds.items()
        ]
        grid = _by_label(self.labels, columns)
        return Grid(grid.columns, [*grid.rows, *bounds])


@dataclass(frozen=True)
class Heat:
    """A matrix of colors."""

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
        """The matrix; None where it is too large to be read, and the note must do."""
        if len(self.columns) > MAX_COLUMNS:
            return None
        rows = [
            [name, *map(format_number, row)]
            for name, row in zip(self.rows, self.values, strict=True)
        ]
        return Grid([f"{self.y_label} \\ {self.x_label}", *self.columns], rows)


@dataclass(frozen=True)
class Points:
    """Points in a plane, named by labels, or colored by group and shaded within it."""

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
        """A row for each label; None where the points have none."""
        if not self.labels:
            return None
        return _by_label(self.labels, {self.x_label: self.x, self.y_label: self.y})


Chart = Lines | Bars | Boxes | Heat | Points


@dataclass(frozen=True)
class Figure:
    """A chart, and the choices that it belongs to: it shows while all of these are made."""

    chart: Chart
    where: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """What the reader may choose in a section."""

    name: str
    title: str
    options: Sequence[str]
    start: int = 0
    is_slider: bool = False


@dataclass(frozen=True)
class Picture:
    """An image with what there is to say of it."""

    source: str  # a data URL
    text: str


@dataclass(frozen=True)
class Section:
    """A part of a page; `note` stands alone where a run has nothing to show."""

    name: str
    title: str
    note: str = ""
    figures: Sequence[Figure] = ()
    choices: Sequence[Choice] = ()
    tables: Sequence[Grid] = ()
    pictures: Sequence[Picture] = ()
    widget: Literal["none", "priors", "images"] = "none"  # what the script makes of its data


def format_number(value: Number | None) -> str:
    """Write a number with four digits; a dash where there is none."""
    if value is None or isnan(value):
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _by_label(labels: Sequence[str], columns: Mapping[str, Sequence[Number]]) -> Grid:
    values = zip(*columns.values(), strict=True)
    rows = [[label, *map(format_number, row)] for label, row in zip(labels, values, strict=True)]
    return Grid(["", *columns], rows)
