"""The numbers of two runs next to each other, with their difference."""

from collections.abc import Iterator
from math import hypot, isnan
from typing import NamedTuple

from associative_transformer.models import count_operations
from associative_transformer.report.charts import Grid, format_number
from associative_transformer.report.facts import Facts
from associative_transformer.runs.result import BestValidation, RunResult, accuracy_interval
from associative_transformer.scores import Interval

MINUS = "\u2212"


class Quantity(NamedTuple):
    """A number of each run that both may have, or only one."""

    name: str
    a: float | None
    b: float | None
    digits: int = 2  # after the decimal point
    interval: Interval | None = None  # of the difference
    is_ratio: bool = False  # whether the difference is also given in percent of A


def compare_numbers(a: Facts, b: Facts) -> Grid:
    """Return a table of scores and costs of two runs, with the difference between them.

    A number that only one of them has is compared with a dash.
    """
    quantities = [*_list_scores(a, b), *_list_training(a, b), *_list_costs(a, b)]
    rows = [
        [each.name, _write(each.a, each.digits), _write(each.b, each.digits), _subtract(each)]
        for each in quantities
        if each.a is not None or each.b is not None
    ]
    caption = "Numbers, and how B differs from A (with the 95 % interval of the difference)"
    return Grid(["", "A", "B", f"B {MINUS} A"], rows, caption)


def difference_interval(
    a: float, a_interval: Interval, b: float, b_interval: Interval
) -> Interval:
    """Return Newcombe's interval (1998, method 10) for the difference b - a of two shares.

    It combines their own intervals as if they were independent; with the same test images for
    both, which is what makes answers agree, it is wider than necessary.
    """
    low = b - a - hypot(b - b_interval.low, a_interval.high - a)
    high = b - a + hypot(b_interval.high - b, a - a_interval.low)
    return Interval(low, high)


def _list_scores(a: Facts, b: Facts) -> Iterator[Quantity]:
    """Yield the scores of the saved models on the test split."""
    first, second = _saved(a), _saved(b)
    for kind in dict.fromkeys([*_accuracies(first), *_accuracies(second)]):
        both = [_accuracies(scores).get(kind) for scores in (first, second)]
        interval = None
        if both[0] is not None and both[1] is not None:
            interval = difference_interval(*both[0], *both[1])
        values = [None if each is None else each[0] for each in both]
        yield Quantity(f"{kind}, %", *values, interval=interval)
    for name, attribute in (
        ("top-5 accuracy, %", "test_top5_accuracy"),
        ("balanced accuracy, %", "test_balanced_accuracy"),
        ("mean F1, %", "test_mean_f1"),
    ):
        yield Quantity(name, getattr(first, attribute, None), getattr(second, attribute, None))
    errors = [
        each and each.test_calibration and each.test_calibration.error for each in (first, second)
    ]
    yield Quantity("expected calibration error, points", *errors)
    yield Quantity("test loss, nats", first and first.test_loss, second and second.test_loss, 4)


def _saved(facts: Facts) -> RunResult | BestValidation | None:
    return facts.result and (facts.result.best_validation or facts.result)


def _accuracies(
    scores: RunResult | BestValidation | None,
) -> dict[str, tuple[float, Interval]]:
    """Return the test accuracy, or that of each kind of question, with its interval."""
    if scores is None:
        return {}
    if scores.test_kinds is None:
        return {"test accuracy": (scores.test_accuracy, accuracy_interval(scores))}
    return {f"accuracy, {kind.name}": (kind.accuracy, kind.interval) for kind in scores.test_kinds}


def _list_training(a: Facts, b: Facts) -> Iterator[Quantity]:
    """Yield what the last epoch of each run recorded, and the state of its memories."""
    rows = [facts.history.metrics[-1] if facts.history.metrics else {} for facts in (a, b)]
    yield Quantity("epochs", *(len(facts.history.metrics) or None for facts in (a, b)), digits=0)
    yield Quantity("training loss of the last epoch", *(row.get("loss") for row in rows), digits=4)
    yield Quantity(
        "training accuracy of the last epoch, %", *(row.get("accuracy") for row in rows)
    )
    validation = [(row.get("validation") or {}).get("accuracy") for row in rows]
    yield Quantity("validation accuracy of the last epoch, %", *validation)
    for name, key in (
        ("effective rank of the memories, mean", "effective_rank"),
        ("distinct priors, mean", "distinct"),
        ("overlap of winners, mean", "overlap"),
    ):
        yield Quantity(f"{name} over layers", *(_mean(row.get("health"), key) for row in rows))


def _mean(health: list[dict[str, float | None]] | None, key: str) -> float | None:
    values = [layer.get(key) for layer in health or ()]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _list_costs(a: Facts, b: Facts) -> Iterator[Quantity]:
    """Yield parameters, operations and time."""
    results = (a.result, b.result)
    parameters = [result and result.live_parameters for result in results]
    yield Quantity("parameters", *parameters, digits=0, is_ratio=True)
    operations = [count_operations(facts.experiment.model) for facts in (a, b)]
    yield Quantity("operations per image, forward", *operations, digits=0, is_ratio=True)
    timings = [[row["timing"] for row in facts.history.metrics] for facts in (a, b)]
    seconds = [sum(each["seconds"] for each in timing) or None for timing in timings]
    yield Quantity("seconds of training", *seconds, digits=1, is_ratio=True)


def _write(value: float | None, digits: int) -> str:
    if value is None or isnan(value):
        return format_number(None)
    return f"{value:,.{digits}f}"


def _subtract(quantity: Quantity) -> str:
    """Return the difference with its sign, and its interval or its share of A."""
    a, b, digits = quantity.a, quantity.b, quantity.digits
    if a is None or b is None or isnan(a) or isnan(b):
        return format_number(None)
    text = _signed(b - a, digits)
    if quantity.interval is not None:
        low, high = quantity.interval
        text += f" ({_signed(low, digits)} to {_signed(high, digits)})"
    elif quantity.is_ratio and a:
        text += f" ({_signed(100 * (b - a) / a, 1)} %)"
    return text


def _signed(value: float, digits: int) -> str:
    text = f"{abs(value):,.{digits}f}"
    if not any(digit in text for digit in "123456789"):
        return text  # neither +0 nor -0
    return f"{'+' if value > 0 else MINUS}{text}"
