"""The models: one file each, built from their configuration by `build_model`."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from associative_transformer.models.ait import (
    AIT_BASE,
    AIT_MEDIUM,
    AIT_SMALL,
    AiT,
    AiTConfig,
    load_official,
)
from associative_transformer.models.dense import DENSE_BASE, DENSE_SMALL, Dense, DenseConfig
from associative_transformer.models.relation_network import (
    CNN_MLP,
    CNN_RN,
    ConvMLP,
    ConvMLPConfig,
    RelationNetwork,
    RelationNetworkConfig,
)
from associative_transformer.models.vit import VIT_BASE, VIT_MEDIUM, VIT_SMALL, ViT, ViTConfig
from associative_transformer.pretrained import PretrainedModel, read_config

__all__ = [
    "AIT_BASE",
    "AIT_MEDIUM",
    "AIT_SMALL",
    "CNN_MLP",
    "CNN_RN",
    "DENSE_BASE",
    "DENSE_SMALL",
    "VIT_BASE",
    "VIT_MEDIUM",
    "VIT_SMALL",
    "AiT",
    "AiTConfig",
    "ConvMLP",
    "ConvMLPConfig",
    "Dense",
    "DenseConfig",
    "ModelConfig",
    "RelationNetwork",
    "RelationNetworkConfig",
    "ViT",
    "ViTConfig",
    "build_model",
    "load_model",
    "load_official",
]

ModelConfig = Annotated[
    AiTConfig | ViTConfig | RelationNetworkConfig | ConvMLPConfig | DenseConfig,
    Field(discriminator="kind"),
]

_CLASSES: dict[type, type[PretrainedModel]] = {
    AiTConfig: AiT,
    ViTConfig: ViT,
    RelationNetworkConfig: RelationNetwork,
    ConvMLPConfig: ConvMLP,
    DenseConfig: Dense,
}


def build_model(config: ModelConfig) -> PretrainedModel:
    """Build the model that the configuration describes, freshly initialized."""
    return _CLASSES[type(config)](config)


def load_model(path: str | Path, **options: Any) -> PretrainedModel:  # noqa: ANN401
    """Load any model of this package from a folder or from the hub, in evaluation mode.

    Takes the options of `PretrainedModel.from_pretrained`. Raises ValueError where the
    configuration is of no known kind.
    """
    text = read_config(path, **options)
    config: ModelConfig = TypeAdapter(ModelConfig).validate_json(text)
    return _CLASSES[type(config)].from_pretrained(path, **options)
