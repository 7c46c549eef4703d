"""Training with Lightning: the module of the documentation, in one process and in two."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from associative_transformer.models import build_model, load_model

pytestmark = pytest.mark.interop
lightning = pytest.importorskip("lightning")

from lightning.pytorch.callbacks import Callback  # noqa: E402

from drivers import lightning_ranks as ranks  # noqa: E402

TESTS = Path(__file__).parents[1]
STEPS = 2 * ranks.IMAGES // ranks.BATCH
every_model = pytest.mark.parametrize("name", ranks.CONFIGS)
slow = pytest.mark.slow


def build(name: str = "ait") -> Any:  # noqa: ANN401
    return build_model(ranks.CONFIGS[name])


def changes(before: dict[str, Tensor], model: nn.Module) -> set[str]:
    """Return the names of the weights and memories that differ."""
    after = model.state_dict()
    return {name for name, value in before.items() if not torch.equal(after[name], value)}


def assert_same_state(ours: nn.Module, theirs: nn.Module) -> None:
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=0, atol=1e-12, msg=name)


# --- one process ---


@every_model
def test_a_model_learns_its_images_by_heart(name: str) -> None:
    module = ranks.Classifier(build(name), lr=0.01)
    before = copy.deepcopy(module.model.state_dict())
    trainer = ranks.fit(module, max_epochs=20)
    assert trainer.callback_metrics["val_accuracy"] > 0.9
    assert changes(before, module.model) == before.keys()


class Modes(Callback):
    """Record the mode and the memories of a model around each validation."""

    def __init__(self) -> None:
        self.before: list[Tensor] = []
        self.after: list[Tensor] = []
        self.modes: list[tuple[str, set[bool]]] = []

    def record(self, event: str, module: nn.Module) -> None:
        self.modes.append((event, {part.training for part in module.model.modules()}))

    def on_validation_start(self, trainer: Any, module: Any) -> None:  # noqa: ANN401
        self.before.append(ranks.memories(module))

    def on_validation_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:  # noqa: ANN401
        self.record("validation", module)

    def on_validation_end(self, trainer: Any, module: Any) -> None:  # noqa: ANN401
        self.after.append(ranks.memories(module))

    def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:  # noqa: ANN401
        self.record("training", module)


@every_model
@pytest.mark.parametrize("interval", [1.0, 0.5])
def test_validation_does_not_move_the_memory_and_training_continues_after_it(
    name: str, interval: float
) -> None:
    module, modes = ranks.Classifier(build(name)), Modes()
    ranks.fit(module, callbacks=[modes], val_check_interval=interval)
    assert len(modes.before) == 1 + 2 / interval  # the first before training
    assert all(map(torch.equal, modes.before, modes.after))
    if name == "ait":
        assert not any(map(torch.equal, modes.before[1:], modes.before[:-1]))
    training = [mode for event, mode in modes.modes if event == "training"]
    assert training == [{True}] * STEPS
    assert all(mode == {False} for event, mode in modes.modes if event == "validation")
    assert {part.training for part in module.modules()} == {True}


class WithoutHook(ranks.Classifier):
    on_fit_start = lightning.LightningModule.on_fit_start


@pytest.mark.parametrize("how", ["as documented", "without the hook", "train"])
def test_a_loaded_model_is_trained_only_if_it_is_set_to_training_mode(
    how: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    build().save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert not model.training
    if how == "train":
        model.train()
    module = (ranks.Classifier if how == "as documented" else WithoutHook)(model)
    before = copy.deepcopy(model.state_dict())
    ranks.fit(module)
    is_frozen = how == "without the hook"
    write = [name for name in before if "workspace" in name and "to_attractor" not in name]
    assert len(write) == 14
    assert before.keys() - changes(before, model) == (set(write) if is_frozen else set())
    assert model.training != is_frozen
    warned = any("eval mode at the start of training" in str(w.message) for w in recwarn)
    assert warned == is_frozen


def test_a_module_that_was_evaluated_can_be_trained_again() -> None:
    module = ranks.Classifier(build())
    ranks.fit(module)
    before = copy.deepcopy(module.eval().model.state_dict())
    ranks.fit(module)
    assert changes(before, module.model) == before.keys()


@every_model
def test_accumulated_gradients_are_those_of_a_loop_by_hand(name: str) -> None:
    module = ranks.Classifier(build(name).double())
    by_hand = copy.deepcopy(module.model)
    ranks.fit(module, max_epochs=1, accumulate_grad_batches=2, precision="64-true")
    optimizer = ranks.Classifier(by_hand).configure_optimizers()
    for step, (images, labels) in enumerate(DataLoader(ranks.draw(), ranks.BATCH)):
        logits, aux_loss = by_hand(images.double())
        ((cross_entropy(logits, labels) + aux_loss) / 2).backward()
        if step % 2:
            optimizer.step()
            optimizer.zero_grad()
    assert_same_state(module.model, by_hand)


@every_model
@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("bf16-mixed", torch.float32),
        ("bf16-true", torch.bfloat16),
        ("64-true", torch.float64),
    ],
)
def test_a_model_is_trained_in_any_precision(
    name: str, precision: str, dtype: torch.dtype
) -> None:
    module, watcher = ranks.Classifier(build(name), lr=0.01), ranks.Watcher()
    trainer = ranks.fit(module, precision=precision, callbacks=[watcher], max_epochs=6)
    assert trainer.callback_metrics["val_accuracy"] > 0.5
    for value in module.model.state_dict().values():
        assert value.dtype == dtype
        assert value.isfinite().all()
    if name == "ait":
        assert not any(map(torch.equal, watcher.memories[1:], watcher.memories[:-1]))
        lengths = watcher.memories[-1].double().norm(dim=-1)
        torch.testing.assert_close(lengths, torch.ones_like(lengths), rtol=0, atol=0.01)


@every_model
def test_a_run_resumed_from_a_checkpoint_ends_with_the_same_weights_and_memory(
    name: str, tmp_path: Path
) -> None:
    module = ranks.Classifier(build(name))
    stopped = copy.deepcopy(module)
    ranks.fit(module)
    ranks.fit(stopped, max_epochs=1).save_checkpoint(tmp_path / "last.ckpt")
    resumed = ranks.Classifier(build(name))
    ranks.fit(resumed, checkpoint=tmp_path / "last.ckpt")
    assert_same_state(resumed, module)
    resumed.model.save_pretrained(tmp_path)
    assert_same_state(load_model(tmp_path), module.model)


def test_the_contents_of_the_memories_of_images_have_no_weight_decay() -> None:
    module = ranks.Classifier(build("ait-image"))
    names = {id(p): name for name, p in module.model.named_parameters()}
    groups = module.configure_optimizers().param_groups
    exempt = {names[id(p)] for g in groups for p in g["params"] if g["weight_decay"] == 0}
    assert exempt == {f"blocks.{i}.workspace.priors" for i in range(2)}
    assert sum(len(group["params"]) for group in groups) == len(names)


# --- two processes ---


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, ranks.Outcome]]:
    """Return what both processes have after training every case."""
    folder = tmp_path_factory.mktemp("ranks")
    subprocess.run(
        [sys.executable, str(TESTS / "drivers" / "lightning_ranks.py"), str(folder)],
        check=True,
        timeout=300,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"},
    )
    return [
        {name: ranks.Outcome(**fields) for name, fields in torch.load(path).items()}
        for path in sorted(folder.glob("*.pt"))
    ]


@slow
@pytest.mark.parametrize("name", ranks.CASES)
def test_two_processes_with_other_seeds_and_images_end_with_the_same_bits(
    name: str, pair: list[dict[str, ranks.Outcome]]
) -> None:
    first, second = (outcomes[name] for outcomes in pair)
    assert first.number != second.number
    assert not torch.equal(first.images, second.images)
    assert torch.equal(first.memories, second.memories)
    for key, value in first.state.items():
        assert torch.equal(second.state[key], value), key
    assert first.accuracy == second.accuracy
    assert len(first.memories) == STEPS
    if name != "vit":
        assert (first.memories.diff(dim=0).abs().amax(dim=(1, 2, 3)) > 0).all()


@slow
@pytest.mark.parametrize("name", [name for name in ranks.CASES if name != "shuffled"])
def test_two_processes_with_half_of_each_batch_equal_one_process(
    name: str, pair: list[dict[str, ranks.Outcome]]
) -> None:
    ours, alone = pair[0][name], ranks.train(name, 0, 1)
    tolerance = 0.05 if name == "bfloat16" else 1e-12
    torch.testing.assert_close(ours.memories, alone.memories, rtol=0, atol=tolerance)
    for key, value in alone.state.items():
        torch.testing.assert_close(ours.state[key], value, rtol=0, atol=tolerance, msg=key)
    assert ours.accuracy == pytest.approx(alone.accuracy, abs=max(tolerance, 1e-6))
