"""The training loop: one run of an experiment, from its start or from its last checkpoint.

A run folder contains everything that tables, figures and reports read. `result.json` is written
last and marks the run as complete. On a CPU, a run that was stopped and resumed has the same
weights, memory, metrics and result as an uninterrupted one, bit for bit; only values under the
key `timing` depend on the clock.
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration

from associative_transformer import distributed
from associative_transformer.data import Share, Split
from associative_transformer.evaluate import Evaluation, evaluate_split, summarize
from associative_transformer.experiment import Experiment, load_data
from associative_transformer.models import build_model
from associative_transformer.runs.checkpoint import (
    TrainingState,
    load_best,
    restore_checkpoint,
    save_best,
    save_checkpoint,
)
from associative_transformer.runs.data_summary import write_data
from associative_transformer.runs.folder import History, as_recorded, check_folder, prepare_folder
from associative_transformer.runs.lock import check_free, hold_folder
from associative_transformer.runs.result import (
    BestValidation,
    RunResult,
    RunTiming,
    data_fields,
    score_fields,
    write_result,
)
from associative_transformer.runs.saved import digest_of_model, restore_result, save_model
from associative_transformer.runs.source import initialize_run, write_initialization
from associative_transformer.training import checks, memories, selection
from associative_transformer.training.computing import prepare_step
from associative_transformer.training.launch import make_accelerator, start_tracker
from associative_transformer.training.loss import build_loss
from associative_transformer.training.meter import EpochMeter
from associative_transformer.training.progress import TrainingProgress
from associative_transformer.training.signals import Interrupted, StopSignals
from associative_transformer.training.step import TrainingStep


def train(
    experiment: Experiment,
    folder: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_epoch_end: Callable[[Path], None] | None = None,
) -> RunResult:
    """Train in `folder` and return the content of its `result.json`.

    `on_epoch_end` is called with the folder after each epoch. Raises UserError for errors
    that the user can fix, and Interrupted if a signal stopped the run, which is saved first.
    """
    project = ProjectConfiguration(str(folder), logging_dir=str(folder / "tracker"))
    accelerator = make_accelerator(experiment.train, project)
    try:
        resume = checks.check_processes(experiment, folder, resume, overwrite)
        check_free(folder)
        check_folder(folder, experiment, resume, overwrite)
        if resume and (result := restore_result(folder, experiment)):
            return result
        run = TrainingRun(as_recorded(experiment, folder, resume), folder, accelerator, resume)
        if not run.is_main:
            return run.train(on_epoch_end)
        with hold_folder(folder):
            check_folder(folder, experiment, resume, overwrite)  # another process may have written
            prepare_folder(folder, run.experiment, run.device, resume)
            write_initialization(folder, run.initial)
            write_data(folder, experiment.data, run.data)
            return run.train(on_epoch_end)
    finally:
        accelerator.end_training()  # closes the tracker and the group of processes


class TrainingRun:
    """A run: its data, model and training step, and the state saved in its checkpoints."""

    def __init__(
        self, experiment: Experiment, folder: Path, accelerator: Accelerator, is_resumed: bool
    ) -> None:
        self.folder, self.config, self.accelerator = folder, experiment.train, accelerator
        self.device, self.is_main = accelerator.device, distributed.rank() == 0
        checks.check_size(experiment, self.device)
        parts = self.config.accumulation_steps
        self.share = Share(distributed.rank(), distributed.num_ranks(), parts)
        self.data = load_data(experiment, self.device, is_resumed)
        self.experiment = replace(experiment, data=experiment.data.as_loaded(self.data))
        self.data.check_classes(experiment.model.num_classes)
        selection.check(self.config.stopping, self.data, experiment.model.num_classes)
        self.steps_per_epoch = self.data.train.steps_per_epoch(self.config.batch_size)
        torch.manual_seed(self.config.seed)
        self.model = build_model(experiment.model)
        self.initial = initialize_run(experiment, self.model, folder, is_resumed)
        loss = build_loss(self.config.loss, self.data.train.labels, experiment.model.num_classes)
        self.take_step = TrainingStep(self.model, self.config, self.accelerator, loss)
        self.history = History()
        self.state = TrainingState(data=self.data.digest, pools=self.take_step.num_pools)
        self.meter = EpochMeter(self.state, self.config.batch_size, self.device)

    def train(self, on_epoch_end: Callable[[Path], None] | None = None) -> RunResult:
        """Train to the end and write the result."""
        self._restore()
        c, done = self.config, self._steps_done()
        start_tracker(self.accelerator, self.experiment, done)
        bar = TrainingProgress(c.epochs, self.steps_per_epoch, done, self.is_main)
        lines = checks.describe_data(self.experiment, self.data)
        lines += [] if self.initial is None else self.initial.describe().splitlines()
        for line in [*checks.list_notes(c, self.steps_per_epoch), *lines]:
            bar.write(line)
        stop = StopSignals(checks.agree if self.share.num_ranks > 1 else None)
        with stop, bar:
            num_steps = c.epochs * self.steps_per_epoch - done
            prepare_step(self.take_step, self.state, self.experiment, num_steps, bar.write)
            self._train_epochs(stop, bar, on_epoch_end)
            self.take_step.finish()
            with stop.interruptible():
                return self._finish(self._evaluate(self.data.test))

    def _restore(self) -> None:
        """Load the last checkpoint, if there is one."""
        step = self.take_step
        with distributed.first_alone():  # rank 0 may rename a damaged checkpoint
            saved = restore_checkpoint(self.folder / "checkpoint", self.model, step)
        distributed.check_same((saved, self.state.data))
        if saved is not None:
            current, self.state = self.state, TrainingState(**saved)
            self.state.check_resumable(current, self.folder, self.data)
            self.history = History.read(self.folder, self.state.epoch)
            self.meter.resume(self.state)
            step.skipped.restore(self.state.skipped_steps, self.state.bad_steps)

    def _train_epochs(
        self,
        stop: StopSignals,
        bar: TrainingProgress,
        on_epoch_end: Callable[[Path], None] | None,
    ) -> None:
        """Train the remaining epochs; save the run if a signal stops it."""
        try:
            while not selection.is_done(self.state, self.config):
                self._train_epoch(stop, bar)
                with stop.interruptible():
                    split = self.data.validation
                    validation = None if split is None else self._evaluate(split)
                self._end_epoch(validation, bar)
                with stop.interruptible():
                    if on_epoch_end and self.is_main:
                        on_epoch_end(self.folder)
        except Interrupted:
            self._save()
            raise

    def _train_epoch(self, stop: StopSignals, bar: TrainingProgress) -> None:
        """Take the remaining steps of the epoch."""
        c, state = self.config, self.state
        if state.step == 0:
            self.take_step.reset_memories(state.epoch)
        self.take_step.set_training_mode()
        self.meter.start_clock()
        batches = self.data.train.train_batches(
            c.batch_size, c.seed, state.epoch, state.step, self.share
        )
        for batch in batches:
            if self.share.num_ranks == 1 or state.step % c.log_every == 0:
                stop.check()  # several processes wait for each other here
            self.take_step.seed(state.epoch, state.step + 1)  # for dropout
            self.take_step.set_learning_rate(state.epoch, state.step, self.steps_per_epoch)
            self.meter.add(self.take_step(batch))
            is_last = state.step == self.steps_per_epoch
            if is_last or state.step % c.log_every == 0:  # both calls wait for the device
                self.take_step.skipped.check()
                self._log(bar)
            elif state.step == 1:
                bar.show(self.meter.metrics())
            is_due = c.checkpoint_every and state.step % c.checkpoint_every == 0
            if is_due and not is_last:  # the end of an epoch is saved anyway
                self._save()
        self.meter.stop_clock()

    def _evaluate(self, split: Split) -> Evaluation:
        """Score a split in the precision of the run, as `ait eval` does."""
        size, num_classes = self.config.batch_size, self.experiment.model.num_classes
        with self.take_step.averaged():
            return evaluate_split(self.model, split, size, num_classes, self.take_step.precision)

    def _end_epoch(self, validation: Evaluation | None, bar: TrainingProgress) -> None:
        """Write the metrics of the epoch, then save the run as of the start of the next one."""
        metrics = self.meter.metrics()
        row = self.meter.row(metrics, self.take_step.learning_rate, self.take_step.skipped.total)
        line = f"epoch {metrics.epoch}/{self.config.epochs}  {metrics}"
        if validation is not None:
            row["validation"] = {"accuracy": validation.accuracy, "loss": validation.loss}
            self._track("validation", row["validation"])
            line += f"  validation {validation.accuracy:.2f} %"
            if selection.record(self.state, self.config.stopping, validation, metrics.epoch):
                self._keep_best()
            if selection.stops_early(self.state, self.config):
                line += f"  no progress in {self.state.stale_epochs} epochs: training stops"
        before = self.history.metrics[-1]["skipped_steps"] if self.history.metrics else 0
        if skipped := row["skipped_steps"] - before:
            line += f"  {skipped} of {self.steps_per_epoch} steps skipped"
        for each in [line, *memories.report_collapse(self.state, self.take_step.workspaces)]:
            bar.write(each)
        self.history.metrics.append(row)
        self.history.memory.append(memories.copy_priors(self.take_step.workspaces))
        if self.is_main:
            self.history.write(self.folder)
        self.meter.start_next_epoch()
        self._save()

    def _keep_best(self) -> None:
        """Save the weights as those of the best epoch."""
        state = self.state
        if self.is_main:
            with self.take_step.averaged():
                state.best_digest = save_best(self.folder / "checkpoint", self.model)
        state.best_digest = distributed.gather_objects(state.best_digest)[0]

    def _save(self) -> None:
        state, step = self.state, self.take_step
        self.meter.store()
        state.skipped_steps, state.bad_steps = step.skipped.total, step.skipped.in_a_row
        if self.is_main:
            save_checkpoint(self.folder / "checkpoint", self.model, step, asdict(state))

    def _finish(self, last: Evaluation) -> RunResult:
        """Score the best epoch, save the model, write the result. `last` scores the last epoch."""
        state, c, best = self.state, self.config, self._score_best()
        checks.check_outcome(state.skipped_steps, self._steps_done(), last.loss, best)
        seconds = state.timing["run"]
        result = RunResult(
            name=self.experiment.name,
            seed=c.seed,
            question_types=self.experiment.data.question_types,
            **score_fields(summarize(last, self.data)),  # of the last epoch
            best_validation=best,
            model="last epoch" if best is None else "best validation epoch",
            epochs=state.epoch,
            skipped_steps=state.skipped_steps,
            skipped_images=self.data.num_skipped,
            **data_fields(self.data),
            data=state.data,
            precision=state.precision,
            test_precision=self.take_step.precision,
            compiled=bool(state.compiled),
            live_parameters=sum(p.numel() for p in self.model.parameters()),
            total_parameters=self.model.reference_parameters(),
            classes=tuple(self.data.class_names),
            timing=RunTiming(
                seconds=seconds,
                samples_per_second=self._steps_done() * c.batch_size / seconds,
                finished=date.today().isoformat(),
            ),
        )
        if self.is_main:
            save_model(self.folder, self.model, self.experiment, result)
            result = replace(result, weights=digest_of_model(self.folder))
            write_result(self.folder, result)
        self._track("test", {"accuracy": last.accuracy, "loss": last.loss})  # last: only once
        return result

    def _score_best(self) -> BestValidation | None:
        """Load and score the weights of the best epoch; return None without validation images."""
        split = self.data.validation
        if self.state.best_epoch is None or split is None:
            return None
        load_best(self.folder / "checkpoint", self.model, self.state.best_digest)
        temperature = self._evaluate(split).fit_temperature()
        return BestValidation(
            epoch=self.state.best_epoch,
            validation_accuracy=self.state.best_accuracy,
            **score_fields(summarize(self._evaluate(self.data.test), self.data, temperature)),
        )

    def _log(self, bar: TrainingProgress) -> None:
        bar.show(metrics := self.meter.metrics())
        self._track("train", {**metrics._asdict(), "lr": self.take_step.learning_rate})
        if self.take_step.workspaces:
            self.state.health = memories.measure_health(self.model)
            self._track("memory", memories.name_by_layer(self.state.health))

    def _track(self, part: str, values: dict[str, int | float]) -> None:
        named = {f"{part}/{name}": value for name, value in values.items()}
        self.accelerator.log(named, self._steps_done())

    def _steps_done(self) -> int:
        return self.state.epoch * self.steps_per_epoch + self.state.step
