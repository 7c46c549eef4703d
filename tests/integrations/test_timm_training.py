"""Training with the loaders, optimizers, schedules and checkpoints of timm."""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from associative_transformer.data import TriangleConfig
from associative_transformer.data.triangle import CLASS_NAMES, TRAIN, generate_triangles
from associative_transformer.models.ait import AiT

pytestmark = pytest.mark.interop
timm = pytest.importorskip("timm")
for part in ("optim", "scheduler", "utils"):
    import_module(f"timm.{part}")
import_module("associative_transformer.integrations.timm")

NUM_IMAGES, BATCH, EPOCHS = 64, 16, 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with images of triangles, one subfolder for each class."""
    triangles = generate_triangles(TriangleConfig(), TRAIN, NUM_IMAGES)
    for i, (pixels, label) in enumerate(zip(triangles.images, triangles.labels, strict=True)):
        path = tmp_path / "images" / CLASS_NAMES[label] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path / "images"


def load(folder: Path, model: nn.Module) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Return timm's loader of the images, with the settings of the model."""
    config = timm.data.resolve_model_data_config(model)
    dataset = timm.data.create_dataset("", folder, input_img_mode="L")
    names = ("input_size", "interpolation", "mean", "std", "crop_pct")
    return timm.data.create_loader(
        dataset,
        batch_size=BATCH,
        is_training=True,
        no_aug=True,
        use_prefetcher=False,
        num_workers=0,
        persistent_workers=False,
        **{name: config[name] for name in names},
    )


@pytest.mark.parametrize("name", ["ait_tiny", "ait_image_tiny"])
def test_a_loop_of_timm_trains_a_model(name: str, folder: Path, tmp_path: Path) -> None:
    sizes = {"num_classes": 2, "img_size": 64, "patch_size": 32, "in_chans": 1}
    model = timm.create_model(name, **sizes, global_pool="flatten")
    loader, criterion = load(folder, model), nn.CrossEntropyLoss()
    optimizer = timm.optim.create_optimizer_v2(model, "adamw", lr=1e-3, layer_decay=0.9)
    scheduler, epochs = timm.scheduler.create_scheduler_v2(
        optimizer, "cosine", num_epochs=EPOCHS, warmup_epochs=1, warmup_lr=1e-4
    )
    averaged = timm.utils.ModelEmaV3(model, decay=0.5)
    means = []
    for epoch in range(epochs):
        losses = []
        for images, labels in loader:
            loss = criterion(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            timm.utils.dispatch_clip_grad(model.parameters(), 1.0)
            optimizer.step()
            averaged.update(model)
            losses.append(loss.item())
        scheduler.step(epoch + 1)
        means.append(sum(losses) / len(losses))
    assert means[-1] < means[0] / 10
    saver = timm.utils.CheckpointSaver(
        model, optimizer, model_ema=averaged, checkpoint_dir=str(tmp_path)
    )
    saver.save_checkpoint(EPOCHS - 1, means[-1])
    twin = AiT(model.config).eval()
    twin.load_state_dict(timm.models.load_state_dict(tmp_path / "last.pth.tar"))
    assert torch.equal(twin(images).logits, averaged.module.eval()(images))


def test_layer_decay_groups_the_embedding_each_block_and_the_head() -> None:
    model = timm.create_model("ait_image_tiny", depth=3)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = timm.optim.param_groups_layer_decay(model, layer_decay=0.5)
    scales = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    assert scales.keys() == dict(model.named_parameters()).keys()
    for start, scale in (
        ("embed.", 0.0625),
        ("blocks.0.", 0.125),
        ("blocks.1.", 0.25),
        ("blocks.2.", 0.5),
        ("head.", 1.0),
    ):
        assert {value for name, value in scales.items() if name.startswith(start)} == {scale}


def test_positions_and_contents_of_memories_are_exempt_from_weight_decay() -> None:
    model = timm.create_model("ait_image_tiny", global_pool="cls")
    optimizer = timm.optim.create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05)
    names = {id(p): name for name, p in model.named_parameters()}
    exempt = {
        names[id(p)]
        for group in optimizer.param_groups
        for p in group["params"]
        if group["weight_decay"] == 0 and p.ndim > 1
    }
    contents = {f"blocks.{i}.workspace.priors" for i in range(2)}
    assert exempt == contents | {"embed.positions", "embed.class_token"}
