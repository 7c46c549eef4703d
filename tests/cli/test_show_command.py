"""`ait show`: sheets of images with classes, or with questions and answers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from associative_transformer.data import ImagesConfig, SortOfClevrConfig, TriangleConfig
from associative_transformer.data.questions import (
    TYPES,
    answer_words,
    describe_questions,
)
from associative_transformer.data.sort_of_clevr import TEST, draw_pictures, generate_items
from making.commands import Ait, assert_refused, make_images

FEW = ["--data.num-train", 4, "--data.num-test", 5]


@pytest.fixture
def sheets(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, list[str], Path]]:
    """Return the sheets that the command would draw; they are only recorded."""
    drawn: list[tuple[Tensor, list[str], Path]] = []

    def record(images: Tensor, captions: list[str], path: Path, title: str) -> None:
        drawn.append((images, captions, path))

    monkeypatch.setattr("associative_transformer.figures.draw_sheet", record)
    return drawn


@pytest.mark.parametrize("name", ["sort-of-clevr", "triangle"])
def test_show_draws_a_sheet_of_images(name: str, ait: Ait, tmp_path: Path) -> None:
    done = ait("show", name, *FEW, "--num-images", 2, "--output", "x.png")
    assert (done.code, done.out) == (0, "written: x.png\n")
    with Image.open("x.png") as image:
        colors = set(map(tuple, np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()))
    assert len(colors) > 2
    assert {(255, 0, 0), (0, 0, 255)} <= colors or name == "triangle"
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_show_writes_the_images_to_files_on_request(ait: Ait, tmp_path: Path) -> None:
    done = ait("show", "sort-of-clevr", *FEW, "--num-images", 2, "--pictures", "a/b")
    assert done.out == "written: sort-of-clevr.png\nwritten: 2 images to a/b\n"
    config = SortOfClevrConfig(num_train=4, num_test=5)
    pictures = draw_pictures(generate_items(config, TEST).scenes)
    assert sorted(path.name for path in (tmp_path / "a/b").iterdir()) == ["0.png", "1.png"]
    for number in range(2):
        with Image.open(f"a/b/{number}.png") as image:
            assert np.array_equal(np.asarray(image).transpose(2, 0, 1), pictures[number])


def test_a_single_image_is_not_called_images(ait: Ait) -> None:
    done = ait("show", "triangle", *FEW, "--num-images", 1, "--pictures", "a")
    assert done.out == "written: triangle.png\nwritten: 1 image to a\n"


def test_the_title_of_own_images_is_the_name_of_their_folder(
    ait: Ait, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []
    draw = "associative_transformer.figures.draw_sheet"
    monkeypatch.setattr(draw, lambda *arguments: titles.append(arguments[3]))
    make_images(tmp_path / "mine")
    options = ["--data.num-workers", 0, "--data.source", "mine"]
    assert ait("show", "cifar10", *options).code == 0
    assert ait("show", "triangle", *FEW).code == 0
    assert titles == ["mine: first test images", "triangle: first test images"]


def test_show_writes_only_the_files_that_it_names(ait: Ait, tmp_path: Path) -> None:
    done = ait("show", "triangle", *FEW, "--num-images", 1, "--output", "sheet")
    written = [path.name for path in tmp_path.iterdir()]
    assert done.out == "".join(f"written: {name}\n" for name in written)  # none if refused


def test_captions_are_the_first_questions_of_each_type_with_their_answers(
    ait: Ait, sheets: list[tuple[Tensor, list[str], Path]]
) -> None:
    done = ait("show", "sort-of-clevr", *FEW, "--num-images", 3)
    assert (done.code, done.out) == (0, "written: sort-of-clevr.png\n")
    ((images, captions, path),) = sheets
    assert path == Path("sort-of-clevr.png")
    config = replace(SortOfClevrConfig(num_train=4, num_test=5), question_types=TYPES)
    made = generate_items(config, TEST)
    expected = torch.from_numpy(draw_pictures(made.scenes)[:3]).float() / 255
    torch.testing.assert_close(images, expected)
    words, kinds = describe_questions(made.questions), made.questions.kind.tolist()
    for i, caption in enumerate(captions):
        shown = [30 * i + 10 * type_ + nth for type_ in range(3) for nth in range(2)]
        answers = [answer_words(kinds[item])[made.answers[item]] for item in shown]
        lines = [f"{words[item]}: {a}" for item, a in zip(shown, answers, strict=True)]
        assert caption.splitlines() == lines


def test_show_accepts_options_of_the_data_set_and_draws_at_most_all_its_images(
    ait: Ait, sheets: list[tuple[Tensor, list[str], Path]]
) -> None:
    flags = [*FEW, "--data.question-types", "binary", "--num-images", 9]
    assert ait("show", "sort-of-clevr", *flags).code == 0
    ((images, captions, _),) = sheets
    assert (len(images), len(captions)) == (5, 5)
    assert all("the A" not in caption and len(caption.splitlines()) == 2 for caption in captions)


def test_show_undoes_the_normalization_and_names_the_class(
    ait: Ait, sheets: list[tuple[Tensor, list[str], Path]], trained: Path
) -> None:
    flags = ["--data.source", trained / "images", "--data.image-size", 16]
    assert ait("show", "cifar10", *flags, "--data.num-workers", 0, "--num-images", 10).code == 0
    assert ait("show", "triangle", *FEW).code == 0
    (images, captions, _), (triangles, names, _) = sheets
    assert sorted(captions) == ["blue"] * 5 + ["red"] * 5
    for image, caption in zip(images, captions, strict=True):
        assert 150 / 255 <= image[2 if caption == "blue" else 0].min() <= image.max() <= 1
        assert 0 <= image.min() < 60 / 255
    assert triangles.unique().tolist() == [0, 1]
    assert set(names) <= {"equilateral", "other"}


def test_show_draws_training_images_as_they_are_stored(
    ait: Ait, sheets: list[tuple[Tensor, list[str], Path]]
) -> None:
    config = TriangleConfig(num_train=4, num_test=5, val_fraction=0.5)
    data = config.load(torch.device("cpu"))
    assert data.validation is not None
    for split, part in (("train", data.train), ("validation", data.validation)):
        flags = [*FEW, "--data.val-fraction", 0.5, "--split", split]
        assert ait("show", "triangle", *flags).code == 0
        images, captions, _ = sheets.pop()
        (batch,) = part.eval_batches(2)
        assert torch.equal(images, batch.images)
        assert captions == [data.class_names[label] for label in batch.labels]


def test_show_draws_the_first_batch_that_a_run_sees(
    ait: Ait, sheets: list[tuple[Tensor, list[str], Path]], trained: Path
) -> None:
    config = ImagesConfig(
        "cifar10", source=str(trained / "images"), image_size=16, num_workers=0, augment="strong"
    )
    flags = ["--data.source", config.source, "--data.image-size", 16, "--data.num-workers", 0]
    flags += ["--split", "train", "--augment", "--num-images", 6]
    assert ait("show", "cifar10", *flags, "--data.augment", "strong").code == 0
    assert ait("show", "cifar10", *flags, "--data.augment", "crop").code == 0
    (images, captions, _), (_, plain, _) = sheets
    data = config.load_for_new_run(torch.device("cpu"))
    batch = next(data.train.train_batches(6, seed=0, epoch=0))
    torch.testing.assert_close(images, config.as_loaded(data).denormalize(batch.images))
    for caption, label in zip(captions, batch.labels.tolist(), strict=True):
        words = caption if "," in caption else f"{caption} 1"
        parts = dict(part.split() for part in words.split(", "))
        shares = [float(parts.get(name, 0)) for name in data.class_names]
        assert shares == pytest.approx(label, abs=0.01)
    assert any("," in caption for caption in captions)
    assert set(plain) <= set(data.class_names)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("cifar10 --augment", ["--augment needs --split train"]),
        ("triangle --split train --augment", ["generated", "omit --augment"]),
        ("triangle --data.num-test 2 --split validation", ["--data.val-fraction"]),
        ("cifar10 --split dev", ["--split", "'dev'", "test, validation or train"]),
        ("clevr", ["no data set 'clevr'", "sort-of-clevr", "triangle", "cifar10"]),
        ("triangle --num-images 0", ["--num-images", "at least 1", "0"]),
        ("triangle --num-images -1", ["--num-images", "at least 1", "-1"]),
        ("triangle --num-images 65", ["--num-images", "at most 64", "65"]),
        ("triangle --data.num-test 0", ["--data.num-test", "0"]),
        ("triangle --output missing/x.png", ["no folder missing", "--output"]),
        ("triangle --data.num-test 2 --output x.txt", ["cannot write x.txt", "png"]),
        ("triangle --data.num-test 2 --output .", ["--output .: it is a folder"]),
        ("sort-of-clevr --data.question-types unary", ["unary", "binary"]),
        ("cifar10 --data.source gone", ["gone does not exist"]),
        ("triangle surplus", ["surplus"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_show_refuses_bad_input(flags: str, words: list[str], ait: Ait, tmp_path: Path) -> None:
    assert_refused(ait("show", *flags.split()), *words)
    assert list(tmp_path.iterdir()) == []


def test_show_without_a_name_lists_the_data_sets(ait: Ait) -> None:
    for arguments in ([], ["--help"]):
        done = ait("show", *arguments)
        assert done.code == 0
        assert set(done.out.split()) >= {"sort-of-clevr", "triangle", "cifar10", "cifar100"}
    assert "--data.num-questions" in ait("show", "sort-of-clevr", "--help").out
