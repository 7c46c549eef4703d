"""Tokens in the plane, compared with another algorithm, planted attractors and loops."""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from associative_transformer.analysis import reconstruction
from associative_transformer.analysis.reconstruction import BETAS, SAME, measure_reconstruction
from associative_transformer.analysis.trace import trace
from associative_transformer.interface import PADDING, Batch
from associative_transformer.models.ait import AiT, AiTConfig
from associative_transformer.workspace import GlobalWorkspace
from associative_transformer.workspace_config import WorkspaceConfig
from twins import naive

CONFIG = AiTConfig(
    image_size=8,
    patch_size=4,
    num_classes=3,
    embed_dim=10,
    depth=2,
    num_heads=1,
    head_dim=6,
    mlp_ratio=1.0,
    workspace=WorkspaceConfig(num_priors=3, prior_dim=4, num_heads=2, bottleneck=3),
)


def make_batches(sizes: tuple[int, ...] = (3, 2), question_dim: int = 0) -> list[Batch]:
    return [
        Batch(
            torch.randn(size, 3, 8, 8),
            torch.randn(size, question_dim) if question_dim else None,
            torch.zeros(size, dtype=torch.int64),
        )
        for size in sizes
    ]


def workspace_of(model: AiT, layer: int) -> GlobalWorkspace:
    return cast(GlobalWorkspace, model.blocks[layer].workspace)


def plant(attractors: Tensor) -> AiT:
    """Return a model of one layer with these attractors."""
    memory = replace(CONFIG.workspace, num_priors=len(attractors), prior_dim=10)
    model = AiT(replace(CONFIG, depth=1, workspace=memory)).eval()
    workspace = workspace_of(model, 0)
    with torch.no_grad():
        workspace.to_attractor.weight.copy_(torch.eye(10))
        workspace.to_attractor.bias.zero_()
        workspace.priors.copy_(attractors)
    return model


# --- the plane ---


@torch.no_grad()
def test_tokens_and_explained_variance_agree_with_the_covariance_and_with_loops() -> None:
    model, betas = AiT(CONFIG).eval(), (0.05, 1.0, 4.0)
    (batch,) = make_batches((5,))
    result = measure_reconstruction(model, [batch], betas, num_images=5)
    for layer, traced in enumerate(trace(model, batch).layers):
        u = cast(Tensor, traced.workspace_input).double()
        tokens = u.flatten(0, 1).numpy()
        spread, vectors = np.linalg.eigh(np.cov(tokens.T))
        axes = vectors[:, [-1, -2]]
        axes = axes * np.array([1 if max(c, key=abs) > 0 else -1 for c in axes.T])
        assert result.explained[layer] == pytest.approx(spread[-2:].sum() / spread.sum(), rel=1e-6)
        expected = ((tokens - tokens.mean(axis=0)) @ axes).reshape(5, 4, 2)
        np.testing.assert_allclose(result.before[layer], expected, atol=1e-5)
        workspace = workspace_of(model, layer)
        attractors = workspace.to_attractor(workspace.priors).double()
        for row, beta in enumerate(betas):
            retrieved = naive.hopfield_retrieve(u, attractors, beta).flatten(0, 1).numpy()
            expected = ((retrieved - tokens.mean(axis=0)) @ axes).reshape(5, 4, 2)
            np.testing.assert_allclose(result.after[row, layer], expected, atol=1e-5)


def test_tokens_in_a_plane_keep_their_distances() -> None:
    frame = torch.linalg.qr(torch.randn(7, 2).double()).Q
    tokens = torch.randn(30, 2).double() @ frame.T + torch.randn(7)
    plane = reconstruction._principal_plane(tokens)
    flat = torch.from_numpy(plane.project(tokens[None])[0])
    assert plane.explained == pytest.approx(1)
    distances = [(points[:, None] - points).norm(dim=-1) for points in (flat, tokens)]
    torch.testing.assert_close(*distances)
    assert flat[:, 0].var() > flat[:, 1].var()


def test_variance_outside_the_plane_is_not_explained() -> None:
    tokens = torch.zeros(6, 4)
    for axis, length in enumerate((3.0, 2.0, 1.0)):
        tokens[2 * axis, axis], tokens[2 * axis + 1, axis] = length, -length
    plane = reconstruction._principal_plane(tokens)
    assert plane.explained == pytest.approx((9 + 4) / (9 + 4 + 1))
    expected = [[3, 0], [-3, 0], [0, 2], [0, -2], [0, 0], [0, 0]]
    np.testing.assert_allclose(plane.project(tokens[None])[0], expected, atol=1e-6)


@pytest.mark.parametrize("turn", [torch.diag(torch.tensor([-1.0, 1.0, -1.0])), -torch.eye(3)])
def test_mirrored_tokens_do_not_flip_the_axes(turn: Tensor) -> None:
    tokens = torch.randn(40, 3) * torch.tensor([3.0, 2.0, 0.1])
    mirrored = reconstruction._principal_plane(tokens @ turn).axes
    for axes in (reconstruction._principal_plane(tokens).axes, mirrored):
        assert (axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("num_tokens", [1, 2, 5])
def test_equal_tokens_are_at_the_center(num_tokens: int) -> None:
    tokens = torch.ones(num_tokens, 3)
    plane = reconstruction._principal_plane(tokens)
    assert plane.explained == 1
    np.testing.assert_array_equal(plane.project(tokens[None]), np.zeros((1, num_tokens, 2)))


# --- distinct tokens ---


def test_a_large_beta_retrieves_the_attractors_and_a_small_one_their_mean() -> None:
    model, (batch,) = plant(3 * torch.eye(10)), make_batches((8,))
    result = measure_reconstruction(model, [batch], betas=(1e-4, 1e4))
    u = trace(model, batch).layers[0].workspace_input
    assert u is not None
    nearest = u.flatten(0, 1).argmax(dim=1)  # the attractors are orthogonal and of equal length
    assert 1 < len(nearest.unique()) < 32
    assert result.num_distinct.tolist() == [[1], [len(nearest.unique())]]
    after = result.after[1, 0].reshape(32, 2)
    for token, other in pairwise(range(32)):
        is_same = np.allclose(after[token], after[other], atol=1e-4)
        assert is_same == bool(nearest[token] == nearest[other])
    assert np.ptp(result.after[0, 0].reshape(32, 2), axis=0).max() < 0.01


def test_tokens_are_the_same_within_the_tolerance() -> None:
    line = torch.tensor([0.0, 0.9, 1.1, 2.05, 0.0])[:, None]
    assert reconstruction._count_distinct(line, tolerance=1.0) == 2  # 0 with 0.9, 1.1 with 2.05
    assert reconstruction._count_distinct(line, tolerance=0.1) == 4
    assert reconstruction._count_distinct(line, tolerance=0.0) == 4
    assert reconstruction._count_distinct(line, tolerance=9.0) == 1


@pytest.mark.parametrize("size", [0.01, 1.0, 100.0])
def test_the_tolerance_grows_with_the_attractors(size: float) -> None:
    # the weight of one of two attractors is w = sigmoid(beta (a - b) u)
    attractors = size * torch.eye(10)[:2]
    model, (batch,) = plant(attractors), make_batches((4,))
    u = trace(model, batch).layers[0].workspace_input
    assert u is not None
    difference = (u[..., 0] - u[..., 1]).flatten().tolist()
    for beta in (0.003, 0.3):
        shares = [1 / (1 + math.exp(-beta * x)) for x in difference]
        expected: list[float] = []
        for share in shares:
            if all(math.sqrt(2) * abs(share - other) > SAME for other in expected):
                expected.append(share)
        result = measure_reconstruction(model, [batch], betas=(beta / size,))
        assert result.num_distinct.tolist() == [[len(expected)]]
        assert (len(expected) == 1) == (beta == 0.003)


# --- choice of tokens ---


def test_only_the_batches_of_the_first_images_are_used() -> None:
    used, batches, model = [], make_batches((3, 3, 3)), AiT(CONFIG).eval()

    def lazily() -> Iterator[Batch]:
        for batch in batches:
            used.append(batch)
            yield batch

    result = measure_reconstruction(model, lazily(), num_images=4)
    assert len(used) == 2
    assert result.images.tolist() == [0, 1, 2, 3]
    assert result.betas.tolist() == list(BETAS)
    assert result.before.shape == (2, 4, 4, 2)
    assert result.after.shape == (3, 2, 4, 4, 2)
    assert result.num_distinct.shape == (3, 2)
    joined = Batch(torch.cat([b.images for b in batches])[:4], None, torch.zeros(4).long())
    again = measure_reconstruction(model, [joined], num_images=4)
    np.testing.assert_allclose(result.before, again.before, atol=1e-5)
    np.testing.assert_allclose(result.after, again.after, atol=1e-5)


def test_padding_is_left_out_and_a_small_split_is_used_completely() -> None:
    (batch,) = make_batches((4,))
    batch = batch._replace(labels=torch.tensor([0, 1, PADDING, PADDING]))
    result = measure_reconstruction(AiT(CONFIG).eval(), [batch], num_images=8)
    assert result.images.tolist() == [0, 1]
    assert result.before.shape == (2, 2, 4, 2)


def test_question_tokens_are_left_out() -> None:
    model = AiT(replace(CONFIG, question_dim=5)).eval()
    (batch,) = make_batches((3,), question_dim=5)
    result = measure_reconstruction(model, [batch])
    u = trace(model, batch).layers[0].workspace_input
    assert u is not None
    patches = u[:, 1:]
    plane = reconstruction._principal_plane(patches.flatten(0, 1))
    np.testing.assert_array_equal(result.before[0], plane.project(patches))


def test_a_model_that_reads_by_cross_attention_has_no_reconstruction() -> None:
    model = AiT(replace(CONFIG, read="cross_attention"))
    with pytest.raises(ValueError, match=r"read=cross_attention has no Hopfield retrieval"):
        measure_reconstruction(model, make_batches())


@pytest.mark.parametrize("is_training", [False, True])
def test_the_model_does_not_change(is_training: bool) -> None:
    model = AiT(CONFIG).train(is_training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measure_reconstruction(model, make_batches())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {module.training for module in model.modules()} == {is_training}
