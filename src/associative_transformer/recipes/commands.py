"""Command lines of `ait train`."""

from collections.abc import Iterator, Mapping

from associative_transformer.experiment import Experiment, list_fields

MEASURED = "data.measured"  # computed from the training images by each run


def train_arguments(experiment: Experiment, recipe: Experiment) -> list[str]:
    """Return the arguments for `ait` to train an experiment as a recipe with overrides.

    The options set all fields in which the two differ, except a name of the form
    RECIPE+FINGERPRINT, which `ait train` derives. Raises ValueError if the recipe has another kind
    of data or model, which options cannot change.
    """
    for part in ("data", "model"):
        kind, other = getattr(experiment, part).kind, getattr(recipe, part).kind
        if kind != other:
            raise ValueError(f"{part}.kind is {kind}, but {other} in the recipe {recipe.name}")
    theirs = list_fields(recipe)
    fields = list_fields(experiment).items()
    changed = {
        name: new
        for name, new in fields
        if not name.startswith(MEASURED) and new != theirs.get(name)
    }
    if experiment.name.partition("+")[0] == recipe.name:
        changed.pop("name", None)
    return ["train", recipe.name, *format_options(changed)]


def format_options(values: Mapping[str, object]) -> list[str]:
    """Return the options that set fields, given by dotted name, to their values.

    For example, {"train.clip_norm": None, "train.lr": 0.1, "model.use_self_attention": False}
    becomes --model.no-use-self-attention --train.clip-norm None --train.lr 0.1.
    """
    return [word for name, value in sorted(values.items()) for word in _format(name, value)]


def _format(name: str, value: object) -> Iterator[str]:
    *parents, last = name.replace("data.splits.", "data.").replace("_", "-").split(".")
    prefix = "--" + ".".join([*parents, ""])
    if isinstance(value, bool):
        yield prefix + (last if value else f"no-{last}")
    elif isinstance(value, list | tuple):
        yield from (prefix + last, *map(str, value))
    elif isinstance(value, Mapping):
        yield from (prefix + last, *(str(word) for pair in value.items() for word in pair))
    elif str(value).startswith("-"):  # would look like an option
        yield f"{prefix}{last}={value}"
    else:
        yield from (prefix + last, str(value))
