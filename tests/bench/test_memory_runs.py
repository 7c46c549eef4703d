"""benchmarks/memory.py: its rows, its schedule, its files and its tables, on made-up data."""

import json
import math
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import memory
import memory_rows
import memory_steps
import memory_training
import shifts
from associative_transformer.evaluate import Evaluation
from associative_transformer.interface import Batch, UserError
from associative_transformer.training.parameters import parameter_groups
from making.commands import make_images
from statistics_of_runs import interval

ROOT = Path(__file__).parents[2]
SMALL = memory_rows.Settings().small()
ROWS = [(table, name) for table, c in memory_rows.TABLES.items() for name in c.rows]
IMAGE = "workspace per image"
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
    assert len(shared) == 8
    for table, name in shared:
        run = memory.Run(table, name, 0, tmp_path)
        twin = memory.Run(*run.row.home, 0, tmp_path)
        assert (run.file, run.settings) == (twin.file, twin.settings)
        assert run.row.build is twin.row.build


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("before", {"workspace"}),
        ("before-map", {"workspace", "to_out"}),
        ("before-bare", {"workspace"}),
    ],
)
def test_a_workspace_in_the_place_of_attention_replaces_it(name: str, parts: set[str]) -> None:
    torch.manual_seed(0)
    model = memory_rows.TABLES["place"].rows[name].build(SMALL)
    block = model.blocks[0]
    x = torch.randn(2, 4, SMALL.embed_dim)
    read = block.attention.workspace(block.norm1(x)).read
    between = x + block.attention.to_out(read)
    torch.testing.assert_close(
        block(x), between + block.norm3(block.feed_forward(block.norm2(between)))
    )
    assert {key.split(".")[0] for key, _ in block.attention.named_parameters()} == parts
    model(torch.randn(2, 3, 16, 16)).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


# --- planted results ---


def plant(results: Path, table: str, name: str, seed: int, accuracy: float) -> None:
    run = memory.Run(table, name, seed, results)
    run.file.parent.mkdir(parents=True, exist_ok=True)
    run.file.write_text(json.dumps({"accuracy": accuracy, "parameters": 1234}))


def test_a_mean_has_the_interval_of_student() -> None:
    assert interval([1.0, 2.0, 3.0]) == "+2.00 ± 2.48"  # 4.303 / sqrt(3)
    assert interval([1.0, 2.0, 3.0], "") == "2.00 ± 2.48"
    assert interval([0.5]) == "+0.50"


def test_a_table_pairs_the_runs_by_seed_and_says_what_is_missing(tmp_path: Path) -> None:
    for seed, (ours, theirs) in enumerate([(61.0, 60.0), (63.0, 61.0), (65.0, 62.0)]):
        plant(tmp_path, "ablations", "image", seed, ours)
        plant(tmp_path, "ablations", "vit-norm", seed, theirs)
    plant(tmp_path, "ablations", "linear", 2, 61.0)
    steps = {"seconds": {"image": [0.3, 0.25, 0.2]}, "precision": "bfloat16", "threads": 1}
    path = memory_steps.find_steps(tmp_path, "ablations")
    path.parent.mkdir()
    path.write_text(json.dumps(steps | {"date": "2026-12-01"}))
    table = memory.tabulate("ablations", tmp_path)
    rows = {row[0]: row[1:] for group in table.groups for row in group.rows}
    of_image = (
        "1,234",
        "0: 61.00, 1: 63.00, 2: 65.00",
        "63.00 ± 4.97",
        "+2.00 ± 2.48",
        "250.0",
        "3",
    )
    assert rows["workspace per image"] == of_image
    assert rows["ViT, norm after FFN"][3] == ""
    assert rows["linear attention (elu + 1)"][1:] == ("2: 61.00", "61.00", "-1.00", "", "1")
    assert rows["mean of the tokens"] == ("", "not measured", "", "", "", "0")
    assert "medians of 3 rounds in turn, bfloat16, 1 thread, 2026-12-01" in table.notes[1]


def test_each_type_of_question_has_rows_of_its_own(tmp_path: Path) -> None:
    for name, binary in (("image", 60.0), ("vit", 50.0)):
        run = memory.Run("sort-of-clevr", name, 0, tmp_path)
        plant(tmp_path, *run[:3], 70.0)
        kinds = {"non-relational": 80.0, "binary": binary, "binary/closest": 40.0}
        run.file.write_text(json.dumps(run.read() | {"kinds": kinds}))
    table = memory.tabulate("sort-of-clevr", tmp_path)
    rows = {
        group.title: {row[0]: row[3:5] for row in group.rows if row[-1] != "0"}
        for group in table.groups
    }
    assert rows == {
        "all questions": {"ViT": ("70.00", ""), IMAGE: ("70.00", "+0.00")},
        "non-relational questions": {"ViT": ("80.00", ""), IMAGE: ("80.00", "+0.00")},
        "binary questions": {"ViT": ("50.00", ""), IMAGE: ("60.00", "+10.00")},
    }
    assert table.notes[0].startswith("Sort-of-CLEVR, patch 15, 12 epochs")


def test_the_table_of_shifts_pairs_writing_with_frozen(tmp_path: Path) -> None:
    for seed, gain in enumerate((1.0, 2.0, 3.0)):
        run = memory.Run("ablations", "batch", seed, tmp_path)
        plant(tmp_path, *run[:3], 70.0)
        scores = {name: {"frozen": 60.0, "writing": 60.0 + gain} for name in shifts.SHIFTS}
        run.file.write_text(json.dumps(run.read() | {"shifts": scores}))
    plant(tmp_path, "ablations", "vit", 0, 70.0)
    run = memory.Run("ablations", "vit", 0, tmp_path)
    scores = {name: {"frozen": 50.0} for name in shifts.SHIFTS}
    run.file.write_text(json.dumps(run.read() | {"shifts": scores}))
    table = memory.tabulate_shifts("ablations", tmp_path)
    assert [group.title for group in table.groups] == list(shifts.SHIFTS)
    assert table.groups[1].rows == [
        ("ViT", "50.00", "", "1"),
        ("published workspace, no self-attention", "60.00 ± 0.00", "+2.00 ± 2.48", "3"),
    ]


# --- changed test images ---


class OneBatch:
    """A split with one batch."""

    def eval_batches(self, size: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(size, 3, 16, 16, generator=generator)
        yield Batch(images, None, torch.arange(size) % 10)


@pytest.mark.parametrize("name", ["batch-attention", "image", "vit"])
def test_only_a_memory_of_the_batch_writes_at_test_time(name: str) -> None:
    torch.manual_seed(0)
    model = memory_rows.ABLATIONS[name].build(SMALL)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    scores = shifts.score_shifts(model, OneBatch(), 40, 10, "float32")  # type: ignore[arg-type]
    assert set(scores) == set(shifts.SHIFTS)
    expected = {"frozen", "writing"} if name == "batch-attention" else {"frozen"}
    assert all(set(each) == expected for each in scores.values())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_a_memory_that_writes_moves_without_dropout_and_changes_the_answers() -> None:
    torch.manual_seed(0)
    model = memory_rows.ABLATIONS["batch-attention"].build(SMALL)
    images = torch.randn(40, 3, 16, 16)
    first, second = (shifts.WritingModel(model).eval() for _ in range(2))
    answers = [each(images).logits for each in (first, second)]
    assert torch.equal(*answers)  # no dropout
    assert not torch.equal(answers[0], model.eval()(images).logits)
    priors = [each.priors for each in (*shifts.memories(first), *shifts.memories(model))]
    assert not torch.equal(priors[0], priors[2])
    assert first.model is not model


@pytest.mark.parametrize("name", shifts.SHIFTS)
def test_a_shift_changes_the_images_in_the_same_way_each_time(name: str) -> None:
    first, second = (list(shifts.changed(OneBatch(), 4, shifts.SHIFTS[name])) for _ in range(2))  # type: ignore[arg-type]
    (original,) = OneBatch().eval_batches(4)
    assert torch.equal(first[0].images, second[0].images)
    assert torch.equal(first[0].images, original.images) == (name == "none")
    assert torch.equal(first[0].labels, original.labels)


def test_the_goal_is_compared_with_the_better_vit(tmp_path: Path) -> None:
    for seed, (ours, plain, norm) in enumerate([(65.0, 60.0, 66.0), (65.0, 65.0, 62.0)]):
        plant(tmp_path, "goal", "image", seed, ours)
        plant(tmp_path, "goal", "vit", seed, plain)
        plant(tmp_path, "goal", "vit-norm", seed, norm)
    table = memory.tabulate("goal", tmp_path)
    rows = {row[0]: row[1:] for group in table.groups for row in group.rows}
    assert rows["workspace per image"][3].startswith("+1.00")  # ViT with the norm: 64.0
    assert rows["ViT"][3].startswith("-1.50")
    assert rows["ViT, norm after FFN"][3] == ""
    assert "vit-norm" in table.notes[-1]


def test_the_goal_takes_the_best_rate_and_is_refused_without_all_four(tmp_path: Path) -> None:
    run = memory.Run("goal", "image", 3, tmp_path)
    for rate, accuracy in ((5e-4, 60.0), (1e-3, 61.0), (2e-3, 62.0)):
        plant(tmp_path, "goal-rates", f"image-lr-{rate:g}", 0, accuracy)
    with pytest.raises(UserError, match=r"because the runs image-lr-0\.004 are missing"):
        _ = run.settings
    plant(tmp_path, "goal-rates", "image-lr-0.004", 0, 61.5)
    assert run.settings.lr == 2e-3
    assert (run.settings.epochs, run.settings.scored_on) == (20, "test")


# --- runs ---


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return make_images(tmp_path / "set")


@pytest.fixture
def train(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], dict[str, Any]]:
    """Return a function that trains a row with seed 0 in this process and reads its result."""

    def train_row(table: str, name: str) -> dict[str, Any]:
        run = memory.Run(table, name, 0, tmp_path / "results")
        options = Namespace(source=str(images), small=True, precision="float32")
        memory.train_here(run, options)
        return run.read()

    monkeypatch.setattr(memory, "set_up_cpu", lambda: None)  # of the whole process
    return train_row


def test_the_same_seed_gives_the_same_run(train: Callable[[str, str], dict[str, Any]]) -> None:
    first, second = (train("ablations", "batch-attention") for _ in range(2))
    assert first["curve"] == second["curve"]
    assert len(first["curve"]) == 2
    assert first["images_seen"] == 2 * 24
    assert first["total"] == 10
    assert first["accuracy"] == 100 * first["correct"] / first["total"]
    assert first["parameters"] > 10_000


def test_a_validation_split_does_not_touch_the_test_images(
    train: Callable[[str, str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = []
    evaluate = memory_training.evaluate

    def record(model: torch.nn.Module, batches: Iterator[Batch], *rest: Any) -> Evaluation:  # noqa: ANN401
        scored.extend(batches)
        return evaluate(model, iter(scored), *rest)

    monkeypatch.setattr(memory_training, "evaluate", record)
    result = train("goal-rates", "vit-lr-0.001")
    assert result["scored_on"] == "validation"
    assert result["total"] == 2  # of 24 training images
    assert result["images_seen"] == 2 * 16
    assert result["settings"]["lr"] == 1e-3
    assert len(scored) == 1


@pytest.mark.parametrize(
    ("table", "kinds"), [("triangle", set()), ("sort-of-clevr", {"non-relational", "binary"})]
)
def test_generated_data_needs_no_source(
    table: str, kinds: set[str], train: Callable[[str, str], dict[str, Any]]
) -> None:
    result = train(table, "image")
    assert "--source" not in result["command"]
    assert result["settings"]["data"] == table
    assert {kind for kind in result["kinds"] if "/" not in kind and kind != "all"} == kinds
    if kinds:
        assert result["kinds"]["all"] == result["accuracy"]
        assert result["total"] == 10 * 20


@pytest.fixture
def run_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that runs the script in this process; runs train in their own."""

    def run(*words: object) -> None:
        common = ["--results", tmp_path / "results", "--small", "--jobs", 2]
        memory.main([*map(str, [*words, *common])])

    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    return run


@pytest.mark.slow
def test_only_missing_runs_are_trained_and_none_names_the_path_of_the_data(
    images: Path,
    tmp_path: Path,
    run_script: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = tmp_path / "results"
    plant(results, "ablations", "image", 0, 50.0)
    run_script("run", "ablations", "image", "--seeds", 0, 1, "--source", images)
    assert capsys.readouterr().out.startswith("image-1.json: ")
    text = (results / "ablations/image-1.json").read_text()
    assert str(images) not in text
    assert "run ablations image --seeds 1 --source PATH/TO/cifar10" in json.loads(text)["command"]
    assert json.loads(text)["environment"]["threads"] == 1
    run_script("table", "ablations")
    assert "| workspace per image | 1,234 | 0: 50.00, 1: " in capsys.readouterr().out


@pytest.mark.slow
def test_a_failed_run_is_named(
    tmp_path: Path, run_script: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="1"):
        run_script("run", "ablations", "vit", "--seeds", 0, "--source", tmp_path / "missing")
    printed = capsys.readouterr()
    assert printed.out == "vit-0.json: failed\n"
    assert "missing" in printed.err


@pytest.mark.parametrize("table", ["ablations", "sort-of-clevr"])
def test_the_steps_of_a_table_are_timed_in_turn(
    table: str, tmp_path: Path, run_script: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "set_up_cpu", lambda: None)  # it changes this process for good
    run_script("steps", table, "vit", "image", "--rounds", 2)
    steps = json.loads((tmp_path / f"results/steps/{table}.json").read_text())
    assert {name: len(each) for name, each in steps["seconds"].items()} == {"vit": 2, "image": 2}
    assert steps["threads"] == torch.get_num_threads()


def test_the_first_seed_of_all_rows_comes_before_the_second(
    run_script: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    monkeypatch.setattr(
        memory, "train_in_process", lambda run, _: trained.append(run.file.name) or True
    )
    run_script("run", "ablations", "vit", "image", "--seeds", 4, 5, "--source", "x")
    names = ["vit-4.json", "image-4.json", "vit-5.json", "image-5.json"]
    assert sorted(trained) == sorted(names)
    assert {*trained[:2]} == {*names[:2]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "goal", "vit", "--source", "x"), "the learning rate of vit is not known"),
        (("run", "goal", "bird", "--source", "x"), "2"),
        (("run", "goal", "vit"), "2"),
    ],
)
def test_a_command_that_cannot_run_is_refused_before_it_trains(
    words: tuple[str, ...], message: str, run_script: Callable[..., None]
) -> None:
    with pytest.raises(SystemExit, match=message):
        run_script(*words)


def test_the_other_precision_has_a_folder_of_its_own(
    run_script: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: list[Path] = []
    monkeypatch.setattr(
        memory, "train_in_process", lambda run, options: files.append(run.file) or True
    )
    words = ("run", "goal-rates", "vit-lr-0.001", "--source", "x", "--seeds", 0)
    run_script(*words)
    run_script(*words, "--precision", "float32")
    results = tmp_path / "results"
    assert files[0] == results / "goal-rates/vit-lr-0.001-0.json"
    assert files[1] == results / "float32/goal-rates/vit-lr-0.001-0.json"
