"""How fast a run would train, score and save, measured with a few real steps."""

import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from accelerate.utils import ProjectConfiguration

from associative_transformer.compute import choose_precision
from associative_transformer.data import DataConfig
from associative_transformer.evaluate import evaluate_split
from associative_transformer.experiment import Experiment
from associative_transformer.runs.checkpoint import save_checkpoint
from associative_transformer.training.dry_run import time_steps
from associative_transformer.training.launch import make_accelerator
from associative_transformer.training.loop import TrainingRun
from associative_transformer.training.peak import synchronize

FEW_IMAGES = 512  # that are loaded to measure
ROUNDS = 2  # of scoring and saving; the faster one counts


@dataclass(frozen=True)
class Throughput:
    """Seconds of the parts of a training run."""

    step: float
    """An optimizer step, with the loading of its batch."""
    scored_image: float
    """The evaluation of an image."""
    save: float
    """A checkpoint, and the files of an epoch."""


def measure_throughput(experiment: Experiment) -> Throughput:
    """Measure a few steps on some of the images; the run folder is not written to."""
    few = replace(experiment, data=_with_few_images(experiment))
    accelerator = make_accelerator(few.train, ProjectConfiguration())
    try:
        run = TrainingRun(few, Path(), accelerator, is_resumed=False)
        run.take_step.precision, _ = choose_precision(run.config.precision, run.device, few.model)
        step = median(time_steps(run))
        size, classes = run.config.batch_size, few.model.num_classes
        scoring, saving = [], []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            with run.take_step.averaged():
                evaluate_split(run.model, run.data.test, size, classes, run.take_step.precision)
            synchronize(run.device)
            scoring.append((time.perf_counter() - start) / len(run.data.test))
            start = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                save_checkpoint(Path(folder), run.model, run.take_step, asdict(run.state))
            saving.append(time.perf_counter() - start)
        return Throughput(step, min(scoring), min(saving))
    finally:
        accelerator.end_training()


def _with_few_images(experiment: Experiment) -> DataConfig:
    """Return the data with a share of its images, loaded as all of them would be."""
    limit = max(FEW_IMAGES, 4 * experiment.train.batch_size, 4 * experiment.model.num_classes)
    return experiment.data.shortened(limit)
