"""Forward passes that activation checkpointing repeats in the backward pass.

A repeated pass must compute what the first one did, so a module whose state moves keeps the state
that each pass started from. A pass may be repeated several times: once per backward pass, and
again if checkpointed regions are nested.
"""

import warnings
from collections import deque
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

MAX_PASSES, MAX_BYTES = 1024, 2**26
"""Largest number of passes whose states are kept, and largest size of all these states."""
MIN_PASSES = 16
"""Number of passes whose states are kept whatever their size."""
SAMPLE = 64
"""Values of an input, at least, that are compared to recognize a repeated pass."""


def is_recomputing() -> bool:
    """Return whether a backward pass is running, during which checkpointing repeats passes.

    torch has no public function for this; `torch.utils.checkpoint` uses the same one. Always
    False in a compiled function.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def may_be_repeated() -> bool:
    """Return whether a pass may be inside of a checkpointed region.

    There, `torch.utils.checkpoint` has hooks on saved tensors or, if it is reentrant, has turned
    gradients off. torch has no public function to find the hooks.
    """
    if not torch.is_grad_enabled():
        return True
    find_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return find_hooks is None or find_hooks(True) is not None


def is_transformed() -> bool:
    """Return whether a torch.func transform is active; its tensors must not be kept.

    torch has no public function for this either. Always False in a compiled function.
    """
    is_compiling = torch.compiler.is_compiling()
    return not is_compiling and torch._C._functorch.peek_interpreter_stack() is not None


@dataclass(eq=False)
class _Pass:
    shape: torch.Size
    key: Int[Tensor, " N"]
    state: Float[Tensor, "..."]
    has_grad: bool
    task: int = -1  # the backward pass in which it was repeated last


class EarlierPasses:
    """The states that the latest forward passes of a module started from."""

    def __init__(self) -> None:
        self._passes: deque[_Pass] = deque()

    def start(
        self, x: Float[Tensor, "..."], state: Float[Tensor, "..."]
    ) -> Float[Tensor, "..."] | None:
        """Return the state from which a repeated pass with the input x starts.

        Returns None in a first pass, whose `state` is kept if the pass may be repeated, and in a
        compiled or transformed function (torch.func).
        """
        if torch.compiler.is_compiling() or is_transformed():
            return None
        if is_recomputing() and (earlier := self.take(x)) is not None:
            return earlier
        if may_be_repeated():
            self.add(x, state)
        return None

    def add(self, x: Float[Tensor, "..."], state: Float[Tensor, "..."]) -> None:
        """Keep a copy of the state from which a forward pass with the input x started."""
        kept = state.detach().clone()
        self._passes.append(_Pass(x.shape, _key(x), kept, torch.is_grad_enabled()))
        limit = min(MAX_PASSES, MAX_BYTES // max(kept.nbytes, 1))
        while len(self._passes) > max(limit, MIN_PASSES):
            self._passes.popleft()

    def take(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."] | None:
        """Return the state of an earlier pass with this input; None without any such pass.

        Of several with the same input, it is the latest that has not been repeated in this
        backward pass; passes with gradients come first. If only the input differs, which means
        that something is not deterministic, it is the latest state, with a warning.
        """
        task = torch._C._current_graph_task_id()
        alike = [p for p in reversed(self._passes) if _is_alike(p, x)]
        if not alike:
            return None
        found = alike
        if not (x.is_cuda and torch.cuda.is_current_stream_capturing()):  # comparing would wait
            key = _key(x)
            found = [p for p in alike if torch.equal(p.key, key)]
        if not found:
            warnings.warn(
                "a forward pass that activation checkpointing repeats got another input than the "
                "first one: the memory does not move again, but the gradient is approximate",
                stacklevel=3,
            )
            found = alike
        best = min(found, key=lambda p: (not p.has_grad, p.task == task))  # the first of equals
        best.task = task
        return best.state

    def __reduce__(self) -> tuple[type["EarlierPasses"], tuple[()]]:
        """Copy and pickle as an empty instance: passes belong to the module that computed them."""
        return EarlierPasses, ()


def _is_alike(earlier: _Pass, x: Float[Tensor, "..."]) -> bool:
    return earlier.shape == x.shape and earlier.key.device == x.device


def _key(x: Float[Tensor, "..."]) -> Int[Tensor, " N"]:
    """Return the bits of the sum of a tensor and of some of its values; NaN equals itself."""
    flat = x.detach().flatten()
    stride = max(1, flat.numel() // SAMPLE) | 1  # odd, so that widths do not divide it
    values = torch.cat([flat.sum(dtype=torch.float64)[None], flat[::stride].double()])
    return values.view(torch.int64)
