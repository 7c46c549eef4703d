"""Image data sets that a CSV file lists."""

from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image

from associative_transformer.data import DataSet, ImagesConfig, SplitsConfig
from associative_transformer.data.listing import print_once
from associative_transformer.interface import UserError

CPU = torch.device("cpu")
LEVELS = {"ant": 10, "bee": 200, "0": 10, "7": 200}
"""The gray level of the images of each class."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    print_once.cache_clear()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "set"


def add_images(root: Path, **classes: str) -> None:
    """Write an image for each name, in the gray level of its class."""
    for name, class_name in classes.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), LEVELS[class_name]).save(path.with_suffix(".png"))


def write(root: Path, name: str, *lines: str, encoding: str = "utf-8") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def load(source: Path, **changes: object) -> DataSet:
    splits = SplitsConfig(test_fraction=0.5)
    settings = {"image_size": 4, "augment": "none", "mean": (0.0,) * 3, "std": (1.0,) * 3}
    settings |= {"source": str(source), "num_workers": 0, "splits": splits, **changes}
    return ImagesConfig("mine", **settings).load(CPU)


def assert_right(data: DataSet) -> None:
    """Assert that each image has the label of the class in whose level it is painted."""
    for split in (data.train, data.test):
        levels = split.loader.load(split.rows[None], None)
        (images,) = [255 * batch[:, 0, 0, 0] for batch in levels]
        expected = [LEVELS[data.class_names[label]] for label in split.labels.tolist()]
        assert images.round().int().tolist() == expected


FOUR = {"a1": "ant", "a2": "ant", "b1": "bee", "b2": "bee"}


@pytest.mark.parametrize(
    "lines",
    [
        [
            "file_name,label",
            "img/a1.png,ant",
            "img/a2.png,ant",
            "img/b1.png,bee",
            "img/b2.png,bee",
        ],
        ["id;species", "a1;ant", "a2;ant", "b1;bee", "b2;bee"],
        ["label\tpath", *(f"{y}\t/home/ada/img/{x}.png" for x, y in FOUR.items())],
        ["n,image,class", *(f"{i},img\\{x}.png,{y}" for i, (x, y) in enumerate(FOUR.items()))],
    ],
    ids=["paths", "ids", "paths of another machine", "backslashes"],
)
@pytest.mark.parametrize("is_file", [False, True], ids=["folder", "file"])
def test_images_are_found_by_the_paths_and_names_in_a_csv_file(
    lines: list[str], is_file: bool, root: Path
) -> None:
    add_images(root, **{f"img__{name}": label for name, label in FOUR.items()})
    path = write(root, "list.csv", *lines, "", encoding="utf-8-sig")
    data = load(path if is_file else root)
    assert data.class_names == ("ant", "bee")
    assert (len(data.train), len(data.test)) == (2, 2)
    assert_right(data)


def test_a_column_or_the_name_of_the_file_gives_the_split(root: Path, tmp_path: Path) -> None:
    add_images(root, **FOUR)
    rows = [f"{x}.png,{y},{'TEST' if x[1] == '2' else 'train'}" for x, y in FOUR.items()]
    write(root, "list.csv", "file,label,split", *rows)
    other = tmp_path / "other"  # files of one name in both folders, as on Kaggle
    add_images(other, train__1="ant", train__2="bee", test__1="bee")
    write(other, "train.csv", "id,label", "1,ant", "2,bee")
    write(other, "test.csv", "id,label", "1,bee")
    write(other, "sample_submission.csv", "id,label", "2,ant")
    for source, sizes in ((root, (2, 2)), (other, (2, 1))):
        data = load(source)
        assert (len(data.train), len(data.test)) == sizes
        assert_right(data)
        config = ImagesConfig("mine", image_size=4, source=str(source), num_workers=0)
        assert len(config.load_test(CPU).test) == sizes[1]


def test_numbers_are_classes_in_their_order(root: Path) -> None:
    add_images(root, a="0", b="7", c="0", d="7")
    write(root, "list.csv", "file,target,weight", "a,0,1", "b,7,2", "c,0,3", "d,7,4")
    data = load(root)
    assert data.class_names == ("0", "7")
    assert_right(data)


def test_a_row_without_an_image_is_left_out_and_named(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_images(root, **FOUR, more="ant")
    rows = [f"{x}.png,{y}" for x, y in {**FOUR, "gone": "bee"}.items()]
    write(root, "list.csv", "file,label", *rows, "../../../etc/passwd,bee")
    assert len(load(root).train) == 2
    err = capsys.readouterr().err
    assert "rows of list.csv whose image does not exist: 2 (../../../etc/passwd, gone.png)" in err
    assert "images that no CSV file lists: 1 (more.png)" in err


def test_a_csv_file_does_not_hide_complete_class_folders(root: Path) -> None:
    add_images(root, train__ant__1="ant", train__bee__2="bee", test__ant__3="ant")
    write(root, "list.csv", "file,label", "1.png,bee", "2.png,ant", "3.png,bee")
    data = load(root)
    assert_right(data)


def test_another_csv_file_does_not_hide_flat_class_folders(root: Path) -> None:
    add_images(root, ant__1="ant", ant__2="ant", bee__3="bee", bee__4="bee")
    write(root, "results.csv", "epoch,loss", "1,0.5", "2,0.4")
    assert_right(load(root))


def test_two_csv_files_that_list_the_images_are_refused(root: Path) -> None:
    add_images(root, **FOUR)
    rows = [f"{x}.png,{y}" for x, y in FOUR.items()]
    for name in ("a.csv", "b.csv"):
        write(root, name, "file,label", *rows)
    with pytest.raises(UserError, match=r"several CSV files that list images \(a.csv, b.csv\)"):
        load(root)
