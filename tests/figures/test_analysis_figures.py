"""The figures of an analysis: their content, files and legibility."""

import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from associative_transformer import figures
from associative_transformer.analysis import Analysis
from associative_transformer.analysis.basins import Basins
from associative_transformer.analysis.capacity import Capacity
from associative_transformer.analysis.competition import Competition
from associative_transformer.analysis.drift import Drift
from associative_transformer.analysis.information import VARIABLES
from associative_transformer.analysis.reconstruction import Reconstruction
from associative_transformer.analysis.selection import SelectionStatistics
from associative_transformer.analysis.specialization import Specialization
from associative_transformer.figures import draw_analysis
from associative_transformer.interface import UserError
from making.roles import CLASSES, plant_recall, plant_roles, plant_silencing

NAMES = list(figures.DRAWINGS)
CAPTION = "a $model_1$ <b>, Triangle, seed 7"
Draw = Callable[..., list[Figure]]


def image_of(index: int) -> UInt8[np.ndarray, "C H W"]:
    """Return 3 x 8 x 8 pixels that differ between images and between patches."""
    return (np.arange(3 * 64).reshape(3, 8, 8) + 7 * index).astype(np.uint8)


def plant(
    layers: int = 2, heads: int = 2, priors: int = 4, images: int = 3, winners: int = 3
) -> Analysis:
    """Return an analysis with random numbers, of images with 2 x 2 patches."""
    g = np.random.default_rng(0)
    shape = (layers, heads, priors)
    shares = g.dirichlet([1, 1, 1], (2, layers))
    information = g.uniform(0.1, 0.2, (3, *shape))
    return Analysis(
        competition=Competition(
            0.9, 10, list(range(layers)), g.integers(1, 9, (layers, heads, 5))
        ),
        selection=SelectionStatistics(
            num_images=10,
            pool_size=24,
            bottleneck=6,
            usage=g.dirichlet(np.ones(priors), layers),
            entropy=g.uniform(size=shape),
            coverage=g.uniform(size=(layers, heads)),
            overlap=np.tile(np.eye(priors), (layers, heads, 1, 1)),
            head_overlap=np.tile(np.eye(heads), (layers, priors, 1, 1)),
            similarity=np.tile(np.eye(priors), (layers, 1, 1)),
            effective_rank=np.full(layers, 3.0),
            winners=g.integers(0, 4, (*shape, winners, 2)),
            winner_scores=g.uniform(size=(*shape, winners)),
            taken=g.integers(0, 3, (*shape, images, 4)),
        ),
        specialization=Specialization(
            num_images=10,
            num_permutations=5,
            classes=CLASSES,
            information=information,
            baseline=np.full_like(information, 0.1),
            p_value=np.full_like(information, 0.2),
            by_class=g.dirichlet([1, 1], shape),
            by_position=g.dirichlet(np.ones(4), shape),
            by_content=g.dirichlet(np.ones(3), shape),
            content_edges=np.linspace(0, 1, 4),
        ),
        roles=plant_roles(layers, heads, priors),
        silencing=plant_silencing(layers, priors),
        recall=plant_recall(layers),
        basins=Basins(
            betas=np.array([0.05, 4.0]),
            trained_beta=1.0,
            num_tokens=40,
            energy=g.uniform(5, 9, (2, layers, 3)),
            energy_spread=g.uniform(size=(2, layers, 3)),
            num_fixed_points=np.full((2, layers), 2),
            single=shares[..., 0],
            metastable=shares[..., 1],
            uniform=shares[..., 2],
            basins=np.sort(g.dirichlet(np.ones(priors), (2, layers)))[..., ::-1],
            noise=np.array([0.1, 1.0]),
            recall=g.uniform(size=(2, layers, 2)),
        ),
        capacity=Capacity(
            num_priors=np.array([8, 16]),
            pool_sizes=np.array([64, 1024]),
            num_moves=5,
            effective_rank=g.uniform(1, 8, (layers, 2, 2)),
            coverage=g.uniform(size=(layers, 2, 2)),
            recalled=g.uniform(size=(layers, 2, 2)),
        ),
        reconstruction=Reconstruction(
            betas=np.array([0.05, 4.0]),
            images=np.arange(images),
            before=g.normal(size=(layers, images, 4, 2)),
            after=g.normal(size=(2, layers, images, 4, 2)),
            explained=np.full(layers, 0.5),
            num_distinct=np.full((2, layers), 3),
        ),
    )


def only(name: str, analysis: Analysis | None = None, **changes: Any) -> Analysis:  # noqa: ANN401
    """Return an analysis with only one of the results, and with the given fields changed."""
    result = getattr(analysis or plant(), name)
    return Analysis(**{name: replace(result, **changes)})


def text_of(figure: Figure) -> str:
    """Return the text that an SVG of the figure would contain."""
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def caption_of(figure: Figure) -> str:
    return figure.get_supxlabel().replace("\n", " ")


@pytest.fixture
def draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Draw:
    """Return a function that returns figures instead of writing them; warnings are errors."""
    drawn: list[Figure] = []
    lays_out = False

    def keep(figure: Figure, ending: str) -> bytes:
        if ending == "png":
            drawn.append(figure)
            if lays_out:
                figure.draw_without_rendering()
        return b""

    def draw(
        analysis: Analysis, caption: str = CAPTION, lay_out: bool = False, items: str = "images"
    ) -> list[Figure]:
        nonlocal lays_out
        lays_out = lay_out
        drawn.clear()
        with warnings.catch_warnings(action="error"):
            draw_analysis(analysis, image_of, tmp_path, caption, items)
        return drawn

    monkeypatch.setattr(figures, "_encode", keep)
    return draw


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    with warnings.catch_warnings(action="error"):
        written = draw_analysis(plant(layers=1), image_of, folder, CAPTION)
    assert written == [
        folder / "figures" / f"{name}.{end}" for name in NAMES for end in ("png", "svg")
    ]
    return folder / "figures"


def svg_text(path: Path) -> str:
    return "\n".join(
        e.text or "" for e in ElementTree.parse(path).iter() if e.tag.endswith("text")
    )


def test_each_figure_is_a_png_and_an_svg_as_wide_as_a_page(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        f"{name}.{ending}" for name in NAMES for ending in ("png", "svg")
    }
    for name in NAMES:
        with Image.open(folder / f"{name}.png") as picture:
            assert picture.width == 1100
            assert 300 < picture.height < 1800
            pixels = np.asarray(picture.convert("L"))
        assert (pixels[:, [0, -1]] == 255).all()  # nothing is cut off
        assert (pixels[[0, -1]] == 255).all()
        assert ElementTree.parse(folder / f"{name}.svg").getroot().get("width") == "396pt"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("competition", ["tokens for 90 % of the attention", "head", "layer 1", "10 images"]),
        ("selection", ["layer 1\nprior", "pools of 24 tokens", "3 of 10 images"]),
        ("specialization", ["information about position", "mbit", "prior", "10 images"]),
        ("roles", ["information, bits", "taken: content", "5 clusters", "layer 1: where"]),
        ("silencing", ["silenced prior", "answers that change, %", "8 images", "50.00 %"]),
        ("recall", ["noise / pattern norm", "error with 4 patterns", "12.5", "20 networks"]),
        ("basins", ["energy", "retrieval step", "β = 0.05", "metastable", "(40), retrieved"]),
        ("reconstruction", ["component 1", "before, 50 %", "β = 4", "image 3", "3 images"]),
        ("capacity", ["effective rank", "pool of 1,024 tokens", "priors", "5 writes"]),
    ],
)
def test_labels_units_and_captions_are_text_in_the_svg(
    name: str, words: list[str], folder: Path
) -> None:
    lines = svg_text(folder / f"{name}.svg")
    text = lines + lines.replace("\n", " ")  # with and without the line breaks of the caption
    assert CAPTION in text
    assert not [word for word in words if word not in text]


def test_names_of_classes_are_shown_literally(folder: Path) -> None:
    text = svg_text(folder / "specialization.svg")
    assert all(name in text for name in CLASSES)
    assert "<script>" not in (folder / "specialization.svg").read_text()


@pytest.mark.parametrize("name", ["competition", "selection", "basins", "reconstruction"])
def test_equal_numbers_give_equal_bytes_for_any_matplotlib_settings(
    name: str, folder: Path, tmp_path: Path
) -> None:
    with matplotlib.rc_context({"text.usetex": True, "lines.linewidth": 9, "svg.hashsalt": "x"}):
        draw_analysis(only(name, plant(layers=1)), image_of, tmp_path, CAPTION)
        assert matplotlib.rcParams["lines.linewidth"] == 9
    for ending in ("png", "svg"):
        file = f"{name}.{ending}"
        assert (tmp_path / "figures" / file).read_bytes() == (folder / file).read_bytes()


def test_no_figure_stays_open(folder: Path) -> None:
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_an_empty_analysis_has_no_figures(tmp_path: Path) -> None:
    assert draw_analysis(Analysis(), image_of, tmp_path, CAPTION) == []
    assert not list(tmp_path.rglob("*.*"))


def test_a_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "figures").write_text("a file")
    with pytest.raises(UserError, match="figures"):
        draw_analysis(plant(), image_of, tmp_path, CAPTION)


ONE = plant(layers=1)


def without_numbers(analysis: Analysis) -> Analysis:
    """Replace all numbers by nan, and counts by 0."""
    results = {}
    for name, result in analysis._asdict().items():
        if result is not None:
            arrays = {f.name: getattr(result, f.name) for f in fields(result)}
            floats = {
                key: np.full_like(value, np.nan)
                for key, value in arrays.items()
                if isinstance(value, np.ndarray) and value.dtype.kind == "f" and key != "betas"
            }
            results[name] = replace(result, **floats)
    counts = np.zeros_like(results["competition"].counts)
    results["competition"] = replace(results["competition"], counts=counts)
    return Analysis(**results)


@pytest.mark.parametrize(
    "analysis",
    [
        plant(layers=0),
        plant(layers=1, images=0)._replace(basins=None, capacity=None),
        plant(layers=1, heads=0)._replace(basins=None, capacity=None, reconstruction=None),
        plant(layers=1, priors=1, heads=1, images=1),
        without_numbers(plant(layers=1)),
        plant(layers=1, winners=0)._replace(basins=None, capacity=None, reconstruction=None),
        only("basins", ONE, energy=np.zeros((2, 1, 3)), basins=np.zeros((2, 1, 4))),
        only("basins", ONE, energy=-np.ones((2, 1, 3))),
        only("capacity", ONE, effective_rank=np.zeros((1, 2, 2))),
        only("reconstruction", ONE, before=np.ones((1, 3, 4, 2)), after=np.ones((2, 1, 3, 4, 2))),
    ],
    ids=range(10),
)
def test_empty_results_and_nan_are_left_out_without_a_warning(
    analysis: Analysis, draw: Draw
) -> None:
    figures = draw(analysis, lay_out=True)
    assert len(figures) == sum(result is not None for result in analysis)
    assert all(caption_of(figure).startswith(CAPTION) for figure in figures)


def test_names_and_captions_are_shown_literally_without_unprintable_characters(
    draw: Draw,
) -> None:
    names = [r"$\frac$ \x_^{", "三角形", "one\ntwo\ud800\x00", "x" * 60]
    by_class = np.eye(4)[None, None]
    analysis = plant(layers=1, heads=1)
    result = replace(analysis.specialization, classes=names, by_class=by_class)
    analysis = Analysis(selection=analysis.selection, specialization=result)
    (_, figure) = draw(analysis, "a $\\caption \ud800\n三 " + "word " * 60, lay_out=True)
    text = text_of(figure)
    shown = [r"$\frac$ \x_^{: 100 %", "三角形: 100 %", "one two  : 100 %", f"{'x' * 17}…: 100 %"]
    assert not [name for name in shown if name not in text]
    assert caption_of(figure).startswith("a $\\caption   三 word word")
    assert len(figure.get_supxlabel().splitlines()) > 4
    assert text.replace("\n", "").isprintable()


def test_a_longer_caption_makes_the_figure_taller(draw: Draw) -> None:
    short, long = (draw(only("capacity", ONE), "word " * n)[0] for n in (1, 200))
    lines = [len(figure.get_supxlabel().splitlines()) for figure in (short, long)]
    more = 72 * (long.get_figheight() - short.get_figheight()) / (lines[1] - lines[0])
    assert 7 < more < 14  # points per line of a font of 7 points


@pytest.mark.parametrize(
    "name", ["selection", "roles", "basins", "recall", "reconstruction", "capacity"]
)
def test_the_first_middle_and_last_of_many_layers_are_drawn(name: str, draw: Draw) -> None:
    (figure,) = draw(only(name, plant(layers=12)))
    shown = set(re.findall(r"^layer \d+", text_of(figure), re.MULTILINE))
    assert shown == {"layer 1", "layer 6", "layer 12"}
    assert caption_of(figure).endswith("Layers shown: 1, 6, 12 of 12.")
    (figure,) = draw(only(name, plant(layers=3)))
    assert "Layers shown" not in caption_of(figure)


def extent(path: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """Return the extent in x of the points whose y is in the given range."""
    x = path[(path[:, 1] >= low) & (path[:, 1] <= high), 0]
    return x.min(), x.max()


def test_the_width_of_a_distribution_is_the_number_of_tokens(draw: Draw) -> None:
    counts = np.array([[[0, 4, 2, 0, 1], [0, 0, 0, 0, 8], [0, 0, 0, 0, 0]]])
    (figure,) = draw(only("competition", counts=counts, layers=[2]))
    (ax,) = figure.axes
    first, second = (each.get_paths()[0].vertices for each in ax.collections)
    assert extent(first, 0.6, 1.5) == pytest.approx((0.58, 1.42))
    assert extent(first, 1.6, 2.5) == pytest.approx((0.79, 1.21))
    assert extent(first, 2.5, 3.5) == pytest.approx((0.79, 1.21))  # the edge at 2.5
    assert (first[:, 1].min(), first[:, 1].max()) == (0.5, 4.5)
    assert extent(second, 0, 9) == pytest.approx((1.58, 2.42))
    assert (second[:, 1].min(), second[:, 1].max()) == (3.5, 4.5)
    assert [text.get_text() for text in ax.texts] == ["1", "4"]  # medians
    dots = [line.get_xydata().tolist() for line in ax.lines if line.get_marker() == "o"]
    assert dots == [[[1, 1]], [[2, 4]]]
    bounds = [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() in ("--", ":")]
    assert bounds == [1, 4]  # ceil(0.9 * 4)
    assert ax.get_ylabel() == "layer 3"


def test_competition_has_a_row_for_each_of_up_to_twelve_layers(draw: Draw) -> None:
    (figure,) = draw(only("competition", plant(layers=12)))
    assert [ax.get_ylabel() for ax in figure.axes] == [f"layer {i}" for i in range(1, 13)]
    (figure,) = draw(only("competition", plant(layers=30)))
    labels = [ax.get_ylabel() for ax in figure.axes]
    assert (len(labels), labels[0], labels[-1]) == (12, "layer 1", "layer 30")
    assert caption_of(figure).endswith("30 of 30.")


def test_taken_patches_are_outlined_and_dimmed_by_their_order(draw: Draw) -> None:
    taken = np.zeros((1, 2, 4, 1, 4), int)
    taken[0, 1, 2, 0, 1] = 1  # at the top right, by prior 3
    taken[0, 0, 2, 0, [1, 3]] = 5, 6  # last, below it; and at the top right again, but later
    usage = np.array([[0.2, 0.1, 0.6, 0.1]])
    (figure,) = draw(only("selection", plant(layers=1), taken=taken, usage=usage))
    (ax,) = figure.axes
    image = image_of(0).transpose(1, 2, 0) / 255
    original, shown, *others = (np.asarray(each.get_array()) for each in ax.images)
    assert np.allclose(original, image)
    assert np.allclose(shown[:4, 4:], image[:4, 4:])
    assert np.allclose(shown[4:, 4:], image[4:, 4:] / 2 + 0.4)
    assert np.allclose(shown[:, :4], 0.15 * image[:, :4] + 0.85 * 0.8)
    assert all(np.allclose(other, 0.15 * image + 0.85 * 0.8) for other in others)
    outlines = [each.get_segments() for each in ax.collections if isinstance(each, LineCollection)]
    white, black, *rest = outlines
    assert np.array_equal(white, black)
    assert not any(len(each) for each in rest)
    left, right, bottom, top = ax.images[1].get_extent()
    ends = np.array(black)  # (6, 2, 2): three sides of each patch, not the side between them
    middle = ends.mean(axis=1)
    assert len(ends) == 6
    assert np.allclose(np.abs(ends[:, 1] - ends[:, 0]).sum(axis=1), 0.5)
    half = (left + right) / 2
    on_the_edge = np.isclose(middle[:, 0], half) | np.isclose(middle[:, 0], right)
    on_the_edge |= np.isclose(middle[:, 1], top) | np.isclose(middle[:, 1], bottom)
    assert on_the_edge.all()
    assert (middle[:, 0] >= half).all()


def test_the_most_used_priors_are_shown_without_duplicates(draw: Draw) -> None:
    overlap = np.tile(np.eye(4), (1, 2, 1, 1))
    overlap[..., 0, 3] = overlap[..., 3, 0] = 1
    usage = np.array([[0.2, 0.1, 0.3, 0.4]])
    (figure,) = draw(only("selection", plant(layers=1), overlap=overlap, usage=usage))
    (ax,) = figure.axes
    labels = [text.get_text() for text in ax.texts]
    assert labels == ["image", "layer 1\nprior 3", "layer 1\nprior 1", "layer 1\nprior 2"]
    assert "(1 of 4 priors" in caption_of(figure)


def test_the_pools_of_memories_of_images_are_the_images(draw: Draw) -> None:
    drift = Drift([1, 2], np.zeros((2, 2)), np.ones((2, 2)))
    analysis = only("selection", scope="image")._replace(drift=drift)
    caption = caption_of(draw(analysis)[0])
    assert "from the 24 tokens of an image, opaque" in caption and "pool" not in caption
    assert "Below: the learned contents with which each memory starts, after" in caption


def test_the_bars_of_information_are_means_over_heads_next_to_permutations(draw: Draw) -> None:
    """Of what is taken, class is left out; class is the first variable, content the last."""
    bits = np.arange(12.0).reshape(3, 2, 2)  # variables, layers, heads
    chance = bits / 10
    changes = {"write_information": bits, "write_information_baseline": chance}
    changes |= {"read_information": 10 * bits, "read_information_baseline": chance}
    (figure,) = draw(only("roles", **changes), lay_out=True)
    ax = figure.axes[0]
    names = [text.get_text() for text in ax.get_legend().texts]
    assert names == ["taken: position", "taken: content", *(f"read: {x}" for x in VARIABLES)]
    bars = [[bar.get_height() for bar in bars] for bars in ax.containers]
    means = bits.mean(axis=-1).tolist()
    assert bars == [*means[1:], *(10 * bits.mean(axis=-1)).tolist()]
    strokes = [lines.get_segments() for lines in ax.collections]
    assert [[line[0, 1] for line in pair] for pair in strokes[:2]] == pytest.approx(
        np.array(means[1:]) / 10
    )


def test_roles_have_a_map_of_the_picture_for_each_prior_and_a_patch_for_each_cluster(
    draw: Draw,
) -> None:
    by_position = np.zeros((1, 2, 3, 4))
    by_position[0, :, 0, 3] = by_position[0, :, 1, 0] = 1
    by_position[0, 0, 2, 1] = by_position[0, 1, 2, 2] = 1  # the heads differ
    roles = replace(plant_roles(1, 2, 3), write_by_position=by_position)
    (figure,) = draw(Analysis(roles=roles), lay_out=True)
    maps = next(ax for ax in figure.axes if "where priors take" in ax.get_title())
    drawn = [np.asarray(image.get_array()).tolist() for image in maps.images]
    assert drawn == [[[0, 0], [0, 1]], [[1, 0], [0, 0]], [[0, 0.5], [0.5, 0]]]
    assert [text.get_text() for text in maps.texts] == ["1", "2", "3"]
    clusters = next(ax for ax in figure.axes if len(ax.images) == 5)
    for (index, patch), image in zip(roles.exemplars.tolist(), clusters.images, strict=True):
        top, left = 4 * (patch // 2), 4 * (patch % 2)
        crop = image_of(index)[:, top : top + 4, left : left + 4].transpose(1, 2, 0)
        assert np.array_equal(np.asarray(image.get_array()), crop)


def test_silencing_has_a_row_per_layer_with_a_bar_for_each_prior(draw: Draw) -> None:
    accuracy = np.array([[0.5, 0.25, 0.75, 0.5], [0.5] * 4])
    analysis = only("silencing", silenced_accuracy=accuracy)
    (figure,) = draw(analysis, lay_out=True)
    heights = [[bar.get_height() for bar in ax.patches] for ax in figure.axes]
    silencing = analysis.silencing
    assert heights[0] == [0, -25, 25, 0]  # points, compared with the whole model
    assert heights[4] == (100 * silencing.changed[1]).tolist()
    assert heights[2] == silencing.shift[0].tolist()
    assert [ax.get_ylabel() for ax in figure.axes[::3]] == ["layer 1", "layer 2"]


def test_recall_is_drawn_by_noise_and_by_load_for_each_temperature(draw: Draw) -> None:
    analysis = only("recall")
    recall = analysis.recall
    (figure,) = draw(analysis, lay_out=True)
    error, recalled, certain = figure.axes[3:6]  # of layer 2
    for i in range(2):
        points = error.lines[i].get_xydata()
        assert points.tolist() == np.stack([recall.noise, recall.error[i, 1, -1]], -1).tolist()
        assert recalled.lines[i].get_ydata().tolist() == recall.recalled[i, 1, :, 1].tolist()
        assert certain.lines[i].get_ydata().tolist() == recall.guaranteed[i, 1].tolist()
    assert "for each β: layer 1: 12.5, 12.5; layer 2: 12.5, 12.5." in caption_of(figure)


def test_the_drift_of_the_memory_is_drawn_below_the_patches(draw: Draw) -> None:
    angle, rank = np.array([[0, 0], [30.0, 60], [9, 6]]), np.array([[2.5, 4], [2, 3], [1, 3.5]])
    analysis = only("selection")._replace(drift=Drift([1, 2, 3], angle, rank))
    (figure,) = draw(analysis, lay_out=True)
    grid, angles, ranks = figure.axes
    (without_drift,) = draw(only("selection"))[0].axes
    assert [text.get_text() for text in grid.texts] == [
        text.get_text() for text in without_drift.texts
    ]
    assert (angles.get_xlabel(), angles.get_ylabel()) == ("epoch", "angle, °")
    assert (ranks.get_xlabel(), ranks.get_ylabel()) == ("epoch", "directions")
    for layer in (0, 1):
        assert angles.lines[layer].get_xydata().tolist() == [
            [2, angle[1, layer]],  # the first epoch has no angle
            [3, angle[2, layer]],
        ]
        assert ranks.lines[layer].get_ydata().tolist() == rank[:, layer].tolist()
        assert angles.lines[layer].get_color() == ranks.lines[layer].get_color()
    assert [text.get_text() for text in ranks.get_legend().texts] == ["layer 1", "layer 2"]
    assert "drift is the mean angle between a prior and itself one epoch before" in caption_of(
        figure
    )
    one = Drift([1], angle[:1], rank[:1])
    assert draw(only("selection")._replace(drift=one), lay_out=True)


@pytest.mark.parametrize("name", ["competition", "selection", "specialization", "reconstruction"])
def test_with_questions_the_figures_count_questions(name: str, draw: Draw) -> None:
    images, questions = (
        " ".join(text_of(draw(only(name), items=items)[0]).split())
        for items in ("images", "questions")
    )
    assert re.search(r"\d images", images) and "question" not in images
    assert re.search(r"\d questions", questions)
    assert not re.search(r"\d images|image \d|per image", questions)


def specialized(**changes: Any) -> Analysis:  # noqa: ANN401
    """Return an analysis in which two of the priors are specialized."""
    analysis = plant(layers=2, heads=2, priors=3)
    selection = replace(analysis.selection, **changes)
    information = np.zeros((3, 2, 2, 3))
    information[1, 1, 0, 2] = 0.05  # position: layer 2, head 1, prior 3
    information[0, 0, 1, 1] = 0.03  # class: layer 1, head 2, prior 2
    information[2, 0, 1, 1] = 0.01
    result = replace(
        analysis.specialization,
        information=information + 0.1,
        by_class=np.tile([0.25, 0.75], (2, 2, 3, 1)),
    )
    return Analysis(selection=selection, specialization=result)


def test_winners_of_the_most_informative_priors_are_cut_out_of_their_images(draw: Draw) -> None:
    winners = np.zeros((2, 2, 3, 2, 2), int)
    winners[1, 0, 2] = [[5, 3], [0, -1]]  # the patch at the bottom right of image 6; a question
    winners[0, 1, 1, 0] = [2, 1]
    scores = np.zeros((2, 2, 3, 2))
    analysis = specialized(winners=winners, winner_scores=scores)
    _, figure = draw(analysis, items="questions")
    ax = figure.axes[0]
    first, second, third = (np.asarray(each.get_array()) for each in ax.images[:3])
    assert np.array_equal(first, image_of(5)[:, 4:, 4:].transpose(1, 2, 0))
    assert np.array_equal(second, image_of(2)[:, :4, 4:].transpose(1, 2, 0))
    assert np.array_equal(third, image_of(0)[:, :4, :4].transpose(1, 2, 0))
    texts = [text.get_text() for text in ax.texts]
    assert texts[:3] == [
        "Q",
        "layer 2, prior 3\nhead 1",
        "position 50 mbit\n<script> & co: 75 %",
    ]
    assert "layer 1, prior 2\nhead 2" in texts
    assert "class 30 mbit\n<script> & co: 75 %" in texts
    assert len(texts) == 1 + 2 * 6
    assert "; Q: a question." in caption_of(figure)
    assert "question" not in caption_of(draw(specialized())[1])
    _, figure = draw(analysis)  # without questions, another token is the class token
    assert figure.axes[0].texts[0].get_text() == "C"
    assert "; C: a class token." in caption_of(figure)


def test_duplicates_and_priors_with_nan_have_no_row(draw: Draw) -> None:
    overlap = np.tile(np.eye(3), (2, 2, 1, 1))
    overlap[1, :, 2, 0] = 1  # of layer 2, prior 3 takes what prior 1 takes
    analysis = specialized(overlap=overlap)
    information = analysis.specialization.information.copy()
    information[0, 0, 0, 0] = np.nan
    result = replace(analysis.specialization, information=information)
    analysis = analysis._replace(specialization=result)
    text = text_of(draw(analysis)[1])
    assert re.findall(r"^layer (\d), prior (\d)", text, re.MULTILINE) == [
        ("1", "2"),
        ("1", "3"),
        ("2", "1"),
        ("2", "2"),
    ]


def test_maps_show_the_mean_information_of_the_heads_above_the_baseline(draw: Draw) -> None:
    for analysis in (specialized(), specialized()._replace(selection=None)):
        figure = draw(analysis)[-1]
        maps = {
            ax.get_title().split()[-1]: np.asarray(ax.images[0].get_array())
            for ax in figure.axes
            if ax.get_title().startswith("information")
        }
        assert list(maps) == ["class", "position", "content"]
        assert np.allclose(maps["class"], [[0, 15, 0], [0, 0, 0]])
        assert np.allclose(maps["position"], [[0, 0, 0], [0, 0, 25]])
        assert np.allclose(maps["content"], [[0, 5, 0], [0, 0, 0]])


def panels(figure: Figure, rows: int) -> list[list[Axes]]:
    columns = len(figure.axes) // rows
    return [figure.axes[i * columns : (i + 1) * columns] for i in range(rows)]


def test_basins_have_rows_for_energy_shares_sizes_and_recall(draw: Draw) -> None:
    basins = plant().basins
    sizes = np.array([[[1, 0, 0, 0], [0.9, 0.1, 0, 0]], [[0.4, 0.3, 0.2, 0.1]] * 2])
    (figure,) = draw(only("basins", basins=sizes))
    for layer, column in enumerate(zip(*panels(figure, 4), strict=True)):
        energy, shares, size, recall = column
        assert energy.get_title() == f"layer {layer + 1}"
        assert energy.get_yscale() == "linear"
        lines = [each.lines[0].get_ydata() for each in energy.containers]
        assert np.allclose(lines, basins.energy[:, layer])
        heights = [[bar.get_height() for bar in each] for each in shares.containers]
        states = [basins.uniform, basins.metastable, basins.single]
        assert np.allclose(heights, [state[:, layer] for state in states])
        assert np.allclose([bar.get_y() + bar.get_height() for bar in shares.containers[2]], 1)
        assert len({each.patches[0].get_hatch() for each in shares.containers}) == 3
        points = [line.get_xydata().tolist() for line in size.lines]
        assert points[1] == [[1, 0.4], [2, 0.3], [3, 0.2], [4, 0.1]]
        assert points[0] == [[[1, 1.0]], [[1, 0.9], [2, 0.1]]][layer]
        assert np.allclose([line.get_ydata() for line in recall.lines], basins.recall[:, layer])
        assert np.allclose(recall.lines[0].get_xdata(), basins.noise)
    legends = [[t.get_text() for t in row[-1].get_legend().texts] for row in panels(figure, 4)]
    betas = ["β = 0.05", "β = 4"]
    assert legends == [betas, ["single", "metastable", "uniform"], betas, betas]


def test_basin_sizes_are_drawn_for_the_smallest_and_the_largest_beta(draw: Draw) -> None:
    b = plant(layers=1).basins
    names = ["energy", "energy_spread", "num_fixed_points"]
    names += ["single", "metastable", "uniform", "basins", "recall"]
    repeated = {name: np.repeat(getattr(b, name), [1, 2], axis=0) for name in names}
    analysis = only("basins", plant(layers=1), betas=np.array([1.0, 16.0, 0.1]), **repeated)
    _, _, size, recall = draw(analysis)[0].axes
    assert [line.get_label() for line in size.lines] == ["β = 16", "β = 0.1"]
    styles = {line.get_label(): (line.get_color(), line.get_marker()) for line in recall.lines}
    assert all(
        styles[line.get_label()] == (line.get_color(), line.get_marker()) for line in size.lines
    )
    assert len(set(styles.values())) == 3


def test_energies_of_many_magnitudes_are_on_a_logarithmic_scale(draw: Draw) -> None:
    energy = np.tile([90.0, 2.0, 0.0], (2, 1, 1))
    (figure,) = draw(only("basins", plant(layers=1), energy=energy))
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "0.1", "1", "10"]


def test_tokens_have_the_hue_and_marker_of_their_image_and_get_lighter(draw: Draw) -> None:
    result = plant(images=9).reconstruction
    (figure,) = draw(only("reconstruction", plant(images=9)))
    for layer, row in enumerate(panels(figure, 2)):
        expected = [result.before[layer], *result.after[:, layer]]
        for ax, tokens in zip(row, expected, strict=True):
            clouds = ax.collections
            assert np.allclose([cloud.get_offsets() for cloud in clouds], tokens[:7])
            assert len({cloud.get_paths()[0].vertices.tobytes() for cloud in clouds}) == 7
            brightness = [cloud.get_facecolors()[:, :3].sum(axis=1) for cloud in clouds]
            assert (np.diff(brightness) > 0).all()
            middles = {tuple(cloud.get_facecolors()[1].round(3)) for cloud in clouds}
            assert len(middles) == 7
    assert "7 of them drawn" in caption_of(figure)
    assert "3 distinct" in figure.axes[1].get_title()


@pytest.mark.parametrize("items", ["images", "questions"])
def test_a_legend_of_seven_items_fits_the_width(items: str, tmp_path: Path) -> None:
    draw_analysis(only("reconstruction", plant(images=9)), image_of, tmp_path, CAPTION, items)
    with Image.open(tmp_path / "figures" / "reconstruction.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    assert (pixels[:, [0, -1]] == 255).all()


def test_retrieved_tokens_of_a_layer_share_a_scale_that_hides_rounding(
    draw: Draw,
) -> None:
    after = np.stack([np.full((1, 3, 4, 2), 5.0), np.full((1, 3, 4, 2), 5 + 1e-9)])
    before = np.zeros((1, 3, 4, 2))
    before[0, 0, 0] = 100, 50
    analysis = only("reconstruction", plant(layers=1), before=before, after=after)
    _, first, second = draw(analysis)[0].axes
    assert first.get_xlim() == second.get_xlim() == pytest.approx((4.4, 5.6))
    assert first.get_ylim() == second.get_ylim() == pytest.approx((4.7, 5.3))
    after[1, 0, 0, 0] = 7, -1
    analysis = only("reconstruction", plant(layers=1), before=before, after=after)
    _, first, second = draw(analysis)[0].axes
    assert first.get_xlim() == second.get_xlim() == pytest.approx((4.8, 7.2))
    assert first.get_ylim() == second.get_ylim() == pytest.approx((-1.6, 5.6))


def test_capacity_has_a_line_for_each_pool_and_the_bound_of_the_rank(draw: Draw) -> None:
    capacity = plant().capacity
    (figure,) = draw(only("capacity"))
    for layer, row in enumerate(panels(figure, 2)):
        values = (capacity.effective_rank, capacity.coverage, capacity.recalled)
        for ax, value in zip(row, values, strict=True):
            assert np.allclose([line.get_ydata() for line in ax.lines[:2]], value[layer].T)
            assert np.allclose([line.get_xdata() for line in ax.lines], [[8, 16]])
        assert np.allclose(row[0].lines[2].get_ydata(), [8, 16])
    (legend,) = figure.legends
    labels = ["pool of 64 tokens", "pool of 1,024 tokens", "full rank"]
    assert [text.get_text() for text in legend.texts] == labels


@pytest.mark.parametrize("name", ["basins", "capacity"])
def test_lines_of_a_panel_differ_in_more_than_color(name: str, draw: Draw) -> None:
    (figure,) = draw(only(name, plant(layers=1)))
    for ax in figure.axes:
        lines = [line for line in ax.lines if line.get_marker() not in ("_", "|", "None", "")]
        assert len({line.get_marker() for line in lines}) == len(lines)
