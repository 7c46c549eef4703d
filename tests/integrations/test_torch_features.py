"""What torch does with any module, done to models whose memory moves when they are called."""

import copy
import pickle
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.functional import cross_entropy

from associative_transformer.functional import pooled_attention
from associative_transformer.health import memory_health
from associative_transformer.interface import ModelOutput
from associative_transformer.kernels import PoolAttention
from associative_transformer.models import build_model
from associative_transformer.models.ait import AiT
from associative_transformer.workspace import GlobalWorkspace
from associative_transformer.workspace_config import WorkspaceConfig
from making.tiny import TINY, VARIANTS

CONFIGS = {"ait": TINY["ait"], "ait-image": VARIANTS["ait-image"], "vit": TINY["vit"]}
CLOSE = {"rtol": 1e-10, "atol": 1e-12}
LOW_PRECISION = {torch.float16: 0.005, torch.bfloat16: 0.04}
"""Types of numbers, and how much logits of about 1 may differ from those in float32."""

every_model = pytest.mark.parametrize("name", CONFIGS)
ignore_slow_rules = pytest.mark.filterwarnings("ignore:There is a performance drop")


def build(name: str) -> Any:  # noqa: ANN401
    return build_model(CONFIGS[name]).double()


def draw(batch: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 3, 8, 8, dtype=torch.float64), torch.arange(batch) % 5


def loss_of(output: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
    logits, aux_loss = output
    return cross_entropy(logits, labels) + aux_loss


def train_step(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Take one step of gradient descent; the forward pass moves the memory."""
    loss_of(model(images), labels).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    model.zero_grad()


def memories(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def assert_same_state(ours: nn.Module, theirs: nn.Module) -> None:
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def assert_independent(model: nn.Module, twin: nn.Module) -> None:
    """Train one and then the other; both take the same step, and neither moves the other."""
    model.train(), twin.train()
    images, labels = draw()
    start = copy.deepcopy(model.state_dict())
    train_step(twin, images, labels)
    for name, value in model.state_dict().items():
        assert torch.equal(value, start[name]), name
    for name, memory in memories(twin).items():
        assert not torch.equal(memory, start[name])
    train_step(model, images, labels)
    assert_same_state(twin, model)


# --- torch.compile ---


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.compiled
@pytest.mark.usefixtures("fresh_compiler")
@every_model
def test_a_compiled_model_is_one_graph_with_the_numbers_of_an_eager_one(name: str) -> None:
    eager = build(name)
    other, (images, labels) = copy.deepcopy(eager), draw()
    fast = torch.compile(other, fullgraph=True, backend="aot_eager")
    for step in range(2):
        losses = []
        with torch.compiler.set_stance("default" if step == 0 else "fail_on_recompile"):
            for model in (eager, fast):
                losses.append(loss_of(model(images), labels))
                losses[-1].backward()
        torch.testing.assert_close(losses[1], losses[0], **CLOSE)
        for ours, theirs in zip(other.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, **CLOSE)
        for ours, theirs in zip(other.buffers(), eager.buffers(), strict=True):
            torch.testing.assert_close(ours, theirs, **CLOSE)


# --- torch.func ---


@every_model
@pytest.mark.parametrize("training", [True, False])
def test_functional_call_moves_the_memory_it_is_given_and_no_other(
    name: str, training: bool
) -> None:
    model, (images, _) = build(name).train(training), draw()
    eager, before = copy.deepcopy(model), memories(model)
    given = {key: value.detach().clone() for key, value in model.state_dict().items()}
    output, expected = functional_call(model, given, (images,)), eager(images)
    # on some CPUs, torch computes attention differently for weights without gradient
    torch.testing.assert_close(output.logits, expected.logits, rtol=1e-12, atol=1e-12)
    for key, memory in eager.named_buffers():
        assert torch.equal(given[key], memory)
        assert torch.equal(model.get_buffer(key), before[key])
        assert torch.equal(memory, before[key]) != training


@pytest.mark.parametrize(
    "name",
    [
        "ait-image",
        "vit",
        "ait-functional",
        pytest.param(
            "ait",
            marks=pytest.mark.xfail(
                reason="torch.func.grad takes no operator of torch.library that has a gradient",
                raises=RuntimeError,
            ),
        ),
    ],
)
def test_functional_gradients_are_those_of_a_backward_pass(name: str) -> None:
    if name == "ait-functional":
        model = AiT(CONFIGS["ait"], PoolAttention(pooled_attention)).double()
    else:
        model = build(name)
    eager, (images, labels) = copy.deepcopy(model), draw()
    parameters, buffers = dict(model.named_parameters()), memories(model)

    def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return loss_of(functional_call(model, (parameters, buffers), (images,)), labels)

    gradients = grad(loss)(parameters, buffers)  # torch refuses to move a memory it was not given
    loss_of(eager(images), labels).backward()
    for key, parameter in eager.named_parameters():
        torch.testing.assert_close(gradients[key], parameter.grad, **CLOSE)
    for key, memory in eager.named_buffers():
        torch.testing.assert_close(buffers[key], memory, **CLOSE)


@ignore_slow_rules
@every_model
def test_vmap_computes_the_gradient_of_each_image_in_evaluation(name: str) -> None:
    model, (images, labels) = build(name).eval(), draw(3)
    parameters, buffers = dict(model.named_parameters()), memories(model)

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        output = functional_call(model, (parameters, buffers), (image[None],))
        return loss_of(output, label[None])

    gradients = vmap(grad(loss), (None, 0, 0))(parameters, images, labels)
    for i in range(3):
        model.zero_grad()
        loss_of(model(images[i : i + 1]), labels[i : i + 1]).backward()
        for key, parameter in model.named_parameters():
            expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(gradients[key][i], expected, **CLOSE)


@ignore_slow_rules
@every_model
def test_an_ensemble_under_vmap_trains_like_its_members(name: str) -> None:
    members, (images, labels) = [build(name) for _ in range(3)], draw()
    parameters, buffers = stack_module_state(members)
    skeleton = copy.deepcopy(members[0]).to("meta")

    def call(
        parameters: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor
    ) -> tuple[Tensor, Tensor]:
        return functional_call(skeleton, (parameters, buffers), (images,))

    logits, aux_loss = vmap(call, (0, 0, None))(parameters, buffers, images)
    losses = [loss_of(outputs, labels) for outputs in zip(logits, aux_loss, strict=True)]
    torch.stack(losses).sum().backward()
    for i, member in enumerate(members):
        output = member(images)
        loss_of(output, labels).backward()
        torch.testing.assert_close(logits[i], output.logits, **CLOSE)
        for key, parameter in member.named_parameters():
            torch.testing.assert_close(parameters[key].grad[i], parameter.grad, **CLOSE)
        for key, memory in member.named_buffers():
            torch.testing.assert_close(buffers[key][i], memory, **CLOSE)


@ignore_slow_rules
@every_model
@pytest.mark.parametrize("transform", ["grad", "vmap"])
def test_a_model_can_be_copied_saved_and_measured_after_torch_func(
    name: str, transform: str
) -> None:
    config = CONFIGS[name]
    is_ait = name == "ait"
    model = AiT(config, PoolAttention(pooled_attention)) if is_ait else build_model(config)
    images, labels = torch.randn(6, 3, 8, 8), torch.arange(6) % 5
    model(images)
    expected = memory_health(model)
    parameters, buffers = dict(model.named_parameters()), memories(model)

    def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Tensor:
        return loss_of(functional_call(model, (parameters, buffers), (images,)), labels)

    if transform == "grad":
        grad(loss)(parameters, buffers, images)
    else:  # each batch moves a memory of its own
        buffers = {key: memory.expand(2, -1, -1).clone() for key, memory in buffers.items()}
        vmap(loss, (None, 0, 0))(parameters, buffers, torch.stack([images, images]))
    assert memory_health(model) == expected
    assert memory_health(copy.deepcopy(model)) == expected
    assert memory_health(pickle.loads(pickle.dumps(model))) == expected


# --- copies ---


@every_model
def test_a_deep_copy_of_a_trained_model_has_its_own_memory(name: str) -> None:
    model, (images, labels) = build(name), draw()
    train_step(model, images, labels)
    twin = copy.deepcopy(model)
    assert_same_state(twin, model)
    assert_independent(model, twin)


@every_model
def test_a_pickled_model_continues_like_the_original(name: str) -> None:
    model, (images, labels) = build(name), draw()
    train_step(model, images, labels)
    model.class_names = tuple("abcde")
    twin = pickle.loads(pickle.dumps(model))
    assert type(twin) is type(model)
    assert (twin.config, twin.class_names) == (model.config, model.class_names)
    assert torch.equal(twin.eval()(images).logits, model.eval()(images).logits)
    assert_independent(model, twin)


@every_model
@pytest.mark.parametrize("training", [True, False])
def test_an_output_can_be_pickled(name: str, training: bool) -> None:
    output = build(name).train(training)(draw()[0])
    copied = pickle.loads(pickle.dumps(output))
    assert type(copied) is ModelOutput
    assert all(map(torch.equal, copied, output))


# --- half precision ---


@every_model
@pytest.mark.parametrize("dtype", LOW_PRECISION, ids=str)
def test_a_model_cast_to_16_bits_evaluates_and_trains(name: str, dtype: torch.dtype) -> None:
    model = build_model(CONFIGS[name])
    other, (images, labels) = copy.deepcopy(model).to(dtype), draw()
    images = images.float()
    tolerance = LOW_PRECISION[dtype]
    for training in (False, True):
        model.train(training), other.train(training)
        output, expected = other(images.to(dtype)), model(images)
        assert output.logits.dtype == output.aux_loss.dtype == torch.float32
        torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=tolerance)
    for _ in range(3):
        loss_of(other(images.to(dtype)), labels).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in other.parameters())
    for memory in other.buffers():
        assert memory.dtype == dtype
        lengths = memory.float().norm(dim=-1)
        torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", LOW_PRECISION, ids=str)
def test_the_memory_in_16_bits_moves_with_at_most_one_rounding(dtype: torch.dtype) -> None:
    workspace = GlobalWorkspace(8, WorkspaceConfig(num_priors=4, prior_dim=4, num_heads=2))
    workspace.to(dtype)
    written, old = torch.randn(4, 4).to(dtype), workspace.priors.double()
    workspace.remember(written)
    exact = nn.functional.normalize(0.9 * old + 0.1 * written.double(), dim=-1)
    torch.testing.assert_close(workspace.priors, exact.to(dtype), rtol=0, atol=0)


def test_a_number_too_large_for_16_bits_leaves_the_memory_unchanged() -> None:
    workspace = GlobalWorkspace(8, WorkspaceConfig(num_priors=4, prior_dim=4, num_heads=2)).half()
    before = workspace.priors.clone()
    tokens = torch.full((2, 3, 8), 6e4, dtype=torch.float16)
    with torch.no_grad():
        workspace.to_v.weight.fill_(1)  # the values are infinite
    workspace(tokens)
    assert torch.equal(workspace.priors, before)
    workspace(tokens / 1e4)
    assert workspace.priors.isfinite().all() and not torch.equal(workspace.priors, before)


# --- nn.DataParallel ---


@pytest.fixture
def replicate(monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module], list[nn.Module]]:
    """Return a function that makes the replicas of `nn.DataParallel`, but on the CPU."""

    def copies(tensors: list[Tensor], devices: list[int], detach: bool = False) -> list[Any]:
        return [[(x.detach() if detach else x).clone() for x in tensors] for _ in devices]

    replication = import_module("torch.nn.parallel.replicate")  # the function has the same name
    monkeypatch.setattr(replication, "_broadcast_coalesced_reshape", copies)
    return lambda model: replication.replicate(model, [0, 1])


@pytest.mark.parametrize("part", ["", "blocks.0.workspace"])
def test_data_parallel_is_refused_for_a_memory_that_moves(
    part: str, replicate: Callable[[nn.Module], list[nn.Module]]
) -> None:
    with pytest.raises(RuntimeError, match=r"DataParallel would lose the memory.*Distributed"):
        replicate(build("ait").get_submodule(part))


@pytest.mark.parametrize("name", ["ait-image", "vit"])
def test_data_parallel_trains_models_without_a_moving_memory(
    name: str, replicate: Callable[[nn.Module], list[nn.Module]]
) -> None:
    model, (images, labels) = build(name), draw()
    alone = copy.deepcopy(model)
    outputs = [
        replica(half) for replica, half in zip(replicate(model), images.split(3), strict=True)
    ]
    logits = torch.cat([output.logits for output in outputs])
    cross_entropy(logits, labels).backward()
    expected = alone(images).logits
    cross_entropy(expected, labels).backward()
    torch.testing.assert_close(logits, expected, **CLOSE)
    for ours, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, **CLOSE)


@pytest.mark.parametrize("change", ["eval", "freeze"])
def test_data_parallel_reads_a_memory_that_does_not_move(
    change: str, replicate: Callable[[nn.Module], list[nn.Module]]
) -> None:
    model, (images, _) = build("ait"), draw()
    if change == "eval":
        model.eval()
    for block in model.blocks if change == "freeze" else ():
        block.workspace.freeze()
    replicas = replicate(model)
    logits = [
        replica(half).logits for replica, half in zip(replicas, images.split(3), strict=True)
    ]
    torch.testing.assert_close(torch.cat(logits), model(images).logits, **CLOSE)
