"""benchmarks/transfer.py: its commands, its files and its table."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest

import transfer
from associative_transformer.cli.options import parse
from associative_transformer.cli.train import TrainOptions
from associative_transformer.recipes import find_recipe
from making.commands import make_images


def test_every_command_is_a_valid_one_on_its_classes() -> None:
    for run in transfer.list_runs([0, 1]):
        words = run.command("runs", "somewhere", small=False)
        recipe = find_recipe(words[1])
        experiment = parse(TrainOptions, words[2:], "train", TrainOptions(recipe)).experiment
        is_new = run.method != transfer.PRETRAINED
        assert experiment.data.splits.classes == tuple(transfer.NEW if is_new else transfer.OLD)
        assert experiment.train.seed == run.seed
        assert (experiment.init is not None) == (run.method in ("probe", "whole"))
        assert (experiment.train.freeze == "backbone") == (run.method == "probe")


def test_no_class_is_both_old_and_new() -> None:
    assert not set(transfer.OLD) & set(transfer.NEW)
    assert len(transfer.OLD + transfer.NEW) == 10


@pytest.mark.slow
@pytest.mark.thorough
def test_a_run_is_trained_kept_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    classes = tuple(transfer.OLD[:2] + transfer.NEW)
    images = make_images(tmp_path / "images", classes, classes)
    monkeypatch.setattr(transfer, "OLD", transfer.OLD[:2])
    monkeypatch.setattr(transfer, "BUDGETS", {50: transfer.Budget(4, 1)})
    monkeypatch.setattr(transfer, "PRETRAINING", transfer.Budget(4, 1))
    folders = {"runs": tmp_path / "runs", "results": tmp_path / "results"}
    options = Namespace(source=str(images), small=True, **folders)
    for run in transfer.list_runs([0]):
        transfer.train(run, options)
        assert (
            transfer.SOURCE in json.loads((folders["results"] / run.file).read_text())["command"]
        )
    capfd.readouterr()
    argv = ["transfer.py", "table", "--results", str(folders["results"])]
    monkeypatch.setattr(sys, "argv", argv)
    transfer.main()
    shown = capfd.readouterr().out
    assert shown.count("| 50 | 1 |") == 3
    assert "not measured" not in shown
