"""The training loop: one run of an experiment, from nothing or from its last checkpoint.

A run folder holds all that tables, figures and reports read; `result.json` is written last and
only when the run is complete. On a CPU a run that was stopped and resumed gives the weights,
memory, metrics and result of an undisturbed one, bit for bit; what depends on the clock stands
under the key `timing`.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import ProjectConfiguration
from safetensors import SafetensorError

from associative_transformer import distributed
from associative_transformer.data import Share, Split, load_data
from associative_transformer.evaluate import Evaluation, evaluate_split, summarize
from associative_transformer.experiment import Experiment, fields_of
from associative_transformer.files import write_file
from associative_transformer.interface import UserError
from associative_transformer.models import build_model
from associative_transformer.runs.checkpoint import (
    TrainingState,
    load_best,
    restore_checkpoint,
    save_best,
    save_checkpoint,
)
from associative_transformer.runs.folder import History, check_folder, prepare_folder
from associative_transformer.runs.lock import check_free, hold_folder
from associative_transformer.runs.result import read_result
from associative_transformer.training.progress import Standing, TrainingProgress
from associative_transformer.training.schedule import learning_rate
from associative_transformer.training.signals import Interrupted, StopSignals
from associative_transformer.training.step import Sums, TrainingStep, make_accelerator

Result = dict[str, Any]


def train(
    experiment: Experiment,
    folder: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_epoch_end: Callable[[Path], None] | None = None,
) -> Result:
    """Train in `folder` and return what its `result.json` says.

    `on_epoch_end` is called with the folder after each epoch. Raises UserError for what the user
    can mend, and Interrupted when a signal stopped the run and it has saved itself.
    """
    check_free(folder)
    check_folder(folder, experiment, resume, overwrite)
    if resume and (result := read_result(folder)):
        return result
    run = Run(experiment, folder)  # finds what is wrong before anything is written
    if not run.is_main:
        return run(on_epoch_end)
    with hold_folder(folder):
        check_folder(folder, experiment, resume, overwrite)  # others may have been here since
        prepare_folder(folder, experiment, run.device, resume)
        return run(on_epoch_end)


class Run:
    """The data, the model, its training step, and where they stand."""

    def __init__(self, experiment: Experiment, folder: Path) -> None:
        self.experiment, self.folder, self.config = experiment, folder, experiment.train
        project = ProjectConfiguration(str(folder), logging_dir=str(folder / "tracker"))
        self.accelerator = make_accelerator(self.config, project)
        self.device, self.is_main = self.accelerator.device, distributed.rank() == 0
        self.share = Share(
            distributed.rank(), distributed.num_ranks(), self.config.accumulation_steps
        )
        self.data = load_data(experiment.data, self.device)
        self.data.check_classes(experiment.model.num_classes)
        self.steps_per_epoch = self.data.train.steps_per_epoch(self.config.batch_size)
        torch.manual_seed(self.config.seed)
        self.model = build_model(experiment.model)
        self.take_step = TrainingStep(self.model, self.config, self.accelerator)
        self.history = History()
        precision = "bfloat16" if self.accelerator.mixed_precision == "bf16" else "float32"
        self.state = TrainingState(
            data=self.data.digest, precision=precision, pools=self.take_step.num_pools
        )
        self.sums = torch.zeros(len(Sums._fields), dtype=torch.float64, device=self.device)
        self.since = 0.0

    def __call__(self, on_epoch_end: Callable[[Path], None] | None = None) -> Result:
        """Train to the end and write the result."""
        self._restore()
        if self.config.tracker != "none":
            fields = {  # TensorBoard takes neither lists nor None
                name: value if isinstance(value, int | float | str) else str(value)
                for name, value in fields_of(self.experiment).items()
            }
            self.accelerator.init_trackers("associative_transformer", fields)
        epochs, state = self.config.epochs, self.state
        done = state.epoch * self.steps_per_epoch + state.step
        try:
            with (
                StopSignals(is_alone=self.share.num_ranks == 1) as stop,
                TrainingProgress(epochs, self.steps_per_epoch, done, self.is_main) as bar,
            ):
                while state.epoch < epochs:
                    self._train_epoch(stop, bar)
                    self._end_epoch(stop, bar)
                    with stop.interruptible():  # all is saved
                        if on_epoch_end and self.is_main:
                            on_epoch_end(self.folder)
                    self._stop_if_asked(stop)
                with stop.interruptible():
                    return self._finish(stop)
        finally:
            self.accelerator.end_training()  # closes the tracker

    def _train_epoch(self, stop: StopSignals, bar: TrainingProgress) -> None:
        c, state = self.config, self.state
        for group in self.take_step.optimizer.param_groups:
            group["lr"] = learning_rate(c, state.epoch)
        if state.step == 0:
            self._reset_memories()
        self.sums.copy_(torch.tensor(state.sums, dtype=torch.float64) * self.is_main)
        self.since = time.perf_counter() - state.timing["epoch"]
        self.model.train()
        batches = self.data.train.train_batches(
            c.batch_size, c.seed, state.epoch, state.step, self.share
        )
        for batch in batches:
            self.take_step.seed(state.epoch, state.step + 1)  # of dropout: the same when resumed
            self.sums += self.take_step(batch)
            state.step += 1
            is_last = state.step == self.steps_per_epoch
            may_wait = is_last or state.step % c.log_every == 0
            if may_wait:
                self.take_step.check()
                self._log(bar)
            elif state.step == 1:
                bar.show(self._standing())
            if not is_last:  # the end of an epoch saves by itself
                if c.checkpoint_every and state.step % c.checkpoint_every == 0:
                    self._save()
                if may_wait or self.share.num_ranks == 1:
                    self._stop_if_asked(stop)

    def _end_epoch(self, stop: StopSignals, bar: TrainingProgress) -> None:
        state, standing, seconds = self.state, self._standing(), self._seconds()
        row: dict[str, Any] = {
            "epoch": standing.epoch,
            "lr": learning_rate(self.config, state.epoch),
            "loss": standing.loss,
            "balance_loss": standing.balance_loss,
            "accuracy": standing.accuracy,
            "skipped_steps": self.take_step.num_skipped,
            "timing": {"seconds": seconds, "samples_per_second": standing.samples_per_second},
        }
        line = f"epoch {standing.epoch}/{self.config.epochs}  {standing}"
        if self.data.validation is not None:
            with stop.interruptible(self._save):
                scored = self._evaluate(self.data.validation)
            row["validation"] = {"accuracy": scored.accuracy, "loss": scored.loss}
            self._track("validation", row["validation"])
            line += f"  validation {scored.accuracy:.2f} %"
            if scored.accuracy > state.best_accuracy:
                state.best_epoch, state.best_accuracy = standing.epoch, scored.accuracy
                if self.is_main:
                    state.best_digest = save_best(self.folder / "checkpoint", self.model)
                state.best_digest = distributed.gather_objects(state.best_digest)[0]
        bar.write(line)
        priors = [workspace.priors.cpu().numpy() for workspace in self.take_step.workspaces]
        self.history.metrics.append(row)
        self.history.memory.append(np.array(priors))
        if self.is_main:
            self.history.write(self.folder)
        self.sums.zero_()
        state.epoch, state.step = state.epoch + 1, 0
        state.timing = {"epoch": 0.0, "run": state.timing["run"] + seconds}
        self._save()

    def _finish(self, stop: StopSignals) -> Result:
        """Score the test images, save the model, and write the result last of all."""
        state, c = self.state, self.config
        last = self._evaluate(self.data.test)
        self._track("test", {"accuracy": last.accuracy, "loss": last.loss})
        self._stop_if_asked(stop)
        best: dict[str, Any] | None = None
        if state.best_epoch is not None:
            load_best(self.folder / "checkpoint", self.model, state.best_digest)
            best = {"epoch": state.best_epoch, "validation_accuracy": state.best_accuracy}
            best |= summarize(self._evaluate(self.data.test), self.data, "test_")
        seconds = state.timing["run"]
        rate = c.epochs * self.steps_per_epoch * c.batch_size / seconds
        today = date.today().isoformat()
        result = {
            "name": self.experiment.name,
            "seed": c.seed,
            "question_types": list(getattr(self.experiment.data, "question_types", ())),
            **summarize(last, self.data, "test_"),  # of the last epoch
            "best_validation": best,
            "model": "last epoch" if best is None else "best validation epoch",
            "epochs": c.epochs,
            "skipped_steps": state.skipped_steps,
            "skipped_images": self.data.num_skipped,
            "data": state.data,
            "precision": state.precision,
            "live_parameters": sum(p.numel() for p in self.model.parameters()),
            "total_parameters": self.model.reference_parameters(),
            "classes": list(self.data.class_names),
            "timing": {"seconds": seconds, "samples_per_second": rate, "finished": today},
        }
        if self.is_main:
            self._save_model()
            write_file(self.folder / "result.json", json.dumps(result, indent=2).encode())
        return result

    def _save_model(self) -> None:
        try:
            self.model.save_pretrained(self.folder)
        except (OSError, SafetensorError) as error:
            raise UserError(f"can't write the model to {self.folder}: {error}") from error

    def _standing(self) -> Standing:
        loss, balance_loss, correct, images = distributed.add(self.sums).tolist()
        images = max(images, 1.0)
        return Standing(
            epoch=self.state.epoch + 1,
            step=self.state.step,
            loss=loss / images,
            balance_loss=balance_loss / images,
            accuracy=100 * correct / images,
            samples_per_second=self.state.step * self.config.batch_size / self._seconds(),
        )

    def _seconds(self) -> float:
        """Seconds of training in the epoch under way, those before a resumption included."""
        return time.perf_counter() - self.since

    def _log(self, bar: TrainingProgress) -> None:
        standing = self._standing()
        bar.show(standing)
        self._track(
            "train", {**standing._asdict(), "lr": learning_rate(self.config, self.state.epoch)}
        )

    def _track(self, part: str, values: dict[str, int | float]) -> None:
        step = self.state.epoch * self.steps_per_epoch + self.state.step
        self.accelerator.log({f"{part}/{name}": value for name, value in values.items()}, step)

    def _evaluate(self, split: Split) -> Evaluation:
        """Score in float32, as `ait eval` does."""
        num_classes = self.experiment.model.num_classes
        return evaluate_split(self.model, split, self.config.batch_size, num_classes)

    def _reset_memories(self) -> None:
        self.take_step.seed(self.state.epoch, 0)
        for workspace in self.take_step.workspaces:
            if workspace.config.reset_each_epoch:
                workspace.reset()

    def _stop_if_asked(self, stop: StopSignals) -> None:
        signum = max(distributed.gather_objects(stop.signum or 0))  # the same on all ranks
        if signum:
            self._save()
            raise Interrupted(signum)

    def _save(self) -> None:
        state, step = self.state, self.take_step
        state.sums = distributed.add(self.sums).tolist()
        state.skipped_steps, state.bad_steps = step.num_skipped, step.num_bad
        if state.step:
            state.timing["epoch"] = self._seconds()
        if self.is_main:
            save_checkpoint(self.folder / "checkpoint", self.model, step.optimizer, asdict(state))

    def _restore(self) -> None:
        """Take up the last checkpoint, where there is one."""
        step = self.take_step
        with distributed.first_alone():  # it has made the folder, and sets aside what is damaged
            saved = restore_checkpoint(self.folder / "checkpoint", self.model, step.optimizer)
        distributed.check_same((saved, self.state.data))
        if saved is not None:
            here, self.state = self.state, TrainingState(**saved)
            self.state.check_resumable(here, self.folder)
            self.history = History.read(self.folder, self.state.epoch)
            step.restore_counts(self.state.skipped_steps, self.state.bad_steps)
