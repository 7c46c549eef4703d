"""Attacks that try to run code from data or to write outside a run.

A trap is a folder that appears if an attack succeeds. Most traps are also shown to work without
the protection.
"""

import ast
import csv
import io
import json
import os
import pickle
import re
import shutil
import stat
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import datasets
import huggingface_hub.hub_mixin as hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from huggingface_hub.errors import EntryNotFoundError
from PIL import EpsImagePlugin, Image

import associative_transformer
from associative_transformer.analysis.storage import load_result
from associative_transformer.data import decode_image
from associative_transformer.data.sources import open_hub_data_set, open_image_folder
from associative_transformer.experiment import load_experiment, save_experiment
from associative_transformer.files import write_file
from associative_transformer.interface import UserError
from associative_transformer.models import build_model, load_model
from associative_transformer.models.vit import ViT
from associative_transformer.runs import folder as run_folder
from associative_transformer.runs.folder import History, check_folder
from associative_transformer.runs.saved import load_run
from making.commands import IMAGES, Ait, assert_refused, make_images
from making.hostile import COLOR, EPS, EXPERIMENT, Malice, make_run, png

CODE, OUTSIDE = "attacks: code in data", "attacks: writing outside a run"
code, outside = pytest.mark.hostile(CODE), pytest.mark.hostile(OUTSIDE)
SOURCE = sorted(Path(associative_transformer.__file__).parent.rglob("*.py"))


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    return tmp_path / "trap"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


# --- code ---


def pickled(trap: Path) -> bytes:
    return pickle.dumps({"head": Malice(trap)})


def pickled_by_torch(trap: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"head": Malice(trap)}, buffer)
    return buffer.getvalue()


PICKLES = [pickled, pickled_by_torch]


@pytest.mark.parametrize("write", PICKLES)
def test_unpickling_without_protection_springs_the_trap(
    write: Callable[[Path], bytes], trap: Path
) -> None:
    content = io.BytesIO(write(trap))
    if write is pickled:
        pickle.load(content)
    else:
        torch.load(content, weights_only=False)
    assert trap.exists()


@code
@pytest.mark.parametrize("write", PICKLES)
def test_a_pickle_named_like_the_weights_is_not_executed(
    write: Callable[[Path], bytes], run: Path, trap: Path
) -> None:
    (run / "model.safetensors").write_bytes(write(trap))
    with pytest.raises(UserError, match="damaged"):
        load_run(run)
    assert not trap.exists()


@code
@pytest.mark.parametrize("write", PICKLES)
def test_a_pickle_is_not_read_if_the_weights_are_missing(
    write: Callable[[Path], bytes], run: Path, trap: Path
) -> None:
    (run / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pt", "model.safetensors.pkl"):
        (run / name).write_bytes(write(trap))
    with pytest.raises(UserError, match="damaged"):
        load_run(run)
    assert not trap.exists()


@code
@pytest.mark.parametrize("write", PICKLES)
def test_a_pickle_on_the_hub_is_refused_if_there_are_no_safetensors(
    write: Callable[[Path], bytes], run: Path, trap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "pytorch_model.bin").write_bytes(write(trap))

    def download(repo_id: str, filename: str, **_: object) -> str:
        if filename == "model.safetensors":
            raise EntryNotFoundError("no such file")
        return str(run / filename)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr("associative_transformer.models.saved_config.hf_hub_download", download)
    with pytest.raises(UserError, match=r"pytorch_model\.bin may contain code and is not read"):
        load_model("someone/model")
    assert not trap.exists()


def test_even_a_harmless_pickle_of_weights_is_not_read(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(build_model(EXPERIMENT.model).state_dict(), run / "pytorch_model.bin")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpickled"))
    with pytest.raises(UserError, match="not read"):
        ViT._load_as_pickle(None, str(run / "pytorch_model.bin"), "cpu", True)


@code
@pytest.mark.parametrize("name", ["memory", "analysis"])
def test_an_array_of_objects_is_not_unpickled(name: str, tmp_path: Path, trap: Path) -> None:
    array = np.array([Malice(trap)], object)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    np.savez(tmp_path / "memory.npz", priors=array)
    (tmp_path / "competition.json").write_text("{}")
    np.savez(tmp_path / "competition.npz", priors=array)
    with pytest.raises(UserError):
        if name == "memory":
            History.read(tmp_path, 1)
        else:
            load_result(History, tmp_path, "competition")
    assert not trap.exists()
    file = "memory.npz" if name == "memory" else "competition.npz"
    np.load(tmp_path / file, allow_pickle=True)["priors"]
    assert trap.exists()


TAGS = {
    "apply": "!!python/object/apply:os.mkdir ['{trap}']",
    "apply with keywords": "!!python/object/apply:os.mkdir\n  kwds: {{path: '{trap}'}}",
    "new": "!!python/object/new:os.mkdir ['{trap}']",
    "system": "!!python/object/apply:os.system ['mkdir {trap}']",
    "eval": '!!python/object/apply:builtins.eval [\'__import__("os").mkdir("{trap}")\']',
    "subprocess": "!!python/object/apply:subprocess.check_output [[mkdir, '{trap}']]",
    "in full": "!<tag:yaml.org,2002:python/object/apply:os.mkdir> ['{trap}']",
    "as a key": "{{? !!python/object/apply:os.mkdir ['{trap}'] : 1}}",
    "deep in a list": "[1, {{a: [!!python/object/apply:os.mkdir ['{trap}']]}}]",
}


@code
@pytest.mark.parametrize("tag", TAGS)
def test_a_yaml_tag_does_not_construct_objects(tag: str, run: Path, trap: Path, ait: Ait) -> None:
    path = run / "experiment.yaml"
    attack = f"train: {TAGS[tag].format(trap=trap)}\n"
    path.write_text(path.read_text() + attack)
    with pytest.raises(UserError, match=r"experiment\.yaml is not valid YAML"):
        load_experiment(path)
    assert_refused(ait("eval", run), "experiment.yaml")
    assert not trap.exists()
    yaml.unsafe_load(attack)
    assert trap.exists()


@code
def test_python_files_next_to_a_model_are_not_imported(run: Path, trap: Path) -> None:
    for name in ("modeling.py", "__init__.py", "conftest.py", "run.py"):
        (run / name).write_text(f"import os; os.mkdir({str(trap)!r})")
    load_run(run)
    config = json.loads((run / "config.json").read_text())
    config |= {"auto_map": {"AutoModel": "modeling.Malice"}, "trust_remote_code": True}
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="auto_map"):
        load_run(run)
    assert not trap.exists()


@code
def test_the_script_of_a_data_set_is_not_run(
    tmp_path: Path, trap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "malice"
    folder.mkdir()
    script = f"import os\nos.mkdir({str(trap)!r})\n"
    (folder / "malice.py").write_text(script)
    for load in (open_hub_data_set, lambda name: open_image_folder(Path(name))):
        with pytest.raises(UserError):
            load(str(folder))
    assert not trap.exists()
    exec(script)
    assert trap.exists()


@code
@pytest.mark.parametrize("name", [b"arrow.py_extension_type", b"datasets.features.Array2D"])
def test_a_pickled_type_of_a_column_is_not_unpickled(
    name: bytes, tmp_path: Path, trap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    metadata = {b"ARROW:extension:name": name, b"ARROW:extension:metadata": pickled(trap)}
    schema = pa.schema([pa.field("x", pa.int64(), metadata=metadata)])
    for split in ("train", "test"):
        pq.write_table(pa.table([pa.array([1, 2])], schema), tmp_path / f"{split}.parquet")
    splits = open_image_folder(tmp_path)
    assert [list(split["x"]) for split in splits.values()] == [[1, 2], [1, 2]]
    assert not trap.exists()


@code
@pytest.mark.parametrize("kind", ["os.mkdir", "DatasetInfo", "Dataset", "Path", "__import__"])
def test_a_class_named_in_a_table_is_not_constructed(
    kind: str, tmp_path: Path, trap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = {"x": {"_type": kind, "path": str(trap), "name": str(trap)}}
    described = json.dumps({"info": {"features": features}}).encode()
    schema = pa.schema([pa.field("x", pa.int64())], {b"huggingface": described})
    pq.write_table(pa.table([pa.array([1, 2])], schema), tmp_path / "train.parquet")
    with pytest.raises(UserError, match="cannot read the parquet files"):
        open_image_folder(tmp_path)
    assert not trap.exists()


@code
@pytest.mark.parametrize("name", ["picture.png", "picture.eps"])
def test_an_image_does_not_start_a_program(
    name: str, tmp_path: Path, trap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "gs"  # Ghostscript, which Pillow starts for EPS
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nmkdir -p {trap}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    (tmp_path / name).write_bytes(EPS)
    with pytest.raises(UserError, match="not an image in PNG, JPEG"):
        decode_image(tmp_path / name, 8)
    assert not trap.exists()
    with pytest.raises(OSError), Image.open(tmp_path / name) as image:
        image.load()
    assert trap.exists()


FORBIDDEN = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "runpy.run_path"}
FORBIDDEN |= {"yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"}


def dotted_name(node: ast.expr) -> str:
    """Return the full name of a called function, such as torch.load."""
    if isinstance(node, ast.Attribute):
        return f"{dotted_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def test_the_source_never_executes_foreign_code() -> None:
    """It uses no pickle, no unsafe YAML loader, no eval and no code from the hub."""
    breaches: list[str] = []
    for path in SOURCE:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            breaches += [
                name for name in names if {"pickle", "dill", "joblib"} & {*name.split(".")}
            ]
            if not isinstance(node, ast.Call):
                continue
            called = dotted_name(node.func)
            options = {option.arg: ast.unparse(option.value) for option in node.keywords}
            if (
                called in FORBIDDEN
                or (called == "torch.load" and options.get("weights_only") != "True")
                or {"allow_pickle", "trust_remote_code", "shell"} & options.keys()
            ):
                breaches.append(f"{path.name}: {called}")
    assert not breaches


# --- outside ---


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """Create a folder outside the run with a file that must not change."""
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "file").write_text("precious")
    return folder


def is_untouched(precious: Path) -> bool:
    return (
        [path.name for path in precious.iterdir()] == ["file"]
        and (precious / "file").read_text() == "precious"
        and not (precious / "file").is_symlink()
    )


NAMES = ["../precious/x", "..", "../../x", "a/../../x", "/tmp/x", "a/b", "..\\x", "C:\\x", "~/x"]


@outside
@pytest.mark.parametrize("name", NAMES)
def test_a_name_cannot_point_to_another_folder(
    name: str, run: Path, ait: Ait, tmp_path: Path
) -> None:
    path = run / "experiment.yaml"
    saved = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(saved | {"name": name}))
    before = sorted(tmp_path.rglob("*"))
    assert_refused(ait("eval", run), "name must be a valid folder name")
    result = ait("train", "triangle-ait-tiny", "--name", name, "--runs", tmp_path / "a" / "runs")
    assert result.code == 2
    assert sorted(tmp_path.rglob("*")) == before


FOLDERS = ["analysis", "figures", "tracker", "checkpoint", "checkpoint/last", "checkpoint/best"]
FOLDERS += ["checkpoint/previous", "checkpoint/.partial", "runs/more"]


@outside
@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_that_is_a_link_is_refused(
    folder: str, run: Path, ait: Ait, precious: Path
) -> None:
    (run / folder).parent.mkdir(exist_ok=True)
    (run / folder).symlink_to(precious)
    words = (f"{run / folder} is a link out of the run", "replace it with a folder")
    for command in ("analyze", "eval", "report"):
        assert_refused(ait(command, run), *words)
    with pytest.raises(UserError, match="is a link out of the run"):
        check_folder(run, EXPERIMENT, resume=True, overwrite=False)
    assert is_untouched(precious)


FILES = ["experiment.yaml", "environment.json", "metrics.jsonl", "memory.npz", "result.json"]
FILES += ["evaluation.json", "confusion.csv", "report.html", "model.safetensors", "config.json"]
FILES += ["README.md"]


@outside
@pytest.mark.parametrize("is_partial", [False, True], ids=["file", "partial"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_a_link_is_replaced_and_not_followed(
    name: str, is_partial: bool, run: Path, precious: Path
) -> None:
    path = run / (f".{name}.partial" if is_partial else name)
    for target in (precious / "file", precious / "new"):
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        write_again(run, name)
        assert is_untouched(precious)
        assert not (run / name).is_symlink()


def write_again(run: Path, name: str) -> None:
    """Write a file of a run as training and the commands do."""
    match name:
        case "experiment.yaml":
            save_experiment(EXPERIMENT, run / name)
        case "metrics.jsonl" | "memory.npz":
            History([{"loss": 1.0}], [np.zeros((1, 4, 8))]).write(run)
        case "model.safetensors" | "config.json" | "README.md":
            build_model(EXPERIMENT.model).save_pretrained(run)
        case _:
            write_file(run / name, b"new")


@outside
@pytest.mark.parametrize("name", ["evaluation.json", "confusion.csv", ".confusion.csv.partial"])
def test_a_command_replaces_a_link(name: str, run: Path, ait: Ait, precious: Path) -> None:
    (run / name).symlink_to(precious / "file")
    assert ait("eval", run).code == 0
    assert is_untouched(precious)
    assert not (run / "confusion.csv").is_symlink()


@outside
def test_a_report_replaces_a_link(run: Path, ait: Ait, precious: Path) -> None:
    (run / "result.json").unlink()  # an unfinished run has a report too
    (run / "report.html").symlink_to(precious / "file")
    assert ait("report", run).code == 0
    assert is_untouched(precious)
    assert "<html" in (run / "report.html").read_text()


@outside
def test_overwriting_removes_a_link_but_not_its_target(run: Path, precious: Path) -> None:
    (run / "checkpoint").symlink_to(precious)
    (run / "memory.npz").symlink_to(precious / "file")
    run_folder.prepare_folder(run, EXPERIMENT, torch.device("cpu"), resume=False)
    assert is_untouched(precious)
    assert {path.name for path in run.iterdir()} == {"experiment.yaml", "environment.json"}


def test_files_that_are_links_are_read_as_in_the_cache_of_the_hub(
    run: Path, tmp_path: Path
) -> None:
    for path in list(run.iterdir()):
        path.rename(tmp_path / path.name)
        path.symlink_to(tmp_path / path.name)
    assert load_run(run).classes == ("equilateral", "other")


@outside
def test_an_error_about_a_linked_image_does_not_quote_its_target(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("password")
    (tmp_path / "a.png").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError) as error:
        decode_image(tmp_path / "a.png", 8)
    assert "password" not in str(error.value)
    (tmp_path / "b.png").symlink_to(tmp_path / "c.png")
    (tmp_path / "c.png").write_bytes(png(COLOR))
    assert decode_image(tmp_path / "b.png", 8).shape == (3, 8, 8)


# --- names ---

NAMED = {"red": "\x1b[31m=1+1|<b>`$\\frac", "blue": "-2+3\u202e"}  # how the classes are called


@pytest.fixture(scope="session")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `images` of classes with hostile names, and the run `own/0`."""
    root = tmp_path_factory.mktemp("named")
    images = make_images(root / "images")
    for split in ("train", "test"):
        for name, hostile in NAMED.items():
            (images / split / name).rename(images / split / hostile)
    main = import_module("associative_transformer.cli").main
    with pytest.MonkeyPatch.context() as patch:
        arguments = [*IMAGES, "--data.source", str(images), "--name", "own", "--runs", str(root)]
        patch.setattr(sys, "argv", ["ait", "train", *arguments])
        assert main() == 0
    return root


def test_class_names_cannot_control_a_terminal(named: Path, ait: Ait, tmp_path: Path) -> None:
    run = shutil.copytree(named / "own" / "0", tmp_path / "run")
    image = tmp_path / "=a\x1b[2J.png"
    shutil.copy(named / "images" / "test" / NAMED["red"] / "0.png", image)
    for command in (
        ["eval", run],
        ["predict", run, image],
        ["predict", run, image, "--format", "jsonl"],
        ["analyze", run, "--images", "8"],
        ["report", run, "--images", "8"],
    ):
        done = ait(*command)
        assert done.code == 0, done.err
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", done.out + done.err)
        if command[0] in ("eval", "predict"):
            assert r"\x1b[31m" in done.out or r"\u001b[31m" in done.out


def test_class_and_file_names_are_no_formulas_in_csv(
    named: Path, ait: Ait, tmp_path: Path
) -> None:
    run = shutil.copytree(named / "own" / "0", tmp_path / "run")
    shutil.copy(named / "images" / "test" / NAMED["red"] / "0.png", "=1.png")
    assert ait("eval", run).code == 0
    assert ait("predict", run, "=1.png", "--output", "out.csv").code == 0
    for path in (run / "confusion.csv", Path("out.csv")):
        rows = list(csv.reader(path.open(encoding="utf-8", newline="")))
        cells = [cell for row in rows for cell in row]
        assert "'-2+3\u202e" in cells
        assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert rows[1][0] == "'=1.png"
    assert ait("predict", run, "=1.png", "--format", "jsonl", "--output", "out.jsonl").code == 0
    line = json.loads(Path("out.jsonl").read_text(encoding="utf-8"))
    assert line["path"] == "=1.png"
    assert {answer["class"] for answer in line["predictions"]} == {*NAMED.values()}


def test_class_names_cannot_add_elements_to_a_report(
    named: Path, ait: Ait, tmp_path: Path
) -> None:
    run = shutil.copytree(named / "own" / "0", tmp_path / "run")
    assert ait("report", run, "--images", "8").code == 0
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<b>`" not in page


NUM_CODE = 2 * len(PICKLES) + 2 + 2 + len(TAGS) + 2 + 2 + 5 + 2
NUM_OUTSIDE = len(NAMES) + len(FOLDERS) + 2 * len(FILES) + 3 + 3


@pytest.mark.parametrize(("row", "tried"), [(CODE, NUM_CODE), (OUTSIDE, NUM_OUTSIDE)])
def test_the_docs_state_the_number_of_these_attacks(row: str, tried: int) -> None:
    docs = (Path(__file__).parents[1] / "docs" / "explanation" / "reliability.md").read_text()
    assert f"| {row} | {tried} | {tried} |" in docs
