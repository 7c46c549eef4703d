"""Parity with the official code, tensor by tensor, and the translation of its checkpoints.

`fixtures/official_ait.npz` holds the tensors of two consecutive training steps of the official
code. The fixture `ours` computes them with the public parts of our model, under the same keys.
"""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from associative_transformer.functional import (
    Selection,
    balance_loss,
    bottleneck_attention,
    hopfield_energy,
    hopfield_retrieve,
)
from associative_transformer.models.ait import AIT_SMALL, AiT, AiTConfig
from associative_transformer.models.official import load_official
from associative_transformer.workspace_config import WorkspaceConfig
from making.official_state import WRITE, official_names, to_official

FILE = Path(__file__).parents[1] / "fixtures" / "official_ait.npz"
BOTTLENECK, BETA = 24, 1.0  # not in the state dict
TOLERANCE = 1e-5

UNUSED = {  # registered by the official code but never used
    "pos_embedding": torch.zeros(1, 17, 64),
    "cls_token": torch.zeros(1, 1, 64),
    "to_patch_embedding_cnn.0.weight": torch.zeros(64, 3, 5, 5),
    "to_patch_embedding_cnn.0.bias": torch.zeros(64),
}


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(FILE) as file:
        return {key: file[key] for key in file.files}


def load(golden: dict[str, np.ndarray]) -> AiT:
    weights = {
        key.removeprefix("weight/"): torch.from_numpy(value)
        for key, value in golden.items()
        if key.startswith("weight/")
    }
    return load_official(weights, bottleneck=BOTTLENECK, beta=BETA).train()


def dense_gates(selection: Selection, num_tokens: int) -> Tensor:
    """Return the gates (M, S, T), which are zero for tokens that were not chosen."""
    score, chosen = selection.score, selection.chosen
    spread = score.new_zeros(*score.shape[:2], num_tokens).scatter(2, chosen, score)
    return spread.transpose(0, 1)


def one_step(model: AiT, images: Tensor, labels: Tensor) -> Iterator[tuple[str, object]]:
    """Run the model part by part and yield the official tensors with their names."""
    model.zero_grad()
    overwritten, queries = {}, {}
    hooks = [
        block.workspace.to_q.register_forward_hook(
            lambda _, __, output, i=i: queries.update({i: output})
        )
        for i, block in enumerate(model.blocks)
    ]
    x = model.embed(images)
    yield "embed", x
    aux_loss = torch.zeros(())
    for i, block in enumerate(model.blocks):
        workspace, layer = block.workspace, f"layer{i}/"
        attended = block.attention(block.norm1(x))
        yield layer + "attention_out", attended
        x = x + attended
        u = block.norm3(block.feed_forward(block.norm2(x)))
        yield layer + "tokens", u.flatten(0, 1)
        before, written = workspace.priors.clone(), workspace.write(u.flatten(0, 1))
        yield layer + "write", written.priors
        yield layer + "gates", dense_gates(written.selection, u.shape[0] * u.shape[1])
        yield layer + "balance_loss", written.balance_loss
        alpha = workspace.config.smoothing
        overwritten[i] = (1 - alpha) * before + alpha * written.priors.detach()
        priors = workspace.remember(written.priors)
        yield layer + "memory_after", workspace.priors.clone()
        retrieved = workspace.read(u, priors)
        yield layer + "retrieved", retrieved
        x = x + u + retrieved
        aux_loss = aux_loss + written.balance_loss
    logits = model.head(x)
    loss = cross_entropy(logits, labels) + aux_loss
    yield from (("logits", logits), ("aux_loss", aux_loss[None]), ("loss", loss))

    for query in queries.values():
        query.retain_grad()
    loss.backward()
    for hook in hooks:
        hook.remove()
    names = official_names(model)
    without = set(UNUSED) | {f"{WRITE.format(i)}memory" for i in range(len(model.blocks))}
    for key, parameter in model.named_parameters():
        if parameter.grad is None:
            without.add(names[key])
        elif key.endswith("to_q.weight"):
            i = int(key.split(".")[1])
            yield f"right/{names[key]}", parameter.grad.clone()
            # the official code has overwritten the memory before the backward pass reads it
            yield f"grad/{names[key]}", queries[i].grad.T @ overwritten[i]
        else:
            yield f"grad/{names[key]}", parameter.grad.clone()
    yield "no_grad", without


@pytest.fixture(scope="module")
def ours(golden: dict[str, np.ndarray]) -> dict[str, object]:
    model, tensors = load(golden), dict[str, object]()
    for key, value in to_official(model).items():
        tensors[f"weight/{key}"] = value
    images = tensors["input/images"] = torch.from_numpy(golden["input/images"])
    labels = tensors["input/labels"] = torch.from_numpy(golden["input/labels"])
    assert model.training
    for step in (0, 1):
        for key, value in one_step(model, images, labels):
            tensors[f"step{step}/{key}"] = value
    state, stored = (torch.from_numpy(golden[f"hopfield/{key}"]) for key in ("state", "stored"))
    tensors |= {"hopfield/state": state, "hopfield/stored": stored}
    for beta in (0.05, 1.0, 4.0):
        for more in (0, 1, 3):  # the package counts steps after the first one
            retrieved = hopfield_retrieve(state, stored[0], beta, 1 + more)
            tensors[f"hopfield/beta{beta}/steps{more}"] = retrieved
        tensors[f"hopfield/beta{beta}/energy"] = hopfield_energy(state[0], stored[0], beta)
    return tensors


def difference(mine: object, theirs: np.ndarray) -> float:
    assert isinstance(mine, Tensor)
    expected = torch.from_numpy(np.asarray(theirs))
    assert mine.shape == expected.shape
    largest = (mine.detach().double() - expected.double()).abs().max() / expected.abs().max()
    return largest.item()


def test_every_tensor_of_the_file_is_compared(
    golden: dict[str, np.ndarray], ours: dict[str, object]
) -> None:
    assert {key for key in ours if "/right/" not in key} == set(golden)


@pytest.mark.parametrize("part", ["weight", "input", "step0", "step1", "hopfield"])
def test_our_tensors_equal_those_of_the_official_code(
    part: str, golden: dict[str, np.ndarray], ours: dict[str, object]
) -> None:
    compared = 0
    for key, expected in golden.items():
        if not key.startswith(f"{part}/"):
            continue
        compared += 1
        if key.endswith("/no_grad"):
            assert ours[key] == set(expected.tolist())
        else:
            assert difference(ours[key], expected) < TOLERANCE, key
    assert compared > 1


@pytest.mark.parametrize(
    ("step", "least", "most"), [(0, 0.04, 0.08), (1, 0.5, 0.65)], ids=["first", "second"]
)
def test_only_our_gradient_of_the_queries_uses_the_memory_that_was_read(
    step: int, least: float, most: float, golden: dict[str, np.ndarray], ours: dict[str, object]
) -> None:
    for layer in (0, 1):
        name = f"{WRITE.format(layer)}mha.w_qs.weight"
        wrong = torch.from_numpy(golden[f"step{step}/grad/{name}"])
        right = ours[f"step{step}/right/{name}"]
        assert isinstance(right, Tensor)
        relative = (right - wrong).norm() / right.norm()
        assert least < relative < most


def test_the_gradient_of_the_queries_is_the_slope_of_the_balance_loss(
    golden: dict[str, np.ndarray],
) -> None:
    model, pool = load(golden).double(), torch.from_numpy(golden["step0/layer0/tokens"]).double()
    workspace = model.blocks[0].workspace
    written = workspace.write(pool)
    workspace.remember(written.priors)
    written.balance_loss.backward()
    fresh = load(golden).double().blocks[0].workspace
    step = torch.randn_like(fresh.to_q.weight)
    losses = []
    for sign in (1, -1):
        moved = copy.deepcopy(fresh)
        with torch.no_grad():
            moved.to_q.weight.add_(step, alpha=sign * 1e-7)
        losses.append(moved.write(pool).balance_loss)
    slope = (losses[0] - losses[1]) / 2e-7
    torch.testing.assert_close((workspace.to_q.weight.grad * step).sum(), slope, rtol=1e-4, atol=0)


def test_the_whole_model_computes_what_its_parts_compute(
    golden: dict[str, np.ndarray], ours: dict[str, object]
) -> None:
    model = load(golden)
    for step in (0, 1):
        output = model(torch.from_numpy(golden["input/images"]))
        assert difference(output.logits, golden[f"step{step}/logits"]) < TOLERANCE
        assert difference(output.aux_loss[None], golden[f"step{step}/aux_loss"]) < TOLERANCE
        for i, block in enumerate(model.blocks):
            expected = golden[f"step{step}/layer{i}/memory_after"]
            assert difference(block.workspace.priors, expected) < TOLERANCE


def test_the_balance_loss_of_the_official_gates_is_the_official_loss(
    golden: dict[str, np.ndarray],
) -> None:
    gates = torch.from_numpy(golden["step0/layer0/gates"]).transpose(0, 1)  # (S, M, T)
    score, chosen = gates.topk(BOTTLENECK, dim=-1)
    loss = 0.01 * balance_loss(score, chosen, gates.shape[-1])
    assert difference(loss, golden["step0/layer0/balance_loss"]) < TOLERANCE


def official_balance_loss(gates: Tensor) -> Tensor:
    """Compute the loss of the gates (S, M, T) as that code does, without its weight."""
    losses = []
    for gate in gates:
        importance, load = gate.sum(0), (gate > 0).sum(0)
        losses += [z.float().var() / (z.float().mean() ** 2 + 1e-10) for z in (importance, load)]
    return torch.stack(losses).sum()


def test_the_load_also_counts_chosen_tokens_whose_gates_underflow() -> None:
    q, k = torch.tensor([[[1.0], [-1.0]]]), torch.tensor([[[0.0], [300.0], [150.0]]])
    mine = bottleneck_attention(q, k, k, 2)  # both priors choose token 2, with a gate of e^-150
    assert mine.chosen.sort().values.tolist() == [[[1, 2], [0, 2]]]
    gates = dense_gates(mine, 3).transpose(0, 1)
    assert gates.tolist() == [[[0, 1, 0], [1, 0, 0]]]
    # importance (1, 1, 0): CV^2 = 3/4; load (1, 1, 2): CV^2 = 3/16, in the official code 3/4
    loss = balance_loss(mine.score, mine.chosen, 3)
    torch.testing.assert_close(loss, torch.tensor(3 / 4 + 3 / 16))
    torch.testing.assert_close(official_balance_loss(gates), torch.tensor(3 / 4 + 3 / 4))
    exact = bottleneck_attention(q.double(), k.double(), k.double(), 2)  # nothing underflows
    same = official_balance_loss(dense_gates(exact, 3).transpose(0, 1))
    torch.testing.assert_close(same, torch.tensor(3 / 4 + 3 / 16))


def test_no_gate_underflows_in_the_recorded_steps(golden: dict[str, np.ndarray]) -> None:
    for step in (0, 1):
        for layer in (0, 1):
            gates = torch.from_numpy(golden[f"step{step}/layer{layer}/gates"]).transpose(0, 1)
            assert ((gates > 0).sum(dim=-1) == BOTTLENECK).all()
            loss = 0.01 * official_balance_loss(gates)
            assert difference(loss, golden[f"step{step}/layer{layer}/balance_loss"]) < TOLERANCE


def without_attention(seed: int) -> tuple[AiT, AiT]:
    """Return AiT-Small without self-attention, and with attention replaced by the identity."""
    torch.manual_seed(seed)
    theirs = AiT(AIT_SMALL).eval()
    for block in theirs.blocks:
        block.attention = nn.Identity()
    with torch.device("meta"):  # which draws no weights
        ours = AiT(replace(AIT_SMALL, use_self_attention=False)).eval()
    weights = {key: value for key, value in theirs.state_dict().items() if "norm1" not in key}
    ours.load_state_dict(weights, assign=True)
    return ours, theirs


@torch.no_grad()
def official_without_attention(model: AiT, images: Tensor) -> Tensor:
    """Compute the logits step by step; that code puts an identity behind the first norm."""
    x = model.embed(images)
    for block in model.blocks:
        x = block.norm1(x) + x
        u = block.norm3(block.feed_forward(block.norm2(x)))
        x = x + u + block.workspace.read(u, block.workspace.priors)
    return model.head(x)


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_without_self_attention_the_official_code_still_adds_the_normalized_tokens(
    seed: int,
) -> None:
    ours, theirs = without_attention(seed)
    images = torch.randn(32, 3, 32, 32)
    with torch.no_grad():
        expected, logits = theirs(images).logits, ours(images).logits
    torch.testing.assert_close(official_without_attention(theirs, images[:2]), expected[:2])
    relative = (logits - expected).norm() / expected.norm()
    assert 0.40 < relative < 0.50  # 0.44 to 0.46 for these seeds


def test_all_sizes_follow_from_the_shapes(golden: dict[str, np.ndarray]) -> None:
    assert load(golden).config == AiTConfig(
        image_size=16,
        patch_size=4,
        num_channels=3,
        num_classes=10,
        embed_dim=64,
        depth=2,
        num_heads=2,
        head_dim=64,
        mlp_ratio=1.5,
        workspace=WorkspaceConfig(
            num_priors=8,
            prior_dim=16,
            num_heads=4,
            bottleneck=BOTTLENECK,
            beta=BETA,
            smoothing=0.1,
            balance_weight=0.01,
            dropout=0.0,
            differentiable_write=False,
        ),
    )


SOME = AiTConfig(
    image_size=12,
    patch_size=4,
    num_classes=7,
    embed_dim=32,
    depth=3,
    num_heads=1,
    mlp_ratio=3.0,
    workspace=WorkspaceConfig(
        num_priors=6,
        prior_dim=4,
        num_heads=3,
        bottleneck=9,
        beta=0.5,
        smoothing=0.25,
        dropout=0.0,
        differentiable_write=False,
    ),
)


@pytest.mark.parametrize(
    "config",
    [
        SOME,
        replace(SOME, num_channels=1, image_size=20, patch_size=5, depth=1),
        replace(SOME, image_size=28, patch_size=14, num_heads=2),
        replace(SOME, image_size=15, patch_size=5, question_dim=18, num_classes=10),
        replace(SOME, image_size=9, patch_size=3, num_channels=1, mlp_ratio=0.75, depth=11),
    ],
)
def test_a_checkpoint_of_any_size_is_translated(config: AiTConfig) -> None:
    model = AiT(config)
    loaded = load_official(to_official(model), bottleneck=9, beta=0.5)
    assert loaded.config == config
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_the_bottleneck_and_the_temperature_default_to_those_of_the_paper() -> None:
    loaded = load_official(to_official(AiT(SOME))).config.workspace
    assert (loaded.bottleneck, loaded.beta) == (512, 1.0)


def test_unused_weights_of_the_official_code_are_ignored() -> None:
    model = AiT(SOME)
    loaded = load_official(to_official(model) | UNUSED)
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


@pytest.mark.parametrize(
    "key",
    [
        "no_such_weight",
        "mlp_head.2.weight",
        "mlp_head.1.scale",
        "to_patch_embedding.0.weight",
        "to_patch_embedding_cnn.1.weight",
        "transformer.layers.0.2.norm.weight",
        "transformer.layers.0.1.fn.memoryupdate.usage",
        "transformer.layers.1.1.fn.memoryupdate.mha.w_qs.bias",
        "transformer.norm.weight",
    ],
)
def test_an_unknown_key_is_an_error_that_names_it(key: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_official(to_official(AiT(SOME)) | {key: torch.zeros(1)})
    assert key in str(caught.value)


def test_a_missing_weight_is_an_error() -> None:
    for key in (
        "transformer.layers.1.1.fn.fc3.bias",
        f"{WRITE.format(2)}memory",
        "mlp_head.1.weight",
    ):
        state = to_official(AiT(SOME))
        del state[key]
        with pytest.raises(ValueError, match="the official checkpoint lacks"):
            load_official(state)


def test_a_checkpoint_from_several_devices_loads_in_evaluation_mode() -> None:
    state = to_official(AiT(SOME))
    loaded = load_official({f"module.{key}": value for key, value in state.items()})
    assert not loaded.training
    assert torch.equal(to_official(loaded)["mlp_head.1.weight"], state["mlp_head.1.weight"])


def test_the_heads_are_merged_in_our_order() -> None:
    model = AiT(SOME)
    state, heads, width = to_official(model), 3, 4
    official = state[f"{WRITE.format(0)}mha.fc.weight"]
    mine = load_official(state).blocks[0].workspace.to_prior.weight
    for head in range(heads):
        for d in range(width):
            assert torch.equal(mine[:, head * width + d], official[:, d * heads + head])


def test_the_bottleneck_attention_selects_the_official_winners(
    golden: dict[str, np.ndarray],
) -> None:
    model, pool = load(golden), torch.from_numpy(golden["step0/layer0/tokens"])
    workspace = model.blocks[0].workspace
    heads, width = workspace.config.num_heads, workspace.config.prior_dim
    q, k, v = (
        projected.reshape(-1, heads, width).transpose(0, 1)
        for projected in (
            workspace.to_q(workspace.priors),
            workspace.to_k(pool),
            workspace.to_v(pool),
        )
    )
    selection = bottleneck_attention(q, k, v, BOTTLENECK)
    gates = golden["step0/layer0/gates"]
    assert difference(dense_gates(selection, len(pool)), gates) < TOLERANCE
    won = dense_gates(selection, len(pool)).detach().numpy() > 0
    assert np.array_equal(won, gates > 0)
