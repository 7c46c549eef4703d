"""`ait sweep`: train a recipe with several values of some fields, and compare them."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from associative_transformer import distributed
from associative_transformer.cli.options import (
    RUNS,
    check_counts,
    check_seeds,
    check_trained,
    find_config,
    format_command,
    parse,
    read_recipe,
    say,
    table_width,
)
from associative_transformer.experiment import Experiment, fingerprint
from associative_transformer.interface import UserError, format_count
from associative_transformer.runs.overrides import override, read_overrides
from associative_transformer.runs.plan import PlannedRun

if TYPE_CHECKING:
    from associative_transformer.sweeps.scores import Trial

USAGE = """usage: ait sweep RECIPE --grid FIELD=VALUE,VALUE ... [--help] [options]
       ait sweep RECIPE --search FIELD=LOW..HIGH ... [--help] [options]

Train a recipe with several values of some fields, and compare them on validation images.
`ait sweep RECIPE --help` lists the options, `ait list` describes the recipes.

recipes:"""
SWEEPS = "sweeps"  # folder with the tables, in the folder of all runs


@dataclass(frozen=True)
class SweepOptions:
    """Train a recipe with several values of some fields; run the command again to continue.

    Results are compared on validation images, never on test images.
    """

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    grid: tuple[str, ...] = ()
    """Try all combinations, as in: --grid train.lr=1e-3,2e-3 model.depth=2,4."""
    search: tuple[str, ...] = ()
    """Search with Optuna, as in: --search train.lr=1e-4..1e-2:log model.depth=2..6."""
    trials: int = 20
    """Number of combinations that --search tries, with those of earlier calls."""
    seeds: tuple[int, ...] | None = None
    """Train each combination of --grid with each of these seeds; None: only with --train.seed."""
    config: Path | None = None
    """YAML file with overrides, nested as in experiment.yaml; options take precedence."""
    runs: Path = RUNS
    """Folder of all runs."""

    def __post_init__(self) -> None:
        check_counts(trials=self.trials)
        if self.grid and self.search:
            raise ValueError("--grid and --search exclude each other: pass one of them")
        if self.search and len(self.seeds or (0,)) > 1:
            raise ValueError("--search takes one seed: omit --seeds, or use --grid")


def run(arguments: list[str]) -> None:
    """Train all combinations and print a table, the best one first."""
    recipe = read_recipe("sweep", USAGE, arguments)
    if recipe is None:
        return
    words = arguments[1:]
    file = find_config(words)
    default = recipe
    if file is not None:
        default = override(recipe, read_overrides(file, recipe), str(file))
    options = parse(SweepOptions, words, f"sweep {recipe.name}", SweepOptions(default))
    check_seeds(options.seeds, words)
    if not options.grid and not options.search:
        raise UserError(
            "`ait sweep` needs values to try: pass --grid FIELD=VALUE,VALUE, such as "
            "--grid train.lr=1e-3,2e-3, or --search FIELD=LOW..HIGH"
        )
    if distributed.is_launched():
        raise UserError("`ait sweep` starts its own processes: start it without a launcher")
    if options.grid:
        _run_grid(options, recipe)
    else:
        _run_search(options, recipe)


def _run_grid(options: SweepOptions, recipe: Experiment) -> None:
    """Train each combination with each seed, each run in a process of its own."""
    from associative_transformer.runs.lock import hold_folder
    from associative_transformer.runs.plan import plan_variants
    from associative_transformer.sweeps.scores import score_runs
    from associative_transformer.sweeps.space import (
        check_validation,
        combinations,
        describe,
        parse_grid,
        vary,
    )
    from associative_transformer.training.run_all import announce_run, train_runs

    experiment = options.experiment
    values = {describe(each): each for each in combinations(parse_grid(options.grid, experiment))}
    variants = {label: vary(experiment, each) for label, each in values.items()}
    seeds = options.seeds or (experiment.train.seed,)
    planned = plan_variants(recipe, variants, seeds, options.runs)
    check_validation(experiment.data)
    folder = _folder(options, [*values], seeds)
    num_complete = sum(run.is_complete for run in planned)
    count = format_count(len(planned), "run")
    say(f"{count} of {format_count(len(values), 'combination')}, {num_complete} of them complete")

    def announce(position: int, run: PlannedRun) -> None:
        say(f"\n{announce_run(position, planned)}")

    with hold_folder(folder):
        failed = train_runs(planned, announce)
    by_label = {label: [run for run in planned if run.label == label] for label in values}
    trials = [score_runs(values[label], runs, "failed") for label, runs in by_label.items()]
    _print_results(options, recipe, folder, trials, by_label)
    check_trained(planned, failed)


def _run_search(options: SweepOptions, recipe: Experiment) -> None:
    """Search with Optuna, in this process."""
    from associative_transformer.compute import set_up_cpu
    from associative_transformer.runs.lock import hold_folder
    from associative_transformer.sweeps.search import Search, check_optuna
    from associative_transformer.sweeps.space import check_validation, describe, parse_search

    check_optuna()
    experiment = options.experiment
    if options.seeds:
        experiment = override(experiment, {"train.seed": options.seeds[0]}, "--seeds")
    space = parse_search(options.search, experiment)
    check_validation(experiment.data)
    folder = _folder(options, list(map(repr, space)), (experiment.train.seed,))
    set_up_cpu()
    with hold_folder(folder):
        search = Search(recipe, experiment, space, options.runs, folder, say)
        search.run(options.trials)
        trials = search.trials()
    planned = {
        describe(each.values): [search.plan(each.values)]
        for each in trials
        if each.state != "failed"
    }
    _print_results(options, recipe, folder, trials, planned)
    if not any(trial.state == "complete" for trial in trials):
        raise UserError(f"none of {format_count(len(trials), 'trial')} is complete: see above")


def _folder(options: SweepOptions, parts: list[str], seeds: tuple[int, ...]) -> Path:
    """Return the folder of a sweep, whose name depends on everything but the number of trials."""
    content = json.dumps([fingerprint(options.experiment), parts, list(seeds)])
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    return options.runs / SWEEPS / f"{options.experiment.name}+{digest}"


def _print_results(
    options: SweepOptions,
    recipe: Experiment,
    folder: Path,
    trials: "list[Trial]",
    planned: dict[str, list[PlannedRun]],
) -> None:
    """Print and save the table, with the commands for the best combination, if there is one."""
    from associative_transformer.sweeps.scores import (
        sort_trials,
        tabulate_trials,
        train_on_all,
        write_scores,
    )
    from associative_transformer.sweeps.space import describe

    ordered = sort_trials(trials)
    tried = {"recipe": recipe.name, "tried": [*options.grid, *options.search]}
    best = ordered[0]
    if best.state != "complete":
        write_scores(folder, ordered, tried)
        return
    run = planned[describe(best.values)][0]
    words = train_on_all(run, recipe)
    command = None if words is None else format_command(*words)
    write_scores(folder, ordered, {**tried, "best": best.values, "train_on_all": command})
    table = tabulate_trials(f"sweep of {options.experiment.name}", ordered)
    say("\n" + table.to_terminal(table_width()))
    say(f"written       {folder / 'table.csv'}, {folder / 'sweep.json'}")
    say(f"best          {describe(best.values)}: {best.score:.2f} % of the validation images")
    say(f"next          {format_command('eval', str(run.folder))}")
    if command is not None:
        say("to train it on the validation images too:")
        say(f"              {command}")
