"""Dynamic int8 quantization of torchao, for evaluation on a CPU."""

import copy
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from associative_transformer.data import TriangleConfig
from associative_transformer.data.triangle import TEST, TRAIN, generate_triangles
from associative_transformer.models import build_model
from associative_transformer.models.ait import AiTConfig
from associative_transformer.recipes import find_recipe
from associative_transformer.workspace_config import WorkspaceConfig
from making.tiny import TINY, VARIANTS

pytestmark = pytest.mark.interop
quantization = pytest.importorskip("torchao.quantization")

CONFIGS = {
    "ait": TINY["ait"],
    "ait-image": VARIANTS["ait-image-attention"],
    "ait-image-more-priors": VARIANTS["ait-image-more-priors"],
    "vit": TINY["vit"],
}
NUM_IMAGES, BATCH, EPOCHS = 256, 64, 8


def quantize(model: nn.Module) -> Any:  # noqa: ANN401
    """Return a copy whose linear layers have weights of 8 bits."""
    quantized = copy.deepcopy(model).eval()
    config = quantization.Int8DynamicActivationInt8WeightConfig()
    quantization.quantize_(quantized, config)
    return quantized


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_logits_of_a_quantized_model_are_close(name: str) -> None:
    model = build_model(CONFIGS[name]).eval()
    quantized, images = quantize(model), torch.randn(32, 3, 8, 8)
    layers = [module for module in quantized.modules() if isinstance(module, nn.Linear)]
    assert not any(type(layer.weight) is nn.Parameter for layer in layers)
    expected, logits = model(images).logits, quantized(images).logits
    assert not torch.equal(logits, expected)
    error = (logits - expected).norm() / expected.norm()
    assert error < 0.03
    assert torch.equal(quantized(images).logits, logits)


class Trained(NamedTuple):
    """A model that has learned its training images by heart, and triangles."""

    model: nn.Module
    images: Tensor
    labels: Tensor
    others: Tensor  # images that it was not trained on


def triangles(split: int, number: int) -> tuple[Tensor, Tensor]:
    data = generate_triangles(TriangleConfig(), split, number)
    return torch.from_numpy(data.images)[:, None] / 255, torch.from_numpy(data.labels)


@pytest.fixture(scope="module", params=["batch", "image"])
def trained(request: pytest.FixtureRequest) -> Trained:
    """Return a tiny AiT for triangles, trained in seconds."""
    config = find_recipe("triangle-ait-tiny").model
    assert isinstance(config, AiTConfig)
    if request.param == "image":
        config = replace(config, workspace=WorkspaceConfig(scope="image"))
    torch.manual_seed(0)
    model = build_model(replace(config, num_channels=1))
    images, labels = triangles(TRAIN, NUM_IMAGES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(NUM_IMAGES).split(BATCH):
            logits, aux_loss = model(images[chosen])
            optimizer.zero_grad()
            (cross_entropy(logits, labels[chosen]) + aux_loss).backward()
            optimizer.step()
    return Trained(model.eval(), images, labels, triangles(TEST, 500)[0])


@torch.no_grad()
def test_quantization_hardly_changes_what_a_trained_model_answers(trained: Trained) -> None:
    model, images, labels, others = trained
    quantized = quantize(model)
    learned = model(images).logits.argmax(dim=1) == labels
    still_right = quantized(images).logits.argmax(dim=1) == labels
    assert learned.float().mean() > 0.98
    assert abs(learned.float().mean() - still_right.float().mean()) <= 0.01
    same = model(others).logits.argmax(dim=1) == quantized(others).logits.argmax(dim=1)
    assert same.float().mean() >= 0.97  # the model is unsure about images that it has not seen
