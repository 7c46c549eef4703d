"""Print what CHANGELOG.md says about a release, if the repository is ready for it.

`python docs/release_notes.py v0.1.0` ends with one sentence and exit code 1 if the tag,
`pyproject.toml`, `CITATION.cff` and `CHANGELOG.md` do not agree. It needs no other packages.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEADING = re.compile(r"^## \[(?P<version>[^]]+)\](?: - (?P<date>\d{4}-\d\d-\d\d))?$", re.MULTILINE)
"""The heading of a version: `## [0.1.0] - 2026-12-01`, or `## [Unreleased]`."""


def find_notes(root: Path, tag: str) -> str:
    """Return the notes for a tag; raise ValueError if the repository is not ready for it."""
    version = read_version(root)
    if tag != f"v{version}":
        raise ValueError(f"the tag is {tag}, but pyproject.toml has the version {version}")
    citation = (root / "CITATION.cff").read_text(encoding="utf-8")
    for line in (f"version: {version}", "date-released: "):
        if f"\n{line}" not in citation:
            raise ValueError(f"CITATION.cff has no line `{line.strip()}`")
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = list(HEADING.finditer(text))
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    for heading, end in zip(headings, ends, strict=True):
        if heading["version"] == version and heading["date"]:
            return text[heading.end() : end].strip() + "\n"
    raise ValueError(f"CHANGELOG.md has no heading `## [{version}] - YYYY-MM-DD`")


def read_version(root: Path) -> str:
    """Return the version in `pyproject.toml`."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    return str(project["project"]["version"])


def main() -> None:
    """Print the notes for the tag on the command line."""
    try:
        sys.stdout.write(find_notes(ROOT, sys.argv[1]))
    except ValueError as error:
        sys.exit(f"not ready for a release: {error}")


if __name__ == "__main__":
    main()
