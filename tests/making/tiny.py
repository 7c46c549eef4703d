"""A tiny configuration of every model, derived from the table of models, and a few variants."""

from dataclasses import fields, replace
from itertools import product
from typing import Any

import torch

from associative_transformer.models import MODELS, ModelConfig, build_model
from associative_transformer.models.ait import AiTConfig
from associative_transformer.models.brims import BRIMsConfig
from associative_transformer.models.coordination import CoordinationConfig, SlotsConfig
from associative_transformer.models.luna import LunaConfig
from associative_transformer.models.perceiver import FourierConfig, PerceiverConfig
from associative_transformer.models.relation_network import ConvMLPConfig, RelationNetworkConfig
from associative_transformer.models.resnet import ResNetConfig
from associative_transformer.models.set_transformer import SetTransformerConfig
from associative_transformer.models.stem import StemConfig
from associative_transformer.models.vit import ViTConfig
from associative_transformer.workspace_config import ImageMemoryConfig, WorkspaceConfig

MAX_PARAMETERS = 50_000
MEMORY = WorkspaceConfig(
    num_priors=6, prior_dim=4, num_heads=3, bottleneck=8, beta=0.7, dropout=0.0
)
IMAGE_MEMORY = WorkspaceConfig(
    scope="image",
    num_priors=3,
    prior_dim=4,
    num_heads=3,
    beta=0.7,
    image=ImageMemoryConfig(read_head_dim=8),
)
CONV_STEM = StemConfig("conv", width=8, depth=2)
PER_IMAGE: dict[str, Any] = {
    "workspace": IMAGE_MEMORY,
    "use_self_attention": False,
    "pos": "learned",
    "head": "mean",
}

SIZES: dict[str, Any] = {  # of the fields that a configuration has
    "image_size": 8,
    "patch_size": 2,
    "num_classes": 5,
    "question_dim": 0,
    "embed_dim": 24,
    "hidden_dim": 24,
    "depth": 2,
    "num_heads": 2,
    "head_dim": 8,
    "mlp_ratio": 2.0,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
SLOTS = SlotsConfig(num_slots=3, num_heads=2, key_dim=4, bottleneck=5)
CONVOLUTIONS = {"image_size": 9, "conv_dim": 6, "num_convs": 2}
OWN_SIZES: dict[type, dict[str, Any]] = {  # in addition to, or instead of, those above
    AiTConfig: {"workspace": MEMORY},
    BRIMsConfig: {
        "resolution": 4,
        "num_modules": 4,
        "module_dim": 6,
        "num_active": 2,
        "key_dim": 4,
        "num_comm_heads": 2,
        "comm_dim": 4,
    },
    ConvMLPConfig: CONVOLUTIONS,
    CoordinationConfig: {"slots": SLOTS},
    LunaConfig: {"num_packed": 3},
    PerceiverConfig: {
        "fourier": FourierConfig(num_bands=3),
        "num_latents": 5,
        "latent_dim": 24,
        "cross_dim": 8,
    },
    RelationNetworkConfig: CONVOLUTIONS | {"num_relation_layers": 2},
    ResNetConfig: {"conv_dim": 4, "num_blocks": 1},
    SetTransformerConfig: {"num_inducing": 3},
}


def count_parameters(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(config).parameters())


def tiny(config_class: type[Any], **changes: Any) -> Any:  # noqa: ANN401
    """Return a configuration whose model is built and trained in milliseconds.

    Raises AssertionError with the name of the model if the sizes above do not fit it.
    """
    names = {field.name for field in fields(config_class)}
    sizes = {name: size for name, size in SIZES.items() if name in names}
    name = MODELS[config_class].__name__
    remedy = f"give {name} sizes of its own in tests/making/tiny.py"
    try:
        config = config_class(**sizes | OWN_SIZES.get(config_class, {}) | changes)
    except ValueError as error:
        raise AssertionError(f"{name} has no tiny configuration ({error}): {remedy}") from error
    size = count_parameters(config)
    assert size <= MAX_PARAMETERS, f"{name} is not tiny with {size:,} parameters: {remedy}"
    return config


TINY: dict[str, Any] = {config.kind: config for config in map(tiny, MODELS)}
"""The tiny configuration of each model of the table, by its kind."""

QUESTION_DIM = 7
VARIANTS: dict[str, Any] = {
    "ait-image": tiny(AiTConfig, **PER_IMAGE),
    "ait-image-attention": tiny(AiTConfig, **PER_IMAGE | {"use_self_attention": True}),
    "ait-image-flatten": tiny(AiTConfig, **PER_IMAGE | {"head": "flatten", "pos": "none"}),
    "ait-image-class-token": tiny(AiTConfig, **PER_IMAGE | {"head": "cls"}),
    "ait-image-head-question": tiny(
        AiTConfig, **PER_IMAGE | {"head": "question", "question_dim": QUESTION_DIM}
    ),
    "ait-image-more-priors": tiny(
        AiTConfig,
        **PER_IMAGE
        | {
            "workspace": replace(
                IMAGE_MEMORY,
                num_priors=6,
                bottleneck=None,
                num_steps=2,
                image=ImageMemoryConfig(read_head_dim=12, use_read_norm=False),
            )
        },
    ),
    "ait-image-competition-dropout": tiny(
        AiTConfig,
        **PER_IMAGE
        | {
            "use_output_norm": False,
            "workspace": replace(
                IMAGE_MEMORY,
                bottleneck=5,
                competition="priors",
                center_values=True,
                balance_weight=0.1,
                dropout=0.2,
            ),
        },
    ),
    "ait-competition": tiny(
        AiTConfig, workspace=replace(MEMORY, competition="priors", center_values=True)
    ),
    "ait-mean": tiny(AiTConfig, head="mean"),
    "ait-class-token": tiny(AiTConfig, head="cls"),
    "ait-head-question": tiny(AiTConfig, head="question", question_dim=QUESTION_DIM),
    "ait-without-output-norm": tiny(AiTConfig, use_output_norm=False),
    "ait-without-read": tiny(AiTConfig, read="none"),
    "ait-conv-stem": tiny(AiTConfig, stem=CONV_STEM),
    "vit-mean": tiny(ViTConfig, head="mean"),
    "vit-conv-stem": tiny(ViTConfig, stem=CONV_STEM),
    "vit-head-question": tiny(ViTConfig, head="question", question_dim=QUESTION_DIM),
    "vit-output-norm": tiny(ViTConfig, use_output_norm=True),
    "coordination-unshared-soft": tiny(
        CoordinationConfig, share_layers=False, slots=replace(SLOTS, bottleneck=None)
    ),
    "coordination-unshared-soft-question": tiny(
        CoordinationConfig,
        share_layers=False,
        slots=replace(SLOTS, bottleneck=None),
        question_dim=QUESTION_DIM,
    ),
    "coordination-unshared-layer": tiny(
        CoordinationConfig, share_layers=False, slots=replace(SLOTS, scope="layer")
    ),
    "set-transformer-set-decoder": tiny(
        SetTransformerConfig, pool="pma", pos="none", decoder_depth=2
    ),
    "set-transformer-set-decoder-question": tiny(
        SetTransformerConfig, pool="pma", pos="none", decoder_depth=1, question_dim=QUESTION_DIM
    ),
    "set-transformer-without-positions": tiny(SetTransformerConfig, pos="none"),
    "set-transformer-one-block": tiny(SetTransformerConfig, depth=1, num_heads=1, num_inducing=1),
    "set-transformer-pooled-positions": tiny(SetTransformerConfig, pool="pma"),
    "set-transformer-decoder-without-norms": tiny(
        SetTransformerConfig, pool="pma", pos="none", decoder_depth=2, use_norm=False
    ),
    "luna-one-layer": tiny(LunaConfig, depth=1),
    **{
        f"perceiver-{tie}-{form}-dropout": tiny(
            PerceiverConfig, tie=tie, form=form, depth=3, num_selfs=2, latent_dim=16, dropout=0.3
        )
        for tie, form in product(("none", "after_first", "paper"), ("package", "paper"))
    },
}
"""Further configurations, by name: combinations of several fields."""
