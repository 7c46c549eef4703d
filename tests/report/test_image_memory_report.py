"""The page about a run with a memory for each image, and the sections about what priors do."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from associative_transformer import figures
from associative_transformer.analysis import Analysis, load_analysis
from associative_transformer.analysis.information import VARIABLES
from associative_transformer.analysis.selection import SelectionStatistics
from associative_transformer.analysis.silencing import Silencing
from associative_transformer.data import TriangleConfig
from associative_transformer.models.ait import AiT
from associative_transformer.report.charts import Bars, Heat, Lines, Section
from associative_transformer.report.images import (
    images_section,
    list_images,
    list_takers,
    to_digits,
    trace_retrieval,
    with_all_heads,
)
from associative_transformer.report.priors import priors_section
from associative_transformer.report.recall import recall_section
from associative_transformer.report.roles import roles_section
from making.commands import Ait
from making.image_memory import weights_of
from making.roles import CLASSES, plant_recall, plant_roles, plant_silencing
from making.trained import PER_IMAGE
from twins import naive, naive_image


@pytest.fixture(scope="module")
def analyzed(per_image: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the run, in which a test may write."""
    return shutil.copytree(per_image, tmp_path_factory.mktemp("analyzed") / "run")


def data_of(page: str) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    return json.loads(text)


def words_of(page: str, section: str) -> str:
    (part,) = re.findall(rf'<section id="{section}".*?</section>', page, re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", part.replace("<wbr>", "")))


# --- a trained run from end to end ---


def test_a_trained_run_is_analyzed_drawn_and_reported(
    analyzed: Path, ait: Ait, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "_encode", lambda *_: b"")  # rendering takes seconds
    output = ait("analyze", analyzed)
    assert (output.code, output.err) == (0, "")
    assert "this run has no" not in output.out
    assert "of 16 tokens of an image" in output.out and "if a prior is silenced" in output.out
    analysis = load_analysis(analyzed)
    assert analysis is not None
    assert all(getattr(analysis, name) is not None for name in Analysis._fields)
    assert analysis.drift is not None and (analysis.drift.angle[1:] > 0).all()
    assert analysis.selection is not None and analysis.selection.scope == "image"
    drawn = {path.name for path in (analyzed / "figures").iterdir()}
    assert {"roles.png", "silencing.svg", "recall.png", "selection.svg"} <= drawn
    assert ait("report", analyzed).code == 0
    page = (analyzed / "report.html").read_text()
    data = data_of(page)
    for section in ("priors", "images", "roles", "memory", "beta", "recall", "cost"):
        assert "This model" not in words_of(page, section), section
    assert "takes 8 of the 16 tokens of each image" in words_of(page, "priors")
    assert "says nothing about the class" in words_of(page, "priors")
    taken = analysis.selection.taken
    shown = data["images"][3]
    assert shown["taken"][1][2] == list_takers(with_all_heads(taken[1, :, :, 3])[2])
    digits = shown["patches"][1][0][2]
    patches = [patch for patch in range(16) if int(digits, 16) >> patch & 1]
    assert patches == np.flatnonzero(taken[1, 0, 2, 3]).tolist() and len(patches) == 8
    energy = np.array(shown["energy"])
    assert energy.shape == (2, 16, 5) and (np.diff(energy, axis=-1) <= 1e-3).all()


def test_an_unfinished_run_promises_the_sections_of_its_memory(
    analyzed: Path, tmp_path: Path, ait: Ait
) -> None:
    shutil.copy(analyzed / "experiment.yaml", tmp_path)
    assert ait("report", tmp_path).code == 0
    page = (tmp_path / "report.html").read_text()
    for section in ("priors", "images", "roles", "beta", "recall"):
        assert "Available once the run is complete." in words_of(page, section)


# --- the image view ---


def planted_selection(heads: int) -> SelectionStatistics:
    layers, priors, images, patches = 1, 3, 2, 9
    shape, g = (layers, heads, priors), np.random.default_rng(0)
    return SelectionStatistics(
        num_images=2,
        pool_size=9,
        bottleneck=2,
        usage=np.full((layers, priors), 1 / 3),
        entropy=np.ones(shape),
        coverage=np.ones((layers, heads)),
        overlap=np.tile(np.eye(priors), (layers, heads, 1, 1)),
        head_overlap=np.ones((layers, priors, heads, heads)),
        similarity=np.tile(np.eye(priors), (layers, 1, 1)),
        effective_rank=np.ones(layers),
        winners=np.zeros((*shape, 2, 2), np.int64),
        winner_scores=np.ones((*shape, 2)),
        taken=g.integers(0, 3, (*shape, images, patches)),
        scope="image",
    )


def test_the_view_starts_with_all_heads_unless_there_is_one() -> None:
    section = images_section(planted_selection(2), "images")
    layer, head = section.choices
    assert layer.options == ["layer 1"]
    assert (head.options, head.start) == (["head 1", "head 2", "all heads"], 2)
    assert "the more clearly the more heads take a patch" in section.note
    section = images_section(planted_selection(1), "images")
    assert (section.choices[1].options, section.choices[1].start) == (["head 1"], 0)
    assert "more heads" not in section.note


def test_all_heads_take_a_patch_as_early_as_any_of_them() -> None:
    taken = np.array([[[3, 0, 1, 0]], [[2, 0, 5, 4]]])  # S M P
    assert with_all_heads(taken).tolist() == [[[3, 0, 1, 0]], [[2, 0, 5, 4]], [[2, 0, 1, 4]]]
    assert with_all_heads(taken[:1]).tolist() == taken[:1].tolist()


@pytest.mark.parametrize("patches", [[], [0], [8], [0, 3, 4, 195], list(range(49))])
def test_patches_are_the_bits_of_a_hexadecimal_number(patches: list[int]) -> None:
    is_taken = np.zeros(196, bool)
    is_taken[patches] = True
    digits = to_digits(is_taken)
    assert int(digits or "0", 16) == sum(1 << patch for patch in patches)
    assert (digits == "") == (not patches)


def test_the_data_of_an_image_has_every_prior_of_every_layer_and_head() -> None:
    selection = planted_selection(2)
    data = TriangleConfig(num_train=2, num_test=2).load_test(torch.device("cpu"))
    traced = trace_retrieval(AiT(PER_IMAGE.model).eval(), data.test)
    images = list_images(selection, traced, [["a", "b"]] * 2)
    for i, image in enumerate(images):
        assert len(image["taken"][0]) == 3  # two heads, and all of them
        for head in range(2):
            for prior in range(3):
                expected = selection.taken[0, head, prior, i] > 0
                assert image["patches"][0][head][prior] == to_digits(expected)


@torch.no_grad()
def test_energies_are_sums_over_heads_and_the_prior_has_the_largest_mean_weight() -> None:
    model = AiT(PER_IMAGE.model).eval()
    for block in model.blocks:
        block.workspace.to_attractor.weight.mul_(4)
    split = TriangleConfig(num_train=2, num_test=3).load_test(torch.device("cpu")).test
    traced = trace_retrieval(model, split)
    assert traced.energy is not None and traced.nearest is not None
    assert traced.energy.shape == (2, 3, 16, 5)
    inputs: list[torch.Tensor] = []
    workspace = model.blocks[0].workspace
    hook = workspace.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    (batch,) = split.eval_batches(3)
    model(batch.images)
    hook.remove()
    u = inputs[0].double()
    weights, settings = weights_of(workspace)
    memory = naive_image.workspace_step(u, weights, settings).priors[2]
    attractors = naive.linear(memory, weights.attractor_weight, weights.attractor_bias)
    beta, total, energy = 1 / 8**0.5, torch.zeros(16, 4).double(), np.zeros((16, 2))
    for part in (slice(0, 8), slice(8, 16)):
        stored = attractors[:, part]
        for number, token in enumerate(u[2, :, part]):
            total[number] += torch.stack(
                naive.softmax([beta * naive.dot(token, y) for y in stored])
            )
            for steps in (0, 1):
                state = naive.hopfield_retrieve(token[None], stored, beta, steps)
                energy[number, steps] += naive.hopfield_energy(state, stored, beta).item()
    assert traced.energy[0, 2, :, :2] == pytest.approx(energy, rel=1e-4)
    assert traced.nearest[0, 2].tolist() == total.argmax(dim=-1).tolist()


# --- roles of the priors ---


def charts_of(section: Section, layer: int) -> dict[str, Any]:
    return {
        figure.chart.title: figure.chart
        for figure in section.figures
        if figure.shown_if == {"layer": layer}
    }


def test_information_is_shown_by_head_next_to_the_permutations() -> None:
    roles = plant_roles(2, 3, 4)
    p_values = np.full((3, 2, 3), 0.5)
    p_values[2, 1, 1] = 0.01
    roles = replace(roles, read_p_value=p_values)
    section = roles_section(roles, None, "images")
    charts = charts_of(section, 1)
    taken, read = charts["Prior that takes a patch, layer 2"], charts["Prior read, layer 2"]
    assert isinstance(taken, Bars) and isinstance(read, Bars)
    assert list(taken.labels)[:4] == [
        *(f"position, head {i}" for i in (1, 2, 3)),
        "content, head 1",
    ]
    assert len(read.labels) == 9 and read.labels[0] == "class, head 1"
    bits = taken.parts["information, bits"]
    assert bits == [*roles.write_information[1, 1], *roles.write_information[2, 1]]
    assert list(read.marks["permuted"]) == roles.read_information_baseline[:, 1].ravel().tolist()
    assert (taken.note, read.note) == ("Smallest p-value: 0.2.", "Smallest p-value: 0.01.")
    assert "at most 2 with 4 priors, on 10 test images" in section.note


def test_the_matrix_of_a_layer_has_a_row_for_each_variable_and_a_column_for_each_prior() -> None:
    roles = plant_roles(1, 2, 4)
    charts = charts_of(roles_section(roles, None, "questions"), 0)
    heat = charts["Patches taken, prior by prior, layer 1"]
    assert isinstance(heat, Heat) and list(heat.rows) == list(VARIABLES[1:])
    expected = (roles.write_focus - roles.write_focus_baseline)[1:, 0].mean(axis=1)
    assert np.array(heat.values) == pytest.approx(expected)
    assert heat.high == pytest.approx(expected.max())
    assert len(charts["Patches read, prior by prior, layer 1"].rows) == 3


def test_the_table_names_what_each_prior_takes_most_and_who_reads_it() -> None:
    roles = plant_roles(1, 2, 2)
    by_position, by_content = np.zeros((1, 2, 2, 4)), np.zeros((1, 2, 2, 5))
    by_position[..., 2], by_content[..., 4] = 1, 0.6
    by_class = np.tile([0.25, 0.75], (1, 2, 2, 1))
    changes = {"write_by_position": by_position, "write_by_content": by_content}
    roles = replace(roles, read_by_class=by_class, **changes)
    (grid,) = roles_section(roles, None, "images").tables
    assert grid.is_folded
    assert grid.rows[1] == [
        "layer 1, prior 2",
        "row 2, column 1 (100 %)",
        "cluster 5 (60 %)",
        f"{CLASSES[1]} (75 %)",
    ]


def test_silenced_priors_are_compared_with_the_whole_model() -> None:
    silencing = plant_silencing(2, 3)
    section = roles_section(None, silencing, "images")
    charts = charts_of(section, 1)
    accuracy = charts["Accuracy without a prior, layer 2"]
    assert isinstance(accuracy, Bars)
    assert accuracy.parts["accuracy, %"] == (100 * silencing.silenced_accuracy[1]).tolist()
    assert accuracy.marks["whole model"] == [50.0] * 3
    changed = charts["Answers that change without a prior, layer 2"].parts["answers, %"]
    assert changed == (100 * silencing.changed[1]).tolist()
    shift = charts["Change of the logits without a prior, layer 2"].parts
    assert list(shift.values()) == [silencing.shift[1].tolist()]
    heat = charts["Mean change of each logit without a prior, layer 2"]
    assert heat.values == silencing.logit_change[1].tolist() and heat.low == -heat.high
    assert "correct on 50.00 % of 8 test images" in section.note
    assert "permutation" not in section.note  # without roles


def test_the_logits_of_many_classes_are_not_drawn() -> None:
    many = [f"c{i}" for i in range(21)]
    silencing = replace(plant_silencing(1, 2), classes=many, logit_change=np.zeros((1, 2, 21)))
    titles = charts_of(roles_section(None, silencing, "images"), 0)
    assert not [title for title in titles if "each logit" in title]


def test_without_an_effect_or_roles_the_charts_have_a_scale() -> None:
    nothing = np.zeros((1, 2))
    silencing = Silencing(1, CLASSES, 1.0, nothing + 1, nothing, nothing, np.zeros((1, 2, 2)))
    roles = plant_roles(1, 1, 2)
    roles = replace(roles, write_focus=0 * roles.write_focus, read_focus=0 * roles.read_focus)
    for figure in roles_section(roles, silencing, "images").figures:
        if isinstance(figure.chart, Heat):
            assert figure.chart.high > figure.chart.low
            assert np.isfinite(figure.chart.values).all()


# --- recall ---


def test_recall_is_shown_by_noise_and_by_load_next_to_the_theory() -> None:
    recall = plant_recall(2)
    capacity = np.array([[0.0, 0.0], [12.5, 3.0]])
    section = recall_section(replace(recall, capacity=capacity))
    error, recalled, certain = charts_of(section, 1).values()
    assert isinstance(error, Lines) and "with 4 patterns, layer 2" in error.title
    for i, line in enumerate(error.series):
        assert (line.x, line.y) == (recall.noise.tolist(), recall.error[i, 1, -1].tolist())
    assert recalled.title == "Patterns recalled with noise 0.5, layer 2"
    for i in range(2):
        assert recalled.series[i].y == (100 * recall.recalled[i, 1, :, 1]).tolist()
        assert certain.series[i].y == (100 * recall.guaranteed[i, 1]).tolist()
        assert certain.series[i].x == [1, 4]
    (grid,) = section.tables
    assert grid.rows == [["β = 0.05", "none", "none"], ["β = 4", "12.5", "3"]]
    assert "the memory has 4" in grid.caption and "width 32, in 20 networks" in section.note


# --- priors ---


def test_the_pools_of_a_memory_for_each_image_are_the_images() -> None:
    selection = planted_selection(2)
    note = priors_section(selection, None, "images").note
    assert "takes 2 of the 9 tokens of each image (2 test images in total)" in note
    note = priors_section(replace(selection, scope="batch"), None, "images").note
    assert "takes 2 of the 9 tokens in a pool" in note and "about the class." not in note
