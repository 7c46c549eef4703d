"""The `config.json` of a saved model: its sizes, its images, its classes, and its weights' digest.

The sizes are fields of the model's own configuration. The other keys are those of `Description`;
files of version 0.1 have none of them.
"""

import json
from collections.abc import Hashable
from dataclasses import Field, asdict, dataclass, field, fields
from importlib.metadata import version
from math import inf
from pathlib import Path
from typing import Any, ClassVar, Protocol

from huggingface_hub import hf_hub_download
from huggingface_hub.constants import CONFIG_NAME
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from associative_transformer.files import first_error
from associative_transformer.interface import UserError
from associative_transformer.models.preprocessing import Preprocessing

DOWNLOAD_OPTIONS = {"revision", "cache_dir", "force_download", "token", "local_files_only"}


class ModelConfig(Hashable, Protocol):
    """What the configurations of all models have in common, for type checkers."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def kind(self) -> str:
        """Name of the model in a saved configuration."""

    @property
    def image_size(self) -> int | tuple[int, int]:
        """Side of square images in pixels, or height and width."""

    @property
    def num_channels(self) -> int:
        """Channels of the images."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Description:
    """What `config.json` says in addition to the sizes; labels have the keys of transformers."""

    preprocessing: Preprocessing | None = None
    """How images are prepared; None if that is not known."""
    id2label: dict[str, str] = field(default_factory=dict)
    """The name of each class, by its index; empty if the names are not known."""
    label2id: dict[str, int] = field(default_factory=dict)
    """The index of each class, by its name."""
    package_version: str = ""
    """Version of this package that saved the model."""
    weights_digest: str | None = None
    """SHA-256 of the file of the weights, in hexadecimal digits; None: not checked."""
    temperature: float | None = None
    """Divides the logits for calibrated probabilities; None, and not written: not fitted."""

    def __post_init__(self) -> None:
        numbers = [str(i) for i in range(len(self.id2label))]
        if sorted(self.id2label, key=lambda x: (len(x), x)) != numbers:
            raise ValueError("id2label must have the keys 0, 1, and so on")
        if self.label2id != {name: int(number) for number, name in self.id2label.items()}:
            raise ValueError("id2label and label2id must contain the same classes")
        if self.temperature is not None and not 0 < self.temperature < inf:
            raise ValueError(f"temperature must be a positive number, not {self.temperature}")

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes in order; None if they are not known."""
        names = tuple(self.id2label[str(i)] for i in range(len(self.id2label)))
        return names or None


KEYS = tuple(each.name for each in fields(Description))


def write_config(
    config: Any,  # noqa: ANN401
    preprocessing: Preprocessing | None,
    class_names: tuple[str, ...] | None,
    weights_digest: str,
    temperature: float | None = None,
) -> bytes:
    """Return the content of `config.json`."""
    names = class_names or ()
    described = Description(
        preprocessing,
        {str(i): name for i, name in enumerate(names)},
        {name: i for i, name in enumerate(names)},
        version("associative-transformer"),
        weights_digest,
        temperature,
    )
    values = asdict(config) | asdict(described)
    if temperature is None:  # earlier versions do not know the key
        del values["temperature"]
    return json.dumps(values, indent=2, sort_keys=True).encode()


def split_config(path: str | Path, text: bytes) -> tuple[bytes, Description]:
    """Return the model's own configuration, which is not checked, and the description.

    Raises UserError if the description is invalid.
    """
    try:
        values = json.loads(text)
        described = {key: values.pop(key) for key in KEYS if key in values}
    except (
        ValueError,
        RecursionError,
        AttributeError,
        TypeError,
    ):  # the check of the sizes reports it
        return text, Description()
    try:
        return json.dumps(values).encode(), TypeAdapter(Description).validate_python(described)
    except ValidationError as error:
        raise UserError(f"{path}: {first_error(error, CONFIG_NAME)}") from None


def read_config(path: str | Path, **options: Any) -> bytes:  # noqa: ANN401
    """Read `config.json` from a folder, or from the hub with the options of `from_pretrained`.

    Raises UserError if it cannot be read.
    """
    used = {name: value for name, value in options.items() if name in DOWNLOAD_OPTIONS}
    try:
        if Path(path).is_dir():
            return (Path(path) / CONFIG_NAME).read_bytes()
        return Path(hf_hub_download(str(path), CONFIG_NAME, **used)).read_bytes()
    except Exception as error:  # the hub's client raises errors from many libraries
        raise not_loaded(path, error) from error


def not_loaded(path: str | Path, error: Exception) -> UserError:
    """Return the error for a model that cannot be read."""
    reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
    if isinstance(error, OSError) and error.filename:
        reason = f"{Path(error.filename).name}: {error.strerror}"
    if Path(path).is_dir():
        return UserError(f"cannot load the model in {path} ({reason}): save it there again")
    return UserError(
        f"{path} is not a folder, and no model of that name can be loaded from the Hugging Face "
        f"hub ({reason}): pass a folder that `save_pretrained` has written, or check the name and "
        "the network"
    )
