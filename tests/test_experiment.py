"""Experiments: validation, YAML and fingerprint."""

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from associative_transformer import experiment as experiment_module
from associative_transformer.data import ImagesConfig, TriangleConfig
from associative_transformer.experiment import (
    Experiment,
    TrainConfig,
    differences,
    fingerprint,
    identifying_fields,
    list_fields,
    load_experiment,
    save_experiment,
)
from associative_transformer.interface import ADDED_LATER, UserError
from associative_transformer.models.brims import BRIMsConfig
from associative_transformer.models.luna import LUNA_LRA, LunaConfig
from associative_transformer.models.perceiver import PerceiverConfig
from associative_transformer.models.vit import ViTConfig
from associative_transformer.optimization import Schedule
from associative_transformer.recipes import RECIPES
from associative_transformer.runs.defaults import old_defaults, with_fields
from making.overrides import (
    CIRCUMSTANCE_CHANGES,
    CIRCUMSTANCES,
    CONFIGURATION_CHANGES,
    CONVOLUTION_CHANGES,
    CONVOLUTIONS,
    DENSE,
    DENSE_CHANGES,
    IMAGES,
    IMAGES_CIRCUMSTANCES,
    IMAGES_IDENTITY,
    QUESTIONS,
    QUESTIONS_CHANGES,
    QUESTIONS_IDENTITY,
    SIZES,
    TRAIN_CHANGES,
    TRIANGLE,
    TRIANGLE_IDENTITY,
    changed,
    label,
    leaves,
    nested,
)

VERSION_0_1 = json.loads((Path(__file__).parent / "fixtures/experiments-0.1.json").read_text())
"""Fingerprints of all recipes, and saved forms of one for each kind of data and model."""


def write_yaml(path: Path, experiment: Experiment, values: dict[str, Any]) -> Path:
    """Save an experiment with some entries replaced or added, valid or not."""

    def put(tree: dict[str, Any], new: dict[str, Any]) -> None:
        for key, value in new.items():
            if isinstance(value, dict):
                put(tree[key], value)
            else:
                tree[key] = value

    saved = yaml.safe_load(yaml.safe_dump(plain(asdict(experiment))))
    put(saved, nested(values))
    path.write_text(yaml.safe_dump(saved))
    return path


def plain(tree: Any) -> Any:  # noqa: ANN401
    """Return a tree with lists in place of tuples."""
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    return [plain(value) for value in tree] if isinstance(tree, tuple) else tree


# --- YAML ---


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_the_same_after_saving_and_loading(name: str, tmp_path: Path) -> None:
    save_experiment(RECIPES[name], tmp_path / "experiment.yaml")
    loaded = load_experiment(tmp_path / "experiment.yaml")
    assert loaded == RECIPES[name]
    assert fingerprint(loaded) == fingerprint(RECIPES[name])


@pytest.mark.parametrize(
    ("experiment", "values"), CONFIGURATION_CHANGES + CIRCUMSTANCE_CHANGES, ids=label
)
def test_every_field_is_saved_and_loaded(
    experiment: Experiment, values: dict[str, Any], tmp_path: Path
) -> None:
    other = changed(experiment, values)
    assert other != experiment
    save_experiment(other, tmp_path / "experiment.yaml")
    assert load_experiment(tmp_path / "experiment.yaml") == other


def test_a_number_that_yaml_reads_as_text_is_converted(tmp_path: Path) -> None:
    path = write_yaml(tmp_path / "experiment.yaml", TRIANGLE, {})
    path.write_text(path.read_text().replace("lr: 0.0001", "lr: 1e-4"))  # YAML reads a string
    assert "lr: 1e-4" in path.read_text()
    assert load_experiment(path) == TRIANGLE


@pytest.mark.parametrize(
    ("experiment", "field"),
    [
        (TRIANGLE, "color"),
        (TRIANGLE, "train.learning_rate"),
        (TRIANGLE, "train.schedule.kind"),
        (TRIANGLE, "model.dept"),
        (TRIANGLE, "model.workspace.bottle_neck"),
        (TRIANGLE, "data.source"),
        (IMAGES, "model.workspace"),
        (IMAGES, "data.num_train"),
        (QUESTIONS, "data.mean"),
        (QUESTIONS, "model.patch_size"),
        (CONVOLUTIONS, "model.num_objects"),
    ],
)
def test_an_unknown_field_is_refused_by_name(
    experiment: Experiment, field: str, tmp_path: Path
) -> None:
    path = write_yaml(tmp_path / "experiment.yaml", experiment, {field: 1})
    with pytest.raises(UserError) as error:
        load_experiment(path)
    assert str(path) in str(error.value)
    assert field.split(".")[-1] in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 3),
        ("name", "../elsewhere"),
        ("train.epochs", "two"),
        ("train.epochs", 1.5),
        ("train.epochs", 0),
        ("train.lr", [1]),
        ("train.betas", [0.9]),
        ("train.compile", "maybe"),
        ("train.precision", "float16"),
        ("train.schedule.warmup_epochs", None),
        ("model.kind", "ait2"),
        ("model.depth", -1),
        ("model.patch_size", 30),
        ("model.read", "hopfeld"),
        ("model.workspace.bottleneck", 0),
        ("model.workspace.num_priors", "many"),
        ("data.kind", "square"),
        ("data.num_train", "256 images"),
    ],
)
def test_a_wrong_value_is_refused_with_its_field(
    field: str, value: object, tmp_path: Path
) -> None:
    path = write_yaml(tmp_path / "experiment.yaml", TRIANGLE, {field: value})
    with pytest.raises(UserError) as error:
        load_experiment(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert field.split(".")[-1] in message or str(value) in message


@pytest.mark.parametrize("experiment", [TRIANGLE, IMAGES, QUESTIONS], ids=label)
def test_a_file_that_was_cut_off_is_never_read_as_another_experiment(
    experiment: Experiment, tmp_path: Path
) -> None:
    # no field that version 0.1 had keeps its default, so that none can be restored by chance
    other = changed(experiment, {"train.seed": 3, "train.log_every": 7, "train.lr": 0.5})
    path = tmp_path / "experiment.yaml"
    save_experiment(other, path)
    lines = path.read_text().splitlines(keepends=True)
    num_read = 0
    for count in range(len(lines)):
        path.write_text("".join(lines[:count]))
        try:
            assert load_experiment(path) == other
            num_read += 1
        except UserError as error:
            assert str(path) in str(error)
    assert num_read <= 1  # without the last line, `init: null`, which version 0.1 did not have


@pytest.mark.parametrize("part", ["name", "data", "model", "train"])
def test_a_missing_part_is_refused_by_name(part: str, tmp_path: Path) -> None:
    path = write_yaml(tmp_path / "experiment.yaml", TRIANGLE, {})
    saved = yaml.safe_load(path.read_text())
    del saved[part]
    path.write_text(yaml.safe_dump(saved))
    with pytest.raises(UserError, match=part):
        load_experiment(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"- 1\n- 2\n", b"just a sentence", b"a: [1\nb: }", b"\x89PNG\r\n\xff\x00\xfe"],
    ids=["empty", "list", "text", "broken", "binary"],
)
def test_a_file_that_is_not_an_experiment_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"experiment\.yaml"):
        load_experiment(path)


def test_a_yaml_object_tag_runs_no_code(tmp_path: Path) -> None:
    path = write_yaml(tmp_path / "experiment.yaml", TRIANGLE, {})
    trap = tmp_path / "trap"
    path.write_text(path.read_text() + f"extra: !!python/object/apply:os.mkdir ['{trap}']\n")
    with pytest.raises(UserError, match="is not valid YAML"):
        load_experiment(path)
    assert not trap.exists()


def test_a_folder_without_the_file_is_not_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path} is not a run folder"):
        load_experiment(tmp_path / "experiment.yaml")


def test_a_file_is_not_a_run_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="not a run folder"):
        load_experiment(tmp_path / "file" / "experiment.yaml")


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").mkdir()
    with pytest.raises(UserError, match=r"experiment\.yaml"):
        load_experiment(tmp_path / "experiment.yaml")


# --- fingerprint and differences ---


def test_the_tables_of_changes_contain_every_field() -> None:
    for experiment, rows in (
        (TRIANGLE, TRIANGLE_IDENTITY + CIRCUMSTANCES),
        (IMAGES, IMAGES_IDENTITY + IMAGES_CIRCUMSTANCES),
        (QUESTIONS, QUESTIONS_IDENTITY + CIRCUMSTANCES),
        (CONVOLUTIONS, QUESTIONS_CHANGES + CONVOLUTION_CHANGES + TRAIN_CHANGES + CIRCUMSTANCES),
        (DENSE, QUESTIONS_CHANGES + DENSE_CHANGES + TRAIN_CHANGES + CIRCUMSTANCES),
    ):
        named = {field for row in rows for field in row} | {"name", "data.kind", "model.kind"}
        # determined by the data
        fixed = {"model.image_size", "model.num_channels", "model.question_dim"}
        assert leaves(experiment) - named <= fixed
        assert named <= leaves(experiment) | {"data.channels"}


@pytest.mark.parametrize(("experiment", "values"), CONFIGURATION_CHANGES, ids=label)
def test_every_field_except_circumstances_changes_the_fingerprint_and_is_a_difference(
    experiment: Experiment, values: dict[str, Any]
) -> None:
    other = changed(experiment, values)
    assert fingerprint(other) != fingerprint(experiment)
    before, after = (list_fields(each) | identifying_fields(each) for each in (experiment, other))
    pairs = differences(experiment, other)
    assert pairs == {name: (before[name], after[name]) for name in values}
    assert list(pairs) == sorted(values)


@pytest.mark.parametrize(("experiment", "values"), CIRCUMSTANCE_CHANGES, ids=label)
def test_circumstances_change_neither_the_fingerprint_nor_the_configuration(
    experiment: Experiment, values: dict[str, Any]
) -> None:
    other = changed(experiment, values)
    assert other != experiment
    assert fingerprint(other) == fingerprint(experiment)
    assert differences(experiment, other) == {}


def test_differences_include_fields_that_only_one_of_two_models_has() -> None:
    vit = ViTConfig(**SIZES, image_size=64, head_dim=8, num_classes=2)
    other = replace(TRIANGLE, model=vit)
    pairs, reverse = differences(TRIANGLE, other), differences(other, TRIANGLE)
    assert pairs["model.kind"] == ("ait", "vit")
    assert pairs["model.workspace.beta"] == (1.0, None)
    assert reverse["model.workspace.beta"] == (None, 1.0)


def test_fingerprints_have_eight_characters_and_all_recipes_have_different_ones() -> None:
    fingerprints = {fingerprint(recipe) for recipe in RECIPES.values()}
    assert len(fingerprints) == len(RECIPES)
    assert all(len(p) == 8 and set(p) <= set("0123456789abcdef") for p in fingerprints)


# --- compatibility between versions ---


def with_old_defaults(experiment: Experiment) -> Experiment:
    return with_fields(experiment, old_defaults(experiment))


@pytest.mark.parametrize("name", VERSION_0_1["fingerprints"])
def test_a_recipe_has_the_fingerprint_of_version_0_1_except_for_changed_defaults(
    name: str,
) -> None:
    recipe = RECIPES[name]
    assert fingerprint(with_old_defaults(recipe)) == VERSION_0_1["fingerprints"][name]
    is_changed = fingerprint(recipe) != VERSION_0_1["fingerprints"][name]
    assert is_changed == (recipe.model.kind == "ait")  # the dropout of the write


@pytest.mark.parametrize("name", VERSION_0_1["saved"])
def test_an_experiment_saved_by_version_0_1_is_loaded(name: str, tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(VERSION_0_1["saved"][name]))
    loaded = load_experiment(tmp_path / "experiment.yaml")
    recipe = with_old_defaults(RECIPES[name])
    assert loaded == replace(recipe, train=replace(recipe.train, compile="off"))
    assert fingerprint(loaded) == VERSION_0_1["fingerprints"][name]


LONG_WARMUP = changed(TRIANGLE, {"train.schedule.warmup_epochs": 50})
FINGERPRINTS = {e: fingerprint(e) for e in (TRIANGLE, LONG_WARMUP)}  # of this version
FIELDS = identifying_fields(TRIANGLE)


@dataclass(frozen=True)
class Averaging:
    """A group of options that a later version adds."""

    decay: float = 0.99
    every: int = 1
    warmup: int = field(default=0, metadata=ADDED_LATER)


@dataclass(frozen=True)
class LaterSchedule(Schedule):
    """A schedule with a new field, and with another default for an old one."""

    warmup_epochs: int = 50
    num_cycles: int = field(default=1, metadata=ADDED_LATER)


@dataclass(frozen=True)
class LaterTrainConfig(TrainConfig):
    """The training of a later version."""

    schedule: LaterSchedule = field(default_factory=LaterSchedule)
    averaging: Averaging = field(default_factory=Averaging, metadata=ADDED_LATER)
    label_smoothing: float = field(default=0.0, metadata=ADDED_LATER)


@dataclass(frozen=True)
class LaterExperiment(Experiment):
    """The experiment of a later version, which can read those of this version."""

    train: LaterTrainConfig


@pytest.fixture
def later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LaterExperiment:
    """Return an experiment of this version, loaded by a later one."""
    save_experiment(TRIANGLE, tmp_path / "experiment.yaml")
    monkeypatch.setattr(experiment_module, "_ADAPTER", TypeAdapter(LaterExperiment))
    return load_experiment(tmp_path / "experiment.yaml")


def test_a_later_version_loads_old_experiments_with_the_defaults_of_new_fields(
    later: LaterExperiment,
) -> None:
    assert later.train.averaging == Averaging()
    assert later.train.schedule == LaterSchedule(TRIANGLE.train.schedule.warmup_epochs)
    assert later.train.label_smoothing == 0


def test_fields_added_later_do_not_change_a_fingerprint_at_their_defaults(
    later: LaterExperiment,
) -> None:
    assert fingerprint(later) == FINGERPRINTS[TRIANGLE]
    assert identifying_fields(later) == FIELDS


def test_a_default_that_changes_later_does_not_change_a_fingerprint(
    later: LaterExperiment,
) -> None:
    assert LaterSchedule().warmup_epochs == 50
    assert identifying_fields(later)["train.schedule.warmup_epochs"] == 5
    assert fingerprint(later) == FINGERPRINTS[TRIANGLE]
    at_new_default = replace(later, train=replace(later.train, schedule=LaterSchedule()))
    assert fingerprint(at_new_default) == FINGERPRINTS[LONG_WARMUP]


@pytest.mark.parametrize(
    ("values", "new_fields"),
    [
        ({"train.label_smoothing": 0.1}, {"train.label_smoothing"}),
        ({"train.schedule.num_cycles": 2}, {"train.schedule.num_cycles"}),
        (
            {"train.averaging.every": 5},  # one value adds all fields of a new group
            {"train.averaging.decay", "train.averaging.every"},
        ),
        (
            {"train.averaging.warmup": 9},
            {"train.averaging.decay", "train.averaging.every", "train.averaging.warmup"},
        ),
    ],
    ids=label,
)
def test_fields_added_later_change_the_fingerprint_at_other_values(
    values: dict[str, Any], new_fields: set[str], later: LaterExperiment
) -> None:
    other = changed(later, values)
    assert fingerprint(other) != fingerprint(later)
    assert identifying_fields(other).keys() - identifying_fields(later).keys() == new_fields
    ((name, value),) = values.items()
    default = {"every": 1, "num_cycles": 1}.get(name.split(".")[-1], 0)
    assert differences(other, later) == {name: (value, default)}


def test_a_later_version_saves_new_fields_at_their_defaults(
    later: LaterExperiment, tmp_path: Path
) -> None:
    save_experiment(later, tmp_path / "later.yaml")
    saved = yaml.safe_load((tmp_path / "later.yaml").read_text())["train"]
    assert saved["label_smoothing"] == 0
    assert saved["averaging"] == {"decay": 0.99, "every": 1, "warmup": 0}
    assert saved["schedule"]["num_cycles"] == 1
    assert load_experiment(tmp_path / "later.yaml") == later


# --- ranges ---


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("epochs", -3),
        ("batch_size", 0),
        ("lr", 0.0),
        ("lr", -1e-4),
        ("lr", math.nan),
        ("lr", math.inf),
        ("betas", (1.0, 0.999)),
        ("betas", (0.9, -0.1)),
        ("weight_decay", -0.01),
        ("weight_decay", math.nan),
        ("weight_decay", math.inf),
        ("clip_norm", 0.0),
        ("clip_norm", -1.0),
        ("clip_norm", math.inf),
        ("clip_norm", math.nan),
        ("epochs", 10**11),
        ("accumulation_steps", 0),
        ("seed", -1),
        ("seed", 2**64),
        ("checkpoint_every", 0),
        ("log_every", 0),
    ],
)
def test_a_training_value_out_of_range_is_refused_with_field_and_value(
    field: str, value: object
) -> None:
    with pytest.raises(ValueError, match=field) as error:
        TrainConfig(**{field: value})
    assert str(value) in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("warmup_epochs", -1),
        ("warmup_epochs", 10**11),
        ("warmup_lr", -1.0),
        ("warmup_lr", math.inf),
        ("min_lr", -1e-6),
        ("min_lr", math.nan),
    ],
)
def test_a_schedule_value_out_of_range_is_refused_with_field_and_value(
    field: str, value: object
) -> None:
    with pytest.raises(ValueError, match=rf"{field} must be .* not {value}"):
        TrainConfig(schedule=Schedule(**{field: value}))


@pytest.mark.parametrize("shape", ["cosine", "one_cycle"])
def test_a_lowest_learning_rate_above_the_learning_rate_is_refused_with_both(shape: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"min_lr must be at most lr 0.001, not 0.002"):
        TrainConfig(lr=1e-3, schedule=Schedule(min_lr=2e-3, shape=shape))
    TrainConfig(lr=1e-3, schedule=Schedule(min_lr=1e-3, shape=shape))


def test_a_lowest_learning_rate_that_is_not_used_may_have_any_value() -> None:
    TrainConfig(lr=1e-3, schedule=Schedule(min_lr=2e-3, shape="inverse_sqrt"))


def test_a_batch_size_that_the_accumulation_steps_do_not_divide_is_refused_with_both() -> None:
    with pytest.raises(ValueError, match=r"batch_size 10 .*accumulation_steps 4"):
        TrainConfig(batch_size=10, accumulation_steps=4)


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ".",
        "..",
        "a/b",
        "/",
        "a\\b",
        "../a",
        "a\0b",
        "a\nb",
        "\x1b[2J",
        "\udcff",
        "é" * 101,
    ],
)
def test_a_name_that_is_not_a_valid_folder_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="folder name"):
        replace(TRIANGLE, name=name)


@pytest.mark.parametrize(
    ("experiment", "values", "numbers"),
    [
        (TRIANGLE, {"model.image_size": 32}, ["64x64", "32x32"]),
        (TRIANGLE, {"model.num_channels": 1}, ["3 channels", "1 of"]),
        (TRIANGLE, {"data.channels": 1}, ["1 channels", "3 of"]),
        (IMAGES, {"data.image_size": 64}, ["64x64", "32x32"]),
        (IMAGES, {"model.num_channels": 4}, ["3 channels", "4 of"]),
        (QUESTIONS, {"model.image_size": 64}, ["75x75", "64x64"]),
        (QUESTIONS, {"model.num_channels": 1}, ["3 channels", "1 of"]),
    ],
    ids=label,
)
def test_images_that_do_not_fit_the_model_are_refused_with_both_sizes(
    experiment: Experiment, values: dict[str, Any], numbers: list[str]
) -> None:
    with pytest.raises(ValueError, match="change data or model") as error:
        changed(experiment, values)
    assert all(number in str(error.value) for number in numbers)


@pytest.mark.parametrize(
    ("experiment", "question_dim", "words"),
    [
        (TRIANGLE, 4, ["is 4", "no questions", "to 0"]),
        (IMAGES, 18, ["is 18", "no questions", "to 0"]),
        (QUESTIONS, 0, ["is 0", "questions of 18 features", "to 18"]),
        (DENSE, 17, ["is 17", "questions of 18 features", "to 18"]),
    ],
    ids=label,
)
def test_a_question_size_that_differs_from_the_data_is_refused_with_both_sizes(
    experiment: Experiment, question_dim: int, words: list[str]
) -> None:
    with pytest.raises(ValueError, match="question_dim") as error:
        changed(experiment, {"model.question_dim": question_dim})
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    "model", [PerceiverConfig(image_size=75), LunaConfig(image_size=75, patch_size=15)], ids=label
)
def test_a_model_that_cannot_answer_questions_is_refused_for_data_with_questions(
    model: PerceiverConfig | LunaConfig,
) -> None:
    with pytest.raises(ValueError, match=f"kind {model.kind} cannot answer questions: choose"):
        replace(QUESTIONS, model=model)


@pytest.mark.parametrize("model", [BRIMsConfig(), LUNA_LRA], ids=label)
def test_a_model_that_looks_up_pixels_refuses_normalized_ones(
    model: BRIMsConfig | LunaConfig,
) -> None:
    raw = replace(ImagesConfig("cifar10"), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert replace(IMAGES, data=raw, model=model).model == model
    for data in (
        ImagesConfig("cifar10"),
        replace(raw, mean=(0.0, 0.0, 0.1)),
        replace(raw, std=(1.0, 0.5, 1.0)),
    ):
        with pytest.raises(ValueError, match="expects pixels from 0 to 1, not normalized ones"):
            replace(IMAGES, data=data, model=model)
        assert replace(IMAGES, data=data).data == data  # other models accept them
    triangles = replace(model, image_size=64)
    assert replace(TRIANGLE, model=triangles).model == triangles
    with pytest.raises(ValueError, match="expects pixels from 0 to 1"):
        replace(TRIANGLE, data=TriangleConfig(raw=True), model=triangles)  # 0 and 255


def test_yaml_keeps_the_order_of_the_question_types(tmp_path: Path) -> None:
    other = changed(QUESTIONS, {"data.question_types": ("ternary", "non-relational")})
    save_experiment(other, tmp_path / "experiment.yaml")
    assert load_experiment(tmp_path / "experiment.yaml") == other
