"""benchmarks/memory.py: its rows, its schedule, its files and its tables, on made-up data."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import memory
import memory_rows
import memory_training
from associative_transformer.interface import UserError
from associative_transformer.training.step import parameter_groups
from making.commands import make_images
from statistics_of_runs import interval

ROOT = Path(__file__).parents[2]
SMALL = memory_rows.Settings().small()
ROWS = [(table, name) for table, c in memory_rows.TABLES.items() for name in c.rows]
WITHOUT_USE = {"ablations ait-no-read", "contributions mean-ait-no-read"}
every_ablation = pytest.mark.parametrize("name", memory_rows.ABLATIONS)


@every_ablation
def test_a_row_trains_all_its_parameters(name: str) -> None:
    torch.manual_seed(0)
    model = memory_rows.ABLATIONS[name].build(SMALL)
    logits, aux_loss = model(torch.randn(8, 3, 16, 16))
    (logits.square().sum() + aux_loss).backward()
    idle = {key for key, p in model.named_parameters() if p.grad is None}
    assert logits.shape == (8, 10)
    # without a read, only the balance loss reaches the workspace: its queries and keys
    ends = ("to_v", "to_prior", "norm", "to_attractor") if name == "ait-no-read" else ()
    assert all(key.rsplit(".", 2)[1] in ends and "workspace" in key for key in idle)


MIXING = set(memory_rows.ABLATIONS) - {"no-mixing", "hopfield", "batch"}


@every_ablation
@torch.no_grad()
def test_tokens_learn_of_each_other_in_all_rows_but_three(name: str) -> None:
    torch.manual_seed(0)
    model = memory_rows.ABLATIONS[name].build(SMALL).eval()
    images = torch.randn(1, 3, 16, 16)
    changed = images.clone()
    changed[..., :8, :8] = torch.randn(3, 8, 8)  # the first patch
    outputs = []
    model.head.register_forward_pre_hook(lambda _, inputs: outputs.append(inputs[0]))
    model(images), model(changed)
    others = (outputs[0] - outputs[1])[0, 1:].abs().max()
    assert (others > 1e-6) == (name in MIXING)


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("image", {"priors"}),
        ("slots", {"priors"}),
        ("inducing", {"inducing"}),
        ("hopfield", {"patterns"}),
        ("registers", {"registers"}),
        ("linear", set()),
        ("vit", set()),
    ],
)
def test_learned_vectors_have_no_weight_decay(name: str, ends: set[str]) -> None:
    model = memory_rows.ABLATIONS[name].build(SMALL)
    exempt = [g["params"] for g in parameter_groups(model) if g.get("weight_decay") == 0.0]
    names = {id(p): key for key, p in model.named_parameters()}
    assert {names[id(p)].split(".")[-1] for group in exempt for p in group} == ends


def test_the_rate_warms_up_over_a_tenth_of_the_steps_and_falls_along_a_cosine() -> None:
    rates = [memory_training.learning_rate(step, 100) for step in (0, 5, 10, 50, 100)]
    cosine = [(1 + math.cos(math.pi * step / 100)) / 2 for step in (0, 5, 10, 50, 100)]
    assert rates == pytest.approx([0.0, 0.5 * cosine[1], cosine[2], 0.5, 0.0])


def test_runs_are_shared_between_tables_only_if_they_are_trained_in_the_same_way(
    tmp_path: Path,
) -> None:
    shared = [(t, n) for t, n in ROWS if memory_rows.TABLES[t].rows[n].home]
    assert len(shared) == 6
    for table, name in shared:
        run = memory.Run(table, name, 0, tmp_path)
        twin = memory.Run(*run.row.home, 0, tmp_path)
        assert (run.file, run.settings) == (twin.file, twin.settings)
        assert run.row.build is twin.row.build


# --- planted results ---


def plant(results: Path, table: str, name: str, seed: int, accuracy: float) -> None:
    run = memory.Run(table, name, seed, results)
    run.file.parent.mkdir(parents=True, exist_ok=True)
    content = {"accuracy": accuracy, "parameters": 1234, "timing": {"seconds_per_step": 0.25}}
    run.file.write_text(json.dumps(content))


def test_a_mean_has_the_interval_of_student() -> None:
    assert interval([1.0, 2.0, 3.0]) == "+2.00 ± 2.48"  # 4.303 / sqrt(3)
    assert interval([1.0, 2.0, 3.0], "") == "2.00 ± 2.48"
    assert interval([0.5]) == "+0.50"


def test_a_table_pairs_the_runs_by_seed_and_says_what_is_missing(tmp_path: Path) -> None:
    for seed, (ours, theirs) in enumerate([(61.0, 60.0), (63.0, 61.0), (65.0, 62.0)]):
        plant(tmp_path, "ablations", "image", seed, ours)
        plant(tmp_path, "ablations", "vit-norm", seed, theirs)
    plant(tmp_path, "ablations", "linear", 2, 61.0)
    table = memory.tabulate("ablations", tmp_path)
    rows = {row[0]: row[1:] for group in table.groups for row in group.rows}
    of_image = ("1,234", "61.00 63.00 65.00", "63.00 ± 4.97", "+2.00 ± 2.48", "250.0", "3")
    assert rows["workspace per image"] == of_image
    assert rows["ViT, norm behind FFN"][3] == ""
    assert rows["linear attention (elu + 1)"][2:] == ("61.00", "-1.00", "250.0", "1")
    assert rows["mean of the tokens"] == ("", "not measured", "", "", "", "0")


def test_the_goal_takes_the_best_rate_and_is_refused_without_all_four(tmp_path: Path) -> None:
    run = memory.Run("goal", "image", 3, tmp_path)
    for rate, accuracy in ((5e-4, 60.0), (1e-3, 61.0), (2e-3, 62.0)):
        plant(tmp_path, "goal-rates", f"image-lr-{rate:g}", 0, accuracy)
    with pytest.raises(UserError, match=r"without the runs image-lr-0\.004:"):
        _ = run.settings
    plant(tmp_path, "goal-rates", "image-lr-0.004", 0, 61.5)
    assert run.settings.lr == 2e-3
    assert (run.settings.epochs, run.settings.scored_on) == (20, "test")


# --- runs ---


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return make_images(tmp_path / "set")


def run_script(images: Path, results: Path, *words: object) -> str:
    common = ["--source", images, "--results", results, "--small", "--classes", 2]
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/memory.py", "run", *map(str, [*words, *common])],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_missing_runs_are_trained_seed_by_seed_and_kept(images: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    words = ("ablations", "image", "vit", "--seeds", 0, 1)
    printed = run_script(images, results, *words)
    names = [f"{name}-{seed}.json" for seed in (0, 1) for name in ("image", "vit")]
    assert [line.split(":")[0] for line in printed.splitlines()] == names
    content: dict[str, Any] = json.loads((results / "ablations/image-1.json").read_text())
    assert content["accuracy"] == 100 * content["correct"] / content["total"]
    assert len(content["curve"]) == 2
    assert content["images_seen"] % (2 * 8) == 0
    assert str(images) not in json.dumps(content)
    assert "PATH/TO/cifar10" in content["command"]
    assert run_script(images, results, *words) == ""  # nothing is missing any more


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run(images: Path, tmp_path: Path) -> None:
    curves = []
    for folder in ("a", "b"):
        run_script(images, tmp_path / folder, "ablations", "image", "--seeds", 3)
        content = json.loads((tmp_path / folder / "ablations/image-3.json").read_text())
        curves.append(content["curve"])
    assert curves[0] == curves[1]


@pytest.mark.slow
def test_a_validation_split_does_not_touch_the_test_images(images: Path, tmp_path: Path) -> None:
    row = "vit-lr-0.001"
    run_script(images, tmp_path / "r", "goal-rates", row, "--seeds", 0)
    content = json.loads((tmp_path / f"r/goal-rates/{row}-0.json").read_text())
    settings = memory_rows.TABLES["goal-rates"].settings.small()
    data, scored = memory_training.load_data(str(images), settings)
    assert content["total"] == len(scored) < len(data.test)
    assert content["scored_on"] == "validation"
