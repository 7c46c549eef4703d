"""Reading runs back: which belong together, how far they got, what is left out and why."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from associative_transformer.experiment import Experiment, fingerprint
from associative_transformer.recipes import RECIPES
from associative_transformer.recipes.budgets import shorten
from associative_transformer.tables.collect import (
    Environment,
    QuestionResult,
    Result,
    Run,
    Runs,
    Score,
    Timing,
    describe_overrides,
    find_runs,
    spread,
)
from making.plant import answers_of, put, result_of

VIT = RECIPES["cifar10-vit-small"]
AIT = RECIPES["sort-of-clevr-ait-small"]
RECIPES_READ = {recipe.name: recipe for recipe in (VIT, AIT)}


def changed(recipe: Experiment = VIT, epochs: int = 2, name: str = "") -> Experiment:
    train = replace(recipe.train, epochs=epochs)
    return replace(recipe, name=name or f"{recipe.name}+abc", train=train)


# --- what is read ---


def test_a_complete_run_is_read_with_its_environment(tmp_path: Path) -> None:
    put(tmp_path, VIT, 3, result_of(VIT, 81.25), device="NVIDIA H100")
    found = find_runs(tmp_path, RECIPES_READ)
    assert found.left_out == []
    assert found.take(VIT).complete == {
        3: Run(
            Result(
                epochs=100,
                precision="float32",
                test_accuracy=81.25,
                timing=Timing(finished="2026-11-24"),
            ),
            Environment("NVIDIA H100"),
        )
    }


def test_a_run_with_questions_is_read_with_the_score_of_each_kind(tmp_path: Path) -> None:
    put(tmp_path, AIT, 0, answers_of(AIT, 70.0, 90.0))
    (result,) = find_runs(tmp_path, RECIPES_READ).take(AIT).results
    assert isinstance(result, QuestionResult)
    assert result.question_types == ["non-relational", "binary"]
    assert result.score("binary") == Score("binary", 70.0, 42.7)
    assert result.score("binary/shape") == Score("binary/shape", 64.0, 42.7)
    assert result.score("ternary") is None


def test_what_a_run_of_an_older_version_does_not_say_is_left_open(tmp_path: Path) -> None:
    result = result_of(VIT)
    result["timing"] = {"seconds": 9.0}
    path = put(tmp_path, VIT, 0, result)
    (path / "environment.json").write_text("{}")
    (run,) = find_runs(tmp_path, RECIPES_READ).take(VIT).complete.values()
    assert (run.result.timing.finished, run.environment.device) == ("-", "-")
    del result["timing"]
    (path / "result.json").write_text(json.dumps(result))
    (run,) = find_runs(tmp_path, RECIPES_READ).take(VIT).complete.values()
    assert run.result.timing.finished == "-"


def test_runs_are_kept_by_recipe_and_by_what_they_are(tmp_path: Path) -> None:
    for seed in (0, 1):
        put(tmp_path, VIT, seed, result_of(VIT))
    for seed, epochs in ((0, 2), (1, 2), (0, 3)):
        put(tmp_path, changed(epochs=epochs), seed, result_of(VIT), folder=f"{epochs}")
    put(tmp_path, AIT, 0, answers_of(AIT))
    runs = find_runs(tmp_path, RECIPES_READ).runs
    plain = [VIT, changed(epochs=2, name=VIT.name), changed(epochs=3, name=VIT.name), AIT]
    assert set(runs) == {(recipe.name, fingerprint(recipe)) for recipe in plain}
    seeds = [sorted(runs[recipe.name, fingerprint(recipe)].complete) for recipe in plain]
    assert seeds == [[0, 1], [0, 1], [0], [0]]


@pytest.mark.parametrize("name", [f"{VIT.name}+1a2b3c4d", VIT.name], ids=["hash", "recipe"])
@pytest.mark.parametrize("folder", [None, VIT.name, "mine"])
def test_a_run_with_overrides_is_never_one_of_its_recipe(
    name: str, folder: str | None, tmp_path: Path
) -> None:
    put(tmp_path, changed(name=name), 0, result_of(VIT), folder=folder)
    found = find_runs(tmp_path, RECIPES_READ)
    assert found.take(VIT) == Runs(VIT)
    assert list(found.take(changed(name=name)).complete) == [0]


def test_what_is_taken_is_gone(tmp_path: Path) -> None:
    put(tmp_path, VIT, 0, result_of(VIT))
    found = find_runs(tmp_path, RECIPES_READ)
    assert list(found.take(VIT).complete) == [0]
    assert found.runs == {}
    assert found.take(VIT) == Runs(VIT)


def test_the_runs_of_a_budget_are_found_under_the_name_that_it_gives(tmp_path: Path) -> None:
    smoke = shorten(VIT, "smoke")
    put(tmp_path, smoke, 0, result_of(smoke, 11.0))
    found = find_runs(tmp_path, RECIPES_READ)
    assert [result.test_accuracy for result in found.take(smoke).results] == [11.0]
    assert not found.take(VIT).complete
    assert not found.take(shorten(VIT, "short")).complete


def test_where_a_run_lies_and_how_fast_its_machine_is_changes_nothing(tmp_path: Path) -> None:
    train = replace(VIT.train, device="cpu", log_every=1)
    elsewhere = replace(VIT, train=train, data=replace(VIT.data, source="x", num_workers=0))
    put(tmp_path, elsewhere, 0, result_of(VIT), folder="copied from elsewhere")
    assert list(find_runs(tmp_path, RECIPES_READ).take(VIT).complete) == [0]


def test_one_run_copied_to_another_folder_is_not_two_seeds(tmp_path: Path) -> None:
    put(tmp_path, VIT, 0, result_of(VIT))
    put(tmp_path, VIT, 0, result_of(VIT), folder="copy")
    assert find_runs(tmp_path, RECIPES_READ).take(VIT).seeds == "1"


# --- how far they got ---


def test_a_run_that_is_not_complete_says_how_far_it_got(tmp_path: Path) -> None:
    put(tmp_path, VIT, 0, result_of(VIT))
    (put(tmp_path, VIT, 1) / "metrics.jsonl").write_text("{}\n" * 3)
    put(tmp_path, AIT, 2)
    found = find_runs(tmp_path, RECIPES_READ)
    assert found.left_out == []
    assert found.take(VIT).seeds == "1, seed 1 unfinished after 3 of 100 epochs"
    assert found.take(AIT).seeds == "seed 2 unfinished after 0 of 100 epochs"


def test_seeds_of_several_precisions_are_said_to_be_mixed(tmp_path: Path) -> None:
    assert Runs(VIT).seeds == "not run"
    put(tmp_path, VIT, 0, result_of(VIT))
    put(tmp_path, VIT, 1, result_of(VIT, precision="bfloat16"))
    put(tmp_path, VIT, 2, result_of(VIT))
    assert find_runs(tmp_path, RECIPES_READ).take(VIT).seeds == "3 in bfloat16 and float32"


# --- what is left out ---


@pytest.mark.parametrize("name", ["nothing here", "."])
def test_a_folder_without_runs_is_said_to_have_none(name: str, tmp_path: Path) -> None:
    found = find_runs(tmp_path / name, RECIPES_READ)
    assert found == ({}, [f"There are no runs of these recipes in {tmp_path / name}."])


def test_runs_of_other_recipes_are_ignored(tmp_path: Path) -> None:
    put(tmp_path, VIT, 0, result_of(VIT))
    put(tmp_path, RECIPES["cifar10-vit-base"], 0, {"test_accuracy": "broken"})
    put(tmp_path, RECIPES["triangle-ait-tiny"], 0)
    (tmp_path / "notes" / "0").mkdir(parents=True)
    (tmp_path / "notes.txt").touch()
    found = find_runs(tmp_path, RECIPES_READ)
    assert [name for name, _ in found.runs] == [VIT.name]
    assert found.left_out == []


def test_a_run_of_no_recipe_is_named_where_it_could_be_meant_for_the_table(tmp_path: Path) -> None:
    thesis = put(tmp_path, replace(VIT, name="thesis"), 0, result_of(VIT))
    put(tmp_path, replace(RECIPES["triangle-ait-tiny"], name="shapes"), 0, result_of(VIT))
    told = find_runs(tmp_path, RECIPES_READ).left_out
    assert told == [f"Left out: {thesis}, since thesis is no recipe."]


def without(key: str) -> bytes:
    return json.dumps({k: v for k, v in answers_of(AIT).items() if k != key}).encode()


def damaged_by(**values: object) -> bytes:
    return json.dumps({**answers_of(AIT), **values}).encode()


SCORE_IS_TEXT = {"name": "binary", "accuracy": "70", "guess": 42.0}
DAMAGES: dict[str, tuple[str, bytes | None, str]] = {  # file, content, where it hurts
    "broken yaml": ("experiment.yaml", b"a: [1", "is no YAML"),
    "binary yaml": ("experiment.yaml", b"\xff\xfe\x00", "is no YAML"),
    "no experiment": ("experiment.yaml", b"name: x", "experiment.yaml: data"),
    "empty": ("result.json", b"", "result.json: Invalid JSON"),
    "cut off": ("result.json", b"{", "result.json: Invalid JSON"),
    "binary": ("result.json", b"\xff\xfe\x00", "result.json: Invalid JSON"),
    "list": ("result.json", b"[]", "result.json: "),
    "null": ("result.json", b"null", "result.json: "),
    "no keys": ("result.json", b"{}", "result.json.epochs"),
    "no kinds": ("result.json", without("test_kinds"), "result.json.test_kinds"),
    "no epochs": ("result.json", without("epochs"), "result.json.epochs"),
    "no types": ("result.json", without("question_types"), "result.json.question_types"),
    "no accuracy": ("result.json", without("test_accuracy"), "result.json.test_accuracy"),
    "epochs are text": ("result.json", damaged_by(epochs="100"), "result.json.epochs"),
    "a time": ("result.json", damaged_by(timing={"finished": 3}), "result.json.timing.finished"),
    "kinds are no list": ("result.json", damaged_by(test_kinds=None), "result.json.test_kinds"),
    "kinds without scores": (
        "result.json",
        damaged_by(test_kinds=[{"name": "binary"}]),
        "result.json.test_kinds.0.accuracy",
    ),
    "score is text": (
        "result.json",
        damaged_by(test_kinds=[SCORE_IS_TEXT]),
        "result.json.test_kinds.0.accuracy",
    ),
    "folder": ("result.json", None, "Is a directory"),
    "no environment": ("environment.json", None, "Is a directory"),
    "environment cut off": ("environment.json", b'{"device": ', "environment.json: Invalid JSON"),
    "device": ("environment.json", b'{"device": 3}', "environment.json.device"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_named_with_what_is_wrong_and_the_others_are_read(
    damage: str, tmp_path: Path
) -> None:
    file, content, where = DAMAGES[damage]
    put(tmp_path, AIT, 0, answers_of(AIT, 70.0))
    damaged = put(tmp_path, AIT, 1, answers_of(AIT, 1.0)) / file
    put(tmp_path, AIT, 2, answers_of(AIT, 72.0))
    damaged.unlink()
    if content is None:
        damaged.mkdir()
    else:
        damaged.write_bytes(content)
    found = find_runs(tmp_path, RECIPES_READ)
    assert sorted(found.take(AIT).complete) == [0, 2]
    (told,) = found.left_out
    assert told.startswith(f"Left out: {damaged.parent} can't be read (")
    assert where in told


def test_a_damaged_run_alone_leaves_no_trace_but_its_name(tmp_path: Path) -> None:
    complete, begun = put(tmp_path, changed(), 0, {}), put(tmp_path, changed(), 1)
    (begun / "metrics.jsonl").mkdir()
    found = find_runs(tmp_path, RECIPES_READ)
    assert found.runs == {}
    folders = complete, begun
    named = zip(folders, found.left_out, strict=True)
    assert all(f"{path} " in told for path, told in named)


def test_a_complete_run_without_its_environment_is_named(tmp_path: Path) -> None:
    path = put(tmp_path, VIT, 0, result_of(VIT))
    (path / "environment.json").unlink()
    found = find_runs(tmp_path, RECIPES_READ)
    assert not found.take(VIT).complete
    assert "environment.json" in found.left_out[0]


# --- words ---


def test_overrides_are_described_by_what_was_changed() -> None:
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
def test_a_spread_is_mean_and_standard_deviation_where_there_are_several(
    values: list[float], text: str
) -> None:
    assert spread(values) == text
