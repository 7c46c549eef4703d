"""Several processes, joined by gloo on a CPU, against one process with the whole batch."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from associative_transformer import distributed, functional, kernels
from associative_transformer.data import Share
from associative_transformer.interface import UserError
from associative_transformer.kernels import over_ranks
from associative_transformer.models import build_model
from associative_transformer.models.ait import AiT, AiTConfig
from associative_transformer.models.vit import ViTConfig
from associative_transformer.workspace import GlobalWorkspace
from associative_transformer.workspace_config import ImageMemoryConfig, WorkspaceConfig
from drivers import ranks

WORLDS = [2, pytest.param(3, marks=pytest.mark.thorough)]
RULES = [("none", False), ("priors", False), ("none", True), ("priors", True)]
"""Competition, and whether values are centered."""
slow = pytest.mark.slow


# --- with real processes ---


@slow
@pytest.mark.parametrize("world", WORLDS)
def test_training_gives_the_same_numbers_as_one_process(world: int) -> None:
    too_far = {
        f"{name}: {key}": difference
        for name, group in ranks.trained(world).items()
        if name != "local pools"
        for key, difference in ranks.differences(group, ranks.trained(1)[name]).items()
        if not difference <= ranks.CASES[name].tolerance
    }
    assert not too_far


@slow
@pytest.mark.parametrize("world", WORLDS)
def test_memory_weights_and_gradients_are_the_same_bit_for_bit_on_all_ranks(world: int) -> None:
    groups = ranks.trained(world)
    assert len(groups) >= 13
    assert [name for name, group in groups.items() if not ranks.has_same_bits(group)] == []


@slow
def test_twenty_steps_move_everything_by_more_than_the_tolerance() -> None:
    state = ranks.trained(1)["float32"][0].state
    moves = state["memory"].diff(dim=0).abs().amax(dim=(1, 2, 3))
    assert (moves > 1e-3).all()
    torch.manual_seed(0)
    for name, start in AiT(ranks.CONFIG).named_parameters():
        assert (state[name] - start).abs().max() > 3e-4, name


@slow
def test_local_pools_give_a_different_result_from_a_global_one() -> None:
    local, whole = (
        ranks.trained(2)[name] for name in ("local pools", "fewer winners than tokens")
    )
    assert ranks.has_same_bits(local)
    assert ranks.differences(local, whole)["memory"] > 0.01
    one = ranks.trained(1)
    alone = ranks.differences(one["local pools"], one["fewer winners than tokens"])
    assert not any(alone.values())  # with one process there is only one pool


@slow
@pytest.mark.parametrize(
    ("world", "size"), [(2, 1), pytest.param(3, 1, marks=pytest.mark.thorough), (4, 2)], ids=str
)
def test_pools_of_a_rank_or_a_node_move_one_memory_towards_the_mean_of_their_writes(
    world: int, size: int
) -> None:
    torch.manual_seed(0)
    workspace = GlobalWorkspace(8, ranks.SEPARATE)
    u, slope = torch.randn(2, world, 10, 8)
    writes = [workspace.write(pool.flatten(0, 1)) for pool in u.split(size)]
    priors = workspace.remember(torch.stack([write.priors for write in writes]).mean(dim=0))
    losses = [
        (workspace.read(u[rank][None], priors) * slope[rank]).sum()
        + writes[rank // size].balance_loss
        for rank in range(world)
    ]
    torch.stack(losses).mean().backward()
    group = ranks.in_ranks(world, ranks.write_separately, size)
    for result in group:
        assert torch.equal(result["memory"], group[0]["memory"])
        torch.testing.assert_close(result["memory"], workspace.priors)
        for name, parameter in workspace.named_parameters():
            torch.testing.assert_close(result[name], parameter.grad, msg=name)


@slow
@pytest.mark.parametrize(
    ("wrap", "compiled"), [("DDP", False), ("DDP", True), ("FSDP2", False)], ids=str
)
def test_ranks_with_different_seeds_use_one_mask_in_a_loop_without_this_package(
    wrap: str, compiled: bool
) -> None:
    first, second = ranks.in_ranks(2, ranks.train_with_own_seed, wrap, compiled)
    assert first.number != second.number  # their seeds do differ
    assert torch.equal(first.memories, second.memories)
    moves = first.memories.diff(dim=0).abs().amax(dim=(1, 2, 3))
    assert (moves > 1e-3).all()


OWN_MEMORIES = {"scope": "image", "image": ImageMemoryConfig(8), "bottleneck": 5}


@slow
@pytest.mark.parametrize("memory", [{}, {"bottleneck": 120}, OWN_MEMORIES], ids=str)
def test_the_health_over_all_ranks_is_that_of_one_process(memory: dict[str, Any]) -> None:
    config = ranks.with_memory(**memory)
    ((first, second),) = ranks.in_ranks(1, ranks.measure_health, config)
    assert 0 < first.overlap < 1 and 0 < first.tokens_used <= 1 and first != second
    for found in ranks.in_ranks(2, ranks.measure_health, config):
        for ours, theirs in zip(found, (first, second), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-6)


@slow
def test_a_destroyed_group_is_gone_with_its_threads() -> None:
    # if a group still exists at exit, Python sometimes crashes: its threads release tensors
    assert all(ranks.in_ranks(4, ranks.leave))


@slow
@pytest.mark.parametrize("wrap", ["DDP", "FSDP2"])
def test_a_minimal_loop_gives_the_same_numbers_under_ddp_and_fsdp2(wrap: str) -> None:
    alone = ranks.in_ranks(1, ranks.train_by_hand, wrap)
    group = ranks.in_ranks(2, ranks.train_by_hand, wrap)
    assert ranks.has_same_bits(group)
    differences = ranks.differences(group, alone)
    assert {name: x for name, x in differences.items() if not x <= 1e-5} == {}
    assert "gradient of blocks.1.workspace.to_k.weight" in differences


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="accelerate shards only on GPUs")
def test_accelerate_trains_an_ait_with_fsdp2() -> None:
    launch = [
        *(str(Path(sys.executable).parent / "accelerate"), "launch", "--use_fsdp"),
        *("--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"),
        *("--fsdp_transformer_layer_cls_to_wrap", "Block", "--mixed_precision", "no"),
        *("--num_processes", str(torch.cuda.device_count())),
    ]
    tests = Path(__file__).parent
    subprocess.run(
        [*launch, str(tests / "drivers" / "sharded.py")],
        check=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(tests)},
    )


@slow
@pytest.mark.parametrize("bottleneck", [7, 17, 36])  # fewer than a rank has, more, and all
@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.thorough)])
def test_exactly_k_of_equal_tokens_win_and_all_ranks_agree_on_them(
    bottleneck: int, world: int
) -> None:
    (alone,) = ranks.in_ranks(1, ranks.tie, bottleneck)
    group = ranks.in_ranks(world, ranks.tie, bottleneck)
    winners = torch.stack([rank.winners for rank in group])
    assert (winners.sum(dim=0) == bottleneck).all()
    tokens_of_a_rank = 36 // world  # those of rank 0 win first
    assert (winners[0] == min(bottleneck, tokens_of_a_rank)).all()
    score = torch.stack([rank.score for rank in group]).sum(dim=0)
    torch.testing.assert_close(score, torch.ones_like(score))
    for rank in group:
        assert torch.equal(rank.written, group[0].written)
        torch.testing.assert_close(rank.written, alone.written)
        torch.testing.assert_close(rank.balance_loss, alone.balance_loss)


@slow
@pytest.mark.parametrize("pool", ["global", "local"])
def test_a_step_that_is_not_finite_on_one_rank_is_skipped_on_all(pool: str) -> None:
    (alone,) = ranks.in_ranks(1, ranks.train_spoiled, pool)
    for rank in (alone, *ranks.in_ranks(2, ranks.train_spoiled, pool)):
        assert (rank.skipped, rank.is_restored) == (1, True)
        if pool == "global":
            for name, ours in rank.state.items():
                torch.testing.assert_close(ours, alone.state[name], rtol=1e-4, atol=1e-5)


@slow
@pytest.mark.parametrize(
    ("changes", "images"),
    [
        ({}, 12),
        pytest.param({}, 48, marks=pytest.mark.thorough),
        pytest.param({"bottleneck": 120}, 48, marks=pytest.mark.thorough),
        ({"bottleneck": None, "num_heads": 3}, 12),
        pytest.param({"center_values": True}, 12, marks=pytest.mark.thorough),
        ({"competition": "priors"}, 12),
        pytest.param({"pool": "local"}, 12, marks=pytest.mark.thorough),
    ],
    ids=str,
)
def test_a_rank_sends_as_many_numbers_as_documented(changes: dict[str, Any], images: int) -> None:
    config = ranks.with_memory(**changes)
    for sent in ranks.in_ranks(2, ranks.count_sent, config, images):
        expected = ranks.formula(config, images // 2 * ranks.TOKENS)
        assert (sent.forward, sent.backward) == expected
        assert sent.bytes == 4 * sum(expected)


@slow
def test_the_amount_sent_does_not_depend_on_the_number_of_tokens() -> None:
    few, many = (ranks.in_ranks(2, ranks.count_sent, ranks.CONFIG, n)[0] for n in (6, 60))
    assert few == many


@slow
@pytest.mark.parametrize("world", WORLDS)
def test_evaluation_counts_every_image_once_in_order(world: int) -> None:
    (alone,) = ranks.in_ranks(1, ranks.evaluate, 16)
    assert alone.confusion.sum() == len(alone.predicted) == 103
    assert len(alone.predicted.unique()) == 2  # otherwise the order would not matter
    for rank in ranks.in_ranks(world, ranks.evaluate, 16):
        assert torch.equal(rank.predicted, alone.predicted)
        assert torch.equal(rank.confusion, alone.confusion)
        assert rank.accuracy == alone.accuracy
        assert rank.loss == pytest.approx(alone.loss, rel=1e-6)


@pytest.mark.thorough
@slow
def test_the_benchmark_of_weak_scaling_measures_one_and_two_processes() -> None:
    script = Path(__file__).parents[1] / "benchmarks/weak_scaling.py"
    short = ["--steps", "1", "--batch", "2", "--embed-dim", "48"]
    out = subprocess.check_output([sys.executable, script, *short], text=True)
    assert [row.split(" | ")[0] for row in out.splitlines()[2:]] == ["| 1", "| 2"]


# --- in this process ---


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Return a function that makes this process look like one rank of several."""

    def become(rank: int, world: int) -> None:
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "num_ranks", lambda: world)

    return become


def test_one_process_is_the_first_and_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert (distributed.rank(), distributed.num_ranks()) == (0, 1)
    assert distributed.is_first()
    assert not distributed.is_launched()
    x = torch.randn(3, requires_grad=True)
    assert torch.equal(distributed.gather(x), x[None])
    assert torch.equal(distributed.add(x), x)
    assert torch.equal(distributed.of_first(x.detach()), x)
    assert distributed.mean(x) is x
    assert distributed.gather_objects("value") == ["value"]
    distributed.check_same("value")
    model = AiT(ranks.CONFIG)
    assert distributed.replicate(model, torch.device("cpu"), False) is model


def launch_variables(**changes: str) -> dict[str, str]:
    """Return what torchrun sets in rank 1 of 2, with changes."""
    port = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    return {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", **port, **changes}


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Return a function that sets some variables of a launcher and removes the others."""

    def set_only(variables: dict[str, str]) -> None:
        for name in distributed.LAUNCH_VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_only


STRAY = [
    {},
    {"RANK": "1"},
    {"LOCAL_RANK": "0"},
    {"LOCAL_RANK": "1", "MASTER_ADDR": "localhost"},
    {"RANK": "3", "LOCAL_RANK": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
    {"WORLD_SIZE": "1", "RANK": "0"},
    {"PMI_SIZE": "2", "PMI_RANK": "1", "MASTER_ADDR": "localhost"},
    {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"},
    {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "3"},
]
"""Variables that do not come from a launcher of ours."""


@pytest.mark.parametrize("variables", STRAY, ids=str)
def test_stray_variables_of_launchers_make_no_group(
    variables: dict[str, str], only: Callable[[dict[str, str]], None]
) -> None:
    only(variables)
    assert distributed.launched_ranks() == 1
    assert distributed.is_first()
    with distributed.joined(torch.device("cpu")):
        assert distributed.num_ranks() == 1


@pytest.mark.parametrize(
    "changes",
    [
        *({name: ""} for name in distributed.LAUNCH_VARIABLES if name != "WORLD_SIZE"),
        {"RANK": "2"},
        {"RANK": "-1"},
        {"WORLD_SIZE": "two"},
        {"WORLD_SIZE": "0"},
        {"LOCAL_RANK": "first"},
        {"MASTER_PORT": "http"},
        {"MASTER_PORT": "65536"},
    ],
    ids=str,
)
def test_incomplete_or_wrong_variables_of_a_launcher_are_refused_by_name(
    changes: dict[str, str], only: Callable[[dict[str, str]], None]
) -> None:
    only(launch_variables())
    assert distributed.launched_ranks() == 2
    only(launch_variables(**changes))
    ((name, value),) = changes.items()
    with pytest.raises(UserError, match=f"{name}={value}.*torchrun.*unset WORLD_SIZE"):
        distributed.launched_ranks()


@pytest.mark.parametrize(("rank", "first"), [("0", True), ("1", False)])
def test_the_environment_of_a_launcher_identifies_the_first_rank(
    rank: str, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in launch_variables(RANK=rank).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    assert distributed.is_first() == first
    assert distributed.is_launched()


def test_the_operators_are_sound_for_autograd_and_compiler() -> None:
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(distributed.gather, (x.detach(),))
    torch.library.opcheck(distributed.add, (x,))
    torch.library.opcheck(distributed.of_first, (x.detach(),))
    assert torch.autograd.gradcheck(distributed.add, (x,))


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize("bottleneck", [1, 7, 30, 40, None])
def test_with_one_rank_the_exchange_equals_attention_without_it(
    bottleneck: int | None, rules: tuple[str, bool]
) -> None:
    shapes = (2, 3, 4), (30, 6), (2, 4, 6), (2, 4, 6)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    ours = over_ranks.pooled_attention(*inputs, bottleneck, 1, *rules)
    theirs = kernels.attend(*inputs, bottleneck, "global", *rules)
    torch.testing.assert_close(ours.selection.value, theirs.selection.value)
    torch.testing.assert_close(ours.unevenness, theirs.unevenness)
    slope = torch.randn_like(theirs.selection.value)
    gradients = [
        torch.autograd.grad((x.selection.value * slope).sum() + x.unevenness, inputs)
        for x in (ours, theirs)
    ]
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("pool", ["global", "node", "local"])
def test_an_implementation_is_used_only_for_a_pool_in_one_process(
    pool: over_ranks.Pool, pretend: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    exchanged: list[int] = []

    def exchange(*arguments: Any) -> functional.AttendOutput:  # noqa: ANN401
        exchanged.append(arguments[-1])
        return output

    pretend(0, 6)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr(over_ranks, "pooled_attention", exchange)
    monkeypatch.setattr(distributed, "mean", lambda x: 2 * x)
    inputs = [torch.randn(shape) for shape in ((2, 3, 4), (30, 6), (2, 4, 6), (2, 4, 6))]
    selection = functional.pooled_attention(*inputs, 5)
    output = functional.AttendOutput(selection, torch.zeros(()))
    attend = kernels.PoolAttention(lambda *_: selection)
    assert attend(*inputs, 5, pool).selection is selection
    assert exchanged == {"global": [6], "node": [3], "local": []}[pool]
    merged = attend.merge(torch.ones(3, 4), pool)
    assert (merged == (1 if pool == "global" else 2)).all()


def test_values_that_differ_between_ranks_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "gather_objects", lambda value: [value, value])
    distributed.check_same(1)
    monkeypatch.setattr(distributed, "gather_objects", lambda value: [value, value + 1])
    with pytest.raises(UserError, match="share the run folder and the data"):
        distributed.check_same(1)


def test_settings_that_differ_between_ranks_are_named_with_both_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = {"--train.lr": 1e-3, "--resume": True, "--train.epochs": 3}

    def gathered(*others: dict[str, object]) -> None:
        values = [(settings, f"node{i}") for i, settings in enumerate((first, *others))]
        monkeypatch.setattr(distributed, "gather_objects", lambda _: values)
        distributed.check_same_settings(first)

    gathered(first, dict(first))
    with pytest.raises(
        UserError, match=r"0 on node0 and process 2 on node2 .*lr \(0.001 and 0.01\)"
    ):
        gathered(first, first | {"--train.lr": 1e-2})
    with pytest.raises(
        UserError, match=r"--resume \(True and None\), --model.depth \(None and 2\):"
    ):
        gathered({"--train.lr": 1e-3, "--train.epochs": 3, "--model.depth": 2})


@pytest.mark.parametrize("rank", [0, 1])
def test_the_other_ranks_wait_for_the_first(
    rank: int, pretend: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(rank, 2)
    events: list[str] = []
    monkeypatch.setattr(distributed, "gather_objects", lambda _: events.append("meet"))
    with distributed.first_alone():
        events.append("work")
    assert events == [["work", "meet"], ["meet", "work"]][rank]


@pytest.mark.parametrize(("batch", "parts", "of"), [(10, 1, 4), (8, 4, 16), (9, 3, 12)])
def test_a_batch_that_the_ranks_cannot_share_evenly_is_refused(
    batch: int, parts: int, of: int, pretend: Callable[[int, int], None]
) -> None:
    model, train = AiT(ranks.CONFIG), {"batch_size": batch, "accumulation_steps": parts}
    ranks.make_step(model, **train)
    pretend(0, 4)
    with pytest.raises(UserError, match=rf"{batch} .* 4 processes .* {parts}: .* {of}"):
        ranks.make_step(model, **train)


VIT = ViTConfig(image_size=16, patch_size=4, embed_dim=8, num_heads=1, head_dim=8, depth=1)


@pytest.mark.parametrize("config", [ranks.CONFIG, VIT], ids=lambda config: config.kind)
def test_ranks_draw_the_same_numbers_only_if_they_share_a_workspace(
    config: AiTConfig | ViTConfig, pretend: Callable[[int, int], None]
) -> None:
    step = ranks.make_step(build_model(config))
    drawn = []
    for rank in range(3):
        pretend(rank, 3)
        step.seed(1, 2)
        drawn.append(float(torch.rand(())))
    assert len(set(drawn)) == (1 if isinstance(config, AiTConfig) else 3)
    pretend(0, 1)
    step.seed(1, 2)
    assert float(torch.rand(())) == drawn[0]


@pytest.mark.parametrize("world", [1, 2, 3, 6])
@pytest.mark.parametrize("parts", [1, 2])
def test_micro_batches_of_all_ranks_together_equal_those_of_one_process(
    world: int, parts: int
) -> None:
    items = torch.arange(24).view(2, 12)
    micro = [Share(rank, world, parts).of(items).chunk(parts, dim=1) for rank in range(world)]
    for part, whole in enumerate(items.chunk(parts, dim=1)):
        assert torch.equal(torch.cat([rank[part] for rank in micro], dim=1), whole)


def test_the_pool_is_global_by_default() -> None:
    assert WorkspaceConfig().pool == "global"


def test_a_pool_contains_all_ranks_those_of_a_node_or_only_one(
    pretend: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert [over_ranks.ranks_of(pool) for pool in ("global", "node", "local")] == [1, 1, 1]
    pretend(0, 6)
    with pytest.raises(UserError, match=r"6 processes, but it is not set: .* use pool="):
        over_ranks.ranks_of("node")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(UserError, match="divides the 6 processes, but it is 4"):
        over_ranks.ranks_of("node")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert [over_ranks.ranks_of(pool) for pool in ("global", "node", "local")] == [6, 3, 1]
    monkeypatch.setattr(distributed, "gather_objects", lambda size: [size] * 6)
    assert [over_ranks.num_pools(pool) for pool in ("global", "node", "local")] == [1, 2, 6]
    monkeypatch.setattr(distributed, "gather_objects", lambda _: ["4"] * 4 + ["2"] * 2)
    with pytest.raises(UserError, match="they have 2 and 4: use pool="):
        over_ranks.num_pools("node")
