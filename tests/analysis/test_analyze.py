"""`ait analyze` on runs that were never trained: its sample, results and output."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import Tensor

from associative_transformer import analysis, figures
from associative_transformer.analysis import (
    Analysis,
    analyze,
    load_analysis,
    sample,
    save_analysis,
    storage,
)
from associative_transformer.analysis.basins import Basins
from associative_transformer.analysis.competition import Competition
from associative_transformer.analysis.selection import SelectionStatistics
from associative_transformer.data import HeldOut, SortOfClevrConfig, Split, TriangleConfig
from associative_transformer.experiment import (
    Experiment,
    TrainConfig,
    load_experiment,
    save_experiment,
)
from associative_transformer.interface import UserError
from associative_transformer.models import build_model
from associative_transformer.models.ait import AiTConfig
from associative_transformer.models.dense import DenseConfig
from associative_transformer.models.vit import ViTConfig
from associative_transformer.runs.folder import History
from associative_transformer.runs.saved import load_run
from associative_transformer.workspace_config import ImageMemoryConfig, WorkspaceConfig
from making.commands import Ait, assert_refused
from making.plant import put_result, result_of

CPU = torch.device("cpu")
NUM_TEST = 40
TRIANGLE = TriangleConfig(num_train=8, num_test=NUM_TEST)
CLEVR = SortOfClevrConfig(num_train=8, num_test=4, num_questions=3)
SIZES: dict[str, Any] = {"embed_dim": 16, "depth": 1, "mlp_ratio": 1.0}
HEADS: dict[str, Any] = {"num_heads": 2, "head_dim": 8}
IMAGES: dict[str, Any] = {"image_size": 64, "patch_size": 32, "num_classes": 2}
QUESTIONS: dict[str, Any] = {"image_size": 75, "patch_size": 25, "num_classes": 10}
AIT = AiTConfig(
    **SIZES,
    **HEADS,
    **IMAGES,
    workspace=WorkspaceConfig(num_priors=4, prior_dim=8, num_heads=2, bottleneck=16, beta=2.0),
)
ALL = set(Analysis._fields) - {"roles"}  # which need a memory for each image
IMAGE = replace(
    AIT,
    workspace=WorkspaceConfig(
        num_priors=4,
        prior_dim=8,
        num_heads=2,
        bottleneck=0.5,
        scope="image",
        image=ImageMemoryConfig(read_head_dim=8),
    ),
)
MODELS: dict[str, tuple[Any, set[str]]] = {  # with the analyses that apply to them
    "ait": (AIT, ALL),
    "ait-without-attention": (replace(AIT, use_self_attention=False), ALL - {"competition"}),
    "ait-cross-attention": (
        replace(AIT, read="cross_attention"),
        ALL - {"basins", "reconstruction", "recall"},
    ),
    "ait-without-read": (
        replace(AIT, read="none"),
        ALL - {"basins", "reconstruction", "recall", "silencing"},
    ),
    "ait-image": (IMAGE, ALL | {"roles"}),
    "vit": (ViTConfig(**SIZES, **HEADS, **IMAGES), {"competition", "answers"}),
    "dense": (DenseConfig(**SIZES, **IMAGES, question_dim=0), {"answers"}),
}
TRAIN = TrainConfig(epochs=2, batch_size=16, device="cpu")


def make_run(folder: Path, model: Any = AIT, data: Any = TRIANGLE, train: Any = TRAIN) -> Path:  # noqa: ANN401
    """Write a complete run whose model was not trained."""
    folder.mkdir()
    experiment = Experiment("tiny", data, model, train)
    save_experiment(experiment, folder / "experiment.yaml")
    build_model(model).save_pretrained(folder)
    classes = replace(data, num_test=1).load_test(CPU).class_names
    put_result(folder, result_of(experiment, classes=classes, test_images=data.num_test))
    memory = torch.randn(2, 1, 4, 8).numpy() if isinstance(model, AiTConfig) else np.empty((2, 0))
    History([{}, {}], list(memory)).write(folder)
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the slowest measurements on a smaller scale."""
    capacity = partial(analysis.measure_capacity, num_priors=(2, 3), num_moves=1)
    basins = partial(analysis.measure_basins, betas=(0.5, 2.0), noise=(0.1,))
    recall = partial(analysis.measure_recall, betas=(0.5, 2.0), noise=(0.1,))
    monkeypatch.setattr(analysis, "measure_capacity", capacity)
    monkeypatch.setattr(analysis, "measure_basins", basins)
    monkeypatch.setattr(analysis, "measure_recall", recall)


@pytest.fixture
def draw_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write only the text of each figure, because rendering takes seconds."""

    def encode(figure: Figure, _: str) -> bytes:
        return "\n".join(text.get_text() for text in figure.findobj(Text)).encode()

    monkeypatch.setattr(figures, "_encode", encode)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "DRAWINGS", {})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


@pytest.fixture(scope="module")
def held_out() -> HeldOut:
    return TRIANGLE.load_test(CPU)


def assert_equal(one: Analysis, two: Analysis) -> None:
    for name in Analysis._fields:
        mine, other = getattr(one, name), getattr(two, name)
        assert type(mine) is type(other)
        for field in fields(mine) if mine is not None else ():
            values = getattr(mine, field.name), getattr(other, field.name)
            np.testing.assert_array_equal(*values)


# --- the sample ---


class Numbered:
    """A loader of images whose pixels all equal their row."""

    device = CPU

    def load(self, rows: Tensor, seed: np.random.SeedSequence | None) -> Iterator[Tensor]:
        return (batch[:, None, None, None].float() for batch in rows)


def make_split(size: int) -> Split:
    """Return a split sorted by class, as class folders are."""
    return Split(torch.arange(size) // 10, torch.arange(size), Numbered(), torch.eye(size))


def test_a_sample_is_a_shuffle_of_the_split() -> None:
    whole = sample(make_split(50))
    assert whole.rows.tolist() != list(range(50))
    assert sorted(whole.rows.tolist()) == list(range(50))
    assert torch.equal(whole.labels, whole.rows // 10)
    assert whole.questions is not None
    assert torch.equal(whole.questions.argmax(dim=1), whole.rows)


@pytest.mark.parametrize("size", [1, 7, 50, 99])
def test_an_index_is_the_same_image_in_a_sample_of_any_size(size: int) -> None:
    rows = sample(make_split(50)).rows
    torch.randn(100)
    assert torch.equal(sample(make_split(50), size).rows, rows[:size])


def test_a_sample_mixes_the_classes_of_a_sorted_split() -> None:
    assert set(sample(make_split(100), 40).labels.tolist()) == set(range(10))


# --- results ---


@pytest.mark.parametrize(("model", "expected"), MODELS.values(), ids=MODELS)
def test_every_analysis_that_applies_to_a_model_is_measured_saved_and_loaded(
    model: Any,  # noqa: ANN401
    expected: set[str],
    tmp_path: Path,
    held_out: HeldOut,
) -> None:
    folder = make_run(tmp_path / "run", model)
    assert load_analysis(folder) is None
    result = analyze(load_run(folder), folder, held_out, num_images=10)
    assert {name for name, result in result._asdict().items() if result is not None} == expected
    saved = {f"{name}.{ending}" for name in expected for ending in ("npz", "json")}
    assert {file.name for file in (folder / "analysis").iterdir()} == {*saved, "complete.json"}
    read = load_analysis(folder)
    assert read is not None
    assert_equal(read, result)


@pytest.mark.parametrize(
    "model",
    [
        replace(AIT, question_dim=18, **QUESTIONS),
        ViTConfig(**SIZES, **HEADS, **QUESTIONS, question_dim=18, head="cls"),
        DenseConfig(**SIZES, **QUESTIONS),
    ],
    ids=lambda model: model.kind,
)
def test_with_questions_an_item_is_a_question(model: Any, tmp_path: Path) -> None:  # noqa: ANN401
    folder = make_run(tmp_path / "run", model, CLEVR)
    data = CLEVR.load_test(CPU)
    result = analyze(load_run(folder), folder, data, num_images=11)
    assert result.answers is not None
    assert result.answers.confusion.sum() == 11
    assert result.answers.classes == list(data.class_names)
    if result.selection is not None:
        assert result.selection.pool_size == 11 * (9 + 1)
    if result.reconstruction is not None:
        assert result.reconstruction.before.shape[1:3] == (8, 9)


def test_all_images_are_used_unless_there_is_a_limit(folder: Path, held_out: HeldOut) -> None:
    for limit, number in ((None, NUM_TEST), (NUM_TEST + 5, NUM_TEST), (7, 7)):
        result = analyze(load_run(folder), folder, held_out, limit)
        assert result.answers is not None
        assert result.answers.confusion.sum() == number
        for measured in (result.competition, result.selection, result.specialization):
            assert measured is not None
            assert measured.num_images == number
        assert result.basins is not None
        assert result.basins.num_tokens == 4 * number
        assert result.reconstruction is not None
        assert len(result.reconstruction.images) == min(number, 8)
        assert result.capacity is not None
        assert result.capacity.pool_sizes.tolist() == [4 * NUM_TEST]  # in tokens


@pytest.mark.parametrize(
    ("train", "batch_size", "pool"),
    [
        (TRAIN, None, 16),
        (replace(TRAIN, accumulation_steps=4), None, 4),
        (TRAIN, 8, 8),
        (TRAIN, 99, 30),
    ],
)
def test_a_pool_is_as_large_as_in_training(
    train: TrainConfig, batch_size: int | None, pool: int, tmp_path: Path, held_out: HeldOut
) -> None:
    folder = make_run(tmp_path / "run", train=train)
    result = analyze(load_run(folder), folder, held_out, num_images=30, batch_size=batch_size)
    assert result.selection is not None
    assert result.selection.pool_size == 4 * pool


def test_every_measurement_uses_the_sample(
    folder: Path, held_out: HeldOut, monkeypatch: pytest.MonkeyPatch
) -> None:
    images_of: dict[str, list[int]] = {}

    def record(name: str, measure: Callable[..., Any]) -> Callable[..., Any]:
        def measured(model: Any, batches: Any, *more: Any) -> Any:  # noqa: ANN401
            kept = list(batches)
            images = torch.cat([batch.images[batch.labels >= 0] for batch in kept])
            images_of[name] = [int(row) for row in images.sum(dim=(1, 2, 3))]
            return measure(model, iter(kept), *more)

        return measured

    for name in ALL - {"drift"}:
        monkeypatch.setattr(
            analysis, f"measure_{name}", record(name, getattr(analysis, f"measure_{name}"))
        )
    analyze(load_run(folder), folder, held_out, num_images=20)
    images = next(held_out.test.eval_batches(NUM_TEST)).images.sum(dim=(1, 2, 3))
    expected = [int(images[row]) for row in sample(held_out.test).rows]
    assert images_of.pop("capacity") == expected
    assert images_of == dict.fromkeys(ALL - {"drift", "capacity"}, expected[:20])


def test_an_analysis_does_not_change_the_model(folder: Path, held_out: HeldOut) -> None:
    run = load_run(folder)
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    first = analyze(run, folder, held_out, num_images=20)
    assert all(torch.equal(x, before[name]) for name, x in run.model.state_dict().items())
    assert not run.model.training
    assert_equal(analyze(run, folder, held_out, num_images=20), first)


# --- drift ---


def test_drift_is_measured_from_the_memory_in_the_folder(folder: Path, held_out: HeldOut) -> None:
    priors = np.zeros((3, 1, 2, 2), np.float32)
    priors[0, 0] = priors[1, 0] = np.eye(2)
    priors[2, 0] = np.eye(2)[::-1]
    np.savez(folder / "memory.npz", priors=priors)
    result = analyze(load_run(folder), folder, held_out, num_images=4).drift
    assert result is not None
    assert result.epochs == [1, 2, 3]
    np.testing.assert_allclose(result.angle, [[0], [0], [90]], atol=1e-4)


def test_a_run_without_its_history_has_no_drift(folder: Path, held_out: HeldOut) -> None:
    (folder / "memory.npz").unlink()
    result = analyze(load_run(folder), folder, held_out, num_images=4)
    assert result.drift is None
    assert result.selection is not None


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04"])
def test_a_damaged_memory_is_reported(folder: Path, held_out: HeldOut, content: bytes) -> None:
    (folder / "memory.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"memory\.npz is damaged .*: remove it"):
        analyze(load_run(folder), folder, held_out, num_images=4)


def test_a_memory_without_priors_is_reported(folder: Path, held_out: HeldOut) -> None:
    np.savez(folder / "memory.npz", other=np.zeros(3))
    with pytest.raises(UserError, match="damaged"):
        analyze(load_run(folder), folder, held_out, num_images=4)


# --- saving ---


def test_old_results_are_kept_until_all_new_ones_are_measured(
    folder: Path, held_out: HeldOut, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = analyze(load_run(folder), folder, held_out, num_images=4)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for name in ALL - {"drift"}:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(analysis, f"measure_{name}", stop)
            analyze(load_run(folder), folder, held_out, num_images=5)
    read = load_analysis(folder)
    assert read is not None
    assert_equal(read, old)


def test_results_that_are_not_measured_again_are_removed(folder: Path, held_out: HeldOut) -> None:
    whole = analyze(load_run(folder), folder, held_out, num_images=4)
    assert {name for name, result in whole._asdict().items() if result is not None} == ALL
    (folder / "figures").mkdir()
    for name in ("selection.png", "basins.svg", "other.png"):
        (folder / "figures" / name).touch()
    (folder / "analysis" / "other.npz").touch()
    model = replace(AIT, use_self_attention=False, read="cross_attention")
    (folder / "memory.npz").unlink()
    save_experiment(Experiment("tiny", TRIANGLE, model, TRAIN), folder / "experiment.yaml")
    build_model(model).save_pretrained(folder)
    result = analyze(load_run(folder), folder, held_out, num_images=4)
    read = load_analysis(folder)
    assert read is not None
    assert_equal(read, result)
    gone = (read.competition, read.drift, read.basins, read.recall, read.reconstruction)
    assert gone == (None,) * 5
    kept = {"selection", "specialization", "silencing", "capacity", "answers"}
    saved = {f"{name}.{ending}" for name in kept for ending in ("npz", "json")}
    assert {file.name for file in (folder / "analysis").iterdir()} == {
        *saved,
        "other.npz",
        "complete.json",
    }
    assert [file.name for file in (folder / "figures").iterdir()] == ["other.png"]


def test_an_old_figure_that_cannot_be_removed_is_reported(folder: Path, held_out: HeldOut) -> None:
    (folder / "figures" / "basins.png").mkdir(parents=True)
    with pytest.raises(UserError, match=r"cannot remove the old .*basins\.png"):
        analyze(load_run(folder), folder, held_out, num_images=4)


def test_a_damaged_result_is_reported(folder: Path, held_out: HeldOut) -> None:
    analyze(load_run(folder), folder, held_out, num_images=4)
    (folder / "analysis" / "basins.npz").write_bytes(b"")
    with pytest.raises(UserError, match=r"basins\.npz is damaged \(its content.*ait analyze"):
        load_analysis(folder)


def test_an_analysis_that_was_killed_while_saving_is_not_read(
    folder: Path, held_out: HeldOut, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = analyze(load_run(folder), folder, held_out, num_images=4)
    write = storage.write_file

    def stop(path: Path, content: bytes) -> None:
        if written.pop():
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(storage, "write_file", stop)
    for num_written in range(2 * len(ALL) + 1):
        written = [True, *[False] * num_written]
        with pytest.raises(KeyboardInterrupt):
            save_analysis(whole, folder, held_out.digest)
        assert load_analysis(folder) is None
    monkeypatch.undo()
    analyze(load_run(folder), folder, held_out, num_images=5)
    assert load_analysis(folder) is not None


def test_an_analysis_of_other_images_is_not_shown_with_these(
    folder: Path, held_out: HeldOut
) -> None:
    analyze(load_run(folder), folder, held_out, num_images=4)
    assert load_analysis(folder, held_out.digest) is not None
    with pytest.raises(UserError, match=r"measured on other images: pass --again .* --source"):
        load_analysis(folder, "another digest")


# --- the command ---


def test_the_command_writes_results_and_figures_and_prints_the_main_numbers(
    folder: Path, ait: Ait
) -> None:
    output = ait("analyze", folder, "--images", 12)
    assert (output.code, output.err) == (0, "")
    lines = output.out.splitlines()
    read = load_analysis(folder)
    assert read is not None
    assert read.answers is not None
    assert read.competition is not None
    assert read.selection is not None
    assert read.basins is not None
    assert read.silencing is not None
    assert read.recall is not None
    share = 100 * read.answers.confusion.trace() / 12
    error = 100 * read.answers.calibration_error
    assert lines == [
        f"{share:.2f} % of 12 items correct, calibration error {error:.2f} %",
        *read.competition.describe(),
        *read.selection.describe(),
        *read.silencing.describe(),
        *read.basins.describe(),
        *read.recall.describe(),
        "this run has no roles",
        f"written: {folder / 'analysis'}",
        "drawn:   competition, selection, specialization, silencing, basins, reconstruction, "
        f"recall, capacity in {folder / 'figures'}",
    ]
    drawn = {path.name for path in (folder / "figures").iterdir()}
    assert drawn >= {"competition.png", "competition.svg", "capacity.png", "capacity.svg"}


@pytest.mark.parametrize(
    ("model", "data", "words"),
    [
        (AIT, TRIANGLE, "tiny, seed 3, test images of triangle. "),
        (
            replace(AIT, question_dim=18, **QUESTIONS),
            CLEVR,
            "tiny, seed 3, test questions of sort-of-clevr. ",
        ),
    ],
    ids=["images", "questions"],
)
def test_every_caption_names_the_model_the_data_and_the_seed(
    model: Any,  # noqa: ANN401
    data: Any,  # noqa: ANN401
    words: str,
    tmp_path: Path,
    ait: Ait,
    draw_text: None,
) -> None:
    folder = make_run(tmp_path / "made", model, data, replace(TRAIN, seed=3))
    assert ait("analyze", folder, "--images", 6).code == 0
    files = sorted((folder / "figures").glob("*.svg"))
    assert len(files) == len(figures.DRAWINGS) - 1  # without roles
    for file in files:
        text = " ".join(file.read_text().split())
        assert words in text
        other = "image" if "questions" in words else "question"
        assert f"6 {other}" not in text and f"{other} 1" not in text


def test_captions_describe_own_images_by_their_classes_and_number(
    root: Path, tmp_path: Path, ait: Ait, draw_text: None
) -> None:
    """The recipe's data set is CIFAR-10; the images are those of a folder, or of another."""
    folder = shutil.copytree(root / "ait", tmp_path / "run")
    other = shutil.copytree(root / "images", tmp_path / "other")
    next((other / "test").rglob("*.png")).unlink()
    own = "own images, not CIFAR-10 (2 classes instead of 10): 14 test images of 2 classes"
    others = "images that the run was not scored on: 13 test images of 2 classes"
    for source, words in ((root / "images", own), (other, others)):
        done = ait("analyze", folder, "--source", source)
        assert done.code == 0
        for file in (folder / "figures").glob("*.svg"):
            text = " ".join(file.read_text().split())
            assert f"seed 0, test images of {words} (<img src=x" in text
            assert "cifar10" not in text
        assert ("these are not the test images" in done.out) == (words == others)


@pytest.mark.parametrize("name", MODELS)
def test_results_that_a_run_does_not_have_are_listed_in_one_line(
    name: str, tmp_path: Path, ait: Ait, no_figures: None
) -> None:
    model, measured = MODELS[name]
    output = ait("analyze", make_run(tmp_path / "made", model), "--images", 6)
    assert output.code == 0
    lines = [line for line in output.out.splitlines() if line.startswith("this run has no ")]
    missing = [field for field in Analysis._fields if field not in measured]
    assert lines == ([f"this run has no {', '.join(missing)}"] if missing else [])


def test_the_description_of_competition_names_the_uniform_bound() -> None:
    counts = np.zeros((2, 2, 11), np.int64)
    counts[0, 0, 2], counts[0, 1, 8] = 30, 20  # the median over both heads is 2
    counts[1, 0, 2], counts[1, 1, 8] = 20, 30
    lines = list(Competition(0.9, 5, [0, 2], counts).describe())
    assert "90 %" in lines[0]
    assert "9 if uniform" in lines[0]
    assert lines[1:] == ["  layer 1: 2", "  layer 3: 8"]


def test_the_description_of_selection_has_a_line_per_layer() -> None:
    num_priors = 3
    overlap = np.empty((1, 2, num_priors, num_priors))
    overlap[:] = np.eye(num_priors)
    overlap[0, 0, 0, 1] = overlap[0, 0, 1, 0] = 1.0
    overlap[0, 1, 0, 1] = overlap[0, 1, 1, 0] = 0.95
    overlap[0, 0, 0, 2] = overlap[0, 0, 2, 0] = 0.3
    nothing = np.zeros((1, 2, num_priors, 0, 2), np.int64)
    selection = SelectionStatistics(
        num_images=5,
        pool_size=2_000,
        bottleneck=64,
        usage=np.array([[0.98, 0.02, 0.0]]),
        entropy=np.zeros((1, 2, num_priors)),
        coverage=np.zeros((1, 2)),
        overlap=overlap,
        head_overlap=np.zeros((1, num_priors, 2, 2)),
        similarity=np.zeros((1, num_priors, num_priors)),
        effective_rank=np.array([1.26]),
        winners=nothing,
        winner_scores=nothing[..., 0].astype(float),
        taken=nothing,
    )
    mean = (1.0 + 0.95 + 0.3) / 6
    assert list(selection.describe()) == [
        "memory of 3 priors, each of which takes 64 of 2,000 tokens:",
        f"  layer 1: effective rank 1.3, 2 dead, 1 duplicate, mean overlap {mean:.2f}",
    ]


def test_the_overlap_of_a_single_prior_is_left_out(
    tmp_path: Path, ait: Ait, no_figures: None
) -> None:
    model = replace(AIT, workspace=replace(AIT.workspace, num_priors=1))
    output = ait("analyze", make_run(tmp_path / "made", model), "--images", 6)
    assert output.code == 0
    assert "memory of 1 prior," in output.out
    assert "mean overlap" not in output.out


def test_the_description_of_basins_lists_the_shares_for_each_beta() -> None:
    shares = np.array([[0.0, 0.25], [0.5, 1.0]])  # R = 2, L = 2
    other = np.zeros((2, 2, 1))
    basins = Basins(
        betas=np.array([0.05, 4.0]),
        trained_beta=2.0,
        num_tokens=4,
        energy=other,
        energy_spread=other,
        num_fixed_points=np.ones((2, 2), np.int64),
        single=shares,
        metastable=(1 - shares) / 4,
        uniform=3 * (1 - shares) / 4,
        basins=other,
        noise=np.array([0.1]),
        recall=other,
    )
    title, *lines = basins.describe()
    assert "trained with beta 2)" in title
    assert lines == [
        "  layer 1: beta 0.05: 0 / 25 / 75, beta 4: 50 / 12 / 38",
        "  layer 2: beta 0.05: 25 / 19 / 56, beta 4: 100 / 0 / 0",
    ]


def test_the_batch_size_option_sets_the_pool_size(
    folder: Path, ait: Ait, no_figures: None
) -> None:
    assert ait("analyze", folder, "--images", 12, "--batch-size", 3).code == 0
    read = load_analysis(folder)
    assert read is not None
    assert read.selection is not None
    assert (read.selection.num_images, read.selection.pool_size) == (12, 3 * 4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--images", "0"], ["--images must be at least 1"]),
        (["--batch-size", "0"], ["--batch-size must be at least 1"]),
        (["--source", "somewhere"], ["triangle is generated", "omit --source"]),
        (["--device", "abacus"], ["abacus"]),
    ],
)
def test_invalid_options_are_refused(
    arguments: list[str], words: list[str], folder: Path, ait: Ait
) -> None:
    assert_refused(ait("analyze", folder, *arguments), *words)
    assert load_analysis(folder) is None


def test_a_folder_without_a_run_is_refused(tmp_path: Path, ait: Ait) -> None:
    assert_refused(ait("analyze", tmp_path), "experiment.yaml is missing", "not a run folder")


def test_data_with_other_classes_is_refused(folder: Path, ait: Ait) -> None:
    experiment = load_experiment(folder / "experiment.yaml")
    put_result(folder, result_of(experiment, classes=["cat", "dog"]))
    assert_refused(ait("analyze", folder), "cat, dog", "equilateral, other")


def test_a_folder_that_cannot_be_created_is_reported(folder: Path, ait: Ait) -> None:
    (folder / "analysis").write_text("a file")
    assert_refused(ait("analyze", folder, "--images", 4), "cannot create the folder")
