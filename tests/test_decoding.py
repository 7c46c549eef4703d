"""Images with odd EXIF data, transparent pixels or few bits, and the limits of decoding."""

import io
import pickle
import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import product

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import MAX_TEXT_CHUNK

from associative_transformer.decoding import UnreadableImage, decode_image
from making.hostile import BOMBS, COLOR, UNREADABLE, chunk, encoded, png

# tags that cameras write, the orientation's neighbors among them
TAGS = (256, 257, 258, 259, 262, 270, 271, 273, 282, 283, 296, 305, 306, 315, 0x8298, 0x8769)
TAGS += (0x8825, 0xA005, 0x927C, 0x0201, 0x9000, 0x9286, 0xA002, 0xC4A5)
ODD_VALUES = {  # type, count and bytes
    "text": (2, 4, b"abc\0"),
    "long text": (2, 12, b"hello world\0"),
    "no text": (2, 0, b""),
    "text that is not ASCII": (2, 5, b"caf\xe9\0"),
    "bytes": (7, 3, b"\xff\0\x01"),
    "division by zero": (5, 1, bytes(8)),
    "negative": (9, 1, b"\xff" * 4),
    "not a number": (12, 1, b"\x7f\xf8" + bytes(6)),
    "no such type": (99, 1, b"abcd"),
    "too many values": (3, 2**31, b"\0\0\0\x10"),
    "value beyond the end": (2, 99, b"hello world"),
}
PHOTO = encoded(Image.fromarray(COLOR), "JPEG")
ORIENTATION = 274


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """Write EXIF data of (tag, type, count, bytes)."""
    start, body, longer = 8 + 2 + 12 * len(entries) + 4, b"", b""
    for tag, kind, count, value in sorted(entries):
        place = struct.pack(">I", start + len(longer))
        body += struct.pack(">HHI", tag, kind, count)
        body += value.ljust(4, b"\0") if len(value) <= 4 else place
        longer += value if len(value) > 4 else b""
    return b"MM\0*" + struct.pack(">IH", 8, len(entries)) + body + bytes(4) + longer


def turn(orientation: int) -> tuple[int, int, int, bytes]:
    return ORIENTATION, 3, 1, struct.pack(">HH", orientation, 0)


def in_png(data: bytes) -> bytes:
    return png(COLOR, extra=chunk(b"eXIf", data))


def in_jpeg(data: bytes) -> bytes:
    length = struct.pack(">H", 2 + 6 + len(data))
    return PHOTO[:2] + b"\xff\xe1" + length + b"Exif\0\0" + data + PHOTO[2:]


def pixels(content: bytes) -> np.ndarray:
    return decode_image(content, 8).movedim(0, -1).numpy()


def damaged_exif() -> Iterator[bytes]:
    good = exif(turn(6), (282, 5, 1, struct.pack(">II", 72, 1)))
    yield from (good[:end] for end in range(len(good)))
    for i, flip in product(range(len(good)), (1, 0x80, 0xFF)):
        yield good[:i] + bytes([good[i] ^ flip]) + good[i + 1 :]
    yield from (b"", b"x", b"Exif\0\0", bytes(64), bytes(range(256)), b"MM\0*" + b"\xff" * 4)


@pytest.mark.parametrize("write", [in_png, in_jpeg])
@pytest.mark.parametrize(
    "orientations", [(1, 6), pytest.param(range(1, 9), marks=pytest.mark.slow)], ids=["two", "all"]
)
def test_an_odd_tag_neither_hides_an_image_nor_how_to_turn_it(
    orientations: Sequence[int], write: Callable[[bytes], bytes]
) -> None:
    for tag, odd, orientation in product(TAGS, ODD_VALUES, orientations):
        expected = pixels(write(exif(turn(orientation))))
        content = write(exif(turn(orientation), (tag, *ODD_VALUES[odd])))
        assert np.array_equal(pixels(content), expected), (tag, odd)


@pytest.mark.parametrize("write", [in_png, in_jpeg])
def test_damaged_exif_data_does_not_hide_an_image(write: Callable[[bytes], bytes]) -> None:
    plain = pixels(write(exif()))
    shapes = {np.sort(plain, axis=None).tobytes()}
    for data in damaged_exif():  # damage may change the orientation, but nothing else
        assert np.sort(pixels(write(data)), axis=None).tobytes() in shapes


def color_tiff(values: np.ndarray, order: str, xmp: tuple[int, int, bytes]) -> bytes:
    """Write an RGB TIFF of 16 bits per color in either byte order, turned by 90 degrees."""
    mark, data = {"<": b"II*\0", ">": b"MM\0*"}[order], values.astype(f"{order}u2").tobytes()
    entries = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 3, 154), (259, 3, 1, 1), (262, 3, 1, 2)]
    entries += [(273, 4, 1, 160), (274, 3, 1, 6), (277, 3, 1, 3), (278, 4, 1, 8)]
    entries += [(279, 4, 1, len(data)), (700, *xmp[:2], xmp[2])]
    body = b""
    for tag, kind, count, value in entries:
        if not isinstance(value, bytes):
            is_short = kind == 3 and count == 1
            value = struct.pack(f"{order}{'Hxx' if is_short else 'I'}", value)
        body += struct.pack(f"{order}HHI", tag, kind, count) + value
    header = mark + struct.pack(f"{order}IH", 8, len(entries)) + body + bytes(4)
    bits = struct.pack(f"{order}HHH", 16, 16, 16)
    return header.ljust(154, b"\0") + bits + data


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("xmp", [(9, 1, b"\xff" * 4), (1, 4, b"<x/>")], ids=["number", "text"])
def test_a_color_tiff_of_sixteen_bits_is_scaled_and_turned(
    order: str, xmp: tuple[int, int, bytes]
) -> None:
    deep = np.random.default_rng(0).integers(2**16, size=(8, 8, 3), dtype=np.uint16)
    for values, depth in ((deep, 16), (deep >> 4, 12)):
        expected = np.rot90(values >> (depth - 8), -1)
        assert np.array_equal(pixels(color_tiff(values, order, xmp)), expected)


def test_an_opaque_alpha_channel_changes_no_pixel() -> None:
    opaque = np.concatenate([COLOR, np.full((8, 8, 1), 255, np.uint8)], axis=-1)
    assert np.array_equal(pixels(png(opaque, 6)), COLOR)


def test_a_dark_image_of_sixteen_bits_keeps_its_range_if_it_uses_the_top_bits() -> None:
    for largest, depth in ((2**14, 16), (2**14 - 1, 14), (2**12 - 1, 12), (2**10, 12), (255, 8)):
        values = np.full((8, 8), largest, np.uint16)
        values[0] = largest // 2
        assert np.array_equal(pixels(png(values, 0))[..., 0], values >> (depth - 8))
        colors = np.stack([values, values // 2, values // 4], axis=-1)
        assert np.array_equal(pixels(png(colors)), colors >> (depth - 8))
        with_alpha = np.concatenate([colors, np.full_like(colors[..., :1], 2**16 - 1)], axis=-1)
        assert np.array_equal(pixels(png(with_alpha, 6)), colors >> (depth - 8))


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
def test_twelve_bits_in_a_compressed_tiff_are_scaled(compression: str | None) -> None:
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 65
    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF", compression=compression)
    assert np.array_equal(pixels(file.getvalue())[..., 0], values >> 4)


@pytest.mark.parametrize("name", BOMBS)
def test_the_error_about_a_bomb_quotes_the_limit_that_applied(name: str) -> None:
    with pytest.raises(UnreadableImage, match=f"exceeds limit of {Image.MAX_IMAGE_PIXELS} pixels"):
        decode_image(BOMBS[name], 8)


def test_the_error_about_a_bomb_of_text_quotes_its_limit() -> None:
    with pytest.raises(UnreadableImage, match=f"exceeds limit of {MAX_TEXT_CHUNK} bytes for text"):
        decode_image(UNREADABLE["bomb: text of 100 million letters"], 8)


def test_the_error_about_an_image_passes_between_processes() -> None:
    error = UnreadableImage("a.png", "it is empty", "--on-error skip")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.name, copy.reason) == ("a.png", "it is empty")
    assert (
        str(copy)
        == str(error)
        == (
            "cannot read the image a.png (it is empty): replace or remove it, "
            "or pass --on-error skip"
        )
    )
