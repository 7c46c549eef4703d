"""Every reader of data from outside, with valid content for it and ways to damage that content."""

import io
import json
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from associative_transformer.analysis import analyze, load_analysis
from associative_transformer.analysis.drift import measure_drift_of_run
from associative_transformer.bench.ratios import Entry, Ratios, read_ratios, write_ratios
from associative_transformer.cli.options import parse
from associative_transformer.cli.train import TrainOptions
from associative_transformer.data import ImagesConfig, TriangleConfig, decode_image
from associative_transformer.data.questions import KINDS, parse_question
from associative_transformer.data.sources import SplitsConfig
from associative_transformer.experiment import (
    Experiment,
    TrainConfig,
    list_fields,
    load_experiment,
)
from associative_transformer.models import build_model, load_model
from associative_transformer.models.ait import AiTConfig
from associative_transformer.models.official import load_official
from associative_transformer.recipes import RECIPES
from associative_transformer.recipes.commands import MEASURED, format_options
from associative_transformer.report import write_report
from associative_transformer.runs.checkpoint import (
    TrainingState,
    restore_checkpoint,
    save_checkpoint,
)
from associative_transformer.runs.environment import read_environment
from associative_transformer.runs.folder import History
from associative_transformer.runs.result import read_result
from associative_transformer.runs.saved import load_run, read_run
from associative_transformer.workspace_config import WorkspaceConfig
from making.hostile import image_seeds
from making.mutations import (
    Random,
    damage,
    damage_chunks,
    damage_header,
    damage_members,
    damage_values,
    pick,
)
from making.plant import make_complete_run, put_result, result_of

MODEL = AiTConfig(
    image_size=64,
    patch_size=32,
    embed_dim=8,
    depth=1,
    num_heads=1,
    head_dim=8,
    mlp_ratio=1.0,
    num_classes=2,
    workspace=WorkspaceConfig(num_priors=3, prior_dim=4, num_heads=1, bottleneck=8),
)
NUM_TEST = 8
REPORT = "report of a run"
EXPERIMENT = Experiment(
    "tiny",
    TriangleConfig(num_train=8, num_test=NUM_TEST),
    MODEL,
    TrainConfig(epochs=2, batch_size=8, device="cpu"),
)
TIMING = {"seconds": 1.0, "samples_per_second": 8.0}
FIXTURES = Path(__file__).parents[1] / "fixtures"
RECORD = ("experiment", "result", "environment", "metrics", "memory")
RESUMABLE = ("result", "checkpoint/last/state")
WHOLE = ("experiment", "result", "config", "model.safetensors")
REPORTED = ("model.safetensors", "config", *RECORD, "analysis/")
LENIENT: dict[str, Any] = {  # settings that differ from the defaults
    "memory_budget": 0.0,  # images are streamed
    "on_error": "skip",
    "mean": "auto",
    "limit": 5,
}
INNER = "inner"  # a folder to read by --data.config


class Reader(NamedTuple):
    """Valid inputs of a reader, how to damage them, and how to read the result."""

    seeds: Callable[[], Sequence[Any]]
    change: Callable[[Any, Sequence[Any], Random], Any]
    read: Callable[[Any, Path], object]  # in an empty folder


# --- ways to damage ---


def damage_json(data: bytes, random: Random) -> bytes:
    """Change values of a JSON document."""
    return json.dumps(damage_values(json.loads(data), random)).encode()


def damage_lines(data: bytes, random: Random) -> bytes:
    """Change values in one line of JSON."""
    lines = data.splitlines()
    i = int(random.integers(len(lines)))
    lines[i] = damage_json(lines[i], random)
    return b"".join(line + b"\n" for line in lines)


def damage_yaml(data: bytes, random: Random) -> bytes:
    """Change values of a YAML document."""
    return yaml.safe_dump(damage_values(yaml.safe_load(data), random)).encode()


def damage_table(data: bytes, random: Random) -> bytes:
    """Change labels, images or the description of the columns of a parquet file."""
    table = pq.read_table(io.BytesIO(data))
    names = table.column_names
    columns = [table[name].combine_chunks() for name in names]
    metadata = table.schema.metadata or {}
    i = int(random.integers(len(names)))
    match int(random.integers(5)):
        case 0:
            metadata = {b"huggingface": damage_json(metadata[b"huggingface"], random)}
        case 1:
            metadata = {b"huggingface": damage(metadata[b"huggingface"], [data], random)}
        case 2:
            columns[1] = pa.array(random.integers(-3, 9, size=len(table)))
        case 3:
            del names[i], columns[i]
        case _:
            rows = columns[0].to_pylist()
            j = int(random.integers(len(rows)))
            content = damage(rows[j]["bytes"], [data], random)
            path = pick([None, "", "../a.png", "/etc/passwd", "test.parquet", "a\0b"], random)
            rows[j] = {"bytes": None if path else content, "path": path}
            columns[0] = pa.array(rows, columns[0].type)
    table = pa.table(columns, names=names).replace_schema_metadata(metadata)
    return write_table(table)


def write_table(table: pa.Table) -> bytes:
    """Return a parquet file with this table."""
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def damage_tree(
    files: dict[str, bytes], others: Sequence[dict[str, bytes]], random: Random
) -> dict[str, bytes]:
    """Damage, remove, rename, move or add files below a folder."""
    files, names = dict(files), list(files)
    for _ in range(int(random.integers(1, 4))):
        name, other = pick(names, random), pick(names, random)
        content = files.pop(name, b"")
        match int(random.integers(5)):
            case 0:
                files[name] = damage(content, [content], random)
            case 1:
                parts = pick(names, random).split("/")
                k = int(random.integers(len(parts)))
                parts[k] = damaged_name(parts[k], random)
                files["/".join(parts)] = content
            case 2:
                files[f"{other}/{name}" if other not in files else f"deep/{name}"] = content
            case 3:
                files[name] = content
                files[f"{name.rpartition('/')[0]}/{damaged_name('0.png', random)}"] = content
            case _:
                pass
    return files


def damaged_name(name: str, random: Random) -> str:
    """Return a file name of at most 99 bytes, perhaps not UTF-8."""
    content = damage(name.encode(), [b"train", b"test", b"val.parquet"], random)
    content = re.sub(rb"[\0/]", b"", content)[:99]
    return (content.strip(b".") or b"a").decode(errors="surrogateescape")


def damage_any(data: bytes, random: Random) -> bytes:
    """Damage arrays in an archive, or values in JSON, JSON lines or YAML."""
    if data[:2] == b"PK":
        return damage_members(data, random)
    if data[:1] != b"{":
        return damage_yaml(data, random)
    return damage_lines(data, random) if b"}\n{" in data else damage_json(data, random)


def either(*special: Callable[[bytes, Random], bytes]) -> Callable[..., bytes]:
    """Damage bytes without knowing their format, or in one of these special ways."""

    def change(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
        if special and random.random() < 0.6:
            return pick(special, random)(data, random)
        return damage(data, others, random)

    return change


# --- a run, and how to read one of its files ---


@cache
def files_of_run() -> dict[str, bytes]:
    """Return the files of a complete run with an analysis and a checkpoint, by relative path."""
    with TemporaryDirectory() as name:
        folder = make_complete_run(Path(name), EXPERIMENT)
        result = result_of(EXPERIMENT, classes=["equilateral", "other"], test_images=NUM_TEST)
        put_result(folder, result)
        rows = [{"epoch": i, "lr": 0.1, "loss": 1.0, "balance_loss": 0.0} for i in (1, 2)]
        rows = [{**row, "accuracy": 50.0, "skipped_steps": 0, "timing": TIMING} for row in rows]
        memory = np.random.default_rng(0).normal(size=(2, 1, 3, 4)).astype(np.float32)
        History(rows, list(memory)).write(folder)
        data = EXPERIMENT.data.load_test(torch.device("cpu"))
        analyze(load_run(folder), folder, data)
        model, optimizer = make_model()
        save_checkpoint(folder / "checkpoint", model, optimizer, vars(TrainingState(data="a")))
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }


def make_model() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Return a model after one step of its optimizer."""
    model = build_model(MODEL)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return model, optimizer


def put_run(folder: Path, name: str, content: bytes, files: tuple[str, ...]) -> Path:
    """Write the files of the run whose paths start like these, one of them with this content."""
    for other, intact in files_of_run().items():
        if other.startswith(files):
            path = folder / other
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if other == name else intact)
    return folder


def of_run(
    name: str,
    read: Callable[[Path], object],
    *special: Callable[[bytes, Random], bytes],
    files: tuple[str, ...] = (),
) -> Reader:
    """Return the reader of a file of a run folder, which needs some other files of the run."""
    return Reader(
        lambda: [files_of_run()[name]],
        either(*special),
        lambda content, folder: read(put_run(folder, name, content, (name, *files))),
    )


def read_all(folder: Path) -> object:
    """Read everything that a run folder says about a run, without its model."""
    run = read_run(folder)
    return run.result, run.environment, run.num_epochs, run.history, measure_drift_of_run(folder)


def read_checkpoint(folder: Path) -> object:
    """Restore a checkpoint whose digests are right."""
    import hashlib

    last = folder / "checkpoint" / "last"
    try:
        state = json.loads((last / "state.json").read_bytes())
        state.pop("digest", None)
        for name in state["digests"]:
            state["digests"][name] = hashlib.sha256((last / name).read_bytes()).hexdigest()
        text = json.dumps(state, sort_keys=True).encode()
        state["digest"] = hashlib.sha256(text).hexdigest()
        (last / "state.json").write_text(json.dumps(state))
    except Exception:  # too much damage to repair its digests
        pass
    saved = restore_checkpoint(folder / "checkpoint", *make_model())
    assert saved is not None
    return TrainingState(**saved)


# --- other readers ---


def read_images(source: Path) -> object:
    """Decode all images of a data source, first with lenient settings; return a digest."""
    cpu = torch.device("cpu")
    config = ImagesConfig("mine", source=str(source), image_size=8, num_workers=0, augment="none")
    if (source / INNER).is_dir():
        config = replace(config, splits=SplitsConfig(config=INNER))
    has_validation = any(source.rglob("*val*"))
    data = replace(config, **LENIENT, val_fraction=0.0 if has_validation else 0.2).load(cpu)
    list(data.test.eval_batches(batch_size=2))
    config.load_test(cpu)
    return config.load(cpu).digest


def read_parquet(content: bytes, folder: Path) -> object:
    """Read a table as the training images of a data set."""
    (folder / "train.parquet").write_bytes(content)
    (folder / "test.parquet").write_bytes(tables()[0])
    return read_images(folder)


@cache
def tables() -> list[bytes]:
    """Return small parquet files of labeled images."""
    pictures = [seed for seeds in image_seeds().values() for seed in seeds[:1]][:6]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {
        "image": pa.array([{"bytes": picture, "path": None} for picture in pictures], kind),
        "label": pa.array([0, 1, 2, 0, 1, 2]),
    }
    features = {
        "image": {"_type": "Image"},
        "label": {"names": ["a", "b", "c"], "_type": "ClassLabel"},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table(columns)
    return [write_table(table.replace_schema_metadata(metadata))]


def read_tree(files: dict[str, bytes], folder: Path) -> object:
    """Read class folders."""
    for name, content in files.items():
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError:  # a file where a folder should be, or a name that is too long
            continue
    return read_images(folder)


@cache
def trees() -> list[dict[str, bytes]]:
    """Return class folders of six images."""
    pictures = [seed for seeds in image_seeds().values() for seed in seeds[:1]]
    names = ["train/a/0.png", "train/a/1.jpg", "train/b/0.gif", "train/b/1.bmp"]
    two = dict(zip([*names, "test/a/0.tif", "test/b/0.webp"], pictures[:6], strict=True))
    three = {name.replace("test/", "val/"): content for name, content in two.items()}
    hidden = {"train/.DS_Store": b"", "train/a/0.png~": b"", "train/notes.txt": b"notes"}
    return [two, two | three | hidden, {f"{INNER}/{name}": two[name] for name in two}]


@cache
def shards() -> list[dict[str, bytes]]:
    """Return folders of parquet files: in two shards, with other names of classes, and named."""
    (whole,) = tables()
    table = pq.read_table(io.BytesIO(whole))
    text = table.schema.metadata[b"huggingface"].replace(b'["a", "b", "c"]', b'["c", "a", "b"]')
    other = write_table(table.replace_schema_metadata({b"huggingface": text}))
    two = {"train-00000-of-00002.parquet": whole, "train-00001-of-00002.parquet": other}
    named = {"data/train.parquet": whole, "data/test.parquet": whole, "data/val.parquet": whole}
    return [two | {"test-00000-of-00001.parquet": whole}, named]


@cache
def official() -> list[dict[str, torch.Tensor]]:
    """Return a checkpoint of the official code."""
    with np.load(FIXTURES / "official_ait.npz") as file:
        names = [name for name in file.files if name.startswith("weight/")]
        return [{name[7:]: torch.from_numpy(file[name]) for name in names}]


def damage_weights(
    state: dict[str, torch.Tensor], others: Sequence[dict[str, torch.Tensor]], random: Random
) -> dict[str, torch.Tensor]:
    """Change shapes, types, values and names of weights."""
    state, names = dict(state), list(state)
    sizes = [name for name in names if state[name].ndim != 1]  # what the sizes are read from
    for _ in range(int(random.integers(1, 3))):
        name = pick(names if random.random() < 0.5 else sizes, random)
        if name not in state:
            continue
        value = state.pop(name)
        match int(random.integers(8)):
            case 0:
                state[damage(name.encode(), [b"a.b"], random).decode(errors="replace")] = value
            case 1:
                state[name] = value[..., None]
            case 2:
                state[name] = value.flatten()[: int(random.integers(3))]
            case 3:
                scale = pick([0.0, -1.0, float("nan"), float("inf"), 1e6], random)
                state[name] = value * scale
            case 4:
                state[name] = value.to(pick([torch.int64, torch.bool, torch.complex64], random))
            case 5:
                size = [int(pick([0, 1, 2, 3, 64, 4096], random)) for _ in value.shape]
                state[name] = torch.zeros(()).expand(size)
            case 6:
                size = [int(pick([0, 1, 10**5, 10**6], random)) for _ in value.shape]
                state[name] = torch.zeros(()).expand(size)
            case _:
                pass
    return state


QUESTIONS = [
    re.sub("B", "blue", kind.words.replace("A", color)).encode()
    for kind in KINDS
    for color in ("red", "gray")
]
RECIPES_OF = (
    "triangle-ait-tiny",
    "cifar10-ait-small",
    "cifar10-coordination",
    "cifar10-vit-small",
)
RECIPES_OF += (
    "cifar10-perceiver",
    "cifar10-set-transformer",
    "cifar10-brims",
    "cifar10-luna-small",
)
RECIPES_OF += ("sort-of-clevr-cnn-rn", "sort-of-clevr-cnn-mlp", "sort-of-clevr-ait-tiny")


def lines() -> list[list[str]]:
    """Return the words of command lines: a recipe, and every field with its value."""
    return [[name, *options_of(RECIPES[name])] for name in RECIPES_OF]


def options_of(recipe: Experiment) -> list[str]:
    """Return options that set every field to its value."""
    values = {
        name: value
        for name, value in list_fields(recipe).items()
        if not name.endswith("kind") and not name.startswith(MEASURED)
    }
    return format_options(values)


def damage_line(line: list[str], others: Sequence[list[str]], random: Random) -> list[str]:
    """Keep a few options of a line and damage words of them."""
    name, *words = line
    flags = [i for i, word in enumerate(words) if word.startswith("--")]
    kept = [name]
    for _ in range(int(random.integers(1, 4))):
        k = int(random.integers(len(flags)))
        kept += words[flags[k] : [*flags, len(words)][k + 1]]
    for _ in range(int(random.integers(3))):
        k = int(random.integers(1, len(kept)))
        match int(random.integers(4)):
            case 0:
                word = damage(kept[k].encode(errors="surrogateescape"), [b"--train.lr"], random)
                kept[k] = word.replace(b"\0", b"")[:5_000].decode(errors="surrogateescape")
            case 1:
                kept[k] = str(pick(VALUES_ON_A_LINE, random))
            case 2:
                kept[k:k] = [pick(pick(others, random), random)]
            case _:
                del kept[k]
                if len(kept) == 1:
                    break
    return kept


VALUES_ON_A_LINE = (0, -1, 1, 2, 0.5, "nan", "inf", "1e400", "10" * 300, "", "None", "True")
VALUES_ON_A_LINE += ("../x", "\udcff", "1e10", "1e6", "auto", "a" * 300, "[1]", "{}", "--", "=")


def read_line(words: list[str], folder: Path) -> object:
    """Parse a command line of `ait train`."""
    name, *rest = words
    return parse(TrainOptions, rest, f"train {name}", TrainOptions(RECIPES[name]))


def results() -> list[bytes]:
    """Return the results of a run without questions, of one with them, and of a validated one."""
    others = [FIXTURES / f"runs/{name}/complete/result.json" for name in ("plain", "overrides")]
    return [files_of_run()["result.json"], *(path.read_bytes() for path in others)]


def put(folder: Path, name: str, content: bytes) -> Path:
    """Write a file and return its path."""
    (folder / name).write_bytes(content)
    return folder / name


@cache
def ratios() -> list[bytes]:
    """Return a record of ratios."""
    with TemporaryDirectory() as name:
        path = Path(name) / "ratios.json"
        write_ratios(path, Ratios(0.1, "noise", [Entry("write", "cpu", {"dense": 1.5}, "here")]))
        return [path.read_bytes()]


# --- all readers ---


def image_reader(name: str) -> Reader:
    """Return the reader of an image format."""
    special = [damage_chunks] if name == "PNG" else []
    return Reader(
        lambda: image_seeds()[name], either(*special), lambda content, _: decode_image(content, 8)
    )


def analysis_files() -> list[tuple[str, bytes]]:
    """Return the files of the analysis, by path."""
    return [item for item in files_of_run().items() if item[0].startswith("analysis/")]


class Reported(NamedTuple):
    """A file of a run, and the files of that run from which a report is written."""

    name: str
    content: bytes
    files: tuple[str, ...] = REPORTED  # what the paths of the files of the run start with


@cache
def reported() -> list[Reported]:
    """Return each file of a run, some also for unfinished, validated and unanalyzed runs."""
    files = [item for item in files_of_run().items() if item[0].startswith(REPORTED[1:])]
    intact = dict(files)
    result = json.loads(intact["result.json"])
    best = {"epoch": 1, "test_accuracy": 70.0, "test_loss": 0.5, "test_images": NUM_TEST}
    result |= {"model": "best validation epoch"}
    result |= {"best_validation": best | {"validation_accuracy": 60.0}}
    unfinished = ("experiment", "environment", "metrics", "memory")
    unanalyzed = ("model.safetensors", "config", *RECORD)
    return [
        *(Reported(*item) for item in files),
        Reported("result.json", json.dumps(result).encode()),
        *(Reported(*item, unfinished) for item in files if item[0].startswith(unfinished)),
        Reported("result.json", intact["result.json"], unanalyzed),
    ]


def damage_file(item: tuple[Any, ...], others: object, random: Random) -> tuple[Any, ...]:
    """Damage the content of a named file."""
    name, content, *rest = item
    return name, either(damage_any)(content, [content], random), *rest


READERS = {
    **{f"image: {name}": image_reader(name) for name in image_seeds()},
    "parquet": Reader(tables, either(damage_table), read_parquet),
    "class folders": Reader(trees, damage_tree, read_tree),
    "shards": Reader(shards, damage_tree, read_tree),
    "experiment.yaml": of_run(
        "experiment.yaml", lambda run: load_experiment(run / "experiment.yaml"), damage_yaml
    ),
    "result.json": Reader(
        results,
        either(damage_json),
        lambda text, run: read_result(put_run(run, "result.json", text, RESUMABLE)),
    ),
    "environment.json": of_run("environment.json", read_environment, damage_json),
    "config.json": of_run("config.json", load_model, damage_json, files=WHOLE),
    "model.safetensors": of_run("model.safetensors", load_run, damage_header, files=WHOLE),
    "metrics.jsonl": of_run("metrics.jsonl", read_all, damage_lines, files=RECORD),
    "memory.npz": of_run("memory.npz", read_all, damage_members, files=RECORD),
    "analysis": Reader(
        analysis_files,
        damage_file,
        lambda item, folder: load_analysis(put_run(folder, *item, ("analysis/",))),
    ),
    REPORT: Reader(
        reported, damage_file, lambda item, folder: write_report(put_run(folder, *item))
    ),
    "state.json": of_run(
        "checkpoint/last/state.json", read_checkpoint, damage_json, files=("checkpoint/",)
    ),
    "optimizer.pt": of_run(
        "checkpoint/last/optimizer.pt", read_checkpoint, damage_members, files=("checkpoint/",)
    ),
    "weights of a checkpoint": of_run(
        "checkpoint/last/model.safetensors", read_checkpoint, damage_header, files=("checkpoint/",)
    ),
    "questions": Reader(
        lambda: QUESTIONS,
        either(),
        lambda content, _: parse_question(content.decode(errors="surrogateescape")),
    ),
    "official checkpoints": Reader(
        official, damage_weights, lambda state, _: load_official(state)
    ),
    "command lines": Reader(lines, damage_line, read_line),
    "ratios.json": Reader(
        ratios,
        either(damage_json),
        lambda content, folder: read_ratios(put(folder, "ratios.json", content)),
    ),
}


def make_case(name: str, number: int) -> Any:  # noqa: ANN401
    """Return a damaged input of a reader; a number gives the same input every time."""
    reader = READERS[name]
    random = np.random.default_rng([zlib.crc32(name.encode()), number])
    seeds = reader.seeds()
    return reader.change(pick(seeds, random), seeds, random)
