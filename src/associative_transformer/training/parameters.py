"""Which parameters are trained, with which share of the learning rate and of the weight decay."""

from collections.abc import Callable
from typing import Any

from torch import nn

from associative_transformer.interface import UserError
from associative_transformer.optimization import DecayOn, Freeze
from associative_transformer.workspace import GlobalWorkspace


def freeze(model: nn.Module, frozen: Freeze) -> None:
    """Exclude part of a model from training.

    Raises UserError if the model does not have that part.
    """
    if frozen == "backbone":
        model.requires_grad_(False)
        _classifier(model).requires_grad_(True)
    if frozen == "memory":
        for workspace in _workspaces(model):
            if workspace.config.scope == "image":
                workspace.priors.requires_grad_(False)
                continue
            workspace.freeze()
            for name, parameter in workspace.named_parameters():
                if not name.startswith(("to_attractor.", "reader.")):  # only the write uses it
                    parameter.requires_grad_(False)


def set_training_mode(model: nn.Module, frozen: Freeze) -> None:
    """Set a model to training mode, but a frozen backbone to evaluation mode."""
    model.train(frozen != "backbone")
    if frozen == "backbone":
        _classifier(model).train()


def parameter_groups(
    model: nn.Module,
    layer_decay: float | None = None,
    decay_on: DecayOn = "all",
    is_chosen: Callable[[str, nn.Parameter], bool] = lambda name, parameter: True,
) -> list[dict[str, Any]]:
    """Return the chosen parameters to train, in groups with the same settings.

    Weight decay does not touch those that `model.no_weight_decay()` names and, if `decay_on` is
    "matrices", those with fewer than two dimensions, such as biases. With `layer_decay`, the
    learning rate of a group is multiplied by its `lr_scale`: 1 for the head, `layer_decay` for the
    last block, its square for the one before, and so on down to the embedding (as in BEiT: Bao et
    al. 2022, arXiv 2106.08254). Raises UserError if `layer_decay` is set and the model has no
    blocks.
    """
    exempt: set[str] = getattr(model, "no_weight_decay", set)()
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    trained = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    last = max(0 if layer_decay is None else _layer_of(name, model) for name, _ in trained)
    for name, value in trained:
        if not is_chosen(name, value):
            continue
        layer = 0 if layer_decay is None else _layer_of(name, model)
        is_exempt = name in exempt or (decay_on == "matrices" and value.ndim < 2)
        group = groups.setdefault((layer, is_exempt), {"params": []})
        group["params"].append(value)
    for (layer, is_exempt), group in groups.items():
        if is_exempt:
            group["weight_decay"] = 0.0
        if layer_decay is not None:
            group["lr_scale"] = layer_decay ** (last - layer)
    return [groups[key] for key in sorted(groups)]


def is_hidden_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Return whether a parameter is a matrix of a block, which Muon can train."""
    return name.startswith("blocks.") and parameter.ndim == 2


def _classifier(model: nn.Module) -> nn.Module:
    """Return the linear map to the logits."""
    head = getattr(model, "head", nn.Identity())
    maps = [module for module in head.modules() if isinstance(module, nn.Linear)]
    if not maps:
        raise UserError(
            f"--train.freeze backbone: {type(model).__name__} has no head to train alone; choose "
            "another model or another --train.freeze"
        )
    return maps[-1]


def _workspaces(model: nn.Module) -> list[GlobalWorkspace]:
    workspaces = [each for each in model.modules() if isinstance(each, GlobalWorkspace)]
    if not workspaces:
        raise UserError(
            f"--train.freeze memory: {type(model).__name__} has no memory; choose another model "
            "or another --train.freeze"
        )
    return workspaces


def _layer_of(name: str, model: nn.Module) -> int:
    """Return the layer of a parameter: 0 for the embedding, then the blocks, then the head."""
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.ModuleList):
        raise UserError(
            f"--train.layer-decay: {type(model).__name__} has no list of blocks; leave it out, or "
            "choose another model"
        )
    part, *rest = name.split(".")
    if part == "blocks":
        return int(rest[0]) + 1
    return 0 if part == "embed" else len(blocks) + 1
