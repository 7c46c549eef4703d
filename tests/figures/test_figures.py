"""Sheets of images as files: their pixels, and errors if they cannot be written."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from associative_transformer.figures import draw_sheet, write_images
from associative_transformer.interface import UserError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def plain(*colors: tuple[int, int, int]) -> torch.Tensor:
    """Return an image of each color."""
    return torch.tensor(colors)[:, :, None, None].expand(-1, -1, 8, 8) / 255


def find_pixels(path: Path, color: tuple[int, int, int]) -> np.ndarray:
    """Return row and column of the pixels of a color."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    return np.argwhere((pixels == color).all(axis=-1))


def test_images_are_drawn_next_to_each_other_in_their_colors(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    draw_sheet(plain(RED, GREEN, BLUE), ["a", "b", "c"], path, "title")
    red, green, blue = (find_pixels(path, color) for color in (RED, GREEN, BLUE))
    assert min(len(red), len(green), len(blue)) > 100**2
    assert red[:, 1].max() < green[:, 1].min()
    assert green[:, 1].max() < blue[:, 1].min()
    assert abs(red[:, 0].mean() - blue[:, 0].mean()) < 2
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]


def test_an_image_keeps_its_orientation(tmp_path: Path) -> None:
    image = torch.ones(1, 3, 8, 8)
    image[0, 1:, 0, :4] = 0  # red at the top left
    draw_sheet(image, ["one"], tmp_path / "x.png", "title")
    red = find_pixels(tmp_path / "x.png", RED)
    height, width = red.max(axis=0) - red.min(axis=0)
    assert width > 3 * height
    with Image.open(tmp_path / "x.png") as drawn:
        assert red[:, 0].mean() < drawn.height / 2
        assert red[:, 1].mean() < drawn.width / 2


@pytest.mark.parametrize("count", [1, 2, 4, 5, 9])
def test_any_number_of_images_is_drawn_in_rows(count: int, tmp_path: Path) -> None:
    draw_sheet(plain(*[RED] * count), ["caption"] * count, tmp_path / "x.png", "title")
    rows = np.bincount(find_pixels(tmp_path / "x.png", RED)[:, 0])
    row_starts = np.flatnonzero((rows[1:] > 0) & (rows[:-1] == 0))
    assert len(row_starts) == -(-count // 4)


def test_images_of_one_channel_are_gray_and_values_are_clamped(tmp_path: Path) -> None:
    images = torch.tensor([0.4, 1.5, -1.0])[:, None, None, None].expand(-1, 1, 8, 8)
    draw_sheet(images, ["a", "b", "c"], tmp_path / "x.png", "title")
    assert len(find_pixels(tmp_path / "x.png", (102, 102, 102))) > 100**2
    assert len(find_pixels(tmp_path / "x.png", (0, 0, 0))) > 100**2


@pytest.mark.parametrize("caption", ["", "two\nlines", "a long one " * 40, "$x", "$\\frac$ _^{"])
def test_a_caption_is_written_literally_below_its_image(caption: str, tmp_path: Path) -> None:
    draw_sheet(plain(RED, GREEN), [caption, "b"], tmp_path / "x.png", "title")
    red, ink = find_pixels(tmp_path / "x.png", RED), find_pixels(tmp_path / "x.png", (0, 0, 0))
    assert len(red) > 100**2
    assert (ink[:, 0] > red[:, 0].max()).any()


def test_longer_captions_push_the_next_row_down(tmp_path: Path) -> None:
    heights = []
    for caption in ("one", "\n".join(["line"] * 8)):
        draw_sheet(plain(*[RED] * 8), [caption] * 8, tmp_path / "x.png", "title")
        with Image.open(tmp_path / "x.png") as drawn:
            heights.append(drawn.height)
        assert len(find_pixels(tmp_path / "x.png", RED)) > 8 * 100**2
    assert heights[1] > heights[0] + 100


@pytest.mark.parametrize(
    ("name", "start"), [("x.svg", b"<?xml"), ("x.pdf", b"%PDF"), ("x.png", b"\x89PNG")]
)
def test_the_ending_determines_the_format(name: str, start: bytes, tmp_path: Path) -> None:
    draw_sheet(plain(RED), ["caption"], tmp_path / name, "title")
    assert (tmp_path / name).read_bytes().startswith(start)


@pytest.mark.parametrize("name", ["missing/x.png", "x.docx", "folder.png"])
def test_a_sheet_that_cannot_be_written_is_reported_and_leaves_no_file(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match=f"cannot write {tmp_path / name}"):
        draw_sheet(plain(RED), ["caption"], tmp_path / name, "title")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder.png"]


def test_image_files_hold_the_values_clamped_to_the_range_of_pixels(tmp_path: Path) -> None:
    values = torch.tensor([0.4, 1.5, -1.0])
    write_images(values[:, None, None, None].expand(-1, 3, 2, 2), tmp_path / "images")
    pixels = [np.array(Image.open(tmp_path / "images" / f"{i}.png")) for i in range(3)]
    assert [set(image.ravel()) for image in pixels] == [{102}, {255}, {0}]
