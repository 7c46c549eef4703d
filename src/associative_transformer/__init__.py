"""Associative Transformer: sparse attention through a shared, associative memory.

The public names are loaded on first use, so that importing the package does not import torch.
The models that AiT is compared with are in `associative_transformer.models`.
"""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from associative_transformer import functional as functional
    from associative_transformer.associative_mlp import AssociativeMlp as AssociativeMlp
    from associative_transformer.encoder_layer import (
        WorkspaceEncoderLayer as WorkspaceEncoderLayer,
    )
    from associative_transformer.health import memory_health as memory_health
    from associative_transformer.models import build_model as build_model
    from associative_transformer.models import load_model as load_model
    from associative_transformer.models.ait import AIT_BASE as AIT_BASE
    from associative_transformer.models.ait import AIT_MEDIUM as AIT_MEDIUM
    from associative_transformer.models.ait import AIT_SMALL as AIT_SMALL
    from associative_transformer.models.ait import AiT as AiT
    from associative_transformer.models.ait import AiTConfig as AiTConfig
    from associative_transformer.models.official import load_official as load_official
    from associative_transformer.workspace import GlobalWorkspace as GlobalWorkspace
    from associative_transformer.workspace_config import ImageMemoryConfig as ImageMemoryConfig
    from associative_transformer.workspace_config import WorkspaceConfig as WorkspaceConfig

__version__ = version("associative-transformer")

_MODULES = {
    "AIT_BASE": "models.ait",
    "AIT_MEDIUM": "models.ait",
    "AIT_SMALL": "models.ait",
    "AiT": "models.ait",
    "AiTConfig": "models.ait",
    "AssociativeMlp": "associative_mlp",
    "GlobalWorkspace": "workspace",
    "ImageMemoryConfig": "workspace_config",
    "WorkspaceConfig": "workspace_config",
    "WorkspaceEncoderLayer": "encoder_layer",
    "build_model": "models",
    "load_model": "models",
    "load_official": "models.official",
    "memory_health": "health",
}
"""The module that defines each public name."""

__all__ = ["__version__", "functional", *_MODULES]


def __getattr__(name: str) -> object:
    if name == "functional":
        return importlib.import_module(f"{__name__}.functional")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
