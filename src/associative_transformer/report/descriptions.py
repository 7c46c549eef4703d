"""Charts in words, for readers who do not see them: the range of each line, the largest bars.

The full values are in the table of a chart.
"""

from collections.abc import Iterator, Sequence
from math import isfinite

from associative_transformer.report.charts import (
    Bars,
    Boxes,
    Chart,
    Heat,
    Lines,
    Number,
    Points,
    format_number,
)

MAX_LINES = 8  # that are described one by one
MAX_LABELS = 12  # bars whose values are all named


def describe(chart: Chart) -> str:
    """Return one or two sentences with the most important values of a chart."""
    match chart:
        case Lines():
            return f"Line chart: {chart.y_label} by {chart.x_label}. {' '.join(_lines(chart))}"
        case Bars():
            return f"Bar chart: {chart.x_label}. {' '.join(_bars(chart))}"
        case Boxes():
            medians = [
                f"{label} {format_number(quantiles[2])}"
                for label, quantiles in zip(chart.labels, chart.quantiles, strict=True)
            ]
            bounds = [f"{name} {format_number(value)}" for name, value in chart.bounds.items()]
            compared = f" Compare with: {', '.join(bounds)}." if bounds else ""
            return f"Box plot: {chart.x_label}. Medians: {', '.join(medians)}.{compared}"
        case Heat():
            return f"Matrix: {chart.y_label} by {chart.x_label}. {_matrix(chart)}"
        case Points():
            return (
                f"Scatter plot of {len(chart.x):,} points: {chart.y_label} by {chart.x_label}. "
                f"{chart.x_label} from {_range(chart.x)}; {chart.y_label} from {_range(chart.y)}."
            )


def _range(values: Sequence[Number]) -> str:
    known = [value for value in values if isfinite(value)]
    if not known:
        return "unknown to unknown"
    return f"{format_number(min(known))} to {format_number(max(known))}"


def _lines(chart: Lines) -> Iterator[str]:
    """Yield a sentence for each line: its first and last value, and its range."""
    for line in chart.series[:MAX_LINES]:
        points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if isfinite(y)]
        if not points:
            yield f"{line.name}: no values."
            continue
        (first, start), (last, end) = points[0], points[-1]
        if len(points) == 1:
            yield f"{line.name}: {format_number(start)} at {format_number(first)}."
            continue
        yield (
            f"{line.name}: {format_number(start)} at {format_number(first)}, "
            f"{format_number(end)} at {format_number(last)}, "
            f"between {_range([y for _, y in points]).replace(' to ', ' and ')}."
        )
    if len(chart.series) > MAX_LINES:
        yield f"And {len(chart.series) - MAX_LINES:,} more lines."


def _bars(chart: Bars) -> Iterator[str]:
    """Yield the values of a few bars, or the largest and the smallest of many."""
    for name, values in chart.parts.items():
        pairs = list(zip(chart.labels, values, strict=True))
        if not pairs:
            yield f"{name}: no bars."
        elif len(pairs) <= MAX_LABELS:
            yield f"{name}: {', '.join(f'{label} {format_number(x)}' for label, x in pairs)}."
        else:
            ordered = sorted(pairs, key=lambda pair: pair[1])
            (lowest, low), (highest, high) = ordered[0], ordered[-1]
            yield (
                f"{name}: {len(pairs):,} bars, the largest {format_number(high)} ({highest}), the "
                f"smallest {format_number(low)} ({lowest})."
            )


def _matrix(chart: Heat) -> str:
    """Return the size of a matrix and where its largest and smallest values are."""
    cells = [
        (value, row, column)
        for row, values in zip(chart.rows, chart.values, strict=True)
        for column, value in zip(chart.columns, values, strict=True)
        if isfinite(value)
    ]
    size = f"{len(chart.rows):,} rows and {len(chart.columns):,} columns"
    if not cells:
        return f"{size}, without values."
    (low, *least), (high, *most) = min(cells), max(cells)
    unit = f" {chart.unit}" if chart.unit else ""
    return (
        f"{size}. Largest value: {format_number(high)}{unit} (row {most[0]}, column {most[1]}); "
        f"smallest: {format_number(low)}{unit} (row {least[0]}, column {least[1]})."
    )
