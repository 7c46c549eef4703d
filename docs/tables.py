"""Write the tables that are generated from the code and from results: `make tables`.

These are the table of models in `docs/reference/models.md` and the tables of results in all pages,
between marker comments, and `src/associative_transformer/recipes/table.json`, which `ait list`
shows. The marker of a table of results holds the command that prints it.
"""

import io
import json
import re
import shlex
import sys
from contextlib import redirect_stdout
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch

from associative_transformer.interface import format_count
from associative_transformer.models import MODELS, ModelConfig, build_model
from associative_transformer.models.perceiver import PerceiverConfig
from associative_transformer.recipes import PUBLISHED_TEXT, RECIPES

ROOT = Path(__file__).parents[1]
START = "<!-- models: written by make tables -->\n"
END = "<!-- end of models -->\n"
RESULTS = re.compile(
    r"(<!-- python benchmarks/(\w+)\.py ([^\n]+): written by make tables -->\n).*?"
    r"(<!-- end of table -->\n)",
    re.DOTALL,
)


class Size(NamedTuple):
    """A named size of a model, such as AIT_SMALL."""

    name: str
    model: str
    image: str
    depth: str
    live: int
    reference: int  # including what the reference code registers but never uses
    recipe: str | None  # the recipe that trains exactly this configuration


def named_sizes() -> list[Size]:
    """Return the named sizes of all models, in the order of the table of models."""
    return [
        _size(name, config)
        for config_class, model in MODELS.items()
        for name, config in vars(sys.modules[model.__module__]).items()
        if name.isupper() and type(config) is config_class
    ]


def models_page() -> str:
    """Return the table of `docs/reference/models.md`: one row per named size."""
    lines = [
        "| model | size | images | layers | live parameters | as the reference counts | recipe |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for s in named_sizes():
        counts = f"{s.live:,} | {s.reference:,}"
        recipe = f"`{s.recipe}`" if s.recipe else ""
        lines.append(f"| `{s.model}` | `{s.name}` | {s.image} | {s.depth} | {counts} | {recipe} |")
    return "\n".join(lines) + "\n"


def recipe_table() -> str:
    """Return `recipes/table.json`: a JSON list with one recipe per line."""
    rows = [
        {
            "name": name,
            "data": recipe.data.name if recipe.data.kind == "images" else recipe.data.kind,
            "model": _describe(recipe.model),
            "epochs": recipe.train.epochs,
            "live_parameters": _count_parameters(recipe.model)[0],
            "published": PUBLISHED_TEXT.get(name),
        }
        for name, recipe in RECIPES.items()
    ]
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"


def generated_files(root: Path) -> dict[Path, str]:
    """Return what the generated files of the repository at `root` should contain."""
    page = root / "docs/reference/models.md"
    files = {page: _replace_table(page.read_text(), models_page())}
    files[root / "src/associative_transformer/recipes/table.json"] = recipe_table()
    return files


def result_pages(root: Path) -> dict[Path, str]:
    """Return the pages of the repository at `root` with current tables of results."""
    pages = {page: page.read_text() for page in sorted((root / "docs").rglob("*.md"))}
    return {
        page: RESULTS.sub(_run_command, text)
        for page, text in pages.items()
        if RESULTS.search(text)
    }


def _run_command(match: re.Match[str]) -> str:
    """Return a table of results with its markers, after running its command.

    The page has a heading of its own, so the title is left out, and so is that of a single group.
    """
    start, script, words, end = match.groups()
    sys.path.insert(0, str(ROOT / "benchmarks"))
    printed = io.StringIO()
    with redirect_stdout(printed):
        import_module(script).main(shlex.split(words))
    sys.path.pop(0)
    table = re.sub(r"\A## .*\n+", "", printed.getvalue())
    if table.count("### ") == 1:
        table = re.sub(r"### .*\n+", "", table)
    return f"{start}\n{table}\n{end}"


def _size(name: str, config: ModelConfig) -> Size:
    side, depth = config.image_size, getattr(config, "depth", None)
    live, reference = _count_parameters(config)
    recipes = (name for name, recipe in RECIPES.items() if recipe.model == config)
    recipe = next((name for name in recipes if not name.endswith("-tiny")), None)
    model = MODELS[type(config)].__name__
    return Size(name, model, f"{side}x{side}", str(depth or "-"), live, reference, recipe)


@cache
def _count_parameters(config: ModelConfig) -> tuple[int, int]:
    with torch.device("meta"):
        model = build_model(config)
    return sum(parameter.numel() for parameter in model.parameters()), model.reference_parameters()


def _describe(model: ModelConfig) -> str:
    depth = getattr(model, "depth", None)
    if depth is None:
        return model.kind
    width = model.latent_dim if isinstance(model, PerceiverConfig) else model.embed_dim
    return f"{model.kind}, {format_count(depth, 'layer')} of {width}"


def _replace_table(text: str, table: str) -> str:
    before, _, rest = text.partition(START)
    after = rest.partition(END)[2]
    return before + START + table + END + after


if __name__ == "__main__":
    for path, text in (generated_files(ROOT) | result_pages(ROOT)).items():
        if path.read_text() != text:
            path.write_text(text)
            print(f"written: {path.relative_to(ROOT)}")
