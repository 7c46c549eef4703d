"""benchmarks/rivals.py against loops written from the papers."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import memory_rows
import rivals
from associative_transformer import AiTConfig

SMALL = memory_rows.Settings().small()


@pytest.fixture
def u() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 5, 32, dtype=torch.float64, requires_grad=True)


def build(kind: rivals.Kind) -> Any:  # noqa: ANN401
    """Return a mixer with three vectors and four heads for tokens of width 32."""
    workspace = memory_rows.image(num_priors=3)
    sizes = memory_rows.sizes(SMALL)
    torch.manual_seed(1)
    return rivals.build_mixer(kind, AiTConfig(**sizes, workspace=workspace)).double()


def assert_same(ours: Tensor, expected: Tensor, u: Tensor) -> None:
    """Compare two functions of u, and their gradients."""
    weight = torch.linspace(-1, 2, ours.numel(), dtype=ours.dtype).view(ours.shape)
    (of_ours,), (of_expected,) = (
        torch.autograd.grad((x * weight).sum(), u, retain_graph=True) for x in (ours, expected)
    )
    assert torch.allclose(ours, expected, atol=1e-10)
    assert torch.allclose(of_ours, of_expected, atol=1e-10)


def phi(x: Tensor) -> Tensor:
    """Return elu(x) + 1 of a number."""
    return x + 1 if x > 0 else x.exp()


def test_linear_attention_is_a_weighted_mean_of_all_tokens(u: Tensor) -> None:
    mixer = build("linear")
    q, k, v = (u @ w.T for w in mixer.to_qkv.weight.chunk(3))
    rows = []
    for b, i, head in itertools.product(range(2), range(5), range(4)):
        part = slice(8 * head, 8 * head + 8)
        query, *keys = ([phi(x) for x in row[part]] for row in (q[b, i], *k[b]))
        weights = [sum(x * y for x, y in zip(query, key, strict=True)) for key in keys]
        rows.append(sum(w * v[b, j, part] for j, w in enumerate(weights)) / sum(weights))
    attended = torch.stack(rows).view(2, 5, 32)
    assert_same(mixer(u).read, mixer.read_norm(mixer.to_out(attended)), u)


def test_slots_compete_for_each_token_and_take_weighted_means(u: Tensor) -> None:
    mixer = build("slots")
    gamma, maps = mixer.priors, (mixer.to_q, mixer.to_k, mixer.to_v)
    rows = []
    for b, m, head in itertools.product(range(2), range(3), range(4)):
        part = slice(32 * head, 32 * head + 32)
        inputs = zip((gamma, u[b], u[b]), maps, strict=True)
        q, k, v = (x @ to.weight[part].T for x, to in inputs)
        shares = []
        for key in k:
            similar = [math.sqrt(1 / 32) * (query @ key) for query in q]
            shares.append(similar[m].exp() / sum(s.exp() for s in similar) + 1e-8)
        rows.append(sum(share * value for share, value in zip(shares, v, strict=True)))
        rows[-1] = rows[-1] / sum(shares)
    h = torch.stack(rows).view(2, 3, 4 * 32)
    written = mixer.norm(gamma + h @ mixer.to_prior.weight.T)
    assert_same(mixer.write_images(u).priors, written, u)
    assert_same(mixer(u).read, mixer.read_images(u, written), u)


def test_all_tokens_read_the_mean(u: Tensor) -> None:
    mixer = build("mean")
    read = mixer(u).read
    means = torch.stack([sum(image) / 5 for image in u])
    assert torch.equal(read[:, 0], read[:, 4])
    assert_same(read[:, 0], mixer.read_norm(mixer.to_attractor(means)), u)


def test_a_lookup_weighs_the_same_patterns_for_each_token(u: Tensor) -> None:
    mixer = build("hopfield")
    q = u[1, 2] @ mixer.retrieve.to_q.weight.T
    k, v = (mixer.patterns @ w.T for w in mixer.retrieve.to_kv.weight.chunk(2))
    heads = []
    for part in (slice(8 * head, 8 * head + 8) for head in range(4)):
        weight = (k[:, part] @ q[part] / 8**0.5).exp()
        heads.append(weight @ v[:, part] / weight.sum())
    read = mixer.read_norm(mixer.retrieve.to_out(torch.cat(heads)))
    assert_same(mixer(u).read[1, 2], read, u)


def test_inducing_points_are_the_block_of_the_set_transformer(u: Tensor) -> None:
    mixer = build("inducing")
    block = mixer.block
    memory = block.mab0(block.inducing.expand(2, -1, -1), u)
    assert block.inducing.shape == (1, 3, 32)
    assert_same(mixer(u).read, mixer.read_norm(block.mab1(u, memory)), u)


def test_moving_contents_follow_the_mean_of_the_memories(u: Tensor) -> None:
    mixer = build("moving-average").eval()
    before = mixer.priors
    memories = mixer.write_images(u).priors
    assert torch.equal(mixer.priors, before)  # frozen
    mixer.train()
    mixer(u).read.sum().backward()
    assert torch.allclose(mixer.priors, 0.9 * before + 0.1 * memories.mean(dim=0), atol=1e-10)
    assert "priors" not in dict(mixer.named_parameters())
    assert "priors" in mixer.state_dict()


def test_moving_contents_are_written_with_dropout() -> None:
    model = memory_rows.ABLATIONS["image-moving-average"].build(SMALL)
    assert {block.workspace.dropout.p for block in model.blocks} == {0.1}


def test_registers_take_part_but_are_not_seen_by_the_head() -> None:
    model = memory_rows.ABLATIONS["registers"].build(SMALL)
    seen = []
    for layer in (model.blocks[0], model.head):
        layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    model(torch.randn(1, 3, 16, 16))
    assert seen == [4 + 16, 4]
