"""Speed and memory: turns, warm-up, arithmetic, and the functions that are timed."""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from associative_transformer import bench, functional, kernels
from associative_transformer.bench import (
    Benchmark,
    PoolSizes,
    Variant,
    Workload,
    find_precision,
    find_variant,
    loading,
    loading_benchmarks,
    measure,
    model_benchmark,
    timing,
    write_benchmarks,
)
from associative_transformer.bench.pool import build_workspace, count_write, prepare_write
from associative_transformer.bench.timing import (
    matrix_product,
    measure_memory,
    peak_memory,
    time_in_turn,
)
from associative_transformer.bench.variants import TimmViT, prepare_model
from associative_transformer.data import ImagesConfig, SortOfClevrConfig, TriangleConfig
from associative_transformer.data.loaders import ResidentLoader, StreamingLoader
from associative_transformer.experiment import Experiment, TrainConfig
from associative_transformer.interface import UserError
from associative_transformer.kernels import PoolAttention, sparse
from associative_transformer.models import build_model, count_operations
from associative_transformer.models.ait import AiT
from associative_transformer.models.relation_network import ConvMLPConfig
from associative_transformer.models.vit import ViTConfig
from associative_transformer.recipes import RECIPES
from associative_transformer.training.computing import random_batch
from associative_transformer.workspace import GlobalWorkspace
from associative_transformer.workspace_config import WorkspaceConfig

CPU = torch.device("cpu")
VIT = ViTConfig(
    image_size=64,
    patch_size=32,
    num_channels=1,
    num_classes=2,
    embed_dim=16,
    num_heads=2,
    head_dim=8,
)
TRAIN = TrainConfig(batch_size=4, device="cpu", precision="float32")
HALF = replace(TRAIN, precision="bfloat16")
SMALL = Experiment("small", TriangleConfig(num_train=20, num_test=4, channels=1), VIT, TRAIN)
ASKED = Experiment(
    "asked",
    SortOfClevrConfig(),
    ConvMLPConfig(conv_dim=2, hidden_dim=4),
    replace(TRAIN, batch_size=3),
)
MEMORY = WorkspaceConfig(num_priors=3, prior_dim=4, num_heads=2, bottleneck=5, dropout=0.0)
POOL = PoolSizes(12, 6, MEMORY)
SetTimes = Callable[[dict[str, list[float]]], None]


# --- turns ---


class Clock:
    """A clock that only moves when a function runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.calls: list[str] = []
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)

    def function(self, name: str, seconds: list[float]) -> Callable[[], None]:
        """Return a function whose successive calls take these seconds."""
        left = iter(seconds)

        def run() -> None:
            self.calls.append(name)
            self.now += next(left)

        return run


def test_functions_take_turns_and_the_first_two_rounds_do_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    runs = {"a": clock.function("a", [64.0, 32.0, 1.0, 2.0, 4.0])}
    runs["b"] = clock.function("b", [64.0, 32.0, 0.5, 0.25, 8.0])
    assert time_in_turn(runs, 3, CPU) == {"a": [1.0, 2.0, 4.0], "b": [0.5, 0.25, 8.0]}
    assert clock.calls == ["a", "b"] * 5


def test_each_call_is_synchronized_with_the_gpu_before_and_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    wait = clock.function("wait", [1.0] * 99)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: wait())
    run = clock.function("a", [10.0] * 3)
    # the wait after a call is part of its time, the wait before it is not
    assert time_in_turn({"a": run}, 1, torch.device("cuda")) == {"a": [11.0]}
    assert clock.calls == ["wait", "a", "wait"] * 3


@pytest.mark.parametrize("train", [TRAIN, HALF], ids=lambda train: train.precision)
def test_the_matrix_product_has_the_precision_of_the_run(
    train: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "CPU_MATRIX_SIZE", 8)
    multiply, operations = matrix_product(CPU, train.precision)
    product = multiply()
    assert isinstance(product, torch.Tensor)
    assert (product.shape, product.dtype) == ((8, 8), getattr(torch, train.precision))
    assert operations == 2 * 8**3


# --- figures ---


@pytest.fixture
def set_times(monkeypatch: pytest.MonkeyPatch) -> SetTimes:
    """Set the seconds that the benchmarks and the matrix product take in each round."""

    def set_times(seconds: dict[str, list[float]]) -> None:
        def time(
            runs: dict[str, object], rounds: int, device: torch.device
        ) -> dict[str, list[float]]:
            assert (list(runs), rounds, device.type) == (list(seconds), 3, "cpu")
            return seconds

        monkeypatch.setattr(bench, "time_in_turn", time)

    monkeypatch.setattr(timing, "CPU_MATRIX_SIZE", 10)
    return set_times


def nothing() -> Callable[[], object]:
    return int


def test_figures_follow_from_the_medians_of_the_rounds(
    set_times: SetTimes, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    def memory(name: str, prepare: object, device: torch.device, excluded: int | None) -> float:
        calls.append((name, prepare, device.type, excluded))
        return len(calls) / 8

    monkeypatch.setattr(bench, "measure_memory", memory)
    set_times({"a": [9.0, 2.0, 1.0], "b": [0.5, 0.5, 8.0], "matrix product": [4.0, 0.25, 0.5]})
    benchmarks = [
        Benchmark("a", nothing, samples=4, operations=1_000),
        Benchmark("b", nothing, samples=8, batches=10, excluded_bytes=7),
    ]
    a, b = measure(benchmarks, "b", TRAIN, 3)
    assert (a.name, a.milliseconds, a.samples_per_second) == ("a", 2_000.0, 2.0)
    assert (b.name, b.milliseconds, b.samples_per_second) == ("b", 50.0, 160.0)
    assert (a.times_rival, b.times_rival) == (40.0, 1.0)
    assert (a.best_times_rival, b.best_times_rival) == (20.0, 1.0)
    assert a.peak_share == (1_000 / 2.0) / (2 * 10**3 / 0.5)  # with the median product
    assert b.peak_share is None
    assert calls == [("a", nothing, "cpu", None), ("b", nothing, "cpu", 7)]
    assert (a.peak_memory, b.peak_memory) == (1 / 8, 2 / 8)
    assert measure(benchmarks, "a", TRAIN, 3, use_memory=False)[1].times_rival == 1 / 40
    assert len(calls) == 2


@pytest.mark.parametrize(("workload", "passes"), [("step", 3), ("infer", 1)])
def test_a_backward_pass_counts_as_two_forward_passes(workload: Workload, passes: int) -> None:
    for experiment, size in ((SMALL, 4), (ASKED, 3)):
        benchmark = model_benchmark(Variant(experiment), workload)
        assert (benchmark.name, benchmark.samples) == (experiment.name, size)
        assert benchmark.excluded_bytes is None
        assert benchmark.operations == passes * count_operations(experiment.model) * size


def test_two_small_models_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "CPU_MATRIX_SIZE", 64)
    in_this_process = lambda name, *rest: peak_memory(*rest)  # noqa: E731
    monkeypatch.setattr(bench, "measure_memory", in_this_process)
    benchmarks = [model_benchmark(Variant(experiment), "step") for experiment in (SMALL, ASKED)]
    measured = measure(benchmarks, "asked", TRAIN, 2)
    assert [row.name for row in measured] == ["small", "asked"]
    for row, size in zip(measured, (4, 3), strict=True):
        assert row.milliseconds > 0
        assert row.samples_per_second == pytest.approx(1e3 * size / row.milliseconds)
        assert row.peak_memory is not None
        assert 0.05 < row.peak_memory < 100  # in GiB, not in KiB or bytes
        assert row.peak_share is not None
        assert row.peak_share > 0


def test_auto_is_replaced_by_the_precision_that_it_selects() -> None:
    assert find_precision(replace(TRAIN, precision="auto")) == "float32"
    assert find_precision(TRAIN) == "float32"
    assert find_precision(HALF) == "bfloat16"


# --- models ---


@pytest.mark.parametrize("experiment", [SMALL, ASKED], ids=lambda e: e.name)
def test_a_random_batch_has_the_sizes_that_the_model_expects(experiment: Experiment) -> None:
    model, size = experiment.model, experiment.train.batch_size
    images, questions, labels = random_batch(experiment, size, CPU)
    assert images.shape == (size, model.num_channels, model.image_size, model.image_size)
    assert 0 <= images.min() < images.max() <= 1
    if model.question_dim:
        assert questions is not None
        assert questions.shape == (size, model.question_dim)
    else:
        assert questions is None
    assert labels.shape == (size,)
    assert 0 <= labels.min() <= labels.max() < model.num_classes


@pytest.mark.parametrize("experiment", [SMALL, ASKED], ids=lambda e: e.name)
def test_a_step_trains_and_inference_does_not(experiment: Experiment) -> None:
    built: list[nn.Module] = []

    def build(config: Any) -> nn.Module:  # noqa: ANN401
        built.append(build_model(config))
        return built[-1]

    variant = Variant(experiment, build)
    step, infer = prepare_model(variant, "step"), prepare_model(variant, "infer")
    trained, used = built
    before = [[p.clone() for p in model.parameters()] for model in built]
    step()
    first, second = infer(), infer()
    same = [
        all(map(torch.equal, old, model.parameters()))
        for old, model in zip(before, built, strict=True)
    ]
    assert same == [False, True]
    assert trained.training
    assert torch.equal(first.logits, second.logits)  # without dropout
    assert not first.logits.requires_grad
    assert not used.training


def test_precision_and_compilation_are_those_of_the_experiment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module, **_: compiled.append(module))
    assert prepare_model(Variant(SMALL), "infer")().logits.dtype == torch.float32
    prepare_model(Variant(SMALL), "step")
    assert compiled == []
    other = Variant(replace(SMALL, train=replace(HALF, compile="on")))
    infer = prepare_model(other, "infer")
    prepare_model(other, "step")
    dtypes: list[torch.dtype] = []
    first = next(module for module in compiled[0].modules() if type(module) is nn.Linear)
    first.register_forward_hook(lambda _, __, output: dtypes.append(output.dtype))
    assert infer().logits.dtype == torch.float32  # as in every head
    assert dtypes == [torch.bfloat16]
    assert len(compiled) == 2


@pytest.mark.parametrize("name", ["cifar10-ait-tiny", "plain:cifar10-ait-tiny"])
def test_a_variant_is_a_recipe_with_the_given_batch_size_precision_and_device(name: str) -> None:
    train = TrainConfig(precision="bfloat16", compile="on", device="cpu")
    recipe = RECIPES["cifar10-ait-tiny"]
    changed = replace(recipe.train, batch_size=8, precision="bfloat16", compile="on", device="cpu")
    variant = find_variant(name, train, 8)
    assert variant.experiment == replace(recipe, name=name, train=changed)


def test_a_variant_differs_from_its_recipe_as_its_prefix_says() -> None:
    names = [prefix + "cifar10-ait-tiny" for prefix in ("", "plain:", "dense:")]
    variants = [find_variant(name, TRAIN, 4) for name in names]
    models = [variant.build(variant.experiment.model) for variant in variants]
    attend, bottleneck = [], []
    for model in models:
        assert isinstance(model, AiT)
        attend.append({m.attend for m in model.modules() if isinstance(m, GlobalWorkspace)})
        bottleneck.append(model.config.workspace.bottleneck)
    plain = PoolAttention(functional.pooled_attention)
    assert attend == [{kernels.attend}, {plain}, {kernels.attend}]
    usual = RECIPES["cifar10-ait-tiny"].model.workspace.bottleneck
    assert bottleneck == [usual, usual, None]
    assert usual is not None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "plain:cifar10-vit-small",
            "'plain:' needs a recipe of an AiT, but cifar10-vit-small is not one",
        ),
        ("dense:cifar10-vit-small", "'dense:' needs a recipe of an AiT"),
        (
            "timm:cifar10-ait-small",
            "'timm:' needs a recipe of a ViT, but cifar10-ait-small is not one",
        ),
        ("triton:cifar10-ait-small", "needs a CUDA GPU"),
        (
            "fast:cifar10-vit-small",
            "unknown prefix 'fast:' in .*'plain:', 'triton:', 'dense:'",
        ),
        ("plain:cifar10-ait-smal", "no recipe 'cifar10-ait-smal'.*cifar10-ait-small"),
    ],
)
def test_an_unknown_variant_is_refused(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        find_variant(name, TRAIN, 4)


# --- timm ---


class FakeViT(nn.Module):
    """Replaces timm's class and records its arguments."""

    def __init__(self, **arguments: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.arguments = arguments
        self.to_logits = nn.Linear(1, arguments["num_classes"])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.to_logits(images.flatten(1).mean(dim=1, keepdim=True))


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("timm.models.vision_transformer")
    module.VisionTransformer = FakeViT  # type: ignore[attr-defined]
    for name in ("timm", "timm.models"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.parametrize(
    ("config", "choices"),
    [
        (VIT, {"global_pool": "avg", "class_token": False, "pos_embed": "none"}),
        (
            replace(VIT, head="cls", pos="learned", depth=3),
            {"global_pool": "token", "class_token": True, "pos_embed": "learn"},
        ),
    ],
    ids=["flatten", "cls"],
)
def test_timm_gets_the_shape_of_our_vit(
    config: ViTConfig, choices: dict[str, object], timm: None
) -> None:
    model = TimmViT(config)
    assert model.vit.arguments == choices | {
        "img_size": 64,
        "patch_size": 32,
        "in_chans": 1,
        "num_classes": 2,
        "embed_dim": 16,
        "depth": config.depth,
        "num_heads": 2,
        "mlp_ratio": 4.0,
        "qkv_bias": False,
    }
    logits, aux_loss = model(torch.rand(4, 1, 64, 64))
    assert logits.shape == (4, 2)
    assert aux_loss == 0


def test_timm_is_timed_like_a_recipe(timm: None) -> None:
    variant = find_variant("timm:cifar10-vit-small", TRAIN, 4)
    assert variant.experiment.name == "timm:cifar10-vit-small"
    assert variant.experiment.model == RECIPES["cifar10-vit-small"].model
    assert prepare_model(variant, "infer")().logits.shape == (4, 10)
    prepare_model(variant, "step")()


def test_the_error_without_timm_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm.models.vision_transformer", None)
    with pytest.raises(UserError, match=r"timm is not installed: pip install timm"):
        find_variant("timm:cifar10-vit-small", TRAIN, 4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"question_dim": 3}, "no questions"), ({"head_dim": 4}, r"2 \* 4 is not 16")],
    ids=["questions", "head_dim"],
)
def test_a_shape_that_timm_does_not_have_is_refused(
    changes: dict[str, int], words: str, timm: None
) -> None:
    with pytest.raises(UserError, match=words):
        bench.variants.check_timm(replace(VIT, **changes))


# --- the write alone ---


def test_the_write_is_timed_with_three_implementations() -> None:
    attend = {name: build_workspace(name, POOL).attend for name in ("sparse", "plain", "dense")}
    assert attend["sparse"].implementation is sparse.pooled_attention
    for name in ("plain", "dense"):
        assert attend[name].implementation is functional.pooled_attention
    benchmarks = write_benchmarks(POOL, TRAIN)
    assert [benchmark.name for benchmark in benchmarks] == list(attend)
    assert build_workspace("plain", POOL).config == POOL.config
    assert build_workspace("dense", POOL).config == replace(POOL.config, bottleneck=None)
    for benchmark in benchmarks:
        assert benchmark.samples == 12
        assert benchmark.excluded_bytes == 12 * 6 * 4  # the gradient of the tokens
        assert benchmark.operations == 3 * count_write(benchmark.name, POOL)


def test_the_operations_of_a_write_are_those_of_the_plain_implementation() -> None:
    heads, priors, width = 2, 3, 4
    maps = 2 * 12 * 6 * heads * width * 2  # keys and values
    maps += 2 * priors * width * heads * width * 2  # queries, and from values to priors
    similarity = 2 * heads * priors * width * 12
    taken = {"sparse": 5, "plain": 5, "dense": 12}
    for name, tokens in taken.items():
        value = 2 * heads * priors * width * tokens
        assert count_write(name, POOL) == maps + similarity + value


@pytest.mark.parametrize("name", ["sparse", "plain", "dense"])
def test_a_write_computes_the_gradient_of_priors_and_balance_loss_for_the_tokens(
    name: str,
) -> None:
    write = prepare_write(name, POOL, TRAIN)
    before = write.workspace.priors.clone()
    with torch.no_grad():
        write.workspace.norm.weight.uniform_()  # otherwise all sums of squares are equal
    loss = write()
    gradient = write.pool.grad.clone()
    assert gradient.abs().max() > 0
    write.workspace.attend = PoolAttention(functional.pooled_attention)
    pool = write.pool.detach().requires_grad_()
    written = write.workspace.write(pool)
    expected = written.priors.square().sum() + written.balance_loss
    assert torch.allclose(loss, expected)
    assert torch.allclose(gradient, torch.autograd.grad(expected, pool)[0], atol=1e-6)
    assert torch.allclose(write(), loss)  # neither memory nor gradient grows from call to call
    assert torch.allclose(write.pool.grad, gradient, atol=1e-6)
    assert torch.equal(write.workspace.priors, before)


def test_a_write_has_the_given_precision_and_is_compiled_on_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda function: compiled.append(function) or function)
    seen: list[torch.dtype] = []
    for train in (TRAIN, HALF, replace(TRAIN, compile="on")):
        write = prepare_write("plain", POOL, train)
        write.workspace.to_prior.register_forward_hook(lambda *args: seen.append(args[2].dtype))
        write()
    assert seen == [torch.float32, torch.bfloat16, torch.float32]
    assert len(compiled) == 1


# --- the data alone ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with images of two classes: ten for training, two for testing."""
    for split, number in (("train", 5), ("test", 1)):
        for name in ("cat", "dog"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for i in range(number):
                pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{i}.png")
    return tmp_path / "images"


def images_of(folder: Path, **changes: Any) -> Variant:  # noqa: ANN401
    data = ImagesConfig("mine", source=str(folder), image_size=8, num_workers=0, **changes)
    vit = replace(VIT, image_size=8, patch_size=4, num_channels=3)
    return Variant(Experiment("mine", data, vit, TRAIN))


def test_generated_data_is_timed_with_the_step_of_the_recipe() -> None:
    step, resident = loading_benchmarks(Variant(SMALL), 3)
    assert (step.name, step.batches, step.samples) == ("step", 1, 4)
    assert step.operations == 3 * 4 * count_operations(VIT)
    assert (resident.name, resident.batches, resident.samples) == ("resident", 3, 4)
    assert (resident.operations, resident.excluded_bytes) == (None, None)
    assert (
        loading_benchmarks(Variant(SMALL), 99)[1].batches == 5
    )  # no more than an epoch of 20 images
    step.prepare()()
    resident.prepare()()


def test_images_are_timed_resident_and_streaming_if_both_are_possible(folder: Path) -> None:
    step, resident, streaming = loading_benchmarks(images_of(folder), 2)
    assert [benchmark.name for benchmark in (step, resident, streaming)] == [
        "step",
        "resident",
        "streaming",
    ]
    loaders = [
        loading.open_training(benchmark.prepare.args[0], CPU).loader
        for benchmark in (resident, streaming)
    ]
    assert [type(loader) for loader in loaders] == [ResidentLoader, StreamingLoader]
    for only in ({"augment": "resized_crop"}, {"memory_budget": 0.0}):
        benchmarks = loading_benchmarks(images_of(folder, **only), 2)
        names = [benchmark.name for benchmark in benchmarks]
        assert names == ["step", "streaming"]


def test_a_round_loads_every_batch_and_each_round_is_another_epoch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[tuple[int, int, int]] = []
    train_batches = loading.Split.train_batches

    def watch(split: Any, batch_size: int, seed: int, epoch: int) -> Any:  # noqa: ANN401
        for batch in train_batches(split, batch_size, seed, epoch):
            taken.append((len(split), epoch, len(batch.labels)))
            yield batch

    monkeypatch.setattr(loading.Split, "train_batches", watch)
    run = loading_benchmarks(Variant(SMALL), 3)[1].prepare()
    run()
    run()
    assert taken == [(12, 0, 4)] * 3 + [(12, 1, 4)] * 3


def test_a_data_set_smaller_than_a_batch_is_refused() -> None:
    large = Variant(replace(SMALL, train=replace(TRAIN, batch_size=21)))
    with pytest.raises(UserError, match="20 images, fewer than one batch of 21"):
        loading_benchmarks(large, 3)


# --- memory ---


def block(mebibytes: int) -> Callable[[], object]:
    """Allocate memory and return a function that briefly allocates half as much in addition."""
    held = np.ones(mebibytes * 2**17)
    return lambda: held[: len(held) // 2].copy().sum()


@pytest.mark.thorough
@pytest.mark.slow
def test_memory_is_measured_in_a_separate_process() -> None:
    np.ones(2**26).sum()  # half a GiB in this process
    peak = timing.peak_bytes(CPU) / 2**30
    small = measure_memory("small", partial(prepare_model, Variant(SMALL), "step"), CPU)
    assert small < peak - 0.3
    large = Variant(replace(SMALL, train=replace(TRAIN, batch_size=8_192)))  # 1/8 GiB of pixels
    assert measure_memory("large", partial(prepare_model, large, "infer"), CPU) > small + 1 / 8


@pytest.mark.slow
def test_with_excluded_bytes_only_what_the_calls_add_counts() -> None:
    prepare = partial(block, 512)  # MiB, and 256 in the call, of which 128 are excluded
    assert measure_memory("block", prepare, CPU, excluded=2**27) == pytest.approx(0.125, abs=0.03)


@pytest.mark.thorough
@pytest.mark.slow
def test_the_plain_write_needs_memory_for_keys_and_values_and_the_sparse_one_does_not() -> None:
    sizes = PoolSizes(32_768, 64, WorkspaceConfig(num_heads=8, prior_dim=64, num_priors=4))
    memory = {
        each.name: measure_memory(each.name, each.prepare, CPU, each.excluded_bytes)
        for each in write_benchmarks(sizes, TRAIN)
        if each.name != "dense"
    }
    both = 2 * 4 * 32_768 * 8 * 64 / 2**30  # 0.125 GiB in the forward pass
    assert memory["plain"] > both
    assert memory["sparse"] < both / 2


def die() -> Callable[[], object]:
    os.kill(os.getpid(), signal.SIGKILL)
    return int


@pytest.mark.slow
def test_the_error_for_a_killed_process_names_the_benchmark() -> None:
    with pytest.raises(UserError, match=r"memory of small was killed: lower --batch-size or --to"):
        measure_memory("small", die, CPU)
