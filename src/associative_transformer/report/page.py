"""Render sections as one HTML file that needs no network and no other file."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from associative_transformer.report.charts import Chart, Section

FOLDER = Path(__file__).parent  # of the template, the scripts and the style sheet
DIGITS = 4  # significant digits of the numbers in charts


def render(
    title: str, summary: str, rows: Sequence[Sequence[Section]], data: Mapping[str, Any]
) -> str:
    """Return a page that shows the sections of each row side by side.

    The script draws the cards of the priors and the image view from `data`.
    """
    drawing, code, style = (
        (FOLDER / name).read_text(encoding="utf-8")
        for name in ("charts.js", "page.js", "style.css")
    )
    script = drawing + code
    charts: list[Chart] = []

    def number(chart: Chart) -> int:
        charts.append(chart)
        return len(charts) - 1

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html")
    return page.render(
        title=title,
        summary=summary,
        rows=rows,
        number=number,
        embed=lambda: to_json({**data, "charts": charts}),  # called after all charts are numbered
        style=style,
        script=script,
        digest=_digest(script),
    )


def to_json(value: object) -> str:
    """Return JSON for a `<script>` element, in which no text can close or open an element."""
    text = json.dumps(_simplify(value), separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _simplify(value: object) -> object:
    """Turn dataclasses and arrays into JSON types; round numbers and turn nan into null."""
    if is_dataclass(value) and not isinstance(value, type):
        return _simplify(asdict(value))
    if isinstance(value, np.ndarray | np.generic):
        return _simplify(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _simplify(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_simplify(entry) for entry in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if isfinite(value) else None
    return value


def _digest(script: str) -> str:
    """Return the hash that lets the content security policy allow only this script."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
