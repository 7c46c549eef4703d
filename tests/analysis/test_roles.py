"""Roles of planted priors: by position, by content, by class, and none."""

import math
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from associative_transformer.analysis.roles import Roles, measure_roles
from associative_transformer.analysis.storage import load_result, save_result
from associative_transformer.interface import Batch, UserError
from associative_transformer.models.ait import AiT
from associative_transformer.models.vit import ViT, ViTConfig
from making.image_memory import SHARED, images_of, make_batches, make_model, planted

CLASS, POSITION, CONTENT = range(3)
CLASSES = ["a", "b", "c"]
BY_READ = 1  # the head of the read that `images_of` plants
SMALLEST = 1 / 21  # p-value with 20 permutations


def batch_of(images: Tensor, labels: list[int] | None = None) -> Batch:
    return Batch(images, None, torch.tensor(labels or [0] * len(images)))


def measure(images: Tensor, labels: list[int] | None = None, **options: Any) -> Roles:  # noqa: ANN401
    """Measure priors that take one patch each; as many as a third of the channels."""
    model = planted(images.shape[1] // 3, side=images.shape[-1])
    return measure_roles(model, [batch_of(images, labels)], CLASSES, **options)


# --- what priors take ---


def test_a_prior_that_always_takes_position_3_stands_out_by_position() -> None:
    """The second prior takes each of the four positions equally often."""
    write = torch.rand(16, 4, 2)
    write[:, 3, 0] = 9.0
    write[torch.arange(16), torch.arange(16) % 4, 1] = 9.0
    result = measure(images_of(write))
    assert result.write_focus[POSITION, 0, 0] == pytest.approx([2, 0], abs=1e-12)  # log2 4
    assert result.write_by_position[0, 0].tolist() == [[0, 0, 0, 1], [0.25] * 4]
    entropy = 3 / 8 * 3 + 5 / 8 * math.log2(8 / 5)  # of the positions (1/8, 1/8, 1/8, 5/8)
    assert result.write_information[POSITION, 0, 0] == pytest.approx(entropy - 1)
    assert result.write_p_value[POSITION, 0, 0] == pytest.approx(SMALLEST)
    assert result.write.focus[POSITION, 0, 0, 0] > 1.5  # above the permutations


def test_a_prior_that_takes_one_content_stands_out_by_content() -> None:
    """One patch of each image is of the first kind, at random positions."""
    images, patches = 24, 4
    kind = torch.zeros(images, patches, 2)
    position = torch.randint(patches, (images,))
    kind[torch.arange(images), position, 0] = 20.0
    write = torch.rand(images, patches, 2)
    write[torch.arange(images), position, 0] = 9.0
    result = measure(images_of(write, content=kind), num_clusters=2)
    assert result.write_focus[CONTENT, 0, 0, 0] == pytest.approx(2)  # one patch of four
    assert sorted(result.write_by_content[0, 0, 0].tolist()) == [0, 1]
    assert result.write_p_value[CONTENT, 0, 0] == pytest.approx(SMALLEST)
    assert result.write.focus[CONTENT, 0, 0, 0] > 1
    cluster = int(result.write_by_content[0, 0, 0].argmax())
    image, patch = result.exemplars[cluster].tolist()
    assert position[image] == patch  # an example of the first kind


def test_what_is_taken_never_depends_on_the_class() -> None:
    write = torch.rand(12, 4, 3)
    write[:6, 0] += 5.0
    result = measure(images_of(write), [0] * 6 + [1] * 6)
    assert result.write_information[CLASS] == pytest.approx(np.zeros((1, 1)), abs=1e-12)
    assert (result.write_p_value[CLASS] == 1).all()


# --- who reads from them ---


def test_a_prior_that_only_one_class_reads_stands_out_by_class() -> None:
    labels = [0, 1] * 10
    read = torch.zeros(20, 4, 2)
    read[torch.arange(20), :, torch.tensor(labels)] = 5.0
    result = measure(images_of(torch.rand(20, 4, 2), read), labels)
    assert result.read_information[CLASS, 0, BY_READ] == pytest.approx(1)
    assert result.read_focus[CLASS, 0, BY_READ] == pytest.approx([1, 1])
    assert result.read_by_class[0, BY_READ].tolist() == [[1, 0, 0], [0, 1, 0]]
    assert result.read_p_value[CLASS, 0, BY_READ] == pytest.approx(SMALLEST)
    assert result.read_information_baseline[CLASS, 0, BY_READ] < 0.3
    assert result.read_information[POSITION, 0, BY_READ] == pytest.approx(0, abs=1e-12)
    assert result.read_p_value[CLASS, 0, 0] > 0.05  # in another head, tokens read at random


def test_a_prior_that_one_position_reads_stands_out_by_position() -> None:
    read = torch.zeros(10, 4, 2)
    read[..., 0] = 1.0
    read[:, 1] = torch.tensor([0.0, 1.0])
    result = measure(images_of(torch.rand(10, 4, 2), read))
    assert result.read_focus[POSITION, 0, BY_READ] == pytest.approx([math.log2(4 / 3), 2])
    assert result.read_by_position[0, BY_READ, 1].tolist() == [0, 1, 0, 0]
    quarter = 2 - 0.75 * math.log2(3)  # entropy of an event with probability 1/4
    assert result.read_information[POSITION, 0, BY_READ] == pytest.approx(quarter)


def test_a_prior_that_one_content_reads_stands_out_by_content() -> None:
    is_first = torch.rand(20, 4) < 0.5
    kind = torch.stack([is_first, ~is_first], dim=-1).float()
    result = measure(images_of(torch.rand(20, 4, 2), kind, 20 * kind), num_clusters=2)
    share = float(is_first.float().mean())
    entropy = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    assert result.read_information[CONTENT, 0, BY_READ] == pytest.approx(entropy)
    assert np.sort(result.read_by_content[0, BY_READ]).tolist() == [[0, 1], [0, 1]]


# --- no role ---


def test_priors_that_choose_at_random_have_no_more_information_than_the_permutations() -> None:
    batches = []
    for _ in range(6):
        parts = [torch.rand(30, 16, 4) for _ in range(3)]
        batches.append(batch_of(images_of(*parts), torch.randint(3, (30,)).tolist()))
    model = planted(4, bottleneck=0.25, side=4)
    result = measure_roles(model, batches, CLASSES, num_clusters=5)
    excess = result.read.information - result.read.baseline
    assert np.abs(excess[CLASS]).max() < 0.01
    assert np.abs(excess[POSITION]).max() < 0.02
    written = result.write.information - result.write.baseline
    assert np.abs(written[POSITION]).max() < 0.02
    assert np.abs(result.write.focus[POSITION]).max() < 0.05
    p_values = np.concatenate([result.read_p_value[:2].ravel(), result.write_p_value[1].ravel()])
    assert (p_values > 0.05).mean() > 0.6


# --- details ---


def test_clusters_are_those_of_the_first_batch() -> None:
    kinds = torch.zeros(2, 4, 2)
    kinds[:, :2, 0] = 20.0
    later = 20 * torch.rand(3, 4, 2)
    write = torch.rand(5, 4, 2)
    images = images_of(write, content=torch.cat([kinds, later]))
    batches = [batch_of(images[:2]), batch_of(images[2:])]
    whole = measure_roles(planted(2), batches, CLASSES, num_clusters=2)
    first = measure_roles(planted(2), batches[:1], CLASSES, num_clusters=2)
    assert whole.exemplars.tolist() == first.exemplars.tolist()
    assert whole.num_images == 5


def test_the_baseline_of_one_image_keeps_its_class() -> None:
    result = measure(images_of(torch.rand(1, 4, 2), torch.rand(1, 4, 2)), [2])
    assert not result.read_information[CLASS].any()
    assert (result.read_p_value[CLASS] == 1).all()


def test_the_seed_fixes_the_result() -> None:
    model, batches = make_model(), make_batches(12)
    first, again, other = (
        measure_roles(model, batches, CLASSES, seed=seed, num_clusters=3) for seed in (0, 0, 1)
    )
    for name, value in vars(first).items():
        assert np.array_equal(getattr(again, name), value), name
    assert (first.read_information_baseline != other.read_information_baseline).any()
    assert (first.read_information[:2] == other.read_information[:2]).all()


def test_heads_of_the_write_and_of_the_read_have_their_own_numbers() -> None:
    result = measure_roles(make_model(), make_batches(6), CLASSES, num_clusters=3)
    assert result.write_focus.shape == (3, 2, 3, 4) and result.read_focus.shape == (3, 2, 3, 4)
    assert result.write_by_position.sum(axis=-1) == pytest.approx(np.ones((2, 3, 4)))
    assert (result.write.focus == result.write_focus - result.write_focus_baseline).all()
    assert (result.read.by_content == result.read_by_content).all()
    assert (result.read.p_value == result.read_p_value).all()


def test_the_description_leaves_out_the_class_of_what_is_taken() -> None:
    result = measure_roles(make_model(), make_batches(6), CLASSES)
    title, *lines = result.describe()
    assert "bits" in title and [line[:10] for line in lines] == ["  layer 1:", "  layer 2:"]
    assert "taken by position" in lines[0] and "taken by class" not in lines[0]
    bits = result.read_information[CLASS, 1].mean(), result.read_information_baseline[CLASS, 1]
    assert f"read by class {bits[0]:.3f} ({bits[1].mean():.3f})" in lines[1]


def test_no_batch_is_kept() -> None:
    references: list[weakref.ref[Tensor]] = []

    def stream() -> Iterator[Batch]:
        for _ in range(4):
            assert sum(images() is not None for images in references) <= 1
            (batch,) = make_batches(3)
            references.append(weakref.ref(batch.images))
            yield batch

    assert measure_roles(make_model(), stream(), CLASSES).num_images == 12


def test_the_result_can_be_saved_and_read_back(tmp_path: Path) -> None:
    result = measure_roles(make_model(), make_batches(3), tuple(CLASSES))
    save_result(result, tmp_path, "roles")
    again = load_result(Roles, tmp_path, "roles")
    for name, value in vars(result).items():
        assert np.array_equal(getattr(again, name), value), name


def test_other_models_and_invalid_arguments_are_refused() -> None:
    vit = ViT(ViTConfig(image_size=16, patch_size=8, embed_dim=12, num_heads=2, head_dim=8))
    for model in (vit, AiT(SHARED)):
        with pytest.raises(
            UserError, match="no memory for each image: use a run of AiT with --mod"
        ):
            measure_roles(model, make_batches(2), CLASSES)
    for invalid in ({"num_permutations": 0}, {"num_clusters": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            measure_roles(make_model(), make_batches(2), CLASSES, **invalid)
    with pytest.raises(ValueError, match="no images"):
        measure_roles(make_model(), [], CLASSES)
