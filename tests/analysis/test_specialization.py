"""Mutual information and its baseline: planted priors, hand-computed bits, slow loops."""

import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from associative_transformer.analysis.specialization import (
    VARIABLES,
    Specialization,
    equal_bins,
    measure_specialization,
    mutual_information,
)
from associative_transformer.analysis.storage import load_result, save_result
from associative_transformer.analysis.trace import trace
from associative_transformer.functional import Selection, pooled_attention
from associative_transformer.interface import PADDING, Batch, UserError
from associative_transformer.kernels import PoolAttention
from associative_transformer.models.ait import AiT, AiTConfig
from associative_transformer.models.vit import ViT, ViTConfig
from associative_transformer.workspace import WorkspaceConfig

CLASS, POSITION, CONTENT = range(3)
QUARTER = 2 - 0.75 * math.log2(3)  # entropy of one in four, in bits


def make_model(
    num_heads: int = 1,
    num_priors: int = 1,
    depth: int = 1,
    question_dim: int = 0,
    attend: Callable[..., Selection] = pooled_attention,
    bottleneck: int = 6,
) -> AiT:
    """Four patches of 4x4 pixels an image."""
    workspace = WorkspaceConfig(
        num_priors=num_priors, prior_dim=4, num_heads=num_heads, bottleneck=bottleneck
    )
    config = AiTConfig(
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_classes=3,
        question_dim=question_dim,
        embed_dim=8,
        depth=depth,
        num_heads=1,
        head_dim=8,
        mlp_ratio=1.0,
        workspace=workspace,
    )
    return AiT(config, PoolAttention(attend))


def take(choices: Sequence[Sequence[Sequence[Sequence[int]]]]) -> Callable[..., Selection]:
    """Plant what the priors take: (S, M, K) places in the pool, for one pool after another."""
    left = [torch.tensor(choice, dtype=torch.int64) for choice in choices]

    def attend(q: Tensor, *_: Tensor | int | None) -> Selection:
        chosen = left.pop(0)
        return Selection(torch.zeros_like(q), torch.ones(chosen.shape), chosen)

    return attend


def make_batch(labels: list[int], brightness: Tensor | None = None) -> Batch:
    """Images of these classes, whose four patches have these mean values."""
    if brightness is None:
        brightness = torch.randn(len(labels), 4)
    noise = torch.randn(len(labels), 4, 4, 4)
    noise -= noise.mean(dim=(2, 3), keepdim=True)
    patches = (brightness[:, :, None, None] + noise).view(-1, 2, 2, 4, 4)
    images = patches.permute(0, 1, 3, 2, 4).reshape(-1, 1, 8, 8)
    return Batch(images, None, torch.tensor(labels))


def measure(
    batches: Sequence[Batch],
    choices: Sequence[Sequence[Sequence[Sequence[int]]]],
    num_permutations: int = 20,
    num_bins: int = 2,
) -> Specialization:
    num_heads, num_priors = len(choices[0]), len(choices[0][0])
    model = make_model(num_heads, num_priors, attend=take(choices))
    return measure_specialization(model, batches, ["a", "b", "c"], num_permutations, 0, num_bins)


# --- mutual information ---


def slow_information(pairs: list[tuple[bool, int]]) -> float:
    """Sum p(t, x) log2 of p(t, x) / p(t) p(x) over pairs of (taken, value), one a token."""
    total = len(pairs)
    joint, is_taken, value = (
        Counter(pairs),
        Counter(t for t, _ in pairs),
        Counter(x for _, x in pairs),
    )
    return sum(
        n / total * math.log2(n * total / (is_taken[t] * value[x])) for (t, x), n in joint.items()
    )


def test_a_split_in_two_halves_says_one_bit() -> None:
    taken = torch.tensor([[5, 0], [0, 5], [0, 0], [5, 5]])
    bits = mutual_information(taken, torch.tensor([5, 5]))
    assert bits.tolist() == pytest.approx([1, 1, 0, 0], abs=1e-12)


def test_information_agrees_with_a_sum_over_tokens() -> None:
    total = torch.tensor([7, 0, 3, 12, 1])
    taken = torch.stack(
        [torch.tensor([int(torch.randint(n + 1, ())) for n in total]) for _ in range(9)]
    )
    for row, bits in zip(taken, mutual_information(taken, total), strict=True):
        pairs = [(i < int(row[x]), x) for x in range(5) for i in range(int(total[x]))]
        assert float(bits) == pytest.approx(slow_information(pairs), abs=1e-12)


def test_values_taken_in_proportion_say_nothing() -> None:
    taken = torch.tensor([[1, 2, 3]])
    assert mutual_information(taken, 7 * taken[0]).item() == pytest.approx(0, abs=1e-12)


# --- bins of content ---


def test_bins_hold_equally_many_values() -> None:
    values = torch.randperm(24).float()
    edges = equal_bins(values, 8)
    assert edges.tolist() == [0, 3, 6, 9, 12, 15, 18, 21, 23]
    assert (
        torch.bucketize(values, edges[1:-1].contiguous(), right=True).bincount().tolist()
        == [3] * 8
    )


def test_equal_values_share_a_bin_and_leave_others_empty() -> None:
    edges = equal_bins(torch.tensor([1.0, 1, 1, 1, 1, 1, 0, 2]), 4)
    assert edges.tolist() == [0, 1, 1, 1, 2]
    flat = torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 2]]).view(2, 1, 2, 2)  # exactly equal pixels
    flat = flat.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    batch = Batch(flat, None, torch.tensor([0, 0]))
    found = measure([batch], [[[list(range(8))]]], num_bins=4)
    assert found.by_content[0, 0, 0].tolist() == [1 / 8, 0, 0, 7 / 8]


def test_the_first_pool_gives_the_bins_and_all_pools_the_outer_edges() -> None:
    first = make_batch([0], torch.tensor([[0.0, 1, 2, 3]]))
    second = make_batch([0], torch.tensor([[-5.0, 2.5, 2.6, 9]]))
    found = measure([first, second], [[[[0, 1, 2, 3]]]] * 2)
    assert found.content_edges == pytest.approx(np.array([-5, 2, 9]), abs=1e-6)
    assert found.by_content[0, 0, 0] == pytest.approx(np.array([3, 5]) / 8)


# --- planted priors ---


def test_a_prior_that_takes_one_class_says_what_was_computed_by_hand() -> None:
    whole, half = (
        [0, 1, 2, 3, 8, 9, 10, 11],
        [0, 1, 8, 9],
    )  # of images 0 and 2, which are of class a
    found = measure([make_batch([0, 1, 0, 1])], [[[whole]]])
    assert found.information[CLASS].item() == pytest.approx(1)
    assert found.by_class[0, 0, 0].tolist() == [1, 0, 0]
    found = measure([make_batch([0, 1, 0, 1])], [[[half]]])
    assert found.information[CLASS].item() == pytest.approx(QUARTER - 0.5)  # H(t) - H(t | class)


def test_a_prior_that_takes_one_class_stands_out_only_by_class() -> None:
    labels = [0, 1, 2] * 6
    taken = [4 * i + p for i in range(0, 18, 3) for p in range(4)]
    found = measure([make_batch(labels)] * 4, [[[taken]]] * 4)
    assert found.p_value[CLASS].item() == pytest.approx(1 / 21)
    assert found.information[CLASS].item() > 5 * found.baseline[CLASS].item()
    assert found.information[POSITION].item() == pytest.approx(0, abs=1e-12)
    assert found.p_value[POSITION].item() == 1


def test_a_prior_that_takes_one_position_stands_out_only_by_position() -> None:
    taken = [4 * i + 2 for i in range(12)]
    found = measure([make_batch([0, 1, 2] * 4)] * 2, [[[taken]]] * 2)
    assert found.information[POSITION].item() == pytest.approx(QUARTER)
    assert found.by_position[0, 0, 0].tolist() == [0, 0, 1, 0]
    assert found.p_value[POSITION].item() == pytest.approx(1 / 21)
    assert found.information[CLASS].item() == pytest.approx(0, abs=1e-12)
    assert found.baseline[CLASS].item() == pytest.approx(0, abs=1e-12)
    assert found.p_value[CLASS].item() == 1


def test_a_prior_that_takes_bright_patches_stands_out_by_content() -> None:
    brightness = torch.randperm(48).view(12, 4).float()
    order = brightness.flatten().argsort()
    found = measure([make_batch([0, 1, 2] * 4, brightness)], [[[order[24:].tolist()]]])
    assert found.information[CONTENT].item() == pytest.approx(1)
    assert found.by_content[0, 0, 0].tolist() == [0, 1]
    assert found.p_value[CONTENT].item() == pytest.approx(1 / 21)
    found = measure([make_batch([0, 1, 2] * 4, brightness)], [[[order[:12].tolist()]]], num_bins=4)
    assert found.information[CONTENT].item() == pytest.approx(QUARTER)
    assert found.by_content[0, 0, 0].tolist() == [1, 0, 0, 0]


def test_heads_priors_and_layers_keep_their_own_counts() -> None:
    """Each prior of each head of each layer takes another position of every image."""
    place = {(0, 0, 0): 0, (0, 0, 1): 1, (0, 1, 0): 2, (0, 1, 1): 3, (1, 0, 0): 3, (1, 0, 1): 2}
    place |= {(1, 1, 0): 1, (1, 1, 1): 0}
    choices = [
        [[[4 * i + place[layer, s, m] for i in range(3)] for m in range(2)] for s in range(2)]
        for layer in range(2)
    ]
    model = make_model(2, 2, depth=2, attend=take(choices * 2))
    found = measure_specialization(model, [make_batch([0, 1, 2])] * 2, ["a", "b", "c"])
    assert found.information.shape == (len(VARIABLES), 2, 2, 2)
    for where, position in place.items():
        assert found.by_position[where].argmax() == position
        assert found.by_position[where].max() == 1


# --- the baseline ---


def test_the_class_is_shuffled_among_images() -> None:
    """Two of four images are taken whole; one permutation in three keeps them together."""
    taken = list(range(8))
    found = measure([make_batch([0, 0, 1, 1])], [[[taken]]], num_permutations=600)
    assert found.information[CLASS].item() == pytest.approx(1)
    assert found.baseline[CLASS].item() == pytest.approx(1 / 3, abs=0.07)
    assert found.p_value[CLASS].item() == pytest.approx(1 / 3, abs=0.07)


def test_the_baseline_is_of_permutations_alone() -> None:
    found = measure(
        [make_batch([0, 1, 0, 1])], [[[[0, 1, 2, 3, 8, 9, 10, 11]]]], num_permutations=1
    )
    assert found.p_value[CLASS].item() == 1 / 2  # of seed 0, the only permutation parts the two
    assert found.baseline[CLASS].item() == pytest.approx(0, abs=1e-12)


def test_the_position_is_shuffled_within_each_image() -> None:
    """With one image nothing can be lost; with two, the positions agree one time in four."""
    found = measure([make_batch([0])], [[[[1]]]], num_permutations=50)
    assert found.baseline[POSITION].item() == pytest.approx(QUARTER)
    assert found.p_value[POSITION].item() == 1
    found = measure([make_batch([0, 0])], [[[[1, 5]]]], num_permutations=600)
    apart = QUARTER - 0.5  # two of four positions are taken half of the time
    assert found.information[POSITION].item() == pytest.approx(QUARTER)
    assert found.p_value[POSITION].item() == pytest.approx(1 / 4, abs=0.07)
    expected = QUARTER / 4 + apart * 3 / 4
    assert found.baseline[POSITION].item() == pytest.approx(expected, abs=0.04)


def test_the_content_is_shuffled_among_the_tokens_of_the_pool() -> None:
    """The two brightest of four tokens stay together one time in three."""
    batch = make_batch([0], torch.tensor([[3.0, 0, 2, 1]]))
    found = measure([batch], [[[[0, 2]]]], num_permutations=600)
    assert found.information[CONTENT].item() == pytest.approx(1)
    assert found.baseline[CONTENT].item() == pytest.approx(1 / 3, abs=0.07)
    two = make_batch([0, 0], torch.tensor([[9.0, 9, 9, 9], [0, 1, 2, 3]]) + torch.rand(2, 4) / 9)
    found = measure([two], [[[[0, 1, 2, 3]]]], num_permutations=100)
    assert found.p_value[CONTENT].item() < 0.1  # 2 in 70, were images kept whole: 1
    assert found.information[CONTENT].item() == pytest.approx(1)


def test_nothing_is_shuffled_from_one_pool_to_another() -> None:
    first, second = make_batch([0, 0]), make_batch([1, 1])
    found = measure([first, second], [[[list(range(8))]], [[[]]]])
    assert found.information[CLASS].item() == pytest.approx(1)
    assert found.baseline[CLASS].item() == pytest.approx(1)
    assert found.p_value[CLASS].item() == 1


def test_priors_that_take_at_random_say_no_more_than_the_baseline() -> None:
    batches, choices = [], []
    for _ in range(6):
        batches.append(make_batch(torch.randint(3, (16,)).tolist()))
        choices.append([[torch.randperm(64)[:12].tolist() for _ in range(32)] for _ in range(2)])
    found = measure(batches, choices, num_bins=4)
    ratio = found.information.mean(axis=(1, 2, 3)) / found.baseline.mean(axis=(1, 2, 3))
    assert (np.abs(ratio - 1) < 0.4).all()
    assert ((found.p_value <= 0.1).mean(axis=(1, 2, 3)) < 0.25).all()
    assert (np.abs(found.p_value.mean(axis=(1, 2, 3)) - 0.5) < 0.15).all()


def test_images_taken_whole_at_random_are_no_specialization() -> None:
    """Shuffling tokens would call these priors specialized, as the tokens hang together."""
    batches, choices = [], []
    for _ in range(4):
        batches.append(make_batch(torch.randint(3, (16,)).tolist()))
        images = [torch.randperm(16)[:4].tolist() for _ in range(40)]
        choices.append([[[4 * i + p for i in taken for p in range(4)] for taken in images]])
    found = measure(batches, choices)
    assert (found.p_value[CLASS] <= 0.1).mean() < 0.25
    assert abs(found.p_value[CLASS].mean() - 0.5) < 0.15


def test_labels_that_the_images_know_nothing_of_say_no_more_than_the_baseline() -> None:
    model, ratios, small = make_model(4, 8), [], []
    for _ in range(8):
        batches = [make_batch(torch.randint(3, (16,)).tolist()) for _ in range(3)]
        found = measure_specialization(model, batches, ["a", "b", "c"])
        ratios.append(found.information[CLASS].mean() / found.baseline[CLASS].mean())
        small.append((found.p_value[CLASS] <= 0.1).mean())
    assert np.mean(ratios) == pytest.approx(1, abs=0.3)
    assert np.mean(small) < 0.3


def test_the_seed_fixes_the_baseline_and_leaves_the_information_alone() -> None:
    model, batches = make_model(2, 3), [make_batch([0, 1, 2, 0, 1])]
    first, again, other = (
        measure_specialization(model, batches, ["a", "b", "c"], seed=seed) for seed in (0, 0, 1)
    )
    assert (first.baseline == again.baseline).all()
    assert (first.baseline != other.baseline).any()
    assert (first.information == other.information).all()


# --- whole models ---


def test_a_model_with_questions_agrees_with_loops_over_its_patches() -> None:
    """Random weights; the last batch is padded, and question tokens are taken but not counted."""
    model = make_model(2, 3, depth=2, question_dim=5, bottleneck=9)
    batches = []
    for labels in ([0, 1, 2, 0], [2, 1, PADDING, PADDING]):
        images, _, labels_ = make_batch(labels)
        batches.append(Batch(images, torch.randn(4, 5), labels_))
    found = measure_specialization(model, batches, ["a", "b", "c"], num_permutations=1, num_bins=3)
    assert found.num_images == 6
    asked = 0
    for layer, head, prior in np.ndindex(2, 2, 3):
        pairs: list[list[tuple[bool, int]]] = [[], [], []]
        for batch in batches:
            traced = trace(model, batch)
            place = traced.layers[layer]
            pool = place.workspace_input.flatten(0, 1)
            taken = place.workspace.write(pool).selection.chosen[head, prior].tolist()
            asked += sum(token % 5 == 0 for token in taken)
            for i, image in enumerate(traced.images):
                for p in range(4):
                    is_taken = 5 * i + 1 + p in taken
                    row, column = divmod(p, 2)
                    pixels = image[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                    bright = pixels.double().mean().item()
                    content = sum(bright >= edge - 1e-12 for edge in found.content_edges[1:-1])
                    values = (int(traced.labels[i]), p, content)
                    for pair, value in zip(pairs, values, strict=True):
                        pair.append((is_taken, value))
        shares = (found.by_class, found.by_position, found.by_content)
        for variable in range(3):
            assert len(pairs[variable]) == 24
            assert found.information[variable, layer, head, prior] == pytest.approx(
                slow_information(pairs[variable]), abs=1e-9
            )
            values = Counter(x for is_taken, x in pairs[variable] if is_taken)
            share = shares[variable][layer, head, prior]
            assert share == pytest.approx(
                [values[x] / values.total() for x in range(len(share))], abs=1e-9
            )
    assert asked > 0


def test_a_prior_that_takes_only_questions_takes_no_patch() -> None:
    model = make_model(question_dim=5, attend=take([[[[0, 5]]]]))
    images, _, labels = make_batch([0, 1])
    found = measure_specialization(model, [Batch(images, torch.randn(2, 5), labels)], ["a", "b"])
    assert not found.by_class.any()
    assert not found.by_position.any()
    assert not found.information.any()
    assert (found.p_value == 1).all()


def test_the_model_and_its_memory_stay_as_they_are() -> None:
    model = make_model(2, 3, depth=2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    measure_specialization(model, [make_batch([0, 1])] * 3, ["a", "b", "c"])
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_no_batch_is_kept() -> None:
    seen: list[weakref.ref[Tensor]] = []

    def stream() -> Iterator[Batch]:
        for _ in range(6):
            assert sum(image() is not None for image in seen) <= 1
            batch = make_batch([0, 1, 2])
            seen.append(weakref.ref(batch.images))
            yield batch

    assert measure_specialization(make_model(), stream(), ["a", "b", "c"]).num_images == 18


def test_the_result_can_be_saved_and_read_back(tmp_path: Path) -> None:
    found = measure_specialization(make_model(), [make_batch([0, 1])], ("a", "b", "c"))
    save_result(found, tmp_path, "specialization")
    again = load_result(Specialization, tmp_path, "specialization")
    assert again.classes == ["a", "b", "c"]
    assert again.num_permutations == 20
    assert (again.p_value == found.p_value).all()


def test_what_cannot_be_measured_is_refused() -> None:
    vit = ViT(ViTConfig(image_size=8, patch_size=4, num_channels=1, embed_dim=8, depth=1))
    with pytest.raises(UserError, match="a ViT has no priors to specialize: take a run of AiT"):
        measure_specialization(vit, [make_batch([0])], ["a"])
    for wrong in ({"num_permutations": 0}, {"num_bins": 0}):
        with pytest.raises(ValueError, match="start at 1"):
            measure_specialization(make_model(), [make_batch([0])], ["a"], **wrong)
    with pytest.raises(ValueError, match="no image"):
        measure_specialization(make_model(), [], ["a"])
