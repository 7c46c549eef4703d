"""The recipes against the paper's settings, sizes and published numbers."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from associative_transformer import recipes
from associative_transformer.data import ImagesConfig, SortOfClevrConfig, TriangleConfig
from associative_transformer.experiment import (
    Experiment,
    TrainConfig,
    differences,
    fingerprint,
)
from associative_transformer.interface import UserError
from associative_transformer.models import ModelConfig, build_model
from associative_transformer.models.ait import AiTConfig
from associative_transformer.models.brims import BRIMsConfig
from associative_transformer.models.coordination import CoordinationConfig, SlotsConfig
from associative_transformer.models.dense import DenseConfig
from associative_transformer.models.luna import LunaConfig
from associative_transformer.models.perceiver import FourierConfig, PerceiverConfig
from associative_transformer.models.relation_network import ConvMLPConfig, RelationNetworkConfig
from associative_transformer.models.set_transformer import SetTransformerConfig
from associative_transformer.models.vit import ViTConfig
from associative_transformer.optimization import Schedule
from associative_transformer.recipes import (
    PUBLISHED_TEXT,
    RECIPES,
    TABLE_RECIPES,
    ablations,
    classification,
    find_recipe,
    relational,
)
from associative_transformer.recipes.budgets import BUDGETS, Budget, shorten
from associative_transformer.training.schedule import learning_rate
from associative_transformer.workspace_config import WorkspaceConfig


class Published(NamedTuple):
    """A row of the slides: accuracies and their average in percent, parameters in millions."""

    title: str
    cifar10: float | None = None
    cifar100: float | None = None
    triangle: float | None = None
    average: float | None = None
    size: float | None = None  # with the head for CIFAR-10


# ViT-Medium is in the CVPR version; Luna with 2 layers is ours.
TABLE_1 = {
    "ait-base": Published("AiT-Base", 85.44, 60.78, 99.59, 81.94, 91.0),
    "ait-medium": Published("AiT-Medium", 84.59, 60.58, 99.57, 81.58, 45.9),
    "ait-small": Published("AiT-Small", 83.34, 56.30, 99.47, 79.70, 15.8),
    "coordination": Published("Coordination", 75.31, 43.90, 91.66, 70.29, 2.2),
    "coordination-dh": Published("Coordination-DH", 72.49, 51.70, 81.78, 68.66, 16.6),
    "coordination-d": Published("Coordination-D", 74.50, 40.69, 86.28, 67.16, 2.2),
    "coordination-h": Published("Coordination-H", 78.51, 48.59, 72.53, 66.54, 8.4),
    "vit-base": Published("ViT-Base", 83.82, 57.92, 99.63, 80.46, 85.7),
    "vit-medium": Published("ViT-Medium", 82.41, 55.78, 99.62, 79.27, None),
    "vit-small": Published("ViT-Small", 79.53, 53.19, 99.47, 77.40, 14.9),
    "perceiver": Published("Perceiver", 82.52, 52.64, 96.78, 77.31, 44.9),
    "set-transformer": Published("Set Transformer", 73.42, 40.19, 60.31, 57.97, 2.2),
    "brims": Published("BRIMs", 60.10, 31.75, None, 45.93, 4.4),
    "luna-base": Published("Luna", 47.86, 23.38, None, 35.62, 77.6),
    "luna-small": Published("Luna, 2 layers"),
}
SETS = ("cifar10", "cifar100", "triangle")
EVERY_SET = [f"{data}-{model}" for data in SETS for model in TABLE_1]

# Percent, average over the three data sets: the CVPR version.
ABLATIONS = {
    "ait-small": ("AiT-Small", 79.70),
    "ait-small-without-bottleneck": ("w/o bottleneck", 72.75),
    "ait-small-without-self-attention": ("w/o self-attention", 73.31),
    "vit-small": ("w/o memory", 77.40),
    "ait-small-without-hopfield": ("w/o Hopfield", 78.48),
    "ait-small-without-balance-loss": ("w/o balance loss", 78.68),
    "ait-small-reset-memory": ("reset memory", 79.12),
}
NOT_PUBLISHED = {"ait-small-without-read": "w/o read", "vit-small-norm": "ViT + norm"}
"""Rows that the table of the paper lacks, with their titles."""
CHANGES: dict[str, tuple[str, object]] = {  # the one field that makes an ablation of AiT-Small
    "without-bottleneck": ("model.workspace.bottleneck", None),
    "without-self-attention": ("model.use_self_attention", False),
    "without-hopfield": ("model.read", "cross_attention"),
    "without-balance-loss": ("model.workspace.balance_weight", 0.0),
    "reset-memory": ("model.workspace.reset_each_epoch", True),
    "without-read": ("model.read", "none"),
}
ABLATED = [f"{data}-ait-small-{change}" for data in SETS for change in CHANGES]
NORMED = [f"{data}-vit-small-norm" for data in SETS]
WITHOUT_DROPOUT = "cifar10-ait-small-nodropout"

PATCHES_OF_32 = ("ait", "vit")  # on Triangle; all other models with patches see 4 pixels there
WITHOUT_PATCHES = ("perceiver", "brims")
OTHER_PATCHES = [
    f"triangle-{model}-p{4 if model.startswith(PATCHES_OF_32) else 32}"
    for model in TABLE_1
    if model not in WITHOUT_PATCHES
]
SOURCES = [
    "triangle-coordination-source",
    "triangle-set-transformer-source",
    "cifar10-perceiver-source",
    "cifar10-brims-source",
    "cifar10-luna-lra",
]
TINY = ["triangle-ait-tiny", "cifar10-ait-tiny"]
NARROW = ["cifar10-ait-192", "cifar10-vit-192"]
MIXERS = [  # of the tokens, without a published counterpart
    *("ait-image", "ait-image-attention", "vit", "vit-norm"),
    *("ait", "ait-nodropout", "ait-competition", "ait-unread", "ait-bare"),
]
MEAN = {"vit", "ait"}  # named after their head: cifar10-ait-tiny has the head of the paper
PER_IMAGE = [
    *(f"cifar10-{name}{'-mean' * (name in MEAN)}-tiny" for name in MIXERS),
    *(f"cifar10-{name}-flatten" for name in MIXERS),
    *("cifar10-ait-image-small", "cifar10-vit-mean-small"),
    *(f"sort-of-clevr-{name}-tiny" for name in ("ait-image", "vit-question", "vit-norm")),
]
PATCHED = [
    *("ait-small", "ait-medium", "ait-base", "vit-small"),
    *("coordination", "set-transformer", "dense-small", "dense-base"),
]
RELATIONAL = [
    f"sort-of-clevr-{model}"
    for model in (*PATCHED, *(f"{model}-p5" for model in PATCHED), "cnn-rn", "cnn-mlp")
]
RELATIONAL_SOURCES = [
    "sort-of-clevr-coordination-source",
    "sort-of-clevr-set-transformer-source",
]
LAPTOP_MODELS = (
    *("ait", "ait-image", "vit", "coordination", "coordination-d", "coordination-h"),
    *("coordination-dh", "perceiver", "set-transformer", "brims", "luna", "vit-norm"),
    *("ait-without-bottleneck", "ait-without-self-attention", "ait-without-hopfield"),
    *("ait-without-balance-loss", "ait-reset-memory", "ait-without-read"),
)
LAPTOP = [
    *(f"{data}-laptop-{model}" for data in ("cifar10", "triangle") for model in LAPTOP_MODELS),
    *(f"cifar10-laptop-{model}-{depth}" for model in ("ait", "vit") for depth in (6, 12)),
]
HOUR = [f"cifar10-{model}-laptop" for model in ("ait", "ait-published", "vit", "resnet")]
RELATIONAL_TINY = [
    f"sort-of-clevr-{model}-tiny"
    for model in ("ait", "vit", "coordination", "set-transformer", "cnn-rn", "cnn-mlp", "dense")
]

# Live parameters and parameters as the paper counts, with the head for CIFAR-10.
PARAMETERS = {
    "ait-small": (15_673_322, 15_784_426),
    "ait-medium": (45_761_770, 45_876_970),
    "ait-base": (90_894_442, 91_015_786),
    "vit-small": (14_800_234, 14_850_922),
    "vit-medium": (43_142_506, 43_251_562 - 58_368),  # without the unused stem
    "vit-base": (85_655_914, 85_706_602),
    "coordination": (1_990_668, 2_221_068),
    "coordination-d": (1_990_668, 2_221_068),
    "coordination-h": (8_377_362 - 6 * 76_800, 8_377_362),
    "coordination-dh": (15_817_754, 16_585_754),
    "perceiver": (44_860_230, 44_860_230),
    "set-transformer": (2_137_098, 2_213_898),
    "brims": (1_308_010, 4_389_410),
    "luna-base": (106_393_354 - 13 * 2 * 768, 106_393_354),
    "luna-small": (17_781_514 - 3 * 2 * 768, 17_781_514),
}

# Percent of relational and non-relational questions: the slides; AiT-Base: the CVPR version.
TABLE_2 = {
    "ait-small": (76.82, 99.85),
    "ait-base": (80.03, None),
    "coordination": (73.43, 96.31),
    "set-transformer": (47.63, 57.65),
    "cnn-rn": (81.07, 98.82),
    "cnn-mlp": (60.08, 99.47),
    "dense-base": (46.93, 57.71),
    "dense-small": (47.28, 57.68),
}
RELATIONAL_LIVE = {
    "ait-small": 15_822_068,
    "ait-medium": 45_910_516,
    "ait-base": 91_043_188,
    "vit-small": 14_948_980,
    "coordination": 2_289_036 - 395_648,
    "set-transformer": 8_304_650 - 76_800,
    "cnn-rn": 366_194,
    "cnn-mlp": 243_314,
    "dense-small": 10_225_780,
    "dense-base": 57_465_460,
}

DEPTHS = {"small": 2, "medium": 6, "base": 12}
PROTOCOL = TrainConfig(
    epochs=100,
    batch_size=512,
    lr=1e-4,
    betas=(0.9, 0.999),
    weight_decay=0.01,
    schedule=Schedule(warmup_epochs=5, warmup_lr=1e-5, min_lr=1e-6, shape="cosine"),
    clip_norm=None,
    accumulation_steps=1,
    seed=0,
)
RAW = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # pixels stay between 0 and 1


def model_of(name: str) -> ModelConfig:
    """Spell out the model of a row of the paper, for CIFAR-10."""
    kind, _, size = name.partition("-")
    image: dict[str, Any] = {"image_size": 32, "num_channels": 3, "num_classes": 10}
    patches = image | {"patch_size": 4}
    asked = patches | {"question_dim": 0}
    wide = {"embed_dim": 768, "num_heads": 12, "mlp_ratio": 4.0, "depth": DEPTHS.get(size, 0)}
    if kind == "vit":
        return ViTConfig(**asked, **wide, head_dim=64, pos="none", head="flatten")
    if kind == "ait":
        workspace = WorkspaceConfig(
            num_priors=32,
            prior_dim=32,
            num_heads=8,
            bottleneck=512,
            smoothing=0.1,
            beta=1.0,
            num_steps=1,
            balance_weight=0.01,
            dropout=0.1,
            differentiable_write=True,
            reset_each_epoch=False,
        )
        blocks = {"pos": "none", "use_self_attention": True, "read": "hopfield"}
        return AiTConfig(**asked, **wide, **blocks, head_dim=64, workspace=workspace)
    if kind == "coordination":
        slots = SlotsConfig(8, num_heads=4, key_dim=32, bottleneck=20, mlp_depth=1, scale=1.0)
        return CoordinationConfig(
            **asked,
            embed_dim=256,
            depth=8 if "d" in size else 4,
            mlp_ratio=1024 / 256,
            dropout=0.1,
            share_layers="h" not in size,
            slots=replace(slots, scope="model"),
        )
    if kind == "perceiver":
        blocks = {"depth": 6, "num_selfs": 1, "num_heads": 8, "head_dim": 64, "cross_dim": 64}
        fourier = FourierConfig(num_bands=64, max_freq=None)  # None: the image side
        latents = {"num_latents": 256, "latent_dim": 512, "tie": "none", "form": "package"}
        return PerceiverConfig(**image, **blocks, **latents, fourier=fourier, dropout=0.0)
    if kind == "set":
        widths = {"embed_dim": 256, "hidden_dim": 256, "depth": 4, "num_heads": 4}
        blocks = {"num_inducing": 8, "use_norm": True, "pos": "fixed", "pool": "cls"}
        return SetTransformerConfig(**asked, **widths, **blocks, decoder_depth=0)
    if kind == "brims":
        return BRIMsConfig(**image, resolution=16)
    kept = {"num_packed": 16, "is_tied": False, "dropout": 0.0, "attention_dropout": 0.0}
    return LunaConfig(**patches, **wide, **kept, vocabulary=0, pos="sinusoidal")


def on_triangle(name: str, patch_size: int | None = None) -> ModelConfig:
    """Spell out the model of a row for Triangle, with patches of the usual size or another."""
    model = replace(model_of(name), image_size=64, num_classes=2)
    if patch_size is None and not isinstance(model, AiTConfig | ViTConfig):
        return model
    model = replace(model, patch_size=patch_size or 32)
    if isinstance(model, AiTConfig) and model.patch_size == 32:
        model = replace(model, workspace=replace(model.workspace, bottleneck=64))
    return model


def data_of(name: str, **changes: Any) -> ImagesConfig | TriangleConfig:  # noqa: ANN401
    """Spell out the data set of a recipe."""
    data = name.split("-")[0]
    if data == "triangle":
        return TriangleConfig(**{"num_train": 50_000, "num_test": 10_000, "channels": 3} | changes)
    usual = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010), "limit": None}
    usual |= {"image_size": 32, "augment": "crop", "crop_padding": 4, "val_fraction": 0.0}
    return ImagesConfig(data, **usual | changes)


def count(model: ModelConfig) -> tuple[int, int]:
    """Count the live parameters and those that the paper counts."""
    with torch.device("meta"):
        built = build_model(model)
    return sum(p.numel() for p in built.parameters()), built.reference_parameters()


# --- names ---


def test_exactly_these_recipes_exist() -> None:
    groups: list[Sequence[str]] = [EVERY_SET, ABLATED, OTHER_PATCHES, SOURCES, TINY, NARROW]
    groups += [RELATIONAL, RELATIONAL_SOURCES, RELATIONAL_TINY, NORMED, PER_IMAGE, LAPTOP, HOUR]
    assert [len(group) for group in groups] == [45, 18, 13, 5, 2, 2, 18, 2, 7, 3, 23, 40, 4]
    names = [WITHOUT_DROPOUT, *(name for group in groups for name in group)]
    assert sorted(RECIPES) == sorted(names)
    assert len(RECIPES) == 183
    assert all(name == recipe.name for name, recipe in RECIPES.items())


@pytest.mark.parametrize("name", RECIPES)
def test_a_search_for_the_name_of_a_recipe_finds_its_definition(name: str) -> None:
    sources = [path.read_text() for path in Path(recipes.__file__).parent.glob("*.py")]
    assert sum(f'"{name}"' in source for source in sources) >= 1


def test_a_table_has_its_rows_in_the_order_of_the_paper() -> None:
    last = (*PATCHED[:6], "cnn-rn", "cnn-mlp", *PATCHED[6:], *(f"{name}-p5" for name in PATCHED))
    assert {table: list(rows) for table, rows in TABLE_RECIPES.items()} == {
        "classification": list(TABLE_1),
        "ablations": [*ABLATIONS, *NOT_PUBLISHED],
        "relational": list(last),
    }
    for table, rows in TABLE_RECIPES.items():
        for row, names in rows.items():
            sets = ["sort-of-clevr"] if table == "relational" else SETS
            assert names == tuple(f"{data}-{row}" for data in sets)


def test_an_unknown_recipe_is_an_error_that_lists_the_three_closest_names() -> None:
    assert find_recipe("cifar10-luna-lra") is RECIPES["cifar10-luna-lra"]
    with pytest.raises(UserError, match=r"no recipe 'cifar10-ait-smal'; closest first: ") as error:
        find_recipe("cifar10-ait-smal")
    names = str(error.value).partition("closest first: ")[2].partition(";")[0].split(", ")
    assert len(set(names)) == len(names) == 3
    assert set(names) <= set(RECIPES)
    assert names[:2] == ["cifar10-ait-small", "cifar100-ait-small"]
    with pytest.raises(UserError, match=r"closest first: [a-z]"):  # even if nothing is similar
        find_recipe("???")


# --- the first table ---


@pytest.mark.parametrize("name", EVERY_SET)
def test_a_row_has_its_model_on_every_data_set(name: str) -> None:
    data, _, model = name.partition("-")
    if data == "triangle":
        expected = on_triangle(model)
    else:
        expected = replace(model_of(model), num_classes=10 if data == "cifar10" else 100)
    assert RECIPES[name].model == expected


@pytest.mark.parametrize("name", OTHER_PATCHES)
def test_every_model_with_patches_has_a_recipe_for_triangle_with_the_other_patch_size(
    name: str,
) -> None:
    model, _, patch_size = name.removeprefix("triangle-").rpartition("-p")
    assert RECIPES[name].model == on_triangle(model, int(patch_size))
    usual = RECIPES[f"triangle-{model}"]
    assert usual.model == on_triangle(model, 36 - int(patch_size))
    assert (RECIPES[name].data, RECIPES[name].train) == (usual.data, usual.train)


@pytest.mark.parametrize("name", [*EVERY_SET, *OTHER_PATCHES, *ABLATED])
def test_all_rows_share_the_training_of_the_paper(name: str) -> None:
    assert RECIPES[name].train == PROTOCOL


@pytest.mark.parametrize("name", [*EVERY_SET, *OTHER_PATCHES, *ABLATED, *TINY, *NARROW])
def test_a_recipe_has_the_data_of_the_paper(name: str) -> None:
    changes: dict[str, Any] = {}
    if name == "triangle-ait-tiny":
        changes = {"channels": 1}  # the paper repeats the only channel
    elif name in ("cifar10-brims", "cifar100-brims"):
        changes = RAW
    assert RECIPES[name].data == data_of(name, **changes)


def test_exactly_the_models_that_look_up_pixels_get_them_unnormalized() -> None:
    expected = {n for n, r in RECIPES.items() if getattr(r.model, "takes_pixels", False)}
    brims = {f"{data}-brims" for data in (*SETS, "cifar10-laptop", "triangle-laptop")}
    assert expected == {*brims, "cifar10-brims-source", "cifar10-luna-lra"}
    raw = {n for n, r in RECIPES.items() if r.data.kind == "images" and not any(r.data.mean)}
    assert raw == expected - {"triangle-brims", "triangle-laptop-brims"}


@pytest.mark.parametrize("name", TABLE_1)
def test_a_row_has_the_published_size(name: str) -> None:
    live, total = count(RECIPES[f"cifar10-{name}"].model)
    size = TABLE_1[name].size
    assert (live, total) == PARAMETERS[name]
    if name == "luna-base":  # no image model has the published size
        assert round(total / 1e6, 1) == 106.4 != size
    elif size is not None:
        assert round(total / 1e6, 1) == size


@pytest.mark.parametrize(
    ("name", "live", "total"),
    [
        ("cifar100-vit-small", 19_224_004, None),
        ("cifar100-vit-base", 90_079_684, None),
        ("cifar100-set-transformer", None, 2_237_028),
        ("cifar100-brims", None, 4_416_500),
        # the sources have four classes: two more rows of 256 weights and a bias
        ("triangle-coordination-source", None, 1_948_678 - 2 * 257),
        ("triangle-set-transformer-source", None, 2_204_164 - 2 * 257),
        ("sort-of-clevr-coordination", None, 2_289_036),
        ("sort-of-clevr-coordination-source", None, 2_289_036),
        ("sort-of-clevr-set-transformer", None, 8_304_650),
        ("sort-of-clevr-set-transformer-source", None, 8_304_650),
        ("sort-of-clevr-dense-small-p5", 11_606_980, None),
        ("sort-of-clevr-dense-base-p5", 58_846_660, None),
    ],
)
def test_a_recipe_has_the_size_of_its_source(
    name: str, live: int | None, total: int | None
) -> None:
    counted = count(RECIPES[name].model)
    assert counted == (live or counted[0], total or counted[1])


def test_the_published_figures_of_the_first_table_are_those_of_the_paper() -> None:
    rows = {row.name: row for row in classification.ROWS}
    assert list(rows) == EVERY_SET
    for model, published in TABLE_1.items():
        recipes = [rows[f"{data}-{model}"] for data in SETS]
        assert [row.title for row in recipes] == [published.title] * 3
        assert tuple(row.published for row in recipes) == published[1:4]
        assert classification.PUBLISHED_SIZES.get(published.title) == published.size
    assert len(classification.PUBLISHED_SIZES) == sum(
        row.size is not None for row in TABLE_1.values()
    )
    assert classification.DATA_SETS == SETS
    assert set(classification.QUOTED) == {"Luna", "BRIMs", "Perceiver"}


def test_published_accuracies_are_written_out() -> None:
    written_out = {
        f"{data}-{model}": f"{accuracy:.2f} %"
        for model, row in TABLE_1.items()
        for data, accuracy in zip(SETS, row[1:4], strict=True)
        if accuracy is not None
    }
    for model, (binary, other) in TABLE_2.items():
        words = f"{binary:.2f} % binary" + (f", {other:.2f} % not" if other else "")
        written_out[f"sort-of-clevr-{model}"] = words
    assert written_out == PUBLISHED_TEXT
    assert PUBLISHED_TEXT["sort-of-clevr-ait-small"] == "76.82 % binary, 99.85 % not"
    assert PUBLISHED_TEXT["sort-of-clevr-ait-base"] == "80.03 % binary"
    assert PUBLISHED_TEXT["cifar100-ait-small"] == "56.30 %"


@pytest.mark.parametrize("name", TINY)
def test_the_small_recipes_are_short_and_have_no_published_accuracy(name: str) -> None:
    assert RECIPES[name].train.epochs <= 10
    assert count(RECIPES[name].model)[0] < 2e6  # for two cores
    assert name not in PUBLISHED_TEXT


@pytest.mark.parametrize("name", NARROW)
def test_a_narrow_recipe_differs_from_the_small_one_only_in_width_and_heads(name: str) -> None:
    small = RECIPES[name.replace("-192", "-small")]
    changed = {field: mine for field, (mine, _) in differences(RECIPES[name], small).items()}
    assert changed == {"name": name, "model.embed_dim": 192, "model.num_heads": 3}
    assert name not in PUBLISHED_TEXT
    assert all(name not in names for rows in TABLE_RECIPES.values() for names in rows.values())


# --- ablations ---


@pytest.mark.parametrize("name", ABLATED)
def test_an_ablation_differs_from_ait_small_in_one_field(name: str) -> None:
    data, _, change = name.partition("-ait-small-")
    full = RECIPES[f"{data}-ait-small"]
    changed = {
        field: mine
        for field, (mine, _) in differences(RECIPES[name], full).items()
        if field != "name"
    }
    assert changed == dict([CHANGES[change]])


@pytest.mark.parametrize(
    ("name", "full", "change"),
    [
        (WITHOUT_DROPOUT, "cifar10-ait-small", {"model.workspace.dropout": 0.0}),
        *((name, name[: -len("-norm")], {"model.use_output_norm": True}) for name in NORMED),
    ],
)
def test_a_recipe_that_the_paper_lacks_differs_in_one_field_and_is_not_published(
    name: str, full: str, change: dict[str, object]
) -> None:
    pairs = differences(RECIPES[name], RECIPES[full])
    assert {field: mine for field, (mine, _) in pairs.items() if field != "name"} == change
    assert name not in PUBLISHED_TEXT


def test_the_write_has_dropout_in_every_memory_of_a_batch_except_for_its_ablations() -> None:
    rates = {
        name: recipe.model.workspace.dropout
        for name, recipe in RECIPES.items()
        if isinstance(recipe.model, AiTConfig) and recipe.model.workspace.scope == "batch"
    }
    assert len(rates) > 40
    assert {name for name, rate in rates.items() if rate != 0.1} == {
        name for name in rates if "nodropout" in name
    }


def test_the_published_averages_of_the_ablations_are_those_of_the_paper() -> None:
    rows = {row.recipes: (row.title, row.average) for row in ablations.ROWS}
    unpublished = {name: (title, None) for name, title in NOT_PUBLISHED.items()}
    assert list(rows.items()) == [
        (tuple(f"{data}-{name}" for data in SETS), published)
        for name, published in (ABLATIONS | unpublished).items()
    ]
    averages = {row: round(sum(TABLE_1[row][1:4]) / 3, 2) for row in ("ait-small", "vit-small")}
    assert averages == {row: ABLATIONS[row][1] for row in averages}


# --- recipes from the source papers ---


def constant(lr: float) -> Schedule:
    return Schedule(warmup_epochs=0, min_lr=lr)


@pytest.mark.parametrize("model", ["coordination", "set-transformer"])
def test_triangle_is_trained_as_in_shared_workspace(model: str) -> None:
    recipe = RECIPES[f"triangle-{model}-source"]
    assert recipe.data == data_of("triangle", channels=1, raw=True)
    cosine = Schedule(warmup_epochs=0, min_lr=0.0)
    assert recipe.train == replace(
        PROTOCOL, epochs=200, batch_size=64, lr=1e-4, weight_decay=0.0, schedule=cosine
    )
    assert learning_rate(recipe.train, 0) == 1e-4
    assert learning_rate(recipe.train, 100) == pytest.approx(0.5e-4)
    expected = replace(on_triangle(model, 4), num_channels=1)
    if model == "coordination":
        expected = replace(expected, mlp_ratio=512 / 256)
    assert recipe.model == expected


@pytest.mark.parametrize("model", ["coordination", "set-transformer"])
def test_sort_of_clevr_is_trained_on_all_types_at_a_constant_rate_as_in_shared_workspace(
    model: str,
) -> None:
    recipe, row = RECIPES[f"sort-of-clevr-{model}-source"], RECIPES[f"sort-of-clevr-{model}"]
    types = ("non-relational", "binary", "ternary")
    assert recipe.data == replace(row.data, question_types=types)
    assert recipe.model == row.model
    assert recipe.train == replace(
        PROTOCOL, batch_size=64, weight_decay=0.0, schedule=constant(1e-4)
    )
    assert {learning_rate(recipe.train, epoch) for epoch in (0, 50, 99)} == {1e-4}


def test_the_perceiver_is_trained_as_in_the_example_of_its_package() -> None:
    recipe = RECIPES["cifar10-perceiver-source"]
    assert recipe.data == data_of("cifar10")
    assert recipe.model == replace(
        model_of("perceiver"),
        depth=3,
        num_latents=128,
        latent_dim=128,
        num_heads=4,
        num_selfs=2,
        dropout=0.1,
        fourier=FourierConfig(num_bands=6, max_freq=10.0),
    )
    schedule = recipe.train.schedule
    assert recipe.train == replace(
        PROTOCOL,
        epochs=20,
        batch_size=128,
        lr=1e-3,
        weight_decay=1e-4,
        clip_norm=1.0,
        schedule=schedule,
    )
    # torch's defaults: a rise over 30 % from lr / 25, a fall to a ten-thousandth of that
    assert schedule == Schedule(
        warmup_epochs=6, warmup_lr=1e-3 / 25, min_lr=1e-3 / 25 / 1e4, shape="one_cycle"
    )


def test_brims_is_trained_as_in_its_source() -> None:
    recipe = RECIPES["cifar10-brims-source"]
    assert recipe.data == data_of("cifar10", augment="none", val_fraction=0.2, **RAW)
    assert recipe.model == model_of("brims")
    assert recipe.train == replace(
        PROTOCOL, batch_size=64, lr=1e-3, weight_decay=0.0, clip_norm=1.0, schedule=constant(1e-3)
    )
    assert {learning_rate(recipe.train, epoch) for epoch in (0, 50, 99)} == {1e-3}


def test_luna_is_trained_on_gray_pixels_as_in_the_long_range_arena() -> None:
    recipe = RECIPES["cifar10-luna-lra"]
    assert recipe.data == data_of("cifar10", augment="none", **RAW)
    sizes = {"patch_size": 1, "embed_dim": 64, "depth": 1, "num_heads": 8, "mlp_ratio": 128 / 64}
    sizes |= {"vocabulary": 256, "num_packed": 256, "dropout": 0.3, "attention_dropout": 0.1}
    assert recipe.model == replace(model_of("luna-small"), **sizes)
    assert count(recipe.model)[0] == pytest.approx(80_000, rel=0.02)
    schedule = Schedule(warmup_epochs=20, warmup_lr=0.0, shape="inverse_sqrt")
    assert recipe.train == replace(
        PROTOCOL,
        epochs=180,
        batch_size=256,
        lr=5e-3,
        betas=(0.9, 0.98),
        weight_decay=0.0,
        schedule=schedule,
    )
    updates_per_epoch = 50_000 // 256
    assert 180 * updates_per_epoch == pytest.approx(35_000, rel=0.01)
    assert 20 * updates_per_epoch == pytest.approx(4_000, rel=0.03)


# --- relational reasoning ---


@pytest.mark.parametrize("name", RELATIONAL)
def test_a_relational_recipe_has_the_model_of_its_name(name: str) -> None:
    model = name.removeprefix("sort-of-clevr-").removesuffix("-p5")
    sizes = {"image_size": 75, "num_channels": 3, "num_classes": 10, "question_dim": 18}
    if model.startswith("cnn"):
        sizes |= {"conv_dim": 24, "num_convs": 4, "hidden_dim": 256, "dropout": 0.5}
        if model == "cnn-mlp":
            assert RECIPES[name].model == ConvMLPConfig(**sizes)
        else:
            relations = RelationNetworkConfig(**sizes, num_objects=2, num_relation_layers=4)
            assert RECIPES[name].model == relations
        return
    sizes |= {"patch_size": 5 if name.endswith("-p5") else 15}
    if model.startswith("dense"):
        depth = DEPTHS[model.partition("-")[2]]
        expected = DenseConfig(**sizes, depth=depth, embed_dim=768, mlp_ratio=4.0, pos="none")
    else:
        expected = replace(model_of(model), **sizes)
    if model == "coordination":  # flags of the source on this set
        slots = replace(expected.slots, bottleneck=5, mlp_depth=4)
        expected = replace(expected, mlp_ratio=512 / 256, slots=slots)
    elif model == "set-transformer":
        expected = replace(expected, hidden_dim=512)
    assert RECIPES[name].model == expected


@pytest.mark.parametrize("name", RELATIONAL)
def test_all_relational_recipes_share_one_training(name: str) -> None:
    assert RECIPES[name].train == replace(PROTOCOL, batch_size=64)


@pytest.mark.parametrize("name", RELATIONAL)
def test_a_relational_recipe_asks_both_types_of_questions_about_9800_pictures(name: str) -> None:
    assert RECIPES[name].data == SortOfClevrConfig(
        num_train=9_800,
        num_test=200,
        num_questions=10,
        question_types=("non-relational", "binary"),
        strict=True,
        seed=0,
        val_fraction=0.0,
    )


@pytest.mark.parametrize("name", RELATIONAL)
def test_a_relational_recipe_has_its_known_size(name: str) -> None:
    live, _ = count(RECIPES[name].model)
    model = name.removeprefix("sort-of-clevr-").removesuffix("-p5")
    finer = 0
    if name.endswith("-p5"):
        tokens, pixels = 75 // 5 * 75 // 5 - 5 * 5, 3 * (5 * 5 - 15 * 15)
        finer = tokens * 768 * (10 + 2) + pixels * (768 + 2)  # head and patches with their norms
        if model in ("coordination", "set-transformer"):  # no norms, no head of all tokens
            finer = pixels * 256
    assert live == RELATIONAL_LIVE[model] + finer
    if model in ("ait-small", "ait-medium", "ait-base"):
        # compared with CIFAR-10: 64 patches of 48 numbers and no question
        question, pixels, tokens = 18 * 768 + 768 + 2 * 768 + 2 * 18, 675 - 48, 26 - 64
        expected = PARAMETERS[model][0] + question + pixels * (768 + 2) + tokens * 768 * (10 + 2)
        assert RELATIONAL_LIVE[model] == expected


def test_the_published_relational_accuracies_are_those_of_the_paper() -> None:
    assert {f"sort-of-clevr-{model}": row for model, row in TABLE_2.items()} == (
        relational.PUBLISHED
    )


@pytest.mark.parametrize("name", RELATIONAL_TINY)
def test_the_small_relational_recipes_are_short_and_otherwise_like_the_large_ones(
    name: str,
) -> None:
    tiny, kind = RECIPES[name], name.removesuffix("-tiny")
    large = RECIPES.get(kind) or RECIPES[f"{kind}-small"]
    assert tiny.data == replace(large.data, num_train=tiny.data.num_train)
    assert tiny.data.num_train < large.data.num_train
    assert type(tiny.model) is type(large.model)
    assert tiny.train.epochs < large.train.epochs
    first = RECIPES[RELATIONAL_TINY[0]]
    assert (tiny.data, tiny.train) == (first.data, first.train)
    assert name not in PUBLISHED_TEXT
    assert count(tiny.model)[0] < 1e6


# --- budgets ---


def changes_of(mine: Experiment, recipe: Experiment) -> dict[str, object]:
    """Return the fields, except for the name, that differ from the recipe."""
    changed = differences(mine, recipe)
    return {field: value for field, (value, _) in changed.items() if field != "name"}


def test_the_full_budget_is_the_recipe_itself() -> None:
    assert BUDGETS == ("paper", "short", "smoke")
    assert all(shorten(recipe, "paper") is recipe for recipe in RECIPES.values())


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("cifar10-ait-small", {"train.epochs": 10, "train.schedule.warmup_epochs": 1}),
        ("sort-of-clevr-cnn-rn", {"train.epochs": 10, "train.schedule.warmup_epochs": 1}),
        ("triangle-coordination-source", {"train.epochs": 10}),  # without warm-up
        ("cifar10-perceiver-source", {"train.epochs": 10, "train.schedule.warmup_epochs": 1}),
        ("triangle-ait-tiny", {}),  # already shorter
    ],
)
def test_a_short_budget_has_ten_epochs_with_one_epoch_of_warm_up(
    name: str, short: dict[str, object]
) -> None:
    assert changes_of(shorten(RECIPES[name], "short"), RECIPES[name]) == short


@pytest.mark.parametrize("name", RECIPES)
def test_a_smoke_budget_has_one_epoch_of_few_images_and_as_many_test_images(
    name: str,
) -> None:
    recipe = RECIPES[name]
    images = 100 if name.startswith("cifar100-") else 40
    expected: dict[str, object] = {"train.epochs": 1, "train.batch_size": 20}
    if recipe.data.kind == "images":
        expected["data.limit"] = images
    else:
        expected |= {"data.num_train": images, "data.num_test": images}
    if recipe.data.kind == "sort-of-clevr":
        expected["data.num_questions"] = 1
    assert changes_of(shorten(recipe, "smoke"), recipe) == expected


@pytest.mark.parametrize("budget", BUDGETS[1:])
@pytest.mark.parametrize("name", RECIPES)
def test_a_shorter_training_is_named_like_one_with_overrides(name: str, budget: Budget) -> None:
    recipe = RECIPES[name]
    shortened = shorten(recipe, budget)
    if not changes_of(shortened, recipe):
        assert shortened is recipe
    else:
        own_name = replace(shortened, name=name)
        assert shortened.name == f"{name}+{fingerprint(own_name)}"


def test_different_trainings_have_different_names() -> None:
    named: dict[str, list[Experiment]] = {}
    for recipe in RECIPES.values():
        for budget in BUDGETS:
            experiment = shorten(recipe, budget)
            named.setdefault(experiment.name, []).append(experiment)
    assert all(same == [same[0]] * len(same) for same in named.values())
    shorter = {name for name, recipe in RECIPES.items() if recipe.train.epochs <= 10}
    others = {name for name in PER_IMAGE if not name.endswith("-small")}
    shorter_ones = {name for name in shorter if name not in others}
    assert shorter_ones == {*TINY, *RELATIONAL_TINY, *LAPTOP}
    assert shorter & others == {name for name in others if name.startswith("cifar10-")}
    assert len(named) == 3 * len(RECIPES) - len(shorter)
