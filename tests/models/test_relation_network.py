"""CNN+RN and CNN+MLP against slow loops, and their differences from the reference code."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from associative_transformer.models import build_model, load_model, relation_network
from associative_transformer.models.relation_network import (
    CNN_MLP,
    CNN_RN,
    ConvMLP,
    ConvMLPConfig,
    RelationNetwork,
    RelationNetworkConfig,
)
from twins import naive

Config = RelationNetworkConfig | ConvMLPConfig
PAIRS = RelationNetworkConfig(  # a grid of 3 by 3
    image_size=10,
    num_channels=2,
    num_classes=4,
    question_dim=3,
    conv_dim=3,
    num_convs=2,
    hidden_dim=5,
    num_relation_layers=3,
    dropout=0.0,
)
TRIPLES = replace(PAIRS, image_size=5, num_objects=3)  # a grid of 2 by 2
MLP = ConvMLPConfig(
    image_size=10,
    num_channels=2,
    num_classes=4,
    question_dim=3,
    conv_dim=3,
    num_convs=2,
    hidden_dim=5,
    dropout=0.0,
)
CONFIGS: dict[str, Config] = {"pairs": PAIRS, "triples": TRIPLES, "mlp": MLP}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def shaken(model: nn.Module) -> nn.Module:
    """Return the module in float64 with random weights and statistics, so that each shows."""
    with torch.no_grad():
        for key, value in model.double().state_dict().items():
            if key.endswith("running_var"):
                value.uniform_(0.5, 2.0)
            elif value.is_floating_point():
                value.normal_()
    return model


def inputs_of(config: Config, batch: int) -> tuple[Tensor, Tensor | None]:
    size = config.image_size
    images = torch.randn(batch, config.num_channels, size, size, dtype=torch.float64)
    questions = torch.randn(batch, config.question_dim, dtype=torch.float64)
    return images, questions if config.question_dim else None


def affine(module: nn.Module) -> naive.Affine:
    return naive.Affine(module.weight, module.bias)


def affines(layers: nn.Module) -> list[naive.Affine]:
    return [affine(layer) for layer in layers.children() if isinstance(layer, nn.Linear)]


def slow(model: nn.Module, images: Tensor, questions: Tensor | None) -> Tensor:
    """Compute the logits with the loops."""
    layers = list(model.stem)
    stem = [
        naive.ConvLayer(affine(conv), affine(norm), norm.running_mean, norm.running_var)
        for conv, norm in zip(layers[::3], layers[2::3], strict=True)
    ]
    if questions is None:
        questions = images.new_zeros(len(images), 0)
    if isinstance(model, ConvMLP):
        return naive.conv_mlp(images, questions, stem, affines(model.mlp), model.training)
    g, f, k = affines(model.g), affines(model.f), model.config.num_objects
    return naive.relation_network(images, questions, stem, g, f, k, model.training)


def tuples_of(objects: Tensor, questions: Tensor, num_objects: int) -> Tensor:
    """Return the input of g for every pair or triple: (B, N, F), (B, Q) to (B, N^k, kF + Q)."""
    rows = [
        torch.cat([*(objects[:, i] for i in indices), questions], dim=1)
        for indices in product(range(objects.shape[1]), repeat=num_objects)
    ]
    return torch.stack(rows, dim=1)


@every_config
@pytest.mark.parametrize("question_dim", [0, 3])
@pytest.mark.parametrize("training", [True, False])
def test_logits_and_gradients_equal_the_loops(
    config: Config, question_dim: int, training: bool
) -> None:
    config = replace(config, question_dim=question_dim)
    model = shaken(build_model(config)).train(training)
    images, questions = inputs_of(config, 2)
    inputs = [x.requires_grad_() for x in (images, questions) if x is not None]
    inputs += model.parameters()
    expected, logits = slow(model, images, questions), model(images, questions).logits
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    cotangent = torch.randn_like(expected)
    mine = torch.autograd.grad(logits, inputs, cotangent)
    theirs = torch.autograd.grad(expected, inputs, cotangent)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * float(b.abs().max() + 1))


@pytest.mark.parametrize("num_objects", [2, 3])
def test_in_float32_the_factorized_layer_equals_the_plain_one(num_objects: int) -> None:
    model = build_model(replace(CNN_RN, num_objects=num_objects))
    assert isinstance(model, RelationNetwork)
    objects, questions = torch.randn(3, 6, 26, requires_grad=True), torch.randn(3, 18)
    plain = model.g(tuples_of(objects, questions, num_objects)).sum(dim=1)
    fast = model.sum_relations(objects, questions)
    inputs, cotangent = [objects, *model.g.parameters()], torch.randn_like(plain)
    results = [(plain, fast)]
    results += zip(
        torch.autograd.grad(plain, inputs, cotangent),
        torch.autograd.grad(fast, inputs, cotangent),
        strict=True,
    )
    for a, b in results:
        assert (a - b).abs().max() <= 1e-5 * a.abs().max()


@pytest.mark.parametrize("config", [PAIRS, TRIPLES], ids=["pairs", "triples"])
def test_g_reads_every_ordered_pair_or_triple_including_repeated_objects(
    config: RelationNetworkConfig,
) -> None:
    k = config.num_objects
    width = k * (config.conv_dim + 2) + config.question_dim
    model = build_model(replace(config, hidden_dim=width)).double()
    assert isinstance(model, RelationNetwork)
    with torch.no_grad():  # so that the output of the first layer of g is its input
        model.g[0].weight.copy_(torch.eye(width))
        model.g[0].bias.zero_()
    captured: list[Tensor] = []
    model.g[1].register_forward_pre_hook(lambda _, args: captured.append(args[0].clone()))
    images, questions = inputs_of(config, 2)
    assert questions is not None
    model.eval()(images, questions)
    expected = tuples_of(model.find_objects(images), questions, k)
    assert expected.shape[1] == model.stem.side ** (2 * k)
    torch.testing.assert_close(torch.cat(captured), expected)


@pytest.mark.parametrize("num_objects", [2, 3])
def test_relations_are_summed_not_averaged(num_objects: int) -> None:
    model = build_model(replace(PAIRS, num_objects=num_objects))
    assert isinstance(model, RelationNetwork)
    objects, questions = torch.randn(2, 1, 5), torch.randn(2, 3)
    alone = model.sum_relations(objects, questions)
    many = model.sum_relations(objects.expand(2, 4, 5), questions)
    torch.testing.assert_close(many, 4**num_objects * alone)


@pytest.mark.parametrize("num_objects", [2, 3])
def test_relations_do_not_depend_on_the_order_of_the_objects(num_objects: int) -> None:
    model = build_model(replace(PAIRS, num_objects=num_objects)).double()
    assert isinstance(model, RelationNetwork)
    objects = torch.randn(2, 6, 5, dtype=torch.float64)
    questions = torch.randn(2, 3, dtype=torch.float64)
    expected = model.sum_relations(objects, questions)
    for _ in range(3):
        shuffled = objects[:, torch.randperm(6)]
        torch.testing.assert_close(model.sum_relations(shuffled, questions), expected)


@pytest.mark.parametrize("batch", [1, 5, 8, 11])
@pytest.mark.parametrize("images_at_once", [1, 4, 8])
def test_logits_do_not_depend_on_how_many_images_pass_g_together(
    batch: int, images_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(PAIRS).double()
    images, questions = inputs_of(PAIRS, batch)
    results, calls = [], []
    model.g[1].register_forward_hook(lambda *_: calls.append(1))
    for relations in (10**9, 81 * images_at_once):
        monkeypatch.setattr(relation_network, "CPU_RELATIONS", relations)
        logits = model(images, questions).logits
        gradients = torch.autograd.grad(logits.square().sum(), list(model.parameters()))
        results.append([logits, *gradients])
    assert len(calls) == 1 + -(-batch // images_at_once)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_a_cpu_takes_few_images_together_and_any_other_device_many() -> None:
    pairs, triples = build_model(CNN_RN), build_model(replace(CNN_RN, num_objects=3))
    assert isinstance(pairs, RelationNetwork) and isinstance(triples, RelationNetwork)
    objects = torch.randn(64, 25, 26)
    assert pairs.chunk_size(objects) == 8
    assert triples.chunk_size(objects) == 1
    assert pairs.chunk_size(objects.to("meta")) == 3200
    assert triples.chunk_size(objects.to("meta")) == 128


def coordinates_of(image_size: int, num_convs: int) -> list[list[float]]:
    model = build_model(replace(CNN_RN, image_size=image_size, num_convs=num_convs))
    assert isinstance(model, RelationNetwork)
    images = torch.randn(2, 3, image_size, image_size)
    coordinates = model.find_objects(images)[:, :, -2:]
    assert torch.equal(coordinates[0], coordinates[1])
    return coordinates[0].tolist()


def test_coordinates_go_from_minus_one_to_one_and_the_row_is_constant_along_a_row() -> None:
    steps = [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert coordinates_of(75, 4) == [[row, column] for row in steps for column in steps]
    assert coordinates_of(3, 1) == [[-1, -1], [-1, 1], [1, -1], [1, 1]]


def test_a_single_cell_has_coordinates_of_zero() -> None:
    assert coordinates_of(2, 1) == [[0, 0]]


def test_objects_are_the_cells_of_the_grid_in_raster_order() -> None:
    model = build_model(PAIRS).eval().double()
    assert isinstance(model, RelationNetwork)
    images, _ = inputs_of(PAIRS, 2)
    objects, grid = model.find_objects(images), model.stem(images)
    for index, (row, column) in enumerate(product(range(3), repeat=2)):
        assert torch.equal(objects[:, index, :3], grid[:, :, row, column])


@pytest.mark.parametrize("size", [1, 4, 10, 16, 17, 75])
@pytest.mark.parametrize("num_convs", [1, 2, 4])
def test_the_stem_knows_the_side_of_its_grid(size: int, num_convs: int) -> None:
    stem = relation_network.ConvEncoder(replace(CNN_RN, image_size=size, num_convs=num_convs))
    assert stem.eval()(torch.randn(1, 3, size, size)).shape == (1, 24, stem.side, stem.side)


@pytest.mark.parametrize("config", [CNN_RN, CNN_MLP], ids=lambda config: config.kind)
def test_dropout_acts_only_in_training(config: Config) -> None:
    model = build_model(config)
    images, questions = torch.rand(2, 3, 75, 75), torch.randn(2, 18)
    first, second = (model(images, questions).logits for _ in range(2))
    assert not torch.equal(first, second)
    first, second = (model.eval()(images, questions).logits for _ in range(2))
    assert torch.equal(first, second)


@every_config
def test_batchnorm_statistics_change_only_in_training_and_are_saved(
    config: Config, tmp_path: Path
) -> None:
    model = build_model(config)
    before = {key: value.clone() for key, value in model.named_buffers() if "running" in key}
    images, questions = (None if x is None else x.float() for x in inputs_of(config, 4))
    model(images, questions)
    assert len(before) == 2 * config.num_convs
    for key, value in before.items():
        assert not torch.equal(model.state_dict()[key], value), key
    model.eval().save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert torch.equal(loaded(images, questions).logits, model(images, questions).logits)


def test_the_saved_weights_are_those_of_plain_linear_layers() -> None:
    weights = build_model(CNN_RN).state_dict()
    shapes = {key: tuple(value.shape) for key, value in weights.items() if key.startswith("g.")}
    layers = {f"g.{i}.{leaf}" for i in (0, 2, 4, 6) for leaf in ("weight", "bias")}
    assert shapes.keys() == layers
    assert shapes["g.0.weight"] == (256, 26 + 26 + 18) and shapes["g.6.weight"] == (256, 256)
    assert "coordinates" not in weights


@every_config
def test_an_image_of_another_size_is_an_error(config: Config) -> None:
    size = config.image_size
    with pytest.raises(ValueError, match=f"{size}, {size}.*, not .*{size}, {size + 1}"):
        build_model(config)(torch.randn(2, 2, size, size + 1), torch.randn(2, 3))


@every_config
def test_a_missing_or_unexpected_question_is_an_error(config: Config) -> None:
    images = torch.randn(2, 2, config.image_size, config.image_size)
    with pytest.raises(ValueError, match="questions of shape"):
        build_model(config)(images)
    with pytest.raises(ValueError, match="no questions"):
        build_model(replace(config, question_dim=0))(images, torch.randn(2, 3))
