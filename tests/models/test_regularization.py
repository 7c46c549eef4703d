"""Dropout and stochastic depth of AiT and ViT."""

import pytest
import torch

from associative_transformer.models import build_model
from associative_transformer.models.ait import AiTConfig
from associative_transformer.models.regularization import (
    Regularization,
    StochasticDepth,
    build_branch_end,
)
from associative_transformer.models.vit import ViTConfig
from associative_transformer.workspace import GlobalWorkspace
from making.tiny import tiny

both_models = pytest.mark.parametrize("config", [AiTConfig, ViTConfig])
Config = type[AiTConfig] | type[ViTConfig]


def test_a_branch_is_kept_or_dropped_as_a_whole_for_each_image() -> None:
    branch = StochasticDepth(0.25)
    x = torch.randn(4_000, 2, 3)
    ratio = branch(x) / x
    is_kept = ratio[:, 0, 0] > 0
    torch.testing.assert_close(ratio, (is_kept / 0.75)[:, None, None].expand_as(ratio))
    assert is_kept.float().mean().item() == pytest.approx(0.75, abs=0.03)


def test_the_share_grows_linearly_with_depth() -> None:
    ends = [build_branch_end(Regularization(0.0, 0.3), block, 4) for block in range(4)]
    rates = [m.rate for end in ends for m in end.modules() if isinstance(m, StochasticDepth)]
    assert rates == pytest.approx([0.1, 0.2, 0.3])  # none in the first block


@both_models
def test_nothing_is_dropped_in_evaluation(config: Config) -> None:
    regular = build_model(tiny(config, regularization=Regularization(0.5, 0.5)))
    plain = build_model(tiny(config))
    plain.load_state_dict(regular.state_dict())
    images = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(regular.eval()(images).logits, plain.eval()(images).logits)


@both_models
@pytest.mark.parametrize("name", ["dropout", "stochastic_depth"])
def test_each_setting_changes_the_logits_in_training(config: Config, name: str) -> None:
    torch.manual_seed(0)
    model = build_model(tiny(config, regularization=Regularization(**{name: 0.5})))
    images = torch.randn(8, 3, 8, 8)
    for module in model.modules():
        if isinstance(module, GlobalWorkspace):
            module.freeze()  # otherwise the memory changes the logits
    assert not torch.equal(model(images).logits, model(images).logits)


@both_models
def test_recomputed_blocks_drop_the_same_values(config: Config) -> None:
    gradients = []
    for is_recomputed in (False, True):
        torch.manual_seed(0)
        model = build_model(tiny(config, regularization=Regularization(0.2, 0.5)))
        model.set_grad_checkpointing(is_recomputed)
        torch.manual_seed(1)
        logits, aux_loss = model(torch.randn(4, 3, 8, 8))
        (logits.square().sum() + aux_loss).backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain is not None
        assert recomputed is not None
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize("name", ["dropout", "stochastic_depth"])
@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_share_outside_of_its_range_is_refused(name: str, rate: float) -> None:
    with pytest.raises(ValueError, match=rf"regularization\.{name} must be at least 0"):
        Regularization(**{name: rate})
