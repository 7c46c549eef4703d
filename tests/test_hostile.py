"""Broken and hostile input is read correctly, or refused with one sentence that names it.

`python -m pytest -q -n0 tests/test_hostile.py tests/test_attacks.py tests/test_generated.py
--tally` prints the counts in docs/explanation/reliability.md.
"""

import csv
import io
import json
import os
import resource
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image, ImageFile
from safetensors.torch import load_file, save_file

from associative_transformer.data import DataSet, ImagesConfig, decode_image
from associative_transformer.experiment import load_experiment, save_experiment
from associative_transformer.interface import UserError
from associative_transformer.models import build_model
from associative_transformer.predict import predict_files
from associative_transformer.runs.checkpoint import restore_checkpoint, save_checkpoint
from associative_transformer.runs.folder import History
from associative_transformer.runs.saved import load_run
from associative_transformer.tables.collect import collect_runs
from making.commands import Ait, assert_refused
from making.hostile import (
    BOMBS,
    COLOR,
    EXPERIMENT,
    READABLE,
    RED,
    UNREADABLE,
    WHOLE,
    chunk,
    make_run,
    png,
)
from making.plant import result_of

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def one_sentence(error: pytest.ExceptionInfo[UserError]) -> str:
    """Return the message after checking that it is one line without internals."""
    message = str(error.value)
    assert "\n" not in message and "Traceback" not in message and message.strip() == message
    return message


# --- images ---


@pytest.mark.hostile("images to be read")
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", READABLE)
def test_an_unusual_image_is_decoded_to_its_pixels(name: str, tmp_path: Path) -> None:
    picture = READABLE[name]
    path = tmp_path / picture.name
    path.write_bytes(picture.content)
    pixels = picture.pixels if picture.pixels.ndim == 3 else picture.pixels[..., None]
    expected = np.broadcast_to(pixels, (8, 8, 3))
    for source in (path, picture.content):
        assert np.array_equal(decode_image(source, 8).movedim(0, -1).numpy(), expected)


@pytest.mark.hostile("images to be refused")
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", UNREADABLE)
def test_a_broken_image_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(UNREADABLE[name])
    with pytest.raises(UserError) as error:
        decode_image(path, 8)
    message = one_sentence(error)
    assert message.startswith(f"cannot read the image {path} (")
    assert message.endswith("): replace or remove it")


@pytest.mark.parametrize("name", BOMBS)
def test_a_decompression_bomb_is_refused_before_memory_is_allocated(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: loads.append(self.size))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="decompression bomb"):
        decode_image(BOMBS[name], 8)
    assert not loads
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**15  # KiB


def test_a_large_webp_is_refused_since_its_decoder_takes_most_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = WHOLE["WEBP"]
    pixels = Image.open(io.BytesIO(content)).width ** 2
    for limit, is_readable in ((3 * pixels, True), (3 * pixels - 1, False)):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        if is_readable:
            decode_image(content, 8)
            continue
        with pytest.raises(UserError, match=rf"exceeds limit of {pixels - 1} pixels for WebP"):
            decode_image(content, 8)


@pytest.mark.slow
def test_the_largest_readable_image_takes_less_than_one_gibibyte() -> None:
    side = 9_400  # 88 million pixels in 1.5 MB
    packer = zlib.compressobj(1)
    row = bytes(1 + 4 * side)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    small = png(np.zeros((1, 1, 4), np.uint8), 6, size=(side, side))
    header, _, _ = small.partition(b"IDAT")
    content = header[:-4] + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (decode_image(content, 8) == 255).all()  # transparent, so white
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


@pytest.mark.hostile("images to be refused")
@pytest.mark.parametrize("kind", ["missing", "folder", "link to itself", "link to nothing"])
def test_a_path_that_is_not_a_file_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    if kind == "folder":
        path.mkdir()
    elif kind.startswith("link"):
        path.symlink_to(path if kind == "link to itself" else tmp_path / "nothing")
    with pytest.raises(UserError, match=rf"\Acannot read the image {path} \(.*replace or remove"):
        decode_image(path, 8)


def test_ait_predict_names_a_broken_image_or_counts_the_skipped_ones(
    ait: Ait, tmp_path: Path
) -> None:
    run, pictures = make_run(tmp_path / "run"), tmp_path / "pictures"
    pictures.mkdir()
    for i, content in enumerate([*UNREADABLE.values(), png(COLOR)]):
        (pictures / f"{i:02}.png").write_bytes(content)
    assert_refused(
        ait("predict", run, pictures, "--output", "out.csv"), "00.png", "--on-error skip"
    )
    assert not (tmp_path / "out.csv").exists()
    result = ait("predict", run, pictures, "--on-error", "skip", "--output", "out.csv")
    assert result.code == 0
    assert f"{len(UNREADABLE)} unreadable images were skipped" in result.err
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 2


# --- names and folders ---

LONG = "x" * 200
NAMES = {
    "spaces": " a  b ",
    "newline": "a\nb",
    "tab and bell": "a\tb\a",
    "markup": "<script>alert(1)<script>",
    "leading dash": "-rf",
    "quotes": "'\"`$(touch x)`",
    "placeholders": "%s{0}{{x}}",
    "wildcards": "[a]*?!",
    "terminal commands": "\x1b[2J\x1b]0;x\a",
    "right to left": "\u202egnp.a",
    "emoji": "🐈",
    "backslash": "a\\..\\b",
    "address": "http:::a?b#c",
    "long": LONG,
    "number": "007",
}


def make_set(root: Path, name: str = "a") -> Path:
    """Write two classes, one with this name, with one training and one test image each."""
    for split in ("train", "test"):
        for label, pixels in ((name, RED), ("other", COLOR)):
            (root / split / label).mkdir(parents=True)
            (root / split / label / f"{name}.png").write_bytes(png(pixels))
    return root


def load(root: Path, **changes: Any) -> DataSet:  # noqa: ANN401
    config = ImagesConfig("mine", source=str(root), image_size=8, num_workers=0, augment="none")
    return replace(config, **changes).load(CPU)


@pytest.mark.hostile("names and folders")
@pytest.mark.parametrize("name", NAMES)
def test_a_class_folder_may_have_any_name(name: str, tmp_path: Path) -> None:
    data = load(make_set(tmp_path / NAMES[name] / "set", NAMES[name]))
    assert set(data.class_names) == {NAMES[name], "other"}
    (batch,) = data.test.eval_batches(2)
    red = data.class_names.index(NAMES[name])
    assert batch.images[batch.labels == red][0, 0].unique().numel() == 1  # one color


@pytest.mark.hostile("names and folders")
@pytest.mark.parametrize("part", ["root", "class", "file"])
def test_a_name_that_is_not_valid_utf_8_is_refused(part: str, tmp_path: Path) -> None:
    bad = os.fsdecode(b"caf\xe9")
    root = make_set(tmp_path / (bad if part == "root" else "set"))
    old = {"root": root, "class": root / "train" / "a", "file": root / "train" / "a" / "a.png"}
    if part != "root":
        old[part].rename(old[part].with_name(f"{bad}.png"))
    with pytest.raises(UserError, match=r"the name .*caf.* is not valid UTF-8: rename it"):
        load(root)


def link_up(root: Path) -> None:
    (root / "train" / "a" / "loop").symlink_to(root)


def link_up_twice(root: Path) -> None:
    for name in ("one", "two"):
        (root / "train" / "a" / name).symlink_to(root / "train")
    (root / "train" / "other" / "three").symlink_to("..")


def link_to_each_other(root: Path) -> None:
    (root / "train" / "a" / "there").symlink_to(root / "train" / "other")
    (root / "train" / "other" / "back").symlink_to(root / "train" / "a")


def link_to_itself(root: Path) -> None:
    (root / "train" / "a" / "self.png").symlink_to("self.png")
    (root / "train" / "loop").symlink_to("loop")


def link_to_nothing(root: Path) -> None:
    (root / "train" / "a" / "gone.png").symlink_to("nowhere.png")
    (root / "train" / "gone").symlink_to("nowhere")


def add_a_pipe(root: Path) -> None:
    os.mkfifo(root / "train" / "a" / "pipe.png")


def add_hidden_files(root: Path) -> None:
    (root / "train" / "a" / ".hidden.png").write_bytes(b"")
    (root / "train" / ".trash").mkdir()
    (root / "train" / ".trash" / "a.png").write_bytes(b"")


def add_a_folder_named_as_an_image(root: Path) -> None:
    (root / "train" / "a" / "folder.png").mkdir()


CLUTTER: dict[Callable[[Path], None], int] = {  # expected number of training images
    link_up: 2,
    link_up_twice: 2,
    link_to_each_other: 4,  # two of them through a link
    link_to_itself: 2,
    link_to_nothing: 2,
    add_a_pipe: 2,
    add_hidden_files: 2,
    add_a_folder_named_as_an_image: 2,
}


@pytest.mark.hostile("names and folders")
@pytest.mark.parametrize("clutter", CLUTTER)
def test_other_files_among_the_images_are_ignored_and_circular_links_not_followed(
    clutter: Callable[[Path], None], tmp_path: Path
) -> None:
    root = make_set(tmp_path / "set")
    clutter(root)
    assert len(load(root).train) == CLUTTER[clutter]
    model = build_model(EXPERIMENT.model)
    predictions = list(predict_files(model, [root], EXPERIMENT.data.preprocessing, 64))
    assert len(predictions) == CLUTTER[clutter] + 2


@pytest.mark.hostile("names and folders")
def test_an_image_deep_below_its_class_folder_is_found(tmp_path: Path) -> None:
    root = make_set(tmp_path / "set")
    deep = root / "train" / "a" / "/".join(["d"] * 400)
    deep.mkdir(parents=True)
    (deep / "b.png").write_bytes(png(COLOR))
    assert len(load(root).train) == 3


@pytest.mark.hostile("names and folders")
def test_an_unreadable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, iterdir = make_set(tmp_path / "set"), Path.iterdir

    def guarded(self: Path) -> Any:  # noqa: ANN401
        if self.name == "other":
            raise PermissionError(13, "Permission denied")
        return iterdir(self)

    monkeypatch.setattr(Path, "iterdir", guarded)
    with pytest.raises(
        UserError, match=r"cannot read the folder .*other \(Permission denied\): make it readable"
    ):
        load(root)


@pytest.mark.hostile("names and folders")
@pytest.mark.parametrize("file_format", ["csv", "jsonl"])
def test_predictions_contain_every_path_unchanged(
    file_format: str, ait: Ait, tmp_path: Path
) -> None:
    run, folder = make_run(tmp_path / "run"), tmp_path / "pictures"
    folder.mkdir()
    names = [os.fsdecode(b"caf\xe9.png"), *(f"{name}.png" for name in NAMES.values())]
    for name in names:
        (folder / name).write_bytes(png(COLOR))
    flags = ("predict", run, folder, "--format", file_format)
    assert ait(*flags, "--output", tmp_path / "out").code == 0
    text = (tmp_path / "out").read_text(errors="surrogateescape")
    if file_format == "csv":
        paths = [path for path, *_ in csv.reader(io.StringIO(text, newline=""))][1:]
    else:
        paths = [json.loads(line)["path"] for line in text.splitlines()]
    assert set(paths) == {str(folder / name) for name in names}
    result = ait(*flags)
    assert result.code == 0
    assert ("caf\\udce9.png" if file_format == "jsonl" else names[0]) in result.out


@pytest.mark.hostile("names and folders")
def test_a_name_cannot_send_commands_to_the_terminal(ait: Ait, tmp_path: Path) -> None:
    result = ait("predict", make_run(tmp_path / "run"), "\x1b]0;owned\a.png")
    assert_refused(result, "there is no file \\x1b]0;owned\\x07.png")
    assert "\x1b" not in result.err


# --- labels and columns ---

HF = {"info": {"features": {"x": {"_type": "Image"}, "y": {"names": ["a", "b"]}}}}
HF["info"]["features"]["y"]["_type"] = "ClassLabel"
IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def write_parquet(
    path: Path,
    labels: Any = (0, 1),  # noqa: ANN401
    label_type: pa.DataType | None = None,
    pictures: pa.Array | None = None,
    features: Any = HF,  # noqa: ANN401
    leave_out: str = "",
) -> None:
    """Write a table as another program might, with metadata about its columns."""
    label_type = label_type or pa.int64()
    if pictures is None:
        pictures = pa.array([{"bytes": png(RED), "path": None}] * len(labels), IMAGE)
    columns = {"x": pictures, "y": pa.array(list(labels), label_type)}
    table = pa.table({name: column for name, column in columns.items() if name != leave_out})
    metadata = features if isinstance(features, bytes) else json.dumps(features).encode()
    table = table.replace_schema_metadata({b"huggingface": metadata} if metadata else {})
    pq.write_table(table, path)


def described(**columns: dict[str, Any]) -> dict[str, Any]:
    return {"info": {"features": {**HF["info"]["features"], **columns}}}


NO_CLASS, NO_IMAGE = "no column of type ClassLabel, only", "no column of type Image, only"
PARQUET: dict[str, tuple[dict[str, Any], str]] = {
    "label too large": ({"labels": (0, 7)}, r"row 1 of the train split .* label 7, outside 0 to"),
    "label far too large": ({"labels": (0, 2**40)}, r"label 1099511627776, outside 0 to 1"),
    "label negative": ({"labels": (-5, 1)}, r"row 0 of the train split .* label -5, outside"),
    "label missing": ({"labels": (None, 1)}, r"row 0 of the train split .* label None, outside"),
    "label of words": (
        {"labels": ("a", "c"), "label_type": pa.string()},
        r"\[a, b\], but .* \[a, c\]",
    ),
    "label of fractions": ({"labels": (0.5, 1), "label_type": pa.float64()}, NO_CLASS),
    "label not a number": (
        {"labels": (float("nan"), 1), "label_type": pa.float64()},
        NO_CLASS,
    ),
    "labels in lists": ({"labels": ([0], [1]), "label_type": pa.list_(pa.int64())}, NO_CLASS),
    "label column missing": ({"leave_out": "y"}, NO_CLASS),
    "image column missing": ({"leave_out": "x"}, NO_IMAGE),
    "no metadata": ({"features": b"", "leave_out": "y"}, "no column of type ClassLabel, only"),
    "no metadata of labels": (
        {
            "features": {"info": {"features": {"x": {"_type": "Image"}}}},
            **{"labels": (0.5, 1), "label_type": pa.float64()},
        },
        NO_CLASS,
    ),
    "broken description": ({"features": b"{"}, "cannot read the parquet files"),
    "description without columns": ({"features": {"info": {"features": 3}}}, "cannot read"),
    "unknown type": ({"features": described(y={"_type": "Malice"})}, "cannot read"),
    "type with odd fields": (
        {"features": described(y={"_type": "ClassLabel", "names": 3})},
        "cannot read",
    ),
    "classes named twice": (
        {"features": described(y={"_type": "ClassLabel", "names": ["a", "a"]})},
        "cannot read",
    ),
    "no class": ({"features": described(y={"_type": "ClassLabel", "names": []})}, "outside"),
    "images as numbers": ({"pictures": pa.array([1, 2])}, NO_IMAGE),
    "images without bytes": (
        {"pictures": pa.array([{"path": "a.png"}] * 2, pa.struct({"path": pa.string()}))},
        NO_IMAGE,
    ),
    "images missing": ({"pictures": pa.array([None, None], IMAGE)}, "image in row 0 of the train"),
    "images in files outside": (
        {"pictures": pa.array([{"bytes": None, "path": "/etc/passwd"}] * 2, IMAGE)},
        "refers to '/etc/passwd', which is not a file inside the data set: store the bytes",
    ),
    "images on the network": (
        {"pictures": pa.array([{"bytes": None, "path": "http://127.0.0.1:9/a.png"}] * 2, IMAGE)},
        r"refers to 'http://127.0.0.1:9/a.png', which is not a file inside the data set",
    ),
    "no row": ({"labels": ()}, r"cannot read .* damaged or empty"),
    "one class": ({"labels": (0, 0)}, "has only one class, a"),
}


@pytest.mark.hostile("labels and columns")
@pytest.mark.parametrize("name", PARQUET)
def test_a_table_with_wrong_labels_or_columns_is_refused(name: str, tmp_path: Path) -> None:
    changes, expected = PARQUET[name]
    write_parquet(tmp_path / "test.parquet", features=changes.get("features", HF))
    write_parquet(tmp_path / "train.parquet", **changes)
    with pytest.raises(UserError, match=expected) as error:
        load(tmp_path)
    one_sentence(error)


NO_LIST = r"list\.csv does not list images and their classes: it needs a first row"
CSV = {
    "a cell missing": (b"file,label\na.png", r"row 2 of .* has 1 cells, not 2 as its first row"),
    "a cell too many": (b"file,label\na.png,a,b", "has 3 cells, not 2 as its first row: correct"),
    "a column twice": (b"file,file\na.png,a", "list.csv has two columns named 'file': rename"),
    "an open quote": (b'file,label\n"a.png,a', r"cannot read .* \(unexpected end of data\): save"),
    "a null byte": (b"file,label\na.png,a\0", r"cannot read .* \(it has null bytes\): save"),
    "a huge cell": (b"file,label\na.png," + b"a" * 200_000, r"cannot read .* \(field larger than"),
    "not UTF-8": (b"file,label\na.png,\xe4", r"cannot read .*list.csv \('utf-8' codec"),
    "UTF-16": ("file,label\na.png,a".encode("utf-16"), r"cannot read .*list.csv \('utf-8' codec"),
    "no column of classes": (b"file,kind,size\na.png,a,1", "choose another column with --data"),
    "no class": (b"file,label\na.png,\nb.png,a", "row 0 of .* has the label None, outside 0 to 0"),
    "one column": (b"file\na.png", NO_LIST),
    "no image": (b"x,y\n1,2", NO_LIST),
    "images outside": (b"file,label\n/etc/passwd,x\n../../../etc/passwd,y", NO_LIST),
    "no row": (b"file,label\n", NO_LIST),
    "nothing": (b"", NO_LIST),
}


@pytest.mark.hostile("labels and columns")
@pytest.mark.parametrize("name", CSV)
def test_a_csv_file_that_cannot_be_used_is_refused(name: str, tmp_path: Path) -> None:
    content, expected = CSV[name]
    for image in ("a", "b"):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{image}.png")
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(UserError, match=expected) as error:
        load(tmp_path / "list.csv")
    one_sentence(error)


@pytest.mark.hostile("labels and columns")
@pytest.mark.parametrize("content", [b"", b"PAR1", b"text", b"half"])
def test_a_parquet_file_that_is_not_a_table_is_refused(content: bytes, tmp_path: Path) -> None:
    write_parquet(tmp_path / "test.parquet")
    whole = (tmp_path / "test.parquet").read_bytes()
    (tmp_path / "train.parquet").write_bytes(
        whole[: len(whole) // 2] if content == b"half" else content
    )
    with pytest.raises(UserError, match="cannot read the parquet files in"):
        load(tmp_path)


def test_the_same_table_is_read_if_it_is_intact(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet")
    assert load(tmp_path).class_names == ("a", "b")


# --- configurations ---

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
TEXTS = {
    "unknown key": "learning_rate: 1",
    "unknown key with markup": "<script>: 1",
    "unknown key that commands a terminal": '"\\e[2J": 1',
    "key twice, the second wrong": "name: 3",
    "part of another kind": "train: [1, 2]",
    "word instead of a number": "train: {epochs: many}",
    "number out of range": "train: {epochs: -1}",
    "not a number": "train: {lr: .nan}",
    "infinity": "train: {weight_decay: .inf}",
    "number of 5,000 digits": f"train: {{epochs: {'9' * 5_000}}}",
    "impossible date": "train: 2001-99-99",
    "impossible integer": "train: !!int abc",
    "impossible boolean": "train: !!bool x",
    "impossible time": "train: !!timestamp x",
    "bytes": "name: !!binary AAAA",
    "list as a key": "? [1, 2]\n: 3",
    "name of a parent folder": "name: ../elsewhere",
    "absolute name": "name: /tmp/elsewhere",
    "empty name": 'name: ""',
    "name of dots": 'name: ".. "',
    "name with a null": 'name: "a\\0b"',
    "name of two lines": 'name: "a\\nb"',
    "name that commands a terminal": 'name: "\\e[2J"',
    "name not in UTF-8": 'name: "\\udcff"',
    "name of 300 letters": f"name: {'x' * 300}",
    "billion laughs": LAUGHS,
    "list that contains itself": "train: &a [*a]",
    "unknown alias": "train: *a",
    "depth of 20,000": "train: " + "[\n" * 20_000,  # on one line, they take quadratic time
    "depth of 3,000, closed": "train: " + "[\n" * 3_000 + "]" * 3_000,
    "two documents": "---\na: 1",
    "tab": "train:\n\t- 1",
    "broken": "train: [1\n}",
}
CONTENTS = {
    "null bytes": bytes(100),
    "UTF-16": "name: tiny".encode("utf-16"),
    "Latin-1": "name: café".encode("latin-1"),
    "PNG": png(COLOR),
}


def hostile_yaml(folder: Path, name: str) -> Path:
    path = folder / "experiment.yaml"
    save_experiment(EXPERIMENT, path)
    kept = {} if name not in TEXTS else yaml.safe_load(path.read_text())
    if name in CONTENTS:
        path.write_bytes(CONTENTS[name])
    else:
        key = TEXTS[name].partition(":")[0]
        kept.pop(key, None)
        path.write_text(yaml.safe_dump(kept) + TEXTS[name] + "\n")
    return path


@pytest.mark.hostile("configurations")
@pytest.mark.parametrize("name", [*TEXTS, *CONTENTS])
def test_an_invalid_configuration_is_named(name: str, tmp_path: Path) -> None:
    path = hostile_yaml(tmp_path, name)
    with pytest.raises(UserError, match=str(path)) as error:
        load_experiment(path)
    assert len(str(error.value)) < 1_000


@pytest.mark.hostile("configurations")
@pytest.mark.parametrize("name", ["depth of 20,000", "impossible date", "unknown key"])
@pytest.mark.parametrize("command", ["eval", "predict", "analyze", "report"])
def test_a_command_refuses_an_invalid_configuration_with_exit_code_2(
    command: str, name: str, ait: Ait, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run")
    before = sorted(run.rglob("*"))
    hostile_yaml(run, name)
    more = [tmp_path] if command == "predict" else []
    assert_refused(ait(command, run, *more), "experiment.yaml")
    assert sorted(run.rglob("*")) == before


# --- files of a run ---

RESULTS: dict[str, dict[str, Any] | bytes] = {
    "not JSON": b"{",
    "not UTF-8": b"\xff\xfe",
    "list": b"[]",
    "word": b'"classes"',
    "nothing": b"null",
    "depth of 100,000": b"[" * 100_000,
    "number of 5,000 digits": b'{"classes": ' + b"9" * 5_000 + b"}",
    "everything missing": b"{}",
    "classes as a word": {"classes": "ab"},
    "classes as numbers": {"classes": [1, 2]},
    "classes as lists": {"classes": [["a"], ["b"]]},
    "one class too few": {"classes": ["a"]},
    "one class too many": {"classes": ["a", "b", "c"]},
}
CONFIGS: dict[str, dict[str, Any] | bytes] = {
    "not JSON": b"{",
    "list": b"[]",
    "not UTF-8": b"\xff\xfe",
    "depth of 100,000": b"[" * 100_000,
    "unknown key": {"hidden_act": "gelu"},
    "key of the hub's library": {"config": {"kind": "vit"}},
    "code to run": {"auto_map": {"AutoModel": "modeling.Malice"}, "trust_remote_code": True},
    "unknown kind": {"kind": "malice"},
    "other kind": {"kind": "dense"},
    "kind in a list": {"kind": ["vit"]},
    "word for a number": {"depth": "two"},
    "number below range": {"depth": -1},
    "depth too large": {"depth": 2},
    "width beyond any machine": {"embed_dim": 10**15},
    "number of 400 digits": {"embed_dim": 10**400},
    "fraction": {"embed_dim": 8.5},
    "nothing": {"embed_dim": None},
    "patch of no size": {"patch_size": 0},
    "other classes": {"num_classes": 3},
}


@pytest.mark.hostile("files of a run")
@pytest.mark.parametrize("name", RESULTS)
def test_an_invalid_result_is_named(name: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    change = RESULTS[name]
    if isinstance(change, dict):
        change = json.dumps(result_of(EXPERIMENT, **change)).encode()
    (run / "result.json").write_bytes(change)
    message = rf"{run}/result\.json is damaged \(.+\): there is no checkpoint .*--overwrite"
    with pytest.raises(UserError, match=message) as error:
        load_run(run)
    one_sentence(error)


@pytest.mark.hostile("files of a run")
@pytest.mark.parametrize("name", CONFIGS)
def test_an_invalid_model_configuration_is_named(name: str, tmp_path: Path) -> None:
    run, change = make_run(tmp_path / "run"), CONFIGS[name]
    saved = json.loads((run / "config.json").read_text())
    changed = change if isinstance(change, bytes) else json.dumps(saved | change).encode()
    (run / "config.json").write_bytes(changed)
    with pytest.raises(
        UserError,
        match=rf"the model of the run in {run} is damaged \(.+\): there is no checkpoint",
    ) as error:
        load_run(run)
    one_sentence(error)


def claim(header: dict[str, Any], length: int | None = None) -> bytes:
    """Write the header of a safetensors file without its data."""
    text = json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text


WEIGHTS = {
    "empty": b"",
    "text": b"hello",
    "header longer than the file": claim({}, 2**62),
    "no header": (8).to_bytes(8, "little") + b"[[[[[[[[",
    "no weights": claim({}),
    "a terabyte claimed": claim(
        {"w": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}
    ),
    "offsets reversed": claim({"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}),
    "unknown type": claim({"w": {"dtype": "X9", "shape": [0], "data_offsets": [0, 0]}}),
}


@pytest.mark.hostile("files of a run")
@pytest.mark.parametrize("name", [*WEIGHTS, "other shapes", "one weight too many"])
def test_invalid_weights_are_named(name: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    path = run / "model.safetensors"
    if name in WEIGHTS:
        path.write_bytes(WEIGHTS[name])
    else:
        weights = load_file(path)
        more = {"more": torch.zeros(1)} if name == "one weight too many" else {}
        save_file(more | {key: value[:1].clone() for key, value in weights.items()}, path)
    with pytest.raises(
        UserError,
        match=rf"the model of the run in {run} is damaged \(.+\): there is no checkpoint",
    ):
        load_run(run)


HISTORIES = {
    "memory of text": ("memory.npz", b"hello"),
    "empty memory": ("memory.npz", b""),
    "half a memory": ("memory.npz", None),
    "archive of nothing": ("memory.npz", b"PK\x05\x06" + bytes(18)),
    "metrics of text": ("metrics.jsonl", b"hello\n"),
    "metrics not in UTF-8": ("metrics.jsonl", b"\xff\n"),
    "metrics of great depth": ("metrics.jsonl", b"[" * 100_000),
}


@pytest.mark.hostile("files of a run")
@pytest.mark.parametrize("name", HISTORIES)
def test_an_invalid_history_is_named(name: str, tmp_path: Path) -> None:
    History([{"loss": 1.0}], [np.zeros((1, 4, 8))]).write(tmp_path)
    file, content = HISTORIES[name]
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(UserError, match=rf"the history of the run in {tmp_path} is damaged"):
        History.read(tmp_path, 1)


STATES = {"word": b'"a"', "list": b"[]", "depth of 100,000": b"[" * 100_000, "binary": b"\xff"}


@pytest.mark.hostile("files of a run")
@pytest.mark.parametrize("name", [*STATES, "other shapes"])
def test_an_invalid_checkpoint_is_skipped_or_named(name: str, tmp_path: Path) -> None:
    model = build_model(EXPERIMENT.model)
    optimizer = torch.optim.AdamW(model.parameters())
    if name in STATES:
        save_checkpoint(tmp_path, model, optimizer, {"epoch": 1})
        (tmp_path / "last" / "state.json").write_bytes(STATES[name])
    else:
        other = build_model(replace(EXPERIMENT.model, embed_dim=16))
        save_checkpoint(tmp_path, other, optimizer, {"epoch": 1})
    with pytest.raises(UserError, match=f"every checkpoint in {tmp_path} is damaged"):
        restore_checkpoint(tmp_path, model, optimizer)
    (tmp_path / "last").rename(tmp_path / "damaged")
    save_checkpoint(tmp_path, model, optimizer, {"epoch": 1})
    (tmp_path / "last").rename(tmp_path / "previous")
    shutil.move(tmp_path / "damaged", tmp_path / "last")
    restored = restore_checkpoint(tmp_path, model, optimizer)
    assert restored is not None and restored["epoch"] == 1


@pytest.mark.hostile("files of a run")
def test_a_run_with_damaged_metrics_is_unfinished_in_a_table(tmp_path: Path) -> None:
    for seed, content in enumerate([b"\xff\xfe\n", b"[" * 10_000]):
        folder = tmp_path / "tiny" / str(seed)
        folder.mkdir(parents=True)
        experiment = replace(EXPERIMENT, train=replace(EXPERIMENT.train, seed=seed))
        save_experiment(experiment, folder / "experiment.yaml")
        (folder / "metrics.jsonl").write_bytes(content)
    runs = collect_runs(tmp_path, {"tiny": EXPERIMENT})
    assert len(runs.take(EXPERIMENT).unfinished) == 2


# --- the table ---

ROWS = {
    "images to be read": len(READABLE),
    "images to be refused": len(UNREADABLE) + 4,
    "names and folders": len(NAMES) + 3 + len(CLUTTER) + 5,
    "labels and columns": len(PARQUET) + len(CSV) + 4,
    "configurations": len(TEXTS) + len(CONTENTS) + 12,
    "files of a run": len(RESULTS) + len(CONFIGS) + len(WEIGHTS) + 2 + len(HISTORIES) + 6,
}


@pytest.mark.parametrize("row", ROWS)
def test_the_docs_state_the_number_of_these_inputs(row: str) -> None:
    docs = (Path(__file__).parents[1] / "docs" / "explanation" / "reliability.md").read_text()
    assert f"| {row} | {ROWS[row]} | {ROWS[row]} |" in docs
