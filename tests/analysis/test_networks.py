"""The networks that tokens read, compared with the slow twins; what writes, and how it is read."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from associative_transformer.analysis.networks import (
    draw_noise,
    energy,
    gather_networks,
    memories_of,
    networks_of,
    read_weights,
    retrieve,
    retrieve_until_rest,
    select,
    similarities,
    with_networks,
)
from associative_transformer.analysis.trace import first_images, trace
from associative_transformer.interface import PADDING, UserError
from associative_transformer.models.ait import AiT
from associative_transformer.models.vit import ViT, ViTConfig
from associative_transformer.workspace import GlobalWorkspace
from making.image_memory import SHARED, make_batches, make_model, weights_of, with_workspace
from twins import naive, naive_image

RULES = {
    "plain": {},
    "share": {"bottleneck": 0.6},
    "dense": {"bottleneck": None},
    "competition": {"competition": "priors", "center_values": True},
    "several steps": {"beta": 2.5, "num_steps": 3},
}


def workspace_and_tokens(**changes: object) -> tuple[GlobalWorkspace, Tensor]:
    model = make_model(with_workspace(**changes))
    return model.blocks[1].workspace, torch.randn(3, 4, 12)


@torch.no_grad()
def step(workspace: GlobalWorkspace, u: Tensor) -> naive_image.ImageStep:
    return naive_image.workspace_step(u.double(), *weights_of(workspace))


# --- one network for each head of each image ---


@torch.no_grad()
@pytest.mark.parametrize("changes", RULES.values(), ids=RULES)
def test_the_patterns_of_a_head_are_its_slice_of_the_attractors_of_an_image(
    changes: dict[str, object],
) -> None:
    workspace, u = workspace_and_tokens(**changes)
    state, patterns, scale = networks_of(workspace, u)
    memories = step(workspace, u).priors
    assert torch.allclose(memories_of(workspace, u).double(), memories, atol=1e-5)
    assert scale == 0.5  # 1 / sqrt(4)
    weight, bias = workspace.to_attractor.weight.double(), workspace.to_attractor.bias.double()
    for image in range(3):
        attractors = naive.linear(memories[image], weight, bias)
        for head in range(3):
            part = slice(4 * head, 4 * head + 4)
            assert torch.equal(state[image, head], u[image, :, part])
            own = attractors[:, part]
            assert torch.allclose(patterns[image, head].double(), own, atol=1e-5)


@torch.no_grad()
def test_retrieving_in_all_networks_is_the_read_without_its_norm() -> None:
    workspace, u = workspace_and_tokens(beta=1.5)
    state, patterns, scale = networks_of(workspace, u)
    read = retrieve(state, patterns, 1.5 * scale)
    joined = read.transpose(1, 2).flatten(2)
    assert torch.allclose(workspace.read_norm(joined), workspace(u).read, atol=1e-5)


def test_states_are_retrieved_and_have_energies_in_their_own_network() -> None:
    state, patterns = torch.randn(2, 3, 5, 4).double(), torch.randn(2, 3, 6, 4).double()
    read, energies = retrieve(state, patterns, 0.7, 2), energy(state, patterns, 0.7)
    rest = retrieve_until_rest(state, patterns, 0.7, tolerance=0.01)
    for i in range(2):
        for j in range(3):
            alone = naive.hopfield_retrieve(state[i, j], patterns[i, j], 0.7, 2)
            assert torch.allclose(read[i, j], alone)
            expected = naive.hopfield_energy(state[i, j], patterns[i, j], 0.7)
            assert torch.allclose(energies[i, j], expected.flatten())
            own = retrieve_until_rest(state[i, j], patterns[i, j], 0.7, tolerance=0.01)
            assert torch.allclose(rest.state[i, j], own.state)
            assert rest.num_steps[i, j].tolist() == own.num_steps.tolist()
    assert len(set(rest.num_steps.flatten().tolist())) > 1


def test_noise_has_the_mean_length_of_the_patterns_of_its_network() -> None:
    patterns = torch.randn(2, 3, 6, 500) * torch.tensor([1.0, 5.0])[:, None, None, None]
    generator = torch.Generator().manual_seed(0)
    noise = draw_noise(patterns, 16, generator)
    assert noise.shape == (2, 3, 1, 6, 500)  # one copy, because there are many networks
    length = noise.norm(dim=-1).mean(dim=(-1, -2))
    assert length / patterns.norm(dim=-1).mean(dim=-1) == pytest.approx(torch.ones(2, 3), rel=0.1)
    assert draw_noise(patterns[0, 0], 16, generator).shape == (16, 6, 500)


# --- what tokens read from ---


@torch.no_grad()
def naive_weights(workspace: GlobalWorkspace, u: Tensor) -> Tensor:
    """Return the weights (B, H, N, M) of the last step, token by token."""
    c, (images, tokens, _) = workspace.config, u.shape
    memories = step(workspace, u).priors
    weight, bias = workspace.to_attractor.weight.double(), workspace.to_attractor.bias.double()
    weights = torch.zeros(images, 3, tokens, c.num_priors).double()
    for b in range(images):
        attractors = naive.linear(memories[b], weight, bias)
        for h in range(3):
            stored = attractors[:, 4 * h : 4 * h + 4]
            for n in range(tokens):
                state = u[b, n, 4 * h : 4 * h + 4].double()
                for _ in range(c.num_steps):
                    scores = [c.beta * naive.dot(state, y) / 2 for y in stored]
                    weights[b, h, n] = torch.stack(naive.softmax(scores))
                    state = naive.weighted_sum(naive.softmax(scores), list(stored))
    return weights


@pytest.mark.parametrize("changes", RULES.values(), ids=RULES)
def test_the_weights_of_a_read_agree_with_loops(changes: dict[str, object]) -> None:
    workspace, u = workspace_and_tokens(**changes)
    weights = read_weights(workspace, u)
    assert torch.allclose(weights.double(), naive_weights(workspace, u), atol=1e-5)


def test_a_memory_of_the_batch_is_read_in_one_head() -> None:
    workspace, u = AiT(SHARED).blocks[0].workspace, torch.randn(3, 4, 12)
    weights = read_weights(workspace, u)
    assert weights.shape == (3, 1, 4, 4)
    with torch.no_grad():
        attractors = workspace.to_attractor(workspace.priors)
    assert torch.allclose(weights[2, 0, 1], (attractors @ u[2, 1]).softmax(dim=0), atol=1e-6)


# --- what priors take ---


@torch.no_grad()
@pytest.mark.parametrize("changes", RULES.values(), ids=RULES)
def test_the_tokens_that_priors_take_agree_with_loops(changes: dict[str, object]) -> None:
    workspace, u = workspace_and_tokens(**changes)
    score, chosen = select(workspace, u)
    attention = step(workspace, u).attention
    taken = torch.zeros_like(attention.is_chosen).scatter(-1, chosen, True)
    assert torch.equal(taken, attention.is_chosen)
    assert torch.allclose(score.double(), attention.gates.gather(-1, chosen), atol=1e-5)
    logits = similarities(workspace, u)
    shares = logits.gather(-1, chosen).softmax(dim=-1)
    assert torch.allclose(shares, score, atol=1e-5)


@torch.no_grad()
def test_tokens_with_a_score_of_zero_are_still_those_that_are_taken() -> None:
    workspace, u = workspace_and_tokens(bottleneck=2)
    workspace.to_k.weight.mul_(1e4)  # the softmax of the second token underflows
    score, chosen = select(workspace, u)
    best = similarities(workspace, u).topk(2, dim=-1).indices
    assert (score[..., 1] == 0).all()
    assert torch.equal(chosen.sort(dim=-1).values, best.sort(dim=-1).values)


def test_dropout_is_off_although_the_model_is_in_training() -> None:
    model = make_model(with_workspace(dropout=0.9)).train()
    workspace, u = model.blocks[0].workspace, torch.randn(2, 4, 12)
    first, again = (networks_of(workspace, u).patterns for _ in range(2))
    assert torch.equal(first, again)
    assert workspace.training and workspace.dropout.training


# --- the sample ---


def test_the_networks_are_those_of_the_first_images() -> None:
    model, batches = make_model(), make_batches(3, 5)
    batches[0].labels[1] = PADDING
    layers = gather_networks(model, batches, 14, torch.Generator())  # 4 images of 4 tokens
    assert [networks.state.shape for networks in layers] == [(4, 3, 4, 4)] * 2
    traced = [trace(model, batch).layers[1].workspace_input for batch in batches]
    tokens = torch.cat([u for u in traced if u is not None])[:4]
    assert torch.allclose(layers[1].state.transpose(1, 2).flatten(2), tokens, atol=1e-5)


def test_no_more_than_64_images_are_examined() -> None:
    layers = gather_networks(make_model(), make_batches(40, 40), 10_000, torch.Generator())
    assert len(layers[0].state) == 64


def test_only_the_batches_of_the_first_images_are_read() -> None:
    model, batches = make_model(), iter(make_batches(3, 3, 3))
    assert [len(u) for u in first_images(model, batches, 4)] == [4, 4]
    assert len(list(batches)) == 1
    with pytest.raises(ValueError, match="no images"):
        first_images(model, [], 4)


def test_a_model_without_such_networks_is_refused_with_the_reason() -> None:
    vit = ViT(ViTConfig(image_size=16, patch_size=8, embed_dim=12, num_heads=2, head_dim=8))
    with pytest.raises(UserError, match="ViT has no memory to retrieve from: use a run of AiT"):
        with_networks(vit)
    for read, words in (("none", "does not read it"), ("cross_attention", "by cross-attention")):
        with pytest.raises(UserError, match=f"{words}.*use a run with --model.read hopfield"):
            with_networks(AiT(replace(SHARED, read=read)))
