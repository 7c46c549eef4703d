"""The numbers of two runs next to each other, with their difference."""

from collections.abc import Iterable, Iterator
from math import hypot, isnan
from typing import Any, NamedTuple

from associative_transformer.models import count_operations
from associative_transformer.report.charts import Grid, format_number
from associative_transformer.report.facts import Facts
from associative_transformer.runs.result import BestValidation, RunResult, accuracy_interval
from associative_transformer.scores import Interval

MINUS = "\u2212"


class Accuracy(NamedTuple):
    """A test accuracy with its interval."""

    percent: int | float
    interval: Interval


class Quantity(NamedTuple):
    """A number of each run that both may have, or only one."""

    name: str
    values: tuple[int | float | None, int | float | None]  # of A and of B
    digits: int = 2  # after the decimal point
    interval: Interval | None = None  # of the difference
    is_ratio: bool = False  # whether the difference is also given in percent of A


def compare_numbers(a: Facts, b: Facts) -> Grid:
    """Return a table of scores and costs of two runs, with the difference between them.

    A number that only one of them has is compared with a dash.
    """
    quantities = [*_list_scores(a, b), *_list_training(a, b), *_list_costs(a, b)]
    rows = [
        [each.name, *(_write(value, each.digits) for value in each.values), _subtract(each)]
        for each in quantities
        if each.values != (None, None)
    ]
    caption = "Numbers, and how B differs from A (with the 95 % interval of the difference)"
    return Grid(["", "A", "B", f"B {MINUS} A"], rows, caption)


def difference_interval(a: Accuracy, b: Accuracy) -> Interval:
    """Return Newcombe's interval (1998, method 10) for the difference b - a of two shares.

    It combines their own intervals as if they were independent; with the same test images for
    both, which is what makes answers agree, it is wider than necessary.
    """
    difference = b.percent - a.percent
    low = hypot(b.percent - b.interval.low, a.interval.high - a.percent)
    high = hypot(b.interval.high - b.percent, a.percent - a.interval.low)
    return Interval(difference - low, difference + high)


def _list_scores(a: Facts, b: Facts) -> Iterator[Quantity]:
    """Yield the scores of the saved models on the test split."""
    scores = _saved(a), _saved(b)
    first, second = map(_accuracies, scores)
    for kind in dict.fromkeys([*first, *second]):
        both = first.get(kind), second.get(kind)
        interval = difference_interval(both[0], both[1]) if both[0] and both[1] else None
        values = both[0] and both[0].percent, both[1] and both[1].percent
        yield Quantity(f"{kind}, %", values, interval=interval)
    for name, attribute in (
        ("top-5 accuracy, %", "test_top5_accuracy"),
        ("balanced accuracy, %", "test_balanced_accuracy"),
        ("mean F1, %", "test_mean_f1"),
    ):
        yield Quantity(name, _pair(getattr(each, attribute, None) for each in scores))
    calibrations = [getattr(each, "test_calibration", None) for each in scores]
    errors = _pair(getattr(each, "error", None) for each in calibrations)
    yield Quantity("expected calibration error, points", errors)
    losses = _pair(getattr(each, "test_loss", None) for each in scores)
    yield Quantity("test loss, nats", losses, digits=4)


def _pair(values: Iterable[int | float | None]) -> tuple[int | float | None, int | float | None]:
    a, b = values
    return a, b


def _saved(facts: Facts) -> RunResult | BestValidation | None:
    return facts.result and (facts.result.best_validation or facts.result)


def _accuracies(scores: RunResult | BestValidation | None) -> dict[str, Accuracy]:
    """Return the test accuracy, or that of each kind of question."""
    if scores is None:
        return {}
    if scores.test_kinds is None:
        return {"test accuracy": Accuracy(scores.test_accuracy, accuracy_interval(scores))}
    return {
        f"accuracy, {kind.name}": Accuracy(kind.accuracy, kind.interval)
        for kind in scores.test_kinds
    }


def _list_training(a: Facts, b: Facts) -> Iterator[Quantity]:
    """Yield what the last epoch of each run recorded, and the state of its memories."""
    histories = a.history.metrics, b.history.metrics
    rows: list[dict[str, Any]] = [each[-1] if each else {} for each in histories]
    yield Quantity("epochs", _pair(len(each) or None for each in histories), digits=0)
    loss, accuracy = (_pair(row.get(key) for row in rows) for key in ("loss", "accuracy"))
    yield Quantity("training loss of the last epoch", loss, digits=4)
    yield Quantity("training accuracy of the last epoch, %", accuracy)
    validation = _pair((row.get("validation") or {}).get("accuracy") for row in rows)
    yield Quantity("validation accuracy of the last epoch, %", validation)
    for name, key in (
        ("effective rank of the memories", "effective_rank"),
        ("distinct priors", "distinct"),
        ("overlap of winners", "overlap"),
    ):
        means = _pair(_mean(row.get("health"), key) for row in rows)
        yield Quantity(f"{name}, mean over layers", means)


def _mean(health: list[dict[str, int | float | None]] | None, key: str) -> int | float | None:
    values = [layer.get(key) for layer in health or ()]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _list_costs(a: Facts, b: Facts) -> Iterator[Quantity]:
    """Yield parameters, operations and time."""
    parameters = _pair(getattr(each.result, "live_parameters", None) for each in (a, b))
    yield Quantity("parameters", parameters, digits=0, is_ratio=True)
    operations = _pair(count_operations(each.experiment.model) for each in (a, b))
    yield Quantity("operations per image, forward", operations, digits=0, is_ratio=True)
    timings = [[row["timing"]["seconds"] for row in each.history.metrics] for each in (a, b)]
    seconds = _pair(sum(timing) or None for timing in timings)
    yield Quantity("seconds of training", seconds, digits=1, is_ratio=True)


def _write(value: int | float | None, digits: int) -> str:
    if value is None or isnan(value):
        return format_number(None)
    return f"{value:,.{digits}f}"


def _subtract(quantity: Quantity) -> str:
    """Return the difference with its sign, and its interval or its share of A."""
    (a, b), digits = quantity.values, quantity.digits
    if a is None or b is None or isnan(a) or isnan(b):
        return format_number(None)
    text = _signed(b - a, digits)
    if quantity.interval is not None:
        low, high = quantity.interval
        text += f" ({_signed(low, digits)} to {_signed(high, digits)})"
    elif quantity.is_ratio and a:
        text += f" ({_signed(100 * (b - a) / a, 1)} %)"
    return text


def _signed(value: int | float, digits: int) -> str:
    text = f"{abs(value):,.{digits}f}"
    if not any(digit in text for digit in "123456789"):
        return text  # neither +0 nor -0
    return f"{'+' if value > 0 else MINUS}{text}"
