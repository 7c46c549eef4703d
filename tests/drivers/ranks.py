"""What the tests with several processes run in each process, and how to start the processes.

`python tests/drivers/ranks.py` prints the figures of docs/how-to/scaling.md: how far the results
differ from those of one process, and how much each rank sends. The processes are forks of a server
that has already imported everything.

Dims     S heads   M priors
"""

import multiprocessing
import os
import tempfile
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from accelerate.utils import ProjectConfiguration
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrize

from associative_transformer import distributed
from associative_transformer.data import Share, TriangleConfig
from associative_transformer.evaluate import Evaluation, evaluate_split
from associative_transformer.experiment import TrainConfig
from associative_transformer.health import MemoryHealth, memory_health
from associative_transformer.interface import Batch
from associative_transformer.models.ait import AiT, AiTConfig
from associative_transformer.optimization import Schedule
from associative_transformer.training.launch import make_accelerator
from associative_transformer.training.step import Sums, TrainingStep
from associative_transformer.workspace import GlobalWorkspace
from associative_transformer.workspace_config import ImageMemoryConfig, WorkspaceConfig

T = TypeVar("T")
TIMEOUT = 60  # seconds
STEPS, BATCH = 20, 12
TOKENS = 16  # per image
MEMORY = WorkspaceConfig(num_priors=3, prior_dim=6, num_heads=2, bottleneck=20, dropout=0.0)
SEPARATE = replace(MEMORY, bottleneck=7)  # fewer than the tokens of a rank
CONFIG = AiTConfig(
    image_size=16,
    patch_size=4,
    embed_dim=24,
    depth=2,
    num_heads=2,
    head_dim=8,
    num_classes=3,
    workspace=MEMORY,
)
PER_IMAGE: dict[str, Any] = {
    "scope": "image",
    "bottleneck": 0.25,
    "balance_weight": 0.05,
    "image": ImageMemoryConfig(read_head_dim=8),
}


def with_memory(**changes: Any) -> AiTConfig:  # noqa: ANN401
    """Return `CONFIG` with changes to the memory."""
    return replace(CONFIG, workspace=replace(MEMORY, **changes))


class Case(NamedTuple):
    """What to train and how, and how far the results may differ."""

    model: AiTConfig = CONFIG
    train: dict[str, Any] = {}  # noqa: RUF012
    dtype: torch.dtype = torch.float64  # so that rounding does not decide which tokens win
    tolerance: float = 1e-5
    steps: int = 8
    is_adapted: bool = False  # keys and values come from parametrized layers, as with LoRA


CASES = {
    "float32": Case(dtype=torch.float32, steps=STEPS),
    "fewer winners than tokens": Case(),
    # the score is 1, so queries and keys get rounding errors as gradients, which AdamW scales up
    "one winner": Case(with_memory(bottleneck=1), {"lr": 1e-7, "schedule": Schedule(min_lr=1e-7)}),
    "more winners than a rank has": Case(with_memory(bottleneck=120)),
    "all tokens win": Case(with_memory(bottleneck=None)),
    "detached write": Case(with_memory(differentiable_write=False)),
    "no balance loss": Case(with_memory(balance_weight=0.0)),
    "detached, no balance loss": Case(with_memory(differentiable_write=False, balance_weight=0.0)),
    "dropout": Case(with_memory(dropout=0.3)),
    "competition": Case(with_memory(competition="priors")),
    "centered values": Case(with_memory(center_values=True, bottleneck=120)),
    "competition and centered values": Case(with_memory(competition="priors", center_values=True)),
    "cross-attention": Case(replace(CONFIG, read="cross_attention")),
    "nothing is read": Case(replace(CONFIG, read="none")),
    "memories of images": Case(with_memory(**PER_IMAGE)),
    "accumulation": Case(train={"accumulation_steps": 2, "clip_norm": 0.5}),
    "compiled": Case(replace(CONFIG, depth=1), {"compile": True}),
    "bfloat16": Case(with_memory(), {"precision": "bfloat16"}, torch.float32, tolerance=0.05),
    "local pools": Case(with_memory(pool="local")),
    "adapters": Case(is_adapted=True),
}


# --- starting processes ---


def in_ranks(world: int, function: Callable[..., T], *arguments: object) -> list[T]:
    """Call `function(rank, world, *arguments)` in joined processes and return the results."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["associative_transformer.training.loop", "torch.distributed.fsdp"]
    )
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=_join, args=(rank, world, folder, function, arguments))
            for rank in range(world)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(TIMEOUT)
        hung = [process for process in ranks if process.is_alive()]
        for process in hung:
            process.kill()
        results = [
            torch.load(path, weights_only=False) for path in sorted(Path(folder).glob("*.pt"))
        ]
    failed = [result for result in results if isinstance(result, str)]
    if failed or hung or len(results) < world:
        raise RuntimeError("\n".join([f"{len(hung)} processes hung", *failed]))
    return results


def _join(
    rank: int, world: int, folder: str, function: Callable[..., T], arguments: tuple[object, ...]
) -> None:
    torch.set_num_threads(1)
    try:
        if world > 1:
            variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world}
            variables |= {"LOCAL_WORLD_SIZE": world, "MASTER_PORT": 0}
            os.environ["MASTER_ADDR"] = "localhost"  # all of them as a launcher sets them
            os.environ |= {name: str(number) for name, number in variables.items()}
            store = f"file://{folder}/store"
            dist.init_process_group("gloo", store, rank=rank, world_size=world)
        result: object = function(rank, world, *arguments)
    except BaseException:
        result = f"rank {rank}: {traceback.format_exc()}"
    torch.save(result, Path(folder) / f"{rank}.pt")
    if dist.is_initialized() and not isinstance(result, str):
        dist.destroy_process_group()


# --- what the processes do ---


class Trained(NamedTuple):
    """The outcome of training; everything but the logits should be the same on all ranks."""

    logits: list[Tensor]  # of the images of this rank in the first step, by micro-batch
    state: dict[str, Tensor]


class EagerlyCompiled(AiT):
    """An AiT that the compiler traces and differentiates, without the slow code generation."""

    def compile(self, **options: Any) -> None:  # noqa: ANN401
        super().compile(backend="aot_eager", **options)


def draw(steps: int = STEPS, batch: int = BATCH) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(steps, batch, 3, 16, 16, generator=generator)
    return images, torch.randint(3, (steps, batch), generator=generator)


def make_step(model: AiT, **train: Any) -> TrainingStep:  # noqa: ANN401
    fixed = {"batch_size": BATCH, "lr": 1e-4, "device": "cpu", "precision": "float32"}
    config = TrainConfig(**{**fixed, **train})
    return TrainingStep(model, config, make_accelerator(config, ProjectConfiguration("unused")))


def train(rank: int, world: int, name: str) -> Trained:
    """Train as `ait train` does."""
    case = CASES[name]
    torch.manual_seed(0)
    model = EagerlyCompiled(case.model).to(case.dtype)
    if case.is_adapted:
        adapt(model)
    step = make_step(model, **case.train)
    logits: list[Tensor] = []
    if step.train.compile != "on":
        step.model.register_forward_hook(lambda _, __, output: logits.append(output.logits))
    gradients: list[dict[str, Tensor]] = []
    step.optimizer.parts[0].register_step_pre_hook(
        lambda *_: gradients.append(
            {
                f"gradient of {name}": parameter.grad.clone()
                for name, parameter in step.model.named_parameters()
                if parameter.grad is not None
            }
        )
    )
    share = Share(rank, world, step.train.accumulation_steps)
    own = share.of(torch.arange(BATCH)[None])[0]
    sums, memories = [], []
    for position, (images, labels) in enumerate(zip(*draw(case.steps), strict=True)):
        step.seed(0, position)
        batch = Batch(images[own].to(case.dtype), None, labels[own])
        sums.append(distributed.add(step(batch)))
        memories.append(torch.stack([w.priors for w in step.workspaces]))
    totals = Sums(*torch.stack(sums).T)
    state = {"loss": totals.loss / BATCH, "balance loss": totals.balance_loss / BATCH}
    state |= {"images": totals.images, "memory": torch.stack(memories)}
    state |= gradients[0] | step.model.state_dict()
    logits = logits[: step.train.accumulation_steps]
    return Trained([x.detach() for x in logits], {k: v.detach() for k, v in state.items()})


class LowRank(nn.Module):
    """A parametrization that adds a low-rank matrix, as LoRA does."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn_like(weight[:, :2]))
        self.b = nn.Parameter(torch.randn_like(weight[:2]))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.a @ self.b


def adapt(model: AiT) -> None:
    for block in model.blocks:
        for layer in (block.workspace.to_k, block.workspace.to_v):
            low_rank = LowRank(layer.weight.detach())
            parametrize.register_parametrization(layer, "weight", low_rank)


def train_all(rank: int, world: int) -> dict[str, Trained]:
    # tracing is slow, so do not compile with three ranks
    names = [name for name, case in CASES.items() if world < 3 or not case.train.get("compile")]
    return {name: train(rank, world, name) for name in names}


def train_by_hand(rank: int, world: int, wrap: str) -> Trained:
    """Take 20 steps in a minimal loop, under DDP or FSDP2, without accelerate."""
    torch.manual_seed(0)
    model = AiT(CONFIG)
    replica = model
    if world > 1 and wrap == "FSDP2":
        mesh = init_device_mesh("cpu", (world,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    elif world > 1:
        replica = distributed.replicate(model, torch.device("cpu"), has_unused=False)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    own, state = Share(rank, world).of(torch.arange(BATCH)[None])[0], {}
    losses, memories, logits = [], [], []
    for images, labels in zip(*draw(), strict=True):
        output = replica(images[own])
        loss = cross_entropy(output.logits, labels[own]) + output.aux_loss
        optimizer.zero_grad()
        loss.backward()
        if not losses:
            logits = [output.logits.detach()]
            state = {f"gradient of {n}": unshard(p.grad) for n, p in model.named_parameters()}
        optimizer.step()
        losses.append(distributed.mean(loss.detach()))
        memories.append(torch.stack([block.workspace.priors for block in model.blocks]))
    state |= {"loss": torch.stack(losses), "memory": torch.stack(memories)}
    return Trained(logits, state | {n: unshard(p) for n, p in model.state_dict().items()})


class Drawn(NamedTuple):
    """What the memories of a rank were after each step, and a number that it drew at the end."""

    memories: Tensor  # (steps, L, M, D)
    number: float


def train_with_own_seed(rank: int, world: int, wrap: str, compiled: bool) -> Drawn:
    """Take a few steps with dropout in a loop of torch alone, each rank with another seed."""
    torch.manual_seed(rank)
    model = AiT(replace(with_memory(dropout=0.1), depth=1))
    if wrap == "FSDP2":
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)  # as a checkpoint that all ranks load
        for block in model.blocks:
            fully_shard(block, mesh=init_device_mesh("cpu", (world,)))
        replica: nn.Module = fully_shard(model)
    else:  # copies weights and memory of rank 0
        replica = nn.parallel.DistributedDataParallel(model)
    if compiled:
        model.blocks[0].workspace.compile(backend="aot_eager", fullgraph=True)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    own, memories = Share(rank, world).of(torch.arange(BATCH)[None])[0], []
    for images, labels in zip(*draw(5), strict=True):
        output = replica(images[own])
        memories.append(torch.stack([block.workspace.priors for block in model.blocks]))
        (cross_entropy(output.logits, labels[own]) + output.aux_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    return Drawn(torch.stack(memories).detach(), float(torch.rand(())))


def unshard(x: Tensor | None) -> Tensor:
    assert x is not None
    return (x.full_tensor() if isinstance(x, DTensor) else x).detach().clone()


class Spoiled(NamedTuple):
    """The outcome of three steps, the second of which is not finite."""

    skipped: int
    is_restored: bool
    state: dict[str, Tensor]


def train_spoiled(rank: int, world: int, pool: str) -> Spoiled:
    """Put an infinite number into the last image of the second batch, on the last rank."""
    torch.manual_seed(0)
    step, is_restored = make_step(AiT(with_memory(pool=pool))), False
    own = Share(rank, world).of(torch.arange(BATCH)[None])[0]
    for position, (images, labels) in enumerate(zip(*draw(3), strict=True)):
        if position == 1:
            images[-1] = torch.inf
        before = {name: x.clone() for name, x in step.model.state_dict().items()}
        step(Batch(images[own], None, labels[own]))
        if position == 1:
            after = step.model.state_dict()
            is_restored = all(torch.equal(x, after[name]) for name, x in before.items())
    state = {name: x.detach() for name, x in step.model.state_dict().items()}
    return Spoiled(step.skipped.total, is_restored, state)


class Tied(NamedTuple):
    """What the priors write from tokens that are all equal."""

    winners: Tensor  # (S, M) number on this rank
    score: Tensor  # (S, M) sum over this rank
    written: Tensor
    balance_loss: Tensor


def tie(rank: int, world: int, bottleneck: int) -> Tied:
    """Let 36 equal tokens compete, divided among the ranks."""
    torch.manual_seed(0)
    workspace = GlobalWorkspace(8, replace(MEMORY, bottleneck=bottleneck))
    token = torch.randn(8)
    with torch.no_grad():
        write = workspace.write(token.expand(36 // world, 8))
    score = write.selection.score
    return Tied((score > 0).sum(-1), score.sum(-1), write.priors, write.balance_loss)


def write_separately(rank: int, world: int, size: int) -> dict[str, Tensor]:
    """Move the memory once, with pools of `size` ranks; return it and the mean gradients."""
    torch.manual_seed(0)
    os.environ["LOCAL_WORLD_SIZE"] = str(size)
    workspace = GlobalWorkspace(8, replace(SEPARATE, pool="local" if size == 1 else "node"))
    workspace.compile(backend="aot_eager", fullgraph=True)
    u, slope = torch.randn(2, world, 10, 8)
    output = workspace(u[rank][None])
    ((output.read * slope[rank]).sum() + output.balance_loss).backward()
    gradients = {n: distributed.mean(p.grad) for n, p in workspace.named_parameters()}
    return {"memory": workspace.priors, **gradients}


def padded_tokens() -> Tensor:
    """Return tokens of two ranks, of which each keeps the first few."""
    return torch.randn(2, 6, 8, dtype=torch.float64, generator=torch.manual_seed(1))


def write_padded(
    rank: int, world: int, config: WorkspaceConfig, counts: tuple[int, int]
) -> dict[str, Tensor]:
    """Move the memory once; return it, what is read, and the mean gradients.

    Each of two ranks has `counts` tokens and padding; one process has the tokens of both.
    """
    tokens, mask = padded_tokens(), torch.arange(6) >= torch.tensor(counts)[:, None]
    torch.manual_seed(0)
    workspace = GlobalWorkspace(8, config).double()
    inputs = (tokens[~mask][None],) if world == 1 else (tokens[rank][None], mask[rank][None])
    read, loss = workspace(*inputs)
    (read.square().sum() * world / 2 + loss).backward()
    parameters = [(name, p.grad) for name, p in workspace.named_parameters()]
    gradients = {name: distributed.mean(p) for name, p in parameters if p is not None}
    return {"read": read.detach(), "memory": workspace.priors, **gradients}


def measure_health(rank: int, world: int, config: AiTConfig) -> list[MemoryHealth]:
    """Take a forward pass in training and measure the memories over all ranks."""
    torch.manual_seed(0)
    model = AiT(config).double()
    images = draw(1)[0][0]
    model(images[Share(rank, world).of(torch.arange(BATCH)[None])[0]].double())
    return memory_health(model, over_ranks=True)


def leave(rank: int, world: int) -> bool:
    """Train and exchange among all ranks and half, leave the group; return whether it is gone."""
    replica = distributed.replicate(nn.Linear(1, 1), torch.device("cpu"), False)
    replica(torch.ones(1, 1)).sum().backward()
    del replica
    for size in (world, world // 2):
        distributed.gather(torch.ones(1), size)
    group = weakref.ref(dist.group.WORLD)
    dist.destroy_process_group()
    return group() is None


class Sent(NamedTuple):
    """How many numbers this rank sends to the others in a step, and their bytes."""

    forward: int
    backward: int
    bytes: int


def count_sent(rank: int, world: int, config: AiTConfig, batch: int) -> Sent:
    """Count what a forward and a backward pass of the model pass to `all_gather`."""
    torch.manual_seed(0)
    model = AiT(config)
    images = draw(1, batch)[0][0][: batch // world]
    with counting() as forward:
        output = model(images)
    with counting() as backward:
        (output.logits.sum() + output.aux_loss).backward()
    numbers = [sum(x.numel() for x in sent) for sent in (forward, backward)]
    return Sent(*numbers, sum(x.numel() * x.element_size() for x in forward + backward))


@contextmanager
def counting() -> Iterator[list[Tensor]]:
    """Record the tensors that this rank passes to `all_gather`."""
    sent: list[Tensor] = []
    gather = dist.all_gather

    def record(gathered: list[Tensor], own: Tensor, group: dist.ProcessGroup) -> None:
        sent.append(own)
        gather(gathered, own, group)

    dist.all_gather = record
    yield sent
    dist.all_gather = gather


def formula(config: AiTConfig, num_tokens: int) -> tuple[int, int]:
    """Return how many numbers all layers send, by docs/how-to/scaling.md, forward and backward."""
    c = config.workspace
    if c.pool == "local":  # the mean of what the pools write
        return (config.depth * c.num_priors * c.prior_dim,) * 2
    kept = min(c.bottleneck or num_tokens, num_tokens)
    rows, sums = c.num_heads * c.num_priors, c.prior_dim + 1
    centers = c.num_heads * sums if c.center_values else 0
    forward, backward = rows * (kept + sums) + centers + 2, rows * sums + centers + 2
    return config.depth * forward, config.depth * backward


def evaluate(rank: int, world: int, batch_size: int) -> Evaluation:
    """Evaluate an untrained model on 103 images."""
    torch.manual_seed(0)
    model = AiT(replace(CONFIG, image_size=64, patch_size=32, num_classes=2))
    data = TriangleConfig(num_train=8, num_test=103).load(torch.device("cpu"))
    return evaluate_split(model, data.test, batch_size, 2)


# --- the figures ---


@cache
def trained(world: int) -> dict[str, list[Trained]]:
    """Train every case in a group of processes; return the outcome on each rank."""
    ranks = in_ranks(world, train_all)
    return {name: [rank[name] for rank in ranks] for name in ranks[0]}


def logits_of(ranks: list[Trained]) -> Tensor:
    """Return the logits of all ranks in the order of one process."""
    parts = zip(*(rank.logits for rank in ranks), strict=True)
    return torch.cat([torch.cat(part) for part in parts]) if ranks[0].logits else torch.zeros(1)


def differences(ours: list[Trained], theirs: list[Trained]) -> dict[str, float]:
    """Compute the difference of each tensor, relative to its largest number if that is above 1."""
    first, second = ({**x[0].state, "logits": logits_of(x)} for x in (ours, theirs))
    assert first.keys() == second.keys(), first.keys() ^ second.keys()
    return {
        name: float((first[name] - x).abs().max() / x.abs().max().clamp(min=1.0))
        for name, x in second.items()
    }


def has_same_bits(ranks: list[Trained]) -> bool:
    first, *others = (rank.state for rank in ranks)
    return all(torch.equal(x, other[name]) for other in others for name, x in first.items())


def print_figures() -> None:
    """Print two tables in Markdown."""
    print("| case | 2 ranks | 3 ranks | same bits on all ranks |\n| --- | ---: | ---: | --- |")
    for name in CASES:
        if name == "local pools":
            continue
        one, *groups = (trained(world).get(name) for world in (1, 2, 3))
        columns = [f"{max(differences(x, one).values()):.1e}" if x else "" for x in groups]
        is_same = all(has_same_bits(group) for group in groups if group)
        print(f"| {name} | {' | '.join(columns)} | {'yes' if is_same else 'no'} |")
    print("\n| bottleneck | images | numbers | by the formula | bytes |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for bottleneck, batch in ((20, 12), (20, 48), (120, 48), (120, 12)):
        config = with_memory(bottleneck=bottleneck)
        sent = in_ranks(2, count_sent, config, batch)[0]
        expected = sum(formula(config, batch // 2 * TOKENS))
        columns = (bottleneck, batch, sent.forward + sent.backward, expected, sent.bytes)
        print(f"| {' | '.join(f'{x:,}' for x in columns)} |")


if __name__ == "__main__":
    print_figures()
