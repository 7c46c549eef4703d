"""Render sections as one HTML file that needs no network and no other file."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from associative_transformer.report.charts import Chart, Section
from associative_transformer.report.descriptions import describe
from associative_transformer.webpage import frame, open_templates, to_json

NUMBER = re.compile(r"[-+]?[\d,.]+(e[-+]?\d+)?( %| points)?")
FOLDER = Path(__file__).parent  # of the template, the scripts and the style sheet


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
    charts: list[Chart] = []

    def number(chart: Chart) -> int:
        charts.append(chart)
        return len(charts) - 1

    template = open_templates(FOLDER).get_template("page.html")
    tools = {"number": number, "describe": describe, "is_number": is_number}
    body = template.render(title=title, summary=summary, rows=rows, **tools)
    return frame(title, body, style, drawing + code, to_json({**data, "charts": charts}))


def is_number(cell: str) -> bool:
    """Return whether a cell is a number, which must not be broken into two lines."""
    return NUMBER.fullmatch(cell) is not None
