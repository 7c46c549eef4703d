"""Layers that compute in at least float32, also under autocast and in a bfloat16 model.

Dims     B any leading dims   I inputs   O outputs of a linear map   E width
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear


class Float32Linear(nn.Linear):
    """Linear map in at least float32, also under autocast and in a model cast to bfloat16.

    Every head uses it. A head costs little, and in bfloat16 the product of a wide input and a few
    classes ends the process on CPUs with AMX (torch 2.14; 49,152 inputs, 10 classes, batch 32).
    """

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(dtype)
        with without_autocast(x.device.type):
            return linear(x.to(dtype), self.weight.to(dtype), bias)


class Float32LayerNorm(nn.LayerNorm):
    """LayerNorm in at least float32."""

    def forward(self, x: Float[Tensor, "*B E"]) -> Float[Tensor, "*B E"]:
        dtype = torch.promote_types(x.dtype, torch.float32)
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        return layer_norm(x.to(dtype), self.normalized_shape, weight, bias, self.eps)


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Turn autocast off, unless the type of device does not have it (meta)."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)
