"""The values that a sweep tries: train.lr=1e-3,2e-3 in a grid, train.lr=1e-4..1e-2 in a search."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from associative_transformer.data import DataConfig
from associative_transformer.data.stored import HUB_DATA_SETS, StoredImages, open_tables
from associative_transformer.experiment import Experiment, is_circumstance, list_fields
from associative_transformer.interface import UserError
from associative_transformer.runs.overrides import find_field, override

COMMA = re.compile(r",(?![^\[]*\])")  # not inside a list, as in train.betas=[0.9,0.99]
MAX_POINTS = 10_000  # of a grid


@dataclass(frozen=True)
class Choice:
    """A field with the values to try."""

    field: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Range:
    """A field with the range of numbers to search; both ends belong to it."""

    field: str
    low: int | float
    high: int | float
    is_log: bool
    is_whole: bool  # try only whole numbers


def parse_grid(words: tuple[str, ...], experiment: Experiment) -> list[Choice]:
    """Return the values of each field of a grid.

    Raises UserError if a word is not FIELD=VALUE,VALUE, or names no field, one that is named
    already, or one that a sweep cannot vary; or if a value is invalid or occurs twice.
    """
    choices = [_parse_choice(word, experiment, "--grid") for word in words]
    _check_fields([choice.field for choice in choices], "--grid")
    count = math.prod(len(choice.values) for choice in choices)
    if count > MAX_POINTS:
        raise UserError(
            f"--grid has {count:,} combinations, more than {MAX_POINTS:,}: remove some"
        )
    return choices


def parse_search(words: tuple[str, ...], experiment: Experiment) -> list[Choice | Range]:
    """Return the values or the range of each field to search: LOW..HIGH, or LOW..HIGH:log.

    Raises UserError like `parse_grid`, or if a range is invalid.
    """
    space: list[Choice | Range] = []
    for word in words:
        is_range = ".." in word.partition("=")[2]
        parse = _parse_range if is_range else _parse_choice
        space.append(parse(word, experiment, "--search"))
    _check_fields([part.field for part in space], "--search")
    return space


def combinations(choices: list[Choice]) -> Iterator[dict[str, Any]]:
    """Yield each combination of the values of a grid, by field; the last field changes fastest."""
    fields = [choice.field for choice in choices]
    for values in itertools.product(*(choice.values for choice in choices)):
        yield dict(zip(fields, values, strict=True))


def vary(experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
    """Return the experiment with the values of a combination.

    Raises UserError with the combination if it is invalid.
    """
    return override(experiment, values, describe(values))


def describe(values: Mapping[str, Any]) -> str:
    """Return a combination as text, such as "train.lr=0.001 model.depth=2"."""
    return " ".join(f"{field}={format_value(value)}" for field, value in values.items())


def format_value(value: object) -> str:
    """Return a value as it could be written on the command line."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value).replace(" ", "")


def check_validation(data: DataConfig) -> None:
    """Raise UserError if a data set has no validation images, on which a sweep is scored."""
    if getattr(data, "val_fraction", 0.0):
        return
    if isinstance(data, StoredImages):
        may_have_some = data.source is not None or data.name not in HUB_DATA_SETS
        if may_have_some and open_tables(data).validation is not None:
            return
    raise UserError(
        "a sweep is scored on validation images, never on test images, but there are none: pass "
        "--data.val-fraction 0.1, for example"
    )


def _parse_choice(word: str, experiment: Experiment, flag: str) -> Choice:
    field, text = _split_word(word, experiment, flag)
    values = []
    for part in COMMA.split(text):
        if not part.strip():
            raise UserError(f"{flag} {word} has an empty value: write {field}=VALUE,VALUE")
        values.append(_read_value(part.strip(), f"{flag} {word}"))
        _check_type(experiment, field, values[-1], flag)
    if any(values.count(value) > 1 for value in values):
        raise UserError(f"{flag} {word} has the same value twice: remove one")
    return Choice(field, tuple(values))


def _parse_range(word: str, experiment: Experiment, flag: str) -> Range:
    field, text = _split_word(word, experiment, flag)
    bounds, colon, scale = text.partition(":")
    low, high = (_read_value(part, f"{flag} {word}") for part in bounds.split("..", 1))
    if colon and scale != "log":
        raise UserError(f"{flag} {word} ends in :{scale}: write LOW..HIGH or LOW..HIGH:log")
    if not all(type(end) in (int, float) and math.isfinite(end) for end in (low, high)):
        raise UserError(f"{flag} {word} must have two numbers as its ends: write LOW..HIGH")
    if low >= high or (colon and low <= 0):
        wanted = "above 0 and below" if colon else "below"
        raise UserError(f"{flag} {word}: the first number must be {wanted} the second")
    for end in (low, high):
        _check_type(experiment, field, end, flag)
    current = list_fields(experiment)[field]
    is_whole = isinstance(low, int) and isinstance(high, int) and not isinstance(current, float)
    return Range(field, low, high, bool(colon), is_whole)


def _split_word(word: str, experiment: Experiment, flag: str) -> tuple[str, str]:
    """Return the field that a word names, and the text of its values."""
    name, equals, text = word.partition("=")
    if not equals:
        raise UserError(f"{flag} {word} has no values: write FIELD=VALUE,VALUE")
    if not text.strip():
        raise UserError(f"{flag} {word} has no values: write {name}=VALUE,VALUE")
    field = find_field(name, experiment, flag)
    if field == "train.seed":
        raise UserError(f"{flag} {word}: pass seeds with --seeds, which averages over them")
    if field.endswith(".kind"):
        raise UserError(f"{flag} {word}: sweep over recipes of each kind instead")
    if is_circumstance(field) or field == "name":
        raise UserError(f"{flag} {word}: {field} does not change what is learned; remove it")
    return field, text


def _read_value(text: str, where: str) -> Any:  # noqa: ANN401
    """Return a value as YAML reads it, but with numbers such as 1e-3, and None."""
    if text == "None":
        return None
    if text in ("on", "off", "yes", "no"):  # settings, which YAML takes for booleans
        return text
    try:
        value = yaml.safe_load(text)
    except Exception:  # odd dates or nesting can raise nearly anything
        raise UserError(f"{where}: {text!r} is not a value") from None
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _check_type(experiment: Experiment, field: str, value: object, flag: str) -> None:
    """Raise UserError if a value has the wrong type, whatever the other fields are."""
    where = f"{flag} {field}={format_value(value)}"
    try:
        override(experiment, {field: value}, where)
    except UserError as error:
        if f": {field}: Input should" in str(error):
            raise


def _check_fields(fields: list[str], flag: str) -> None:
    """Raise UserError if a field is named twice."""
    for field in fields:
        if fields.count(field) > 1:
            raise UserError(f"{flag} names {field} twice: write all of its values after one =")
