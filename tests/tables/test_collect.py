"""Collecting runs: how they are grouped, their progress, and which are left out and why."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from associative_transformer.data.known import KNOWN_DATA_SETS
from associative_transformer.experiment import Experiment, fingerprint
from associative_transformer.recipes import RECIPES
from associative_transformer.recipes.budgets import shorten
from associative_transformer.runs.result import read_result
from associative_transformer.scores import Interval
from associative_transformer.tables.collect import (
    CompleteRun,
    RunsOfExperiment,
    collect_runs,
    describe_overrides,
    spread,
)
from making.plant import answers_of, put_run, result_of

VIT = RECIPES["cifar10-vit-small"]
AIT = RECIPES["sort-of-clevr-ait-small"]
TABLE_RECIPES = {recipe.name: recipe for recipe in (VIT, AIT)}


def changed(recipe: Experiment = VIT, epochs: int = 2, name: str = "") -> Experiment:
    train = replace(recipe.train, epochs=epochs)
    return replace(recipe, name=name or f"{recipe.name}+abc", train=train)


# --- what is read ---


def test_a_complete_run_is_read_with_its_device(tmp_path: Path) -> None:
    folder = put_run(tmp_path, VIT, 3, result_of(VIT, 81.25), device="NVIDIA H100")
    collected = collect_runs(tmp_path, TABLE_RECIPES)
    assert collected.left_out == []
    (run,) = collected.take(VIT).complete.items()
    assert run == (3, CompleteRun(read_result(folder), "NVIDIA H100"))
    assert run[1].result.test_accuracy == 81.25
    assert run[1].result.timing.finished == "2026-11-24"


def test_a_run_with_questions_is_read_with_the_score_of_each_kind(tmp_path: Path) -> None:
    put_run(tmp_path, AIT, 0, answers_of(AIT, 70.0, 90.0))
    (result,) = collect_runs(tmp_path, TABLE_RECIPES).take(AIT).results
    assert result.question_types == ("non-relational", "binary")
    assert (result.score("binary").accuracy, result.score("binary").guess) == (70.0, 42.7)
    assert result.score("binary/shape").accuracy == 64.0
    assert result.score("ternary") is None


def test_a_run_of_an_older_version_without_device_and_date_is_complete(tmp_path: Path) -> None:
    result = result_of(VIT)
    result["timing"] = {"seconds": 9.0}
    path = put_run(tmp_path, VIT, 0, result)
    (path / "environment.json").write_text("{}")
    (run,) = collect_runs(tmp_path, TABLE_RECIPES).take(VIT).complete.values()
    assert (run.result.timing.finished, run.device) == (None, "unknown")
    del result["timing"]
    (path / "result.json").write_text(json.dumps(result))
    (run,) = collect_runs(tmp_path, TABLE_RECIPES).take(VIT).complete.values()
    assert run.result.timing is None


def test_runs_are_grouped_by_recipe_and_fingerprint(tmp_path: Path) -> None:
    for seed in (0, 1):
        put_run(tmp_path, VIT, seed, result_of(VIT))
    for seed, epochs in ((0, 2), (1, 2), (0, 3)):
        put_run(tmp_path, changed(epochs=epochs), seed, result_of(VIT), folder=f"{epochs}")
    put_run(tmp_path, AIT, 0, answers_of(AIT))
    runs = collect_runs(tmp_path, TABLE_RECIPES).runs
    plain = [VIT, changed(epochs=2, name=VIT.name), changed(epochs=3, name=VIT.name), AIT]
    assert set(runs) == {(recipe.name, fingerprint(recipe), "digest") for recipe in plain}
    seeds = [sorted(runs[recipe.name, fingerprint(recipe), "digest"].complete) for recipe in plain]
    assert seeds == [[0, 1], [0, 1], [0], [0]]


@pytest.mark.parametrize("name", [f"{VIT.name}+1a2b3c4d", VIT.name], ids=["hash", "recipe"])
@pytest.mark.parametrize("folder", [None, VIT.name, "mine"])
def test_a_run_with_overrides_never_counts_as_a_run_of_its_recipe(
    name: str, folder: str | None, tmp_path: Path
) -> None:
    put_run(tmp_path, changed(name=name), 0, result_of(VIT), folder=folder)
    collected = collect_runs(tmp_path, TABLE_RECIPES)
    assert collected.take(VIT) == RunsOfExperiment(VIT)
    assert list(collected.take(changed(name=name)).complete) == [0]


def test_runs_are_taken_only_once(tmp_path: Path) -> None:
    put_run(tmp_path, VIT, 0, result_of(VIT))
    collected = collect_runs(tmp_path, TABLE_RECIPES)
    assert list(collected.take(VIT).complete) == [0]
    assert collected.runs == {}
    assert collected.take(VIT) == RunsOfExperiment(VIT)


def test_runs_of_a_budget_are_taken_by_the_shortened_recipe(tmp_path: Path) -> None:
    smoke = shorten(VIT, "smoke")
    put_run(tmp_path, smoke, 0, result_of(smoke, 11.0))
    collected = collect_runs(tmp_path, TABLE_RECIPES)
    assert [result.test_accuracy for result in collected.take(smoke).results] == [11.0]
    assert not collected.take(VIT).complete
    assert not collected.take(shorten(VIT, "short")).complete


def test_folder_and_circumstances_of_a_run_do_not_matter(tmp_path: Path) -> None:
    train = replace(VIT.train, device="cpu", log_every=1)
    elsewhere = replace(VIT, train=train, data=replace(VIT.data, source="x", num_workers=0))
    put_run(tmp_path, elsewhere, 0, result_of(VIT), folder="copied from elsewhere")
    assert list(collect_runs(tmp_path, TABLE_RECIPES).take(VIT).complete) == [0]


def test_a_copy_of_a_run_is_not_counted_again(tmp_path: Path) -> None:
    put_run(tmp_path, VIT, 0, result_of(VIT))
    put_run(tmp_path, VIT, 0, result_of(VIT), folder="copy")
    assert collect_runs(tmp_path, TABLE_RECIPES).take(VIT).seeds == "1"


# --- data ---


def test_runs_on_different_data_are_never_in_one_group(tmp_path: Path) -> None:
    for seed, data in enumerate(("aaaa", "bbbb", "bbbb")):
        put_run(tmp_path, VIT, seed, result_of(VIT, data=data))
    put_run(tmp_path, VIT, 3)
    collected = collect_runs(tmp_path, TABLE_RECIPES)
    most = collected.take(VIT)
    assert (most.data, sorted(most.complete)) == ("bbbb", [1, 2])
    assert most.unfinished == ["seed 3 unfinished after 0 of 100 epochs"]
    (fewest,) = collected.take_others(TABLE_RECIPES)
    assert (fewest.data, sorted(fewest.complete)) == ("aaaa", [0])
    assert collected.runs == {}


REAL = {"classes": KNOWN_DATA_SETS["cifar10"].classes, "test_images": 10_000}
OTHERS = {  # changes of a result on the real CIFAR-10, and how the data then differ
    "other names": ({"classes": list("abcdefghij")}, "a class a instead of airplane"),
    "fewer classes": ({"classes": ["cat", "dog"]}, "2 classes instead of 10"),
    "fewer test images": ({"test_images": 9_000}, "9,000 test images instead of 10,000"),
    "fewer training images": (
        {"train_images": 25_000},
        "25,000 training images instead of 50,000",
    ),
    "more images": ({"train_images": 50_001}, "50,001 training images instead of 50,000"),
}


@pytest.mark.parametrize("change", OTHERS)
def test_images_that_are_not_those_of_the_recipe_are_marked(change: str, tmp_path: Path) -> None:
    values, difference = OTHERS[change]
    put_run(tmp_path, VIT, 0, result_of(VIT, **REAL | values))
    collected = collect_runs(tmp_path, TABLE_RECIPES)
    assert collected.take(VIT) == RunsOfExperiment(VIT)
    (runs,) = collected.take_others(TABLE_RECIPES)
    assert runs.other.startswith(f"own images, not CIFAR-10 ({difference}): ")


def test_the_real_data_are_recognized_even_if_images_were_skipped_or_limited(
    tmp_path: Path,
) -> None:
    skipped = {"skipped_images": 3, "test_images": 9_999, "train_images": 49_998}
    limited = replace(VIT, data=replace(VIT.data, limit=100))
    put_run(tmp_path, VIT, 0, result_of(VIT, **REAL, train_images=50_000))
    put_run(tmp_path, VIT, 1, result_of(VIT, **REAL | skipped))
    put_run(tmp_path, limited, 0, result_of(VIT, **REAL | {"test_images": 100}), folder="limited")
    collected = collect_runs(tmp_path, TABLE_RECIPES)
    assert sorted(collected.take(VIT).complete) == [0, 1]
    assert collected.take(limited).other == ""


# --- progress ---


def test_an_unfinished_run_is_listed_with_its_progress(tmp_path: Path) -> None:
    put_run(tmp_path, VIT, 0, result_of(VIT))
    (put_run(tmp_path, VIT, 1) / "metrics.jsonl").write_text("{}\n" * 3)
    put_run(tmp_path, AIT, 2)
    collected = collect_runs(tmp_path, TABLE_RECIPES)
    assert collected.left_out == []
    assert collected.take(VIT).seeds == "1, seed 1 unfinished after 3 of 100 epochs"
    assert collected.take(AIT).seeds == "seed 2 unfinished after 0 of 100 epochs"


def test_a_single_epoch_is_not_called_epochs(tmp_path: Path) -> None:
    smoke = shorten(VIT, "smoke")
    put_run(tmp_path, smoke, 0)
    seeds = collect_runs(tmp_path, TABLE_RECIPES).take(smoke).seeds
    assert seeds == "seed 0 unfinished after 0 of 1 epoch"


def test_an_unfinished_run_on_a_folder_of_images_is_not_attributed_to_the_data_set(
    tmp_path: Path,
) -> None:
    mine = replace(VIT, data=replace(VIT.data, source="mine"))
    put_run(tmp_path, mine, 1)
    seeds = collect_runs(tmp_path, TABLE_RECIPES).take(VIT).seeds
    assert seeds == "seed 1 unfinished after 0 of 100 epochs (data not known yet)"


def test_runs_with_different_precisions_are_marked(tmp_path: Path) -> None:
    assert RunsOfExperiment(VIT).seeds == "not run"
    put_run(tmp_path, VIT, 0, result_of(VIT))
    put_run(tmp_path, VIT, 1, result_of(VIT, precision="bfloat16"))
    put_run(tmp_path, VIT, 2, result_of(VIT))
    assert collect_runs(tmp_path, TABLE_RECIPES).take(VIT).seeds == "3 in bfloat16 and float32"


# --- runs that are left out ---


@pytest.mark.parametrize("name", ["nothing here", "."])
def test_a_folder_without_runs_gets_a_note(name: str, tmp_path: Path) -> None:
    collected = collect_runs(tmp_path / name, TABLE_RECIPES)
    assert collected == ({}, [f"There are no runs of these recipes in {tmp_path / name}."])


def test_runs_of_other_recipes_are_ignored(tmp_path: Path) -> None:
    put_run(tmp_path, VIT, 0, result_of(VIT))
    put_run(tmp_path, RECIPES["cifar10-vit-base"], 0, {"test_accuracy": "broken"})
    put_run(tmp_path, RECIPES["triangle-ait-tiny"], 0)
    (tmp_path / "notes" / "0").mkdir(parents=True)
    (tmp_path / "notes.txt").touch()
    collected = collect_runs(tmp_path, TABLE_RECIPES)
    assert [name for name, *_ in collected.runs] == [VIT.name]
    assert collected.left_out == []


def test_a_run_with_an_unknown_name_gets_a_note_if_its_data_set_is_in_the_table(
    tmp_path: Path,
) -> None:
    thesis = put_run(tmp_path, replace(VIT, name="thesis"), 0, result_of(VIT))
    put_run(tmp_path, replace(RECIPES["triangle-ait-tiny"], name="shapes"), 0, result_of(VIT))
    notes = collect_runs(tmp_path, TABLE_RECIPES).left_out
    assert notes == [f"Left out: {thesis}: thesis is not a recipe."]


def without(key: str) -> bytes:
    return json.dumps({k: v for k, v in answers_of(AIT).items() if k != key}).encode()


def damaged_by(**values: object) -> bytes:
    return json.dumps({**answers_of(AIT), **values}).encode()


SCORE_IS_TEXT = {"name": "binary", "accuracy": "70", "guess": 42.0}
DAMAGES: dict[str, tuple[str, bytes | None, str]] = {  # file, content, words in the note
    "broken yaml": ("experiment.yaml", b"a: [1", "is not valid YAML"),
    "binary yaml": ("experiment.yaml", b"\xff\xfe\x00", "is not valid YAML"),
    "no experiment": ("experiment.yaml", b"name: x", "experiment.yaml: data: "),
    "empty": ("result.json", b"", "Invalid JSON"),
    "cut off": ("result.json", b"{", "Invalid JSON"),
    "binary": ("result.json", b"\xff\xfe\x00", "Invalid JSON"),
    "list": ("result.json", b"[]", "should be an object"),
    "null": ("result.json", b"null", "should be an object"),
    "no keys": ("result.json", b"{}", "(name: "),
    "no kinds": ("result.json", without("test_kinds"), "(test_kinds is missing"),
    "no epochs": ("result.json", without("epochs"), "(epochs: "),
    "no types": ("result.json", without("question_types"), "(question_types: "),
    "no accuracy": ("result.json", without("test_accuracy"), "(test_accuracy: "),
    "epochs are text": ("result.json", damaged_by(epochs="100"), "(epochs: "),
    "date is a number": (
        "result.json",
        damaged_by(timing={"seconds": 1.0, "finished": 3}),
        "(timing.finished: ",
    ),
    "kinds are null": ("result.json", damaged_by(test_kinds=None), "(test_kinds is missing"),
    "kinds without scores": (
        "result.json",
        damaged_by(test_kinds=[{"name": "binary"}]),
        "(test_kinds.0.accuracy: ",
    ),
    "score is text": (
        "result.json",
        damaged_by(test_kinds=[SCORE_IS_TEXT]),
        "(test_kinds.0.accuracy: ",
    ),
    "result is a folder": ("result.json", None, "Is a directory"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_gets_a_note_and_the_others_are_read(damage: str, tmp_path: Path) -> None:
    file, content, words = DAMAGES[damage]
    put_run(tmp_path, AIT, 0, answers_of(AIT, 70.0))
    damaged = put_run(tmp_path, AIT, 1, answers_of(AIT, 1.0)) / file
    put_run(tmp_path, AIT, 2, answers_of(AIT, 72.0))
    damaged.unlink()
    if content is None:
        damaged.mkdir()
    else:
        damaged.write_bytes(content)
    collected = collect_runs(tmp_path, TABLE_RECIPES)
    assert sorted(collected.take(AIT).complete) == [0, 2]
    (note,) = collected.left_out
    assert note.startswith(f"Left out: {damaged}")
    assert words in note


def test_if_all_runs_are_damaged_there_are_only_notes(tmp_path: Path) -> None:
    complete, unfinished = put_run(tmp_path, changed(), 0, {}), put_run(tmp_path, changed(), 1)
    (unfinished / "metrics.jsonl").mkdir()
    collected = collect_runs(tmp_path, TABLE_RECIPES)
    assert collected.runs == {}
    for folder, note in zip((complete, unfinished), collected.left_out, strict=True):
        assert f"{folder}/" in note


ENVIRONMENTS: dict[str, tuple[bytes | None, str]] = {  # content, words on stderr
    "missing": (None, ""),
    "cut off": (b'{"device": ', "Invalid JSON"),
    "device is a number": (b'{"device": 3}', "(device: "),
    "binary": (b"\xff\xfe\x00", "Invalid JSON"),
}


@pytest.mark.parametrize("damage", [*ENVIRONMENTS, "folder"])
def test_a_run_without_a_readable_environment_counts_with_an_unknown_device(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, words = ENVIRONMENTS.get(damage, (None, "Is a directory"))
    put_run(tmp_path, VIT, 0, result_of(VIT), device="NVIDIA H100")
    path = put_run(tmp_path, VIT, 1, result_of(VIT, 70.0)) / "environment.json"
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    collected = collect_runs(tmp_path, TABLE_RECIPES)
    assert collected.left_out == []
    runs = collected.take(VIT).complete
    assert [run.device for run in runs.values()] == ["NVIDIA H100", "unknown"]
    assert runs[1].result.test_accuracy == 70.0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (damage != "missing")
    assert all(line.startswith(f"{path} is damaged") and words in line for line in lines)


# --- text ---


def test_overrides_are_described_by_their_new_and_old_values() -> None:
    model = replace(VIT.model, head="cls")
    both = replace(changed(name=VIT.name), model=model)
    changes = "model.head cls instead of flatten, train.epochs 2 instead of 100"
    assert describe_overrides(both, VIT) == f"cifar10-vit-small with {changes}"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([], "-"),
        ([70.004], "70.00"),
        ([70.0, 73.0, 71.0], "71.33 ± 1.53"),  # of the sample, over n - 1
        ([5.0, 5.0], "5.00 ± 0.00"),
    ],
)
def test_a_spread_is_a_mean_with_a_standard_deviation_if_there_are_several_values(
    values: list[float], text: str
) -> None:
    assert spread(values) == text


def test_a_single_value_is_followed_by_its_interval() -> None:
    interval = Interval(61.04, 78.9)
    assert spread([70.0], interval) == "70.00 (61.0 to 78.9)"
    assert spread([70.0, 72.0], interval) == spread([70.0, 72.0])
    assert spread([], interval) == "-"
