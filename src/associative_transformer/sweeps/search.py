"""A search with Optuna, which stops runs that are worse than the median on validation images.

The study is stored in SQLite. The values of a trial depend only on the seed and on the trials that
ended before it: a search that is continued proposes the values of the trial that was stopped
again, so that its run is resumed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from associative_transformer.experiment import Experiment
from associative_transformer.interface import UserError
from associative_transformer.runs.plan import PlannedRun, plan_variants
from associative_transformer.runs.reading import read_rows
from associative_transformer.sweeps.scores import Trial, score_runs
from associative_transformer.sweeps.space import Choice, Range, describe, vary
from associative_transformer.training.loop import train

if TYPE_CHECKING:
    import optuna

STUDY = "study.db"
ERROR = "error"  # attribute of a trial that cannot succeed: its message


@dataclass
class Search:
    """A search over fields of an experiment, stored in a folder."""

    recipe: Experiment
    experiment: Experiment
    """The recipe with what all trials have in common."""
    space: Sequence[Choice | Range]
    runs: Path
    """Folder of all runs."""
    folder: Path
    """Folder of the search."""
    write: Callable[[str], None]
    """Gets a line when a trial starts or ends early."""
    study: "optuna.Study" = field(init=False)

    def __post_init__(self) -> None:
        self.study = _open_study(self.folder / STUDY, self.experiment.train.schedule.warmup_epochs)

    def run(self, num_trials: int) -> None:
        """Run trials until there are `num_trials`, with those of earlier calls."""
        import optuna

        for stale in self.study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            self.study.tell(stale.number, state=optuna.trial.TrialState.FAIL)
        while (done := len(self._ended())) < num_trials:
            seed = (self.experiment.train.seed + done) % 2**32
            self.study.sampler = optuna.samplers.TPESampler(seed=seed)
            trial = self.study.ask()
            values = {part.field: _suggest(trial, part) for part in self.space}
            self.write(f"\n[{done + 1}/{num_trials}] {describe(values)}")
            self._try(trial, values)

    def trials(self) -> list[Trial]:
        """Return the trials that have ended, each combination of values once."""
        found = {}
        for each in self._ended():
            values = {part.field: _value_of(part, each.params[part.field]) for part in self.space}
            found[describe(values)] = self._score(each, values)
        return list(found.values())

    def plan(self, values: dict[str, Any]) -> PlannedRun:
        """Return the run of a combination. Raises UserError if the combination is invalid."""
        variant = vary(self.experiment, values)
        seeds = (self.experiment.train.seed,)
        (run,) = plan_variants(self.recipe, {describe(values): variant}, seeds, self.runs)
        return run

    def _try(self, trial: "optuna.Trial", values: dict[str, Any]) -> None:
        """Train a trial and report how it ended; an error that its values cause ends only it."""
        import optuna

        watch = _Watch(trial)
        try:
            run = self.plan(values)
            train(run.experiment, run.folder, resume=run.is_started, on_epoch_end=watch)
        except optuna.TrialPruned:
            self.write(f"pruned after epoch {watch.epochs}: {watch.last:.2f} % of validation")
            self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        except (UserError, MemoryError, torch.OutOfMemoryError) as error:
            self.write(f"failed: {error or 'out of memory'}")
            trial.set_user_attr(ERROR, str(error))
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            self.study.tell(trial, score_runs(values, [run], "failed").score)

    def _ended(self) -> "list[optuna.trial.FrozenTrial]":
        """Return the trials that need not be run again."""
        from optuna.trial import TrialState

        return [
            each
            for each in self.study.get_trials(deepcopy=False)
            if each.state in (TrialState.COMPLETE, TrialState.PRUNED) or ERROR in each.user_attrs
        ]

    def _score(self, trial: "optuna.trial.FrozenTrial", values: dict[str, Any]) -> Trial:
        from optuna.trial import TrialState

        if trial.state == TrialState.COMPLETE:
            return score_runs(values, [self.plan(values)], "missing")
        if trial.state == TrialState.FAIL:
            return Trial(values=values, state="failed", validation=(), folders=("-",))
        reported = trial.intermediate_values
        return Trial(
            values=values,
            state="pruned",
            validation=(max(reported.values()),),
            epochs=max(reported),
            folders=(str(self.plan(values).folder),),
        )


class _Watch:
    """Report each epoch of a run to its trial, and stop it if the trial is to be pruned."""

    def __init__(self, trial: "optuna.Trial") -> None:
        self.trial, self.epochs, self.last = trial, 0, 0.0

    def __call__(self, folder: Path) -> None:
        import optuna

        for row in read_rows(folder / "metrics.jsonl", None)[self.epochs :]:
            self.epochs, self.last = row["epoch"], row["validation"]["accuracy"]
            self.trial.report(self.last, self.epochs)
        if self.trial.should_prune():
            raise optuna.TrialPruned


def check_optuna() -> None:
    """Raise UserError if Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise UserError(
            "--search needs Optuna, which is not installed: "
            'pip install "associative-transformer[optuna]"'
        ) from None


def _open_study(path: Path, warmup_epochs: int) -> "optuna.Study":
    """Open or create a study; no run is pruned during the warm-up of its learning rate."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(
            storage=f"sqlite:///{path.absolute()}",
            study_name=path.parent.name,
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(n_warmup_steps=warmup_epochs + 1),
            load_if_exists=True,
        )
    except Exception as error:  # a damaged file can raise nearly anything
        reason = str(error).splitlines()[0]
        raise UserError(
            f"cannot open the study {path} ({reason}): remove it to start the search again; "
            "finished runs are kept"
        ) from error


def _suggest(trial: "optuna.Trial", part: Choice | Range) -> Any:  # noqa: ANN401
    if isinstance(part, Choice):
        return _value_of(part, trial.suggest_categorical(part.field, list(map(str, part.values))))
    if part.is_whole:
        return trial.suggest_int(part.field, int(part.low), int(part.high), log=part.is_log)
    return trial.suggest_float(part.field, part.low, part.high, log=part.is_log)


def _value_of(part: Choice | Range, stored: Any) -> Any:  # noqa: ANN401
    """Return the value of a field that a study stores, which holds choices as text."""
    if isinstance(part, Choice):
        return next(value for value in part.values if str(value) == stored)
    return stored
