"""The operations of RandAugment and TrivialAugment, compared with torchvision image by image."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from associative_transformer.data.augment import _draw_policy
from associative_transformer.data.augmentation import NUM_LEVELS, Augmentation, Policy
from associative_transformer.data.operations import (
    NAMES,
    SIGNED,
    apply_operations,
    list_levels,
    to_values,
)

POLICIES = {"trivialaugment": v2.TrivialAugmentWide, "randaugment": v2.RandAugment}
SIZE = (14, 18)
TIES = 0.05
"""Share of pixels between two others, of which torchvision, in float32, may pick another one."""


@pytest.fixture(scope="module")
def images() -> Tensor:
    noise = torch.randint(256, (3, 3, *SIZE), dtype=torch.uint8)
    smooth = v2.functional.resize(torch.randint(60, 200, (3, 3, 4, 4), dtype=torch.uint8), SIZE)
    return torch.cat([noise, smooth])


def levels_of(policy: str, name: str) -> Tensor:
    magnitudes = POLICIES[policy]._AUGMENTATION_SPACE[name][0](NUM_LEVELS, *SIZE)
    return torch.zeros(NUM_LEVELS) if magnitudes is None else magnitudes.float()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_has_the_operations_and_strengths_of_torchvision(policy: str) -> None:
    space = POLICIES[policy]._AUGMENTATION_SPACE
    assert set(space) == set(NAMES)
    for code, name in enumerate(NAMES):
        assert space[name][1] == bool(SIGNED[code])
        scale = 255 if name == "Solarize" else 1
        assert torch.equal(list_levels(policy, *SIZE)[code], levels_of(policy, name) * scale)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("policy", POLICIES)
def test_an_operation_gives_the_image_of_torchvision(
    policy: str, name: str, images: Tensor
) -> None:
    twin, code = POLICIES[policy](), NAMES.index(name)
    for level in range(0, NUM_LEVELS, 3):
        for is_negative in (False, True) if SIGNED[code] else (False,):
            magnitude = float(levels_of(policy, name)[level]) * (-1 if is_negative else 1)
            expected = torch.stack(
                [
                    twin._apply_image_or_video_transform(
                        image, name, magnitude, twin.interpolation, twin._fill
                    )
                    for image in images
                ]
            )
            codes = torch.full((len(images),), code)
            strength = list_levels(policy, *SIZE)[code, level].expand(len(images))
            values = to_values(codes, strength, torch.full_like(codes, is_negative).bool())
            difference = (apply_operations(images, codes, values).int() - expected.int()).abs()
            assert (difference > 0).float().mean() < TIES
            if name not in ("ShearX", "ShearY", "Rotate"):
                assert difference.max() <= (1 if name in ("Color", "Sharpness") else 0)


def test_each_image_of_a_batch_gets_its_own_operation_and_value(images: Tensor) -> None:
    codes = torch.tensor([NAMES.index(n) for n in ("Rotate", "Solarize", "Identity")] * 2)
    values = torch.tensor([30.0, 100.0, 0.0, -50.0, 90.0, 0.0])
    changed = apply_operations(images, codes, values)
    for row in range(6):
        part = slice(row, row + 1)
        alone = apply_operations(images[part], codes[part], values[part])
        assert torch.equal(changed[part], alone)
        assert torch.equal(alone, images[part]) == (row % 3 == 2)
    assert torch.equal(changed[1], v2.functional.solarize(images[1], 100.0))


@pytest.mark.parametrize("side", [1, 2, 3])
def test_every_operation_accepts_tiny_images(side: int) -> None:
    images = torch.randint(256, (len(NAMES), 3, side, side), dtype=torch.uint8)
    changed = apply_operations(images, torch.arange(len(NAMES)), torch.ones(len(NAMES)))
    assert changed.shape == images.shape


def draw(policy: Policy, **settings: int) -> tuple[Tensor, Tensor]:
    augmentation = Augmentation(policy=policy, **settings)
    return _draw_policy(augmentation, 20_000, (32, 32), np.random.SeedSequence(3))


def test_trivialaugment_draws_one_operation_of_any_strength_and_both_signs() -> None:
    codes, values = draw("trivialaugment")
    assert codes.shape == (20_000, 1)
    assert (codes.flatten().bincount() / 20_000).sub(1 / len(NAMES)).abs().max() < 0.01
    degrees = values[codes == NAMES.index("Rotate")]
    assert len(degrees.abs().unique()) == NUM_LEVELS
    assert degrees.abs().max() == 135 and (degrees > 0).float().mean().sub(0.5).abs() < 0.06


def test_randaugment_draws_operations_of_one_strength() -> None:
    codes, values = draw("randaugment", num_ops=3, magnitude=30)
    assert codes.shape == (20_000, 3)
    assert values[codes == NAMES.index("Rotate")].unique().tolist() == [-30, 30]
    assert values[codes == NAMES.index("Brightness")].unique().sub(1).abs().unique().numel() <= 2
    assert (codes[:, 0] == codes[:, 1]).float().mean().sub(1 / len(NAMES)).abs() < 0.01
