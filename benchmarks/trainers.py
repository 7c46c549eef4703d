"""Train one model with four trainers: python benchmarks/trainers.py run

    python benchmarks/trainers.py run [ait timm transformers lightning]
    python benchmarks/trainers.py table

Each trains `triangle-ait-tiny`: the same model, images, batch size, number of epochs, AdamW,
learning rate and clipping, in float32, but with its own loop, order of the images and schedule (a
linear warm-up of one epoch, then a cosine). Weight decay is 0.05, but timm and transformers exempt
biases and norms. A result is a file in
`results/trainers`; finished ones are skipped. The second command prints the table as Markdown,
with Wilson's interval of 95 %. Needs the extras timm, hf and lightning.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from associative_transformer.compute import set_up_cpu
from associative_transformer.experiment import Experiment
from associative_transformer.files import make_folder, write_file
from associative_transformer.models.ait import AiT
from associative_transformer.recipes import RECIPES
from associative_transformer.runs.environment import describe_environment
from associative_transformer.runs.saved import load_run
from associative_transformer.scores import wilson_interval
from associative_transformer.tabular import RowGroup, Table
from associative_transformer.training.loop import train
from associative_transformer.training.parameters import parameter_groups

RESULTS = Path(__file__).resolve().parents[1] / "results" / "trainers"
RECIPE = RECIPES["triangle-ait-tiny"]
CPU = torch.device("cpu")
Train = Callable[[Experiment, TensorDataset], nn.Module]


def load_images(experiment: Experiment) -> tuple[TensorDataset, TensorDataset]:
    """Return the training and the test images, normalized, with their labels."""
    data = experiment.data.load(CPU)

    def read(split: Any) -> TensorDataset:  # noqa: ANN401
        (batch,) = split.eval_batches(len(split))
        return TensorDataset(batch.images, batch.labels)

    return read(data.train), read(data.test)


def with_ait(experiment: Experiment, images: TensorDataset) -> nn.Module:
    """Train with `ait train`."""
    with tempfile.TemporaryDirectory() as folder:
        train(experiment, Path(folder) / "run")
        return load_run(Path(folder) / "run").model


def with_timm(experiment: Experiment, images: TensorDataset) -> nn.Module:
    """Train with a loop in the style of timm, with its optimizer and schedule."""
    import timm
    import timm.optim
    import timm.scheduler
    import timm.utils

    import associative_transformer.integrations.timm  # noqa: F401

    c, train_config = experiment.model, experiment.train
    options = {k: v for k, v in asdict(c).items() if k not in ("kind", "image_size", "head")}
    options["in_chans"] = options.pop("num_channels")
    model = timm.create_model("ait_tiny", img_size=c.image_size, global_pool=c.head, **options)
    loader = DataLoader(images, train_config.batch_size, shuffle=True, drop_last=True)
    optimizer = timm.optim.create_optimizer_v2(
        model, "adamw", lr=train_config.lr, weight_decay=train_config.weight_decay
    )
    warmup = {"warmup_epochs": 1, "warmup_lr": train_config.schedule.warmup_lr}
    schedule, epochs = timm.scheduler.create_scheduler_v2(
        optimizer, "cosine", num_epochs=train_config.epochs, **warmup
    )
    model.train()
    for epoch in range(epochs):
        for inputs, labels in loader:
            loss = nn.CrossEntropyLoss()(model(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            timm.utils.dispatch_clip_grad(model.parameters(), 1.0)
            optimizer.step()
        schedule.step(epoch + 1)
        print(f"epoch {epoch + 1}: {loss.item():.4f}", flush=True)
    return model


def with_transformers(experiment: Experiment, images: TensorDataset) -> nn.Module:
    """Train with the Trainer of transformers."""
    import transformers

    from associative_transformer.integrations.transformers import from_ait

    t, model = experiment.train, from_ait(AiT(experiment.model).train())
    rows = [{"pixel_values": x, "labels": y} for x, y in images]
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder,
            num_train_epochs=t.epochs,
            per_device_train_batch_size=t.batch_size,
            learning_rate=t.lr,
            weight_decay=t.weight_decay,
            max_grad_norm=1.0,
            lr_scheduler_type="cosine",
            warmup_steps=len(images) // t.batch_size,
            dataloader_drop_last=True,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            seed=t.seed,
        )
        transformers.Trainer(model, arguments, train_dataset=rows).train()
    return model.to_ait()


def with_lightning(experiment: Experiment, images: TensorDataset) -> nn.Module:
    """Train with the module in docs/how-to/elsewhere.md, plus a schedule."""
    import lightning

    t = experiment.train
    steps = len(images) // t.batch_size

    class Classifier(lightning.LightningModule):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def on_fit_start(self) -> None:
            self.train()

        def training_step(self, batch: list[Tensor]) -> Tensor:
            inputs, labels = batch
            logits, aux_loss = self.model(inputs)
            return cross_entropy(logits, labels) + aux_loss

        def configure_optimizers(self) -> Any:  # noqa: ANN401
            groups = parameter_groups(self.model)
            optimizer = torch.optim.AdamW(groups, t.lr, weight_decay=t.weight_decay)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def factor(step: int) -> float:
        progress = step / (t.epochs * steps)
        return min(1.0, (step + 1) / steps) * 0.5 * (1 + math.cos(math.pi * progress))

    module = Classifier(AiT(experiment.model))
    trainer = lightning.Trainer(
        max_epochs=t.epochs,
        accelerator="cpu",
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, DataLoader(images, t.batch_size, shuffle=True, drop_last=True))
    return module.model


TRAINERS: dict[str, Train] = {
    "ait": with_ait,
    "timm": with_timm,
    "transformers": with_transformers,
    "lightning": with_lightning,
}


@torch.no_grad()
def count_right(model: nn.Module, images: TensorDataset) -> int:
    """Return the number of images that a model classifies correctly, in evaluation mode."""
    model.eval()
    right = 0
    for inputs, labels in DataLoader(images, 500):
        output = model(inputs)
        logits = output if isinstance(output, Tensor) else output.logits
        right += int((logits.argmax(dim=-1) == labels).sum())
    return right


def measure(name: str, experiment: Experiment, results: Path) -> None:
    """Train with one trainer and keep the result."""
    images, test = load_images(experiment)
    torch.manual_seed(experiment.train.seed)
    started, size = time.perf_counter(), experiment.train.batch_size
    model = TRAINERS[name](experiment, images)
    content = {
        "command": f"python benchmarks/trainers.py run {name}",
        "trainer": name,
        "seed": experiment.train.seed,
        "correct": count_right(model, test),
        "total": len(test),
        "images_seen": experiment.train.epochs * (len(images) // size) * size,
        "timing": {"seconds": time.perf_counter() - started},
        "threads": torch.get_num_threads(),
        "environment": asdict(describe_environment(CPU)),
    }
    make_folder(results)
    write_file(results / f"{name}.json", (json.dumps(content, indent=2) + "\n").encode())
    print(f"{name}: {100 * content['correct'] / len(test):.2f} %", flush=True)


def tabulate(results: Path) -> Table:
    """Return the table of the finished trainers."""
    rows = []
    for name in TRAINERS:
        path = results / f"{name}.json"
        if not path.exists():
            rows.append((name, "not measured", "", ""))
            continue
        result = json.loads(path.read_text())
        right, total = result["correct"], result["total"]
        low, high = wilson_interval(right / total, total)
        rows.append(
            (name, f"{100 * right / total:.2f}", f"{low:.2f} to {high:.2f}", str(result["seed"]))
        )
    columns = ("trainer", "accuracy, %", "interval, %", "seed")
    notes = [f"{RECIPE.name}, {RECIPE.train.epochs} epochs, float32; Wilson's 95 % interval."]
    return Table("Four trainers", columns, [RowGroup("Triangle", rows)], notes)


def main() -> None:
    """Train with the missing trainers, or print the table."""
    parser = argparse.ArgumentParser(description="Train one model with several trainers.")
    parser.add_argument("action", choices=["run", "table"])
    parser.add_argument("trainers", nargs="*", help="trainers; default: all")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--small", action="store_true", help="sizes for a test")
    options = parser.parse_args()
    if options.action == "table":
        print(tabulate(options.results).to_markdown(), end="")
        return
    if unknown := set(options.trainers) - set(TRAINERS):
        sys.exit(f"no trainer {', '.join(sorted(unknown))}: choose from {', '.join(TRAINERS)}")
    set_up_cpu()
    train_config = replace(RECIPE.train, precision="float32", device="cpu")
    experiment = replace(RECIPE, train=train_config)
    if options.small:
        data = replace(RECIPE.data, num_train=64, num_test=20)
        experiment = replace(
            experiment, data=data, train=replace(train_config, epochs=2, batch_size=16)
        )
    for name in options.trainers or TRAINERS:
        if not (options.results / f"{name}.json").exists():
            measure(name, experiment, options.results)


if __name__ == "__main__":
    main()
