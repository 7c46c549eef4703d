"""Thousands of generated images, configurations and command lines.

`make check` tries a tenth of them, and the marker `fuzz` selects all. With
`HYPOTHESIS_PROFILE=thorough` there are twenty times as many, different ones each time.
"""

import os
import resource
import struct
import warnings
from collections.abc import Callable
from copy import deepcopy
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from associative_transformer.cli.options import parse
from associative_transformer.cli.train import TrainOptions
from associative_transformer.data import decode_image
from associative_transformer.experiment import Experiment, load_experiment, save_experiment
from associative_transformer.interface import UserError
from associative_transformer.recipes import RECIPES
from making.hostile import image_seeds

Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
TIMES = 20 if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else 1
SIDE = 8  # of the decoded images
MAX_MEMORY = 2**30  # bytes that decoding may add to the process: three copies of 89 million pixels

Record = Callable[[str, object], None]


def some_or_all(num_cases: int, row: str) -> pytest.MarkDecorator:
    """Run a test with a tenth of its cases, and under the marker `fuzz` with all of them.

    `row` is the name in the table of docs/explanation/reliability.md, which counts all cases.
    """
    marks = [pytest.mark.fuzz, pytest.mark.hostile(row)]
    values = [num_cases // 10, pytest.param(num_cases, marks=marks)]
    return pytest.mark.parametrize("num_cases", values)


def limit(num_cases: int) -> settings:
    return settings(max_examples=num_cases * TIMES)


# --- image files ---


SEEDS = [seed for seeds in image_seeds().values() for seed in seeds]
NUMBERS = [0, 1, 2, 0x7F, 0xFF, 0x100, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Damage an image: flip bits, cut it, overwrite its header, splice in another one."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            break
        index = draw(st.integers(0, len(data) - 1))
        match draw(st.sampled_from(["flip", "header", "cut", "number", "splice", "insert"])):
            case "flip":
                data[index] ^= 1 << draw(st.integers(0, 7))
            case "header":
                data[min(index, draw(st.integers(0, 63)))] = draw(st.integers(0, 255))
            case "cut":
                del data[index:]
            case "number":
                order = draw(st.sampled_from("<>"))
                data[index : index + 4] = struct.pack(f"{order}I", draw(st.sampled_from(NUMBERS)))
            case "splice":
                other = draw(st.sampled_from(SEEDS))
                data[index:] = other[draw(st.integers(0, len(other) - 1)) :]
            case "insert":
                data[index:index] = draw(st.binary(max_size=16))
    return bytes(data)


def check_reader(data: bytes) -> bool:
    """Return whether the bytes are an image; fail on any error other than a refusal."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            image = decode_image(data, SIDE)
        except UserError as error:
            assert str(error).startswith("cannot read the image given as bytes (")
            return False
        finally:
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            assert not warned
            assert (after - before) * 1024 < MAX_MEMORY
    assert image.shape == (3, SIDE, SIDE) and image.dtype == torch.uint8
    return True


@some_or_all(1000, "generated: bytes as an image")
def test_any_bytes_are_decoded_as_an_image_or_refused(
    num_cases: int, record_property: Record
) -> None:
    tried = 0

    @limit(num_cases)
    @given(st.sampled_from([b"", *(seed[:12] for seed in SEEDS)]), st.binary(max_size=400))
    def check(start: bytes, rest: bytes) -> None:
        nonlocal tried
        tried += 1
        check_reader(start + rest)

    check()
    record_property("cases", tried)


@some_or_all(3000, "generated: damaged images")
def test_a_damaged_image_is_decoded_or_refused(num_cases: int, record_property: Record) -> None:
    is_image = []

    @limit(num_cases)
    @given(damaged())
    def check(data: bytes) -> None:
        is_image.append(check_reader(data))

    check()
    assert all(map(check_reader, SEEDS))
    assert 0.1 < np.mean(is_image) < 0.9  # otherwise there is too little or too much damage
    record_property("cases", len(is_image))


# --- configurations ---

NAMES = ("triangle-ait-tiny", "cifar10-ait-small", "cifar10-coordination", "cifar10-perceiver")
NAMES += ("cifar10-set-transformer", "cifar10-brims", "cifar10-luna-small")
NAMES += ("sort-of-clevr-cnn-rn", "sort-of-clevr-cnn-mlp", "sort-of-clevr-dense-small")
BASES = [RECIPES[name] for name in NAMES]
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, -1, 2, 3, 32, 10**30, 2**63, 10**400])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["1e-4", "auto", "cosine", "ait", "images", "../x", "a/b", "x" * 300])
    | st.sampled_from(["\0", "\x1b[2J"])
    | st.binary(max_size=4)
    | st.dates()
)
keys = scalars | st.sampled_from(["kind", "name", "lr", "depth", "workspace"])
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(keys.filter(lambda key: key == key), inner, max_size=4)  # not NaN
    ),
    max_leaves=6,
)


def plain(experiment: Experiment, folder: Path) -> dict[str, Any]:
    save_experiment(experiment, folder / "plain.yaml")
    return yaml.safe_load((folder / "plain.yaml").read_text())


def keys_of(tree: dict[str, Any], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the path of every field of a configuration, nested configurations included."""
    paths = []
    for key, value in tree.items():
        paths.append((*above, key))
        if isinstance(value, dict):
            paths += keys_of(value, (*above, key))
    return paths


def check_configuration(text: str, folder: Path) -> bool:
    """Return whether the text is an experiment; fail on any error other than a refusal."""
    path = folder / "experiment.yaml"
    path.write_text(text)
    try:
        experiment = load_experiment(path)
    except UserError as error:
        assert str(path) in str(error)
        return False
    save_experiment(experiment, path)
    assert load_experiment(path) == experiment
    return True


@some_or_all(500, "generated: values in a configuration")
def test_any_values_in_a_configuration_are_read_back_or_refused(
    num_cases: int, tmp_path: Path, record_property: Record
) -> None:
    is_valid = []
    trees = [plain(base, tmp_path) for base in BASES]
    assert all(check_configuration(yaml.safe_dump(tree), tmp_path) for tree in trees)
    known: dict[tuple[str, ...], list[Any]] = {}  # the values of each field in the recipes
    for tree in trees:
        for path in keys_of(tree):
            known.setdefault(path, []).append(reduce(getitem, path, tree))

    @st.composite
    def changed(draw: st.DrawFn) -> str:
        tree = deepcopy(draw(st.sampled_from(trees)))
        for _ in range(draw(st.integers(1, 2))):
            *above, last = draw(st.sampled_from(keys_of(tree)))
            part = reduce(getitem, above, tree)
            match draw(st.sampled_from(["put", "put", "put", "copy", "add", "remove"])):
                case "put":
                    part[last] = draw(values)
                case "copy":
                    part[last] = deepcopy(draw(st.sampled_from(known.get((*above, last), [None]))))
                case "add":
                    part[draw(keys.filter(lambda key: key == key))] = draw(values)
                case "remove":
                    del part[last]
        return yaml.dump(tree, Dumper=Dumper)

    @limit(num_cases)
    @given(changed())
    def check(text: str) -> None:
        is_valid.append(check_configuration(text, tmp_path))

    check()
    assert sum(is_valid) >= max(1, num_cases // 100)  # otherwise reading back is not tested
    record_property("cases", len(is_valid))


signs = st.sampled_from([*"[]{}:,-?!&*|>%@`'\"# \n\t", "<<: ", "!!", "a", "0x", "1e", "~"])
tags = ["int", "float", "bool", "null", "timestamp", "binary", "set", "omap", "pairs", "merge"]
tags += ["python/object/apply:os.getcwd", "python/name:os.system", "python/tuple", "local"]
words = st.builds("!!{} {}".format, st.sampled_from(tags), st.text(max_size=6)) | st.sampled_from(
    ["2001-99-99", "1:99:99", "9" * 5000, ".inf", "[" * 400, "{a: " * 400, "*a", "&a [*a]", "\0"]
)


@some_or_all(500, "generated: text as a configuration")
def test_any_text_is_read_as_a_configuration_or_refused(
    num_cases: int, tmp_path: Path, record_property: Record
) -> None:
    tried = 0
    whole = yaml.safe_dump(plain(BASES[0], tmp_path))

    @limit(num_cases)
    @given(st.integers(0, 10**4), st.lists(signs | words | st.text(max_size=4), max_size=12))
    def check(length: int, pieces: list[str]) -> None:
        nonlocal tried
        tried += 1
        start = whole[: length % 60]
        text = (start + "".join(pieces)).encode(errors="replace").decode()
        check_configuration(text, tmp_path)

    check()
    record_property("cases", tried)


# --- command lines ---


@some_or_all(200, "generated: command lines")
def test_any_override_is_accepted_or_refused(
    num_cases: int, record_property: Record, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    is_valid = []
    written = st.text(st.characters(exclude_characters="\0"), max_size=8)
    usual = ["0", "-1", "nan", "inf", "1e400", "10" * 300, "", "None", "True", "../x", "\udcff"]
    trees = {name: plain(RECIPES[name], tmp_path) for name in NAMES}

    @st.composite
    def lines(draw: st.DrawFn) -> tuple[str, list[str]]:
        name = draw(st.sampled_from(NAMES))
        line = []
        for _ in range(draw(st.integers(1, 2))):
            path = draw(st.sampled_from(keys_of(trees[name])))
            value = reduce(getitem, path, trees[name])
            words = [str(word) for word in (value if isinstance(value, list) else [value])]
            for i in range(len(words)):
                if draw(st.booleans()):
                    words[i] = draw(st.sampled_from(["1", "2", "0.5", *usual]) | written)
            line += ["--" + ".".join(path).replace("_", "-"), *words]
            line += draw(st.lists(written, max_size=1)) * draw(st.booleans())
        return name, line

    @limit(num_cases)
    @given(lines())
    def check(drawn: tuple[str, list[str]]) -> None:
        name, line = drawn
        try:
            options = parse(TrainOptions, line, f"train {name}", TrainOptions(RECIPES[name]))
        except UserError as error:
            is_valid.append(False)
            assert "\n" not in str(error)
        except SystemExit:
            is_valid.append(False)
            assert set(line) & {"-h", "--help"}
        else:
            is_valid.append(True)
            path = tmp_path / "experiment.yaml"
            save_experiment(options.experiment, path)
            assert load_experiment(path) == options.experiment
        capsys.readouterr()

    check()
    assert np.mean(is_valid) > 0.02
    record_property("cases", len(is_valid))
