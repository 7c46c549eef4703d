"""benchmarks/trainers.py: every trainer trains, and the table shows what they reached."""

import sys
from pathlib import Path

import pytest

import trainers

NEEDED = {"ait": "torch", "timm": "timm", "transformers": "transformers", "lightning": "lightning"}


@pytest.mark.interop
@pytest.mark.parametrize("name", trainers.TRAINERS)
def test_a_trainer_trains_and_its_result_is_shown(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(NEEDED[name])
    options = ["--small", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["trainers.py", "run", name, *options])
    trainers.main()
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["trainers.py", "table", "--results", str(tmp_path)])
    trainers.main()
    shown = capsys.readouterr().out
    assert shown.count("not measured") == len(trainers.TRAINERS) - 1


def test_every_trainer_has_a_row(tmp_path: Path) -> None:
    table = trainers.tabulate(tmp_path).to_markdown()
    assert all(f"| {name} |" in table for name in trainers.TRAINERS)
