"""Numbers of tokens that receive most of the attention, compared with known numbers."""

import math
import weakref
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from associative_transformer.analysis.competition import (
    Competition,
    measure_competition,
    tokens_for_share,
)
from associative_transformer.analysis.storage import load_result, save_result
from associative_transformer.data import Split
from associative_transformer.interface import Batch, UserError
from associative_transformer.models import build_model
from associative_transformer.models.ait import AiT, AiTConfig
from associative_transformer.models.dense import DenseConfig
from associative_transformer.models.vit import ViT, ViTConfig
from associative_transformer.workspace_config import WorkspaceConfig
from making.splits import make_split

WORKSPACE = WorkspaceConfig(num_priors=4, prior_dim=8, num_heads=2, bottleneck=16)
VIT = ViTConfig(image_size=16, patch_size=4, embed_dim=16, num_heads=3, head_dim=8, num_classes=3)
AIT = AiTConfig(
    image_size=16,
    patch_size=4,
    embed_dim=16,
    num_heads=3,
    head_dim=8,
    num_classes=3,
    workspace=WORKSPACE,
)
CONFIGS = {
    "ait": AIT,
    "ait with questions": replace(AIT, question_dim=5),
    "vit": VIT,
    "vit with class token": replace(VIT, head="cls", question_dim=5),
}


def sharpen(model: nn.Module, by: float = 2.5) -> None:
    """Make the attention uneven; that of a new model is nearly uniform."""
    for block in model.blocks:
        block.attention.to_qkv.weight.data *= by


def count_needed(row: list[float], share: float) -> int:
    total = 0.0
    for count, weight in enumerate(sorted(row, reverse=True), start=1):
        total += weight
        if total >= share - 1e-6:
            return count
    raise AssertionError("the row does not reach the share")


# --- one row ---


@pytest.mark.parametrize("share", ["0.07", "0.1", "0.3", "0.5", "0.7", "0.9", "0.99", "1"])
def test_a_uniform_row_needs_the_share_of_its_tokens_rounded_up(share: str) -> None:
    for size in [*range(1, 130), 196, 197, 250, 1000, 1024, 4096]:
        row = torch.zeros(size).softmax(dim=-1)
        count = tokens_for_share(row, float(share))
        assert int(count) == math.ceil(Fraction(share) * size), size


@pytest.mark.parametrize("share", [0.001, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("token", [0, 3, 9])
def test_a_row_with_all_attention_on_one_token_needs_one(share: float, token: int) -> None:
    assert int(tokens_for_share(torch.eye(10)[token], share)) == 1


@pytest.mark.parametrize(
    ("share", "count"),
    [(0.4, 1), (0.5, 1), (0.51, 2), (0.8, 2), (0.81, 3), (0.9, 3), (0.95, 3), (0.96, 4), (1.0, 4)],
)
def test_the_largest_weights_are_taken_first(share: float, count: int) -> None:
    assert int(tokens_for_share(torch.tensor([0.05, 0.3, 0.5, 0.15]), share)) == count


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.95])
def test_counts_agree_with_a_loop(share: float) -> None:
    attention = (3 * torch.randn(2, 5, 17)).softmax(dim=-1)
    counts = tokens_for_share(attention, share)
    assert counts.tolist() == [
        [count_needed(row, share) for row in rows] for rows in attention.tolist()
    ]


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, math.nan])
def test_an_invalid_share_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share must be"):
        tokens_for_share(torch.ones(1), share)


# --- a model ---


@torch.no_grad()
def counts_by_loop(model: nn.Module, split: Split, share: float) -> list[list[list[int]]]:
    """Count one image and one query at a time."""
    size = model.embed.num_tokens + 1
    heads = model.config.num_heads
    counts = [[[0] * size for _ in range(heads)] for _ in model.blocks]
    for batch in split.eval_batches(1):
        x = model.embed(batch.images, batch.questions)
        for layer, block in enumerate(model.blocks):
            for head, queries in enumerate(block.attention.scores(block.norm1(x))[0].tolist()):
                for row in queries:
                    counts[layer][head][count_needed(row, share)] += 1
            x = block(x).tokens if isinstance(model, AiT) else block(x)
    return counts


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("batch_size", [1, 4, 7, 20])
def test_every_token_of_every_image_is_counted_once(name: str, batch_size: int) -> None:
    config = CONFIGS[name]
    model = build_model(config).eval()
    sharpen(model)
    split = make_split(torch.randn(7, 3, 16, 16), config.question_dim)
    result = measure_competition(model, split.eval_batches(batch_size), share=0.8)
    assert result.counts.tolist() == counts_by_loop(model, split, 0.8)
    assert np.count_nonzero(result.counts) > 40  # the counts are spread out
    assert (result.share, result.num_images, result.layers) == (0.8, 7, [0, 1])


@pytest.mark.parametrize("name", CONFIGS)
def test_uniform_attention_is_at_the_upper_bound(name: str) -> None:
    config = CONFIGS[name]
    model = build_model(config)
    sharpen(model, by=0.0)
    split = make_split(torch.randn(5, 3, 16, 16), config.question_dim)
    result = measure_competition(model, split.eval_batches(2))
    num_tokens = model.embed.num_tokens
    assert result.uniform == math.ceil(Fraction("0.9") * num_tokens)
    assert (result.counts[..., result.uniform] == 5 * num_tokens).all()
    assert result.counts.sum() == 5 * num_tokens * 6
    assert (result.mean == result.uniform).all()
    assert (result.quantile(0.0) == result.uniform).all()
    assert (result.quantile(1.0) == result.uniform).all()


def test_heads_are_counted_separately() -> None:
    model = ViT(replace(VIT, depth=1))
    pairs = torch.randn(6, 3, 16, 8).repeat_interleave(2, dim=-1)  # pairs of equal pixels
    left = pairs[..., :8]
    images = torch.cat([left, left], dim=-1)  # the right half equals the left half
    with torch.no_grad():
        weight = model.blocks[0].attention.to_qkv.weight.view(3, 3, 8, 16)  # (z, h, d, e)
        weight.zero_()
        projection = torch.linalg.qr(torch.randn(16, 8)).Q.T
        weight[:2, 1] = 60 * projection  # in head 1 a token attends to itself and its copy
    result = measure_competition(model, make_split(images).eval_batches(6))
    assert result.uniform == 15
    assert result.quantile(0.5).tolist() == [[15, 2, 15]]
    assert result.counts[0, 1, 2] == 6 * 16


def test_tokens_that_attend_only_to_themselves_are_at_the_lower_bound() -> None:
    model = ViT(VIT)
    with torch.no_grad():
        for block in model.blocks:
            weight = block.attention.to_qkv.weight.view(3, 3, 8, 16)
            weight[:2] = 300 * torch.linalg.qr(torch.randn(16, 8)).Q.T
    result = measure_competition(model, make_split(torch.randn(4, 3, 16, 16)).eval_batches(4))
    assert result.one == 1
    assert (result.quantile(0.5) == result.one).all()


def test_layers_without_self_attention_are_left_out() -> None:
    model = AiT(replace(AIT, depth=3))
    sharpen(model)
    split = make_split(torch.randn(3, 3, 16, 16))
    model.blocks[1].attention = None
    result = measure_competition(model, split.eval_batches(3))
    assert result.layers == [0, 2]
    assert result.counts.shape == (2, 3, 17)


def test_an_ait_without_self_attention_is_refused() -> None:
    batches = make_split(torch.randn(3, 3, 16, 16)).eval_batches(3)
    with pytest.raises(UserError, match=r"AiT has no self-attention .*use_self_attention"):
        measure_competition(AiT(replace(AIT, use_self_attention=False)), batches)


def test_a_dense_model_is_refused() -> None:
    model = build_model(DenseConfig(image_size=16, patch_size=4, embed_dim=8, question_dim=0))
    with pytest.raises(UserError, match=r"Dense has no self-attention .*: use a run of ViT"):
        measure_competition(model, make_split(torch.randn(3, 3, 16, 16)).eval_batches(3))


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(ValueError, match="no images"):
        measure_competition(ViT(VIT), [])


def test_no_trace_is_kept() -> None:
    model, references = ViT(VIT), []  # a trace keeps its logits
    model.head.register_forward_hook(lambda *call: references.append(weakref.ref(call[-1])))

    def batches() -> Iterator[Batch]:
        for _ in range(5):
            assert all(logits() is None for logits in references[:-1])
            yield Batch(torch.randn(2, 3, 16, 16), None, torch.zeros(2, dtype=torch.int64))

    assert measure_competition(model, batches()).num_images == 10
    assert len(references) == 5


# --- the distribution ---


@pytest.mark.parametrize("q", [0.0, 0.07, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0])
def test_quantiles_and_means_agree_with_the_individual_counts(q: float) -> None:
    counts = np.random.default_rng(0).integers(0, 9, (2, 3, 18))
    counts[..., 0] = 0
    counts[0, 0] = np.eye(18, dtype=int)[4] * 100
    counts[1, 1, 1:] = [7, *[0] * 10, 93, *[0] * 5]  # the first seven reach 0.07 exactly
    result = Competition(0.9, 1, [0, 1], counts)
    for layer in range(2):
        for head in range(3):
            single = np.repeat(np.arange(18), counts[layer, head])
            expected = sorted(single)[max(math.ceil(Fraction(str(q)) * len(single)), 1) - 1]
            assert result.quantile(q)[layer, head] == expected
            assert result.mean[layer, head] == pytest.approx(single.mean())


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan])
def test_an_invalid_quantile_is_refused(q: float) -> None:
    result = Competition(0.9, 1, [0], np.ones((1, 1, 3), dtype=int))
    with pytest.raises(ValueError, match="between 0 and 1"):
        result.quantile(q)


def test_the_result_can_be_saved_and_read_back(tmp_path: Path) -> None:
    batches = make_split(torch.randn(3, 3, 16, 16)).eval_batches(3)
    result = measure_competition(ViT(VIT), batches)
    save_result(result, tmp_path, "competition")
    again = load_result(Competition, tmp_path, "competition")
    assert (again.share, again.num_images, again.layers) == (0.9, 3, [0, 1])
    assert np.array_equal(again.counts, result.counts)
    assert again.uniform == result.uniform == 15
