"""Export a trained model as one file, which others can use without this package.

torch         a graph for `torch.export.load(path).module()`, in the standard operators of torch
onnx          the same graph for ONNX runtimes, in the standard operators of ONNX
safetensors   only the weights, by their names in this package

A graph takes `images` and, if the model does, `questions` of any batch size, and returns `logits`,
all in float32. Every file contains `METADATA`.

Dims     B batch   C channels   H height   W width   Q question features   O classes
"""

import copy
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import TypeAdapter
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node

from associative_transformer.arguments import image_shape
from associative_transformer.files import write_file
from associative_transformer.interface import UserError
from associative_transformer.models import ModelConfig, build_model
from associative_transformer.models.pretrained import PretrainedModel

Format = Literal["torch", "onnx", "safetensors"]
SUFFIXES: dict[str, Format] = {".pt2": "torch", ".onnx": "onnx", ".safetensors": "safetensors"}
"""The format of a file, by its extension."""
METADATA = ("config", "preprocessing", "class_names", "package_version")
"""Metadata in a file, each value as JSON: sizes of the model, how to prepare images, names of the
classes in the order of the logits, version of this package; "null" if unknown."""
OPSET, OPSETS = 20, range(18, 24)
"""Version of ONNX's operators by default, and the versions that torch can write."""
BATCH_SIZES = (1, 5)
"""Numbers of random images for which the logits of a file are compared with those of the model."""
TOLERANCE = 1e-4
"""Largest difference of a logit, relative to the largest logit if that is above 1."""

_OWN = torch.ops.associative_transformer.select_largest.default
STANDARD: dict[Any, Callable[..., Any]] = {_OWN: lambda x, count: x.topk(count, dim=-1).indices}
"""Standard operators of torch in place of this package's own."""
FOR_ONNX: dict[Any, Callable[..., Any]] = {  # ONNX's topk picks the first of equal values
    torch.ops.aten.argsort.stable: lambda x, *, stable, dim=-1, descending=False: (
        x.topk(x.shape[dim], dim=dim, largest=descending).indices
    )
}
"""Operators that ONNX has, in place of those that it lacks."""


class ExportReport(NamedTuple):
    """What was written to a file."""

    path: Path
    format: Format
    opset: int | None  # None unless the format is onnx
    num_bytes: int
    differences: dict[int, float]  # from the logits of the model, by batch size; see TOLERANCE


class ExportedModel(NamedTuple):
    """A file that `export_model` has written, ready to run on a CPU."""

    run: Callable[..., Tensor]  # takes images, and questions if the model does; returns logits
    metadata: dict[str, str]  # see METADATA


class Evaluation(nn.Module):
    """A copy of a model that computes only logits, in float32 on a CPU."""

    model: PretrainedModel

    def __init__(self, model: PretrainedModel) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).to("cpu", torch.float32)
        self.eval()

    def forward(
        self, images: Float[Tensor, "B C H W"], questions: Float[Tensor, "B Q"] | None = None
    ) -> Float[Tensor, "B O"]:
        output = self.model(images, questions)  # a model of timm returns logits alone
        return getattr(output, "logits", output)


def export_model(
    model: PretrainedModel,
    path: str | Path,
    file_format: Format | None = None,
    opset: int | None = None,
    tolerance: float = TOLERANCE,
) -> ExportReport:
    """Export a model to a file, after comparing the exported logits with the model's.

    The format is that of the extension (.pt2, .onnx or .safetensors) unless it is given; `opset`
    is the version of ONNX. An existing file is replaced. Raises UserError, and writes nothing, if
    the logits differ by more than `tolerance`, or if the format is not known or not installed.
    """
    path = Path(path)
    file_format = check_format(path, file_format, opset)
    chosen_opset = opset or OPSET if file_format == "onnx" else None
    with torch.no_grad(), quietly():
        evaluation = Evaluation(model)
        content = _serialize(evaluation, file_format, chosen_opset)
        differences = _compare(evaluation, READERS[file_format](content))
    if excess := [x for x in differences.values() if not x <= tolerance]:  # it may be NaN
        raise UserError(
            f"{path} was not written: its logits would differ from those of the model by "
            f"{excess[0]:.1e}, more than the tolerance of {tolerance:.0e}; try another format"
        )
    write_file(path, content)
    return ExportReport(path, file_format, chosen_opset, len(content), differences)


def read_exported(path: str | Path, file_format: Format | None = None) -> ExportedModel:
    """Open a file that `export_model` has written.

    Open files of the format torch only if you trust them: `torch.export.load` may run code in
    them. Raises UserError if the file is damaged, and OSError if it cannot be read.
    """
    path = Path(path)
    file_format, content = check_format(path, file_format), path.read_bytes()
    try:
        with quietly():
            return READERS[file_format](content)
    except Exception as error:  # the libraries raise errors of many types
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{path} is damaged or not of the format {file_format} ({reason}): export it again"
        ) from error


def check_format(
    path: Path, file_format: Format | None = None, opset: int | None = None
) -> Format:
    """Return the format of a file. Raises UserError if it or the opset is not supported."""
    chosen = file_format or SUFFIXES.get(path.suffix.lower())
    if chosen is None:
        raise UserError(f"{path} has none of the extensions {', '.join(SUFFIXES)}: pass --format")
    if opset is not None and chosen != "onnx":
        raise UserError(f"--opset {opset} is only for the format onnx, not for {chosen}: omit it")
    if opset is not None and opset not in OPSETS:
        raise UserError(f"--opset must be from {OPSETS[0]} to {OPSETS[-1]}, not {opset}")
    if chosen == "onnx":
        try:
            for name in ("onnx", "onnxruntime", "onnxscript"):
                import_module(name)
        except ImportError as error:
            raise UserError(
                "--format onnx needs onnx, onnxruntime and onnxscript: "
                'pip install "associative-transformer[onnx]"'
            ) from error
    return chosen


def random_inputs(model: PretrainedModel, batch_size: int) -> dict[str, Float[Tensor, "B ..."]]:
    """Return random images, and questions if the model takes them; always the same ones."""
    c, generator = model.config, torch.Generator().manual_seed(0)
    draw = torch.rand if getattr(c, "takes_pixels", False) else torch.randn
    shape = (batch_size, c.num_channels, *image_shape(c.image_size))
    inputs = {"images": draw(shape, generator=generator)}
    if question_dim := getattr(c, "question_dim", 0):
        inputs["questions"] = torch.rand(batch_size, question_dim, generator=generator)
    return inputs


def _serialize(evaluation: Evaluation, file_format: Format, opset: int | None) -> bytes:
    """Return the content of a file."""
    model = evaluation.model
    preparation = model.preprocessing and asdict(model.preprocessing)
    package_version = version("associative-transformer")
    values = (asdict(model.config), preparation, model.class_names, package_version)
    metadata = {name: json.dumps(x) for name, x in zip(METADATA, values, strict=True)}
    if file_format == "safetensors":
        weights = {name: value.contiguous() for name, value in model.state_dict().items()}
        return save(weights, {"format": "pt", **metadata})
    if opset is not None:
        return _write_onnx(evaluation, metadata, opset)
    buffer = io.BytesIO()
    torch.export.save(_trace(evaluation), buffer, extra_files=metadata)
    return buffer.getvalue()


def _trace(evaluation: Evaluation) -> ExportedProgram:
    """Return the graph of the evaluation for any batch size, in standard operators of torch."""
    inputs = random_inputs(evaluation.model, 2)  # sizes of 0 and 1 would be treated as constants
    shapes, values = {name: {0: Dim("batch")} for name in inputs}, tuple(inputs.values())
    # not strict: the frontend of the compiler would take many minutes for a recurrent model
    program = torch.export.export(evaluation, values, dynamic_shapes=shapes, strict=False)
    program = _replace(program, STANDARD)
    for node in _nodes(program):
        node.meta.pop("stack_trace", None)  # it contains paths of this machine
    return program


def _replace(program: ExportedProgram, table: dict[Any, Callable[..., Any]]) -> ExportedProgram:
    """Replace the operators of a table, if the graph has any of them."""
    is_needed = any(node.target in table for node in _nodes(program))
    return program.run_decompositions(table) if is_needed else program


def _nodes(program: ExportedProgram) -> Iterator[Node]:
    modules = program.graph_module.modules()  # submodules run without autocast
    return (node for each in modules if isinstance(each, GraphModule) for node in each.graph.nodes)


def _write_onnx(evaluation: Evaluation, metadata: dict[str, str], opset: int) -> bytes:
    size = sum(x.numel() * x.element_size() for x in evaluation.state_dict().values())
    if size > 2**31 - 2**24:  # ONNX files are limited to 2 GiB
        raise UserError(f"the weights take {size:,} bytes, too many for ONNX: use --format torch")
    names = list(random_inputs(evaluation.model, 1))
    exported = torch.onnx.export(
        _replace(_trace(evaluation), FOR_ONNX),
        dynamo=True,
        opset_version=opset,
        input_names=names,
        output_names=["logits"],
        dynamic_shapes={name: {0: "batch"} for name in names},
        verbose=False,
    )
    if exported is None or exported.model.opset_imports[""] != opset:
        raise UserError(f"the model cannot be written with --opset {opset}: try {OPSET}")
    for node in exported.model.graph.all_nodes():
        node.metadata_props.clear()  # notes on the conversion, often larger than the graph
    exported.model.metadata_props.update(metadata)
    return exported.model_proto.SerializeToString()


def _compare(evaluation: Evaluation, exported: ExportedModel) -> dict[int, float]:
    """Return the largest difference of a logit for each batch size; see TOLERANCE."""
    differences = {}
    for batch_size in BATCH_SIZES:
        inputs = random_inputs(evaluation.model, batch_size).values()
        expected = evaluation(*inputs)
        difference = (exported.run(*inputs) - expected).abs().max()
        differences[batch_size] = float(difference / expected.abs().max().clamp(min=1))
    return differences


@contextmanager
def quietly() -> Iterator[None]:
    """Hide what torch and ONNX report about their own progress."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(level)


def _read_program(content: bytes) -> ExportedModel:
    metadata: dict[str, Any] = dict.fromkeys(METADATA, "")
    module = torch.export.load(io.BytesIO(content), extra_files=metadata).module()
    return ExportedModel(module, metadata)


def _read_onnx(content: bytes) -> ExportedModel:
    onnxruntime: Any = import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # errors are raised, too
    session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(*inputs: Float[Tensor, "..."]) -> Float[Tensor, "B O"]:
        feeds = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(["logits"], feeds)[0])

    return ExportedModel(run, dict(session.get_modelmeta().custom_metadata_map))


def _read_weights(content: bytes) -> ExportedModel:
    """Build the model again from its configuration and its weights."""
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    config: ModelConfig = TypeAdapter(ModelConfig).validate_json(metadata["config"])
    model = build_model(config)
    model.load_state_dict(load(content))
    return ExportedModel(Evaluation(model), {name: metadata[name] for name in METADATA})


READERS: dict[Format, Callable[[bytes], ExportedModel]] = {
    "torch": _read_program,
    "onnx": _read_onnx,
    "safetensors": _read_weights,
}
