"""A new analysis needs one line in each of two tables, as CONTRIBUTING.md says."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple, get_type_hints

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from associative_transformer import analysis, figures
from associative_transformer.analysis import Analysis, Measured, Subject, analyze, load_analysis
from associative_transformer.data import TriangleConfig
from associative_transformer.experiment import Experiment, TrainConfig
from associative_transformer.figures import Drawing, draw_analysis
from associative_transformer.figures.context import Context
from associative_transformer.interface import PADDING
from associative_transformer.models.dense import Dense, DenseConfig
from associative_transformer.models.pretrained import PretrainedModel
from associative_transformer.runs.saved import SavedRun


@dataclass(frozen=True)
class Depth:
    """The number of blocks, and the number of images in each batch."""

    num_blocks: int
    num_images: np.ndarray


def measure_depth(subject: Subject) -> Depth:
    num_images = [int((batch.labels != PADDING).sum()) for batch in subject.pools()]
    return Depth(len(subject.model.blocks), np.array(num_images))


def draw_depth(figure: Figure, depth: Depth, context: Context) -> str:
    figure.subplots().bar(range(len(depth.num_images)), depth.num_images)
    return f"{depth.num_blocks} blocks, {depth.num_images.sum()} {context.items}."


def has_blocks(model: PretrainedModel) -> bool:
    return hasattr(model, "blocks")


def test_a_new_analysis_is_measured_saved_drawn_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ("depth", Annotated[Depth | None, Measured(measure_depth, has_blocks)])
    hints = get_type_hints(Analysis, include_extras=True)
    fields = NamedTuple("Fields", [*hints.items(), line])  # type: ignore[misc]
    fields.__new__.__defaults__ = (None,) * len(fields._fields)
    extended = type("Analysis", (fields, Analysis), {})  # the type checks expect an Analysis
    monkeypatch.setattr(analysis, "Analysis", extended)
    monkeypatch.setattr(analysis, "_TABLE", analysis._read_table(extended))
    monkeypatch.setitem(figures.DRAWINGS, "depth", Drawing(draw_depth, lambda r: ()))

    data = TriangleConfig(num_train=8, num_test=6)
    held_out = data.load_test(torch.device("cpu"))
    sizes = {"image_size": 64, "patch_size": 32, "num_classes": 2, "embed_dim": 8, "depth": 3}
    model = Dense(DenseConfig(**sizes, question_dim=0))
    run = SavedRun(
        Experiment("tiny", data, model.config, TrainConfig()), model, held_out.class_names
    )
    measured = analyze(run, tmp_path, held_out, batch_size=4)
    assert measured.depth.num_blocks == 3
    assert measured.depth.num_images.tolist() == [4, 2]
    assert load_analysis(tmp_path).depth.num_blocks == 3
    written = draw_analysis(measured, lambda _: np.zeros((3, 8, 8), np.uint8), tmp_path, "tiny")
    assert [path.name for path in written] == ["depth.png", "depth.svg"]
    assert "3 blocks, 6 images." in written[1].read_text()

    monkeypatch.setitem(
        analysis._TABLE, "depth", (Depth, Measured(measure_depth, lambda model: False))
    )
    analyze(run, tmp_path, held_out)
    assert load_analysis(tmp_path).depth is None
    assert [path.name for path in tmp_path.rglob("depth.*")] == []
