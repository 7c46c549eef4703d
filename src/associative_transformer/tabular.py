"""Tables of text, written for a terminal, as Markdown or as an HTML page."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jinja2
from rich.console import Console
from rich.table import Table as RichTable

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{ table.title }}</title>
<style>
body { font: 1rem/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100% }
.wide { overflow-x: auto }
caption, tbody th { text-align: left; font-weight: 600 }
caption { font-size: 1.25rem; padding-bottom: .5rem }
td, thead th { padding: .25rem .75rem; text-align: right; border-bottom: 1px solid #ccc }
td:first-child, thead th:first-child { text-align: left }
tbody th { padding: 1rem .75rem .25rem }
</style>
</head>
<body>
<div class="wide">
<table>
<caption>{{ table.title }}</caption>
<thead><tr>{% for name in table.columns %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
{% for group in table.groups %}<tbody>
<tr><th scope="rowgroup" colspan="{{ table.columns | length }}">{{ group.title }}</th></tr>
{% for row in group.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody>
{% endfor %}</table>
</div>
{% for note in table.notes %}<p>{{ note }}</p>
{% endfor %}</body>
</html>
"""

MAX_NAME_WIDTH = 30  # characters of the first column; longer names are wrapped


class RowGroup(NamedTuple):
    """Rows under one heading, each with a cell for every column."""

    title: str
    rows: Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Table:
    """A titled table of text with notes below it."""

    title: str
    columns: tuple[str, ...]
    groups: list[RowGroup]
    notes: list[str]

    def to_terminal(self, width: int) -> str:
        """Return the table drawn with lines, at most `width` wide unless a word needs more."""
        columns = list(
            zip(self.columns, *(row for group in self.groups for row in group.rows), strict=True)
        )
        full = [max(map(len, cells)) for cells in columns]
        least = [max(len(word) for cell in cells for word in cell.split()) for cells in columns]
        full[0] = min(full[0], max(MAX_NAME_WIDTH, least[0]))
        borders = 3 * len(columns) + 1
        widths = full if sum(full) + borders <= width else [full[0], *least[1:]]
        drawn = RichTable(title=self.title)
        for name, chars in zip(self.columns, widths, strict=True):
            drawn.add_column(name, width=chars, justify="right" if drawn.columns else "left")
        for group in self.groups:
            drawn.add_section()
            drawn.add_row(group.title, style="bold")
            for row in group.rows:
                drawn.add_row(*row)
        buffer = io.StringIO()
        console = Console(file=buffer, width=width, markup=False, highlight=False)
        console.width = max(width, sum(widths) + borders)
        console.print(drawn, *self.notes, sep="\n")
        return buffer.getvalue()

    def to_markdown(self) -> str:
        """Return a heading and a pipe table for each group of rows."""
        parts = [f"## {self.title}"]
        for group in self.groups:
            head = [self.columns, ("---", *["---:"] * (len(self.columns) - 1))]
            lines = ["| " + " | ".join(map(_escape, row)) + " |" for row in [*head, *group.rows]]
            parts += [f"### {group.title}", "\n".join(lines)]
        return "\n\n".join([*parts, *self.notes]) + "\n"

    def to_html(self) -> str:
        """Return an HTML page that refers to no other file."""
        return jinja2.Environment(autoescape=True).from_string(PAGE).render(table=self)


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|")
