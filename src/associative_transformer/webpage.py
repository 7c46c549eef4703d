"""The frame and the style that all HTML pages share: one file each, which needs no network.

A page allows no script but its own, whose digest is in its content security policy.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from math import isfinite
from pathlib import Path

import jinja2
import numpy as np

FOLDER = Path(__file__).parent  # of the style sheet
DIGITS = 4  # significant digits of the numbers that a script gets
FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'unsafe-inline'; script-src {{ allowed }}; base-uri 'none'; form-action 'none'">
<link rel="icon" href="data:,">
<title>{{ title }}</title>
<style>{{ style | safe }}</style>
</head>
<body>
{{ body | safe }}
{% if script %}
<script type="application/json" id="data">{{ data | safe }}</script>
<script>{{ script | safe }}</script>
{% endif %}
</body>
</html>
"""


def open_templates(folder: Path | None = None) -> jinja2.Environment:
    """Return an environment for the templates in a folder, which shows all text as it is."""
    return jinja2.Environment(
        loader=None if folder is None else jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def frame(title: str, body: str, style: str = "", script: str = "", data: str = "null") -> str:
    """Return a page with this title around the HTML of its body.

    `style` is added to the shared style sheet. `data` is JSON from `to_json`, which the script
    finds in the element with the id "data".
    """
    shared = (FOLDER / "webpage.css").read_text(encoding="utf-8")
    return (
        open_templates()
        .from_string(FRAME)
        .render(
            title=title,
            body=body,
            style=shared + style,
            script=script,
            data=data,
            allowed=f"'sha256-{_digest(script)}'" if script else "'none'",
        )
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
