"""Data sets without a test split, from which test images are taken."""

from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from associative_transformer.data import ImagesConfig, SplitsConfig
from associative_transformer.data.listing import print_once
from associative_transformer.interface import UserError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    print_once.cache_clear()


@pytest.fixture
def config(tmp_path: Path) -> ImagesConfig:
    """Write 30 images of one class, 10 of another and 2 of a rare one, all different."""
    for name, count in {"many": 30, "some": 10, "rare": 2}.items():
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(count):
            image = Image.fromarray(np.random.randint(256, size=(4, 4, 3), dtype=np.uint8))
            image.save(tmp_path / "set" / name / f"{number}.png")
    source = str(tmp_path / "set")
    return ImagesConfig("mine", image_size=4, augment="none", source=source, num_workers=0)


def with_splits(config: ImagesConfig, **changes: float) -> ImagesConfig:
    return replace(config, splits=SplitsConfig(**changes))


def test_each_class_is_divided_alike_and_no_image_is_in_both_parts(
    config: ImagesConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    data = config.load(CPU)
    assert torch.bincount(data.test.labels).tolist() == [5, 1, 2]  # many, rare, some
    assert torch.bincount(data.train.labels).tolist() == [25, 1, 8]
    digests = [data.train.image_digests(), data.test.image_digests()]
    assert len({*digests[0], *digests[1]}) == 42
    assert "has no test split: 8 of its 42 images" in capsys.readouterr().err


def test_the_division_depends_on_its_own_seed_and_fraction_only(config: ImagesConfig) -> None:
    digests = [config.load(CPU).digest for _ in range(2)]
    digests += [with_splits(config, test_seed=1).load(CPU).digest]
    digests += [with_splits(config, test_fraction=0.3).load(CPU).digest]
    assert digests[0] == digests[1] and len(set(digests)) == 3


def test_the_test_images_alone_are_those_of_the_whole_data_set(config: ImagesConfig) -> None:
    assert config.load_test(CPU).digest == replace(config).load_test(CPU).digest
    whole, alone = config.load(CPU).test, config.load_test(CPU).test
    assert whole.image_digests() == alone.image_digests()
    assert whole.labels.tolist() == alone.labels.tolist()


def test_a_named_test_split_is_not_replaced(config: ImagesConfig) -> None:
    for load in (config.load, config.load_test):
        named = replace(config, splits=SplitsConfig(test_split="final"))
        with pytest.raises(UserError, match="has no final split"):
            getattr(named, load.__name__)(CPU)


@pytest.mark.parametrize(
    "changes", [{"test_fraction": 0.0}, {"test_fraction": 1.0}, {"test_seed": -1}]
)
def test_an_impossible_division_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        SplitsConfig(**changes)


def test_a_fraction_that_leaves_no_image_is_refused(config: ImagesConfig) -> None:
    with pytest.raises(UserError, match=r"42 images, of which a test fraction of 0\.001 leaves"):
        with_splits(config, test_fraction=0.001).load(CPU)


@pytest.mark.parametrize("kind", ["bytes", "structs", "paths"])
def test_plain_parquet_files_are_read_without_the_types_of_the_hub(
    kind: str, tmp_path: Path
) -> None:
    import pandas as pd

    root = tmp_path / "plain"
    root.mkdir()
    images: list[object] = []
    for number in range(6):
        path = root / f"{number}.png"
        Image.new("L", (4, 4), 40 * number).save(path)
        content = path.read_bytes()
        stored = {
            "bytes": content,
            "structs": {"bytes": content, "path": None},
            "paths": path.name,
        }
        images.append(stored[kind])
        if kind != "paths":
            path.unlink()
    pd.DataFrame({"picture": images, "label": [0, 1] * 3}).to_parquet(root / "all.parquet")
    source = str(root)
    data = ImagesConfig("mine", image_size=4, source=source, num_workers=0).load(CPU)
    assert data.class_names == ("0", "1")
    assert len(data.train) + len(data.test) == 6
