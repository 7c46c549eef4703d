"""Texts about a run in which there is one of everything: one image, epoch, layer, head, prior."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from associative_transformer.analysis import load_analysis
from associative_transformer.figures import DRAWINGS
from associative_transformer.report import write_report
from associative_transformer.training.loop import train
from making.commands import Ait
from making.trained import vary

PLURAL = re.compile(
    r"(?<![\d.,])1 (?:test |analyzed )*"
    r"(?:images|questions|items|epochs|layers|heads|priors|tokens|classes|permutations|writes|patterns|networks|clusters)\b"
)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a complete run with a report."""
    folder = tmp_path_factory.mktemp("single") / "run"
    experiment = vary({"num_test": 1}, {"num_priors": 1, "num_heads": 1}, epochs=1)
    experiment = replace(experiment, model=replace(experiment.model, num_heads=1))
    train(experiment, folder)
    write_report(folder)
    return folder


def test_the_report_counts_one_of_anything_in_the_singular(single: Path) -> None:
    text = re.sub(r"\s+", " ", (single / "report.html").read_text())
    for words in ("complete after 1 epoch<", " on 1 test image of", "has 1 prior of"):
        assert words in text
    assert "In each of 1 head," in text and "of the 1 analyzed test image (" in text
    assert PLURAL.findall(text) == []


def test_the_analysis_counts_one_of_anything_in_the_singular(single: Path, ait: Ait) -> None:
    analysis = load_analysis(single)
    assert analysis is not None
    lines = [
        line for result in analysis if hasattr(result, "describe") for line in result.describe()
    ]
    assert "% of 1 item correct" in lines[0]
    assert any(line.startswith("memory of 1 prior, ") for line in lines)
    assert ait("analyze", single).code == 0
    captions = [path.read_text() for path in (single / "figures").glob("*.svg")]
    assert len(captions) == len(DRAWINGS) - 1  # without roles
    assert PLURAL.findall(" ".join([*lines, *captions])) == []


def test_an_unfinished_run_of_one_epoch_is_described_in_the_singular(
    single: Path, tmp_path: Path
) -> None:
    (tmp_path / "experiment.yaml").write_bytes((single / "experiment.yaml").read_bytes())
    text = write_report(tmp_path).read_text()
    assert "Unfinished: 0 of 1 epoch, on triangle." in text
