"""Accuracy on changed test images, with the memory frozen or still writing.

A memory of the batch could help if the test images differ from the training images and the memory
adapts to them. To test this, `score_shifts` scores a model on changed test images. A model with a
memory of the batch is scored a second time, while its tokens keep writing (without dropout) from
batch to batch, starting from the memory at the end of training.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from associative_transformer import GlobalWorkspace
from associative_transformer.compute import Precision
from associative_transformer.data import Split
from associative_transformer.evaluate import evaluate
from associative_transformer.interface import Batch, ModelOutput

Images = Float[Tensor, "B C H W"]
Shift = Callable[[Images, torch.Generator], Images]


def add_noise(images: Images, generator: torch.Generator) -> Images:
    """Add independent normal noise to each value."""
    return images + 0.5 * torch.randn(images.shape, generator=generator)


def invert(images: Images, generator: torch.Generator) -> Images:
    """Turn bright into dark, as in a photographic negative."""
    return -images


def remove_colors(images: Images, generator: torch.Generator) -> Images:
    """Replace the channels by their mean."""
    return images.mean(dim=1, keepdim=True).expand_as(images)


def blur(images: Images, generator: torch.Generator) -> Images:
    """Blur with a Gaussian whose standard deviation is one pixel."""
    return gaussian_blur(images, [5, 5], [1.0, 1.0])


SHIFTS: dict[str, Shift] = {
    "none": lambda images, generator: images,
    "noise": add_noise,
    "negative": invert,
    "gray": remove_colors,
    "blur": blur,
}
"""Changes of normalized images, in units of the standard deviation of the pixels.

Brightness and contrast are not among them, because the LayerNorm of each patch removes both.
"""


class WritingModel(nn.Module):
    """A copy of a model whose memories of the batch keep writing in evaluation."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = deepcopy(model)

    def train(self, mode: bool = True) -> "WritingModel":
        """Set the mode of all modules but the memories, which write in both modes."""
        super().train(mode)
        for workspace in memories(self):
            workspace.training = True  # its dropout stays off
        return self

    def forward(self, images: Images, questions: Tensor | None = None) -> ModelOutput:
        return self.model(images, questions)


def memories(model: nn.Module) -> list[GlobalWorkspace]:
    """Return the workspaces of a model that have a memory of the batch."""
    workspaces = [module for module in model.modules() if isinstance(module, GlobalWorkspace)]
    return [workspace for workspace in workspaces if workspace.config.scope == "batch"]


def changed(split: Split, batch_size: int, shift: Shift) -> Iterator[Batch]:
    """Yield the batches of a split with changed images, the same each time."""
    generator = torch.Generator().manual_seed(0)
    for batch in split.eval_batches(batch_size):
        yield batch._replace(images=shift(batch.images, generator))


def score_shifts(
    model: nn.Module, split: Split, batch_size: int, num_classes: int, precision: Precision
) -> dict[str, dict[str, float]]:
    """Return the accuracy for each shift, `frozen` and, with a memory of the batch, `writing`."""
    scores: dict[str, dict[str, float]] = {}
    for name, shift in SHIFTS.items():
        models = {"frozen": model}
        if memories(model):
            models["writing"] = WritingModel(model)
        scores[name] = {
            how: evaluate(each, changed(split, batch_size, shift), num_classes, precision).accuracy
            for how, each in models.items()
        }
    return scores
