"""Damage to valid files: of their bytes, of their values, and behind intact checksums.

Every function takes valid content and a generator of random numbers, so that the same seed always
gives the same damage. `damage` knows nothing about formats; the functions below it change what a
format contains and then repair lengths and checksums, so that the change reaches further.
"""

import io
import json
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from copy import deepcopy
from functools import reduce
from operator import getitem
from typing import Any

import numpy as np

Random = np.random.Generator

NUMBERS = (0, 1, 2, 0x7F, 0xFF, 0x100, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1)
WORDS = ("-1", "0", "1e400", "nan", "null", '""', "[]", "{}", "9" * 5_000, "1099511627776", "3.5")
WORDS += ("\x1b[2J", "\ud800", "\0", "../..", "true", "&a [*a]", "!!int x", "x" * 300, "-0.0", "é")
BRACKETS = ("[", '{"a":', "(", "- ", "[\n", '"', "{")
VALUES = (None, True, False, 0, -1, 1, 3, 0.5, -0.5, 1e300, float("nan"), float("inf"), 10**12)
VALUES += (
    2**63,
    10**30,
    "",
    "a",
    "1",
    "\0",
    "../x",
    "\x1b[2J",
    "x" * 300,
    [],
    [0],
    [[]],
    {},
    "ait",
)
KEYS = ("a", "", "kind", "name", "\0", "x" * 99)
MAX_BYTES = 2**20  # of damaged content


def damage(data: bytes, others: Sequence[bytes], random: Random) -> bytes:
    """Damage bytes one to three times: flips, cuts, copies, swaps, numbers, words and nesting."""
    content = bytearray(data)
    for _ in range(int(random.integers(1, 4))):
        _damage_once(content, others, random)
    return bytes(content[:MAX_BYTES])


def _damage_once(data: bytearray, others: Sequence[bytes], random: Random) -> None:
    start, end = sorted(random.integers(0, len(data) + 1, size=2).tolist())
    if random.random() < 0.5:  # most ranges are short
        end = min(end, start + int(random.integers(1, 33)))
    match str(random.choice(KINDS)):
        case "flip" if data:
            data[start % len(data)] ^= 1 << int(random.integers(8))
        case "byte" if data:
            data[start % len(data)] = int(random.integers(256))
        case "cut":
            del data[start:]
        case "delete":
            del data[start:end]
        case "repeat":
            data[start:start] = data[start:end] * int(random.integers(1, 4))
        case "swap":
            middle = (start + end) // 2
            data[start:end] = data[middle:end] + data[start:middle]
        case "insert":
            data[start:start] = random.bytes(int(random.integers(1, 33)))
        case "number":
            order, size = random.choice(["<", ">"]), random.choice(["H", "I", "Q"])
            value = int(random.choice(NUMBERS)) % 2 ** (8 * struct.calcsize(f"{size}"))
            packed = struct.pack(f"{order}{size}", value)
            data[start : start + len(packed)] = packed
        case "splice":
            other = others[int(random.integers(len(others)))]
            data[start:] = other[int(random.integers(len(other) + 1)) :]
        case "digits" if found := list(re.finditer(rb"\d+", data)):
            match_ = found[int(random.integers(len(found)))]
            data[slice(*match_.span())] = pick(WORDS, random).encode(errors="surrogatepass")
        case "word":
            data[start:end] = pick(WORDS, random).encode(errors="surrogatepass")
        case "nest":
            depth = int(random.choice([1, 10, 1_000, 20_000]))
            data[start:start] = pick(BRACKETS, random).encode() * depth


KINDS = ("flip", "byte", "cut", "delete", "repeat", "swap", "insert", "number", "splice")
KINDS += ("digits", "word", "nest")


def pick(values: Sequence[Any], random: Random) -> Any:  # noqa: ANN401
    return values[int(random.integers(len(values)))]


# --- behind lengths and checksums ---


def damage_chunks(data: bytes, random: Random) -> bytes:
    """Damage, swap, repeat or remove chunks of a PNG, with the right lengths and checksums."""
    chunks, position = [], 8
    while position < len(data):
        (length,) = struct.unpack_from(">I", data, position)
        chunks.append(data[position + 4 : position + 8 + length])  # kind and content
        position += 12 + length
    i, j = random.integers(len(chunks), size=2).tolist()
    match int(random.integers(4)):
        case 0:
            chunks[i], chunks[j] = chunks[j], chunks[i]
        case 1:
            chunks[i:i] = [chunks[j]]
        case 2:
            del chunks[i]
        case _:
            chunks[i] = chunks[i][:4] + damage(chunks[i][4:], chunks, random)
    packed = (
        struct.pack(">I", len(chunk[4:])) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
    )
    return data[:8] + b"".join(packed)


def damage_members(data: bytes, random: Random) -> bytes:
    """Damage, rename, repeat or remove files of a ZIP archive, with the right checksums."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    contents = [content for _, content in members]
    i = int(random.integers(len(members)))
    name, content = members[i]
    match int(random.integers(6)):
        case 0:
            members[i] = (pick(members, random)[0], content)
        case 1:
            del members[i]
        case _ if content[:6] == b"\x93NUMPY" and random.random() < 0.7:
            head = 10 + int.from_bytes(content[8:10], "little")
            text = damage(content[10:head], contents, random)[: 2**16 - 1]
            members[i] = (name, content[:8] + struct.pack("<H", len(text)) + text + content[head:])
        case _:
            members[i] = (name, damage(content, contents, random))
    file = io.BytesIO()
    compression = zipfile.ZIP_DEFLATED if random.random() < 0.3 else zipfile.ZIP_STORED
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(file, "w") as archive:
        for name, content in members:  # of names that may occur twice
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return file.getvalue()


def damage_header(data: bytes, random: Random) -> bytes:
    """Damage the header of a safetensors file, with the right length."""
    length = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + length], data[8 + length :]
    if random.random() < 0.5:
        text = damage(header, [header], random)
    else:
        text = json.dumps(damage_values(json.loads(header), random)).encode()
    return len(text).to_bytes(8, "little") + text + rest


def damage_values(tree: Any, random: Random) -> Any:  # noqa: ANN401
    """Replace, move, remove or add one or two values of nested lists and dictionaries."""
    tree = deepcopy(tree)
    for _ in range(int(random.integers(1, 3))):
        paths = [path for path in paths_of(tree) if path]
        if not paths:
            return tree
        *above, last = pick(paths, random)
        inner = reduce(getitem, above, tree)
        match int(random.integers(6)):
            case 0:
                del inner[last]
            case 1:
                inner[last] = deepcopy(reduce(getitem, pick(paths, random), tree))
            case 2 if isinstance(inner, dict):
                inner[pick(["a", "", "kind", "name", "\0", "x" * 99], random)] = pick(
                    VALUES, random
                )
            case 2:
                inner[last:last] = [pick(VALUES, random)]
            case 3 if isinstance(inner[last], int | float):
                factor = float(pick([-1, 0, 1e3, 1e9, 0.5], random))
                inner[last] = type(inner[last])(inner[last] * factor)
            case _:
                inner[last] = deepcopy(pick(VALUES, random))
    return tree


def paths_of(tree: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:  # noqa: ANN401
    """Return the keys and indices that lead to each value of nested lists and dictionaries."""
    items: Any = ()
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list):
        items = enumerate(tree)
    return [above, *(path for key, value in items for path in paths_of(value, (*above, key)))]
