"""Means of a few runs with their 95 % intervals, for the scripts that compare runs."""

from associative_transformer.runs.spread import spread_of


def interval(values: list[float], sign: str = "+") -> str:
    """Return the mean of values and half the width of its 95 % interval; "" without a sign."""
    spread = spread_of(values)
    width = "" if spread.half_width is None else f" ± {spread.half_width:.2f}"
    return f"{spread.mean:{sign}.2f}{width}"
