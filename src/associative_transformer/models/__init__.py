"""The models: one file each, built from their configuration by `build_model`.

Import a configuration or a named size from the model's own file:
`from associative_transformer.models.vit import VIT_SMALL, ViT`.
"""

from functools import cache, reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field, TypeAdapter, ValidationError

from associative_transformer.arguments import image_shape
from associative_transformer.files import first_error
from associative_transformer.interface import UserError

# The table of models: each line registers a model and makes it public.
from associative_transformer.models.ait import AiT as AiT
from associative_transformer.models.brims import BRIMs as BRIMs
from associative_transformer.models.coordination import Coordination as Coordination
from associative_transformer.models.dense import Dense as Dense
from associative_transformer.models.luna import Luna as Luna
from associative_transformer.models.perceiver import Perceiver as Perceiver
from associative_transformer.models.pretrained import PretrainedModel
from associative_transformer.models.relation_network import ConvMLP as ConvMLP
from associative_transformer.models.relation_network import RelationNetwork as RelationNetwork
from associative_transformer.models.resnet import ResNet as ResNet
from associative_transformer.models.saved_config import read_config, split_config
from associative_transformer.models.set_transformer import SetTransformer as SetTransformer
from associative_transformer.models.vit import ViT as ViT

_IMPORTED = [x for x in globals().values() if isinstance(x, type)]
MODELS: dict[type[Any], type[PretrainedModel]] = {
    model.config_class(): model
    for model in _IMPORTED
    if issubclass(model, PretrainedModel) and model is not PretrainedModel
}
"""Every model imported above, by the class of its configuration."""

if TYPE_CHECKING:
    from associative_transformer.models.saved_config import ModelConfig as ModelConfig
else:
    ModelConfig = Annotated[reduce(or_, MODELS), Field(discriminator="kind")]
    """The configuration of any model, as pydantic and tyro read it."""


def build_model(config: ModelConfig) -> PretrainedModel:
    """Build the model that the configuration describes, freshly initialized."""
    return MODELS[type(config)](config)


@cache
def count_operations(config: ModelConfig) -> int:
    """Count the floating-point operations of the forward pass in training, for one image.

    Includes only what torch's counter covers: matrix products, convolutions and attention.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton

    size, question_dim = image_shape(config.image_size), getattr(config, "question_dim", 0)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        images = torch.empty(1, config.num_channels, *size)
        questions = torch.empty(1, question_dim) if question_dim else None
        build_model(config)(images, questions)
    return int(counter.get_total_flops())


def load_model(path: str | Path, **options: Any) -> PretrainedModel:  # noqa: ANN401
    """Load any model of this package from a folder or from the hub, in evaluation mode.

    Takes the options of `PretrainedModel.from_pretrained` and raises UserError in the same cases,
    and if the configuration is of an unknown kind.
    """
    text, _ = split_config(path, read_config(path, **options))
    try:
        config: ModelConfig = TypeAdapter(ModelConfig).validate_json(text)
    except ValidationError as error:
        raise UserError(f"{path}: {first_error(error, 'config.json')}") from None
    return MODELS[type(config)].from_pretrained(path, **options)
