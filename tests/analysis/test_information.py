"""Information between priors and patches: by hand, and compared with sums over links."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from associative_transformer.analysis.information import (
    Links,
    Tally,
    choice_information,
    compare,
    focus,
    links_of_reading,
    links_of_writing,
    mutual_information,
)
from associative_transformer.analysis.trace import trace
from associative_transformer.interface import Batch
from making.image_memory import TINY, images_of, make_batches, make_model, planted


def slow_information(pairs: list[tuple[int, int]]) -> float:
    """Sum p(m, x) log2 of p(m, x) / p(m) p(x) over pairs of a prior and a value."""
    total, joint = len(pairs), Counter(pairs)
    prior, value = Counter(m for m, _ in pairs), Counter(x for _, x in pairs)
    return sum(
        n / total * math.log2(n * total / (prior[m] * value[x])) for (m, x), n in joint.items()
    )


# --- statistics of counts ---


def test_priors_that_divide_the_values_among_them_have_all_the_information() -> None:
    total = torch.tensor([7, 7, 7, 7])
    apart = torch.tensor([[[3, 0, 0, 0], [0, 3, 0, 0], [0, 0, 3, 0], [0, 0, 0, 3]]])
    alike = torch.ones(1, 4, 4, dtype=torch.int64)
    assert choice_information(apart, total).tolist() == pytest.approx([2])
    assert focus(apart, total).tolist() == [pytest.approx([2, 2, 2, 2])]
    assert choice_information(alike, total).tolist() == pytest.approx([0], abs=1e-12)
    assert focus(alike, total).tolist() == [pytest.approx([0, 0, 0, 0], abs=1e-12)]


def test_a_prior_with_one_value_among_others_with_all_agrees_with_a_calculation_by_hand() -> None:
    """p(x) of the links is (1/8, 1/8, 1/8, 5/8), with an entropy of 1.549 bits; given the prior,
    it is 0 or 2 bits."""
    taken = torch.tensor([[[0, 0, 0, 4], [1, 1, 1, 1]]])
    total = torch.tensor([5, 5, 5, 5])
    entropy = 3 / 8 * 3 + 5 / 8 * math.log2(8 / 5)
    assert choice_information(taken, total).tolist() == pytest.approx([entropy - 1])
    assert focus(taken, total).tolist() == [pytest.approx([2, 0], abs=1e-12)]


def test_focus_is_relative_to_how_frequent_a_value_is() -> None:
    total = torch.tensor([30, 10])
    taken = torch.tensor([[[3, 1], [0, 4], [4, 0], [0, 0]]])
    expected = [0, 2, math.log2(4 / 3), 0]  # the last prior has no patches
    assert focus(taken, total).tolist() == [pytest.approx(expected, abs=1e-12)]


def test_what_all_priors_have_in_common_is_in_the_focus_but_not_in_the_choice() -> None:
    taken, total = torch.tensor([[[0, 0, 0, 4]] * 3]), torch.tensor([9, 9, 9, 9])
    assert choice_information(taken, total).tolist() == pytest.approx([0], abs=1e-12)
    assert focus(taken, total).tolist() == [pytest.approx([2, 2, 2])]


def test_statistics_agree_with_sums_over_links() -> None:
    taken = torch.randint(4, (3, 5, 6))
    taken[1, 2] = 0
    total = taken.sum(dim=(0, 1)) + torch.randint(3, (6,))
    choice, focused = choice_information(taken, total), focus(taken, total)
    p_x = [n / int(total.sum()) for n in total.tolist()]
    for head in range(3):
        pairs = [(m, x) for m in range(5) for x in range(6) for _ in range(int(taken[head, m, x]))]
        assert choice[head].item() == pytest.approx(slow_information(pairs))
        for m in range(5):
            values = Counter(x for prior, x in pairs if prior == m)
            shares = {x: n / values.total() for x, n in values.items()}
            bits = sum(p * math.log2(p / p_x[x]) for x, p in shares.items())
            assert focused[head, m].item() == pytest.approx(bits, abs=1e-12)


# --- counting links, permutations ---


def test_links_are_counted_by_layer_head_and_prior_in_true_order() -> None:
    tally = Tally((2, 2, 3), (2, 4, 5), 1, torch.device("cpu"))
    labels, content = torch.tensor([1, 0]), torch.randint(5, (2, 4))
    first = Links(torch.tensor([0, 5, 5]), torch.tensor([6, 0, 0]))  # image 1, patch 2; image 0
    second = Links(torch.tensor([4]), torch.tensor([7]))
    tally.add([first, second], labels, content, torch.Generator().manual_seed(0))
    by_class, by_position, by_content = tally.shares()
    assert by_class[0, 0, 0].tolist() == [1, 0] and by_class[0, 1, 2].tolist() == [0, 1]
    assert by_class[1, 1, 1].tolist() == [1, 0] and by_class.sum() == 3
    assert by_position[0, 0, 0].tolist() == [0, 0, 1, 0]
    assert by_content[0, 1, 2].argmax() == content[0, 0]
    assert [total.sum().item() for total in tally.total] == [8, 8, 8]


def test_a_statistic_is_measured_for_each_permutation_variable_and_layer() -> None:
    """A stand-in for a statistic returns its counts; permutations keep their sums."""
    tally = Tally((2, 2, 3), (2, 4, 5), 3, torch.device("cpu"))
    links = [Links(torch.randint(6, (9,)), torch.randint(8, (9,))) for _ in range(2)]
    tally.add(links, torch.tensor([1, 0]), torch.randint(5, (2, 4)), torch.Generator())
    sums = tally.measure(lambda taken, _: taken.sum(dim=-1).double())
    assert sums.shape == (4, 3, 2, 2, 3)  # R V L A M
    for layer in range(2):
        counts = links[layer].prior.bincount(minlength=6).view(2, 3).numpy()
        assert (sums[:, :, layer] == counts).all()
    sizes = tally.measure(lambda taken, total: torch.full((2,), float(len(total))))
    assert sizes[0, :, 0, 0].tolist() == [2, 4, 5]


def test_p_values_count_the_permutations_that_reach_the_true_value() -> None:
    values = np.array([2.0, 1.0, 2.0, 3.0, 0.0]).reshape(5, 1, 1)
    compared = compare(values)
    assert (compared.true.item(), compared.baseline.item()) == (2.0, 1.5)
    assert compared.p_value.item() == pytest.approx(3 / 5)


# --- links of a model ---


def test_the_patches_that_are_taken_are_linked_to_their_priors() -> None:
    write = torch.zeros(2, 4, 3)
    best = [[3, 0], [1, 1], [2, 3]]  # of each prior, in both images
    for prior, patches in enumerate(best):
        for image, patch in enumerate(patches):
            write[image, patch, prior] = 5.0
    traced = trace(planted(3), Batch(images_of(write), None, torch.tensor([0, 1])))
    prior, patch = links_of_writing(traced.layers[0], 4)
    expected = {(m, 4 * image + best[m][image]) for m in range(3) for image in range(2)}
    assert set(zip(prior.tolist(), patch.tolist(), strict=True)) == expected
    assert len(prior) == 6


def test_each_patch_is_linked_to_the_prior_from_which_it_reads_most_in_each_head() -> None:
    write, read, content = (torch.rand(2, 4, 3) for _ in range(3))
    images = images_of(write, read, content)
    traced = trace(planted(3), Batch(images, None, torch.tensor([0, 1])))
    prior, patch = links_of_reading(traced.layers[0], 4)
    pairs = set(zip(prior.tolist(), patch.tolist(), strict=True))
    for head, part in enumerate((write, read, content)):
        for i, most in enumerate(part.argmax(dim=-1).flatten().tolist()):
            assert (3 * head + most, i) in pairs
    assert len(prior) == len(pairs) == 3 * 8


def test_tokens_that_are_not_patches_have_no_links() -> None:
    model = make_model(replace(TINY, question_dim=5, head="cls"))
    (batch,) = make_batches(3, question_dim=5)
    (layer, _) = trace(model, batch).layers
    writing, reading = links_of_writing(layer, 4), links_of_reading(layer, 4)
    u, workspace = layer.workspace_input, layer.workspace
    assert u is not None and workspace is not None and u.shape[1] == 6
    chosen = workspace.write_images(u).selection.chosen  # (B, S, M, N)
    assert len(writing.prior) == chosen[..., 2:].sum()
    assert chosen[..., :2].any()
    for prior, patch in zip(*(x.tolist() for x in writing), strict=True):
        assert chosen[patch // 4, prior // 4, prior % 4, 2 + patch % 4]
    assert len(reading.prior) == 3 * 3 * 4
    with torch.no_grad():
        read = workspace.to_attractor(workspace.write_images(u).priors)
    first = (read[2, :, 4:8] @ u[2, 5, 4:8]).argmax().item()
    assert (4 + first, 11) in set(zip(*(x.tolist() for x in reading), strict=True))


def test_a_prior_that_takes_half_of_the_values_has_one_bit_about_being_taken() -> None:
    taken = torch.tensor([[5, 0], [0, 5], [1, 1], [0, 0]])
    bits = mutual_information(taken.view(2, 2, 2), torch.tensor([5, 5]))
    assert bits.flatten().tolist() == pytest.approx([1, 1, 0, 0], abs=1e-12)
