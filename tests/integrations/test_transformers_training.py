"""Training, evaluation and checkpoints with the Trainer of transformers."""

import copy
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from associative_transformer.data import TriangleConfig
from associative_transformer.data.triangle import TEST, TRAIN, generate_triangles
from associative_transformer.experiment import Experiment
from associative_transformer.models.ait import AiT
from associative_transformer.recipes import RECIPES
from associative_transformer.training.loop import train

pytestmark = pytest.mark.interop
transformers = pytest.importorskip("transformers")

from associative_transformer.integrations.transformers import (  # noqa: E402
    AiTForImageClassification,
    AiTForImageClassificationConfig,
    AiTImageProcessor,
    from_ait,
)
from making.tiny import IMAGE_MEMORY, MEMORY, TINY  # noqa: E402

MEMORIES = {"batch": asdict(MEMORY), "image": asdict(IMAGE_MEMORY)}
Examples = list[dict[str, Any]]

both_scopes = pytest.mark.parametrize("scope", MEMORIES)


def build(scope: str = "batch") -> Any:  # noqa: ANN401
    torch.manual_seed(0)
    sizes = asdict(TINY["ait"]) | {"workspace": MEMORIES[scope]}
    del sizes["kind"]
    return AiTForImageClassification(AiTForImageClassificationConfig(**sizes))


def examples(number: int = 24) -> Examples:
    """Return images whose class is visible in their brightness."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(number, 3, 8, 8, generator=generator)
    return [{"pixel_values": x + i % 5, "labels": i % 5} for i, x in enumerate(images)]


def accuracy(prediction: Any) -> dict[str, float]:  # noqa: ANN401
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def trainer(model: nn.Module, folder: Path, **options: Any) -> Any:  # noqa: ANN401
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
    }
    parts = {"train_dataset": examples(), "compute_metrics": accuracy}
    for name in ("train_dataset", "eval_dataset", "processing_class"):
        if name in options:
            parts[name] = options.pop(name)
    arguments = transformers.TrainingArguments(**settings | options)
    return transformers.Trainer(model, arguments, **parts)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@both_scopes
def test_a_model_is_trained_and_evaluated(scope: str, tmp_path: Path) -> None:
    model = build(scope)
    before = weights(model)
    work = trainer(model, tmp_path, num_train_epochs=20, eval_dataset=examples())
    work.train()
    after = weights(model)
    assert all(not torch.equal(after[name], before[name]) for name in after)
    assert work.evaluate()["eval_accuracy"] == 1
    assert all(torch.equal(value, after[name]) for name, value in weights(model).items())


@both_scopes
def test_gradient_checkpointing_gives_the_same_weights(scope: str, tmp_path: Path) -> None:
    plain, recomputed = build(scope), build(scope)
    trainer(plain, tmp_path).train()
    trainer(recomputed, tmp_path, gradient_checkpointing=True).train()
    assert all(block.recompute for block in recomputed.ait.blocks)
    torch.testing.assert_close(weights(recomputed), weights(plain))


def test_accumulated_steps_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    whole, parts = build("image"), build("image")
    data = examples(22)  # the last step has micro-batches of 4 and 2 images
    optimizer = {"optim": "sgd", "max_grad_norm": 0.0, "train_dataset": data}
    trainer(whole, tmp_path, **optimizer).train()
    trainer(
        parts,
        tmp_path,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        **optimizer,
    ).train()
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-5, atol=1e-6)


def test_the_memory_moves_once_per_micro_batch(tmp_path: Path) -> None:
    model = build()
    moves: list[Tensor] = []
    workspace = model.ait.blocks[0].workspace
    workspace.register_forward_hook(lambda *call: moves.append(workspace.priors.clone()))
    trainer(
        model,
        tmp_path,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=3,
        gradient_checkpointing=True,
        num_train_epochs=1,
    ).train()
    assert len(moves) == 6
    assert all(not torch.equal(a, b) for a, b in pairwise(moves))


def test_label_smoothing_keeps_the_balance_loss(tmp_path: Path) -> None:
    model = build()
    work = trainer(model, tmp_path, label_smoothing_factor=0.2)
    twin = copy.deepcopy(model.ait)
    inputs = work.data_collator(examples(8))
    loss = work.compute_loss(model.train(), dict(inputs))
    loss.backward()
    logits, aux_loss = twin.train()(inputs["pixel_values"])
    smoothed = cross_entropy(logits, inputs["labels"], label_smoothing=0.2)
    torch.testing.assert_close(loss, smoothed)
    (smoothed + aux_loss).backward()
    for (name, ours), theirs in zip(model.ait.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)


@both_scopes
def test_a_resumed_training_ends_with_the_same_weights(scope: str, tmp_path: Path) -> None:
    options = {"save_strategy": "epoch", "num_train_epochs": 2}
    model = build(scope)
    trainer(model, tmp_path, **options).train()
    resumed = build(scope)
    trainer(resumed, tmp_path, **options).train(str(tmp_path / "checkpoint-3"))
    assert all(torch.equal(x, resumed.state_dict()[name]) for name, x in weights(model).items())


def test_mixed_precision_trains(tmp_path: Path) -> None:
    model = build()
    result = trainer(model, tmp_path, bf16=True, num_train_epochs=1).train()
    assert np.isfinite(result.training_loss)
    assert {x.dtype for x in model.state_dict().values()} == {torch.float32}


def test_the_output_of_a_trainer_is_ready_for_a_pipeline(tmp_path: Path) -> None:
    processor = AiTImageProcessor(8, [0.5] * 3, [0.25] * 3)
    work = trainer(build(), tmp_path, processing_class=processor, num_train_epochs=1)
    work.train()
    work.save_model()
    classify = transformers.pipeline("image-classification", model=str(tmp_path), device="cpu")
    assert classify.image_processor.preprocessing == processor.preprocessing
    image = Image.new("RGB", (12, 9), "teal")
    assert {each["label"] for each in classify(image)} == {f"LABEL_{i}" for i in range(5)}


# --- compared with training by this package ---

NUM_TRAIN, NUM_TEST, EPOCHS, BATCH = 6_144, 2_048, 3, 96
MARGIN = 0.05
"""Largest difference of the accuracies, which is at most 0.02 with seeds 0 to 2."""


def triangles(split: int, number: int) -> Examples:
    images, labels, _ = generate_triangles(TriangleConfig(), split, number)
    processor = AiTImageProcessor(64, [0.0], [1.0], "L")
    pixels = processor(list(images), return_tensors="pt").pixel_values
    pairs = zip(pixels, labels.tolist(), strict=True)
    return [{"pixel_values": x, "labels": label} for x, label in pairs]


def train_here(experiment: Experiment, folder: Path) -> float:
    """Return the accuracy of a run of this package."""
    return train(experiment, folder).test_accuracy / 100


def train_there(experiment: Experiment, folder: Path) -> float:
    """Return the accuracy after the same training with a Trainer."""
    t = experiment.train
    torch.manual_seed(t.seed)
    work = trainer(
        from_ait(AiT(experiment.model)),
        folder,
        num_train_epochs=t.epochs,
        per_device_train_batch_size=t.batch_size,
        learning_rate=t.lr,
        weight_decay=t.weight_decay,
        lr_scheduler_type=t.schedule.shape,
        max_grad_norm=t.clip_norm,
        seed=t.seed,
        train_dataset=triangles(TRAIN, NUM_TRAIN),
        eval_dataset=triangles(TEST, NUM_TEST),
    )
    work.train()
    return work.evaluate()["eval_accuracy"]


@pytest.mark.slow
def test_a_trainer_reaches_the_accuracy_of_this_package(tmp_path: Path) -> None:
    recipe = RECIPES["triangle-ait-tiny"]
    schedule = replace(recipe.train.schedule, warmup_epochs=0, per="step", min_lr=0.0)
    experiment = replace(
        recipe,
        data=replace(recipe.data, num_train=NUM_TRAIN, num_test=NUM_TEST),
        train=replace(recipe.train, epochs=EPOCHS, batch_size=BATCH, schedule=schedule),
    )
    here = train_here(experiment, tmp_path / "here")
    there = train_there(experiment, tmp_path / "there")
    assert min(here, there) > 0.57
    assert there == pytest.approx(here, abs=MARGIN)
