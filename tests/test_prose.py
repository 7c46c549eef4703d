"""The mechanical part of the style guide's English: patterns that do not occur in code or docs."""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = sorted((ROOT / "src").rglob("*.py"))
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]

NOT = r"(do|does|did|is|are|was|were|wo|has|have|had|could|would|should)"
BRITISH = r"\w*(colour|neighbour|behaviour|favour|centred?|grey|[ln]isation)s?"
PATTERNS = {
    "start a docstring with Return": r'^[rf]*"""(Give|Say|Tell)\b',
    "write 'is not a ...'": r"(?<!here )\b(is|are) no (?!(longer|more|less|better|worse)\b)[a-z]",
    "write 'if' for a condition": (
        r"\bwhere (there|it|they|the|an?|no|none|nothing|nobody|one|that)\b"
    ),
    "write 'next to', 'compared with' or 'in addition to'": r"\bbeside\b",
    "write 'cannot'": r"\bcan't\b",
    "write it out": rf"\b{NOT}n't\b",
    "write flags with hyphens": r"--[a-z][a-z0-9.-]*_[a-z]",
    "turn the sentence round": r"\bwhat (two|the|an?) [a-z ]+ ha(s|ve) not\b",
    "say how to fix it": r"\b(the way out|to be had)\b",
    "use American spelling": rf"\b{BRITISH}\b",
}
EXCEPTIONS: dict[str, tuple[str, ...]] = {
    "src/associative_transformer/data/questions.py": ('"grey"',),  # which users may write
}
"""By file: sentences in which a pattern is right."""


def prose_of_code(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the strings and comments of a file with their first lines."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            yield token.start[0], token.string


def prose_of_page(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the paragraphs of a page outside of code blocks with their first lines."""
    line = 1
    for i, part in enumerate(re.split(r"^```.*$", path.read_text(), flags=re.MULTILINE)):
        if i % 2 == 0:
            yield line, part
        line += part.count("\n")


def marks(path: Path, prose: Iterator[tuple[int, str]]) -> list[str]:
    """Return what a native speaker would change, with its line and how to write it instead."""
    name = path.relative_to(ROOT).as_posix()
    found = []
    for start, text in prose:
        for advice, pattern in PATTERNS.items():
            for match in re.finditer(pattern, text, re.IGNORECASE):
                line = text[: match.start()].count("\n")
                sentence = text.split("\n")[line].strip()
                if not any(known in sentence for known in EXCEPTIONS.get(name, ())):
                    found.append(f"{name}:{start + line}: {advice}: {sentence}")
    return found


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_code_speaks_plain_english(path: Path) -> None:
    assert marks(path, prose_of_code(path)) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_page_speaks_plain_english(path: Path) -> None:
    assert marks(path, prose_of_page(path)) == []


PLANTED = {
    '"""Give the learning rate."""': "Return",
    '"""Raises UserError where the disk is full."""': "if",
    '"a folder that is no run"': "is not a",
    '"put it beside the others"': "next to",
    '"it can\'t be read"': "cannot",
    '"pass --data.val_fraction"': "hyphens",
    '"What two runs have not in common"': "turn",
}


@pytest.mark.parametrize("text", PLANTED)
def test_a_planted_sentence_is_marked(text: str) -> None:
    assert PLANTED[text] in "".join(marks(ROOT / "README.md", iter([(1, text)])))
