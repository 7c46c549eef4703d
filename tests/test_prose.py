"""Phrases that do not occur in the English of code and docs, with what to write instead."""

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
    "src/associative_transformer/data/questions.py": ('"grey"',),  # users may write it
}
"""By file: text in which a pattern is allowed."""


def prose_of_code(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the strings and comments of a file, each with its first line number."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            yield token.start[0], token.string


def prose_of_page(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the parts of a page outside code blocks, each with its first line number."""
    line = 1
    for i, part in enumerate(re.split(r"^```.*$", path.read_text(), flags=re.MULTILINE)):
        if i % 2 == 0:
            yield line, part
        line += part.count("\n")


def find_matches(path: Path, prose: Iterator[tuple[int, str]]) -> list[str]:
    """Return each sentence that matches a pattern, with its line and how to rewrite it."""
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
def test_code_is_in_plain_english(path: Path) -> None:
    assert find_matches(path, prose_of_code(path)) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_page_is_in_plain_english(path: Path) -> None:
    assert find_matches(path, prose_of_page(path)) == []


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
def test_a_planted_sentence_is_found(text: str) -> None:
    assert PLANTED[text] in "".join(find_matches(ROOT / "README.md", iter([(1, text)])))
