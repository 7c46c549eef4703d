"""The base class of all models: one configuration, saved and loaded strictly."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_type_hints

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from jaxtyping import Float
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from associative_transformer.arguments import image_shape
from associative_transformer.balance import LogitsOnly, LossScale
from associative_transformer.files import digest_file, first_error, write_file
from associative_transformer.interface import ModelOutput, UserError
from associative_transformer.models.initialize import Initialization, copy_freezing, initialize
from associative_transformer.models.model_card import CARD, MODEL_CARD, PICTURE, SavedCard
from associative_transformer.models.preprocessing import ImageSource, Preprocessing
from associative_transformer.models.saved_config import (
    DOWNLOAD_OPTIONS,
    not_loaded,
    read_config,
    split_config,
    write_config,
)
from associative_transformer.models.weight_count import count_weights
from associative_transformer.workspace import GlobalWorkspace

Model = TypeVar("Model", bound="PretrainedModel")

OPTIONS = DOWNLOAD_OPTIONS | {"config", "map_location", "strict"}
# torch.export.save needs a name for the output; torch has no public function for this
register_output = torch.utils._pytree._register_namedtuple
register_output(ModelOutput, serialized_type_name="associative_transformer.ModelOutput")
SIZES = ("num_classes", "image_size", "num_channels")
MARGIN = 2**16  # bytes by which a model may exceed twice the size of its file


class PretrainedModel(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="associative_transformer",
    paper_url="https://arxiv.org/abs/2309.12862",
    pipeline_tag="image-classification",
    model_card_template=MODEL_CARD,
):
    """Base class of models that are built from one `config`.

    `save_pretrained` and `push_to_hub` come from `huggingface_hub`'s mixin.
    """

    config: Any
    initialization: Initialization | None = None  # if the weights are those of another model
    preprocessing: Preprocessing | None = None  # of its images, if that is known
    class_names: tuple[str, ...] | None = None  # in the order of the logits
    temperature: float | None = None  # that divides the logits for calibrated probabilities
    _digest: str | None = None  # SHA-256 of the file that the weights were read from
    _card: SavedCard | None = None  # the model card next to it

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
        are adapted or newly initialized; `initialization` says which (see `models.initialize`).

        The configuration, nested fields included, is validated strictly and every weight must be
        present; the mixin alone leaves nested fields as dictionaries and ignores missing weights.
        Raises UserError if there is no such model, if it is of another kind, if its configuration
        has an unknown field or an invalid value, or if its weights are damaged, do not fit it or,
        unless `strict` is False, have changed since they were saved.
        """
        if unknown := sorted(kwargs.keys() - OPTIONS - set(SIZES)):
            raise TypeError(f"from_pretrained() takes no argument {', '.join(unknown)}")
        path = pretrained_model_name_or_path
        sizes = {name: kwargs.pop(name) for name in SIZES if name in kwargs}
        if sizes:
            return cls.from_pretrained(path, **kwargs).with_sizes(**sizes)
        text, described = split_config(path, read_config(path, **kwargs))
        options = {"config": cls._validate(path, text), "strict": True, **kwargs}
        model = cls._load(path, options)
        if options["strict"] and described.weights_digest not in (None, model._digest):
            raise UserError(
                f"{path}: {SAFETENSORS_SINGLE_FILE} has changed since it was saved: copy it "
                f"again, or remove weights_digest from {CONFIG_NAME} if the change is intended"
            )
        model.describe(described.preprocessing, described.class_names)
        model.temperature = described.temperature
        model._card = SavedCard.read(Path(path))
        return model

    @classmethod
    def _load(cls: type[Model], path: str | Path, options: dict[str, Any]) -> Model:
        """Load the weights with the options of the mixin; raise UserError if that fails."""
        try:
            cls._check_file(path, options["config"], options["strict"])
            with contextlib.redirect_stdout(None):  # the mixin prints its progress
                # eval: huggingface_hub 1.0 leaves models from a folder in training mode
                return super().from_pretrained(path, **options).eval()
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
            raise not_loaded(path, error) from error

    def describe(
        self, preprocessing: Preprocessing | None, class_names: tuple[str, ...] | None
    ) -> None:
        """Set the preprocessing and the class names, which `save_pretrained` also writes.

        Raises UserError if that does not fit the sizes of the model.
        """
        c = self.config
        if class_names is not None and len(class_names) != c.num_classes:
            raise UserError(
                f"{len(class_names)} class names do not fit a model with {c.num_classes} classes: "
                "pass a name for each class"
            )
        if preprocessing is not None:
            size = (*preprocessing.image_size, len(preprocessing.mean))
            if size != (*image_shape(c.image_size), c.num_channels):
                raise UserError(
                    f"preprocessing to {size[0]}x{size[1]} pixels with {size[2]} channels does "
                    f"not fit a model for {'x'.join(map(str, image_shape(c.image_size)))} pixels "
                    f"with {c.num_channels} channels: change image_size, mean and std"
                )
        self.preprocessing, self.class_names = preprocessing, class_names

    def preprocess(self, images: ImageSource | Sequence[ImageSource]) -> Float[Tensor, "B C H W"]:
        """Prepare images for this model, as `ait predict` does.

        Takes a PIL image, the path of a file, or several of them; returns a batch on the CPU.
        Raises UserError if a file cannot be read, or if the model was saved without its
        preprocessing.
        """
        if self.preprocessing is None:
            raise UserError(
                "this model does not say how to prepare images: set model.preprocessing first"
            )
        return self.preprocessing(images)

    def with_sizes(self: Model, **sizes: int | tuple[int, int]) -> Model:
        """Return a new model with other sizes that starts from the weights of this one.

        `sizes` are fields of the configuration. The new model is in the mode of this one. It
        keeps the preprocessing, at its own image size, unless the number of channels changes, and
        the names of the classes unless their number changes.
        """
        weight = next(self.parameters())
        model = type(self)(replace(self.config, **sizes)).to(weight.device, weight.dtype)
        model.initialization = initialize(model, self)
        copy_freezing(self, model)
        c = model.config
        if self.preprocessing is not None and c.num_channels == self.config.num_channels:
            size = image_shape(c.image_size)
            model.preprocessing = replace(self.preprocessing, image_size=size)
        if c.num_classes == self.config.num_classes:
            model.class_names = self.class_names
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
        size, available = 4 * count_weights(cls, config).stored, file.stat().st_size
        if is_strict and size > 2 * available + MARGIN:  # twice: it may be bfloat16
            raise RuntimeError(f"it describes {size:,} bytes, but {file} has {available:,}")

    @classmethod
    def _load_as_pickle(cls, model: Any, model_file: str, *_: object) -> NoReturn:  # noqa: ANN401
        """Refuse pickled weights, which the mixin falls back to if there are no safetensors."""
        raise UserError(
            f"{model_file} may contain code and is not read: convert the weights to "
            f"{SAFETENSORS_SINGLE_FILE}"
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the weights; replace links in the folder instead of writing through them.

        A card and a picture in the folder that describe other weights are removed.
        """
        for name in (SAFETENSORS_SINGLE_FILE, CARD, PICTURE):
            if (save_directory / name).is_symlink():
                (save_directory / name).unlink()
        weights = save_directory / SAFETENSORS_SINGLE_FILE
        before = digest_file(weights) if weights.exists() else None
        super()._save_pretrained(save_directory)
        digest = digest_file(weights)
        for name in (CARD, PICTURE) if digest != before else ():
            (save_directory / name).unlink(missing_ok=True)
        if self._digest not in (None, digest):
            self.temperature = None  # it was fitted to other weights
        described = self.preprocessing, self.class_names, digest, self.temperature
        write_file(save_directory / CONFIG_NAME, write_config(self.config, *described))
        if digest != self._digest:
            self._card = None  # it describes other weights
        elif self._card is not None and self._card.picture is not None:
            write_file(save_directory / PICTURE, self._card.picture)

    def generate_model_card(
        self,
        license: str | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> ModelCard:
        """Return the card for `save_pretrained`, with a license if you choose one.

        For unchanged weights from the folder of a run, it is the card of the run.
        `save_pretrained` and `push_to_hub` take `model_card_kwargs={"license": "mit"}`.
        """
        saved = self._card
        card = super().generate_model_card(**kwargs) if saved is None else ModelCard(saved.text)
        if license is not None:
            card.data["license"] = license
        return card

    @classmethod
    def _load_as_safetensor(
        cls,
        model: Any,  # noqa: ANN401
        model_file: str,
        map_location: str,
        strict: bool,
    ) -> Any:  # noqa: ANN401
        """Load the weights and keep the digest of their file."""
        model._digest = digest_file(Path(model_file))
        return super()._load_as_safetensor(model, model_file, map_location, strict)

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
        if self.class_names is not None and len(self.class_names) != config.num_classes:
            self.class_names = None

    def logits_only(self, loss_scale: LossScale = 1.0) -> LogitsOnly:
        """Return this model for code that knows only `loss(model(x), y)`.

        It returns logits alone, and its backward pass includes the gradient of `aux_loss`, times
        `loss_scale` (see `balance.attach_loss`).
        """
        return LogitsOnly(self, loss_scale)

    def reference_parameters(self) -> int:
        """Count parameters as the paper's table does, including those the reference never uses."""
        return sum(parameter.numel() for parameter in self.parameters())
