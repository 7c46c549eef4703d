"""Mutual information and its baseline, for planted priors and compared with slow loops."""

import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from associative_transformer.analysis.information import VARIABLES, mutual_information
from associative_transformer.analysis.specialization import (
    Specialization,
    equal_bins,
    measure_specialization,
)
from associative_transformer.analysis.storage import load_result, save_result
from associative_transformer.analysis.trace import trace
from associative_transformer.functional import Selection, pooled_attention
from associative_transformer.interface import PADDING, Batch, UserError
from associative_transformer.kernels import PoolAttention
from associative_transformer.models.ait import AiT, AiTConfig
from associative_transformer.models.vit import ViT, ViTConfig
from associative_transformer.workspace_config import WorkspaceConfig

CLASS, POSITION, CONTENT = range(3)
QUARTER = 2 - 0.75 * math.log2(3)  # entropy of an event with probability 1/4, in bits


def make_model(
    num_heads: int = 1,
    num_priors: int = 1,
    depth: int = 1,
    question_dim: int = 0,
    attend: Callable[..., Selection] = pooled_attention,
    bottleneck: int = 6,
) -> AiT:
    """Return an AiT with four patches of 4x4 pixels per image."""
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
    """Return an `attend` that takes the given tokens: indices (S, M, K) for each pool in turn."""
    remaining = [torch.tensor(choice, dtype=torch.int64) for choice in choices]

    def attend(q: Tensor, *_: Tensor | int | None) -> Selection:
        chosen = remaining.pop(0)
        return Selection(torch.zeros_like(q), torch.ones(chosen.shape), chosen)

    return attend


def make_batch(labels: list[int], brightness: Tensor | None = None) -> Batch:
    """Return images of these classes whose four patches have these means."""
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
    """Sum p(t, x) log2 of p(t, x) / p(t) p(x) over pairs of (taken, value), one per token."""
    total = len(pairs)
    joint, is_taken, value = (
        Counter(pairs),
        Counter(t for t, _ in pairs),
        Counter(x for _, x in pairs),
    )
    return sum(
        n / total * math.log2(n * total / (is_taken[t] * value[x])) for (t, x), n in joint.items()
    )


def test_taking_one_of_two_equal_halves_is_one_bit_of_information() -> None:
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


def test_values_taken_in_proportion_carry_no_information() -> None:
    taken = torch.tensor([[1, 2, 3]])
    assert mutual_information(taken, 7 * taken[0]).item() == pytest.approx(0, abs=1e-12)


# --- bins of content ---


def test_bins_contain_equally_many_values() -> None:
    values = torch.randperm(24).float()
    edges = equal_bins(values, 8)
    assert edges.tolist() == [0, 3, 6, 9, 12, 15, 18, 21, 23]
    assert (
        torch.bucketize(values, edges[1:-1].contiguous(), right=True).bincount().tolist()
        == [3] * 8
    )


def test_equal_values_share_a_bin_and_others_may_be_empty() -> None:
    edges = equal_bins(torch.tensor([1.0, 1, 1, 1, 1, 1, 0, 2]), 4)
    assert edges.tolist() == [0, 1, 1, 1, 2]
    flat = torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 2]]).view(2, 1, 2, 2)  # exactly equal pixels
    flat = flat.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    batch = Batch(flat, None, torch.tensor([0, 0]))
    result = measure([batch], [[[list(range(8))]]], num_bins=4)
    assert result.by_content[0, 0, 0].tolist() == [1 / 8, 0, 0, 7 / 8]


def test_the_first_pool_sets_the_bins_and_all_pools_the_outer_edges() -> None:
    first = make_batch([0], torch.tensor([[0.0, 1, 2, 3]]))
    second = make_batch([0], torch.tensor([[-5.0, 2.5, 2.6, 9]]))
    result = measure([first, second], [[[[0, 1, 2, 3]]]] * 2)
    assert result.content_edges == pytest.approx(np.array([-5, 2, 9]), abs=1e-6)
    assert result.by_content[0, 0, 0] == pytest.approx(np.array([3, 5]) / 8)


# --- planted priors ---


def test_the_information_about_the_class_agrees_with_a_calculation_by_hand() -> None:
    whole, half = [0, 1, 2, 3, 8, 9, 10, 11], [0, 1, 8, 9]  # of images 0 and 2, of class a
    result = measure([make_batch([0, 1, 0, 1])], [[[whole]]])
    assert result.information[CLASS].item() == pytest.approx(1)
    assert result.by_class[0, 0, 0].tolist() == [1, 0, 0]
    result = measure([make_batch([0, 1, 0, 1])], [[[half]]])
    assert result.information[CLASS].item() == pytest.approx(QUARTER - 0.5)  # H(t) - H(t | class)


def test_a_prior_that_takes_one_class_stands_out_only_by_class() -> None:
    labels = [0, 1, 2] * 6
    taken = [4 * i + p for i in range(0, 18, 3) for p in range(4)]
    result = measure([make_batch(labels)] * 4, [[[taken]]] * 4)
    assert result.p_value[CLASS].item() == pytest.approx(1 / 21)
    assert result.information[CLASS].item() > 5 * result.baseline[CLASS].item()
    assert result.information[POSITION].item() == pytest.approx(0, abs=1e-12)
    assert result.p_value[POSITION].item() == 1


def test_a_prior_that_takes_one_position_stands_out_only_by_position() -> None:
    taken = [4 * i + 2 for i in range(12)]
    result = measure([make_batch([0, 1, 2] * 4)] * 2, [[[taken]]] * 2)
    assert result.information[POSITION].item() == pytest.approx(QUARTER)
    assert result.by_position[0, 0, 0].tolist() == [0, 0, 1, 0]
    assert result.p_value[POSITION].item() == pytest.approx(1 / 21)
    assert result.information[CLASS].item() == pytest.approx(0, abs=1e-12)
    assert result.baseline[CLASS].item() == pytest.approx(0, abs=1e-12)
    assert result.p_value[CLASS].item() == 1


def test_a_prior_that_takes_bright_patches_stands_out_by_content() -> None:
    brightness = torch.randperm(48).view(12, 4).float()
    order = brightness.flatten().argsort()
    result = measure([make_batch([0, 1, 2] * 4, brightness)], [[[order[24:].tolist()]]])
    assert result.information[CONTENT].item() == pytest.approx(1)
    assert result.by_content[0, 0, 0].tolist() == [0, 1]
    assert result.p_value[CONTENT].item() == pytest.approx(1 / 21)
    result = measure(
        [make_batch([0, 1, 2] * 4, brightness)], [[[order[:12].tolist()]]], num_bins=4
    )
    assert result.information[CONTENT].item() == pytest.approx(QUARTER)
    assert result.by_content[0, 0, 0].tolist() == [1, 0, 0, 0]


def test_heads_priors_and_layers_are_counted_separately() -> None:
    """The four priors of a layer take different positions of every image."""
    positions = {
        (0, 0, 0): 0,
        (0, 0, 1): 1,
        (0, 1, 0): 2,
        (0, 1, 1): 3,
        (1, 0, 0): 3,
        (1, 0, 1): 2,
    }
    positions |= {(1, 1, 0): 1, (1, 1, 1): 0}
    choices = [
        [[[4 * i + positions[layer, s, m] for i in range(3)] for m in range(2)] for s in range(2)]
        for layer in range(2)
    ]
    model = make_model(2, 2, depth=2, attend=take(choices * 2))
    result = measure_specialization(model, [make_batch([0, 1, 2])] * 2, ["a", "b", "c"])
    assert result.information.shape == (len(VARIABLES), 2, 2, 2)
    for entry, position in positions.items():
        assert result.by_position[entry].argmax() == position
        assert result.by_position[entry].max() == 1


# --- the baseline ---


def test_the_class_is_shuffled_among_images() -> None:
    """Two of four images are taken; one permutation in three keeps their classes together."""
    taken = list(range(8))
    result = measure([make_batch([0, 0, 1, 1])], [[[taken]]], num_permutations=600)
    assert result.information[CLASS].item() == pytest.approx(1)
    assert result.baseline[CLASS].item() == pytest.approx(1 / 3, abs=0.07)
    assert result.p_value[CLASS].item() == pytest.approx(1 / 3, abs=0.07)


def test_the_baseline_is_the_mean_over_the_permutations_only() -> None:
    result = measure(
        [make_batch([0, 1, 0, 1])], [[[[0, 1, 2, 3, 8, 9, 10, 11]]]], num_permutations=1
    )
    assert result.p_value[CLASS].item() == 1 / 2  # the permutation of seed 0 is less informative
    assert result.baseline[CLASS].item() == pytest.approx(0, abs=1e-12)


def test_the_position_is_shuffled_within_each_image() -> None:
    """With one image no information is lost; with two, one permutation in four keeps it."""
    result = measure([make_batch([0])], [[[[1]]]], num_permutations=50)
    assert result.baseline[POSITION].item() == pytest.approx(QUARTER)
    assert result.p_value[POSITION].item() == 1
    result = measure([make_batch([0, 0])], [[[[1, 5]]]], num_permutations=600)
    separated = QUARTER - 0.5  # two of four positions are taken half of the time
    assert result.information[POSITION].item() == pytest.approx(QUARTER)
    assert result.p_value[POSITION].item() == pytest.approx(1 / 4, abs=0.07)
    expected = QUARTER / 4 + separated * 3 / 4
    assert result.baseline[POSITION].item() == pytest.approx(expected, abs=0.04)


def test_the_content_is_shuffled_among_the_tokens_of_the_pool() -> None:
    """One permutation in three keeps the two brightest of four tokens together."""
    batch = make_batch([0], torch.tensor([[3.0, 0, 2, 1]]))
    result = measure([batch], [[[[0, 2]]]], num_permutations=600)
    assert result.information[CONTENT].item() == pytest.approx(1)
    assert result.baseline[CONTENT].item() == pytest.approx(1 / 3, abs=0.07)
    two = make_batch([0, 0], torch.tensor([[9.0, 9, 9, 9], [0, 1, 2, 3]]) + torch.rand(2, 4) / 9)
    result = measure([two], [[[[0, 1, 2, 3]]]], num_permutations=100)
    assert result.p_value[CONTENT].item() < 0.1  # 2 in 70, not 1 as for whole images
    assert result.information[CONTENT].item() == pytest.approx(1)


def test_variables_are_shuffled_within_a_pool_only() -> None:
    first, second = make_batch([0, 0]), make_batch([1, 1])
    result = measure([first, second], [[[list(range(8))]], [[[]]]])
    assert result.information[CLASS].item() == pytest.approx(1)
    assert result.baseline[CLASS].item() == pytest.approx(1)
    assert result.p_value[CLASS].item() == 1


def test_priors_that_take_random_tokens_have_no_more_information_than_the_baseline() -> None:
    batches, choices = [], []
    for _ in range(6):
        batches.append(make_batch(torch.randint(3, (16,)).tolist()))
        choices.append([[torch.randperm(64)[:12].tolist() for _ in range(32)] for _ in range(2)])
    result = measure(batches, choices, num_bins=4)
    ratio = result.information.mean(axis=(1, 2, 3)) / result.baseline.mean(axis=(1, 2, 3))
    assert (np.abs(ratio - 1) < 0.4).all()
    assert ((result.p_value <= 0.1).mean(axis=(1, 2, 3)) < 0.25).all()
    assert (np.abs(result.p_value.mean(axis=(1, 2, 3)) - 0.5) < 0.15).all()


def test_priors_that_take_random_whole_images_are_not_specialized() -> None:
    """If single tokens were shuffled, these priors would count as specialized by class."""
    batches, choices = [], []
    for _ in range(4):
        batches.append(make_batch(torch.randint(3, (16,)).tolist()))
        images = [torch.randperm(16)[:4].tolist() for _ in range(40)]
        choices.append([[[4 * i + p for i in taken for p in range(4)] for taken in images]])
    result = measure(batches, choices)
    assert (result.p_value[CLASS] <= 0.1).mean() < 0.25
    assert abs(result.p_value[CLASS].mean() - 0.5) < 0.15


def test_random_labels_have_no_more_information_than_the_baseline() -> None:
    model, ratios, small = make_model(4, 8), [], []
    for _ in range(8):
        batches = [make_batch(torch.randint(3, (16,)).tolist()) for _ in range(3)]
        result = measure_specialization(model, batches, ["a", "b", "c"])
        ratios.append(result.information[CLASS].mean() / result.baseline[CLASS].mean())
        small.append((result.p_value[CLASS] <= 0.1).mean())
    assert np.mean(ratios) == pytest.approx(1, abs=0.3)
    assert np.mean(small) < 0.3


def test_the_seed_fixes_the_baseline_and_does_not_affect_the_information() -> None:
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
    result = measure_specialization(
        model, batches, ["a", "b", "c"], num_permutations=1, num_bins=3
    )
    assert result.num_images == 6
    num_questions = 0
    for layer, head, prior in np.ndindex(2, 2, 3):
        pairs: list[list[tuple[bool, int]]] = [[], [], []]
        for batch in batches:
            traced = trace(model, batch)
            trace_of_layer = traced.layers[layer]
            pool = trace_of_layer.workspace_input.flatten(0, 1)
            taken = trace_of_layer.workspace.write(pool).selection.chosen[head, prior].tolist()
            num_questions += sum(token % 5 == 0 for token in taken)
            for i, image in enumerate(traced.images):
                for p in range(4):
                    is_taken = 5 * i + 1 + p in taken
                    row, column = divmod(p, 2)
                    pixels = image[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                    bright = pixels.double().mean().item()
                    content = sum(bright >= edge - 1e-12 for edge in result.content_edges[1:-1])
                    values = (int(traced.labels[i]), p, content)
                    for pair, value in zip(pairs, values, strict=True):
                        pair.append((is_taken, value))
        shares = (result.by_class, result.by_position, result.by_content)
        for variable in range(3):
            assert len(pairs[variable]) == 24
            assert result.information[variable, layer, head, prior] == pytest.approx(
                slow_information(pairs[variable]), abs=1e-9
            )
            values = Counter(x for is_taken, x in pairs[variable] if is_taken)
            share = shares[variable][layer, head, prior]
            assert share == pytest.approx(
                [values[x] / values.total() for x in range(len(share))], abs=1e-9
            )
    assert num_questions > 0


def test_a_prior_that_takes_only_questions_has_no_information() -> None:
    model = make_model(question_dim=5, attend=take([[[[0, 5]]]]))
    images, _, labels = make_batch([0, 1])
    result = measure_specialization(model, [Batch(images, torch.randn(2, 5), labels)], ["a", "b"])
    assert not result.by_class.any()
    assert not result.by_position.any()
    assert not result.information.any()
    assert (result.p_value == 1).all()


def test_the_model_and_its_memory_do_not_change() -> None:
    model = make_model(2, 3, depth=2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    measure_specialization(model, [make_batch([0, 1])] * 3, ["a", "b", "c"])
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_no_batch_is_kept() -> None:
    references: list[weakref.ref[Tensor]] = []

    def stream() -> Iterator[Batch]:
        for _ in range(6):
            assert sum(image() is not None for image in references) <= 1
            batch = make_batch([0, 1, 2])
            references.append(weakref.ref(batch.images))
            yield batch

    assert measure_specialization(make_model(), stream(), ["a", "b", "c"]).num_images == 18


def test_the_result_can_be_saved_and_read_back(tmp_path: Path) -> None:
    result = measure_specialization(make_model(), [make_batch([0, 1])], ("a", "b", "c"))
    save_result(result, tmp_path, "specialization")
    again = load_result(Specialization, tmp_path, "specialization")
    assert again.classes == ["a", "b", "c"]
    assert again.num_permutations == 20
    assert (again.p_value == result.p_value).all()


def test_models_without_priors_and_invalid_arguments_are_refused() -> None:
    vit = ViT(ViTConfig(image_size=8, patch_size=4, num_channels=1, embed_dim=8, depth=1))
    with pytest.raises(UserError, match="ViT has no priors to specialize: use a run of AiT"):
        measure_specialization(vit, [make_batch([0])], ["a"])
    for invalid in ({"num_permutations": 0}, {"num_bins": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            measure_specialization(make_model(), [make_batch([0])], ["a"], **invalid)
    with pytest.raises(ValueError, match="no image"):
        measure_specialization(make_model(), [], ["a"])
