"""The model card of a run: what it was trained on, how well it does, and what its memory is like.

The card is the `README.md` of the folder, with metadata that the Hugging Face Hub reads, and shows
the picture `priors.png`. It names no folder of this machine and no license, which is for the owner
of the weights to choose.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from huggingface_hub import EvalResult, ModelCardData
from jaxtyping import UInt8
from PIL import Image

from associative_transformer.data import DataConfig, ImagesConfig
from associative_transformer.data.known import KNOWN_DATA_SETS
from associative_transformer.experiment import Experiment
from associative_transformer.files import write_file
from associative_transformer.health import memory_health
from associative_transformer.interface import format_count
from associative_transformer.models.model_card import CARD, PICTURE
from associative_transformer.models.pretrained import PretrainedModel
from associative_transformer.runs.result import RunResult, accuracy_interval
from associative_transformer.runs.training_command import format_train_command, without_source
from associative_transformer.scores import Interval
from associative_transformer.workspace import GlobalWorkspace

CELL = 8  # pixels of a number in the picture
COLD, WARM = (5, 48, 97), (103, 0, 31)
"""Colors of the smallest and of the largest number; zero is white."""
SHOWN_CLASSES = 20


def write_card(
    folder: Path, model: PretrainedModel, experiment: Experiment, result: RunResult
) -> None:
    """Write the card of a run, and the picture of its priors. Raises UserError if that fails."""
    picture = draw_priors(model)
    if picture is not None:
        write_file(folder / PICTURE, picture)
    text = describe_run(model, experiment, result, picture is not None)
    write_file(folder / CARD, text.encode())


def describe_run(
    model: PretrainedModel, experiment: Experiment, result: RunResult, has_picture: bool
) -> str:
    """Return the card in Markdown."""
    lines = [f"---\n{_metadata(model, experiment, result)}\n---", f"# {experiment.name}"]
    lines.append(
        f"{type(model).__name__} of the Python package `associative_transformer`, trained on "
        f"{result.name_data(experiment.data)}: {_score(result)}."
    )
    lines.append("\n".join(["| | |", "| --- | --- |", *_rows(model, experiment, result)]))
    lines.append("## Use\n\n" + _example(experiment))
    command = format_train_command(without_source(experiment))
    if command is not None:
        lines.append(f"## Training\n\n```sh\n{command}\n```")
    if memory := _describe_memory(model):
        lines.append(f"## Memory\n\n{memory}")
    if has_picture:
        lines.append(
            f"![Priors of all layers]({PICTURE})\n\nEach row is a prior, each column one of its "
            "numbers; white is zero. Layers are separated by a gap."
        )
    return "\n\n".join(lines) + "\n"


def draw_priors(model: PretrainedModel) -> bytes | None:
    """Return a PNG of the priors of all layers, one below the other; None without a memory."""
    layers = [each.priors.detach().float().cpu().numpy() for each in _workspaces(model)]
    if not layers or not all(np.isfinite(layer).all() for layer in layers):
        return None
    width = max(layer.shape[1] for layer in layers)
    rows = []
    for layer in layers:
        colored = np.full((layer.shape[0] + 1, width, 3), 255, np.uint8)
        colored[1:, : layer.shape[1]] = _color(layer / max(np.abs(layer).max(), 1e-12))
        rows.append(colored)
    pixels = np.concatenate(rows)[1:].repeat(CELL, axis=0).repeat(CELL, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _color(values: np.ndarray) -> UInt8[np.ndarray, "M D 3"]:
    """Return colors of numbers from -1 to 1."""
    end = np.where(values[..., None] < 0, COLD, WARM)
    share = np.abs(values)[..., None]
    return np.round(255 * (1 - share) + end * share).astype(np.uint8)


def _workspaces(model: PretrainedModel) -> Iterator[GlobalWorkspace]:
    return (each for each in model.modules() if isinstance(each, GlobalWorkspace))


def _accuracy(result: RunResult) -> tuple[float, Interval, int]:
    """Return the accuracy of the saved model, its interval, and the number of test items."""
    scores = result.best_validation or result
    count = scores.test_questions or scores.test_images
    return scores.test_accuracy, accuracy_interval(scores), count


def _score(result: RunResult) -> str:
    accuracy, (low, high), count = _accuracy(result)
    noun = "test question" if result.test_questions else "test image"
    return (
        f"{accuracy:.2f} % accuracy (95 % interval {low:.2f} to {high:.2f} %) on "
        f"{format_count(count, noun)}"
    )


def _metadata(model: PretrainedModel, experiment: Experiment, result: RunResult) -> str:
    accuracy, (low, high), _ = _accuracy(result)
    data = experiment.data
    on_hub = _find_on_hub(data, result)
    score = EvalResult(
        task_type="image-classification",
        dataset_type=on_hub or "other",
        dataset_name=result.name_data(data),
        dataset_split="test",
        metric_type="accuracy",
        metric_value=round(accuracy / 100, 6),
        metric_name=f"accuracy, 95 % interval {low:.2f} to {high:.2f} %",
    )
    card = ModelCardData(
        library_name="associative_transformer",
        pipeline_tag="image-classification",
        tags=[model.config.kind, "associative-transformer"],
        datasets=[on_hub] if on_hub else None,
        model_name=experiment.name,
        eval_results=[score],
    )
    return card.to_yaml().strip()


def _find_on_hub(data: DataConfig, result: RunResult) -> str | None:
    """Return the name of the data on the hub; None unless they are all of the test images."""
    if not isinstance(data, ImagesConfig) or data.limit is not None:
        return None
    if result.other_data(data) is not None:
        return None
    return data.hub_id if data.source is None or data.name in KNOWN_DATA_SETS else None


def _rows(model: PretrainedModel, experiment: Experiment, result: RunResult) -> list[str]:
    shown = ", ".join(result.classes[:SHOWN_CLASSES])
    if len(result.classes) > SHOWN_CLASSES:
        shown += f" and {len(result.classes) - SHOWN_CLASSES} more"
    size, channels, _ = experiment.data.input_size
    rows = {
        "classes": shown,
        "images": f"{size}x{size} pixels, {format_count(channels, 'channel')}",
        "training images": "not recorded"
        if result.train_images is None
        else f"{result.train_images:,}",
        "epochs": f"{result.epochs:,}",
        "parameters": f"{result.live_parameters:,}",
        "precision in training": result.precision,
        "saved model": result.model,
        "seed": f"{result.seed}",
    }
    calibration = (result.best_validation or result).test_calibration
    if calibration is not None:
        rows["expected calibration error"] = f"{calibration.error:.2f} %"
        if calibration.temperature is not None:
            rows["expected calibration error"] += (
                f"; {calibration.scaled_error:.2f} % with logits divided by the temperature "
                f"{calibration.temperature:.3f}"
            )
    if experiment.init is not None:
        rows["initial weights"] = without_source(experiment).init or ""
    return [f"| {name} | {text.replace('|', '&#124;')} |" for name, text in rows.items()]


def _example(experiment: Experiment) -> str:
    if not experiment.data.question_types:
        return """```python
from associative_transformer import load_model

model = load_model("PATH")  # this folder, or its name on the hub
logits = model(model.preprocess("image.png")).logits
print(model.class_names[int(logits.argmax())])
```"""
    return """```sh
ait predict PATH image.png --question "shape of the red object"
```"""


def _describe_memory(model: PretrainedModel) -> str:
    """Return a table of the memories of a model; empty if it has none."""
    layers = memory_health(model)
    if not layers:
        return ""
    lines = ["| layer | priors | distinct | effective rank |", "| ---: | ---: | ---: | ---: |"]
    lines += [
        f"| {number} | {each.num_priors} | {each.distinct:.0f} | {each.effective_rank:.1f} |"
        for number, each in enumerate(layers, start=1)
    ]
    return "\n".join(lines)
