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
        CNN_MLP,
        CNN_RN,
        DENSE_BASE,
        DENSE_SMALL,
        VIT_BASE,
        VIT_MEDIUM,
        VIT_SMALL,
        AiT,
        AiTConfig,
        ConvMLP,
        ConvMLPConfig,
        Dense,
        DenseConfig,
        RelationNetwork,
        RelationNetworkConfig,
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
    "GlobalWorkspace",
    "RelationNetwork",
    "RelationNetworkConfig",
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
