"""Hostile input for tests: images written byte by byte, and a run that was never trained."""

import io
import struct
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from associative_transformer.data import TriangleConfig
from associative_transformer.experiment import Experiment, TrainConfig
from associative_transformer.models.vit import ViTConfig
from making.plant import make_complete_run

EXPERIMENT = Experiment(
    "tiny",
    TriangleConfig(num_train=64, num_test=64),
    ViTConfig(
        image_size=64,
        patch_size=32,
        embed_dim=8,
        depth=1,
        num_heads=1,
        head_dim=8,
        num_classes=2,
    ),
    TrainConfig(epochs=1, batch_size=64, device="cpu"),
)


def make_run(folder: Path) -> Path:
    """Write a complete run without training it."""
    folder.mkdir(parents=True)
    for name, content in files_of_run().items():
        (folder / name).write_bytes(content)
    return folder


@cache
def files_of_run() -> dict[str, bytes]:
    """Return the content of every file of a complete run."""
    with TemporaryDirectory() as name:
        folder = make_complete_run(Path(name), EXPERIMENT)
        return {path.name: path.read_bytes() for path in folder.iterdir()}


class Malice:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.mkdir, (self.trap,)


# --- images ---

RANDOM = np.random.default_rng(0)
COLOR = RANDOM.integers(256, size=(8, 8, 3), dtype=np.uint8)
GRAY = RANDOM.integers(256, size=(8, 8), dtype=np.uint8)
DEEP = RANDOM.integers(2**16, size=(8, 8), dtype=np.uint16)
DEEP_COLOR = RANDOM.integers(2**16, size=(8, 8, 3), dtype=np.uint16)
PALETTE = RANDOM.integers(256, size=(256, 3), dtype=np.uint8)
INKS = RANDOM.integers(2, size=(8, 8, 4), dtype=np.uint8) * 255  # none or all of C, M, Y, K
RED = np.full((8, 8, 3), (255, 0, 0), np.uint8)


class Picture(NamedTuple):
    """A file and the expected pixels, (8, 8) or (8, 8, 3)."""

    content: bytes
    pixels: np.ndarray
    name: str = "picture.png"


def png(
    pixels: np.ndarray, color: int = 2, extra: bytes = b"", size: tuple[int, int] | None = None
) -> bytes:
    """Write a PNG of color type 0 (gray), 2 (RGB), 3 (palette), 4 or 6 (alpha).

    The header contains `size`, if given, instead of the actual size.
    """
    height, width = pixels.shape[:2]
    depth = 8 * pixels.itemsize
    rows = pixels.astype(pixels.dtype.newbyteorder(">")).reshape(height, -1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", *(size or (width, height)), depth, color, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def bmp(width: int, height: int, data: bytes = b"") -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, len(data), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(data), 0, 0, 54) + header + data


def gif(width: int, height: int) -> bytes:
    screen = struct.pack("<HHBBB", width, height, 0, 0, 0)
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, 0)
    return b"GIF89a" + screen + frame + b"\x02\x00\x3b"


def webp(width: int, height: int) -> bytes:
    """Write the start of a lossless WebP."""
    bits = (width - 1) | (height - 1) << 14
    body = b"VP8L" + struct.pack("<IBI", 16, 0x2F, bits) + bytes(11)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def tiff(width: int, height: int) -> bytes:
    """Write an RGB TIFF with a single empty strip."""
    fields = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 2)]
    fields += [(273, 4, 8), (277, 3, 3), (278, 4, height), (279, 4, 0)]
    entries = b"".join(
        struct.pack("<HHI", tag, kind, 1) + struct.pack("<I", value) for tag, kind, value in fields
    )
    return b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + bytes(4)


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:  # noqa: ANN401
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def turned(orientation: int, words: Mapping[int, str] | None = None) -> bytes:
    """Write a PNG with an EXIF orientation and other tags, whose values are words."""
    tags = [(0x0112, 3, 1, struct.pack("<HH", orientation, 0))]
    for tag, word in (words or {}).items():
        tags.append((tag, 2, len(word) + 1, word.encode() + b"\0" * max(1, 4 - len(word))))
    start, entries, longer = 8 + 2 + 12 * len(tags) + 4, b"", b""
    for tag, kind, count, value in sorted(tags):
        stored = value if len(value) == 4 else struct.pack("<I", start + len(longer))
        longer += value if len(value) > 4 else b""
        entries += struct.pack("<HHI", tag, kind, count) + stored
    exif = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + longer
    return png(COLOR, extra=chunk(b"eXIf", exif))


def movie(file_format: str, **options: Any) -> bytes:  # noqa: ANN401
    first, second = Image.fromarray(RED), Image.fromarray(COLOR)
    return encoded(first, file_format, save_all=True, append_images=[second], **options)


def solid(color: tuple[int, ...], mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (8, 8), color)


UPRIGHT = {  # the image that each EXIF orientation asks for
    1: COLOR,
    2: COLOR[:, ::-1],
    3: COLOR[::-1, ::-1],
    4: COLOR[::-1],
    5: COLOR.swapaxes(0, 1),
    6: np.rot90(COLOR, -1),
    7: np.rot90(COLOR, 2).swapaxes(0, 1),
    8: np.rot90(COLOR),
}
ALPHA = RANDOM.integers(256, size=(8, 8, 1), dtype=np.uint8)
DEEP_ALPHA = RANDOM.integers(2**16, size=(8, 8, 1), dtype=np.uint16)
BITS = GRAY > 127
LOW = RANDOM.integers(2**12, size=(8, 8), dtype=np.uint16)  # 12 bits in the lower end of 16
LOW[0, 0] = 2**12 - 1
LOW_COLOR = RANDOM.integers(2**12, size=(8, 8, 3), dtype=np.uint16)
LOW_COLOR[0, 0] = 2**12 - 1
SHAPE = np.concatenate([np.zeros((8, 8, 3), np.uint8), ALPHA], -1)  # only alpha shows anything
PAINTED = (255 - INKS[..., :3]) // 255 * (255 - INKS[..., 3:])


def on_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return 8-bit pixels over white, given their alpha channel of 0 to 255."""
    opacity = alpha / 255
    return np.rint(opacity * pixels + (1 - opacity) * 255).astype(np.uint8)


READABLE = {
    "16-bit gray PNG": Picture(png(DEEP, 0), DEEP >> 8),
    "16-bit color PNG": Picture(png(DEEP_COLOR), DEEP_COLOR >> 8),
    "16-bit gray PNG with alpha": Picture(
        png(np.concatenate([DEEP[..., None], DEEP_ALPHA], -1), 4),
        on_white(DEEP[..., None] >> 8, DEEP_ALPHA >> 8),
    ),
    "16-bit color PNG with alpha": Picture(
        png(np.concatenate([DEEP_COLOR, DEEP_ALPHA], -1), 6),
        on_white(DEEP_COLOR >> 8, DEEP_ALPHA >> 8),
    ),
    "16-bit TIFF": Picture(encoded(Image.fromarray(DEEP), "TIFF"), DEEP >> 8),
    "16-bit PGM": Picture(b"P5\n8 8\n65535\n" + DEEP.astype(">u2").tobytes(), DEEP >> 8),
    "16-bit PPM": Picture(
        b"P6\n8 8\n65535\n" + (np.uint16(257) * COLOR).astype(">u2").tobytes(), COLOR
    ),
    "gray PNG": Picture(png(GRAY, 0), GRAY),
    "gray JPEG": Picture(encoded(solid((77,), "L"), "JPEG"), np.full((8, 8), 77, np.uint8)),
    "gray PGM": Picture(b"P5\n8 8\n255\n" + GRAY.tobytes(), GRAY),
    "black and white PBM": Picture(
        b"P4\n8 8\n" + np.packbits(~BITS, axis=1).tobytes(), BITS * np.uint8(255)
    ),
    "12 bits in 16-bit gray PNG": Picture(png(LOW, 0), LOW >> 4),
    "12 bits in 16-bit color PNG": Picture(png(LOW_COLOR), LOW_COLOR >> 4),
    "12 bits in 16-bit TIFF": Picture(encoded(Image.fromarray(LOW), "TIFF"), LOW >> 4),
    "10 bits in 16-bit gray PNG": Picture(png(LOW >> 2, 0), LOW >> 4),
    "8 bits in 16-bit gray PNG": Picture(png(LOW >> 4, 0), LOW >> 4),
    "16-bit gray PNG with a transparent value": Picture(
        png(DEEP, 0, chunk(b"tRNS", struct.pack(">H", DEEP[3, 3]))),
        np.where(DEEP[3, 3] == DEEP, 255, DEEP >> 8),
    ),
    "gray PNG with alpha": Picture(
        png(np.concatenate([GRAY[..., None], ALPHA], -1), 4), on_white(GRAY[..., None], ALPHA)
    ),
    "opaque gray PNG with alpha": Picture(
        png(np.stack([GRAY, np.full_like(GRAY, 255)], -1), 4), GRAY
    ),
    "palette PNG": Picture(png(GRAY, 3, chunk(b"PLTE", PALETTE.tobytes())), PALETTE[GRAY]),
    "palette PNG with transparency": Picture(
        png(GRAY, 3, chunk(b"PLTE", PALETTE.tobytes()) + chunk(b"tRNS", bytes(range(256)))),
        on_white(PALETTE[GRAY], GRAY[..., None]),
    ),
    "color PNG with a transparent color": Picture(
        png(COLOR, 2, chunk(b"tRNS", struct.pack(">HHH", *COLOR[0, 0]))),
        np.where((COLOR[0, 0] == COLOR).all(axis=-1, keepdims=True), 255, COLOR),
    ),
    "CMYK TIFF": Picture(encoded(Image.fromarray(INKS, "CMYK"), "TIFF"), PAINTED),
    "CMYK JPEG": Picture(encoded(solid((0, 255, 255, 0), "CMYK"), "JPEG"), RED),
    "RGBA PNG": Picture(png(np.concatenate([COLOR, ALPHA], -1), 6), on_white(COLOR, ALPHA)),
    "RGBA PNG with a shape in its alpha channel": Picture(png(SHAPE, 6), 255 - ALPHA),
    "RGBA TIFF": Picture(
        encoded(Image.fromarray(np.concatenate([COLOR, ALPHA], -1)), "TIFF"),
        on_white(COLOR, ALPHA),
    ),
    "RGBA WebP": Picture(
        encoded(Image.fromarray(SHAPE), "WEBP", lossless=True, exact=True), 255 - ALPHA
    ),
    "animated GIF": Picture(movie("GIF"), RED),
    "animated PNG": Picture(movie("PNG"), RED),
    "animated WebP": Picture(movie("WEBP", lossless=True), RED),
    "TIFF of several pages": Picture(movie("TIFF"), RED),
    "MPO, a JPEG of two pictures": Picture(
        encoded(solid((90,) * 3), "MPO", save_all=True, append_images=[solid((0, 0, 0))]),
        np.full((8, 8), 90, np.uint8),
    ),
    "PNG named .jpg": Picture(png(COLOR), COLOR, "picture.jpg"),
    "GIF named .png": Picture(encoded(solid((255, 0, 0)), "GIF"), RED, "picture.png"),
    "BMP named .webp": Picture(encoded(Image.fromarray(COLOR), "BMP"), COLOR, "picture.webp"),
    "PNG named .parquet": Picture(png(COLOR), COLOR, "picture.parquet"),
    **{f"EXIF rotation {k}": Picture(turned(k), pixels) for k, pixels in UPRIGHT.items()},
    "EXIF rotation 99": Picture(turned(99), COLOR),
    "EXIF rotation and a resolution in words": Picture(turned(6, {0x011A: "72"}), UPRIGHT[6]),
    "EXIF rotation and a width in words": Picture(turned(8, {0x0100: "eight"}), UPRIGHT[8]),
    "malformed EXIF": Picture(png(COLOR, extra=chunk(b"eXIf", b"junk")), COLOR),
    "empty EXIF": Picture(png(COLOR, extra=chunk(b"eXIf", b"")), COLOR),
    "one pixel": Picture(png(RED[:1, :1]), RED),
    "a line of 1 x 60,000 pixels": Picture(png(np.full((60_000, 1, 3), RED[0, 0], "u1")), RED),
    "more bytes after the end": Picture(png(COLOR) + b"<script>" * 99, COLOR),
}

WHOLE = {
    name: encoded(Image.fromarray(np.kron(COLOR, np.ones((8, 8, 1), np.uint8))), name)
    for name in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
}
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
BOMBS = {
    "bomb: PNG of 120 million pixels": png(COLOR, size=(12_000, 10_000)),
    "bomb: PNG of 10 billion pixels": png(COLOR, size=(100_000, 100_000)),
    "bomb: BMP of 100 million pixels": bmp(10_000, 10_000),
    "bomb: BMP of 4 billion pixels": bmp(65_535, 65_535),
    "bomb: GIF of 4 billion pixels": gif(65_535, 65_535),
    "bomb: WebP of 268 million pixels": webp(16_383, 16_383),
    "bomb: TIFF of 100 million pixels": tiff(10_000, 10_000),
    "bomb: PPM of 100 million pixels": b"P6\n10000 10000\n255\n",
}
UNREADABLE = {
    "empty": b"",
    "one byte": b"\x89",
    "signature alone": png(COLOR)[:8],
    **{f"truncated {name}": content[: len(content) // 2] for name, content in WHOLE.items()},
    "wrong checksum": png(COLOR).replace(b"IDAT", b"IDAT\0", 1),
    "PNG without width": png(COLOR, size=(0, 8)),
    "PNG without height": png(COLOR, size=(8, 0)),
    "GIF of zero size": gif(0, 0),
    "BMP of zero size": bmp(0, 0),
    "BMP of negative width": bmp(-8, 8, COLOR.tobytes()),
    "TIFF of zero size": tiff(0, 8),
    "PPM of zero size": b"P6\n0 8\n255\n",
    "32-bit TIFF": encoded(Image.fromarray(DEEP.astype(np.int32)), "TIFF"),
    "float TIFF": encoded(Image.fromarray(DEEP.astype(np.float32)), "TIFF"),
    "float PFM": b"Pf\n8 8\n-1.0\n" + bytes(256),
    **BOMBS,
    "bomb: text of 100 million letters": png(
        COLOR, extra=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8)))
    ),
    "EPS, which is a program": EPS,
    "PDF": b"%PDF-1.7\n1 0 obj\n<</Type/Catalog>>\nendobj\n%%EOF\n",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    "HTML": b"<!doctype html><script>alert(1)</script>",
    "ZIP": b"PK\x05\x06" + bytes(18),
    "text": b"hello\n" * 100,
    "zeros": bytes(10_000),
}


@cache
def image_seeds() -> dict[str, list[bytes]]:
    """Return small images in several modes, by format."""
    random = np.random.default_rng(0)
    color = Image.fromarray(random.integers(256, size=(9, 12, 3), dtype=np.uint8))
    deep = Image.fromarray(random.integers(2**16, size=(9, 12), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    modes = {
        "PNG": ("RGB", "L", "P", "1", "RGBA"),
        "JPEG": ("RGB", "L", "CMYK"),
        "GIF": ("RGB", "P"),
        "BMP": ("RGB", "L", "P", "1"),
        "TIFF": ("RGB", "L", "P", "1", "RGBA", "CMYK"),
        "WEBP": ("RGB", "RGBA"),
        "PPM": ("RGB", "L", "1"),
    }
    seeds = {
        name: [encoded(color.convert(mode), name) for mode in of_name]
        for name, of_name in modes.items()
    }
    for name in ("PNG", "TIFF", "PPM"):
        seeds[name].append(encoded(deep, name))
    for name in ("PNG", "JPEG", "WEBP", "TIFF"):
        seeds[name].append(encoded(color, name, exif=exif))
    for name in ("GIF", "PNG", "WEBP", "TIFF"):
        turned = [color.rotate(180)]
        seeds[name].append(encoded(color, name, save_all=True, append_images=turned))
    seeds["TIFF"] += [
        encoded(color, "TIFF", compression=name) for name in ("tiff_lzw", "jpeg", "packbits")
    ]
    seeds["PNG"] += [png(DEEP_COLOR), png(DEEP_COLOR >> 4), png(DEEP[..., None], 0)]
    seeds["JPEG"].append(encoded(color, "JPEG", progressive=True))
    seeds["WEBP"].append(encoded(color, "WEBP", lossless=True))
    return seeds
