"""Which epoch of a run is its best one, and whether the run stops early."""

import math
from collections.abc import Callable

from associative_transformer.data import DataSet
from associative_transformer.evaluate import Evaluation
from associative_transformer.experiment import TrainConfig
from associative_transformer.interface import UserError
from associative_transformer.optimization import Metric, Stopping
from associative_transformer.runs.checkpoint import TrainingState
from associative_transformer.scores import is_in_top

TOP = 5


def _balanced_accuracy(validation: Evaluation) -> float:
    tested = [value for value in validation.class_accuracy if not math.isnan(value)]
    return math.fsum(tested) / len(tested)


def _top5_accuracy(validation: Evaluation) -> float:
    hits = is_in_top(validation.logits, validation.labels, TOP)
    return 100 * int(hits.sum()) / len(hits)


SCORES: dict[Metric, Callable[[Evaluation], float]] = {  # a higher score is better
    "accuracy": lambda validation: validation.accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "top5_accuracy": _top5_accuracy,
    "loss": lambda validation: -validation.loss,
}


def check(stopping: Stopping, data: DataSet, num_classes: int) -> None:
    """Raise UserError if the data cannot provide the requested metric."""
    if stopping != Stopping() and data.validation is None:
        raise UserError(
            "--train.stopping needs validation images, but this data has none: set "
            "--data.val-fraction, or leave --train.stopping at its defaults"
        )
    if stopping.best_by == "top5_accuracy" and num_classes <= TOP:
        raise UserError(
            f"--train.stopping.best-by top5_accuracy is always 100 % with {num_classes} classes: "
            "choose another metric"
        )


def record(state: TrainingState, stopping: Stopping, validation: Evaluation, epoch: int) -> bool:
    """Note the score of an epoch, counted from 1; return whether it is the best one so far."""
    score = SCORES[stopping.best_by](validation)
    if state.best_score is None and state.best_epoch is not None:
        state.best_score = state.best_accuracy  # of a checkpoint of version 0.1
    is_finite, known = math.isfinite(score), state.reference
    if is_finite and (known is None or score > known + stopping.min_delta):
        state.reference, state.stale_epochs = score, 0
    else:
        state.stale_epochs += 1
    is_best = is_finite and (state.best_score is None or score > state.best_score)
    if is_best:
        state.best_epoch, state.best_score = epoch, score
        state.best_accuracy = validation.accuracy
    return is_best


def is_done(state: TrainingState, config: TrainConfig) -> bool:
    """Return whether a run has trained all its epochs, or stops early after a complete one."""
    return state.epoch >= config.epochs or (state.step == 0 and stops_early(state, config))


def stops_early(state: TrainingState, config: TrainConfig) -> bool:
    """Return whether as many epochs as `patience` did not improve the metric."""
    patience = config.stopping.patience
    return patience is not None and state.stale_epochs >= patience
