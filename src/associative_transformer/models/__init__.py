"""The models: one file each, built from their configuration by `build_model`."""

from functools import cache
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch.utils.flop_counter import FlopCounterMode

from associative_transformer.interface import UserError
from associative_transformer.models.ait import (
    AIT_BASE,
    AIT_MEDIUM,
    AIT_SMALL,
    AiT,
    AiTConfig,
    load_official,
)
from associative_transformer.models.brims import BRIMS, BRIMs, BRIMsConfig
from associative_transformer.models.coordination import (
    COORDINATION,
    COORDINATION_D,
    COORDINATION_DH,
    COORDINATION_H,
    Coordination,
    CoordinationConfig,
    SlotsConfig,
)
from associative_transformer.models.dense import DENSE_BASE, DENSE_SMALL, Dense, DenseConfig
from associative_transformer.models.luna import LUNA_BASE, LUNA_LRA, LUNA_SMALL, Luna, LunaConfig
from associative_transformer.models.perceiver import (
    PERCEIVER,
    PERCEIVER_IMAGENET,
    FourierConfig,
    Perceiver,
    PerceiverConfig,
)
from associative_transformer.models.pretrained import PretrainedModel, read_config
from associative_transformer.models.relation_network import (
    CNN_MLP,
    CNN_RN,
    ConvMLP,
    ConvMLPConfig,
    RelationNetwork,
    RelationNetworkConfig,
)
from associative_transformer.models.set_transformer import (
    ISAB,
    MAB,
    PMA,
    SAB,
    SET_TRANSFORMER,
    SetTransformer,
    SetTransformerConfig,
)
from associative_transformer.models.vit import VIT_BASE, VIT_MEDIUM, VIT_SMALL, ViT, ViTConfig

__all__ = [
    "AIT_BASE",
    "AIT_MEDIUM",
    "AIT_SMALL",
    "BRIMS",
    "CNN_MLP",
    "CNN_RN",
    "COORDINATION",
    "COORDINATION_D",
    "COORDINATION_DH",
    "COORDINATION_H",
    "DENSE_BASE",
    "DENSE_SMALL",
    "ISAB",
    "LUNA_BASE",
    "LUNA_LRA",
    "LUNA_SMALL",
    "MAB",
    "PERCEIVER",
    "PERCEIVER_IMAGENET",
    "PMA",
    "SAB",
    "SET_TRANSFORMER",
    "VIT_BASE",
    "VIT_MEDIUM",
    "VIT_SMALL",
    "AiT",
    "AiTConfig",
    "BRIMs",
    "BRIMsConfig",
    "ConvMLP",
    "ConvMLPConfig",
    "Coordination",
    "CoordinationConfig",
    "Dense",
    "DenseConfig",
    "FourierConfig",
    "Luna",
    "LunaConfig",
    "ModelConfig",
    "Perceiver",
    "PerceiverConfig",
    "RelationNetwork",
    "RelationNetworkConfig",
    "SetTransformer",
    "SetTransformerConfig",
    "SlotsConfig",
    "ViT",
    "ViTConfig",
    "build_model",
    "count_operations",
    "load_model",
    "load_official",
]

ModelConfig = Annotated[
    AiTConfig
    | ViTConfig
    | CoordinationConfig
    | PerceiverConfig
    | SetTransformerConfig
    | BRIMsConfig
    | LunaConfig
    | RelationNetworkConfig
    | ConvMLPConfig
    | DenseConfig,
    Field(discriminator="kind"),
]

_CLASSES: dict[type, type[PretrainedModel]] = {
    AiTConfig: AiT,
    ViTConfig: ViT,
    CoordinationConfig: Coordination,
    PerceiverConfig: Perceiver,
    SetTransformerConfig: SetTransformer,
    BRIMsConfig: BRIMs,
    LunaConfig: Luna,
    RelationNetworkConfig: RelationNetwork,
    ConvMLPConfig: ConvMLP,
    DenseConfig: Dense,
}


def build_model(config: ModelConfig) -> PretrainedModel:
    """Build the model that the configuration describes, freshly initialized."""
    return _CLASSES[type(config)](config)


@cache
def count_operations(config: ModelConfig) -> int:
    """Count the floating-point operations of one image's forward pass in training.

    Those that torch's counter knows: matrix products, convolutions and attention.
    """
    side, question_dim = config.image_size, getattr(config, "question_dim", 0)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        images = torch.empty(1, config.num_channels, side, side)
        questions = torch.empty(1, question_dim) if question_dim else None
        build_model(config)(images, questions)
    return int(counter.get_total_flops())


def load_model(path: str | Path, **options: Any) -> PretrainedModel:  # noqa: ANN401
    """Load any model of this package from a folder or from the hub, in evaluation mode.

    Takes the options of `PretrainedModel.from_pretrained`. Raises UserError where the
    configuration is of no known kind or has an unknown field or a wrong value.
    """
    text = read_config(path, **options)
    try:
        config: ModelConfig = TypeAdapter(ModelConfig).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["config.json", *map(str, first["loc"])])
        raise UserError(f"{path}: {where}: {first['msg']}") from None
    return _CLASSES[type(config)].from_pretrained(path, **options)
