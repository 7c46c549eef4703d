"""Small runs with reports, and results with planted numbers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from associative_transformer.analysis.basins import Basins
from associative_transformer.analysis.reconstruction import Reconstruction
from associative_transformer.data import ImagesConfig
from associative_transformer.experiment import Experiment, TrainConfig
from associative_transformer.models.ait import AiTConfig
from associative_transformer.models.vit import ViTConfig
from associative_transformer.report import write_report
from associative_transformer.training.loop import train
from associative_transformer.workspace_config import WorkspaceConfig

CLASSES = ("<img src=x onerror=hacked=1>", "<script>")  # folder names, sorted
WORKSPACE = WorkspaceConfig(num_priors=4, prior_dim=8, num_heads=2, bottleneck=8)
MODEL = AiTConfig(
    image_size=16,
    patch_size=8,
    num_classes=2,
    embed_dim=16,
    depth=2,
    num_heads=2,
    head_dim=8,
    workspace=WORKSPACE,
)
TRAIN = TrainConfig(epochs=2, batch_size=8, device="cpu")


def write_images(root: Path) -> Path:
    """Write images colored by class into folders whose names look like markup."""
    noise = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 7)):
        for color, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = noise.integers(0, 60, size=(16, 16, 3), dtype=np.uint8)
                pixels[..., color] += 150
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


def experiment_of(images: Path, **changes: Any) -> Experiment:  # noqa: ANN401
    data = ImagesConfig("cifar10", source=str(images), image_size=16, num_workers=0)
    return Experiment("<b>odd<|b>", data, replace(MODEL, **changes), TRAIN)


def planted_basins() -> Basins:
    layers, steps, priors = 2, 3, 4
    single = np.array([[0.0, 0.1], [0.2, 0.3], [0.7, 0.8]])
    return Basins(
        betas=np.array([0.05, 1.0, 16.0]),
        trained_beta=2.0,
        num_tokens=50,
        energy=np.arange(3 * layers * steps, dtype=float).reshape(3, layers, steps),
        energy_spread=np.ones((3, layers, steps)),
        num_fixed_points=np.array([[1, 1], [2, 3], [4, 4]]),
        single=single,
        metastable=(1 - single) * 0.25,
        uniform=(1 - single) * 0.75,
        basins=np.tile(np.array([0.6, 0.4, 0.0, 0.0]), (3, layers, 1))[..., :priors],
        noise=np.array([0.1, 1.0]),
        recall=np.linspace(0, 1, 3 * layers * 2).reshape(3, layers, 2),
    )


def planted_tokens() -> Reconstruction:
    return Reconstruction(
        betas=np.array([0.05, 16.0]),
        images=np.array([0, 5]),
        before=np.random.default_rng(0).normal(size=(2, 2, 3, 2)),
        after=np.random.default_rng(1).normal(size=(2, 2, 2, 3, 2)),
        explained=np.array([0.5, 0.25]),
        num_distinct=np.array([[1, 2], [5, 6]]),
    )


def make_reported_runs(root: Path) -> Path:
    """Write `images` and the complete runs `ait` and `vit`, both with reports, to a folder."""
    images = write_images(root / "images")
    ait = experiment_of(images)
    vit = ViTConfig(
        image_size=16, patch_size=8, num_classes=2, embed_dim=16, depth=1, num_heads=2, head_dim=8
    )
    train(ait, root / "ait")
    train(replace(ait, name="vit", model=vit), root / "vit")
    write_report(root / "ait")
    write_report(root / "vit")
    return root
