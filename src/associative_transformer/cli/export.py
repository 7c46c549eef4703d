"""`ait export`: export a trained model to one file: ONNX, torch.export or safetensors."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal

from associative_transformer.cli.options import check_output, choose_device, parse, say
from associative_transformer.interface import UserError, format_count
from associative_transformer.progress import WorkProgress

if TYPE_CHECKING:
    from associative_transformer.export import ExportReport
    from associative_transformer.models.pretrained import PretrainedModel

ROUNDS = 10
"""Timed rounds, of which the median is printed."""
TIMED_IMAGES = 8
"""Images per batch in each round."""
COSTS = {"exporting": 3, "compiling": 6, "timing": 1}
"""Time that each stage takes, relative to the others."""


@dataclass(frozen=True)
class ExportOptions:
    """Export a trained model to one file: ONNX, torch.export or safetensors.

    The file is written only if its logits for random images agree with the model's.
    """

    run: Path
    """Folder of the run, such as runs/cifar10-ait-tiny/0, or of a saved model."""
    format: Literal["torch", "onnx", "safetensors"] | None = None
    """A graph for torch.export or for ONNX, or only the weights; None: chosen by the extension
    of OUTPUT, .pt2, .onnx or .safetensors."""
    output: Path | None = None
    """File to write, such as ait.onnx; it must not be a link."""
    opset: int | None = None
    """Version of the operators of ONNX, from 18 to 23; None: 20."""
    speed: bool = True
    """Also print how fast the file and the model run on this CPU; for onnx, the model is compiled
    too, which takes a minute."""


def run(arguments: list[str]) -> None:
    """Export a model, and print how well the file agrees with it and how fast it runs."""
    options = parse(ExportOptions, arguments, "export")
    if options.output is None:
        raise UserError("ait export needs --output: pass the file to write, such as ait.onnx")
    names = ("experiment.yaml", "config.json", "model.safetensors", "result.json")
    check_output(options.output, *(options.run / name for name in names))
    from associative_transformer.export import check_format, export_model

    file_format = check_format(options.output, options.format, options.opset)
    choose_device("cpu")
    model = _load(options.run)
    is_timed = options.speed and file_format != "safetensors"
    stages = ["exporting", *["compiling"] * (is_timed and file_format == "onnx")]
    stages += ["timing"] * is_timed
    total = sum(COSTS[stage] for stage in stages)
    with WorkProgress("export") as progress:

        def start(stage: str) -> None:
            before = stages[: stages.index(stage)]
            progress.show(sum(COSTS[each] for each in before), total, stage)

        start("exporting")
        say(f"exporting {type(model).__name__} and comparing the logits", sys.stderr)
        report = export_model(model, options.output, file_format, options.opset)
        times = _measure_speed(report, model, start) if is_timed else ""
    _print_report(report, model)
    if times:
        say(times)


def _load(folder: Path) -> "PretrainedModel":
    """Load the model of a run, or one that `save_pretrained` has written to a folder."""
    from associative_transformer.runs.saved import SavedRun, load_run_or_model

    loaded = load_run_or_model(folder)
    return loaded.model if isinstance(loaded, SavedRun) else loaded


def _print_report(report: "ExportReport", model: "PretrainedModel") -> None:
    from associative_transformer.export import TOLERANCE, random_inputs

    opset = "" if report.opset is None else f", opset {report.opset}"
    say(f"written      {report.path}, {report.num_bytes / 1e6:,.2f} MB ({report.format}{opset})")
    if report.format != "safetensors":
        shapes = {name: [*x.shape[1:]] for name, x in random_inputs(model, 1).items()}
        inputs = [f"{k} (batch, {', '.join(map(str, shape))})" for k, shape in shapes.items()]
        say(f"inputs       {', '.join(inputs)}, float32")
        say(f"output       logits (batch, {model.config.num_classes}), float32")
    largest = (f"{x:.1g} for {format_count(n, 'image')}" for n, x in report.differences.items())
    say(f"difference   at most {', '.join(largest)}; the tolerance is {TOLERANCE:.0e}")
    known = {"preprocessing": model.preprocessing, "class names": model.class_names}
    if missing := " or ".join(name for name, value in known.items() if value is None):
        say(f"ait: the file contains no {missing}: the model was saved without them", sys.stderr)


def _measure_speed(
    report: "ExportReport", model: "PretrainedModel", start: Callable[[str], None]
) -> str:
    """Return a line with the times of the file and of the model on a CPU.

    `start` is called with the name of each stage when it begins.
    """
    import torch

    from associative_transformer.bench.timing import Run, time_in_turn
    from associative_transformer.export import (
        Evaluation,
        quietly,
        random_inputs,
        read_exported,
    )

    inputs = tuple(random_inputs(model, TIMED_IMAGES).values())
    exported, eager = read_exported(report.path, report.format), Evaluation(model)
    name = "onnxruntime" if report.format == "onnx" else "exported"
    runs: dict[str, Run] = {name: lambda: exported.run(*inputs), "eager": lambda: eager(*inputs)}
    with torch.no_grad(), quietly():
        if report.format == "onnx":
            start("compiling")
            compiled = Evaluation(model)
            compiled.model.compile()
            say("compiling the model to compare the speed", sys.stderr)
            try:
                compiled(*inputs)
                runs["compiled"] = lambda: compiled(*inputs)
            except torch._dynamo.exc.BackendCompilerFailed:
                say("ait: torch cannot compile here: see `ait doctor`", sys.stderr)
        start("timing")
        seconds = time_in_turn(runs, ROUNDS, torch.device("cpu"))
    times = ", ".join(f"{name} {1e3 * median(each):,.1f} ms" for name, each in seconds.items())
    threads = format_count(torch.get_num_threads(), "thread")
    return f"speed        {times} for {format_count(TIMED_IMAGES, 'image')} (CPU, {threads})"
