"""The residual network against blocks of torchvision with the same weights."""

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock

from associative_transformer.models.resnet import RESNET_20, ResidualBlock, ResNet, ResNetConfig

NAMES = {
    "norm": "bn",
    "shortcut.0": "downsample.0",
    "shortcut.1": "downsample.1",
}


def block_of_torchvision(block: ResidualBlock) -> BasicBlock:
    in_dim, out_dim = block.conv1.in_channels, block.conv1.out_channels
    stride = block.conv1.stride[0]
    shortcut = None
    if in_dim != out_dim:
        shortcut = nn.Sequential(
            nn.Conv2d(in_dim, out_dim, 1, stride, bias=False), nn.BatchNorm2d(out_dim)
        )
    theirs = BasicBlock(in_dim, out_dim, stride, shortcut)
    weights = {}
    for name, value in block.state_dict().items():
        for ours, other in NAMES.items():
            name = name.replace(ours, other)
        weights[name] = value
    theirs.double().load_state_dict(weights)
    return theirs


def test_the_network_equals_blocks_of_torchvision_in_training_and_evaluation() -> None:
    model = ResNet(ResNetConfig(image_size=16, num_classes=5, conv_dim=4, num_blocks=2)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    images = torch.randn(6, 3, 16, 16, dtype=torch.float64)
    for is_training in (True, False):
        model.train(is_training)
        blocks = [
            block_of_torchvision(block).train(is_training) for block in model.residual_blocks
        ]
        x = nn.functional.conv2d(images, model.stem[0].weight, padding=1)
        norm = model.stem[1]
        statistics = (None, None) if is_training else (norm.running_mean, norm.running_var)
        x = nn.functional.batch_norm(
            x, *statistics, norm.weight, norm.bias, is_training, eps=norm.eps
        ).relu()
        for block in blocks:
            x = block(x)
        logits = x.mean(dim=(2, 3)) @ model.head.weight.T + model.head.bias
        torch.testing.assert_close(model(images).logits, logits, rtol=1e-12, atol=1e-12)


def test_resnet_20_has_twenty_layers_and_the_known_size() -> None:
    """He et al. give 0.27 M; the projections of option B add 2,560 weights and 192 of norms."""
    model = ResNet(RESNET_20)
    maps = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(maps) + 1 == 20
    assert sum(p.numel() for p in model.parameters()) == 269_722 + 2_560 + 192
    x = torch.zeros(1, 3, 32, 32)
    sides = [(x := block(x)).shape[-1] for block in [model.stem, *model.eval().residual_blocks]]
    assert sides == [32] * 4 + [16] * 3 + [8] * 3
