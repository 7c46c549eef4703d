"""The analyses of a memory for each image: planted choices, and real ones compared with loops."""

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from associative_transformer.analysis.basins import measure_basins
from associative_transformer.analysis.capacity import measure_capacity
from associative_transformer.analysis.reconstruction import (
    _principal_plane,
    measure_reconstruction,
)
from associative_transformer.analysis.selection import (
    SelectionStatistics,
    measure_selection,
    name_token,
)
from associative_transformer.analysis.specialization import measure_specialization
from associative_transformer.analysis.storage import load_result, save_result
from associative_transformer.analysis.trace import trace
from associative_transformer.functional import effective_rank
from associative_transformer.interface import Batch
from associative_transformer.models.ait import AiT
from making.image_memory import (
    TINY,
    images_of,
    make_batches,
    make_model,
    planted,
    weights_of,
    with_workspace,
)
from twins import naive, naive_image

VARIANTS = {
    "plain": TINY,
    "question": replace(TINY, question_dim=5),
    "class token": replace(TINY, head="cls"),
    "both": replace(TINY, question_dim=5, head="cls"),
    "dense": with_workspace(bottleneck=None),
    "share and competition": with_workspace(bottleneck=0.6, competition="priors"),
    "several steps": with_workspace(beta=2.5, num_steps=3),
    "no self-attention": replace(TINY, use_self_attention=False),
}


def tokens_of(model: AiT, batches: list[Batch]) -> list[Tensor]:
    """Return the tokens that the workspace of each layer receives, (I, N, E)."""
    traced = [[layer.workspace_input for layer in trace(model, b).layers] for b in batches]
    return [torch.cat(layer) for layer in zip(*traced, strict=True)]  # type: ignore[arg-type]


def batch_of(images: Tensor, labels: list[int] | None = None) -> Batch:
    return Batch(images, None, torch.tensor(labels or [0] * len(images)))


# --- selection ---


def test_each_prior_takes_its_most_similar_patches_of_each_image() -> None:
    write = torch.zeros(2, 4, 2)  # images, patches, priors
    write[0, 3, 0], write[0, 1, 0] = 3.0, 2.0
    write[1, 2, 0], write[1, 0, 0] = 9.0, 1.0
    write[:, 1, 1], write[:, 3, 1] = 5.0, 4.0
    result = measure_selection(planted(2, bottleneck=2), [batch_of(images_of(write))])
    assert (result.scope, result.num_images) == ("image", 2)
    assert (result.pool_size, result.bottleneck) == (4, 2)
    assert result.taken[0, 0].tolist() == [
        [[0, 2, 0, 1], [2, 0, 1, 0]],
        [[0, 1, 0, 2], [0, 1, 0, 2]],
    ]
    assert result.winners[0, 0, 0].tolist() == [[1, 2], [0, 3], [0, 1], [1, 0]]
    assert result.winner_scores[0, 0, 0] == pytest.approx([9, 3, 2, 1])
    assert result.coverage[0] == pytest.approx([(2 / 4 + 4 / 4) / 2])
    assert result.overlap[0, 0, 0, 1] == pytest.approx((2 / 2 + 0 / 4) / 2)


def test_images_of_several_batches_are_numbered_in_order() -> None:
    write = torch.rand(5, 4, 1)
    write[4, 2], write[1, 3] = 9.0, 8.0
    images = images_of(write)
    model = planted(1)
    batches = [batch_of(images[:2]), batch_of(images[2:])]
    result = measure_selection(model, batches, num_winners=2, num_images=3)
    assert result.winners[0, 0, 0].tolist() == [[4, 2], [1, 3]]
    assert result.taken[0, 0, 0].argmax(axis=-1).tolist() == write[:3, :, 0].argmax(dim=1).tolist()
    assert result.taken.shape == (1, 1, 1, 3, 4)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_a_selection_agrees_with_loops(config: Any) -> None:  # noqa: ANN401
    model = make_model(config)
    batches = make_batches(3, 2, question_dim=config.question_dim)
    result = measure_selection(model, batches, num_winners=5, num_images=4)
    tokens, patches = model.embed.num_tokens, model.embed.num_patches
    assert (result.num_images, result.pool_size) == (5, tokens)
    for layer, u in enumerate(tokens_of(model, batches)):
        check_layer(result, layer, model.blocks[layer].workspace, u, patches)


@torch.no_grad()
def check_layer(
    result: SelectionStatistics,
    layer: int,
    workspace: Any,  # noqa: ANN401
    u: Tensor,
    patches: int,
) -> None:
    """Compare a layer of a result with loops over images, heads, priors and tokens."""
    c, (images, tokens, _) = workspace.config, u.shape
    weights, settings = weights_of(workspace)
    step = naive_image.workspace_step(u.double(), weights, settings)
    q = naive.split_heads(naive.linear(weights.priors, weights.q), c.num_heads)
    entropy = np.zeros((c.num_heads, c.num_priors))
    coverage, overlap = np.zeros(c.num_heads), np.zeros((c.num_heads, c.num_priors, c.num_priors))
    head_overlap = np.zeros((c.num_priors, c.num_heads, c.num_heads))
    winners: dict[Any, list[Any]] = {
        pair: [] for pair in product(range(c.num_heads), range(c.num_priors))
    }
    for b in range(images):
        sets = {}
        for s in range(c.num_heads):
            k = naive.split_heads(naive.linear(u[b].double(), weights.k), c.num_heads)[s]
            rows = naive_image.similarities(q[s], k, list(range(tokens)), settings.competition)
            for m in range(c.num_priors):
                gates, is_chosen = step.attention.gates[b, s, m], step.attention.is_chosen[b, s, m]
                sets[s, m] = set(is_chosen.nonzero()[:, 0].tolist())
                entropy[s, m] -= sum(float(g * g.log2()) for g in gates if g > 0) / images
                order = sorted(sets[s, m], key=lambda t: -rows[m][t].item())
                for position, t in enumerate(order, start=1):
                    winners[s, m].append((-rows[m][t].item(), b, t - tokens + patches))
                    if b < 4 and t >= tokens - patches:
                        assert result.taken[layer, s, m, b, t - tokens + patches] == position
            coverage[s] += len(set.union(*(sets[s, m] for m in range(c.num_priors)))) / tokens
            for m, n in product(range(c.num_priors), repeat=2):
                shared, joined = sets[s, m] & sets[s, n], sets[s, m] | sets[s, n]
                overlap[s, m, n] += len(shared) / len(joined) / images
        for m, s, r in product(range(c.num_priors), range(c.num_heads), range(c.num_heads)):
            shared, joined = sets[s, m] & sets[r, m], sets[s, m] | sets[r, m]
            head_overlap[m, s, r] += len(shared) / len(joined) / images
    assert result.bottleneck == len(sets[0, 0])
    assert result.entropy[layer] == pytest.approx(entropy, abs=1e-5)
    assert result.coverage[layer] == pytest.approx(coverage / images)
    assert result.overlap[layer] == pytest.approx(overlap)
    assert result.head_overlap[layer] == pytest.approx(head_overlap)
    for (s, m), found in winners.items():
        best = sorted(found)[:5]
        assert result.winners[layer, s, m].tolist() == [[b, patch] for _, b, patch in best]
        scores = [-score for score, _, _ in best]
        assert result.winner_scores[layer, s, m] == pytest.approx(scores, rel=1e-4, abs=1e-5)
    cosine = [torch.nn.functional.normalize(priors, dim=-1) for priors in step.priors]
    mean = torch.stack([unit @ unit.mT for unit in cosine]).mean(dim=0)
    assert result.similarity[layer] == pytest.approx(mean.numpy(), abs=1e-5)
    rank = np.mean([effective_rank(priors) for priors in step.priors])
    assert result.effective_rank[layer] == pytest.approx(rank, rel=1e-4)
    assert result.usage[layer].sum() == pytest.approx(1)


@torch.no_grad()
def test_usage_is_the_mean_weight_over_the_heads_of_the_read() -> None:
    """In the first head all tokens read from prior 0, in the second from prior 1, in the third
    from both."""
    model = planted(2)
    model.blocks[0].workspace.to_attractor.weight.mul_(50)
    write, read = torch.zeros(3, 4, 2), torch.zeros(3, 4, 2)
    write[..., 0], read[..., 1] = 5.0, 5.0
    result = measure_selection(model, [batch_of(images_of(write, read))])
    assert result.usage[0] == pytest.approx([1 / 2, 1 / 2])
    read[..., 1] = 0.0
    result = measure_selection(model, [batch_of(images_of(write, read))])
    assert result.usage[0] == pytest.approx([2 / 3, 1 / 3])


def test_a_token_that_is_not_a_patch_has_a_name() -> None:
    assert name_token(-1, "questions") == "question"
    assert name_token(-2, "questions") == name_token(-1, "images") == "class token"


def test_a_saved_selection_without_a_scope_is_one_of_the_batch(tmp_path: Path) -> None:
    result = measure_selection(make_model(), make_batches(2))
    save_result(result, tmp_path, "selection")
    assert load_result(SelectionStatistics, tmp_path, "selection").scope == "image"
    text = (tmp_path / "selection.json").read_text().replace(',\n  "scope": "image"', "")
    (tmp_path / "selection.json").write_text(text)
    assert load_result(SelectionStatistics, tmp_path, "selection").scope == "batch"


def test_the_description_names_the_tokens_of_an_image() -> None:
    lines = list(measure_selection(make_model(), make_batches(2)).describe())
    assert lines[0] == "memory of 4 priors, each of which takes 2 of 4 tokens of an image:"


# --- specialization ---


def test_taking_patches_reveals_positions_but_never_the_class() -> None:
    write = torch.rand(12, 4, 2)
    write[:, 2, 0] = 9.0
    labels = [0, 1, 2] * 4
    batch = batch_of(images_of(write), labels)
    result = measure_specialization(planted(2), [batch, batch], ["a", "b", "c"])
    assert not result.information[0].any()
    assert (result.p_value[0] == 1).all()
    assert result.by_position[0, 0, 0].tolist() == [0, 0, 1, 0]
    assert result.p_value[1, 0, 0, 0] == pytest.approx(1 / 21)
    assert result.by_class[0, 0, 0] == pytest.approx([1 / 3] * 3)


# --- basins ---


@torch.no_grad()
def test_energies_of_heads_agree_with_loops() -> None:
    model, batches = make_model(), make_batches(3)
    result = measure_basins(model, batches, betas=(0.5, 2.0), num_steps=2)
    assert result.num_tokens == 12
    for layer, u in enumerate(tokens_of(model, batches)):
        weights, settings = weights_of(model.blocks[layer].workspace)
        memories = naive_image.workspace_step(u.double(), weights, settings).priors
        for r, beta in enumerate((0.5, 2.0)):
            energies: list[list[float]] = [[], [], []]
            for image, memory in zip(u.double(), memories, strict=True):
                attractors = naive.linear(memory, weights.attractor_weight, weights.attractor_bias)
                for head in range(3):
                    part = slice(4 * head, 4 * head + 4)
                    for steps in range(3):
                        stored = attractors[:, part]
                        state = naive.hopfield_retrieve(image[:, part], stored, beta / 2, steps)
                        energy = naive.hopfield_energy(state, stored, beta / 2)
                        energies[steps] += energy.flatten().tolist()
            mean, spread = np.mean(energies, axis=1), np.std(energies, axis=1)
            assert result.energy[r, layer] == pytest.approx(mean, rel=1e-4)
            assert result.energy_spread[r, layer] == pytest.approx(spread, rel=1e-4, abs=1e-5)


def test_no_step_raises_the_energy() -> None:
    result = measure_basins(make_model(), make_batches(5), num_steps=8)
    assert (np.diff(result.energy, axis=-1) <= 1e-9).all()


@torch.no_grad()
def with_attractors(attractors: Tensor) -> AiT:
    """Return a model of one layer, in all heads of whose read all images have these attractors."""
    model = planted(len(attractors))
    model.blocks[0].workspace.to_attractor.weight.copy_(attractors.T.repeat(3, 1))
    return model


def spread_out(images: int, priors: int) -> Batch:
    parts = [3 * torch.randn(images, 16, priors) for _ in range(3)]
    return batch_of(images_of(*parts))


def test_distant_attractors_are_single_if_beta_is_large_and_their_mean_is_if_it_is_small() -> None:
    attractors, batch = 3 * torch.linalg.qr(torch.randn(4, 4)).Q, spread_out(20, 4)
    model = with_attractors(attractors)
    result = measure_basins(model, [batch], betas=(0.001, 40.0), num_tokens=320)
    assert result.single.tolist() == [[0], [1]]
    assert result.uniform.tolist() == [[1], [0]]
    assert result.num_fixed_points[0, 0] == 1
    assert 3 < result.num_fixed_points[1, 0] <= 4  # a mean over images and heads
    assert result.basins[0, 0] == pytest.approx([1, 0, 0, 0])
    heads = batch.images.view(20, 3, 4, 16).mT @ attractors.T
    nearest = heads.argmax(dim=-1).view(60, 16)  # of the tokens of each image and head
    sizes = [sorted(x.bincount(minlength=4).tolist(), reverse=True) for x in nearest]
    assert result.basins[1, 0] == pytest.approx(np.mean(sizes, axis=0) / 16, abs=0.01)
    assert result.recall[1, 0, :2].tolist() == [1, 1]
    assert not result.recall[0].any()


def test_the_inverse_temperature_of_a_head_is_divided_by_the_root_of_its_width() -> None:
    """A state at weight w between two orthogonal attractors rests there for this beta only."""
    model = with_attractors(torch.eye(4))
    w = 0.95
    beta = np.log(w / ((1 - w) / 3)) / (w - (1 - w) / 3)  # softmax(beta s) = s with s = (w, ...)
    result = measure_basins(model, [spread_out(4, 4)], betas=(2 * 1.05 * beta, 2 * 0.5 * beta))
    assert result.single.tolist() == [[1], [0]]  # 90 % is reached only by the first


# --- capacity, reconstruction ---


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"competition": "priors"}])
def test_capacity_agrees_with_a_loop_over_images(changes: dict[str, Any]) -> None:
    model, batches = make_model(with_workspace(**changes)), make_batches(3, 30)
    result = measure_capacity(model, batches, (2, 4), seed=3)
    assert (result.num_moves, result.pool_sizes.tolist()) == (1, [4])
    for layer, u in enumerate(tokens_of(model, batches)):
        workspace = copy.deepcopy(model.blocks[layer].workspace)
        generator = torch.Generator().manual_seed(3)
        fresh = torch.randn(4, 8, generator=generator)
        for row, count in enumerate((2, 4)):
            rows = [x / x.norm() * 8**0.5 for x in fresh[:count]]
            workspace.priors = torch.nn.Parameter(torch.stack(rows))
            step = naive_image.workspace_step(u[:16].double(), *weights_of(workspace))
            ranks = [effective_rank(memory) for memory in step.priors]
            assert result.effective_rank[layer, row, 0] == pytest.approx(np.mean(ranks), rel=1e-3)
            covered = step.attention.is_chosen.any(dim=2).double().mean().item()
            assert result.coverage[layer, row, 0] == pytest.approx(covered)


@torch.no_grad()
@pytest.mark.parametrize("size", [1.0, 60.0])
def test_attractors_of_heads_are_recalled_if_beta_does_not_mix_them(size: float) -> None:
    model = make_model()
    for block in model.blocks:
        block.workspace.to_attractor.weight.mul_(size)
    result = measure_capacity(model, make_batches(4), (2, 3))
    assert (result.recalled > 0.5).all() == (size > 1)
    assert (result.recalled <= 1).all()


@torch.no_grad()
def test_tokens_after_retrieval_agree_with_loops() -> None:
    model = make_model(replace(TINY, head="cls"))
    batches = make_batches(3)
    result = measure_reconstruction(model, batches, (0.5, 4.0))
    assert result.before.shape == (2, 3, 4, 2)
    for layer, u in enumerate(tokens_of(model, batches)):
        weights, settings = weights_of(model.blocks[layer].workspace)
        memories = naive_image.workspace_step(u.double(), weights, settings).priors
        linear = (weights.attractor_weight, weights.attractor_bias)
        attractors = torch.stack([naive.linear(memory, *linear) for memory in memories])
        plane = _principal_plane(u[:, 1:].flatten(0, 1))
        for r, beta in enumerate((0.5, 4.0)):
            retrieved = naive_image.retrieve(u[:, 1:].double(), attractors, beta, 4)
            assert result.after[r, layer] == pytest.approx(plane.project(retrieved), abs=1e-4)


# --- all of them ---

MEASURES: dict[str, Callable[..., object]] = {
    "selection": measure_selection,
    "specialization": lambda model, batches: measure_specialization(
        model, batches, ["a", "b", "c"]
    ),
    "basins": measure_basins,
    "capacity": lambda model, batches: measure_capacity(model, batches, (2, 3)),
    "reconstruction": measure_reconstruction,
}


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_measuring_does_not_change_the_model_and_uses_no_dropout(
    measure: Callable[..., Any],
) -> None:
    model, batches = make_model(with_workspace(dropout=0.9)).train(), make_batches(2, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, again = (measure(model, batches) for _ in range(2))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    for name, value in vars(first).items():
        assert np.array_equal(getattr(again, name), value), name
