"""The statements of CONTRIBUTING.md, and its steps to add a model, in a copy of the package."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import test_architecture

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
REGISTRATION, ROW = (
    block.strip() for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
)
PARTS = ("src/associative_transformer", "tests", "docs")

SCRIPT = """
import json, sys
from pathlib import Path

sys.path.insert(0, "docs")
import tables
from associative_transformer.models import load_model
from associative_transformer.recipes import find_recipe
from associative_transformer.recipes.budgets import shorten
from associative_transformer.tables import TABLES
from associative_transformer.training.loop import train

recipe = shorten(find_recipe("triangle-toy"), "smoke")
folder = Path("runs", recipe.name, "0")
train(recipe, folder)
answers = {
    "loaded": type(load_model(folder)).__name__,
    "table": TABLES["classification"](Path("runs")).to_markdown(),
    "files": {str(path): text for path, text in tables.generated_files(Path()).items()},
}
Path("answers.json").write_text(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    """Return the script behind `make tables`."""
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generated_tables_are_current(tables: ModuleType) -> None:
    pages = tables.result_pages(ROOT)
    assert {path.name for path in pages} >= {"memory.md", "transfer.md"}
    for path, text in (tables.generated_files(ROOT) | pages).items():
        assert path.read_text() == text, f"{path.relative_to(ROOT)}: run `make tables`"


def test_the_commands_of_the_page_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in ("check", "test", "tables"):
        assert f"`make {target}`" in PAGE
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_commit_hooks_are_the_formatter_the_linter_and_the_type_checker() -> None:
    hooks = re.findall(r"id: ([\w-]+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert hooks == ["ruff-format", "ruff-check", "mypy"]


def test_the_ceilings_of_the_page_are_those_that_are_checked() -> None:
    ceilings = (
        f"{test_architecture.MAX_LINES} lines per file, "
        f"{test_architecture.MAX_FUNCTION_LINES} lines per function, "
        f"{test_architecture.MAX_ARGUMENTS} arguments, "
        f"{test_architecture.MAX_FIELDS} fields per configuration"
    )
    assert ceilings in " ".join(PAGE.split())


def test_the_files_that_the_page_names_exist() -> None:
    new = {"models/toy.py", "data/stripes.py"}
    names = {name for name in re.findall(r"`([\w/]+(?:\.py|\.md|/))`", PAGE) if "NAME" not in name}
    names -= {"utils.py", *new}
    assert len(names) > 15
    package = ROOT / "src" / "associative_transformer"
    assert not [
        name for name in names if not ((ROOT / name).exists() or (package / name).exists())
    ]


def test_the_tables_that_the_page_names_exist() -> None:
    page = " ".join(PAGE.split())
    lists = re.findall(r"to (?:the table )?`(\w+)` in `([\w/]+\.py)`", page)
    assert {name for name, _ in lists} >= {"ROWS", "Analysis", "DRAWINGS", "COMMANDS", "STEPS"}
    for name, file in lists:
        path = ROOT / file if file.startswith("tests") else ROOT / PARTS[0] / file
        assert re.search(rf"^(?:class |def )?{name}\b", path.read_text(), re.MULTILINE), name


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Add a toy to a copy of the package, as the page says."""
    root = tmp_path_factory.mktemp("toy")
    ignore = shutil.ignore_patterns("__pycache__")
    for part in PARTS:
        shutil.copytree(ROOT / part, root / part, ignore=ignore)
    for file in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / file, root)
    package = root / PARTS[0]
    shutil.copy(ROOT / "tests" / "making" / "toy.py", package / "models" / "toy.py")
    vit = "from associative_transformer.models.vit import "
    insert(package / "models" / "__init__.py", REGISTRATION, before=vit)
    recipes = package / "recipes" / "classification.py"
    insert(recipes, "from associative_transformer.models.toy import TOY", before=vit)
    insert(recipes, f"    {ROW},", before="]\nEXPERIMENTS")
    return root


def insert(path: Path, line: str, before: str) -> None:
    text = path.read_text()
    assert text.count(f"\n{before}") == 1
    path.write_text(text.replace(f"\n{before}", f"\n{line}\n{before}"))


def run(folder: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(folder / "src")}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_new_model_passes_the_contract_of_all_models(copy: Path) -> None:
    files = ("tests/models/test_models.py", "tests/test_architecture.py")
    output = run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "toy", *files)
    contract = 9  # tests of each model, at least
    assert int(re.findall(r"(\d+) passed", output)[0]) >= contract


@pytest.mark.slow
def test_a_new_model_trains_saves_loads_and_is_in_the_tables(copy: Path) -> None:
    run(copy, "-c", SCRIPT)
    answers = json.loads((copy / "answers.json").read_text())
    assert answers["loaded"] == "Toy"
    rows = [line for line in answers["table"].splitlines() if line.startswith("| Toy ")]
    assert ["not run" in row for row in rows] == [True, False]  # the budget smoke comes last
    files = answers["files"]
    assert "| `Toy` | `TOY` | 32x32 |" in files["docs/reference/models.md"]
    recipes = json.loads(files["src/associative_transformer/recipes/table.json"])
    (recipe,) = (recipe for recipe in recipes if recipe["name"] == "triangle-toy")
    assert recipe["model"] == "toy"
