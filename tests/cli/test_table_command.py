"""`ait table`: runs next to the published results."""

import re
from pathlib import Path

import pytest

from associative_transformer.recipes import RECIPES
from making.commands import Ait, assert_refused
from making.plant import answers_of, put_run


@pytest.mark.parametrize("output_format", ["terminal", "markdown", "html"])
def test_the_table_is_written_to_the_terminal_or_to_a_file(output_format: str, ait: Ait) -> None:
    done = ait("table", "relational", "--format", output_format)
    assert done.code == 0
    for words in ("ait-small", "76.82", "99.85", "not run", "set-transformer", "57.65"):
        assert words in done.out
    written = ait("table", "relational", "--format", output_format, "--output", "t.html")
    assert (written.code, written.out) == (0, "")
    assert Path("t.html").read_text() == done.out
    assert ("<table>" in done.out) == (output_format == "html")
    page = done.out.replace('<link rel="icon" href="data:,">', "")
    assert not re.search(r"https?:|src=|href=|@import|url\(", page)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("classification", ("Image classification", "| AiT-Base | - | 85.44 |", "[1] Luna: both")),
        ("ablations", ("Ablations of AiT-Small", "| w/o Hopfield |", "78.48", "not run")),
        ("relational", ("Sort-of-CLEVR", "| cnn-rn |", "81.07")),
    ],
)
def test_every_table_can_be_written(name: str, words: tuple[str, ...], ait: Ait) -> None:
    done = ait("table", name, "--format", "markdown")
    assert done.code == 0
    assert [word for word in words if word not in done.out] == []


def test_a_run_with_overrides_is_listed_separately_whatever_its_name(
    ait: Ait, tmp_path: Path
) -> None:
    flags = "--data.num-train 16 --data.num-test 4 --data.num-questions 2 --train.batch-size 16"
    flags += " --train.epochs 1 --model.conv-dim 4 --model.hidden-dim 8 --train.device cpu"
    name = "sort-of-clevr-cnn-mlp-tiny"
    assert ait("train", name, *flags.split()).code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    folder.rename(tmp_path / "runs" / name)
    done = ait("table", "relational", "--format", "markdown")
    rows = [line for line in done.out.splitlines() if line.startswith("| cnn-mlp-tiny")]
    assert len(rows) == 2
    assert "not run" in rows[0]
    assert f"train.epochs 1 instead of {RECIPES[name].train.epochs}" in rows[1]


@pytest.mark.parametrize("output", [[], ["--output", "t.md"]])
def test_a_damaged_environment_is_named_once_and_its_run_is_in_the_table(
    output: list[str], ait: Ait, tmp_path: Path
) -> None:
    recipe = RECIPES["sort-of-clevr-ait-small"]
    folder = put_run(tmp_path / "runs", recipe, 0, answers_of(recipe, 71.5))
    (folder / "environment.json").write_text("{")
    done = ait("table", "relational", "--format", "markdown", *output)
    assert done.code == 0
    assert done.err.count("environment.json") == 1
    assert "is damaged" in done.err
    text = Path("t.md").read_text() if output else done.out
    assert "| ait-small | 71.50 (" in text
    assert "environment" not in text


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("", ["needs TABLE", "ait table --help"]),
        ("images", ["images", "classification", "ablations", "relational"]),
        ("relational --format pdf", ["--format", "pdf", "markdown"]),
        ("relational --runs file", ["no folder file", "--runs"]),
        ("relational --runs gone", ["no folder gone", "--runs"]),
        ("relational --output missing/t.md", ["no folder missing", "--output"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_table_refuses_bad_input(
    flags: str, words: list[str], ait: Ait, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    assert_refused(ait("table", *flags.split()), *words)
