"""Two runs side by side: the table with the difference of every number."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from associative_transformer.recipes import RECIPES
from associative_transformer.report.difference import (
    Accuracy,
    compare_numbers,
    difference_interval,
)
from associative_transformer.report.facts import Facts
from associative_transformer.runs.environment import Environment
from associative_transformer.runs.folder import History
from associative_transformer.scores import Interval, wilson_interval
from making.plant import answers_of, kind_of, put_result, result_of

AIT, VIT = RECIPES["triangle-ait-tiny"], RECIPES["triangle-vit-small"]
ASKED = RECIPES["sort-of-clevr-ait-small"]


def facts_of(folder: Path, experiment: Any, loss: float, **result: Any) -> Facts:  # noqa: ANN401
    """Return what a run of one epoch of two seconds recorded."""
    row = {"epoch": 1, "lr": 0.1, "loss": loss, "balance_loss": 0.0, "accuracy": 50.0}
    history = History([{**row, "timing": {"seconds": 2.0}}])
    done = put_result(folder, result_of(experiment, **result)) if result else None
    return Facts(folder, experiment, done, Environment(), history)


def rows_of(a: Facts, b: Facts) -> dict[str, list[str]]:
    grid = compare_numbers(a, b)
    assert grid.columns[-1] == "B \u2212 A"
    return {name: list(cells) for name, *cells in grid.rows}


def test_the_last_column_is_b_minus_a(tmp_path: Path) -> None:
    a = facts_of(tmp_path, AIT, 1.5, accuracy=80.0, live_parameters=1_000)
    b = facts_of(tmp_path, VIT, 1.25, accuracy=70.0, live_parameters=1_500)
    rows = rows_of(a, b)
    low, high = difference_interval(
        Accuracy(80.0, wilson_interval(0.8, 200)), Accuracy(70.0, wilson_interval(0.7, 200))
    )
    minus = "\u2212"
    assert rows["test accuracy, %"] == [
        "80.00",
        "70.00",
        f"{minus}10.00 ({minus}{-low:.2f} to {minus}{-high:.2f})",
    ]
    assert rows["training loss of the last epoch"] == ["1.5000", "1.2500", f"{minus}0.2500"]
    assert rows["parameters"] == ["1,000", "1,500", "+500 (+50.0 %)"]
    assert rows["seconds of training"] == ["2.0", "2.0", "0.0 (0.0 %)"]
    assert rows["epochs"] == ["1", "1", "0"]
    assert "top-5 accuracy, %" not in rows  # neither run has it


def test_a_number_of_one_run_only_is_compared_with_a_dash(tmp_path: Path) -> None:
    a = facts_of(tmp_path, AIT, 1.0, accuracy=80.0, test_top5_accuracy=99.0)
    rows = rows_of(a, facts_of(tmp_path, VIT, 1.0))  # not complete
    assert rows["test accuracy, %"] == ["80.00", "-", "-"]
    assert rows["top-5 accuracy, %"] == ["99.00", "-", "-"]


def test_each_kind_of_question_has_a_row(tmp_path: Path) -> None:
    def answers(binary: float) -> Facts:
        kinds = [kind_of("binary", binary, 50.0), kind_of("all", 60.0, 50.0)]
        result = put_result(tmp_path, answers_of(ASKED, test_kinds=kinds))
        return Facts(tmp_path, ASKED, result, Environment(), History())

    rows = rows_of(answers(60.0), answers(65.0))
    assert rows["accuracy, binary, %"][:2] == ["60.00", "65.00"]
    assert rows["accuracy, all, %"][2].startswith("0.00 (")


@pytest.mark.parametrize(("a", "b"), [(0.7, 0.8), (0.97, 0.95)])
def test_the_interval_of_a_difference_holds_in_95_of_100_experiments(a: float, b: float) -> None:
    draw, count, inside = np.random.default_rng(0), 200, 0
    for _ in range(2_000):
        first, second = draw.binomial(count, a) / count, draw.binomial(count, b) / count
        low, high = difference_interval(
            Accuracy(100 * first, wilson_interval(first, count)),
            Accuracy(100 * second, wilson_interval(second, count)),
        )
        inside += low <= 100 * (b - a) <= high
    assert 0.935 < inside / 2_000 < 0.975


def test_the_interval_of_a_difference_turns_round_with_the_runs() -> None:
    one, other = Accuracy(90.0, Interval(85.0, 93.0)), Accuracy(70.0, Interval(63.0, 76.0))
    low, high = difference_interval(one, other)
    assert difference_interval(other, one) == (-high, -low)
