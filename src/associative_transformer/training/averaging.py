"""An exponential moving average of the weights, for evaluation and for the saved model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn


class WeightAverage:
    """The moving average of the weights of a model (Polyak and Juditsky 1992).

    After good step n, counted from 1:  average <- d average + (1 - d) weights,  with
    d = min(decay, (1 + n) / (10 + n)), so that the first steps do not keep the initial weights.

    Only parameters are averaged. A memory of the batch is a moving average already: with averaged
    weights, the model uses its current memory. So it does with the statistics of a BatchNorm.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.averages = [weight.detach().clone() for weight in self.weights]
        device = self.weights[0].device
        self.num_updates = torch.zeros((), dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, is_bad: Bool[Tensor, ""]) -> None:
        """Include the current weights, unless `is_bad`."""
        self.num_updates += ~is_bad
        n = self.num_updates
        decay = ((1 + n) / (10 + n)).clamp(max=self.decay)
        share = torch.where(is_bad, 0.0, 1 - decay)
        for average, weight in zip(self.averages, self.weights, strict=True):
            average.lerp_(weight, share.to(average.dtype))

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights of the model with their averages."""
        for average, weight in zip(self.averages, self.weights, strict=True):
            current = weight.clone()
            weight.copy_(average)
            average.copy_(current)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let the model have the averaged weights for the time of a `with` block."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def state_dict(self) -> dict[str, Any]:
        """Return the averages, to be saved in a checkpoint."""
        return {"averages": self.averages, "num_updates": self.num_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the averages. Raises ValueError if they are those of another model."""
        shapes = [average.shape for average in state["averages"]]
        if shapes != [average.shape for average in self.averages]:
            raise ValueError("the averaged weights are those of another model")
        for average, saved in zip(self.averages, state["averages"], strict=True):
            average.copy_(saved)
        self.num_updates.copy_(state["num_updates"])
