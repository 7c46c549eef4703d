"""Configuration of the documentation site: `make docs` builds it in `docs/_build/html`."""

import io
import sys
from contextlib import redirect_stdout, suppress

from sphinx.application import Sphinx

from associative_transformer import __version__, cli
from associative_transformer.cli import COMMANDS
from associative_transformer.recipes import RECIPES

project = "associative_transformer"
author = "The associative_transformer authors"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "Associative Transformer"
html_static_path = ["_static"]
html_css_files = ["site.css"]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = False

myst_heading_anchors = 4
myst_enable_extensions = ["deflist"]
default_role = "code"  # docstrings mark code with single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88


def list_commands() -> str:
    """Return a section with the help of each command."""
    parts = []
    for name, summary in COMMANDS.items():
        text = read_help(name).partition("\nrecipes:\n")[0]
        parts.append(
            f"## ait {name}\n\n{summary[0].upper()}{summary[1:]}.\n\n```text\n{text}\n```\n"
        )
    return "\n".join(parts)


def read_help(command: str) -> str:
    """Return what `ait COMMAND --help` prints."""
    printed = io.StringIO()
    sys.argv = ["ait", command, "--help"]
    with redirect_stdout(printed), suppress(SystemExit):
        cli.main()
    return printed.getvalue().rstrip()


def list_recipes() -> str:
    """Return the table of the recipes."""
    lines = ["| recipe | data | model | epochs |", "| --- | --- | --- | ---: |"]
    for name, recipe in RECIPES.items():
        data = recipe.data.display_name
        lines.append(f"| `{name}` | {data} | `{recipe.model.kind}` | {recipe.train.epochs} |")
    return "\n".join(lines)


GENERATED = {"reference/command-line": list_commands, "reference/recipes": list_recipes}
PLACEHOLDER = "<!-- written by docs/conf.py -->"


def insert(app: Sphinx, page: str, source: list[str]) -> None:
    """Put the generated part into a page when Sphinx reads it."""
    if page in GENERATED:
        source[0] = source[0].replace(PLACEHOLDER, GENERATED[page]())


def setup(app: Sphinx) -> None:
    """Register what generates parts of pages."""
    app.connect("source-read", insert)
