"""What all pages share: the security policy, escaping, and colors that everyone can tell apart."""

import base64
import hashlib
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from associative_transformer import webpage
from associative_transformer.webpage import frame, open_templates

CSS = (Path(webpage.__file__).parent / "webpage.css").read_text()
CONES = {  # what eyes without one kind of cone see, in linear RGB (Machado et al., 2009)
    "all": np.eye(3),
    "no red": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "no green": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
    "no blue": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9309, 0.1476], [0.0047, 0.6914, 0.3039]],
}
TO_LMS = [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]]
TO_OKLAB = [[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]]


def linear(color: str) -> np.ndarray:
    values = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def seen(color: str, cones: str) -> np.ndarray:
    """Return a color as Oklab coordinates, in which distances match what eyes tell apart."""
    visible = np.clip(np.array(CONES[cones]) @ linear(color), 0, 1)
    return np.array(TO_OKLAB) @ np.cbrt(np.array(TO_LMS) @ visible)


def palette(scheme: str) -> dict[str, str]:
    part = CSS.partition("@media screen")[2 if scheme == "dark" else 0]
    return dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", part))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("cones", CONES)
def test_colors_of_lines_differ_for_readers_with_any_kind_of_color_vision(
    scheme: str, cones: str
) -> None:
    colors = palette(scheme)
    views = [seen(colors[f"c{i}"], cones) for i in range(8)]
    # the palette of Okabe and Ito, which was made for this, has pairs 0.076 apart
    assert min(np.linalg.norm(a - b) for a, b in combinations(views, 2)) > 0.075


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_warnings_and_soft_text_have_contrast(scheme: str) -> None:
    colors = palette("light") | palette(scheme)
    paper = "#ffffff" if scheme == "light" else colors["paper"]

    def light(color: str) -> float:
        return float(np.dot([0.2126, 0.7152, 0.0722], linear(color)))

    for name in ("ink", "soft", "warn", "accent"):
        low, high = sorted([light(paper), light(colors[name])])
        assert (high + 0.05) / (low + 0.05) >= 4.5, name


def test_a_page_allows_its_own_script_and_no_other() -> None:
    page = frame("t", "<p>body</p>", script="show();", data="[1]")
    digest = base64.b64encode(hashlib.sha256(b"show();").digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;" in page
    assert '<script type="application/json" id="data">[1]</script>' in page
    plain = frame("t", "<p>body</p>")
    assert "script-src &#39;none&#39;" in plain and "<script" not in plain


def test_titles_and_texts_are_never_markup() -> None:
    assert "<title>&lt;b&gt;</title>" in frame("<b>", "")
    assert open_templates().from_string("{{ x }}").render(x="<i>") == "&lt;i&gt;"
