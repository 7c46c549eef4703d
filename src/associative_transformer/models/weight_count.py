"""The number of weights of a configuration, counted without allocating them."""

import math
from dataclasses import fields, replace
from typing import Any, NamedTuple

import torch
from torch import nn


class WeightCount(NamedTuple):
    """How many numbers a model has; infinite if a size is too large for torch."""

    trained: int | float  # parameters
    stored: int | float  # with memories and other buffers


def count_weights(model_class: type[nn.Module], config: Any) -> WeightCount:  # noqa: ANN401
    """Count the weights of a model of this class.

    For a deep model, the numbers are extrapolated from one and two layers.
    """
    depth = getattr(config, "depth", 1)
    if depth > 2 and "depth" in {field.name for field in fields(config)}:
        one, two = (count_weights(model_class, replace(config, depth=layers)) for layers in (1, 2))
        if math.inf in one:
            return one
        trained, stored = (a + (depth - 1) * (b - a) for a, b in zip(one, two, strict=True))
        return WeightCount(trained, stored)
    try:
        with torch.device("meta"):
            model = model_class(config)
            parameters, state = model.parameters(), model.state_dict().values()
    except (RuntimeError, TypeError):  # a size beyond 64 bits
        return WeightCount(math.inf, math.inf)
    return WeightCount(
        sum(value.numel() for value in parameters), sum(value.numel() for value in state)
    )
