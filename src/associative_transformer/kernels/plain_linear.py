"""Which layers may be replaced by a product with their weight.

A kernel that absorbs a weight never calls the layer. Adapters (LoRA), pruning and hooks act only
if the layer is called.
"""

from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_plain(layer: nn.Module, kind: type[nn.Module] = nn.Linear) -> bool:
    """Return whether a layer is just a `kind`: not replaced, parametrized, patched or hooked."""
    if type(layer) is not kind or "forward" in layer.__dict__:
        return False
    return not any(getattr(layer, name) for name in _HOOKS)
