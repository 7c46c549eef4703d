"""`ait bench`: speed and memory, side by side, and the ratios on record."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
import tyro

from associative_transformer.bench import (
    Benchmark,
    Measured,
    PoolSizes,
    Workload,
    choose_precision,
    find_variant,
    loading_benchmarks,
    measure,
    measure_again,
    model_benchmark,
    read_ratios,
    tabulate_verdicts,
    write_benchmarks,
    write_ratios,
)
from associative_transformer.cli.options import (
    check_counts,
    check_output,
    choose_device,
    open_output,
    parse,
)
from associative_transformer.data import ImagesConfig
from associative_transformer.experiment import TrainConfig
from associative_transformer.interface import UserError
from associative_transformer.runs.environment import describe_environment
from associative_transformer.tabular import RowGroup, Table
from associative_transformer.workspace import WorkspaceConfig

WHOLE = "Memory: the peak of a process of its own, on a CPU with its libraries."


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every benchmark takes."""

    rounds: int = 10
    """How often each is timed, after two rounds to warm up."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16 is autocast; auto takes it on a GPU that supports it."""
    compile: bool = False
    """Compile what is timed with torch.compile."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes a GPU where there is one."""
    format: Literal["terminal", "markdown", "json"] = "terminal"
    """How to write it; json holds the environment too."""
    output: Path | None = None
    """File to write; None: the terminal."""

    def __post_init__(self) -> None:
        check_counts(**{name: x for name, x in vars(self).items() if type(x) is int})

    @property
    def train(self) -> TrainConfig:
        """Precision, compilation and device, as `measure` wants them."""
        return TrainConfig(precision=self.precision, compile=self.compile, device=self.device)


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """What models are timed with."""

    recipes: tyro.conf.Positional[tuple[str, ...]] = ("cifar10-vit-small", "cifar10-ait-small")
    """What to time. plain:NAME is an AiT in the plain form, triton:NAME one with the kernels in
    Triton, dense:NAME one without top-k, timm:NAME timm's ViT of the shape of ours."""
    rival: str | None = None
    """What the others are compared with; None: the first one."""
    batch_size: int = 64
    """Images in a batch."""


@dataclass(frozen=True, kw_only=True)
class StepOptions(ModelOptions):
    """Time a step of training on random images."""


@dataclass(frozen=True, kw_only=True)
class InferOptions(ModelOptions):
    """Time prediction on random images."""


@dataclass(frozen=True, kw_only=True)
class WriteOptions(Options):
    """Time the workspace's write alone, forward and backward: sparse, plain, dense (no top-k)."""

    rival: Literal["sparse", "plain", "dense"] = "plain"
    """What the others are compared with."""
    tokens: int = 4_096
    """T: tokens of the pool, those of all images of a batch."""
    embed_dim: int = 768
    """E: width of a token."""
    num_priors: int = 32
    """M: rows of the memory."""
    prior_dim: int = 32
    """D: width of a prior, and of a head."""
    num_heads: int = 8
    """S: heads."""
    bottleneck: int = 512
    """k: tokens that one prior of one head attends to."""


@dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    """Time the training batches of a recipe beside its step: does the step wait for them?"""

    recipe: tyro.conf.Positional[str] = "cifar10-ait-small"
    """Whose data and model."""
    source: str | None = None
    """Local copy of the images to use in place of the hub."""
    num_workers: int | None = None
    """Processes that decode images; None: those of the recipe."""
    batch_size: int = 64
    """Images in a batch."""
    batches: int = 20
    """Batches of a round, at most an epoch."""


AnyOptions = (
    Annotated[StepOptions, tyro.conf.subcommand("step")]
    | Annotated[InferOptions, tyro.conf.subcommand("infer")]
    | Annotated[WriteOptions, tyro.conf.subcommand("write")]
    | Annotated[DataOptions, tyro.conf.subcommand("data")]
)


@dataclass(frozen=True)
class BenchOptions:
    """Time things side by side, taking turns in one run.

    `ait bench --check` compares with the ratios on record; `ait bench --check --help` tells more.
    """

    what: Annotated[AnyOptions, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class CheckOptions:
    """Measure the ratios on record for this kind of device again; exit with 1 if one is worse."""

    file: tyro.conf.Positional[Path] = Path("benchmarks/ratios.json")
    """The record."""
    update: bool = False
    """Record what is measured now in place of comparing with it."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes a GPU where there is one."""


class Plan(NamedTuple):
    """What a command measures, and how it is told."""

    forms: list[Benchmark]
    rival: str
    title: str
    unit: str  # of samples
    sizes: str
    note: str


def run(arguments: list[str]) -> None:
    """Time things and write a table, or JSON with the environment; or check the ratios."""
    if "--check" in arguments:
        _check([word for word in arguments if word != "--check"])
        return
    options = _read(arguments)
    check_output(options.output)
    plan = _plan(options)
    rows = measure(plan.forms, plan.rival, options.train, options.rounds)
    environment = describe_environment(choose_device(options.device))
    if options.format == "json":
        saved = {"what": arguments[0], "rival": plan.rival, "options": asdict(options)}
        text = json.dumps(
            saved | {"rows": [asdict(row) for row in rows]} | environment, default=str
        )
    else:
        table = _tabulate(plan, rows, options, environment)
        text = table.to_markdown() if options.format == "markdown" else table.to_terminal(100)
    with open_output(options.output) as file:
        file.write(text)


def _read(arguments: list[str]) -> AnyOptions:
    """Read the options of a benchmark, with its precision settled."""
    options = parse(BenchOptions, arguments, "bench").what
    return replace(options, precision=choose_precision(options.train))


def _plan(options: AnyOptions) -> Plan:
    if isinstance(options, WriteOptions):
        return _plan_write(options)
    if isinstance(options, DataOptions):
        return _plan_data(options)
    return _plan_models(options)


def _plan_models(options: ModelOptions) -> Plan:
    names = list(dict.fromkeys(options.recipes))
    rival = options.rival or names[0]
    if rival not in names:
        names.insert(0, rival)
    what: Workload = "step" if isinstance(options, StepOptions) else "infer"
    variants = [find_variant(name, options.train, options.batch_size) for name in names]
    forms = [model_benchmark(variant, what) for variant in variants]
    title = {"step": "Training step", "infer": "Prediction"}[what]
    return Plan(forms, rival, title, "images", f"batch {options.batch_size}", WHOLE)


def _plan_write(options: WriteOptions) -> Plan:
    names = ("num_priors", "prior_dim", "num_heads", "bottleneck")
    config = WorkspaceConfig(**{name: getattr(options, name) for name in names})
    sizes = PoolSizes(options.tokens, options.embed_dim, config)
    said = ", ".join(f"{name} {getattr(options, name)}" for name in ("embed_dim", *names))
    note = (
        f"Pool: {said}. Memory: the peak of a process of its own, beyond libraries, weights, "
        "tokens and their gradient. Of matrix peak: the operations of the plain form."
    )
    forms = write_benchmarks(sizes, options.train)
    return Plan(
        forms, options.rival, "Write of the workspace", "tokens", f"{options.tokens} tokens", note
    )


def _plan_data(options: DataOptions) -> Plan:
    variant = find_variant(options.recipe, options.train, options.batch_size)
    experiment, data = variant.experiment, variant.experiment.data
    if isinstance(data, ImagesConfig):
        workers = options.num_workers or data.num_workers
        data = replace(data, source=options.source or data.source, num_workers=workers)
        experiment = replace(experiment, data=data)
    elif options.source or options.num_workers:
        raise UserError(
            f"{options.recipe} generates its data: leave --source and --num-workers out"
        )
    forms = loading_benchmarks(variant._replace(experiment=experiment), options.batches)
    note = (
        f"{options.recipe}, {forms[-1].batches} batches a round: those that take longer than the "
        f"step make training wait. {WHOLE[:-1]}, without the workers."
    )
    sizes = f"batch {options.batch_size}"
    return Plan(forms, "step", "Training batches", "images", sizes, note)


def _tabulate(
    plan: Plan, rows: list[Measured], options: Options, environment: dict[str, object]
) -> Table:
    columns = ("form", "ms", f"{plan.unit}/s", f"times {plan.rival}", "peak memory, GiB")
    cells = [
        (
            row.name,
            f"{row.milliseconds:.1f}",
            f"{row.samples_per_second:,.0f}",
            f"{row.times_rival:.2f}",
            "-" if row.peak_memory is None else f"{row.peak_memory:#.3g}",
            "-" if row.peak_share is None else f"{100 * row.peak_share:.0f} %",
        )
        for row in rows
    ]
    compiled = ", compiled" * options.compile
    section = RowGroup(f"{plan.sizes}, {options.precision}{compiled}", cells)
    notes = [f"Medians of {options.rounds} rounds in which the rows take turns.", plan.note]
    title = f"{plan.title} on {_describe(environment)}"
    return Table(title, (*columns, "of matrix peak"), [section], notes)


def _describe(environment: dict[str, object]) -> str:
    return f"{environment['device']}, {environment['threads']} threads, torch {torch.__version__}"


def _check(arguments: list[str]) -> None:
    """Measure the ratios on record again, and record or judge them."""
    options = parse(CheckOptions, arguments, "bench --check")
    ratios, device = read_ratios(options.file), choose_device(options.device)
    environment = describe_environment(device)
    where = f"{_describe(environment)}, commit {environment['commit']}"
    measured, verdicts = measure_again(ratios, device.type, _measure_ratios, where)
    title = f"Ratios on {_describe(environment)}, tolerance {ratios.tolerance:.0%}"
    print(tabulate_verdicts(title, verdicts).to_terminal(100), end="")
    if options.update:
        write_ratios(options.file, measured)
    elif not all(verdict.is_good for verdict in verdicts):
        raise SystemExit(1)


def _measure_ratios(command: str) -> dict[str, float]:
    """Run a benchmark without its memory, and give the ratios of all but the rival."""
    options = _read(command.split())
    plan = _plan(options)
    rows = measure(plan.forms, plan.rival, options.train, options.rounds, use_memory=False)
    return {row.name: row.best_times_rival for row in rows if row.name != plan.rival}
