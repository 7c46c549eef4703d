"""Means over seeds with their intervals."""

from dataclasses import replace
from pathlib import Path
from statistics import stdev

import numpy as np
import pytest

from associative_transformer.recipes import RECIPES
from associative_transformer.runs.spread import spread_of, student_quantile, tabulate_seeds
from making.plant import answers_of, put_result, result_of

QUANTILES = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 9: 2.2622, 30: 2.0423}
"""Student's t for a two-sided 95 % interval, from a printed table."""


@pytest.mark.parametrize("freedom", QUANTILES)
def test_the_quantile_of_student_is_that_of_the_printed_tables(freedom: int) -> None:
    assert student_quantile(freedom) == pytest.approx(QUANTILES[freedom], abs=5e-5)
    assert student_quantile(4, 0.99) == pytest.approx(4.6041, abs=5e-5)


def test_the_interval_covers_the_true_mean_in_95_of_100_samples() -> None:
    samples = np.random.default_rng(0).normal(3.0, 2.0, size=(4_000, 3))
    spreads = [spread_of(list(sample)) for sample in samples]
    covered = [abs(each.mean - 3.0) <= (each.half_width or 0) for each in spreads]
    assert sum(covered) / len(covered) == pytest.approx(0.95, abs=0.015)


def test_a_single_value_has_no_interval() -> None:
    assert str(spread_of([90.0])) == "90.00"
    values = [90.0, 92.0, 94.0]
    assert str(spread_of(values)) == f"92.00 ± {4.3027 * stdev(values) / 3**0.5:.2f}"


def test_the_table_of_seeds_ends_with_the_mean_of_the_saved_models(tmp_path: Path) -> None:
    recipe = RECIPES["triangle-ait-tiny"]
    best = {"epoch": 2, "validation_accuracy": 70.0, "test_accuracy": 80.0, "test_loss": 0.5}
    results = {}
    for seed, accuracy in enumerate((80.0, 90.0)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        best = {**best, "test_accuracy": accuracy, "test_images": 200}
        saved = result_of(recipe, 10.0, seed=seed, best_validation=best)
        results[folder] = put_result(folder, saved)
    table = tabulate_seeds("name", results)
    (group,) = table.groups
    assert [row[:2] for row in group.rows[:2]] == [("0", "80.00"), ("1", "90.00")]
    half = 12.7062 * stdev([80, 90]) / 2**0.5
    assert group.rows[2][:2] == ("mean of 2", f"85.00 ± {half:.2f}")
    assert "Student" in table.notes[0]


def test_questions_have_a_column_for_each_type(tmp_path: Path) -> None:
    recipe = RECIPES["sort-of-clevr-ait-tiny"]
    result = put_result(tmp_path, answers_of(recipe, binary=70.0, other=90.0))
    table = tabulate_seeds("name", {tmp_path: replace(result, seed=5)})
    assert table.columns[1:4] == ("test accuracy in %", "non-relational", "binary")
    assert table.groups[0].rows[0][:4] == ("5", "80.00", "90.00", "70.00")
    assert table.notes == []
