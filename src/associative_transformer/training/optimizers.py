"""The optimizers: one interface, whether one algorithm trains all weights or two share them."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from associative_transformer.interface import UserError
from associative_transformer.optimization import Optimization
from associative_transformer.training.parameters import is_hidden_matrix, parameter_groups


class Optimizer:
    """One or several optimizers that share the weights of a model.

    A step that is bad, because its gradient is not finite, changes neither weights nor moments.
    """

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all parts."""
        return [group for part in self.parts for group in part.param_groups]

    def step(self, is_bad: Bool[Tensor, ""]) -> None:
        """Update the weights unless `is_bad`, and delete the gradients.

        Only the fused AdamW checks this on the device. With the others, the step waits for it.
        """
        for part in self.parts:
            if part.defaults.get("fused"):
                # weights and moments stay unchanged if this tensor is 1
                part.found_inf = is_bad.float()  # type: ignore[attr-defined]
                part.step()
            elif not is_bad:
                part.step()
            part.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Return the moments; those of a single part as torch saves them."""
        first, *others = (part.state_dict() for part in self.parts)
        return {"parts": [first, *others]} if others else first

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the moments. Raises ValueError if they are those of another optimizer."""
        states = state.get("parts", [state])
        if len(states) != len(self.parts):
            raise ValueError("the saved moments are those of another optimizer")
        for part, saved in zip(self.parts, states, strict=True):
            part.load_state_dict(saved)

    def zero_grad(self) -> None:
        """Delete the gradients."""
        for part in self.parts:
            part.zero_grad()


def build_optimizer(model: nn.Module, train: Optimization) -> Optimizer:
    """Return the optimizer of the parameters to train.

    Raises UserError if it does not fit the model or if its library is not installed.
    """
    if train.optimizer == "muon":
        return _build_muon(model, train)
    groups = parameter_groups(model, train.layer_decay, train.decay_on)
    if train.optimizer == "lion":
        return Optimizer(_lion()(groups, train.lr, train.betas, train.weight_decay))
    return Optimizer(_adamw(groups, train))


def _adamw(groups: list[dict[str, Any]], train: Optimization) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        groups, train.lr, train.betas, weight_decay=train.weight_decay, fused=True
    )


def _lion() -> Callable[..., torch.optim.Optimizer]:
    if find_spec("timm") is None:
        raise UserError(
            "--train.optimizer lion needs timm: pip install timm, or choose another optimizer"
        )
    from timm.optim.lion import Lion

    return Lion


def _build_muon(model: nn.Module, train: Optimization) -> Optimizer:
    """Return Muon for the matrices of the blocks, and AdamW for everything else.

    Updates of Muon are scaled to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982), so that
    both use the same learning rate and weight decay.
    """
    hidden = parameter_groups(model, train.layer_decay, train.decay_on, is_hidden_matrix)
    if not hidden:
        raise UserError(
            f"--train.optimizer muon: {type(model).__name__} has no matrices in blocks to train; "
            "choose another optimizer"
        )
    others = parameter_groups(
        model, train.layer_decay, train.decay_on, lambda *each: not is_hidden_matrix(*each)
    )
    muon = torch.optim.Muon(hidden, train.lr, train.weight_decay, adjust_lr_fn="match_rms_adamw")
    return Optimizer(muon, _adamw(others, train)) if others else Optimizer(muon)
