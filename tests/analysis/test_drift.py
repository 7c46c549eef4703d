"""Drift of memories whose priors turn by known angles."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from associative_transformer.analysis.drift import Drift, measure_drift
from associative_transformer.analysis.storage import load_result, save_result
from associative_transformer.functional import effective_rank


def direction(degrees: float, length: float = 1.0) -> list[float]:
    return [length * math.cos(math.radians(degrees)), length * math.sin(math.radians(degrees))]


def test_drift_is_the_mean_angle_from_the_previous_epoch() -> None:
    memory = np.array(
        [
            [[direction(0), direction(90)], [direction(10), direction(10)]],
            [[direction(30), direction(100)], [direction(10), direction(10)]],
            [[direction(210), direction(100)], [direction(10.001), direction(9.998)]],
        ],
        dtype=np.float32,
    )  # (T, L, M, D)
    drift = measure_drift(memory)
    assert drift.epochs == [1, 2, 3]
    assert drift.angle[0].tolist() == [0, 0]
    assert drift.angle[1] == pytest.approx([20, 0], abs=1e-4)
    assert drift.angle[2] == pytest.approx([90, 0.0015], rel=0.02)  # 180 and 0; 0.001 and 0.002
    assert drift.effective_rank[:, 1] == pytest.approx([1, 1, 1], abs=1e-6)
    assert drift.effective_rank[0, 0] == pytest.approx(2)


def test_a_change_in_length_is_not_drift() -> None:
    memory = np.array(
        [[[direction(20, 3.0), direction(0, 0.2)]], [[direction(20, 0.5), direction(60, 7.0)]]]
    )
    assert measure_drift(memory).angle[:, 0] == pytest.approx([0, 30])


def test_a_single_epoch_has_no_drift(tmp_path: Path) -> None:
    memory = np.random.default_rng(0).normal(size=(1, 3, 4, 5))
    drift = measure_drift(memory)
    assert drift.epochs == [1]
    assert drift.angle.tolist() == [[0, 0, 0]]
    ranks = [effective_rank(torch.from_numpy(layer)) for layer in memory[0]]
    assert drift.effective_rank[0] == pytest.approx(ranks)
    save_result(drift, tmp_path, "drift")
    assert load_result(Drift, tmp_path, "drift").epochs == [1]
