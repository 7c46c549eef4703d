"""AiT as a model of Hugging Face transformers. Importing this file registers it.

>>> from transformers import AutoModelForImageClassification
>>> import associative_transformer.integrations.transformers
>>> model = AutoModelForImageClassification.from_pretrained("my-ait")  # saved by transformers

A folder saved by this package is loaded with `from_ait(load_model("runs/RECIPE/SEED"))`.

Dims     B batch   C channels   H W image side   N tokens   E token width   O classes
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, field
from pathlib import Path
from typing import Any, Literal, no_type_check

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from jaxtyping import Float, Shaped
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification
from transformers.configuration_utils import PreTrainedConfig
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature, get_size_dict
from transformers.image_transforms import to_pil_image
from transformers.image_utils import infer_channel_dimension_format
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import can_return_tuple

from associative_transformer.balance import attach_loss
from associative_transformer.files import first_error
from associative_transformer.interface import UserError
from associative_transformer.models.ait import AIT_SMALL, AiT, AiTConfig
from associative_transformer.models.initialize import copy_freezing
from associative_transformer.models.preprocessing import ImageSource, Preprocessing
from associative_transformer.models.pretrained import PretrainedModel


@no_type_check  # by jaxtyping, which does not know that the constructor takes other names too
@strict
class AiTForImageClassificationConfig(PreTrainedConfig):
    """The fields of `AiTConfig`; in files, some have the names that transformers uses.

    `stem`, `regularization` and `workspace` hold the fields of their configurations. The classes
    are `id2label` and `label2id`, or `num_labels`; there are 2 unless they are set, as in all
    configurations of transformers. The values are validated when a model is built.
    """

    model_type = "associative_transformer"
    attribute_map = {  # noqa: RUF012
        "num_classes": "num_labels",
        "embed_dim": "hidden_size",
        "depth": "num_hidden_layers",
        "num_heads": "num_attention_heads",
    }

    image_size: int | list[int] | tuple[int, ...] = AIT_SMALL.image_size
    patch_size: int = AIT_SMALL.patch_size
    num_channels: int = AIT_SMALL.num_channels
    question_dim: int = AIT_SMALL.question_dim
    pos: str = AIT_SMALL.pos
    hidden_size: int = AIT_SMALL.embed_dim
    num_hidden_layers: int = AIT_SMALL.depth
    num_attention_heads: int = AIT_SMALL.num_heads
    head_dim: int = AIT_SMALL.head_dim
    mlp_ratio: float | int = AIT_SMALL.mlp_ratio
    head: str = AIT_SMALL.head
    use_self_attention: bool = AIT_SMALL.use_self_attention
    use_output_norm: bool = AIT_SMALL.use_output_norm
    read: str = AIT_SMALL.read
    stem: dict[str, Any] = field(default_factory=dict)
    regularization: dict[str, Any] = field(default_factory=dict)
    workspace: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def get_config_dict(cls, path: str | Path, **kwargs: object) -> tuple[dict[str, Any], ...]:
        """Read `config.json`. Raises UserError if this package has written it."""
        values, kwargs = super().get_config_dict(path, **kwargs)
        if "kind" in values and "model_type" not in values:
            raise UserError(
                f"{path} was saved by this package, not by transformers: load it with "
                f"from_ait(load_model({str(path)!r}))"
            )
        return values, kwargs

    def validate_architecture(self) -> None:
        """Accept heads whose widths do not add up to the token width, unlike transformers."""

    def to_ait_config(self) -> AiTConfig:
        """Return the configuration for this package. Raises UserError if it is invalid."""
        if self.question_dim:
            raise UserError(
                f"question_dim must be 0, not {self.question_dim}: a model that answers questions "
                "is not an image classifier of transformers; use it as an AiT"
            )
        names = [name for name in AiTConfig.__dataclass_fields__ if name != "kind"]
        return _validate(AiTConfig, {name: getattr(self, name) for name in names}, "config")


class AiTForImageClassification(PreTrainedModel):
    """An `AiT` (`model.ait`) that follows the conventions of transformers.

    >>> model = AiTForImageClassification(AiTForImageClassificationConfig(num_labels=7))
    >>> model(torch.randn(2, 3, 32, 32), labels=torch.tensor([3, 6])).loss.backward()

    In training, every forward pass moves the memories once, even under gradient accumulation.
    """

    config_class = AiTForImageClassificationConfig
    base_model_prefix = "ait"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # Trainer then passes num_items_in_batch
    _no_split_modules = ("Block",)

    def __init__(self, config: AiTForImageClassificationConfig) -> None:
        super().__init__(config)
        self.ait = AiT(config.to_ait_config())
        config.update({k: v for k, v in asdict(self.ait.config).items() if isinstance(v, dict)})
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Float[Tensor, "B C H W"],
        labels: Shaped[Tensor, "B ..."] | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: Shaped[Tensor, "..."] | int | None = None,
    ) -> ImageClassifierOutput:
        """Return the logits and, with `labels`, the loss: cross-entropy plus balance loss.

        Labels follow transformers: -100 is ignored, and `config.problem_type` can select a loss
        other than cross-entropy. `num_items_in_batch` is the number of labels in all micro-batches
        of a step; the loss is then this micro-batch's share of the mean over all of them.

        In training without `labels`, the balance loss is attached to the logits, so that its
        gradient is part of any loss that is computed from them, as with label smoothing (see
        `balance.attach_loss`; a gradient scaler does not scale it).

        `hidden_states` are the tokens before the first block and after each one. `attentions`
        are not returned: use forward hooks on `ait.blocks` instead.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        parts = (self.ait.embed, *self.ait.blocks) if output_hidden_states else ()
        seen: list[Any] = []
        with ExitStack() as hooks:
            for part in parts:
                hooks.enter_context(part.register_forward_hook(lambda *io: seen.append(io[-1])))
            logits, aux_loss = self.ait(pixel_values.to(self.dtype))
        states = tuple(getattr(output, "tokens", output) for output in seen)
        count = len(logits) if labels is None else labels.ne(-100).sum()
        share = 1.0 if num_items_in_batch is None else count / num_items_in_batch
        if labels is None:
            loss, logits = None, attach_loss(logits, aux_loss, float(share))
        else:
            loss = (self.loss_function(labels, logits, self.config) + aux_loss) * share
        return ImageClassifierOutput(loss, logits, states or None)

    def init_weights(self) -> None:
        """Keep the initial weights of `AiT`, unless they are on the meta device."""
        self._is_hf_initialized = self.device.type != "meta"

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Initialize the weights that a checkpoint lacks, as in a new `AiT`."""
        weights = {} if self._is_hf_initialized else self.ait.state_dict(keep_vars=True)
        missing = [k for k, x in weights.items() if not getattr(x, "_is_hf_initialized", False)]
        drawn = AiT(self.ait.config).state_dict() if missing else {}
        for name in missing:
            weights[name].copy_(drawn[name])
        self._is_hf_initialized = True

    def _set_gradient_checkpointing(self, enable: bool = True, **_: object) -> None:
        """Recompute attention and feed-forward of all blocks, but never a workspace."""
        self.gradient_checkpointing = enable
        self.ait.set_grad_checkpointing(enable)

    def to_ait(self, processor: "AiTImageProcessor | None" = None) -> AiT:
        """Return a copy for this package, with class names and the processor's settings."""
        labels = self.config.id2label
        is_named = labels != {i: f"LABEL_{i}" for i in labels}
        names = tuple(labels[i] for i in range(len(labels))) if is_named else None
        model = _copy(self.ait)
        model.describe(processor and processor.preprocessing, names)
        return model


def from_ait(model: PretrainedModel) -> AiTForImageClassification:
    """Return a copy of an `AiT` as a model of transformers, with the names of its classes.

    `AiTImageProcessor.from_ait` returns the image processor. Raises UserError for other models.
    """
    if not isinstance(model, AiT):
        raise UserError(f"from_ait takes an AiT, not a {type(model).__name__}")
    values, names = asdict(model.config), model.class_names
    del values["kind"]
    if names is not None:
        values["id2label"] = dict(enumerate(names))
        values["label2id"] = {name: i for i, name in enumerate(names)}
    result = AiTForImageClassification(AiTForImageClassificationConfig(**values))
    result.ait = _copy(model)
    return result.train(model.training)


class AiTImageProcessor(BaseImageProcessor):
    """Prepare images as this package does in training and in `ait predict`: see `Preprocessing`.

    >>> processor = AiTImageProcessor(size=32, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    >>> processor(np.zeros((48, 64, 3), np.uint8), return_tensors="pt").pixel_values.shape
    torch.Size([1, 3, 32, 32])

    `size` is a side, or height and width. An image is a PIL image, the path of a file, or an array
    or tensor of 8-bit integers. A `pipeline` drops transparency before it calls the processor.
    """

    def __init__(
        self,
        size: dict[str, int] | int | Sequence[int],
        image_mean: Sequence[float],
        image_std: Sequence[float],
        mode: Literal["RGB", "L"] = "RGB",
        image_processor_type: str = "AiTImageProcessor",  # in preprocessor_config.json
    ) -> None:
        super().__init__()
        self.size = get_size_dict(size)
        if self.size.keys() != {"height", "width"}:
            raise ValueError(f"size must be a height and a width, not {size}")
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        self.mode = mode
        _ = self.preprocessing  # raises UserError if a value is invalid

    @classmethod
    def from_ait(cls, model: PretrainedModel) -> "AiTImageProcessor":
        """Return the image processor of a model. Raises UserError if it is not known."""
        if (p := model.preprocessing) is None:
            raise UserError("the model cannot prepare images: set model.preprocessing first")
        return cls(p.image_size, p.mean, p.std, p.mode)

    @property
    def preprocessing(self) -> Preprocessing:
        """The same settings as a model of this package stores them."""
        size = (self.size["height"], self.size["width"])
        values = {"image_size": size, "mean": self.image_mean, "std": self.image_std}
        return _validate(Preprocessing, values | {"mode": self.mode}, "preprocessor_config.json")

    def preprocess(self, images: Any, return_tensors: str | None = None) -> BatchFeature:  # noqa: ANN401
        """Return the `pixel_values` of one image or several, in lists or as a batch.

        `return_tensors` is "pt" or "np"; without it, they are a list of arrays.
        """
        pixels = self.preprocessing([_to_source(each) for each in _flatten(images)])
        data = pixels if return_tensors == "pt" else list(pixels.numpy())
        return BatchFeature({"pixel_values": data}, tensor_type=return_tensors)


def _flatten(images: Any) -> list[Any]:  # noqa: ANN401
    """Return the single images of nested lists and batches."""
    is_batch = isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4
    return [x for each in images for x in _flatten(each)] if is_batch else [images]


def _to_source(image: Any) -> ImageSource:  # noqa: ANN401
    """Return an image, which may be an array, as `Preprocessing` takes it."""
    if isinstance(image, ImageSource):
        return image
    pixels = image.numpy(force=True) if isinstance(image, Tensor) else np.asarray(image)
    if pixels.dtype != np.uint8:
        raise ValueError(
            f"arrays must be uint8, not {pixels.dtype}: scale values from 0 to 1 to 0 to 255"
        )
    pixels = pixels[None] if pixels.ndim == 2 else pixels  # gray
    layout = infer_channel_dimension_format(pixels, num_channels=(1, 3, 4))
    return to_pil_image(pixels, do_rescale=False, input_data_format=layout)


def _copy(model: AiT) -> AiT:
    """Return a new AiT with the same weights, of the same type and on the same device."""
    weight = next(model.parameters())
    copy = AiT(model.config).to(weight.device, weight.dtype)
    copy.load_state_dict(model.state_dict())
    copy_freezing(model, copy)
    return copy.train(model.training)


def _validate(kind: type, values: dict[str, Any], name: str) -> Any:  # noqa: ANN401
    """Return an instance with these values; raise UserError if one is invalid or unknown."""
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise UserError(first_error(error, name)) from None


Config, processors = AiTForImageClassificationConfig, {"torchvision": AiTImageProcessor}
AutoConfig.register(Config.model_type, Config, exist_ok=True)
AutoModelForImageClassification.register(Config, AiTForImageClassification, exist_ok=True)
AutoImageProcessor.register(Config, image_processor_classes=processors, exist_ok=True)
