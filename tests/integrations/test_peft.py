"""LoRA of the library peft on every linear layer of AiT and ViT: trained, merged, saved."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from associative_transformer.models import build_model, load_model
from making.tiny import TINY, VARIANTS

pytestmark = pytest.mark.interop
peft = pytest.importorskip("peft")

CONFIGS = {"ait": TINY["ait"], "ait-image": VARIANTS["ait-image-attention"], "vit": TINY["vit"]}
COMMON = ["to_qkv", "to_out", "feed_forward.0", "feed_forward.2", "patches.1"]
WORKSPACE = ["to_q", "to_k", "to_v", "to_prior", "to_attractor"]
HEADS = {"ait": "head.2", "ait-image": "head.to_logits", "vit": "head.2"}
LAYERS = {
    name: [*COMMON, *(WORKSPACE if "ait" in name else []), head] for name, head in HEADS.items()
}
"""What to pass as `target_modules` to adapt all linear layers of a model."""

every_model = pytest.mark.parametrize("name", CONFIGS)


def build(name: str) -> Any:  # noqa: ANN401
    return build_model(CONFIGS[name]).double()


def adapt(model: nn.Module, layers: list[str], **options: object) -> Any:  # noqa: ANN401
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=layers, **options)
    return peft.get_peft_model(copy.deepcopy(model), config).train()


def draw(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(6, 3, 8, 8, dtype=dtype), torch.arange(6) % 5


def train(model: nn.Module, steps: int = 3, dtype: torch.dtype = torch.float64) -> list[float]:
    """Take steps on one batch and return the losses; the last gradients are kept."""
    (images, labels), losses = draw(dtype), []
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        logits, aux_loss = model(images)
        loss = cross_entropy(logits, labels) + aux_loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def adapters(model: nn.Module, kind: str = "lora_") -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if kind in name}


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(images)[0]


# --- training ---


@every_model
def test_the_names_in_this_file_cover_every_linear_layer(name: str) -> None:
    model = build(name)
    linear = {key for key, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert set(adapt(model, LAYERS[name]).base_model.targeted_module_names) == linear


@pytest.mark.parametrize(
    ("name", "layer"), [(name, layer) for name in CONFIGS for layer in LAYERS[name]]
)
def test_an_adapter_of_one_kind_of_layer_is_trained(name: str, layer: str) -> None:
    plain = build(name)
    model = adapt(plain, [layer])
    blocks = 1 if layer.startswith(("patches", "head")) else 2
    assert len(adapters(model)) == 2 * blocks  # A and B
    train(model, steps=1)
    for key, parameter in adapters(model).items():  # B starts at zero, which stops A's gradient
        assert parameter.grad is not None and parameter.grad.any() == ("lora_B" in key), key
    train(model, steps=1)
    assert all(p.grad is not None and p.grad.any() for p in adapters(model).values())
    merged = model.merge_and_unload()
    changed = {
        key
        for key, value in plain.named_parameters()
        if not merged.get_parameter(key).equal(value)
    }
    assert len(changed) == blocks
    assert all(f"{layer}.weight" in key for key in changed)


@every_model
def test_adapters_of_all_layers_together_lower_the_loss(name: str) -> None:
    losses = train(adapt(build(name), LAYERS[name]), steps=12)
    assert losses[-1] < losses[0] - 0.3


def test_the_base_may_be_in_bfloat16() -> None:
    model = adapt(build("ait").bfloat16(), LAYERS["ait"])
    assert {p.dtype for p in adapters(model).values()} == {torch.float32}
    before = {key: p.clone() for key, p in adapters(model).items()}
    losses = train(model, dtype=torch.bfloat16)
    assert all(map(torch.isfinite, torch.tensor(losses)))
    assert not any(torch.equal(before[key], p) for key, p in adapters(model).items())


@pytest.mark.parametrize("training", [True, False])
def test_a_loaded_model_writes_its_memory_only_after_a_call_of_train(
    training: bool, tmp_path: Path
) -> None:
    build("ait").save_pretrained(tmp_path)
    model = peft.get_peft_model(
        load_model(tmp_path).double(), peft.LoraConfig(r=2, target_modules=["to_k", "to_out"])
    )
    assert not model.base_model.model.blocks[0].workspace.training
    if training:
        model.train()
    before = [memory.clone() for memory in model.buffers()]
    train(model, steps=2)
    moved = [not torch.equal(*pair) for pair in zip(before, model.buffers(), strict=True)]
    assert moved == [training, training]
    for key, parameter in adapters(model).items():
        assert (parameter.grad is not None) == (training or "to_out" in key)


# --- merging ---


@every_model
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_a_merged_model_has_the_logits_of_the_adapted_one(
    name: str, dtype: torch.dtype, tolerance: float
) -> None:
    plain = build(name).to(dtype)
    model, (images, _) = adapt(plain, LAYERS[name]), draw(dtype)
    train(model, dtype=dtype)
    expected = logits_of(model, images)
    merged = model.merge_and_unload()
    assert type(merged) is type(plain)
    assert [type(module) for module in merged.modules()] == [type(m) for m in plain.modules()]
    torch.testing.assert_close(logits_of(merged, images), expected, rtol=0, atol=tolerance)


@every_model
def test_a_merged_model_is_saved_with_its_memory(name: str, tmp_path: Path) -> None:
    model, (images, _) = adapt(build_model(CONFIGS[name]), LAYERS[name]), draw(torch.float32)
    train(model, dtype=torch.float32)
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path)
    assert torch.equal(logits_of(load_model(tmp_path), images), logits_of(merged, images))


# --- saving ---


@every_model
@pytest.mark.parametrize("memory", ["left out", "saved", "frozen"])
def test_a_saved_adapter_needs_the_memory_that_has_moved(
    name: str, memory: str, tmp_path: Path
) -> None:
    plain, (images, _) = build(name), draw()
    if memory == "frozen" and name == "ait":
        for block in plain.blocks:
            block.workspace.freeze()
    model = adapt(plain, LAYERS[name])
    train(model)
    model.save_pretrained(tmp_path)
    torch.save(dict(model.named_buffers()), tmp_path / "memory.pt")
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path)
    if memory == "saved":
        loaded.load_state_dict(torch.load(tmp_path / "memory.pt"), strict=False)
    difference = (logits_of(loaded, images) - logits_of(model, images)).abs().max()
    is_missing = name == "ait" and memory == "left out"
    assert difference > 0.01 if is_missing else difference == 0


@every_model
def test_a_new_head_is_trained_and_saved_next_to_the_adapters(name: str, tmp_path: Path) -> None:
    build(name).save_pretrained(tmp_path / "base")
    plain = load_model(tmp_path / "base", num_classes=7).double()
    layers = [layer for layer in LAYERS[name] if not layer.startswith("head")]
    model, (images, _) = adapt(plain, layers, modules_to_save=["head"]), draw()
    before = {key: p.clone() for key, p in model.named_parameters() if p.requires_grad}
    assert sum("modules_to_save" in key for key in before) == 4  # the norm and the classifier
    train(model)
    assert not any(torch.equal(model.get_parameter(key), value) for key, value in before.items())
    model.save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path / "adapter")
    loaded.load_state_dict(dict(model.named_buffers()), strict=False)
    expected = logits_of(model, images)
    assert expected.shape == (6, 7)
    assert torch.equal(logits_of(loaded, images), expected)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(logits_of(merged, images), expected, rtol=0, atol=1e-12)
    assert type(merged.head) is type(plain.head)
    merged.reset_classifier(3)
    assert logits_of(merged, images).shape == (6, 3)
