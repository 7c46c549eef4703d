"""Write the tables that are generated from the code: `make tables`.

`src/associative_transformer/recipes/table.json` holds what `ait list` shows about each recipe.
"""

import json
from pathlib import Path

import torch

from associative_transformer.models import ModelConfig, build_model
from associative_transformer.recipes import PUBLISHED, RECIPES

ROOT = Path(__file__).parents[1]


def recipe_table() -> str:
    """Return `recipes/table.json`: a JSON list with one recipe per line."""
    rows = [
        {
            "name": name,
            "data": recipe.data.name if recipe.data.kind == "images" else recipe.data.kind,
            "model": _describe(recipe.model),
            "epochs": recipe.train.epochs,
            "live_parameters": _count_parameters(recipe.model),
            "published": PUBLISHED.get(name),
        }
        for name, recipe in RECIPES.items()
    ]
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"


def _describe(model: ModelConfig) -> str:
    depth, width = getattr(model, "depth", None), getattr(model, "embed_dim", None)
    return f"{model.kind}, {depth} layers of {width}" if depth else model.kind


def _count_parameters(model: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(model).parameters())


def generated_files() -> dict[Path, str]:
    """Return each generated file with its current text."""
    return {ROOT / "src/associative_transformer/recipes/table.json": recipe_table()}


if __name__ == "__main__":
    for path, text in generated_files().items():
        path.write_text(text)
        print(f"written: {path.relative_to(ROOT)}")
