"""paper-to-code.md against the code: references resolve, steps and ablations agree."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name

import pytest

import associative_transformer
from associative_transformer.cli.options import parse
from associative_transformer.experiment import Experiment
from associative_transformer.recipes import RECIPES, ablations

PACKAGE = Path(associative_transformer.__file__).parent
ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "explanation" / "paper-to-code.md").read_text()
CODE = re.findall(r"`([^`\n]+)`", PAGE)
PARTS = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
REFERENCES = sorted({name for name in CODE if re.match(rf"({'|'.join(PARTS)})\.(?!py$)", name)})
PATHS = sorted({name for name in CODE if re.match(r"(tests|docs|src|results)/", name)})


def rows(heading: str) -> Iterator[list[str]]:
    """Yield the cells of each row of the first table under a heading."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    table = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert table is not None
    for line in table[0].splitlines()[2:]:
        yield [cell.strip() for cell in line.strip("|").split(" | ")]


def definitions(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """Yield the full name and the docstring of each function and class in a module."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            yield f"{name}.{child.name}", ast.get_docstring(child) or ""
            yield from definitions(child, f"{name}.{child.name}")


def steps_in_docstrings() -> dict[int, set[str]]:
    steps: dict[int, set[str]] = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        module = path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
        for name, docstring in definitions(ast.parse(path.read_text()), module):
            for number in re.findall(r"^\s*Step (\d+):", docstring, re.MULTILINE):
                steps[int(number)].add(name)
    return steps


def steps_on_the_page() -> dict[int, set[str]]:
    steps: dict[int, set[str]] = defaultdict(set)
    for number, _, code in rows("Steps of a layer"):
        steps[int(number)] |= set(re.findall(r"`([^`]+)`", code))
    return steps


def test_the_steps_on_the_page_are_those_in_the_docstrings() -> None:
    assert steps_on_the_page() == steps_in_docstrings()
    assert set(steps_on_the_page()) == {1, 2, 3, 4, 5, 6, 7}


def test_the_equations_of_the_workspace_per_image_name_all_its_functions() -> None:
    source = ast.parse((PACKAGE / "functional.py").read_text())
    names = {name for name, _ in definitions(source, "functional") if name.endswith("_per_image")}
    methods = {f"workspace.GlobalWorkspace.{name}_images" for name in ("write", "read")}
    named = {name for _, code in rows("The workspace per image") for name in code.split("`")[1::2]}
    assert len(names) >= 3
    assert names | methods <= named


ABLATIONS = ablations.ROWS[1:]  # the first row is the full model
OPTIONS = dict(rows("Ablations"))


def test_each_ablation_has_a_row_on_the_page() -> None:
    assert {row.title for row in ABLATIONS} == set(OPTIONS)


@pytest.mark.parametrize("row", ABLATIONS, ids=lambda row: row.title)
def test_the_option_of_an_ablation_on_the_page_changes_what_its_recipe_changes(
    row: ablations.Ablation,
) -> None:
    option = re.search(r"`(--[^`]+)`", OPTIONS[row.title])
    if row.change is None:
        assert option is None
        return
    assert option is not None
    base = RECIPES[f"cifar10-{row.of}"]
    changed = parse(Experiment, option[1].split(), "train", base)
    assert changed.model == row.change(base.model) != base.model


@pytest.mark.parametrize("reference", REFERENCES)
def test_a_reference_to_the_code_resolves(reference: str) -> None:
    if ".triton_" in reference:
        pytest.importorskip("triton")
    resolve_name(f"associative_transformer.{reference}")


@pytest.mark.parametrize("path", PATHS)
def test_a_path_exists(path: str) -> None:
    assert (ROOT / path).exists()


def test_every_symbol_is_a_name_in_the_equations_or_the_workspace() -> None:
    source = (PACKAGE / "functional.py").read_text() + (PACKAGE / "workspace.py").read_text()
    words = set(re.findall(r"\w+", source))
    symbols = {name for row in rows("Symbols") for name in re.findall(r"`(\w+)`", row[1])}
    assert len(symbols) > 12
    assert symbols <= words


def test_the_page_has_references_and_paths_to_check() -> None:
    assert len(REFERENCES) > 12
    assert len(PATHS) >= 2
