"""Experiments: validation, YAML and fingerprint."""

import errno
import math
import os
import re
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from associative_transformer.data import ImagesConfig, SortOfClevrConfig, TriangleConfig
from associative_transformer.experiment import (
    Experiment,
    Schedule,
    TrainConfig,
    differences,
    fields_of,
    fingerprint,
    load_experiment,
    save_experiment,
)
from associative_transformer.files import write_file
from associative_transformer.interface import UserError
from associative_transformer.models.ait import AiTConfig
from associative_transformer.models.brims import BRIMsConfig
from associative_transformer.models.dense import DenseConfig
from associative_transformer.models.luna import LUNA_LRA, LunaConfig
from associative_transformer.models.perceiver import PerceiverConfig
from associative_transformer.models.relation_network import ConvMLPConfig, RelationNetworkConfig
from associative_transformer.models.vit import ViTConfig
from associative_transformer.recipes import RECIPES
from associative_transformer.workspace import WorkspaceConfig

SIZES: dict[str, Any] = {"patch_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2}
TRIANGLE = Experiment(
    "tiny",
    TriangleConfig(num_train=256, num_test=64),
    AiTConfig(
        **SIZES,
        image_size=64,
        head_dim=8,
        num_classes=2,
        workspace=WorkspaceConfig(num_priors=4, prior_dim=8, num_heads=2, bottleneck=16),
    ),
    TrainConfig(epochs=2, batch_size=64, device="cpu"),
)
IMAGES = replace(
    TRIANGLE, data=ImagesConfig("cifar10"), model=ViTConfig(**SIZES, image_size=32, head_dim=8)
)
QUESTIONS = replace(
    TRIANGLE, data=SortOfClevrConfig(num_train=20), model=RelationNetworkConfig(dropout=0.25)
)
CONVOLUTIONS = replace(QUESTIONS, model=ConvMLPConfig())
DENSE = replace(QUESTIONS, model=DenseConfig())

# Another value of every field; those of one row change together.
WORKSPACE_CHANGES: list[dict[str, Any]] = [
    {"model.workspace.num_priors": 5},
    {"model.workspace.prior_dim": 16},
    {"model.workspace.num_heads": 4},
    {"model.workspace.bottleneck": None},
    {"model.workspace.smoothing": 0.25},
    {"model.workspace.beta": 4.0},
    {"model.workspace.num_steps": 2},
    {"model.workspace.balance_weight": 0.0},
    {"model.workspace.dropout": 0.5},
    {"model.workspace.differentiable_write": False},
    {"model.workspace.reset_each_epoch": True},
    {"model.workspace.pool": "local"},
]
MODEL_CHANGES: list[dict[str, Any]] = [
    {"model.patch_size": 16},
    {"model.num_classes": 7},
    {"model.pos": "learned"},
    {"model.embed_dim": 32},
    {"model.depth": 3},
    {"model.num_heads": 4},
    {"model.head_dim": 16},
    {"model.mlp_ratio": 2.5},
]
TRAIN_CHANGES: list[dict[str, Any]] = [
    {"train.epochs": 3},
    {"train.batch_size": 32},
    {"train.lr": 3e-4},
    {"train.betas": (0.8, 0.95)},
    {"train.weight_decay": 0.0},
    {"train.schedule.warmup_epochs": 0},
    {"train.schedule.warmup_lr": 2e-5},
    {"train.schedule.min_lr": 3e-7},
    {"train.schedule.shape": "one_cycle"},
    {"train.clip_norm": 1.0},
    {"train.accumulation_steps": 2},
    {"train.precision": "bfloat16"},
    {"train.compile": True},
]
TRIANGLE_CHANGES: list[dict[str, Any]] = [
    {"data.num_train": 300},
    {"data.num_test": 65},
    {"data.channels": 1, "model.num_channels": 1},
    {"data.seed": 1},
    {"data.val_fraction": 0.25},
    {"data.reject_near_equilateral": True},
    {"data.min_side": 8.0},
    {"data.raw": True},
    {"model.use_self_attention": False},
    {"model.read": "cross_attention"},
]
IMAGES_CHANGES: list[dict[str, Any]] = [
    {"data.name": "cifar100"},
    {"data.image_column": "img"},
    {"data.label_column": "coarse_label"},
    {"data.image_size": 64, "model.image_size": 64},
    {"data.augment": "none"},
    {"data.crop_padding": 2},
    {"data.mean": (0.5, 0.4, 0.3)},
    {"data.std": (0.5, 0.4, 0.3)},
    {"data.val_fraction": 0.1},
    {"data.on_error": "skip"},
    {"data.limit": 100},
    {"model.head": "cls"},
]
QUESTIONS_CHANGES: list[dict[str, Any]] = [
    {"data.num_train": 30},
    {"data.num_test": 65},
    {"data.num_questions": 3},
    {"data.question_types": ("binary",)},
    {"data.strict": False},
    {"data.seed": 1},
    {"data.val_fraction": 0.25},
]
CONVOLUTION_CHANGES: list[dict[str, Any]] = [
    {"model.num_classes": 7},
    {"model.conv_dim": 8},
    {"model.num_convs": 3},
    {"model.hidden_dim": 16},
    {"model.dropout": 0.125},
]
RELATION_CHANGES: list[dict[str, Any]] = [
    *CONVOLUTION_CHANGES,
    {"model.num_objects": 3},
    {"model.num_relation_layers": 2},
]
DENSE_CHANGES: list[dict[str, Any]] = [
    {"model.num_classes": 7},
    {"model.patch_size": 25},
    {"model.pos": "learned"},
    {"model.embed_dim": 32},
    {"model.depth": 3},
    {"model.mlp_ratio": 2.5},
]
TRIANGLE_IDENTITY = TRIANGLE_CHANGES + MODEL_CHANGES + WORKSPACE_CHANGES + TRAIN_CHANGES
IMAGES_IDENTITY = IMAGES_CHANGES + MODEL_CHANGES + TRAIN_CHANGES
QUESTIONS_IDENTITY = QUESTIONS_CHANGES + RELATION_CHANGES + TRAIN_CHANGES
CIRCUMSTANCES: list[dict[str, Any]] = [
    {"train.seed": 7},
    {"train.checkpoint_every": 3},
    {"train.log_every": 1},
    {"train.tracker": "tensorboard"},
    {"train.device": "auto"},
    {"train.detect_anomaly": True},
]
IMAGES_CIRCUMSTANCES: list[dict[str, Any]] = [
    *CIRCUMSTANCES,
    {"data.source": "elsewhere"},
    {"data.num_workers": 0},
    {"data.memory_budget": 0.5},
]
SCIENCE = [
    *((TRIANGLE, change) for change in TRIANGLE_IDENTITY),
    *((IMAGES, change) for change in IMAGES_IDENTITY),
    *((QUESTIONS, change) for change in QUESTIONS_IDENTITY),
    *((CONVOLUTIONS, change) for change in CONVOLUTION_CHANGES),
    *((DENSE, change) for change in DENSE_CHANGES),
]
WORLD = [
    *((TRIANGLE, change) for change in CIRCUMSTANCES),
    *((IMAGES, change) for change in IMAGES_CIRCUMSTANCES),
    *((QUESTIONS, change) for change in CIRCUMSTANCES),
]


def label(parameter: object) -> str:
    if isinstance(parameter, Experiment):
        return f"{parameter.data.kind}-{parameter.model.kind}"
    return "+".join(parameter) if isinstance(parameter, dict) else ""


def nested(values: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *parents, leaf = name.split(".")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = value
    return tree


def change(config: Any, tree: dict[str, Any]) -> Any:  # noqa: ANN401
    new = {
        key: change(getattr(config, key), value) if isinstance(value, dict) else value
        for key, value in tree.items()
    }
    return replace(config, **new)


def changed(experiment: Experiment, values: dict[str, Any]) -> Experiment:
    return change(experiment, nested(values))


def leaves(config: object, prefix: str = "") -> set[str]:
    found: set[str] = set()
    for item in fields(config):  # type: ignore[arg-type]
        value = getattr(config, item.name)
        name = f"{prefix}{item.name}"
        found |= leaves(value, f"{name}.") if is_dataclass(value) else {name}
    return found


def write_yaml(path: Path, experiment: Experiment, values: dict[str, Any]) -> Path:
    """Save an experiment with some entries replaced or added, however wrong they are."""

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
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    return [plain(value) for value in tree] if isinstance(tree, tuple) else tree


# --- YAML ---


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_comes_back_from_yaml_as_it_was(name: str, tmp_path: Path) -> None:
    save_experiment(RECIPES[name], tmp_path / "experiment.yaml")
    loaded = load_experiment(tmp_path / "experiment.yaml")
    assert loaded == RECIPES[name]
    assert fingerprint(loaded) == fingerprint(RECIPES[name])


@pytest.mark.parametrize(("experiment", "values"), SCIENCE + WORLD, ids=label)
def test_every_field_comes_back_from_yaml(
    experiment: Experiment, values: dict[str, Any], tmp_path: Path
) -> None:
    other = changed(experiment, values)
    assert other != experiment
    save_experiment(other, tmp_path / "experiment.yaml")
    assert load_experiment(tmp_path / "experiment.yaml") == other


def test_a_number_typed_without_a_point_is_still_a_number(tmp_path: Path) -> None:
    path = write_yaml(tmp_path / "experiment.yaml", TRIANGLE, {})
    path.write_text(path.read_text().replace("lr: 0.0001", "lr: 1e-4"))  # a string for YAML
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
def test_a_file_that_is_no_experiment_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"experiment\.yaml"):
        load_experiment(path)


def test_a_yaml_object_tag_builds_nothing(tmp_path: Path) -> None:
    path = write_yaml(tmp_path / "experiment.yaml", TRIANGLE, {})
    trap = tmp_path / "trap"
    path.write_text(path.read_text() + f"extra: !!python/object/apply:os.mkdir ['{trap}']\n")
    with pytest.raises(UserError, match="no YAML"):
        load_experiment(path)
    assert not trap.exists()


def test_a_missing_file_is_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path} is no run folder"):
        load_experiment(tmp_path / "experiment.yaml")


def test_a_file_given_as_run_folder_is_no_run_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="no run folder"):
        load_experiment(tmp_path / "file" / "experiment.yaml")


def test_a_folder_in_the_place_of_the_yaml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").mkdir()
    with pytest.raises(UserError, match=r"experiment\.yaml"):
        load_experiment(tmp_path / "experiment.yaml")


# --- identity ---


def test_the_tables_of_this_file_name_every_field() -> None:
    for experiment, rows in (
        (TRIANGLE, TRIANGLE_IDENTITY + CIRCUMSTANCES),
        (IMAGES, IMAGES_IDENTITY + IMAGES_CIRCUMSTANCES),
        (QUESTIONS, QUESTIONS_IDENTITY + CIRCUMSTANCES),
        (CONVOLUTIONS, QUESTIONS_CHANGES + CONVOLUTION_CHANGES + TRAIN_CHANGES + CIRCUMSTANCES),
        (DENSE, QUESTIONS_CHANGES + DENSE_CHANGES + TRAIN_CHANGES + CIRCUMSTANCES),
    ):
        named = {field for row in rows for field in row} | {"name", "data.kind", "model.kind"}
        # the data fixes the sizes: the side and channels of its images, and whether it asks
        fixed = {"model.image_size", "model.num_channels", "model.question_dim"}
        assert leaves(experiment) - named <= fixed
        assert named <= leaves(experiment) | {"data.channels"}


@pytest.mark.parametrize(("experiment", "values"), SCIENCE, ids=label)
def test_every_field_of_the_science_changes_the_fingerprint_and_is_named_in_the_differences(
    experiment: Experiment, values: dict[str, Any]
) -> None:
    other = changed(experiment, values)
    assert fingerprint(other) != fingerprint(experiment)
    before, after = fields_of(experiment), fields_of(other)
    told = differences(experiment, other)
    assert told == {name: (before[name], after[name]) for name in values}
    assert list(told) == sorted(values)


@pytest.mark.parametrize(("experiment", "values"), WORLD, ids=label)
def test_circumstances_change_neither_fingerprint_nor_configuration(
    experiment: Experiment, values: dict[str, Any]
) -> None:
    other = changed(experiment, values)
    assert other != experiment
    assert fingerprint(other) == fingerprint(experiment)
    assert differences(experiment, other) == {}


def test_differences_name_fields_that_only_one_of_two_models_has() -> None:
    vit = ViTConfig(**SIZES, image_size=64, head_dim=8, num_classes=2)
    told = differences(TRIANGLE, replace(TRIANGLE, model=vit))
    assert told["model.kind"] == ("ait", "vit")
    assert told["model.head"] == (None, "flatten")
    assert told["model.workspace.beta"] == (1.0, None)


def test_a_fingerprint_is_eight_characters_and_differs_between_all_recipes() -> None:
    prints = {fingerprint(recipe) for recipe in RECIPES.values()}
    assert len(prints) == len(RECIPES)
    assert all(len(p) == 8 and set(p) <= set("0123456789abcdef") for p in prints)


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
    [("warmup_epochs", -1), ("warmup_lr", -1.0), ("min_lr", -1e-6), ("min_lr", math.nan)],
)
def test_a_value_of_the_schedule_out_of_range_is_refused_with_field_and_value(
    field: str, value: object
) -> None:
    with pytest.raises(ValueError, match=rf"{field} must be .* not {value}"):
        TrainConfig(schedule=Schedule(**{field: value}))


def test_a_batch_that_its_accumulation_steps_do_not_divide_is_refused_with_both() -> None:
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
def test_a_name_that_is_no_folder_name_is_refused(name: str) -> None:
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
    with pytest.raises(ValueError, match="agree") as error:
        changed(experiment, values)
    assert all(number in str(error.value) for number in numbers)


@pytest.mark.parametrize(
    ("experiment", "question_dim", "words"),
    [
        (TRIANGLE, 4, ["is 4", "without any", "to 0"]),
        (IMAGES, 18, ["is 18", "without any", "to 0"]),
        (QUESTIONS, 0, ["is 0", "questions of 18 features", "to 18"]),
        (DENSE, 17, ["is 17", "questions of 18 features", "to 18"]),
    ],
    ids=label,
)
def test_a_model_and_data_with_other_questions_are_refused_with_both_sizes(
    experiment: Experiment, question_dim: int, words: list[str]
) -> None:
    with pytest.raises(ValueError, match="question_dim") as error:
        changed(experiment, {"model.question_dim": question_dim})
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    "model", [PerceiverConfig(image_size=75), LunaConfig(image_size=75, patch_size=15)], ids=label
)
def test_a_model_without_questions_is_refused_for_data_with_some(
    model: PerceiverConfig | LunaConfig,
) -> None:
    with pytest.raises(ValueError, match=f"kind {model.kind} takes no questions: choose another"):
        replace(QUESTIONS, model=model)


@pytest.mark.parametrize("model", [BRIMsConfig(), LUNA_LRA], ids=label)
def test_a_model_that_looks_pixels_up_takes_no_normalized_ones(
    model: BRIMsConfig | LunaConfig,
) -> None:
    raw = replace(ImagesConfig("cifar10"), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert replace(IMAGES, data=raw, model=model).model == model
    for data in (
        ImagesConfig("cifar10"),
        replace(raw, mean=(0.0, 0.0, 0.1)),
        replace(raw, std=(1.0, 0.5, 1.0)),
    ):
        with pytest.raises(ValueError, match="takes pixels from 0 to 1, not normalized ones"):
            replace(IMAGES, data=data, model=model)
        assert replace(IMAGES, data=data).data == data  # others take them
    triangles = replace(model, image_size=64)
    assert replace(TRIANGLE, model=triangles).model == triangles
    with pytest.raises(ValueError, match="takes pixels from 0 to 1"):
        replace(TRIANGLE, data=TriangleConfig(raw=True), model=triangles)  # 0 and 255


def test_the_order_of_the_types_of_questions_is_kept_in_yaml(tmp_path: Path) -> None:
    other = changed(QUESTIONS, {"data.question_types": ("ternary", "non-relational")})
    save_experiment(other, tmp_path / "experiment.yaml")
    assert load_experiment(tmp_path / "experiment.yaml") == other


# --- files ---


def fail_with_no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_other(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")
    monkeypatch.setattr(os if call == "fsync" else Path, call, fail_with_no_space)
    with pytest.raises(UserError, match=rf"can't write {path}: No space left"):
        write_file(path, b"new and longer")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    write_file(tmp_path / "file", b"something long")
    write_file(tmp_path / "file", b"short")
    assert (tmp_path / "file").read_bytes() == b"short"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def in_a_missing_folder(root: Path) -> Path:
    return root / "missing" / "file"


def below_a_file(root: Path) -> Path:
    (root / "file").touch()
    return root / "file" / "file"


def in_the_place_of_a_folder(root: Path) -> Path:
    (root / "folder").mkdir()
    return root / "folder"


def with_an_endless_name(root: Path) -> Path:
    return root / ("x" * 300)


def without_a_name(root: Path) -> Path:
    return Path("/")


@pytest.mark.parametrize(
    "place",
    [
        in_a_missing_folder,
        below_a_file,
        in_the_place_of_a_folder,
        with_an_endless_name,
        without_a_name,
    ],
)
def test_a_place_that_cannot_be_written_is_named(
    place: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = place(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=re.escape(f"can't write {path}")):
        write_file(path, b"content")
    assert sorted(tmp_path.rglob("*")) == before
