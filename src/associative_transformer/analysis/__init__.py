"""Numbers about what a trained model has learned; nothing is drawn here."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from associative_transformer.analysis.answers import Answers, measure_answers
from associative_transformer.analysis.basins import Basins, measure_basins
from associative_transformer.analysis.capacity import Capacity, measure_capacity
from associative_transformer.analysis.competition import Competition, measure_competition
from associative_transformer.analysis.reconstruction import Reconstruction, measure_reconstruction
from associative_transformer.analysis.selection import (
    Drift,
    Selected,
    measure_drift,
    measure_selection,
)
from associative_transformer.analysis.specialization import Specialization, measure_specialization
from associative_transformer.analysis.storage import load_result, save_result
from associative_transformer.data import HeldOut, Split
from associative_transformer.interface import UserError
from associative_transformer.models import AiT, ViT
from associative_transformer.runs.saved import SavedRun

__all__ = [
    "Analysis",
    "Answers",
    "Basins",
    "Capacity",
    "Competition",
    "Drift",
    "Reconstruction",
    "Selected",
    "Specialization",
    "analyze",
    "load_analysis",
    "sample",
]

SAMPLE_SEED = 0  # which items are looked at belongs to the data set, so no run's seed changes it


class Analysis(NamedTuple):
    """Everything that is measured; None where a model has no such thing."""

    competition: Competition | None = None
    selection: Selected | None = None
    drift: Drift | None = None
    specialization: Specialization | None = None
    basins: Basins | None = None
    capacity: Capacity | None = None
    reconstruction: Reconstruction | None = None
    answers: Answers | None = None


_KINDS: dict[str, type] = {
    "competition": Competition,
    "selection": Selected,
    "drift": Drift,
    "specialization": Specialization,
    "basins": Basins,
    "capacity": Capacity,
    "reconstruction": Reconstruction,
    "answers": Answers,
}


def sample(split: Split, num_images: int | None = None) -> Split:
    """Take the first items of a fixed shuffle, all of them where `num_images` is None.

    Class folders are in order of class; shuffled, their pools are like those of training. What an
    analysis calls the place of an image is its place here.
    """
    order = np.random.default_rng(SAMPLE_SEED).permutation(len(split))[:num_images]
    return split.take(torch.from_numpy(order))


def analyze(
    run: SavedRun,
    folder: Path,
    data: HeldOut,
    num_images: int | None = None,
    batch_size: int | None = None,
) -> Analysis:
    """Measure everything that the model has, on a sample of the test split, and save it.

    A batch is a pool, as large as in training unless `batch_size` says otherwise. The capacity
    alone takes as many images as its pools need. Where questions are asked, an image is a
    question. Results lie in `folder/analysis`, old ones until all new ones are measured; then old
    ones that have no successor go, and all figures of the old ones, which `draw_analysis` draws.
    """
    model, classes, train = run.model, run.classes, run.experiment.train
    split = sample(data.test, num_images)
    pool = min(batch_size or train.batch_size // train.accumulation_steps, len(split))
    batches = partial(split.eval_batches, pool)
    analysis = Analysis(answers=measure_answers(model, batches(), classes))
    if isinstance(model, ViT) or (isinstance(model, AiT) and model.config.use_self_attention):
        analysis = analysis._replace(competition=measure_competition(model, batches()))
    if isinstance(model, AiT):
        analysis = analysis._replace(
            selection=measure_selection(model, batches()),
            drift=_measure_drift(folder),
            specialization=measure_specialization(model, batches(), classes),
            capacity=measure_capacity(model, sample(data.test).eval_batches(pool)),
        )
    if isinstance(model, AiT) and model.config.read == "hopfield":
        analysis = analysis._replace(
            basins=measure_basins(model, batches()),
            reconstruction=measure_reconstruction(model, batches()),
        )
    for name, result in analysis._asdict().items():
        if result is not None:
            save_result(result, folder / "analysis", name)
    _remove_stale(folder, analysis)
    return analysis


def load_analysis(folder: Path) -> Analysis | None:
    """Read back what `analyze` saved in the folder of a run; None where it saved nothing.

    Raises UserError where a result is damaged.
    """
    home = folder / "analysis"
    found: dict[str, Any] = {
        name: load_result(kind, home, name)
        for name, kind in _KINDS.items()
        if (home / f"{name}.json").exists()
    }
    return Analysis(**found) if found else None


def _remove_stale(folder: Path, analysis: Analysis) -> None:
    """Remove what an analysis before this one left: results it had more, and its figures."""
    for name, result in analysis._asdict().items():
        files = [folder / "figures" / f"{name}.{ending}" for ending in ("png", "svg")]
        if result is None:
            files += [folder / "analysis" / f"{name}.{ending}" for ending in ("json", "npz")]
        for file in files:
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                raise UserError(f"can't remove the old {file}: {error.strerror}") from error


def _measure_drift(folder: Path) -> Drift | None:
    path = folder / "memory.npz"
    if not path.exists():  # the run came without its history
        return None
    try:
        with np.load(path) as saved:
            priors = saved["priors"]
    except Exception as error:  # damaged archives make zipfile raise nearly anything
        raise UserError(
            f"{path} is damaged ({error}): remove it to do without the drift of the memory"
        ) from error
    return measure_drift(priors)
