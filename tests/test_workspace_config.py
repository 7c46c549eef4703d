"""The configuration of a workspace: defaults of each scope, errors, files and command lines."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from associative_transformer.cli.options import parse
from associative_transformer.cli.train import TrainOptions
from associative_transformer.experiment import (
    Experiment,
    fingerprint,
    load_experiment,
    save_experiment,
)
from associative_transformer.interface import UserError
from associative_transformer.models.ait import AiTConfig
from associative_transformer.recipes import RECIPES
from associative_transformer.workspace import GlobalWorkspace
from associative_transformer.workspace_config import ImageMemoryConfig, WorkspaceConfig
from making.overrides import TRIANGLE, changed

VERSION_0_1 = json.loads((Path(__file__).parent / "fixtures/experiments-0.1.json").read_text())
IMAGE = changed(
    TRIANGLE,
    {"model.workspace": WorkspaceConfig(scope="image", image=ImageMemoryConfig(read_head_dim=8))},
)
RECIPE = "cifar10-ait-tiny"


def resolved(config: WorkspaceConfig) -> tuple[Any, ...]:
    return config.bottleneck, config.balance_weight, config.dropout


def read_options(line: str) -> WorkspaceConfig:
    """Return the memory that `ait train` builds from the options of a recipe."""
    words = [f"--model.workspace.{word}" if word[0] != "=" else word[1:] for word in line.split()]
    default = TrainOptions(RECIPES[RECIPE])
    experiment = parse(TrainOptions, words, f"train {RECIPE}", default).experiment
    assert isinstance(experiment.model, AiTConfig)
    return experiment.model.workspace


# --- defaults ---


def test_the_defaults_depend_on_the_scope() -> None:
    assert WorkspaceConfig().scope == "batch"
    assert resolved(WorkspaceConfig()) == (512, 0.01, 0.1)
    assert resolved(WorkspaceConfig(scope="image")) == (0.25, 0.0, 0.0)
    image = WorkspaceConfig(scope="image").image
    assert (image.read_head_dim, image.use_read_norm) == (32, True)


def test_values_that_are_given_are_kept() -> None:
    for scope in ("batch", "image"):
        config = WorkspaceConfig(scope=scope, bottleneck=None, balance_weight=0.5, dropout=0.2)
        assert resolved(config) == (None, 0.5, 0.2)
        config = WorkspaceConfig(scope=scope, bottleneck=7, balance_weight=0.0, dropout=0.0)
        assert resolved(config) == (7, 0.0, 0.0)


def test_a_changed_scope_keeps_the_resolved_values_unless_they_are_set_back() -> None:
    batch = WorkspaceConfig(num_priors=5)
    assert resolved(replace(batch, scope="image")) == resolved(batch)
    again = replace(batch, scope="image", bottleneck="auto", balance_weight=None, dropout=None)
    assert again == WorkspaceConfig(num_priors=5, scope="image")


def test_configurations_that_resolve_to_the_same_values_are_equal() -> None:
    explicit = WorkspaceConfig(scope="image", bottleneck=0.25, balance_weight=0.0, dropout=0.0)
    assert explicit == WorkspaceConfig(scope="image")
    assert hash(explicit) == hash(WorkspaceConfig(scope="image"))


# --- errors ---


@pytest.mark.parametrize(
    ("field", "value", "default"),
    [
        ("smoothing", 0.2, 0.1),
        ("reset_each_epoch", True, False),
        ("differentiable_write", False, True),
        ("pool", "local", "global"),
        ("pool", "node", "global"),
    ],
)
def test_a_field_without_meaning_for_images_is_refused_with_its_default(
    field: str, value: object, default: object
) -> None:
    with pytest.raises(ValueError) as caught:
        WorkspaceConfig(scope="image", **{field: value})
    assert str(caught.value).startswith(f"{field} has no meaning with scope image")
    assert str(caught.value).endswith(f"leave it at {default}, not {value}")
    WorkspaceConfig(**{field: value})
    WorkspaceConfig(scope="image", **{field: default})


@pytest.mark.parametrize("change", [{"read_head_dim": 16}, {"use_read_norm": False}], ids=str)
def test_the_read_of_images_is_refused_with_one_memory_for_the_batch(
    change: dict[str, Any],
) -> None:
    with pytest.raises(ValueError, match="image must be at its defaults with scope batch"):
        WorkspaceConfig(image=ImageMemoryConfig(**change))


def test_a_share_of_the_tokens_is_refused_with_one_memory_for_the_batch() -> None:
    with pytest.raises(ValueError, match=r"with scope batch, not 0\.5: a share .* scope image"):
        WorkspaceConfig(bottleneck=0.5)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.25, 2.0, float("nan"), float("inf")])
def test_a_share_outside_of_0_and_1_is_refused_with_its_value(share: float) -> None:
    with pytest.raises(ValueError, match=f"share between 0 and 1, not {share}"):
        WorkspaceConfig(scope="image", bottleneck=share)


@pytest.mark.parametrize("bottleneck", [0, -3])
@pytest.mark.parametrize("scope", ["batch", "image"])
def test_a_number_of_tokens_below_one_is_refused(bottleneck: int, scope: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=f"at least 1 .* not {bottleneck}"):
        WorkspaceConfig(scope=scope, bottleneck=bottleneck)


@pytest.mark.parametrize("width", [0, -8])
def test_a_width_of_the_read_below_one_is_refused(width: int) -> None:
    with pytest.raises(ValueError, match=f"read_head_dim must be .* not {width}"):
        ImageMemoryConfig(read_head_dim=width)


def test_heads_of_the_read_that_do_not_fill_the_tokens_are_refused_with_both_widths() -> None:
    config = WorkspaceConfig(scope="image")
    message = r"read_head_dim 32 does not divide the token width 48: choose a divisor"
    with pytest.raises(ValueError, match=message):
        GlobalWorkspace(48, config)
    with pytest.raises(ValueError, match=message):  # before a run starts
        AiTConfig(embed_dim=48, workspace=config)
    GlobalWorkspace(64, config)


@pytest.mark.parametrize("read", ["cross_attention", "none"])
def test_a_memory_of_an_image_has_only_one_way_of_reading(read: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=f'read must be "hopfield" .* not "{read}"'):
        AiTConfig(read=read, workspace=WorkspaceConfig(scope="image"))


# --- files ---


def test_a_saved_experiment_holds_the_resolved_values(tmp_path: Path) -> None:
    save_experiment(IMAGE, tmp_path / "experiment.yaml")
    saved = yaml.safe_load((tmp_path / "experiment.yaml").read_text())["model"]["workspace"]
    assert (saved["bottleneck"], saved["balance_weight"], saved["dropout"]) == (0.25, 0.0, 0.0)
    assert saved["scope"] == "image"
    assert saved["image"] == {"read_head_dim": 8, "use_read_norm": True}
    assert load_experiment(tmp_path / "experiment.yaml") == IMAGE


@pytest.mark.parametrize("bottleneck", [4, 0.5, None])
def test_a_bottleneck_keeps_its_type_in_a_file(
    bottleneck: int | float | None, tmp_path: Path
) -> None:
    experiment = changed(IMAGE, {"model.workspace.bottleneck": bottleneck})
    save_experiment(experiment, tmp_path / "experiment.yaml")
    loaded = load_experiment(tmp_path / "experiment.yaml").model.workspace.bottleneck
    assert loaded == bottleneck and type(loaded) is type(bottleneck)


@pytest.mark.parametrize("name", [name for name in VERSION_0_1["saved"] if "-ait-" in name])
def test_an_old_experiment_has_one_memory_for_the_batch(name: str, tmp_path: Path) -> None:
    saved = VERSION_0_1["saved"][name]
    new = {"scope", "competition", "center_values", "image"}
    assert not new & saved["model"]["workspace"].keys()
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(saved))
    experiment = load_experiment(tmp_path / "experiment.yaml")
    assert experiment.model.workspace.scope == "batch"
    for key, value in saved["model"]["workspace"].items():
        assert getattr(experiment.model.workspace, key) == value
    assert fingerprint(experiment) == VERSION_0_1["fingerprints"][name]


def test_the_scope_changes_the_fingerprint() -> None:
    def with_memory(**changes: Any) -> Experiment:  # noqa: ANN401
        memory = WorkspaceConfig(bottleneck=4, balance_weight=0.1, dropout=0.0, **changes)
        model = replace(TRIANGLE.model, embed_dim=32, workspace=memory)
        return replace(TRIANGLE, model=model)

    assert fingerprint(with_memory()) != fingerprint(with_memory(scope="image"))


def test_a_file_with_a_field_without_meaning_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    save_experiment(IMAGE, path)
    saved = yaml.safe_load(path.read_text())
    saved["model"]["workspace"]["smoothing"] = 0.5
    path.write_text(yaml.safe_dump(saved))
    with pytest.raises(UserError, match="smoothing has no meaning with scope image"):
        load_experiment(path)


# --- command lines ---


def test_the_options_of_a_recipe_select_a_memory_for_each_image() -> None:
    config = read_options("scope =image bottleneck =0.5")
    assert (config.scope, config.bottleneck) == ("image", 0.5)
    more = "competition =priors center-values image.read-head-dim =16 image.no-use-read-norm"
    config = read_options(f"scope =image bottleneck =3 {more}")
    assert config.bottleneck == 3 and isinstance(config.bottleneck, int)
    assert config.competition == "priors" and config.center_values
    assert asdict(config.image) == {"read_head_dim": 16, "use_read_norm": False}


def test_the_defaults_of_the_other_scope_are_options_too() -> None:
    config = read_options("scope =image bottleneck =auto balance-weight =None dropout =None")
    assert resolved(config) == resolved(WorkspaceConfig(scope="image"))
    assert read_options("scope =image bottleneck =None").bottleneck is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bottleneck =0.5", "a share of the tokens needs scope image"),
        ("scope =image bottleneck =1.5", "share between 0 and 1, not 1.5"),
        ("scope =image smoothing =0.5", "smoothing has no meaning with"),
        ("scope =images", "images"),
        ("scope =image image.read-head-dim =7", "does not divide the token width"),
        ("image.read-head-dim =16", "image must be at its defaults with scope batch"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused_in_one_sentence(
    line: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_options(line)
    assert "\n" not in str(caught.value)
