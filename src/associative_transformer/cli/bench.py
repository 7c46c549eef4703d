"""`ait bench`: measure speed and memory side by side, and check the recorded ratios."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from associative_transformer.cli.mistakes import find_similar, join_or
from associative_transformer.cli.options import (
    check_counts,
    check_output,
    choose_device,
    open_output,
    parse,
)
from associative_transformer.interface import UserError

if TYPE_CHECKING:
    import associative_transformer.bench
    import associative_transformer.experiment
    import associative_transformer.runs.environment


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of every benchmark."""

    rounds: int = 10
    """Number of timed rounds, after two rounds of warm-up."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Numeric precision; bfloat16 is autocast, and auto selects it on a device with instructions
    for it."""
    compile: bool = False
    """Compile the measured function with torch.compile."""
    device: Literal["auto", "cpu"] = "auto"
    """Device to measure on; auto is a GPU if there is one."""
    format: Literal["terminal", "markdown", "json"] = "terminal"
    """Output format; json also describes the environment."""
    output: Path | None = None
    """File to write; None: print to the terminal."""

    def __post_init__(self) -> None:
        counts = {name: x for name, x in vars(self).items() if type(x) is int}
        if counts.pop("num_workers", 0) < 0:
            raise ValueError(
                f"--num-workers must not be negative, not {vars(self)['num_workers']}"
            )
        check_counts(**counts)

    @property
    def train(self) -> "associative_transformer.experiment.TrainConfig":
        """The precision, compilation and device as a training configuration."""
        from associative_transformer.experiment import TrainConfig

        compile_setting: Literal["on", "off"] = "on" if self.compile else "off"
        return TrainConfig(precision=self.precision, compile=compile_setting, device=self.device)


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """Options of the benchmarks of models."""

    recipes: tyro.conf.Positional[tuple[str, ...]] = ("cifar10-vit-small", "cifar10-ait-small")
    """Recipes, or plain:NAME, triton:NAME, dense:NAME (no top-k) or timm:NAME (timm's ViT)."""
    rival: str | None = None
    """The recipe that the others are compared with; None: the first one."""
    batch_size: int = 64
    """Images per batch."""


@dataclass(frozen=True, kw_only=True)
class StepOptions(ModelOptions):
    """Measure a training step on random images."""


@dataclass(frozen=True, kw_only=True)
class InferOptions(ModelOptions):
    """Measure prediction on random images."""


@dataclass(frozen=True, kw_only=True)
class WriteOptions(Options):
    """Measure the workspace's write alone, forward and backward, with each implementation."""

    rival: Literal["sparse", "plain", "dense"] = "plain"
    """Implementation that the others are compared with; dense is plain without top-k."""
    tokens: int = 4_096
    """Number of pooled tokens T: those of all images in a batch."""
    embed_dim: int = 768
    """Width of a token E."""
    num_priors: int = 32
    """Number of priors M, the rows of the memory."""
    prior_dim: int = 32
    """Width of a prior, and of a head, D."""
    num_heads: int = 8
    """Number of heads S."""
    bottleneck: int = 512
    """Number of tokens k that each prior of each head attends to."""


@dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    """Measure the training batches of a recipe and its step, to see if training waits for data."""

    recipe: tyro.conf.Positional[str] = "cifar10-ait-small"
    """The recipe whose data and model are measured."""
    source: str | None = None
    """Local copy of the images to use instead of the Hugging Face Hub."""
    num_workers: int | None = None
    """Number of processes that decode images; None: as in the recipe."""
    batch_size: int = 64
    """Images per batch."""
    batches: int = 20
    """Batches per round, at most one epoch."""


AnyOptions = (
    Annotated[StepOptions, tyro.conf.subcommand("step")]
    | Annotated[InferOptions, tyro.conf.subcommand("infer")]
    | Annotated[WriteOptions, tyro.conf.subcommand("write")]
    | Annotated[DataOptions, tyro.conf.subcommand("data")]
)


BENCHMARKS = ["step", "infer", "write", "data"]
CHOICES = f"{join_or(BENCHMARKS)}, or --check"


@dataclass(frozen=True)
class BenchOptions:
    """Measure speed and memory of several variants that take turns in one run.

    `ait bench --check` compares with recorded ratios; see `ait bench --check --help`.
    """

    benchmark: Annotated[AnyOptions, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class CheckOptions:
    """Repeat the recorded measurements for this kind of device; exit with 1 if one is worse."""

    file: tyro.conf.Positional[Path] = Path("benchmarks/ratios.json")
    """File with the recorded ratios."""
    update: bool = False
    """Record the new measurements instead of comparing with the old ones."""
    device: Literal["auto", "cpu"] = "auto"
    """Device to measure on; auto is a GPU if there is one."""


def run(arguments: list[str]) -> None:
    """Measure and write a table, or JSON with the environment; or check the recorded ratios."""
    if "--check" in arguments:
        _check([word for word in arguments if word != "--check"])
        return
    options = _parse(arguments)
    check_output(options.output)
    from associative_transformer.bench import measure, tabulate_results
    from associative_transformer.runs.environment import describe_environment

    device, plan = choose_device(options.device), _plan(options)
    measured = measure(plan.benchmarks, plan.rival, options.train, options.rounds)
    environment = describe_environment(device)
    if options.format == "json":
        rows = [asdict(each) for each in measured]
        content = {"what": arguments[0], "rival": plan.rival, "options": asdict(options)}
        text = json.dumps({**content, "rows": rows, **asdict(environment)}, default=str)
    else:
        where = _describe(environment)
        table = tabulate_results(plan, measured, where, options.train, options.rounds)
        text = table.to_markdown() if options.format == "markdown" else table.to_terminal(100)
    with open_output(options.output) as file:
        file.write(text)


def _parse(arguments: list[str]) -> AnyOptions:
    """Parse the options of a benchmark and replace the precision "auto" by the one it selects."""
    first = next(iter(arguments), "")
    if first not in (*BENCHMARKS, "-h", "--help"):
        similar = find_similar(first, BENCHMARKS)
        hint = f": did you mean {join_or(similar)}?" if similar else ""
        given = f", not {first!r}" if first else ""
        raise UserError(f"the first argument of `ait bench` must be {CHOICES}{given}{hint}")
    options = parse(BenchOptions, arguments, "bench").benchmark
    from associative_transformer.bench import find_precision

    return replace(options, precision=find_precision(options.train))


def _plan(options: AnyOptions) -> "associative_transformer.bench.Plan":
    """Return the benchmarks that the options describe."""
    from associative_transformer.bench import PoolSizes, plan_loading, plan_models, plan_write
    from associative_transformer.workspace_config import WorkspaceConfig

    o, train = options, options.train
    if isinstance(o, WriteOptions):
        config = WorkspaceConfig(o.num_priors, o.prior_dim, o.num_heads, o.bottleneck)
        return plan_write(PoolSizes(o.tokens, o.embed_dim, config), o.rival, train)
    if isinstance(o, DataOptions):
        return plan_loading(o.recipe, train, o.batch_size, o.batches, o.source, o.num_workers)
    workload: Literal["step", "infer"] = "step" if isinstance(o, StepOptions) else "infer"
    return plan_models(workload, o.recipes, o.rival, train, o.batch_size)


def _describe(environment: "associative_transformer.runs.environment.Environment") -> str:
    import torch

    parts = [environment.device, environment.bfloat16, f"{environment.threads} threads"]
    return ", ".join([part for part in parts if part] + [f"torch {torch.__version__}"])


def _check(arguments: list[str]) -> None:
    """Measure the recorded ratios again, then compare the new ones with them or replace them."""
    options = parse(CheckOptions, arguments, "bench --check")
    from associative_transformer.bench import (
        measure_again,
        read_ratios,
        tabulate_verdicts,
        write_ratios,
    )
    from associative_transformer.runs.environment import describe_environment

    ratios, device = read_ratios(options.file), choose_device(options.device)
    environment = describe_environment(device)
    where = f"{_describe(environment)}, commit {environment.commit}"
    new_ratios, verdicts = measure_again(
        ratios, device.type, _measure_ratios, where, environment.bfloat16 is not None
    )
    title = f"Ratios on {_describe(environment)}, tolerance {ratios.tolerance:.0%}"
    print(tabulate_verdicts(title, verdicts).to_terminal(100), end="")
    if options.update:
        write_ratios(options.file, new_ratios)
    elif not all(verdict.is_good for verdict in verdicts):
        raise SystemExit(1)


def _measure_ratios(command: str) -> dict[str, float]:
    """Run a command without measuring memory; return the ratios of all variants but the rival."""
    from associative_transformer.bench import measure

    options = _parse(command.split())
    plan = _plan(options)
    measured = measure(plan.benchmarks, plan.rival, options.train, options.rounds, False)
    return {each.name: each.best_times_rival for each in measured if each.name != plan.rival}
