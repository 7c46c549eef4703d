"""The base class of all models: one configuration, saved and loaded strictly."""

import contextlib
from collections.abc import Hashable
from dataclasses import Field
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Protocol, TypeVar, get_type_hints

from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from pydantic import TypeAdapter
from torch import nn

from associative_transformer.interface import UserError

Model = TypeVar("Model", bound="PretrainedModel")

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

        Takes the keyword arguments of `PyTorchModelHubMixin.from_pretrained`. The configuration,
        nested fields included, is validated strictly and every weight must be present; the mixin
        alone leaves nested fields as dictionaries and ignores missing weights.
        """
        path = pretrained_model_name_or_path
        config = TypeAdapter(cls.config_class()).validate_json(read_config(path, **kwargs))
        with contextlib.redirect_stdout(None):  # the mixin prints its progress
            return super().from_pretrained(path, **{"config": config, "strict": True, **kwargs})

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

    def reference_parameters(self) -> int:
        """Count parameters as the paper's table does, including those the reference never uses."""
        return sum(parameter.numel() for parameter in self.parameters())


def read_config(path: str | Path, **options: Any) -> bytes:  # noqa: ANN401
    """Read `config.json` from a folder, or from the hub with the options of `from_pretrained`.

    Raises FileNotFoundError, or an error of the hub's client, if there is none.
    """
    if Path(path).is_dir():
        return (Path(path) / CONFIG_NAME).read_bytes()
    names = {"revision", "cache_dir", "force_download", "token", "local_files_only"}
    download_options = {name: value for name, value in options.items() if name in names}
    return Path(hf_hub_download(str(path), CONFIG_NAME, **download_options)).read_bytes()
