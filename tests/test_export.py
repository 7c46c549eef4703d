"""Exported files: the same logits for any batch size, metadata, and refusals.

These tests run without shape checks, which torch.export cannot trace.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from safetensors import safe_open
from torch import Tensor, nn

from associative_transformer import export
from associative_transformer.export import METADATA, OPSETS, export_model, read_exported
from associative_transformer.interface import UserError
from associative_transformer.models import MODELS, build_model
from associative_transformer.models.ait import AIT_SMALL
from associative_transformer.models.brims import BRIMS, BRIMs
from associative_transformer.models.coordination import COORDINATION
from associative_transformer.models.dense import DENSE_SMALL
from associative_transformer.models.luna import LUNA_LRA, LUNA_SMALL
from associative_transformer.models.perceiver import PERCEIVER
from associative_transformer.models.preprocessing import Preprocessing
from associative_transformer.models.pretrained import PretrainedModel
from associative_transformer.models.relation_network import (
    CNN_MLP,
    CNN_RN,
    ConvMLPConfig,
    RelationNetworkConfig,
)
from associative_transformer.models.set_transformer import SET_TRANSFORMER
from associative_transformer.models.vit import VIT_SMALL
from making.tiny import QUESTION_DIM, TINY, VARIANTS, tiny

pytestmark = [pytest.mark.interop, pytest.mark.compiled]

ROOT = Path(export.__file__).parents[2]
QUESTIONS: dict[str, Any] = {
    "ait-head-question": VARIANTS["ait-head-question"],
    "conv-mlp-question": tiny(ConvMLPConfig, question_dim=QUESTION_DIM),
    "relation-network-question": tiny(RelationNetworkConfig, question_dim=QUESTION_DIM),
}
CONFIGS: dict[str, Any] = {**TINY, "ait-image": VARIANTS["ait-image"], **QUESTIONS}
NAMED: dict[str, Any] = {
    "ait-small": AIT_SMALL,
    "brims": BRIMS,
    "coordination": COORDINATION,
    "dense-small": DENSE_SMALL,
    "luna-small": LUNA_SMALL,
    "luna-lra": LUNA_LRA,
    "perceiver": PERCEIVER,
    "cnn-rn": CNN_RN,
    "cnn-mlp": CNN_MLP,
    "set-transformer": SET_TRANSFORMER,
    "vit-small": VIT_SMALL,
}
SUFFIXES = (".pt2", ".onnx", ".safetensors")
PREPROCESSING = Preprocessing((8, 8), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
CLASSES = ("blue", "красный", "a, b", "d", "e")

Run = Callable[..., Tensor]
Exported = Callable[[str, str], tuple[PretrainedModel, Path]]
every_format = pytest.mark.parametrize("suffix", SUFFIXES)


def build(config: Any) -> PretrainedModel:  # noqa: ANN401
    """Return a model in evaluation mode, in which rounding does not decide any competition."""
    torch.manual_seed(0)
    model = build_model(config).eval()
    if isinstance(model, BRIMs):  # its initial attention is nearly the same for all modules
        for weight in model.recurrence.to_kv:
            nn.init.normal_(weight)
    return model


def draw(model: PretrainedModel, batch_size: int) -> list[Tensor]:
    """Draw images from 0 to 1, and questions if the model takes them."""
    c = model.config
    inputs = [torch.rand(batch_size, c.num_channels, c.image_size, c.image_size)]
    if getattr(c, "question_dim", 0):
        inputs.append(torch.rand(batch_size, c.question_dim))
    return inputs


def load_program(path: Path) -> Run:
    return torch.export.load(path).module()


def load_onnx(path: Path) -> Run:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path)
    names = ["images", "questions"][: len(session.get_inputs())]

    def run(*inputs: Tensor) -> Tensor:
        feeds = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(["logits"], feeds)[0])

    return run


def load_weights(path: Path) -> Run:
    """Build the model from the configuration and the weights in a safetensors file."""
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    (kind,) = (each for each in MODELS if each.kind == config["kind"])
    model = build_model(TypeAdapter(kind).validate_python(config)).eval()
    model.load_state_dict(weights)
    return lambda *inputs: model(*inputs).logits


LOADERS = dict(zip(SUFFIXES, (load_program, load_onnx, load_weights), strict=True))


def metadata_of(path: Path) -> dict[str, str]:
    """Read the metadata of a file with the library of its format."""
    if path.suffix == ".pt2":
        texts: dict[str, Any] = dict.fromkeys(METADATA, "")
        torch.export.load(path, extra_files=texts)
        return texts
    if path.suffix == ".onnx":
        onnx = pytest.importorskip("onnx")
        return {each.key: each.value for each in onnx.load(path).metadata_props}
    with safe_open(path, "pt") as file:
        return file.metadata()


def assert_same_logits(model: PretrainedModel, run: Run, sizes: tuple[int, ...]) -> None:
    with torch.no_grad():
        for size in sizes:
            inputs = draw(model, size)
            expected = model(*inputs).logits
            torch.testing.assert_close(run(*inputs), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Return a function that exports a model of CONFIGS once, for all tests."""

    @cache
    def write(name: str, suffix: str) -> tuple[PretrainedModel, Path]:
        folder = tmp_path_factory.mktemp(name)
        model, path = build(CONFIGS[name]), folder / f"model{suffix}"
        report = export_model(model, path)
        assert report.num_bytes == path.stat().st_size
        assert report.opset == (20 if suffix == ".onnx" else None)
        assert list(folder.iterdir()) == [path]
        return model, path

    return write


# --- the same logits ---


@every_format
@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_gives_the_logits_of_the_model_for_any_batch_size(
    name: str, suffix: str, exported: Exported
) -> None:
    model, path = exported(name, suffix)
    assert_same_logits(model, LOADERS[suffix](path), (1, 2, 7))
    if suffix == ".onnx":
        assert_is_standard_onnx(path, model)
    if suffix == ".pt2":
        assert_has_only_operators_of_torch(path)


def assert_is_standard_onnx(path: Path, model: PretrainedModel) -> None:
    onnx = pytest.importorskip("onnx")
    content = onnx.load(path)
    onnx.checker.check_model(content, full_check=True)
    assert [(each.domain, each.version) for each in content.opset_import] == [("", 20)]
    assert not content.functions
    assert {node.domain for node in content.graph.node} == {""}
    names = ["images", "questions"][: len(draw(model, 1))]
    assert [each.name for each in content.graph.input] == names
    assert [each.name for each in content.graph.output] == ["logits"]
    for each in (*content.graph.input, *content.graph.output):
        first, *rest = each.type.tensor_type.shape.dim
        assert first.dim_param == "batch"
        assert all(axis.dim_value for axis in rest)


def assert_has_only_operators_of_torch(path: Path) -> None:
    program = torch.export.load(path)
    targets = {
        node.target
        for graph in program.graph_module.modules()
        if isinstance(graph, torch.fx.GraphModule)
        for node in graph.graph.nodes
        if node.op == "call_function" and hasattr(node.target, "namespace")
    }
    assert {target.namespace for target in targets} <= {"aten", "higher_order"}
    assert len(program.graph_signature.user_outputs) == 1


@pytest.mark.thorough
@pytest.mark.parametrize("name", sorted({*VARIANTS} - {*CONFIGS}))
def test_every_variant_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    model, path = build(VARIANTS[name]), tmp_path / "model.onnx"
    export_model(model, path)
    assert_same_logits(model, load_onnx(path), (1, 2, 7))


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMED)
def test_every_named_model_can_be_exported(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    report = export_model(build_model(NAMED[name]), path)
    assert report.num_bytes == path.stat().st_size
    path.unlink()


def test_every_model_of_the_table_is_tested() -> None:
    assert {type(config) for config in CONFIGS.values()} == {*MODELS}


@pytest.mark.parametrize("opset", [OPSETS[0], OPSETS[-1]])
def test_the_version_of_onnx_can_be_chosen(opset: int, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model, path = build(TINY["vit"]), tmp_path / "model.onnx"
    assert export_model(model, path, opset=opset).opset == opset
    assert [each.version for each in onnx.load(path).opset_import] == [opset]
    assert_same_logits(model, load_onnx(path), (3,))


@every_format
def test_the_model_is_left_as_it_was(suffix: str, tmp_path: Path) -> None:
    model = build_model(TINY["ait"])  # in training mode, so that a forward pass moves the memory
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_model(model, tmp_path / f"model{suffix}")
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert_same_logits(model.eval(), LOADERS[suffix](tmp_path / f"model{suffix}"), (4,))


@every_format
def test_a_model_in_bfloat16_is_exported_in_float32(suffix: str, tmp_path: Path) -> None:
    model = build(TINY["dense"]).bfloat16()
    export_model(model, tmp_path / f"model{suffix}")
    run = LOADERS[suffix](tmp_path / f"model{suffix}")
    assert run(*draw(model, 3)).dtype == torch.float32
    assert_same_logits(model.float(), run, (3,))


ALONE = """
import sys
sys.modules["associative_transformer"] = None  # every import fails
import numpy, onnxruntime, torch
images = numpy.load("images.npy")
program = torch.export.load("model.pt2").module()
numpy.save("torch.npy", program(torch.from_numpy(images)).detach().numpy())
session = onnxruntime.InferenceSession("model.onnx")
numpy.save("onnx.npy", session.run(["logits"], {"images": images})[0])
"""


@pytest.mark.parametrize("name", ["ait-image", "brims"])
def test_a_file_runs_without_this_package(name: str, exported: Exported, tmp_path: Path) -> None:
    for suffix in (".pt2", ".onnx"):
        model, path = exported(name, suffix)
        (tmp_path / path.name).hardlink_to(path)
    (images,) = draw(model, 3)
    np.save(tmp_path / "images.npy", images.numpy())
    subprocess.run([sys.executable, "-c", ALONE], cwd=tmp_path, check=True, timeout=120)
    expected = model(images).logits.detach().numpy()
    for result in ("torch.npy", "onnx.npy"):
        np.testing.assert_allclose(np.load(tmp_path / result), expected, rtol=1e-4, atol=1e-5)


def test_a_hook_of_the_model_is_exported_too(tmp_path: Path) -> None:
    model = build(replace(VARIANTS["ait-image"], depth=1))
    inputs = draw(model, 2)
    before = model(*inputs).logits
    model.get_submodule("blocks.0.workspace.to_v").register_forward_hook(lambda *x: 3 * x[-1])
    assert not torch.allclose(model(*inputs).logits, before, rtol=1e-3)
    export_model(model, tmp_path / "model.pt2")
    assert_same_logits(model, load_program(tmp_path / "model.pt2"), (2,))


def test_an_export_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for suffix in SUFFIXES:
        export_model(build(CONFIGS["relation-network-question"]), tmp_path / f"model{suffix}")
    assert capfd.readouterr() == ("", "")


def test_a_model_for_images_that_are_not_square_is_exported(tmp_path: Path) -> None:
    model = build(replace(TINY["vit"], depth=1, image_size=(8, 12)))
    export_model(model, tmp_path / "model.onnx")
    images = torch.rand(3, 3, 8, 12)
    logits = load_onnx(tmp_path / "model.onnx")(images)
    torch.testing.assert_close(logits, model(images).logits, rtol=1e-4, atol=1e-5)


# --- metadata ---


@every_format
def test_a_file_contains_preprocessing_classes_and_sizes(suffix: str, tmp_path: Path) -> None:
    model, path = build(TINY["vit"]), tmp_path / f"model{suffix}"
    model.describe(PREPROCESSING, CLASSES)
    export_model(model, path)
    texts = metadata_of(path)
    assert {*texts} - {"format"} == {*METADATA}
    found = {name: json.loads(texts[name]) for name in METADATA}
    assert found["class_names"] == list(CLASSES)
    assert found["package_version"] == version("associative-transformer")
    assert found["config"] == asdict(model.config)
    preprocessing = TypeAdapter(Preprocessing).validate_python(found["preprocessing"])
    assert preprocessing == PREPROCESSING
    assert read_exported(path).metadata == {name: texts[name] for name in METADATA}


@every_format
def test_what_is_not_known_is_null(suffix: str, exported: Exported) -> None:
    texts = metadata_of(exported("conv-mlp", suffix)[1])
    assert texts["preprocessing"] == texts["class_names"] == "null"


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_file_contains_no_paths_of_this_machine(suffix: str, exported: Exported) -> None:
    content = exported("ait-image", suffix)[1].read_bytes()
    assert str(ROOT).encode() not in content
    assert sys.prefix.encode() not in content


# --- reading ---


@every_format
def test_a_file_of_any_name_can_be_read_back(
    suffix: str, exported: Exported, tmp_path: Path
) -> None:
    model, path = exported("dense", suffix)
    assert_same_logits(model, read_exported(path).run, (1, 3))
    (tmp_path / "model").hardlink_to(path)
    run = read_exported(tmp_path / "model", export.SUFFIXES[suffix]).run
    assert_same_logits(model, run, (2,))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.98])
@every_format
def test_a_truncated_file_is_refused_with_one_sentence(
    suffix: str, share: float, exported: Exported, tmp_path: Path
) -> None:
    path, content = tmp_path / f"model{suffix}", exported("dense", suffix)[1].read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"model\.\w+ is damaged or not of the format") as raised:
        read_exported(path)
    assert len(str(raised.value).splitlines()) == 1
    assert "export it again" in str(raised.value)


@every_format
def test_a_file_of_another_format_is_refused(
    suffix: str, exported: Exported, tmp_path: Path
) -> None:
    for other in {*SUFFIXES} - {suffix}:
        path = tmp_path / f"model{other}"
        path.hardlink_to(exported("dense", suffix)[1])
        with pytest.raises(UserError, match="is damaged or not of the format"):
            read_exported(path)


def test_a_missing_file_raises_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_exported(tmp_path / "model.onnx")


# --- refusals ---


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_graph_that_computes_something_else_is_not_written(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (operator,) = export.STANDARD
    wrong = {operator: lambda x, count: x.topk(count, dim=-1, largest=False).indices}
    monkeypatch.setattr(export, "STANDARD", wrong)
    path = tmp_path / f"model{suffix}"
    path.write_text("old")
    model = build(replace(VARIANTS["ait-image"], depth=1))
    with pytest.raises(UserError, match=r"model\.\w+ was not written: .* tolerance of 1e-04"):
        export_model(model, path)
    assert [each.read_text() for each in tmp_path.iterdir()] == ["old"]


def test_the_tolerance_can_be_chosen(tmp_path: Path) -> None:
    model, path = build(TINY["vit"]), tmp_path / "model.onnx"
    with pytest.raises(UserError, match="tolerance of 0e"):
        export_model(model, path, tolerance=0.0)
    assert not path.exists()


@every_format
def test_a_model_with_logits_that_are_not_numbers_is_not_written(
    suffix: str, tmp_path: Path
) -> None:
    model = build(TINY["dense"])
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="by nan"):
        export_model(model, tmp_path / f"model{suffix}")
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_too_large_for_onnx_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tensor, "element_size", lambda _: 2**20)
    with pytest.raises(UserError, match="too many for ONNX: use --format torch"):
        export_model(build(TINY["vit"]), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
