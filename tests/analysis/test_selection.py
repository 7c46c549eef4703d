"""Selections of workspaces with planted choices, and of real ones compared with loops."""

import copy
import math
import weakref
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from associative_transformer.analysis.selection import SelectionStatistics, measure_selection
from associative_transformer.analysis.storage import load_result, save_result
from associative_transformer.analysis.trace import trace
from associative_transformer.functional import effective_rank
from associative_transformer.interface import Batch, UserError
from associative_transformer.models.ait import AiT, AiTConfig
from associative_transformer.models.layers import CrossAttention, TokenEmbed
from associative_transformer.models.vit import ViT, ViTConfig
from associative_transformer.workspace import GlobalWorkspace
from associative_transformer.workspace_config import WorkspaceConfig
from making.splits import make_split

AIT = AiTConfig(
    image_size=16,
    patch_size=8,
    embed_dim=12,
    num_heads=2,
    head_dim=8,
    num_classes=3,
    pos="learned",
    workspace=WorkspaceConfig(num_priors=4, prior_dim=8, num_heads=3, bottleneck=5),
)
VARIANTS = {
    "plain": AIT,
    "question": replace(AIT, question_dim=5),
    "dense": replace(AIT, workspace=replace(AIT.workspace, bottleneck=None)),
    "several steps": replace(AIT, workspace=replace(AIT.workspace, beta=2.5, num_steps=3)),
    "cross-attention": replace(AIT, read="cross_attention"),
    "no self-attention": replace(AIT, use_self_attention=False),
}


# --- planted choices: an image is a table of similarities between tokens and priors ---


class Table(TokenEmbed):
    """An embedding whose tokens are the rows of the image."""

    def forward(self, images: Tensor, questions: Tensor | None = None) -> Tensor:
        return images[:, 0]


def planted(
    heads: int, priors: int, bottleneck: int | None, question: bool = False
) -> tuple[AiT, int]:
    """Return an AiT whose similarities are the entries of its images, and their width.

    An image has four patches. Entry s * M + m of a token is its similarity to prior m in head s.
    """
    width = heads * priors
    workspace = WorkspaceConfig(priors, priors, heads, bottleneck)
    model = AiT(
        AiTConfig(
            image_size=4,
            patch_size=2,
            embed_dim=width,
            depth=1,
            num_classes=3,
            question_dim=2 * question,
            use_self_attention=False,
            workspace=workspace,
        )
    )
    model.embed = Table(4, 2, 3, width, question_dim=2 * question)
    block = model.blocks[0]
    block.norm2, block.feed_forward, block.norm3 = nn.Identity(), nn.Identity(), nn.Identity()
    with torch.no_grad():
        block.workspace.priors.copy_(torch.eye(priors))
        block.workspace.to_q.weight.copy_(torch.eye(priors).repeat(heads, 1))
        block.workspace.to_k.weight.copy_(math.sqrt(priors) * torch.eye(width))
        block.workspace.to_attractor.weight.zero_()
        block.workspace.to_attractor.bias.zero_()
    return model, width


def select(model: AiT, tables: Tensor, batch_size: int, **options: int) -> SelectionStatistics:
    """Measure the selection from tables (I, N, S * M)."""
    return measure_selection(
        model, make_split(tables[:, None]).eval_batches(batch_size), **options
    )


def shuffled(images: int, tokens: int, width: int) -> Tensor:
    """Return tables whose columns are permutations of multiples of a fifth."""
    columns = [torch.randperm(images * tokens) for _ in range(width)]
    return torch.stack(columns, dim=-1).view(images, tokens, width) / 5


def test_each_prior_takes_its_most_similar_tokens() -> None:
    model, _ = planted(heads=1, priors=2, bottleneck=2)
    tables = torch.zeros(2, 4, 2)  # images, patches, priors
    tables[0, 3, 0], tables[1, 1, 0] = 2.0, 3.0  # prior 0: patch 1 of image 1, then 3 of image 0
    tables[1, 1, 1], tables[1, 2, 1] = 5.0, 5.0 - math.log(3)  # prior 1: patches 1, 2 of image 1
    result = select(model, tables, batch_size=2)
    assert (result.num_images, result.pool_size, result.bottleneck) == (2, 8, 2)
    assert result.winners[0, 0].tolist() == [[[1, 1], [0, 3]], [[1, 1], [1, 2]]]
    assert result.winner_scores[0, 0] == pytest.approx(np.array([[3, 2], [5, 5 - math.log(3)]]))
    assert result.coverage[0] == pytest.approx([3 / 8])
    assert result.overlap[0, 0] == pytest.approx(np.array([[1, 1 / 3], [1 / 3, 1]]))
    quarter = -0.75 * math.log2(0.75) - 0.25 * math.log2(0.25)  # weights 3 : 1
    weight = 1 / (1 + math.exp(-1))
    other = -weight * math.log2(weight) - (1 - weight) * math.log2(1 - weight)
    assert result.entropy[0, 0] == pytest.approx([other, quarter])
    assert result.taken[0, 0].tolist() == [
        [[0, 0, 0, 2], [0, 1, 0, 0]],
        [[0, 0, 0, 0], [0, 1, 2, 0]],
    ]


def test_means_over_pools_are_weighted_by_their_tokens() -> None:
    model, _ = planted(heads=2, priors=2, bottleneck=1)
    tables = torch.zeros(3, 4, 4)
    tables[0, 1, :] = 1.0  # first pool, two images: all take one token of eight
    tables[2, 0, 0] = tables[2, 1, 1] = 1.0  # second pool, one image: priors of head 0 differ
    tables[2, 0, 2] = tables[2, 0, 3] = 1.0  # those of head 1 do not
    result = select(model, tables, batch_size=2)
    assert result.coverage[0] == pytest.approx([(8 / 8 + 4 * 2 / 4) / 12, (8 / 8 + 4 / 4) / 12])
    assert result.overlap[0, :, 0, 1] == pytest.approx([8 / 12, 1])
    assert result.head_overlap[0, :, 0, 1] == pytest.approx([1, 8 / 12])
    assert (result.num_images, result.pool_size, result.bottleneck) == (3, 8, 1)


def test_a_last_pool_smaller_than_the_bottleneck_is_taken_completely() -> None:
    model, _ = planted(heads=1, priors=2, bottleneck=6)
    tables = shuffled(3, 4, 2)
    result, first = select(model, tables, batch_size=2), select(model, tables[:2], batch_size=2)
    assert (result.pool_size, result.bottleneck) == (8, 6)
    assert sorted(result.taken[0, 0, 0, 2]) == [1, 2, 3, 4]  # the second pool is image 2
    assert result.coverage[0, 0] == pytest.approx((8 * first.coverage[0, 0] + 4) / 12)
    assert result.overlap[0, 0, 0, 1] == pytest.approx((8 * first.overlap[0, 0, 0, 1] + 4) / 12)


def test_only_the_later_copy_of_a_prior_is_a_duplicate() -> None:
    model, _ = planted(heads=2, priors=4, bottleneck=3)
    tables = shuffled(6, 4, 8)
    for head in (0, 4):
        tables[..., head + 3] = tables[..., head + 1]  # prior 3 takes what prior 1 takes
    result = select(model, tables, batch_size=3)
    assert result.overlap[0, :, 1, 3] == pytest.approx([1, 1])
    assert result.is_duplicate.tolist() == [[False, False, False, True]]


def test_priors_that_agree_in_one_of_two_heads_are_not_duplicates() -> None:
    model, _ = planted(heads=2, priors=4, bottleneck=3)
    tables = shuffled(6, 4, 8)
    tables[..., 3] = tables[..., 1]
    result = select(model, tables, batch_size=3)
    assert result.overlap[0, 0, 1, 3] == 1
    assert not result.is_duplicate.any()


def test_a_question_is_patch_minus_one_and_not_in_taken() -> None:
    model, _ = planted(heads=1, priors=1, bottleneck=3, question=True)
    tables = torch.zeros(2, 5, 1)
    tables[1, 0, 0], tables[0, 1, 0], tables[1, 4, 0] = 3.0, 2.0, 1.0  # question 1, patches 0, 3
    split = replace(make_split(tables[:, None]), questions=torch.randn(2, 2))
    result = measure_selection(model, split.eval_batches(2))
    assert result.pool_size == 10
    assert result.winners[0, 0, 0].tolist() == [[1, -1], [0, 0], [1, 3]]
    assert result.taken[0, 0, 0].tolist() == [[2, 0, 0, 0], [0, 0, 0, 3]]


def test_without_a_bottleneck_all_tokens_are_taken_in_order() -> None:
    model, _ = planted(heads=1, priors=2, bottleneck=None)
    tables = shuffled(3, 4, 2)
    result = select(model, tables, batch_size=3, num_winners=5)
    assert result.bottleneck == result.pool_size == 12
    assert (result.coverage == 1).all()
    assert (result.overlap == 1).all()
    for prior in range(2):
        order = tables[..., prior].flatten().argsort(descending=True).tolist()
        taken = result.taken[0, 0, prior].flatten().tolist()
        assert [taken[token] for token in order] == list(range(1, 13))
        assert result.winners[0, 0, prior].tolist() == [[t // 4, t % 4] for t in order[:5]]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_there_may_be_fewer_winners_and_images_than_requested(batch_size: int) -> None:
    model, _ = planted(heads=1, priors=2, bottleneck=1)
    result = select(model, shuffled(5, 4, 2), batch_size, num_winners=50, num_images=50)
    pools = math.ceil(5 / batch_size)
    assert result.winners.shape == (1, 1, 2, pools, 2)
    assert result.taken.shape == (1, 1, 2, 5, 4)
    assert ((result.taken > 0).sum(axis=(-1, -2)) == pools).all()
    empty = select(model, shuffled(5, 4, 2), batch_size, num_winners=0, num_images=0)
    assert empty.winners.shape == (1, 1, 2, 0, 2)
    assert empty.taken.shape == (1, 1, 2, 0, 4)


# --- retrieval and memory ---


def test_an_attractor_that_no_token_retrieves_is_dead() -> None:
    model, _ = planted(heads=1, priors=4, bottleneck=2)
    tokens = torch.eye(4)[[0, 1, 2, 0]]  # no token is similar to the last attractor
    model.blocks[0].workspace.to_attractor.weight.data.copy_(30 * torch.eye(4))
    result = select(model, tokens.expand(3, 4, 4), batch_size=2)
    assert result.usage[0] == pytest.approx([0.5, 0.25, 0.25, 0], abs=1e-9)
    assert result.is_dead.tolist() == [[False, False, False, True]]


def test_equal_attractors_have_equal_usage() -> None:
    model, _ = planted(heads=2, priors=5, bottleneck=2)
    model.blocks[0].workspace.to_attractor.bias.data.normal_()
    result = select(model, torch.randn(3, 4, 10), batch_size=2)
    assert result.usage == pytest.approx(np.full((1, 5), 0.2))
    assert not result.is_dead.any()


@pytest.mark.parametrize("num_steps", [1, 2])
def test_usage_is_the_weight_of_the_attractors_in_the_retrieval(num_steps: int) -> None:
    model, _ = planted(heads=1, priors=2, bottleneck=2)
    workspace = model.blocks[0].workspace
    workspace.config = replace(workspace.config, beta=0.5, num_steps=num_steps)
    workspace.to_attractor.weight.data.copy_(torch.tensor([[2.0, 0.0], [0.0, 4.0]]))
    tables = torch.tensor([1.0, 1.0]).expand(2, 4, 2)  # all tokens are equal
    weight = 1 / (1 + math.e)  # softmax(0.5 * (2, 4))
    if num_steps == 2:  # the state is (2 w, 4 (1 - w))
        first, second = math.exp(0.5 * 4 * weight), math.exp(0.5 * 16 * (1 - weight))
        weight = first / (first + second)
    assert select(model, tables, batch_size=2).usage[0] == pytest.approx([weight, 1 - weight])


def test_similarity_is_the_cosine_between_priors() -> None:
    model, _ = planted(heads=1, priors=3, bottleneck=2)
    memory = torch.tensor([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0], [-3.0, 0.0, 0.0]])
    model.blocks[0].workspace.priors.copy_(memory)
    half = math.sqrt(0.5)
    expected = np.array([[1, half, -1], [half, 1, -half], [-1, -half, 1]])
    assert select(model, torch.randn(2, 4, 3), 2).similarity[0] == pytest.approx(expected)


# --- real models compared with loops ---


def split_pools(u: Tensor, size: int) -> list[Tensor]:
    return [pool.flatten(0, 1) for pool in u.split(size)]


def jaccard(one: set[int], other: set[int]) -> float:
    return len(one & other) / len(one | other)


@torch.no_grad()
def check_layer(
    result: SelectionStatistics,
    layer: int,
    workspace: GlobalWorkspace,
    u: Tensor,
    size: int,
    patches: int,
) -> None:
    """Compare a layer of a result with loops over pools, heads, priors and tokens.

    u (I, N, E) is the input of the workspace, `size` the number of images in a pool.
    """
    c, tokens = workspace.config, u.shape[1]
    heads, priors = range(c.num_heads), range(c.num_priors)
    sums = {name: np.zeros(np.shape(getattr(result, name)[layer])) for name in MEANS}
    winners = {pair: [] for pair in product(heads, priors)}
    taken = np.zeros((c.num_heads, c.num_priors, len(u), tokens), dtype=int)
    for number, pool in enumerate(split_pools(u, size)):
        sets: dict[tuple[int, int], set[int]] = {}
        for s, m in product(heads, priors):
            part = slice(s * c.prior_dim, (s + 1) * c.prior_dim)
            q = workspace.to_q.weight[part] @ workspace.priors[m]
            logits = [float(q @ (workspace.to_k.weight[part] @ x)) for x in pool]
            logits = [x / math.sqrt(c.prior_dim) for x in logits]
            order = sorted(range(len(pool)), key=lambda t: -logits[t])[: c.bottleneck]
            sets[s, m] = set(order)
            weights = [math.exp(logits[t]) for t in order]
            shares = [w / sum(weights) for w in weights]
            sums["entropy"][s, m] -= len(pool) * sum(p * math.log2(p) for p in shares)
            for position, t in enumerate(order, start=1):
                image, token = number * size + t // tokens, t % tokens
                winners[s, m].append((-logits[t], image, max(token - tokens + patches, -1)))
                taken[s, m, image, token] = position
        for s in heads:
            covered = set.union(*(sets[s, m] for m in priors))
            sums["coverage"][s] += len(covered)
            for m, n in product(priors, priors):
                sums["overlap"][s, m, n] += len(pool) * jaccard(sets[s, m], sets[s, n])
        for m, s, r in product(priors, heads, heads):
            sums["head_overlap"][m, s, r] += len(pool) * jaccard(sets[s, m], sets[r, m])
        for x in pool:
            sums["usage"] += weight_of_attractors(workspace, x).numpy()
    for name, total in sums.items():
        mean = total / (len(u) * tokens)
        assert getattr(result, name)[layer] == pytest.approx(mean, rel=1e-4, abs=1e-6), name
    for s, m in winners:
        best = sorted(winners[s, m])[: result.winners.shape[3]]
        assert result.winners[layer, s, m].tolist() == [[image, patch] for _, image, patch in best]
        scores = [-score for score, _, _ in best]
        assert result.winner_scores[layer, s, m] == pytest.approx(scores, rel=1e-4, abs=1e-5)
    shown = result.taken.shape[3]
    assert result.taken[layer].tolist() == taken[:, :, :shown, tokens - patches :].tolist()


MEANS = ("usage", "entropy", "coverage", "overlap", "head_overlap")


def weight_of_attractors(workspace: GlobalWorkspace, x: Tensor) -> Tensor:
    """Return the weight of each attractor in what one token reads."""
    c, attractors = workspace.config, workspace.to_attractor(workspace.priors)
    if isinstance(reader := workspace.reader, CrossAttention):
        q = reader.to_q(x).view(reader.num_heads, -1)
        keys = reader.to_kv(attractors)[:, : q.numel()]  # keys first, values last
        total = torch.zeros(c.num_priors)
        for head, query in enumerate(q):
            k = keys[:, head * len(query) : (head + 1) * len(query)]
            total += (k @ query / math.sqrt(len(query))).softmax(dim=0)
        return total / len(q)
    for _ in range(c.num_steps):
        weight = (c.beta * (attractors @ x)).softmax(dim=0)
        x = weight @ attractors
    return weight


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("batch_size", [2, 3, 5, 8])
def test_a_selection_agrees_with_loops(name: str, batch_size: int) -> None:
    config = VARIANTS[name]
    model = AiT(config)
    for block in model.blocks:  # the choices of a new model are less distinct
        block.workspace.to_k.weight.data *= 3
        block.workspace.to_attractor.weight.data *= 3
    split = make_split(torch.randn(5, 3, 16, 16), config.question_dim)
    batches = split.eval_batches(batch_size)
    result = measure_selection(model, batches, num_winners=7, num_images=4)
    tokens, patches = model.embed.num_tokens, model.embed.num_patches
    assert result.num_images == 5
    assert result.pool_size == min(batch_size, 5) * tokens
    assert result.bottleneck == min(config.workspace.bottleneck or 99, result.pool_size)
    assert result.taken.shape == (2, 3, 4, 4, patches)
    traced = trace(model, next(iter(split.eval_batches(5))))
    for i, layer in enumerate(traced.layers):
        assert layer.workspace_input is not None and layer.workspace is not None
        check_layer(result, i, layer.workspace, layer.workspace_input, batch_size, patches)
        assert result.effective_rank[i] == effective_rank(layer.workspace.priors)


@pytest.mark.parametrize("batch_size", [1, 4, 9])
def test_many_planted_pools_agree_with_loops(batch_size: int) -> None:
    model, width = planted(heads=2, priors=3, bottleneck=4, question=True)
    tables = shuffled(9, 5, width)
    split = replace(make_split(tables[:, None]), questions=torch.randn(9, 2))
    result = measure_selection(model, split.eval_batches(batch_size), num_winners=6, num_images=5)
    check_layer(result, 0, model.blocks[0].workspace, tables, batch_size, patches=4)


def test_measuring_does_not_change_the_model() -> None:
    model = AiT(AIT).train()
    before = copy.deepcopy(model.state_dict())
    measure_selection(model, make_split(torch.randn(5, 3, 16, 16)).eval_batches(2))
    for name, value in model.state_dict().items():
        assert torch.equal(before[name], value), name


def test_a_model_without_a_workspace_is_refused() -> None:
    model = ViT(ViTConfig(image_size=16, patch_size=8, embed_dim=12, num_heads=2, head_dim=8))
    with pytest.raises(UserError, match="ViT has no workspace"):
        measure_selection(model, make_split(torch.randn(3, 3, 16, 16)).eval_batches(3))


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(ValueError, match="no images"):
        measure_selection(AiT(AIT), [])


def test_no_trace_is_kept() -> None:
    model, references = AiT(AIT), []  # a trace keeps its logits
    model.head.register_forward_hook(lambda *call: references.append(weakref.ref(call[-1])))

    def batches() -> Iterator[Batch]:
        for _ in range(5):
            assert all(logits() is None for logits in references[:-1])
            yield Batch(torch.randn(2, 3, 16, 16), None, torch.zeros(2, dtype=torch.int64))

    assert measure_selection(model, batches()).num_images == 10
    assert len(references) == 5


def test_a_prior_wins_the_tokens_to_which_no_other_prior_of_the_head_attends_more() -> None:
    model, width = planted(heads=2, priors=3, bottleneck=2)
    tables = shuffled(6, 4, width)
    result = select(model, tables, batch_size=3)
    wins = np.zeros((2, 3))
    for start in (0, 3):
        pool = tables[start : start + 3].reshape(-1, width)
        for head in range(2):
            best: dict[int, tuple[float, int]] = {}  # token -> largest weight and its prior
            for prior in range(3):
                column = pool[:, 3 * head + prior]
                top, tokens = column.topk(2)
                for weight, token in zip(top.softmax(0).tolist(), tokens.tolist(), strict=True):
                    if weight > best.get(token, (0.0, 0))[0]:
                        best[token] = (weight, prior)
            for _, prior in best.values():
                wins[head, prior] += 1
    assert result.wins is not None
    assert result.wins[0] == pytest.approx(wins / wins.sum(axis=1, keepdims=True))


def test_the_later_of_equal_priors_never_wins_and_is_named() -> None:
    model, width = planted(heads=2, priors=2, bottleneck=3)
    tables = shuffled(4, 4, width)
    tables[..., 1] = tables[..., 0]  # the same similarities in the first head
    result = select(model, tables, batch_size=4)
    assert result.never_wins[0].tolist() == [[False, True], [False, False]]
    assert ", never win (by head): 1, 0" in list(result.describe())[1]
    early = replace(result, wins=None)
    assert not early.never_wins.any() and "never win" not in list(early.describe())[1]


def test_the_result_can_be_saved_and_read_back(tmp_path: Path) -> None:
    batches = make_split(torch.randn(5, 3, 16, 16)).eval_batches(2)
    result = measure_selection(AiT(AIT), batches)
    save_result(result, tmp_path, "selection")
    again = load_result(SelectionStatistics, tmp_path, "selection")
    for name, value in vars(result).items():
        assert np.array_equal(getattr(again, name), value), name
