"""Tables of text, written for a terminal, as Markdown or as an HTML page.

Names in them may come from others: each format shows every text as it is and nothing runs.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich.console import Console
from rich.table import Table as RichTable

from associative_transformer.interface import printable
from associative_transformer.webpage import frame, open_templates

BODY = """<main>
<h1 id="title">{{ table.title }}</h1>
<div class="wide" tabindex="0" role="region" aria-labelledby="title">
<table>
<thead><tr>{% for name in table.columns %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
{% for group in table.groups %}<tbody>
{% if group.title %}
<tr><th scope="rowgroup" colspan="{{ table.columns | length }}">
<span>{{ group.title }}</span></th></tr>
{% endif %}
{% for row in group.rows %}
<tr><th scope="row">{{ row[0] }}</th>{% for cell in row[1:] %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
{% endfor %}
</table>
</div>
{% for note in table.notes %}
<p>{{ note }}</p>
{% endfor %}
</main>"""
STYLE = """
table { width: 100%; }
td, thead th:not(:first-child) { text-align: right; padding: .25rem 0 .25rem .8rem; }
td { white-space: nowrap; }
th:first-child { position: sticky; left: 0; background: var(--paper); }
tbody th[scope="rowgroup"] { padding-top: 1rem; color: var(--ink); font-weight: 600; }
tbody th[scope="rowgroup"] span { position: sticky; left: 0; }
@media (min-width: 40rem) { tbody th[scope="row"] { white-space: nowrap; } }
"""

LINK = re.compile(r"\](?=[(\[:])")  # the bracket that makes a link or an image of the text before
MARKDOWN = str.maketrans({"<": "&lt;", ">": "&gt;", "&": "&amp;", "\n": " ", "\r": " "})
MARKDOWN |= str.maketrans({char: f"\\{char}" for char in "\\|`*"})
MAX_NAME_WIDTH = 30  # characters of the first column; longer names are wrapped


class RowGroup(NamedTuple):
    """Rows under one heading, each with a cell for every column; a terminal omits an empty one."""

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
        groups = [
            RowGroup(printable(title), [tuple(map(printable, row)) for row in rows])
            for title, rows in self.groups
        ]
        names = tuple(map(printable, self.columns))
        columns = list(zip(names, *(row for group in groups for row in group.rows), strict=True))
        full = [max(map(len, cells)) for cells in columns]
        least = [max(len(word) for cell in cells for word in cell.split()) for cells in columns]
        full[0] = min(full[0], max(MAX_NAME_WIDTH, least[0]))
        borders = 3 * len(columns) + 1
        widths = full if sum(full) + borders <= width else [full[0], *least[1:]]
        drawn = RichTable(title=printable(self.title))
        for name, chars in zip(names, widths, strict=True):
            drawn.add_column(name, width=chars, justify="right" if drawn.columns else "left")
        for title, rows in groups:
            drawn.add_section()
            if title:
                drawn.add_row(title, style="bold")
            for row in rows:
                drawn.add_row(*row)
        buffer = io.StringIO()
        console = Console(file=buffer, width=width, markup=False, highlight=False)
        console.width = max(width, sum(widths) + borders)
        console.print(drawn, *map(printable, self.notes), sep="\n")
        return buffer.getvalue()

    def to_markdown(self) -> str:
        """Return a heading and a pipe table for each group of rows."""
        parts = [f"## {markdown_text(self.title)}"]
        for group in self.groups:
            rows = [list(map(markdown_text, row)) for row in (self.columns, *group.rows)]
            rows.insert(1, ["---", *["---:"] * (len(self.columns) - 1)])
            lines = ["| " + " | ".join(row) + " |" for row in rows]
            parts += [f"### {markdown_text(group.title)}", "\n".join(lines)]
        return "\n\n".join([*parts, *map(markdown_text, self.notes)]) + "\n"

    def to_html(self) -> str:
        """Return an HTML page that refers to no other file."""
        body = open_templates().from_string(BODY).render(table=self)
        return frame(self.title, body, STYLE)


def markdown_text(text: str) -> str:
    """Return a text for Markdown that shows as it is: no HTML, links, code or new cells."""
    return printable(LINK.sub(r"\\]", text.translate(MARKDOWN)))
