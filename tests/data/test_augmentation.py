"""Presets of augmentation and the single settings that replace theirs."""

from pathlib import Path
from typing import Any

import pytest

from associative_transformer.data import ImagesConfig
from associative_transformer.data.augmentation import PRESETS, Augmentation, AugmentationConfig


def resolve(preset: Any, image_size: int = 32, **settings: Any) -> Augmentation:  # noqa: ANN401
    return AugmentationConfig(**settings).resolve(preset, 4, image_size)


def test_the_presets_of_version_0_1_do_what_they_did() -> None:
    assert resolve("none") == Augmentation()
    assert resolve("crop") == Augmentation(crop_padding=4, flip="horizontal")
    assert resolve("resized_crop") == Augmentation(scale=(0.08, 1.0), flip="horizontal")


def test_strong_pads_small_images_and_zooms_into_large_ones() -> None:
    small, large = resolve("strong", 64), resolve("strong", 65)
    assert (small.crop_padding, small.scale) == (4, None)
    assert (large.crop_padding, large.scale) == (0, (0.08, 1.0))
    assert small._replace(crop_padding=0) == large._replace(scale=None) == PRESETS["strong"]
    assert (
        small.is_mixed
        and small.flip == "horizontal"
        and small.erase
        and small.policy == "trivialaugment"
    )


def test_the_table_of_presets_in_the_docs_is_right() -> None:
    text = (Path(__file__).parents[2] / "docs/reference/data.md").read_text()
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `")]
    shown = {row[0].strip(" `").replace("-", "_"): row[1:] for row in rows}
    for name in ("flip", "color_jitter", "policy", "erase", "mixup", "cutmix"):
        for cell, augmentation in zip(shown[name], PRESETS.values(), strict=True):
            value = getattr(augmentation, name)
            assert cell.strip() == (f"{value:g}" if isinstance(value, float) else str(value))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("flip", "none"),
        ("flip", "horizontal"),
        ("scale", (0.5, 1.0)),
        ("color_jitter", 0.4),
        ("policy", "none"),
        ("policy", "randaugment"),
        ("erase", 0.0),
        ("mixup", 0.0),
        ("cutmix", 0.5),
    ],
)
def test_a_single_setting_replaces_that_of_the_preset_and_no_other(
    preset: str, name: str, value: object
) -> None:
    plain, changed = resolve(preset), resolve(preset, **{name: value})
    assert getattr(changed, name) == value
    kept = {"crop_padding", name} if name == "scale" else {name}  # one kind of crop at a time
    for field in set(Augmentation._fields) - kept:
        assert getattr(changed, field) == getattr(plain, field)
    assert changed.crop_padding == 0 or changed.scale is None


def test_mixing_can_be_turned_off_in_two_ways() -> None:
    assert not resolve("strong", mix_probability=0.0).is_mixed
    assert not resolve("strong", mixup=0.0, cutmix=0.0).is_mixed
    assert resolve("strong", mixup=0.0).is_mixed


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"erase": 1.5}, "erase must be between 0 and 1, got 1.5"),
        ({"mix_probability": -0.1}, "mix_probability must be between 0 and 1, got -0.1"),
        ({"mixup": float("inf")}, "mixup must be at least 0 and finite, got inf"),
        ({"cutmix": float("nan")}, "cutmix must be at least 0 and finite, got nan"),
        ({"color_jitter": -1.0}, "color_jitter must be at least 0"),
        ({"num_ops": 0}, "num_ops must be at least 1, got 0"),
        ({"magnitude": 31}, "magnitude must be from 0 to 30, got 31"),
        ({"scale": (0.5, 0.2)}, "scale must be the smallest and the largest area"),
        ({"scale": (0.0, 1.0)}, "scale must be the smallest and the largest area"),
    ],
    ids=str,
)
def test_an_impossible_setting_is_refused(setting: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AugmentationConfig(**setting)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"num_ops": 3}, "no effect on policy none: set augmentation.policy to randaugment"),
        ({"policy": "trivialaugment", "magnitude": 5}, "no effect on policy trivialaugment"),
        ({"mix_probability": 0.5}, "no effect without mixing: set augmentation.mixup or cutmix"),
    ],
    ids=str,
)
def test_a_setting_without_effect_is_refused(setting: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ImagesConfig("cifar10", augmentation=AugmentationConfig(**setting))
