"""Associative Transformer: sparse attention through a shared, associative memory.

The public names are loaded on first use, so that importing the package does not import torch.
"""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from associative_transformer import functional
    from associative_transformer.models import (
        AIT_BASE,
        AIT_MEDIUM,
        AIT_SMALL,
        BRIMS,
        CNN_MLP,
        CNN_RN,
        COORDINATION,
        COORDINATION_D,
        COORDINATION_DH,
        COORDINATION_H,
        DENSE_BASE,
        DENSE_SMALL,
        ISAB,
        LUNA_BASE,
        LUNA_LRA,
        LUNA_SMALL,
        MAB,
        PERCEIVER,
        PERCEIVER_IMAGENET,
        PMA,
        SAB,
        SET_TRANSFORMER,
        VIT_BASE,
        VIT_MEDIUM,
        VIT_SMALL,
        AiT,
        AiTConfig,
        BRIMs,
        BRIMsConfig,
        ConvMLP,
        ConvMLPConfig,
        Coordination,
        CoordinationConfig,
        Dense,
        DenseConfig,
        FourierConfig,
        Luna,
        LunaConfig,
        Perceiver,
        PerceiverConfig,
        RelationNetwork,
        RelationNetworkConfig,
        SetTransformer,
        SetTransformerConfig,
        SlotsConfig,
        ViT,
        ViTConfig,
        build_model,
        load_model,
        load_official,
    )
    from associative_transformer.workspace import GlobalWorkspace, WorkspaceConfig

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
    "GlobalWorkspace",
    "Luna",
    "LunaConfig",
    "Perceiver",
    "PerceiverConfig",
    "RelationNetwork",
    "RelationNetworkConfig",
    "SetTransformer",
    "SetTransformerConfig",
    "SlotsConfig",
    "ViT",
    "ViTConfig",
    "WorkspaceConfig",
    "__version__",
    "build_model",
    "functional",
    "load_model",
    "load_official",
]

__version__ = version("associative-transformer")


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "functional":
        return importlib.import_module(f"{__name__}.functional")
    home = "workspace" if "Workspace" in name else "models"
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return __all__
