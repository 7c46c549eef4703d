"""Other values of some fields of an experiment: from a file, or by the names of the fields."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from associative_transformer.experiment import (
    Experiment,
    list_fields,
    nested_fields,
    parse_experiment,
    read_yaml,
)
from associative_transformer.interface import UserError
from associative_transformer.recipes import RECIPES

FLAT = ("data.splits.",)
"""Groups of fields whose options leave out the name of the group: --data.test-split."""


def read_overrides(path: Path, recipe: Experiment) -> dict[str, object]:
    """Return the values of fields, by dotted name, that a YAML file sets for a recipe.

    The file holds some fields, nested as in `experiment.yaml`, or all of them. A name that
    `ait train` has derived from the recipe is left out. Raises UserError if the file cannot be
    read, is not valid YAML, has an unknown key, or is an experiment of another recipe.
    """
    try:
        content = read_yaml(path)
    except FileNotFoundError:
        raise UserError(
            f"there is no file {path}: pass a YAML file, such as experiment.yaml of a run"
        ) from None
    if not isinstance(content, dict) or not content:
        raise UserError(
            f"{path} must contain fields, nested as in experiment.yaml, such as train: {{lr: 0.1}}"
        )
    name = str(content.get("name", recipe.name)).partition("+")[0]
    if name == recipe.name:
        content = {key: value for key, value in content.items() if key != "name"}
    elif name in RECIPES:
        raise UserError(
            f"{path} is an experiment of another recipe: pass it to `ait train {name}`, or remove "
            "its key name"
        )
    for part in ("data", "model"):
        kind, mine = getattr(recipe, part).kind, content.get(part)
        if isinstance(mine, dict) and mine.get("kind", kind) != kind:
            raise UserError(
                f"{path}: {part}.kind is {mine['kind']}, but {recipe.name} has {kind}: choose a "
                "recipe of that kind"
            )
    return _flatten(content, list_fields(recipe), str(path))


def override(experiment: Experiment, values: Mapping[str, object], where: str) -> Experiment:
    """Return an experiment with other values of some fields, by dotted name.

    Raises UserError, which starts with `where`, if a value is invalid.
    """
    nested = nested_fields(experiment)
    for name, value in values.items():
        *parents, last = name.split(".")
        group = nested
        for parent in parents:
            group = group[parent]
        group[last] = value
    try:
        return parse_experiment(nested, where)
    except UserError as error:
        text = str(error)
        for part in ("data", "model"):  # pydantic also names the kind: data.images.limit
            text = text.replace(f" {part}.{getattr(experiment, part).kind}.", f" {part}.")
        raise UserError(text) from None


def find_field(name: str, experiment: Experiment, where: str) -> str:
    """Return the dotted name of a field, which may be written as its option: data.val-fraction.

    Raises UserError, which starts with `where`, with similar names if there is no such field.
    """
    written = name.removeprefix("--").replace("-", "_")
    fields = list_fields(experiment)
    for field in fields:
        if written == field or any(
            field.startswith(group) and written == f"data.{field.removeprefix(group)}"
            for group in FLAT
        ):
            return field
    raise UserError(f"{where}: {_describe_unknown(written, list(fields))}")


def _flatten(
    content: dict[Any, Any], fields: dict[str, object], where: str, prefix: str = ""
) -> dict[str, object]:
    """Return nested values by dotted name."""
    values: dict[str, object] = {}
    for key, value in content.items():
        name = prefix + str(key).replace("-", "_")
        if name in fields:
            values[name] = value
        elif not any(field.startswith(f"{name}.") for field in fields):
            raise UserError(f"{where}: {_describe_unknown(name, list(fields))}")
        elif isinstance(value, dict):
            values |= _flatten(value, fields, where, f"{name}.")
        else:
            raise UserError(f"{where}: {name} must contain fields, not {value!r}")
    return values


def _describe_unknown(name: str, fields: list[str]) -> str:
    last = name.rpartition(".")[2]
    similar = [field for field in fields if field.rpartition(".")[2] == last]
    similar = similar or get_close_matches(name, fields, n=1)
    hint = f"did you mean {' or '.join(similar[:3])}?" if similar else "see `ait train RECIPE -h`"
    return f"there is no field {name}: {hint}"
