"""Forward passes that activation checkpointing repeats in the backward pass.

A repeated pass must compute what the first one did, so a module whose state moves keeps the state
that each pass started from.
"""

from collections import deque
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

MAX_PASSES = 64
"""Largest number of forward passes of a module whose starting states are kept."""
SAMPLE = 64
"""Values of an input, at least, that are compared to recognize a repeated pass."""


def is_recomputing() -> bool:
    """Return whether a backward pass is running, during which checkpointing repeats passes.

    torch has no public function for this; `torch.utils.checkpoint` uses the same one. Always
    False in a compiled function.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def is_transformed() -> bool:
    """Return whether a torch.func transform is active; its tensors must not be kept.

    torch has no public function for this either. Always False in a compiled function.
    """
    is_compiling = torch.compiler.is_compiling()
    return not is_compiling and torch._C._functorch.peek_interpreter_stack() is not None


class _Pass(NamedTuple):
    sample: Float[Tensor, " N"]
    state: Float[Tensor, "..."]


class EarlierPasses:
    """The states that the latest forward passes of a module started from."""

    def __init__(self) -> None:
        self._passes: deque[_Pass] = deque(maxlen=MAX_PASSES)

    def start(
        self, x: Float[Tensor, "..."], state: Float[Tensor, "..."]
    ) -> Float[Tensor, "..."] | None:
        """Return the state from which a repeated pass with the input x starts.

        Returns None in a first pass, whose `state` is kept, and in a compiled or transformed
        function (torch.func).
        """
        if torch.compiler.is_compiling() or is_transformed():
            return None
        earlier = self.take(x) if is_recomputing() else None
        if earlier is None:
            self.add(x, state.clone())
        return earlier

    def add(self, x: Float[Tensor, "..."], state: Float[Tensor, "..."]) -> None:
        """Keep the state from which a forward pass with the input x started."""
        self._passes.append(_Pass(_sample(x), state.detach()))

    def take(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."] | None:
        """Return the state of the latest pass with this input; None if there was none.

        A pass is repeated once, so it is then forgotten.
        """
        sample = _sample(x)
        for index in range(len(self._passes) - 1, -1, -1):
            if torch.equal(self._passes[index].sample, sample):
                state = self._passes[index].state
                del self._passes[index]
                return state
        return None

    def __reduce__(self) -> tuple[type["EarlierPasses"], tuple[()]]:
        """Copy and pickle as an empty instance: passes belong to the module that computed them."""
        return EarlierPasses, ()


def _sample(x: Float[Tensor, "..."]) -> Float[Tensor, " N"]:
    """Return some numbers of a tensor, evenly spread."""
    flat = x.detach().flatten()
    return flat[:: max(1, flat.numel() // SAMPLE)].clone()
