"""Images, configurations and command lines that nobody wrote, by the thousand.

`HYPOTHESIS_PROFILE=thorough` tries twenty times as many, others each time.
"""

import io
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
from PIL import Image

from associative_transformer.cli.options import parse
from associative_transformer.cli.train import TrainOptions
from associative_transformer.data import decode_image
from associative_transformer.experiment import Experiment, load_experiment, save_experiment
from associative_transformer.interface import UserError
from associative_transformer.recipes import RECIPES

Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
TIMES = 20 if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else 1
SIDE = 8  # of the images that the reader is asked for
MOST_MEMORY = 2**30  # bytes that the reader may add to the process: 89 million pixels, thrice

Record = Callable[[str, object], None]


def cases(count: int) -> settings:
    return settings(max_examples=count * TIMES)


# --- image files ---


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:  # noqa: ANN401
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def make_seeds() -> list[bytes]:
    """Write small images in every format and several modes."""
    random = np.random.default_rng(0)
    color = Image.fromarray(random.integers(256, size=(9, 12, 3), dtype=np.uint8))
    deep = Image.fromarray(random.integers(2**16, size=(9, 12), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    seeds = [encoded(color, form) for form in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")]
    for mode, forms in {
        "L": ("PNG", "JPEG", "BMP", "TIFF", "PPM"),
        "P": ("PNG", "GIF", "BMP", "TIFF"),
        "1": ("PNG", "BMP", "TIFF", "PPM"),
        "RGBA": ("PNG", "TIFF", "WEBP"),
        "CMYK": ("JPEG", "TIFF"),
    }.items():
        seeds += [encoded(color.convert(mode), form) for form in forms]
    seeds += [encoded(deep, form) for form in ("PNG", "TIFF", "PPM")]
    seeds += [encoded(color, form, exif=exif) for form in ("PNG", "JPEG", "WEBP", "TIFF")]
    seeds += [
        encoded(color, "TIFF", compression=name) for name in ("tiff_lzw", "jpeg", "packbits")
    ]
    seeds += [encoded(color, "JPEG", progressive=True), encoded(color, "WEBP", lossless=True)]
    movie = [color, color.rotate(180)]
    for form in ("GIF", "PNG", "WEBP", "TIFF"):
        seeds.append(encoded(movie[0], form, save_all=True, append_images=movie[1:]))
    return seeds


SEEDS = make_seeds()
NUMBERS = [0, 1, 2, 0x7F, 0xFF, 0x100, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Damage an image: flip bits, cut it, write numbers over its header, splice in another."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            break
        place = draw(st.integers(0, len(data) - 1))
        match draw(st.sampled_from(["flip", "header", "cut", "number", "splice", "insert"])):
            case "flip":
                data[place] ^= 1 << draw(st.integers(0, 7))
            case "header":
                data[min(place, draw(st.integers(0, 63)))] = draw(st.integers(0, 255))
            case "cut":
                del data[place:]
            case "number":
                order = draw(st.sampled_from("<>"))
                data[place : place + 4] = struct.pack(f"{order}I", draw(st.sampled_from(NUMBERS)))
            case "splice":
                other = draw(st.sampled_from(SEEDS))
                data[place:] = other[draw(st.integers(0, len(other) - 1)) :]
            case "insert":
                data[place:place] = draw(st.binary(max_size=16))
    return bytes(data)


def check_reader(data: bytes) -> bool:
    """Say whether the bytes are an image; raise what only the reader's fault could be."""
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
            assert (after - before) * 1024 < MOST_MEMORY
    assert image.shape == (3, SIDE, SIDE) and image.dtype == torch.uint8
    return True


@pytest.mark.hostile("generated: bytes as an image")
def test_any_bytes_are_an_image_or_are_refused(record_property: Record) -> None:
    tried = 0

    @cases(1000)
    @given(st.sampled_from([b"", *(seed[:12] for seed in SEEDS)]), st.binary(max_size=400))
    def check(start: bytes, rest: bytes) -> None:
        nonlocal tried
        tried += 1
        check_reader(start + rest)

    check()
    record_property("cases", tried)


@pytest.mark.hostile("generated: damaged images")
def test_a_damaged_image_is_read_or_refused(record_property: Record) -> None:
    found = []

    @cases(3000)
    @given(damaged())
    def check(data: bytes) -> None:
        found.append(check_reader(data))

    check()
    assert all(map(check_reader, SEEDS))
    assert 0.1 < np.mean(found) < 0.9  # else the damage is too small or too large
    record_property("cases", len(found))


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


def places(tree: dict[str, Any], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """List the fields of a configuration, parts that hold others included."""
    found = []
    for key, value in tree.items():
        found.append((*above, key))
        if isinstance(value, dict):
            found += places(value, (*above, key))
    return found


def check_configuration(text: str, folder: Path) -> bool:
    """Say whether the text is an experiment; raise what only the loader's fault could be."""
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


@pytest.mark.hostile("generated: values in a configuration")
def test_any_values_in_a_configuration_come_back_or_are_refused(
    tmp_path: Path, record_property: Record
) -> None:
    found = []
    trees = [plain(base, tmp_path) for base in BASES]
    assert all(check_configuration(yaml.safe_dump(tree), tmp_path) for tree in trees)

    @st.composite
    def changed(draw: st.DrawFn) -> str:
        tree = deepcopy(draw(st.sampled_from(trees)))
        for _ in range(draw(st.integers(1, 2))):
            *above, last = draw(st.sampled_from(places(tree)))
            part = reduce(getitem, above, tree)
            match draw(st.sampled_from(["put", "put", "put", "add", "remove"])):
                case "put":
                    part[last] = draw(values)
                case "add":
                    part[draw(keys.filter(lambda key: key == key))] = draw(values)
                case "remove":
                    del part[last]
        return yaml.dump(tree, Dumper=Dumper)

    @cases(500)
    @given(changed())
    def check(text: str) -> None:
        found.append(check_configuration(text, tmp_path))

    check()
    assert np.mean(found) > 0.02  # else nothing comes back
    record_property("cases", len(found))


signs = st.sampled_from([*"[]{}:,-?!&*|>%@`'\"# \n\t", "<<: ", "!!", "a", "0x", "1e", "~"])
tags = ["int", "float", "bool", "null", "timestamp", "binary", "set", "omap", "pairs", "merge"]
tags += ["python/object/apply:os.getcwd", "python/name:os.system", "python/tuple", "local"]
words = st.builds("!!{} {}".format, st.sampled_from(tags), st.text(max_size=6)) | st.sampled_from(
    ["2001-99-99", "1:99:99", "9" * 5000, ".inf", "[" * 400, "{a: " * 400, "*a", "&a [*a]", "\0"]
)


@pytest.mark.hostile("generated: text as a configuration")
def test_any_text_is_a_configuration_or_is_refused(
    tmp_path: Path, record_property: Record
) -> None:
    tried = 0
    whole = yaml.safe_dump(plain(BASES[0], tmp_path))

    @cases(500)
    @given(st.integers(0, 10**4), st.lists(signs | words | st.text(max_size=4), max_size=12))
    def check(place: int, pieces: list[str]) -> None:
        nonlocal tried
        tried += 1
        start = whole[: place % 60]
        text = (start + "".join(pieces)).encode(errors="replace").decode()
        check_configuration(text, tmp_path)

    check()
    record_property("cases", tried)


# --- command lines ---


@pytest.mark.hostile("generated: command lines")
def test_any_override_is_taken_or_refused(
    record_property: Record, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = []
    written = st.text(st.characters(exclude_characters="\0"), max_size=8)
    usual = ["0", "-1", "nan", "inf", "1e400", "10" * 300, "", "None", "True", "../x", "\udcff"]
    trees = {name: plain(RECIPES[name], tmp_path) for name in NAMES}

    @st.composite
    def lines(draw: st.DrawFn) -> tuple[str, list[str]]:
        name = draw(st.sampled_from(NAMES))
        line = []
        for _ in range(draw(st.integers(1, 2))):
            place = draw(st.sampled_from(places(trees[name])))
            present = reduce(getitem, place, trees[name])
            words = [str(word) for word in (present if isinstance(present, list) else [present])]
            for i in range(len(words)):
                if draw(st.booleans()):
                    words[i] = draw(st.sampled_from(["1", "2", "0.5", *usual]) | written)
            line += ["--" + ".".join(place).replace("_", "-"), *words]
            line += draw(st.lists(written, max_size=1)) * draw(st.booleans())
        return name, line

    @cases(200)
    @given(lines())
    def check(drawn: tuple[str, list[str]]) -> None:
        name, line = drawn
        try:
            options = parse(TrainOptions, line, f"train {name}", TrainOptions(RECIPES[name]))
        except UserError:
            found.append(False)
        except SystemExit as stopped:
            found.append(False)
            assert stopped.code == 2 or set(line) & {"-h", "--help"}
        else:
            found.append(True)
            path = tmp_path / "experiment.yaml"
            save_experiment(options.experiment, path)
            assert load_experiment(path) == options.experiment
        capsys.readouterr()

    check()
    assert np.mean(found) > 0.02
    record_property("cases", len(found))
