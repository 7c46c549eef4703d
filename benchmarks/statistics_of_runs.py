"""Means of a few runs with their 95 % intervals, for the scripts that compare runs."""

from math import sqrt
from statistics import mean, stdev

T_QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306}
"""Student's t for a two-sided 95 % interval, by degrees of freedom."""


def half_width(values: list[float]) -> float:
    """Return half the width of the 95 % interval of a mean (Student's t), from two values on."""
    return T_QUANTILES[len(values) - 1] * stdev(values) / sqrt(len(values))


def interval(values: list[float], sign: str = "+") -> str:
    """Return the mean of values and half the width of its 95 % interval; "" without a sign."""
    if len(values) < 2:
        return f"{mean(values):{sign}.2f}"
    return f"{mean(values):{sign}.2f} ± {half_width(values):.2f}"
