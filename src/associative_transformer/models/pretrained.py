"""The base class of all models: one configuration, saved and loaded strictly."""

import contextlib
import math
from collections.abc import Hashable
from dataclasses import Field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, NoReturn, Protocol, TypeVar, get_type_hints

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from torch import nn

from associative_transformer.balance import LogitsOnly, LossScale
from associative_transformer.files import first_error
from associative_transformer.interface import UserError
from associative_transformer.models.initialize import Initialization, initialize
from associative_transformer.workspace import GlobalWorkspace

Model = TypeVar("Model", bound="PretrainedModel")

DOWNLOAD_OPTIONS = {"revision", "cache_dir", "force_download", "token", "local_files_only"}
OPTIONS = DOWNLOAD_OPTIONS | {"config", "map_location", "strict"}
SIZES = ("num_classes", "image_size", "num_channels")
MARGIN = 2**16  # bytes by which a model may exceed twice the size of its file

MODEL_CARD = """---
{{ card_data }}
---

An image model of the Python package `associative_transformer`, a reference implementation of the
[Associative Transformer]({{ paper_url }}). Its sizes are in `config.json`.

```python
from associative_transformer import load_model

model = load_model("PATH")  # this folder, or its name on the hub; in evaluation mode
logits, _ = model(images)   # images (batch, channels, height, width), normalized as in training
# a model with a `question_dim` above 0 takes model(images, questions)
```
"""


class ModelConfig(Hashable, Protocol):
    """What the configurations of all models have in common, for type checkers."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def kind(self) -> str:
        """Name of the model in a saved configuration."""

    @property
    def image_size(self) -> int:
        """Height and width of the images in pixels."""

    @property
    def num_channels(self) -> int:
        """Channels of the images."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""


class WeightCount(NamedTuple):
    """How many numbers a model has; infinite if torch cannot allocate them."""

    trained: int | float  # parameters
    stored: int | float  # with memories and other buffers


class PretrainedModel(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="associative_transformer",
    paper_url="https://arxiv.org/abs/2309.12862",
    license="mit",
    pipeline_tag="image-classification",
    model_card_template=MODEL_CARD,
):
    """Base class of models that are built from one `config`.

    `save_pretrained` and `push_to_hub` come from `huggingface_hub`'s mixin.
    """

    config: Any
    initialization: Initialization | None = None  # if the weights are those of another model

    @classmethod
    def config_class(cls) -> type[Any]:
        """Return the class of the configuration: the annotation of `config` in `__init__`."""
        return get_type_hints(cls.__init__)["config"]

    @classmethod
    def from_pretrained(
        cls: type[Model],
        pretrained_model_name_or_path: str | Path,
        **kwargs: Any,  # noqa: ANN401
    ) -> Model:
        """Load a model from a folder or from the hub, in evaluation mode.

        Takes the keyword arguments of `PyTorchModelHubMixin.from_pretrained`, and new values of
        `num_classes`, `image_size` and `num_channels`. With new values, weights that do not fit
        are adapted or drawn anew, and `initialization` says which (see `models.initialize`).

        The configuration, nested fields included, is validated strictly and every weight must be
        present; the mixin alone leaves nested fields as dictionaries and ignores missing weights.
        Raises UserError if there is no such model, if it is of another kind, if its configuration
        has an unknown field or an invalid value, or if its weights are damaged or do not fit it.
        """
        if unknown := sorted(kwargs.keys() - OPTIONS - set(SIZES)):
            raise TypeError(f"from_pretrained() takes no argument {', '.join(unknown)}")
        path = pretrained_model_name_or_path
        sizes = {name: kwargs.pop(name) for name in SIZES if name in kwargs}
        if sizes:
            return cls.from_pretrained(path, **kwargs).with_sizes(**sizes)
        options = {"config": cls._validate(path, read_config(path, **kwargs)), "strict": True}
        options |= kwargs
        try:
            cls._check_file(path, options["config"], options["strict"])
            with contextlib.redirect_stdout(None):  # the mixin prints its progress
                return super().from_pretrained(path, **options)
        except (UserError, torch.OutOfMemoryError, MemoryError):
            raise
        except SafetensorError as error:
            raise UserError(
                f"{path}: {SAFETENSORS_SINGLE_FILE} is damaged ({error}): copy it again"
            ) from error
        except (RuntimeError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{path}: the weights do not fit config.json ({reason}): copy both files again"
            ) from error
        except Exception as error:  # the hub's client raises errors from many libraries
            raise _not_loaded(path, error) from error

    def with_sizes(self: Model, **sizes: int) -> Model:
        """Return a new model with other sizes that starts from the weights of this one.

        `sizes` are fields of the configuration. The new model is in the mode of this one.
        """
        model = type(self)(replace(self.config, **sizes))
        model.initialization = initialize(model, self)
        return model.train(self.training)

    @classmethod
    def _validate(cls, path: str | Path, text: bytes) -> Any:  # noqa: ANN401
        """Return the configuration; raise UserError if it is not one of this model."""
        try:
            return TypeAdapter(cls.config_class()).validate_json(text)
        except ValidationError as error:
            kinds = [str(e["input"]) for e in error.errors() if e["loc"] == ("kind",)]
            if not kinds:
                raise UserError(f"{path}: {first_error(error, CONFIG_NAME)}") from None
            raise UserError(
                f"{path} contains a model of kind {kinds[0]:.40}, which {cls.__name__} cannot "
                "load: use load_model, which finds the class"
            ) from None

    @classmethod
    def _check_file(cls, path: str | Path, config: Any, is_strict: bool) -> None:  # noqa: ANN401
        """Raise an error if the file of the weights is missing or too small for the model."""
        file = Path(path) / SAFETENSORS_SINGLE_FILE
        if not Path(path).is_dir():
            return  # on the hub
        if not file.is_file():
            raise UserError(f"{path} has no {file.name}: copy it there, or save the model again")
        size, available = 4 * cls.count_weights(config).stored, file.stat().st_size
        if is_strict and size > 2 * available + MARGIN:  # twice: it may be bfloat16
            raise RuntimeError(f"it describes {size:,} bytes, but {file} has {available:,}")

    @classmethod
    def count_weights(cls, config: Any) -> WeightCount:  # noqa: ANN401
        """Count the weights of a configuration of this model without allocating them.

        For a deep model, the numbers are extrapolated from one and two layers.
        """
        depth = getattr(config, "depth", 1)
        if depth > 2 and "depth" in {field.name for field in fields(config)}:
            one, two = (cls.count_weights(replace(config, depth=layers)) for layers in (1, 2))
            if math.inf in one:
                return one
            trained, stored = (a + (depth - 1) * (b - a) for a, b in zip(one, two, strict=True))
            return WeightCount(trained, stored)
        try:
            with torch.device("meta"):
                model = cls(config)
                parameters, state = model.parameters(), model.state_dict().values()
        except (RuntimeError, TypeError):  # a size beyond 64 bits
            return WeightCount(math.inf, math.inf)
        return WeightCount(
            sum(value.numel() for value in parameters), sum(value.numel() for value in state)
        )

    @classmethod
    def _load_as_pickle(cls, model: Any, model_file: str, *_: object) -> NoReturn:  # noqa: ANN401
        """Refuse pickled weights, which the mixin falls back to if there are no safetensors."""
        raise UserError(
            f"{model_file} may contain code and is not read: convert the weights to "
            f"{SAFETENSORS_SINGLE_FILE}"
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the weights; replace links in the folder instead of writing through them."""
        for name in (SAFETENSORS_SINGLE_FILE, "README.md"):
            if (save_directory / name).is_symlink():
                (save_directory / name).unlink()
        super()._save_pretrained(save_directory)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that weight decay must not touch, as timm calls them.

        These are the learned contents of the memories of images.
        """
        return {
            f"{name}.priors"
            for name, module in self.named_modules()
            if isinstance(module, GlobalWorkspace) and module.config.scope == "image"
        }

    def replace_config(self, config: Any) -> None:  # noqa: ANN401
        """Set the configuration that describes this model and that `save_pretrained` writes."""
        self.config = self._hub_mixin_config = config

    def logits_only(self, loss_scale: LossScale = 1.0) -> LogitsOnly:
        """Return this model for code that knows only `loss(model(x), y)`.

        It returns logits alone, and its backward pass includes the gradient of `aux_loss`, times
        `loss_scale` (see `balance.attach_loss`).
        """
        return LogitsOnly(self, loss_scale)

    def reference_parameters(self) -> int:
        """Count parameters as the paper's table does, including those the reference never uses."""
        return sum(parameter.numel() for parameter in self.parameters())


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
        raise _not_loaded(path, error) from error


def _not_loaded(path: str | Path, error: Exception) -> UserError:
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
