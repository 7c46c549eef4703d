"""Tables of text: every format shows every cell and escapes special characters."""

import re
from collections.abc import Sequence
from html.parser import HTMLParser

import pytest

from associative_transformer.tabular import (
    MAX_NAME_WIDTH,
    RowGroup,
    Table,
    markdown_text,
)

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\udc80-\udc9f]")
NAME = "a model with a name of many words that is wider than its column"
LONG = "sort-of-clevr-set-transformer-source"  # one word that is wider than the column
TABLE = Table(
    "Accuracy of everything, in percent",
    ("model", "accuracy", "seeds", "published"),
    [
        RowGroup("recipes", [("small", "70.00 ± 0.71", "2 in bfloat16 and float32", "76.82")]),
        RowGroup("others: not comparable", [(NAME, "-", "not run", "-"), (LONG, "1", "3", "-")]),
    ],
    ["A first note, which explains.", "A second one."],
)
ROWS = [row for group in TABLE.groups for row in group.rows]


class Cells(HTMLParser):
    """Collects the texts of the cells of each row, and the tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.inside = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")
        if tag == "th":
            self.rows[-1][-1] = self.rows[-1][-1].strip("\n")  # around the span of a heading

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data


# --- Markdown ---


def test_markdown_has_a_heading_a_pipe_table_for_each_group_and_the_notes() -> None:
    assert (
        TABLE.to_markdown()
        == f"""\
## Accuracy of everything, in percent

### recipes

| model | accuracy | seeds | published |
| --- | ---: | ---: | ---: |
| small | 70.00 ± 0.71 | 2 in bfloat16 and float32 | 76.82 |

### others: not comparable

| model | accuracy | seeds | published |
| --- | ---: | ---: | ---: |
| {NAME} | - | not run | - |
| {LONG} | 1 | 3 | - |

A first note, which explains.

A second one.
"""
    )


# --- HTML ---


def test_the_page_has_every_cell_below_its_group() -> None:
    cells = Cells(TABLE.to_html()).rows
    assert cells == [
        list(TABLE.columns),
        ["recipes"],
        list(ROWS[0]),
        ["others: not comparable"],
        list(ROWS[1]),
        list(ROWS[2]),
    ]
    assert TABLE.to_html().count(TABLE.title) == 2  # as the title of the page and of the table
    assert all(f"<p>{note}</p>" in TABLE.to_html() for note in TABLE.notes)


def test_the_page_refers_to_no_other_file() -> None:
    page = TABLE.to_html()
    assert page.startswith("<!doctype html>")
    tags = Cells(page).tags
    assert not {"script", "img", "iframe", "a"} & {tag for tag, _ in tags}
    links = [a[name] for _, a in tags for name in ("src", "href") if name in a]
    assert links == ["data:,"]  # no icon
    assert not re.search(r"https?:|@import|url\(", page)


# --- terminal ---


def drawn(text: str) -> list[list[str]]:
    """Return the cells of each line of the body."""
    lines = [line for line in text.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]


def test_a_wide_terminal_shows_each_row_on_one_line_except_for_long_names() -> None:
    text = TABLE.to_terminal(200)
    assert text.splitlines()[0].strip() == TABLE.title
    assert text.endswith("\n".join([*TABLE.notes, ""]))
    lines = drawn(text)
    assert lines[0] == ["recipes", "", "", ""]
    assert lines[1] == list(ROWS[0])
    assert lines[-1] == list(ROWS[2])
    assert " ".join(line[0] for line in lines[3:-1]) == NAME
    assert lines[3][1:] == list(ROWS[1][1:])


@pytest.mark.parametrize("width", [200, 80, 60, 20])
def test_no_word_is_cut_even_in_a_narrow_terminal(width: int) -> None:
    text = TABLE.to_terminal(width)
    assert "…" not in text
    words = text.split()
    texts = [TABLE.title, *TABLE.columns, *TABLE.notes, *(cell for row in ROWS for cell in row)]
    texts += [group.title for group in TABLE.groups]
    assert [word for text in texts for word in text.split() if word not in words] == []
    least = sum(map(len, (LONG, "published", "bfloat16", "accuracy"))) + 3 * 4 + 1
    assert max(map(len, text.splitlines())) <= max(width, least)


def test_long_names_are_wrapped_to_leave_room_for_the_numbers() -> None:
    table = Table(TABLE.title, TABLE.columns, [RowGroup("recipes", ROWS[:2])], [])
    widths = [max(map(len, column)) for column in zip(*drawn(table.to_terminal(200)), strict=True)]
    assert widths[0] <= MAX_NAME_WIDTH < len(NAME)


# --- special characters ---


def test_special_characters_in_a_cell_are_escaped() -> None:
    cell = "a|b <script>alert(1)</script> [red]x[/red] & c"
    table = Table(cell, ("model", "b|c"), [RowGroup(cell, [(cell, "1|2")])], [cell])
    page = table.to_html()
    assert "<script>" not in page
    assert Cells(page).rows == [["model", "b|c"], [cell], [cell, "1|2"]]
    lines = [line for line in table.to_markdown().splitlines() if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in lines] == [3, 3, 3]
    assert r"1\|2" in lines[2]
    assert table.to_terminal(200).count("[red]x[/red]") == 4


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a|b",
    "`code`",
    "[click](https://example.org)",
    "![](https://example.org/x.png)",
    "[a][b]",
    "[b]: https://example.org",
    "*bold*",
    "&lt;b&gt;",
    "two\nlines",
    "\x1b[31mred\x1b[0m",
    "\x9b31m",
    "\u202egnp.exe",
    "\udc9b31m",  # the same as bytes of a file name
    "back\\slash",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_shows_as_it_is_in_every_format(name: str) -> None:
    table = Table(name, ("model", name), [RowGroup(name, [(name, "1")])], [name])
    assert not CONTROL.search(table.to_terminal(200))
    assert r"\x1b" in table.to_terminal(200) or "\x1b" not in name
    markdown = table.to_markdown()
    assert not CONTROL.search(markdown)
    assert not re.search(r"[<>]|(?<!\\)([`*]|\][(\[:])", markdown)
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in lines] == [3, 3, 3]
    page = table.to_html()
    assert not {"script", "img"} & {tag for tag, _ in Cells(page).tags}
    assert Cells(page).rows[-1] == [name, "1"]


def test_markdown_escapes_show_the_original_text() -> None:
    assert markdown_text("a|b [x](y) `z` \\ <i> & *c*") == (
        r"a\|b [x\](y) \`z\` \\ &lt;i&gt; &amp; \*c\*"
    )
    for plain in ("sort_of_clevr", "76.82 ± 0.71", "Café", "(1, 2)", "[1] note", "a-b+c"):
        assert markdown_text(plain) == plain
