"""Measurements of what a trained model has learned; `figures` and `report` show them."""

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_type_hints

import numpy as np
import torch

from associative_transformer.analysis.answers import Answers, measure_answers
from associative_transformer.analysis.basins import Basins, measure_basins
from associative_transformer.analysis.capacity import Capacity, measure_capacity
from associative_transformer.analysis.competition import Competition, measure_competition
from associative_transformer.analysis.drift import Drift, measure_drift_of_run
from associative_transformer.analysis.recall import Recall, measure_recall
from associative_transformer.analysis.reconstruction import Reconstruction, measure_reconstruction
from associative_transformer.analysis.roles import Roles, measure_roles
from associative_transformer.analysis.selection import SelectionStatistics, measure_selection
from associative_transformer.analysis.silencing import Silencing, measure_silencing
from associative_transformer.analysis.specialization import Specialization, measure_specialization
from associative_transformer.analysis.storage import (
    load_result,
    read_completion,
    remove_completion,
    save_result,
    write_completion,
)
from associative_transformer.data import HeldOut, Split
from associative_transformer.files import make_folder
from associative_transformer.interface import Batch, UserError
from associative_transformer.models.ait import AiT
from associative_transformer.models.layers import SelfAttention
from associative_transformer.models.pretrained import PretrainedModel
from associative_transformer.progress import WorkProgress
from associative_transformer.runs.reading import MAX_ARRAYS
from associative_transformer.runs.saved import SavedRun

__all__ = ["Analysis", "analyze", "load_analysis", "sample", "save_analysis"]

SAMPLE_SEED = 0  # not the seed of the run: all runs are analyzed on the same sample


class Subject(NamedTuple):
    """The trained model of a run, and the test items to measure it on."""

    model: Any  # a PretrainedModel that the analysis applies to
    classes: Sequence[str]
    folder: Path  # of the run
    pools: Callable[[], Iterator[Batch]]  # the sample, in batches of one pool each
    all_pools: Callable[[], Iterator[Batch]]  # the whole test split, starting with the sample


class Measured(NamedTuple):
    """How to measure an analysis, and which models it applies to."""

    measure: Callable[[Subject], Any]
    applies_to: Callable[[PretrainedModel], bool]
    cost: int = 1  # time relative to `answers`, which are one pass over the sample


def _is_any(_: PretrainedModel) -> bool:
    return True


def _is_ait(model: PretrainedModel) -> bool:
    return isinstance(model, AiT)


def _reads_by_hopfield(model: PretrainedModel) -> bool:
    return isinstance(model, AiT) and model.config.read == "hopfield"


def _reads(model: PretrainedModel) -> bool:
    return isinstance(model, AiT) and model.config.read != "none"


def _has_memory_per_image(model: PretrainedModel) -> bool:
    return isinstance(model, AiT) and model.config.workspace.scope == "image"


def _has_self_attention(model: PretrainedModel) -> bool:
    return any(isinstance(module, SelfAttention) for module in model.modules())


class Analysis(NamedTuple):
    """The results of all analyses of a run; None for those that do not apply to it.

    The fields list the analyses. The name of a field is also the name of its files; its annotation
    contains the type of the result, how to measure it, and the models it applies to.
    """

    answers: Annotated[
        Answers | None,
        Measured(lambda s: measure_answers(s.model, s.pools(), s.classes), _is_any),
    ] = None
    competition: Annotated[
        Competition | None,
        Measured(lambda s: measure_competition(s.model, s.pools()), _has_self_attention, 3),
    ] = None
    selection: Annotated[
        SelectionStatistics | None,
        Measured(lambda s: measure_selection(s.model, s.pools()), _is_ait, 2),
    ] = None
    drift: Annotated[
        Drift | None,
        Measured(lambda s: measure_drift_of_run(s.folder), _is_ait),
    ] = None
    specialization: Annotated[
        Specialization | None,
        Measured(lambda s: measure_specialization(s.model, s.pools(), s.classes), _is_ait, 2),
    ] = None
    roles: Annotated[
        Roles | None,
        Measured(lambda s: measure_roles(s.model, s.pools(), s.classes), _has_memory_per_image, 3),
    ] = None
    silencing: Annotated[
        Silencing | None,
        Measured(lambda s: measure_silencing(s.model, s.pools(), s.classes), _reads, 7),
    ] = None
    basins: Annotated[
        Basins | None,
        Measured(lambda s: measure_basins(s.model, s.pools()), _reads_by_hopfield, 4),
    ] = None
    recall: Annotated[
        Recall | None,
        Measured(lambda s: measure_recall(s.model, s.pools()), _reads_by_hopfield, 4),
    ] = None
    capacity: Annotated[
        Capacity | None,
        Measured(lambda s: measure_capacity(s.model, s.all_pools()), _is_ait, 10),
    ] = None
    reconstruction: Annotated[
        Reconstruction | None,
        Measured(lambda s: measure_reconstruction(s.model, s.pools()), _reads_by_hopfield),
    ] = None

    def describe(self) -> Iterator[str]:
        """Yield the main numbers of the results that describe themselves as lines of text."""
        for result in self:
            yield from getattr(result, "describe", tuple)()


def _read_table(analysis: type[Analysis]) -> dict[str, tuple[type, Measured]]:
    """Return the type of the result and the measurement of each analysis, by name."""
    hints = get_type_hints(analysis, include_extras=True)
    columns = {name: get_args(hint) for name, hint in hints.items()}
    return {name: (get_args(result)[0], measured) for name, (result, measured) in columns.items()}


_TABLE = _read_table(Analysis)


def sample(split: Split, num_images: int | None = None) -> Split:
    """Shuffle the split with a fixed seed and return its first items, or all of them if None.

    Class folders are sorted by class; the shuffle makes each pool mix classes, as in training.
    Image indices in the results of an analysis refer to this sample.
    """
    order = np.random.default_rng(SAMPLE_SEED).permutation(len(split))[:num_images]
    return split.take(torch.from_numpy(order))


def analyze(
    run: SavedRun,
    folder: Path,
    data: HeldOut,
    num_images: int | None = None,
    batch_size: int | None = None,
    must_save: bool = True,
) -> Analysis:
    """Run all analyses that apply to the model on a sample of the test split; save the results.

    Each batch is one pool, as large as in training unless `batch_size` is given. Only the capacity
    analysis may use images beyond the sample, as many as it needs to fill its pools. For a data
    set with questions, `num_images` and `batch_size` count questions.

    Results are written to `folder/analysis` after all analyses have finished. Earlier results that
    were not measured again and all earlier figures are then removed. If the results cannot be
    written, UserError is raised, or a line on stderr says so if `must_save` is False.
    """
    train = run.experiment.train
    split = sample(data.test, num_images)
    pool_size = min(batch_size or train.batch_size // train.accumulation_steps, len(split))
    subject = Subject(
        run.model,
        run.classes,
        folder,
        pools=partial(split.eval_batches, pool_size),
        all_pools=lambda: sample(data.test).eval_batches(pool_size),
    )
    analysis = _measure_all(subject)
    try:
        save_analysis(analysis, folder, data.digest)
    except UserError as error:
        if must_save:
            raise
        print(f"the analysis is not stored: {error}", file=sys.stderr)
    return analysis


def _measure_all(subject: Subject) -> Analysis:
    """Run all analyses that apply to the model, and show the progress on stderr."""
    chosen = {
        name: measured
        for name, (_, measured) in _TABLE.items()
        if measured.applies_to(subject.model)
    }
    done, total = 0, sum(measured.cost for measured in chosen.values())
    results: dict[str, Any] = {}
    with WorkProgress("analyzing") as progress:
        for name, measured in chosen.items():
            progress.show(done, total, name)
            results[name] = measured.measure(subject)
            done += measured.cost
    return Analysis(**results)


def save_analysis(analysis: Analysis, folder: Path, data: str) -> None:
    """Write results to the folder of a run; `data` is the digest of the test split.

    If this is interrupted, there is no analysis: a later report measures everything again.
    """
    make_folder(folder / "analysis")
    remove_completion(folder / "analysis")
    names = [name for name, result in analysis._asdict().items() if result is not None]
    for name in names:
        save_result(getattr(analysis, name), folder / "analysis", name)
    _remove_stale_files(folder, analysis)
    write_completion(folder / "analysis", names, data)


def load_analysis(folder: Path, data: str | None = None) -> Analysis | None:
    """Load the results that `analyze` saved in the folder of a run.

    Returns None if there are none, or if saving them was interrupted. Raises UserError if a
    result is damaged, or was measured on other test images than those with the digest `data`.
    """
    complete = read_completion(folder / "analysis")
    if complete is None:
        return None
    if data not in (None, complete.data):
        raise UserError(
            f"the analysis in {folder / 'analysis'} was measured on other images: pass --again to "
            "measure it on these, or the --source that it was measured on"
        )
    results: dict[str, Any] = {}
    left = MAX_ARRAYS  # bytes that the remaining results may take
    for name, (kind, _) in _TABLE.items():
        if f"{name}.json" in complete.files:
            results[name] = load_result(kind, folder / "analysis", name, left)
            left -= sum(getattr(value, "nbytes", 0) for value in vars(results[name]).values())
    return Analysis(**results) if results else None


def _remove_stale_files(folder: Path, analysis: Analysis) -> None:
    """Remove earlier results that were not measured again, and all earlier figures."""
    for name, result in analysis._asdict().items():
        files = [folder / "figures" / f"{name}.{ending}" for ending in ("png", "svg")]
        if result is None:
            files += [folder / "analysis" / f"{name}.{ending}" for ending in ("json", "npz")]
        for file in files:
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                raise UserError(
                    f"cannot remove the old {file}: {error.strerror or error}; remove it and run "
                    "ait analyze again"
                ) from error
