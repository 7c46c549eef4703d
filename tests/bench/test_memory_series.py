"""benchmarks/memory_series.py: what it measures, its files, table and figure, on made-up data."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import memory_series
from associative_transformer.data import ImagesConfig, Split
from associative_transformer.interface import UserError
from associative_transformer.models.official import load_official
from making.commands import make_images
from making.official_code import write_hopfield, write_official
from memory_series_tables import LAYER_MEASURES, draw, tabulate
from memory_series_training import record
from memory_series_variants import VARIANTS, Official, Ours, Settings, identify, mean_overlap

ROOT = Path(__file__).parents[2]
SMALL = replace(Settings().small(), num_classes=2)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """Write code with the layout of the official one; what using it changes is restored."""
    monkeypatch.setattr(torch.Tensor, "cuda", torch.Tensor.cuda)
    monkeypatch.setattr(torch.nn.Module, "cuda", torch.nn.Module.cuda)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield write_official(tmp_path / "code"), write_hopfield(tmp_path / "hopfield")
    for name in ("MHA", "vit_hn", "hflayers"):
        sys.modules.pop(name, None)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return make_images(tmp_path / "set")


@pytest.fixture
def split(images: Path) -> Split:
    """Return 24 images: three batches of 8."""
    config = ImagesConfig("cifar10", source=str(images), image_size=16, num_workers=0)
    return config.load(torch.device("cpu")).train


# --- what is measured ---


def test_the_overlap_is_the_mean_over_the_pairs_of_each_head() -> None:
    first = [[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 0]]  # 1/3, 1, 1/3
    second = [[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 0]]  # 0, 2/3, 1/4
    expected = (1 / 3 + 1 + 1 / 3 + 0 + 2 / 3 + 1 / 4) / 6
    assert mean_overlap(torch.tensor([first, second]).bool()) == pytest.approx(expected)


def test_the_official_model_and_ours_are_measured_alike(folders: tuple[Path, Path]) -> None:
    config = SMALL.config({"dropout": 0.0})
    official = Official(*folders, config).eval()  # without dropout; it still writes
    for memory in official.memories:
        memory.memory.data[:8] = memory.memory.data[0].clone()
    ours = Ours(config)
    ours.model.load_state_dict(load_official(official.model.state_dict(), 8).state_dict())
    images = torch.randn(8, 3, 16, 16)
    with torch.no_grad():
        theirs, mine = official(images), ours(images)
    assert torch.allclose(mine.logits, theirs.logits, atol=1e-4)
    for model, total in ((official, theirs.aux_loss), (ours, mine.aux_loss)):
        assert len(model.balance_losses) == 2
        assert sum(map(float, model.balance_losses)) == pytest.approx(float(total), rel=1e-4)
    for own, other in zip(ours.measure(), official.measure(), strict=True):
        assert own == pytest.approx(other, rel=1e-4)
        assert own.distinct == 25  # of 32
        assert 1 < own.effective_rank < 25
        assert 28 / 496 < own.overlap < 1  # 28 of the 496 pairs are equal


def test_priors_that_compete_take_fewer_tokens_in_common() -> None:
    overlaps = {}
    for name in ("no-dropout", "dropout", "competition", "competition-centered"):
        torch.manual_seed(0)
        model = Ours(SMALL.config(VARIANTS[name].workspace))
        model(torch.randn(8, 3, 16, 16))
        overlaps[name] = model.measure()[0].overlap
    assert overlaps["competition"] < overlaps["dropout"] == overlaps["no-dropout"]
    assert overlaps["competition-centered"] == overlaps["competition"]  # same keys, other values


def test_the_variants_differ_in_nothing_but_their_names() -> None:
    paper = Settings().config({"dropout": 0.0})
    rules = {
        "official": {"dropout": 0.1},  # its own
        "no-dropout": {},
        "dropout": {"dropout": 0.1},
        "competition": {"dropout": 0.1, "competition": "priors"},
        "competition-centered": {"dropout": 0.1, "competition": "priors", "center_values": True},
        "paper-batch": {"dropout": 0.1, "bottleneck": 512},
    }
    for name, variant in VARIANTS.items():
        settings = Settings(batch_size=variant.batch_size)
        changed = replace(paper.workspace, **rules[name])
        assert settings.config(variant.workspace) == replace(paper, workspace=changed)


@pytest.mark.parametrize("every", [2, 3, 9])
def test_records_hold_means_of_the_losses_and_do_not_change_the_training(
    every: int, split: Split
) -> None:
    def train(every: int) -> dict[int, dict[str, Any]]:
        torch.manual_seed(0)
        model = Ours(SMALL.config({"dropout": 0.1}))
        settings = replace(SMALL, steps=5, every=every)
        return {each["step"]: each for each in record(model, split, settings, 0, "float32", [])}

    all_steps, some = train(1), train(every)
    assert list(all_steps) == [1, 2, 3, 4, 5]
    assert list(some) == {2: [1, 2, 4, 5], 3: [1, 3, 5], 9: [1, 5]}[every]
    previous = 0
    for step, each in some.items():
        since = [all_steps[i] for i in range(previous + 1, step + 1)]
        previous = step
        means = torch.tensor(
            [
                [e["cross_entropy"], *(layer["balance_loss"] for layer in e["layers"])]
                for e in since
            ]
        ).mean(dim=0)
        assert each["cross_entropy"] == pytest.approx(means[0].item())
        for i, layer in enumerate(each["layers"]):
            exact = all_steps[step]["layers"][i]
            assert layer["balance_loss"] == pytest.approx(means[i + 1].item())
            assert all(layer[name] == exact[name] for name in list(LAYER_MEASURES)[:3])


def test_the_official_model_is_in_evaluation_from_the_second_epoch_on(
    folders: tuple[Path, Path], split: Split
) -> None:
    modes = []
    for model in (Official(*folders, SMALL.config({})), Ours(SMALL.config({}))):
        hook = model.register_forward_hook(lambda m, inputs, output: modes.append(m.training))
        list(record(model, split, replace(SMALL, steps=5), 0, "float32", []))
        hook.remove()
    assert modes == [True, True, True, False, False, *[True] * 5]


def test_the_state_of_the_official_memory_is_that_after_the_step(
    folders: tuple[Path, Path], split: Split
) -> None:
    model = Official(*folders, SMALL.config({}))
    before = [memory.memory.data.clone() for memory in model.memories]
    *_, last = record(model, split, replace(SMALL, steps=1), 0, "float32", [])
    ranks = [layer["effective_rank"] for layer in last["layers"]]
    after = [memory.memory.data for memory in model.memories]
    assert ranks == [memory_rank(each) for each in after] != [memory_rank(b) for b in before]


def memory_rank(memory: torch.Tensor) -> float:
    energy = torch.linalg.svdvals(memory.double()).square()
    share = energy / energy.sum()
    return float((-share * share.log()).sum().exp())


def test_files_are_identified_as_git_does(tmp_path: Path) -> None:
    for name in ("ait.py", "MHA.py", "vit_hn.py"):
        (tmp_path / name).write_bytes(b"hello\n")
    assert set(identify(tmp_path).values()) == {"ce013625030ba8dba906f756967f9e9ca394464a"}


# --- options ---


def choose(*words: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["memory_series.py", "run", *words])
    runs = memory_series.choose_runs(memory_series.parse_options())
    return [f"{run.variant}-{run.seed}" for run in runs]


def test_every_variant_runs_with_every_seed_but_that_of_the_paper_with_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    common = ("--source=x", "--official=y", "--seeds", "3", "4")
    several = [name for name in VARIANTS if name != "paper-batch"]
    expected = [*(f"{name}-3" for name in VARIANTS), *(f"{name}-4" for name in several)]
    assert choose(*common, monkeypatch=monkeypatch) == expected
    assert choose("dropout", *common, monkeypatch=monkeypatch) == ["dropout-3", "dropout-4"]


def test_the_official_code_is_left_out_without_its_folder_but_not_silently_if_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = choose("--source=x", "--seeds", "0", monkeypatch=monkeypatch)
    assert runs == [f"{name}-0" for name in VARIANTS if name != "official"]
    with pytest.raises(SystemExit):
        choose("official", "--source=x", monkeypatch=monkeypatch)
    assert "--official" in capsys.readouterr().err


def test_the_paper_has_the_same_share_of_tokens_as_the_small_batch() -> None:
    for name, (batch, bottleneck) in {"dropout": (64, 64), "paper-batch": (512, 512)}.items():
        settings = Settings(batch_size=VARIANTS[name].batch_size)
        workspace = settings.config(VARIANTS[name].workspace).workspace
        assert (settings.batch_size, workspace.bottleneck) == (batch, bottleneck)


# --- table and figure, from planted results ---


def plant(results: Path, variant: str, seed: int, rank: float, accuracy: float) -> None:
    def layer(rank: float) -> dict[str, float]:
        return {"effective_rank": rank, "distinct": 27.0, "overlap": 0.25, "balance_loss": 0.5}

    series = [
        {"step": step, "cross_entropy": loss, "layers": [layer(rank), layer(rank + 1)]}
        for step, loss in ((1, 2.25), (10, 1.75))
    ]
    settings = {"batch_size": 64, "steps": 10}
    content = {"seed": seed, "series": series, "settings": settings, "accuracy": accuracy}
    results.mkdir(exist_ok=True)
    (results / f"{variant}-{seed}.json").write_text(json.dumps(content))


def test_the_table_shows_the_last_record_and_says_what_is_missing(tmp_path: Path) -> None:
    plant(tmp_path, "competition", 0, 3.0, 40.0)
    plant(tmp_path, "competition", 10, 4.0, 42.0)
    plant(tmp_path, "competition-centered", 0, 9.0, 50.0)
    (group,) = tabulate(tmp_path).groups
    rows = {row[0]: row[1:] for row in group.rows}
    assert rows["ours, dropout 0.1, competition"] == (
        *("64", "10", "3.50, 4.50", "27.0, 27.0", "0.250, 0.250", "0.500, 0.500"),
        *("1.750", "41.00 ± 12.71", "2"),
    )
    assert rows["official code as shipped"] == ("not measured", *[""] * 7, "0")
    assert len(rows) == len(VARIANTS)


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_figure_shows_the_runs_that_are_there(ending: str, tmp_path: Path) -> None:
    results = tmp_path / "series"
    for seed in (0, 1):
        plant(results, "dropout", seed, 3.0, 40.0)
    plant(results, "competition", 0, 5.0, 40.0)
    draw(results, tmp_path / f"figure.{ending}")
    content = (tmp_path / f"figure.{ending}").read_bytes()
    assert ending.encode() in content[:200].lower()
    if ending == "svg":
        text = content.decode()
        titles = [VARIANTS[name].title for name in VARIANTS]
        shown = [title for title in titles for _ in range(text.count(f">{title}<"))]
        assert shown == ["ours, dropout 0.1", "ours, dropout 0.1, competition"]  # once each
        assert all(f">{title}, layer 2<" in text for title in LAYER_MEASURES.values())


def test_without_runs_there_is_no_figure(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no runs: python benchmarks/memory_series\.py run"):
        draw(tmp_path, tmp_path / "figure.svg")


# --- runs ---


@pytest.mark.thorough
def test_missing_runs_are_trained_and_kept(
    images: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    results = tmp_path / "results"
    words = ["official", "dropout", "--small", "--classes=2", "--steps=5", "--every=2"]
    words += [f"--source={images}", f"--official={folders[0]}", f"--hopfield={folders[1]}"]
    words += [f"--results={results}", "--test-images=7", "--seeds", "0"]

    def run() -> str:
        done = subprocess.run(
            [sys.executable, ROOT / "benchmarks/memory_series.py", "run", *words],
            env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    names = [line.split(":")[0] for line in run().splitlines()]
    assert names == ["official-0.json", "dropout-0.json"]
    for name in names:
        text = (results / name).read_text()
        content = json.loads(text)
        assert [each["step"] for each in content["series"]] == [1, 2, 4, 5]
        assert content["accuracy"] == pytest.approx(100 * content["correct"] / 7)
        assert (content["total"], content["images_seen"]) == (7, 40)
        assert str(tmp_path) not in text
        assert "--source=PATH/TO/cifar10" in content["command"]
        assert ("PATH/TO/OFFICIAL" in content["command"]) == name.startswith("official")
        assert {"packages", "commit", "device"} <= set(content["environment"])
    assert content["seed"] == 0
    assert run() == ""  # nothing is missing any more
