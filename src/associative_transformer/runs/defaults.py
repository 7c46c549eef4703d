"""Defaults that have changed since version 0.1, and runs that were started with the old ones.

Every field of a run is saved. A recipe, however, always has the defaults of today, so that
`--resume` would find a difference that nobody asked for.
"""

import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from associative_transformer import distributed
from associative_transformer.experiment import (
    Experiment,
    fingerprint,
    list_fields,
    load_experiment,
)
from associative_transformer.runs.reading import exists


class Change(NamedTuple):
    """A default of version 0.1, and the one of today."""

    before: object
    now: object


CHANGED_DEFAULTS = {"model.workspace.dropout": Change(0.0, 0.1)}
"""The fields whose default has changed, by dotted name."""


def old_defaults(experiment: Experiment, given: Collection[str] = ()) -> dict[str, object]:
    """Return the old value of each field that has the default of today, by dotted name.

    The fields in `given` were set by the user, so they do not count.
    """
    values = list_fields(experiment)
    return {
        name: change.before
        for name, change in CHANGED_DEFAULTS.items()
        if name not in given and values.get(name) == change.now
    }


def with_fields(experiment: Experiment, values: dict[str, object]) -> Experiment:
    """Return an experiment with other values of some fields, by dotted name."""
    for name, value in values.items():
        experiment = _replace(experiment, name.split("."), value)
    return experiment


def named(experiment: Experiment, recipe: Experiment) -> Experiment:
    """Return an experiment named RECIPE+FINGERPRINT if it overrides fields and has no own name."""
    if experiment.name != recipe.name or fingerprint(experiment) == fingerprint(recipe):
        return experiment
    return replace(experiment, name=f"{recipe.name}+{fingerprint(experiment)}")


def run_folder(experiment: Experiment, runs: Path) -> Path:
    """Return the folder of a run, in the folder of all runs."""
    return runs / experiment.name / str(experiment.train.seed)


def as_started(
    experiment: Experiment, recipe: Experiment, runs: Path, given: Collection[str] = ()
) -> Experiment:
    """Return the experiment, named, of the run to resume, with the defaults it was started with.

    A field that has the default of today, and that the user has not set, gets the old default if
    the saved run has it; a line on stderr says so. Raises UserError if the experiment of that run
    cannot be read.
    """
    old = old_defaults(experiment, given)
    old_recipe = with_fields(recipe, old_defaults(recipe))  # which named the runs of its time
    today, *earlier = (
        named(experiment, recipe),
        named(with_fields(experiment, old), old_recipe),
        named(experiment, old_recipe),
    )
    for candidate in (today, *earlier):
        folder = run_folder(candidate, runs)
        if not exists(folder / "experiment.yaml"):
            continue
        saved = list_fields(load_experiment(folder / "experiment.yaml"))
        kept = {name: value for name, value in old.items() if saved.get(name) == value}
        resumed = replace(with_fields(experiment, kept), name=candidate.name)
        fields = list_fields(resumed)
        if any(fields.get(name) != saved.get(name) for name in CHANGED_DEFAULTS):
            continue
        for name, value in kept.items() if distributed.is_first() else ():
            print(
                f"the run in {folder} keeps {name} {value}, the default when it was started; to "
                f"train with {CHANGED_DEFAULTS[name].now}, pass --overwrite or another --name",
                file=sys.stderr,
            )
        return resumed
    return today


def _replace(config: Any, path: list[str], value: object) -> Any:  # noqa: ANN401
    first, *rest = path
    new = _replace(getattr(config, first), rest, value) if rest else value
    return replace(config, **{first: new})
