"""Sections as one HTML file that needs nothing else: no network, no other file."""

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

HERE = Path(__file__).parent
DIGITS = 4  # of the numbers in charts


def render(
    title: str, summary: str, rows: Sequence[Sequence[Section]], data: Mapping[str, Any]
) -> str:
    """Write a page: sections one below the other, those of a row side by side.

    `data` is what the script makes the cards and the image view of.
    """
    script = "".join((HERE / name).read_text() for name in ("charts.js", "page.js"))
    style = (HERE / "style.css").read_text()
    charts: list[Chart] = []

    def number(chart: Chart) -> int:
        charts.append(chart)
        return len(charts) - 1

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
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
        embed=lambda: to_json({**data, "charts": charts}),  # once all are numbered
        style=style,
        script=script,
        digest=_digest(script),
    )


def to_json(value: object) -> str:
    """Write data for a `<script>` element: no text in it can end the element or open another."""
    text = json.dumps(_plain(value), separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _plain(value: object) -> object:
    """Turn dataclasses and arrays into what JSON knows; numbers are rounded, nan becomes null."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if isfinite(value) else None
    return value


def _digest(script: str) -> str:
    """Let the page's own script run, and no other."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
