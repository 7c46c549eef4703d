"""Training steps compared with steps written by hand, and steps that must change nothing.

Dims     B batch   C channels   H W image side
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import LoggerType
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from associative_transformer import distributed
from associative_transformer.experiment import TrainConfig
from associative_transformer.interface import Batch, UserError
from associative_transformer.models.ait import AiT, AiTConfig
from associative_transformer.models.relation_network import ConvMLP, ConvMLPConfig
from associative_transformer.optimization import Schedule
from associative_transformer.rendezvous import init_method
from associative_transformer.runs.checkpoint import (
    TrainingState,
    restore_checkpoint,
    save_checkpoint,
)
from associative_transformer.training import launch
from associative_transformer.training.launch import make_accelerator
from associative_transformer.training.parameters import parameter_groups
from associative_transformer.training.schedule import learning_rate
from associative_transformer.training.step import (
    MAX_BAD_STEPS,
    Sums,
)
from associative_transformer.workspace_config import ImageMemoryConfig, WorkspaceConfig
from making.steps import CONFIG, PROJECT, make_batch, make_step, same, snapshot, spoil

PER_IMAGE = replace(
    CONFIG,
    workspace=WorkspaceConfig(
        num_priors=4, prior_dim=8, num_heads=2, scope="image", image=ImageMemoryConfig(8)
    ),
)


@pytest.fixture(autouse=True)
def forget_the_precision() -> Iterator[None]:
    """Reset the precision: accelerate sets it once per process, but the tests need several."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def memories(model: nn.Module) -> list[Tensor]:
    return [buffer.clone() for buffer in model.buffers()]


class HandWritten:
    """AdamW with decoupled weight decay (Loshchilov and Hutter 2019), after clipping."""

    def __init__(self, model: nn.Module, train: TrainConfig) -> None:
        self.model, self.config = model, train
        self.m = [torch.zeros_like(p) for p in model.parameters()]
        self.v = [torch.zeros_like(p) for p in model.parameters()]
        self.decay = [
            0.0 if name.endswith("workspace.priors") else train.weight_decay
            for name, _ in model.named_parameters()
        ]
        self.t = 0
        self.norm = 0.0

    def gradients(self, batch: Batch) -> list[Tensor]:
        """Return the gradient of cross-entropy and auxiliary loss, averaged over micro-batches."""
        parts = self.config.accumulation_steps
        micro = zip(batch.images.chunk(parts), batch.labels.chunk(parts), strict=True)
        total = [torch.zeros_like(p) for p in self.model.parameters()]
        for images, labels in micro:
            logits, aux_loss = self.model(images)
            loss = cross_entropy(logits, labels) + aux_loss
            gradients = torch.autograd.grad(loss, list(self.model.parameters()))
            total = [a + g / parts for a, g in zip(total, gradients, strict=True)]
        return total

    def __call__(self, batch: Batch) -> None:
        c, (beta1, beta2), self.t = self.config, self.config.betas, self.t + 1
        gradients = self.gradients(batch)
        self.norm = float(torch.stack([g.square().sum() for g in gradients]).sum().sqrt())
        if c.clip_norm is not None:
            gradients = [g * min(1.0, c.clip_norm / self.norm) for g in gradients]
        with torch.no_grad():
            for i, (p, g) in enumerate(zip(self.model.parameters(), gradients, strict=True)):
                self.m[i] = beta1 * self.m[i] + (1 - beta1) * g
                self.v[i] = beta2 * self.v[i] + (1 - beta2) * g.square()
                m = self.m[i] / (1 - beta1**self.t)
                v = self.v[i] / (1 - beta2**self.t)
                p -= c.lr * (m / (v.sqrt() + 1e-8) + self.decay[i] * p)


@pytest.mark.parametrize(
    "train",
    [
        {},
        {"clip_norm": 0.1},
        {"clip_norm": 1e4},
        {"accumulation_steps": 4},
        {"accumulation_steps": 2, "clip_norm": 0.1, "betas": (0.7, 0.9), "weight_decay": 0.3},
        {"weight_decay": 5.0, "model": "memory per image"},
    ],
    ids=str,
)
def test_steps_equal_those_of_adamw_written_by_hand(train: dict[str, Any]) -> None:
    train = dict(train)
    model = AiT(PER_IMAGE if train.pop("model", None) else CONFIG)
    step = make_step(model, **train)
    by_hand = HandWritten(deepcopy(step.model), step.train)
    start = deepcopy(step.model.state_dict())
    for _ in range(3):
        batch = make_batch()
        step(batch)
        by_hand(batch)
    if (limit := step.train.clip_norm) is not None:
        assert (by_hand.norm > limit) == (limit < 1)  # only the small limit clips
    theirs = by_hand.model.state_dict()
    for name, ours in step.model.state_dict().items():
        torch.testing.assert_close(ours, theirs[name], rtol=1e-4, atol=1e-4, msg=name)
        assert (ours - start[name]).abs().max() > 5e-4  # far above the tolerance


# --- weight decay and learning rate ---


def names_by_group(model: nn.Module) -> list[tuple[set[str], float | None]]:
    """Return the parameters of each group of the optimizer, and its own weight decay."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [
        ({names[parameter] for parameter in group["params"]}, group.get("weight_decay"))
        for group in parameter_groups(model)
    ]


def test_only_the_learned_contents_of_memories_are_in_a_group_without_weight_decay() -> None:
    model = AiT(replace(PER_IMAGE, depth=2))
    decayed, others = names_by_group(model)
    assert others == ({"blocks.0.workspace.priors", "blocks.1.workspace.priors"}, 0.0)
    assert decayed == (set(dict(model.named_parameters())) - others[0], None)
    for model in (AiT(CONFIG), nn.Linear(2, 2)):
        assert names_by_group(model) == [(set(dict(model.named_parameters())), None)]


def test_weight_decay_shrinks_all_weights_but_the_learned_contents_of_memories() -> None:
    step = make_step(AiT(PER_IMAGE), weight_decay=0.5, lr=0.1)

    def remove_gradients(*_: object) -> None:
        for parameter in step.model.parameters():
            parameter.grad.zero_()

    step.optimizer.parts[0].register_step_pre_hook(remove_gradients)
    before = deepcopy(dict(step.model.named_parameters()))
    step(make_batch())
    for name, after in step.model.named_parameters():
        share = 1.0 if name.endswith("workspace.priors") else 0.95
        torch.testing.assert_close(after, share * before[name], rtol=1e-6, atol=0, msg=name)


@pytest.mark.parametrize("config", [PER_IMAGE, CONFIG], ids=["two groups", "one group"])
def test_a_checkpoint_continues_bit_for_bit_whatever_the_number_of_groups(
    config: AiTConfig, tmp_path: Path
) -> None:
    ours, theirs = (make_step(AiT(config), weight_decay=0.5) for _ in range(2))
    batches = [make_batch() for _ in range(3)]
    ours.set_learning_rate(5, 0, 1)
    ours(batches[0])
    save_checkpoint(tmp_path, ours.model, ours.optimizer, asdict(TrainingState()))
    assert restore_checkpoint(tmp_path, theirs.model, theirs.optimizer) is not None
    assert len(theirs.optimizer.param_groups) == len(names_by_group(ours.model))
    assert theirs.learning_rate == ours.learning_rate
    assert same(snapshot(ours), snapshot(theirs))
    for i, batch in enumerate(batches[1:]):
        for step in (ours, theirs):
            step.seed(0, i)
            step(batch)
    assert same(snapshot(ours), snapshot(theirs))


def test_a_checkpoint_of_an_optimizer_built_from_all_parameters_at_once_continues(
    tmp_path: Path,
) -> None:
    step = make_step(weight_decay=0.5)
    old = deepcopy(step.model)
    optimizer = torch.optim.AdamW(old.parameters(), 0.01, weight_decay=0.5, fused=True)
    first, second = make_batch(), make_batch()

    def take(batch: Batch, seed: int) -> None:  # as version 0.1 did
        torch.manual_seed(seed)
        logits, aux_loss = old(batch.images)
        (cross_entropy(logits, batch.labels) + aux_loss).backward()
        optimizer.step()
        optimizer.zero_grad()

    take(first, 1)
    save_checkpoint(tmp_path, old, optimizer, asdict(TrainingState()))
    take(second, 2)
    restore_checkpoint(tmp_path, step.model, step.optimizer)
    torch.manual_seed(2)
    step(second)
    for name, ours in step.model.state_dict().items():
        torch.testing.assert_close(ours, old.state_dict()[name], rtol=1e-6, atol=1e-7, msg=name)


def test_a_learning_rate_is_that_of_all_groups_and_of_the_next_step() -> None:
    schedule = Schedule(2, warmup_lr=0.0, per="step")
    step = make_step(AiT(PER_IMAGE), lr=0.5, epochs=4, weight_decay=0.0, schedule=schedule)
    step.set_learning_rate(1, 2, 4)
    assert step.learning_rate == learning_rate(step.train, 1.5, 4) == 0.375
    assert {group["lr"] for group in step.optimizer.param_groups} == {0.375}
    before = deepcopy(dict(step.model.named_parameters()))
    step(make_batch())  # the first step of AdamW moves each weight by the rate
    for name in ("blocks.0.workspace.priors", "head.2.weight"):
        move = (step.model.get_parameter(name) - before[name]).detach().abs()
        assert move.max().item() == pytest.approx(0.375, rel=1e-3)


def test_changing_the_learning_rate_never_waits_for_the_device() -> None:
    step = make_step(AiT(PER_IMAGE), epochs=1, schedule=Schedule(0, per="step"))
    batch, rates = make_batch(), set()
    with Reads() as reads:
        for i in range(3):
            step.set_learning_rate(0, i, 3)
            rates.add(step.learning_rate)
            step(batch)
    assert reads.count == 0
    assert len(rates) == 3


# --- gradients and memories ---


def test_the_gradient_is_the_mean_over_micro_batches_with_the_auxiliary_loss() -> None:
    step = make_step(accumulation_steps=4)
    by_hand = HandWritten(deepcopy(step.model), step.train)
    seen: list[Tensor] = []
    step.optimizer.parts[0].register_step_pre_hook(
        lambda *_: seen.extend(p.grad.clone() for p in step.model.parameters())
    )
    batch = make_batch()
    step(batch)
    for ours, theirs in zip(seen, by_hand.gradients(batch), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None or not p.grad.any() for p in step.model.parameters())


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_memory_is_updated_once_per_micro_batch(parts: int) -> None:
    step = make_step(accumulation_steps=parts)
    by_hand = deepcopy(step.model)
    forwards: list[int] = []
    step.model.register_forward_pre_hook(lambda _, inputs: forwards.append(len(inputs[0])))
    batch = make_batch()
    step(batch)
    for images in batch.images.chunk(parts):
        by_hand(images)
    assert forwards == [8 // parts] * parts
    assert same(memories(step.model), memories(by_hand))


def test_a_step_returns_the_sums_over_its_images() -> None:
    step = make_step(accumulation_steps=2)
    by_hand, batch = deepcopy(step.model), make_batch()
    sums = Sums(*step(batch))
    loss, balance_loss, correct = 0.0, 0.0, 0
    for images, labels in zip(batch.images.chunk(2), batch.labels.chunk(2), strict=True):
        logits, aux_loss = by_hand(images)
        loss += cross_entropy(logits, labels, reduction="sum").item()
        balance_loss += 4 * aux_loss.item()
        correct += int((logits.argmax(dim=-1) == labels).sum())
    assert float(sums.loss) == pytest.approx(loss, rel=1e-6)
    assert float(sums.balance_loss) == pytest.approx(balance_loss, rel=1e-6)
    assert balance_loss > 0
    assert sums.correct == correct
    assert sums.images == 8


# --- steps that are not finite ---


@pytest.mark.parametrize("parts", [1, 4])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(parts: int) -> None:
    step = make_step(accumulation_steps=parts)
    step(make_batch())
    before = snapshot(step)
    sums = step(spoil(make_batch()))
    assert same(snapshot(step), before)
    assert step.skipped.total == step.skipped.in_a_row == 1
    assert not sums.any()
    assert all(p.grad is None or not p.grad.any() for p in step.model.parameters())


def test_an_infinite_gradient_after_a_finite_forward_restores_the_memory() -> None:
    step = make_step()
    step(make_batch())
    before = snapshot(step)
    handle = step.model.head[2].weight.register_hook(lambda gradient: gradient * torch.inf)
    sums = step(make_batch())
    handle.remove()
    assert same(snapshot(step), before)
    assert step.skipped.total == 1
    assert not sums.any()


def test_an_infinite_loss_with_a_finite_gradient_is_skipped_as_well() -> None:
    step = make_step()
    step(make_batch())
    before = snapshot(step)
    handle = step.model.register_forward_hook(
        lambda model, inputs, output: output._replace(aux_loss=output.aux_loss + torch.inf)
    )
    sums = step(make_batch())
    handle.remove()
    assert same(snapshot(step), before)
    assert step.skipped.total == step.skipped.in_a_row == 1
    assert not sums.any()


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf, 3e38])
def test_the_memory_stays_finite_whatever_the_images_and_weights_are(poison: float) -> None:
    step = make_step(AiT(replace(CONFIG, depth=1)))
    start = deepcopy(step.model.state_dict())
    for name in ("images", *dict(step.model.named_parameters())):
        step.model.load_state_dict(start)
        batch, before = make_batch(), memories(step.model)
        if name == "images":
            batch.images[0, 0, 0, 0] = poison
        else:
            step.model.get_parameter(name).data.view(-1)[0] = poison
        num_skipped = step.skipped.total
        step(batch)
        assert all(memory.isfinite().all() for memory in memories(step.model)), name
        if step.skipped.total > num_skipped:
            assert same(memories(step.model), before), name
    assert step.skipped.total > 10


def test_a_step_that_is_not_finite_restores_the_statistics_of_a_batchnorm() -> None:
    config = ConvMLPConfig(image_size=64, num_classes=2, question_dim=0, conv_dim=4, hidden_dim=8)
    step = make_step(ConvMLP(config))
    step(make_batch())
    before = snapshot(step)
    step(spoil(make_batch()))
    assert same(snapshot(step), before)
    assert step.skipped.total == 1


def test_training_continues_as_if_a_skipped_step_had_not_happened() -> None:
    ours = make_step()
    theirs = make_step(deepcopy(ours.model))
    first, second = make_batch(), make_batch()
    for batch in (first, spoil(first), second):
        ours(batch)
    for batch in (first, second):
        theirs(batch)
    assert same(snapshot(ours), snapshot(theirs))
    assert (ours.skipped.total, ours.skipped.in_a_row) == (1, 0)


def test_ten_bad_steps_in_a_row_end_the_training_and_nine_do_not() -> None:
    step = make_step()
    assert MAX_BAD_STEPS == 10
    for _ in range(2):
        for _ in range(9):
            step(spoil(make_batch()))
        step(make_batch())
    assert step.skipped.total == 18
    before = snapshot(step)
    for _ in range(9):
        step(spoil(make_batch()))
    step.skipped.check()
    step(spoil(make_batch()))
    assert same(snapshot(step), before)
    step(make_batch())  # a good step afterwards does not hide them
    for _ in range(2):
        with pytest.raises(UserError, match="not finite for 10 steps in a row"):
            step.skipped.check()


def test_skipped_steps_are_counted_across_checks_and_resumptions() -> None:
    step = make_step()
    for _ in range(5):
        step(spoil(make_batch()))
        step.skipped.check()
    resumed = make_step()
    resumed.skipped.restore(step.skipped.total, step.skipped.in_a_row)
    for _ in range(4):
        resumed(spoil(make_batch()))
    resumed.skipped.check()
    resumed(spoil(make_batch()))
    assert (resumed.skipped.total, resumed.skipped.in_a_row) == (10, 10)
    with pytest.raises(UserError):
        resumed.skipped.check()


class Reads(TorchDispatchMode):
    """Counts how often the host reads a number from the device, and so waits for it."""

    count = 0

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        self.count += func in (torch.ops.aten._local_scalar_dense.default,)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("train", [{}, {"clip_norm": 0.1, "accumulation_steps": 2}], ids=str)
def test_a_step_never_waits_for_the_device(train: dict[str, Any]) -> None:
    step, batch = make_step(**train), make_batch()
    with Reads() as reads:
        step(batch)
        step(spoil(batch))
    assert reads.count == 0
    with reads:
        step.skipped.check()
    assert reads.count == 1


def test_the_suggested_remedy_for_a_diverging_run_works() -> None:
    step = make_step()
    with pytest.raises(UserError) as error:
        for _ in range(10):
            step(spoil(make_batch()))
        step.skipped.check()
    assert "--train.lr" in str(error.value)
    # a run is resumed only with its own learning rate: see check_folder
    assert "--resume" not in str(error.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_a_step_never_waits_for_it() -> None:
    step = make_step(device="auto")
    batch = Batch(*(None if x is None else x.cuda() for x in make_batch()))
    step(batch)  # creates the moments of AdamW
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert step.skipped.total == 0


# --- precision ---


def test_bfloat16_is_autocast_and_leaves_weights_moments_and_memory_in_float32() -> None:
    step = make_step(precision="bfloat16")
    seen: list[torch.dtype] = []
    step.model.blocks[0].feed_forward.register_forward_hook(
        lambda _, inputs, output: seen.append(output.dtype)
    )
    before = memories(step.model)
    sums = step(make_batch())
    assert seen == [torch.bfloat16]
    assert sums.isfinite().all()
    assert step.skipped.total == 0
    assert {tensor.dtype for tensor in snapshot(step)} == {torch.float32}
    assert all(not torch.equal(a, b) for a, b in zip(before, memories(step.model), strict=True))


def test_trying_out_a_step_changes_nothing_not_even_the_next_random_numbers() -> None:
    ours, theirs = (make_step(accumulation_steps=2) for _ in range(2))
    theirs.model.load_state_dict(ours.model.state_dict())
    batch = make_batch()
    torch.manual_seed(3)
    ours.try_out(batch)
    drawn = torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(4))
    assert same(snapshot(ours), snapshot(theirs))
    ours(batch)
    theirs(batch)
    assert same(snapshot(ours), snapshot(theirs))


def test_one_process_can_train_in_different_precisions_in_turn() -> None:
    for precision in ("float32", "bfloat16", "float32"):
        step = make_step(precision=precision)
        step(make_batch())
        assert step.precision == precision


# --- trackers, processes and devices ---


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_tracker_is_refused_with_the_command_that_installs_it(
    tracker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [t for t in LoggerType if t.value != tracker]
    monkeypatch.setattr(launch, "get_available_trackers", lambda: others)
    with pytest.raises(UserError, match=f"{tracker} is not installed: pip install {tracker}"):
        make_accelerator(TrainConfig(tracker=tracker, device="cpu"), PROJECT)


def test_a_batch_that_cannot_be_divided_among_the_processes_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distributed, "num_ranks", lambda: 3)
    with pytest.raises(UserError, match=r"--train\.batch-size 8 .* 3 processes .* multiple of 6"):
        make_step(accumulation_steps=2)


def test_several_processes_are_refused_for_a_model_with_a_batchnorm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distributed, "num_ranks", lambda: 2)
    config = ConvMLPConfig(image_size=64, num_classes=2, question_dim=0, conv_dim=4, hidden_dim=8)
    with pytest.raises(UserError, match="ConvMLP has a BatchNorm"):
        make_step(ConvMLP(config))


def test_processes_find_each_other_by_the_method_that_can_replace_lost_ones() -> None:
    handler = make_accelerator(TrainConfig(device="cpu"), PROJECT).init_handler
    assert handler.init_method == init_method("cpu")


def test_the_device_cpu_does_not_use_a_gpu() -> None:
    assert make_accelerator(TrainConfig(device="cpu"), PROJECT).device == torch.device("cpu")
