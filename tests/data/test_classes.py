"""Each image keeps its class, however a split names or orders the classes."""

import signal
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from associative_transformer.data import DataSet, ImagesConfig, Split
from associative_transformer.data.known import KNOWN_DATA_SETS
from associative_transformer.data.listing import print_once
from associative_transformer.data.sources import SplitsConfig, open_image_folder
from associative_transformer.experiment import Experiment, TrainConfig
from associative_transformer.interface import PADDING, UserError
from associative_transformer.models.vit import ViTConfig
from associative_transformer.runs.saved import load_run, load_test_split
from associative_transformer.training.loop import TrainingRun, train
from associative_transformer.training.signals import Interrupted
from making.commands import Ait

CPU = torch.device("cpu")
CLASSES = ("ant", "bee", "café", "dog")
COMPOSED, DECOMPOSED = "café", unicodedata.normalize("NFD", "café")
ORDERS = {
    "train": ("bee", "dog", "ant", COMPOSED),
    "validation": ("ant", "bee", DECOMPOSED, "dog"),
    "test": ("dog", DECOMPOSED, "ant", "bee"),
}
KINDS = ("names", "text", "folders")
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    print_once.cache_clear()


def picture(name: str) -> Image.Image:
    """Return random pixels with the class as the level of red."""
    pixels = np.random.randint(256, size=(8, 8, 3), dtype=np.uint8)
    pixels[..., 0] = 50 * CLASSES.index(unicodedata.normalize("NFC", name))
    return Image.fromarray(pixels)


def write(root: Path, kind: str, split: str, order: Sequence[str], shown: Sequence[str]) -> None:
    """Write an image of each class in `shown`; the kind "names" lists the classes in `order`."""
    pictures = [picture(name) for name in shown]
    if kind == "folders":
        for number, (name, image) in enumerate(zip(shown, pictures, strict=True)):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            image.save(root / split / name / f"{number}.png")
        return
    label: Any = datasets.Value("string")
    labels: list[Any] = list(shown)
    if kind == "names":
        label, labels = datasets.ClassLabel(names=list(order)), [order.index(x) for x in shown]
    features = datasets.Features({"image": datasets.Image(), "label": label})
    root.mkdir(exist_ok=True)
    rows = datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=features)
    rows.to_parquet(root / f"{split}.parquet")


@pytest.fixture
def root(kind: str, tmp_path: Path) -> Path:
    for split, order in ORDERS.items():
        shown = [order[number] for number in np.random.permutation(8) % 4]
        write(tmp_path / "set", kind, split, order, shown)
    return tmp_path / "set"


def config(source: Path, **changes: Any) -> ImagesConfig:  # noqa: ANN401
    pixels = {"augment": "none", "mean": (0.0,) * 3, "std": (1.0,) * 3}
    settings = {"source": str(source), "image_size": 8, "num_workers": 0}
    return ImagesConfig("mine", **settings | pixels | changes)


def is_right(split: Split | None, class_names: Sequence[str]) -> bool:
    """Return whether each image of a split has the label of the class in its pixels."""
    assert split is not None
    (batch,) = split.eval_batches(len(split))
    in_pixels = [CLASSES[round(float(255 * image[0, 0, 0])) // 50] for image in batch.images]
    names = [unicodedata.normalize("NFC", name) for name in class_names]
    return (
        len(split) > 1
        and PADDING not in batch.labels
        and in_pixels == [names[label] for label in batch.labels.tolist()]
    )


def are_right(data: DataSet) -> bool:
    return all(
        is_right(split, data.class_names) for split in (data.train, data.validation, data.test)
    )


@every_kind
@pytest.mark.parametrize("limit", [None, 4])
def test_labels_are_mapped_by_name_to_the_order_of_the_training_split(
    kind: str, limit: int | None, root: Path
) -> None:
    settings = config(root, limit=limit)
    data, alone = settings.load(CPU), settings.load_test(CPU)
    in_order = ORDERS["train"] if kind == "names" else tuple(sorted(CLASSES))
    assert data.class_names == in_order
    assert are_right(data)
    assert is_right(alone.test, alone.class_names)


@pytest.mark.parametrize("train_kind", ["names", "text"])
@pytest.mark.parametrize("test_kind", ["names", "text"])
def test_one_split_may_have_class_labels_and_the_other_text(
    train_kind: str, test_kind: str, tmp_path: Path
) -> None:
    for split, kind in (("train", train_kind), ("test", test_kind)):
        write(tmp_path / "set", kind, split, ORDERS[split], ORDERS[split])
    data = config(tmp_path / "set").load(CPU)
    assert is_right(data.train, data.class_names) and is_right(data.test, data.class_names)


@every_kind
def test_training_resuming_and_evaluating_see_the_right_classes(
    kind: str, root: Path, ait: Ait, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[DataSet] = []

    class Recorded(TrainingRun):
        def __init__(self, *arguments: Any) -> None:  # noqa: ANN401
            super().__init__(*arguments)
            seen.append(self.data)

    def stop(_: Path) -> None:
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr("associative_transformer.training.loop.TrainingRun", Recorded)
    model = ViTConfig(
        image_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=1, head_dim=8, num_classes=4
    )
    experiment = Experiment("own", config(root), model, TrainConfig(epochs=2, batch_size=4))
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(experiment, run, on_epoch_end=stop)
    result = train(experiment, run, resume=True)
    assert len(seen) == 2 and all(map(are_right, seen))

    held_out = load_test_split(load_run(run), None, CPU)
    assert held_out.class_names == result.classes == seen[0].class_names
    assert is_right(held_out.test, held_out.class_names)
    assert held_out.digest == result.data_of_test
    done = ait("eval", run)
    assert done.code == 0
    assert "not the test images" not in done.out
    assert done.err == ""


@every_kind
@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_class_that_the_training_split_lacks_is_refused_with_both_lists(
    kind: str, split: str, tmp_path: Path
) -> None:
    for name in ("train", "validation", "test"):
        classes = ("ant", "bee", "dog") if name == split else ("bee", "ant")
        write(tmp_path / "set", kind, name, classes, classes)
    with pytest.raises(
        UserError,
        match=rf"the {split} split of .*set has the classes \[ant, bee, dog\], but the train "
        r"split of .*set has \[(bee, ant|ant, bee)\]: add training images of dog, or remove "
        "that class",
    ):
        config(tmp_path / "set").load(CPU)


@pytest.mark.parametrize("number", [10, 12])
def test_only_the_first_of_many_classes_are_listed(number: int, tmp_path: Path) -> None:
    classes = [f"c{label:02}" for label in range(number)]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=classes)}
    )
    rows = {"image": [picture("ant")] * 2, "label": [0, 1]}
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "set/test.parquet")
    write(tmp_path / "set", "names", "train", ("ant", "bee"), ("ant", "bee"))
    listed = ", ".join(classes[:10]) + ", ..." * (number > 10)
    with pytest.raises(UserError) as caught:
        config(tmp_path / "set").load(CPU)
    assert f"has the classes [{listed}], but" in str(caught.value)


@every_kind
def test_a_class_without_test_images_is_named(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "set"
    write(root, kind, "train", ORDERS["train"], ORDERS["train"])
    write(root, kind, "test", ORDERS["test"], ("ant", "dog", "ant"))
    data = config(root).load(CPU)
    assert is_right(data.test, data.class_names)
    line = f"the test split of {root} has no images of these classes: "
    missing = [name for name in data.class_names if name not in ("ant", "dog")]
    assert f"{line}{', '.join(missing)}\n" in capsys.readouterr().err


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("is_alone", [False, True])
def test_names_that_differ_only_in_composition_are_not_two_classes(
    split: str, is_alone: bool, tmp_path: Path
) -> None:
    twice = ("ant", DECOMPOSED, "bee", COMPOSED)
    for name in ("train", "test"):
        classes = twice if name == split or not is_alone else CLASSES
        write(tmp_path / "set", "names", name, classes, classes)
    with pytest.raises(UserError, match=rf"several classes with the same name \({COMPOSED}\): re"):
        config(tmp_path / "set").load(CPU)


@pytest.mark.parametrize("kind", ["text", "folders"])
def test_images_of_one_class_may_be_named_in_both_compositions(kind: str, tmp_path: Path) -> None:
    for split in ("train", "test"):
        shown = ("bee", DECOMPOSED, COMPOSED, "bee")
        write(tmp_path / "set", kind, split, (), shown)
    data = config(tmp_path / "set").load(CPU)
    assert len(data.class_names) == 2
    assert is_right(data.train, data.class_names) and is_right(data.test, data.class_names)


def without_names(path: Path) -> None:
    """Replace the classes of a parquet file by their numbers."""
    table = datasets.Dataset.from_parquet(str(path))
    table.cast_column("label", datasets.Value("int64")).to_parquet(path)


@pytest.mark.parametrize("split", ["train", "test"])
def test_numbers_are_not_taken_for_the_classes_that_another_split_names(
    split: str, tmp_path: Path
) -> None:
    for name in ("train", "test"):
        write(tmp_path / "set", "names", name, CLASSES, CLASSES)
    without_names(tmp_path / "set" / f"{split}.parquet")
    with pytest.raises(UserError, match=r"the test split of .* has the classes \["):
        config(tmp_path / "set").load(CPU)


def test_numbers_without_names_are_classes_of_these_numbers(tmp_path: Path) -> None:
    for name, order in (("train", CLASSES), ("test", CLASSES[2:])):  # classes 2 and 3
        write(tmp_path / "set", "names", name, CLASSES, order)
        without_names(tmp_path / "set" / f"{name}.parquet")
    data = config(tmp_path / "set").load(CPU)
    assert data.class_names == ("0", "1", "2", "3")
    assert is_right(data.train, CLASSES) and is_right(data.test, CLASSES)


def test_numbers_as_names_are_mapped_like_other_names(tmp_path: Path) -> None:
    for split, order in (("train", ["0", "1"]), ("test", ["1", "0"])):
        features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=order)}
        )
        pictures = [picture(CLASSES[int(name)]) for name in order]
        rows = {"image": pictures, "label": [0, 1]}
        (tmp_path / "set").mkdir(exist_ok=True)
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(tmp_path / "set" / f"{split}.parquet")
    data = config(tmp_path / "set").load(CPU)
    assert is_right(data.train, ["ant", "bee"]) and is_right(data.test, ["ant", "bee"])
    assert data.test.labels.tolist() == [1, 0]


@pytest.mark.parametrize("column", ["label", "insect"])
def test_text_is_used_if_it_is_chosen_or_named_label_or_the_only_column(
    column: str, tmp_path: Path
) -> None:
    for split in ("train", "test"):
        write(tmp_path / "set", "text", split, (), ORDERS[split])
        path = tmp_path / "set" / f"{split}.parquet"
        table = datasets.Dataset.from_parquet(str(path))
        table = table if column == "label" else table.rename_column("label", column)
        table.add_column("file", [f"{row}.png" for row in range(4)]).to_parquet(path)
    settings = config(tmp_path / "set")
    if column == "insect":
        with pytest.raises(
            UserError, match=r"no column of type ClassLabel, only .*insect \(string\), file \("
        ):
            settings.load(CPU)
        settings = config(tmp_path / "set", label_column="insect")
    data = settings.load(CPU)
    assert is_right(data.test, data.class_names)


def test_a_row_with_a_missing_text_is_refused_and_named(tmp_path: Path) -> None:
    write(tmp_path / "set", "text", "test", (), ("ant", "bee"))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    rows = {"image": [picture("ant")] * 3, "label": ["ant", None, "bee"]}
    table = datasets.Dataset.from_dict(rows, features=features)
    table.to_parquet(tmp_path / "set" / "train.parquet")
    with pytest.raises(UserError, match=r"row 1 of the train split of .* has the label None"):
        config(tmp_path / "set").load(CPU)


@pytest.mark.parametrize("kind", ["names"])
def test_a_set_from_the_hub_is_mapped_like_a_local_one(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = open_image_folder(root)
    monkeypatch.setattr(datasets, "load_dataset", lambda hub_id: splits)
    assert are_right(replace(config(root), source=None).load(CPU))


def test_a_class_that_is_only_in_an_unused_split_does_not_count(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for split, classes in (("train", CLASSES[:2]), ("test", CLASSES[:2]), ("val", CLASSES)):
        write(root, "folders", split, (), classes)
    settings = config(root)
    chosen = replace(settings, splits=replace(settings.splits, validation="random"))
    data = chosen.load(CPU)
    assert data.class_names == CLASSES[:2]
    assert chosen.load_test(CPU).class_names == CLASSES[:2]


# --- some of the classes ---


@every_kind
@pytest.mark.parametrize("chosen", [("dog", "ant"), ("ant", "café", "bee")])
def test_only_the_chosen_classes_are_used_and_numbered_in_their_order(
    root: Path, chosen: tuple[str, ...]
) -> None:
    few = replace(config(root), splits=SplitsConfig(classes=chosen))
    data, held_out = few.load(CPU), few.load_test(CPU)
    for names in (data.class_names, held_out.class_names):
        assert tuple(unicodedata.normalize("NFC", name) for name in names) == chosen
    for split in (data.train, data.validation, data.test, held_out.test):
        assert split is not None
        assert len(split.labels) == 2 * len(chosen)
        assert is_right(split, chosen)


def test_a_class_that_does_not_exist_is_refused_with_those_that_do(tmp_path: Path) -> None:
    for split, order in ORDERS.items():
        write(tmp_path / "set", "folders", split, order, order)
    few = replace(config(tmp_path / "set"), splits=SplitsConfig(classes=("ant", "cat", "cow")))
    with pytest.raises(UserError, match=r"has no class cat, cow: pass names from \[ant, bee, "):
        few.load(CPU)


@pytest.mark.parametrize("chosen", [("ant",), ("ant", "ant"), ()])
def test_fewer_than_two_classes_are_refused(chosen: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="classes must name at least two classes, each once"):
        SplitsConfig(classes=chosen)


def test_a_subset_of_known_classes_keeps_the_known_normalization(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = ("cat", "dog")
    for split in ("train", "test"):
        for name in (*known, "frog"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8), (10, 20, 30)).save(tmp_path / split / name / "0.png")
    few = ImagesConfig(
        "cifar10", source=str(tmp_path), num_workers=0, splits=SplitsConfig(classes=known)
    )
    assert few.load_for_new_run(CPU).normalization is not None  # not the images of CIFAR-10
    small = KNOWN_DATA_SETS["cifar10"]._replace(train_images=10, test_images=10)
    monkeypatch.setitem(KNOWN_DATA_SETS, "cifar10", small)
    assert few.load_for_new_run(CPU).normalization is None
    all_classes = replace(few, splits=SplitsConfig())
    assert all_classes.load_for_new_run(CPU).normalization is not None


def test_a_chosen_class_may_be_missing_in_the_test_split(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write(root, "folders", "train", CLASSES, CLASSES)
    write(root, "folders", "test", CLASSES, ("ant", "dog"))
    few = replace(config(root), splits=SplitsConfig(classes=("dog", "bee", "ant")))
    data = few.load(CPU)
    assert data.class_names == ("dog", "bee", "ant")
    assert is_right(data.test, data.class_names)
    assert sorted(data.test.labels.tolist()) == [0, 2]


@pytest.mark.parametrize(("limit", "sizes"), [(None, (4, 8)), (6, (4, 6)), (2, (2, 2))], ids=str)
def test_only_the_training_images_can_be_limited(
    tmp_path: Path, limit: int | None, sizes: tuple[int, int]
) -> None:
    for split in ("train", "test"):
        write(tmp_path / "set", "folders", split, CLASSES[:2], CLASSES[:2] * 4)
    few = replace(config(tmp_path / "set"), limit=limit, splits=SplitsConfig(train_limit=4))
    data = few.load(CPU)
    assert (len(data.train), len(data.test)) == sizes
    assert data.train.labels.bincount().tolist() == [sizes[0] / 2] * 2
    one = replace(few, splits=SplitsConfig(train_limit=1))
    with pytest.raises(UserError, match=r"--data\.train-limit 1 leaves some of the 2 classes"):
        one.load(CPU)
