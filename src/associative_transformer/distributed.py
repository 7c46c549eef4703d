"""One pool over all ranks: several processes give the answer of one.

Every rank finds the winners of its own tokens; comparing the similarities of these tells which
of them win over all ranks. Each then sums over its own winners, and the sums are added in the
order of the ranks, so that the write, and with it the memory, is the same bit for bit everywhere.
Pools of fewer ranks do this among themselves, and the memory follows the mean of their writes.
Values and tokens stay where they are. A rank and a layer send S M (k + D + 1) + 2 numbers forward
and S M (D + 1) + 2 backward.

The backward of a sum over ranks is the sum of the gradients of its copies. With the mean over the
ranks that DistributedDataParallel takes, each weight has the gradient of one process that holds
the whole batch. All ranks must hold equally many tokens.

Dims     T tokens of this rank   E token width   S heads   M priors   D head width
         K winners kept on this rank   R rows, S * M   W ranks
Source   Sun et al., CVPR 2025, section 3; the exchange is ours.
"""

import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import signature
from typing import Any, Literal, NamedTuple, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from associative_transformer.functional import Selection
from associative_transformer.interface import UserError
from associative_transformer.kernels import sparse
from associative_transformer.rendezvous import INIT_METHOD

T = TypeVar("T")
Pool = Literal["global", "node", "local"]


class Pooled(NamedTuple):
    """What the priors take from a pool over several ranks."""

    selection: Selection  # value: over the pool; score, chosen: of this rank, score 0: lost
    unevenness: Float[Tensor, ""]  # the balance loss over the pool


def num_ranks() -> int:
    """Count the processes that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number this process, from 0."""
    return dist.get_rank() if num_ranks() > 1 else 0


def is_first() -> bool:
    """Say whether this process speaks for all; known before the process group and after it."""
    return os.environ.get("RANK", "0") == "0"


def is_launched() -> bool:
    """Say whether a launcher started this process, which repeats its command after a failure."""
    return dist.is_available() and dist.is_torchelastic_launched()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def ranks_of(pool: Pool) -> int:
    """Count the ranks, neighbours by number, that form a pool.

    Raises UserError where the nodes can't be told apart, or differ in size.
    """
    ranks = num_ranks()
    if pool == "global" or ranks == 1:
        return ranks
    if pool == "local":
        return 1
    size = int(os.environ.get("LOCAL_WORLD_SIZE", "0"))
    if not size or ranks % size:
        raise UserError(
            f"pools per node need LOCAL_WORLD_SIZE, which torchrun sets, to divide the {ranks} "
            f"processes, and it is {size or 'not set'}: take pool=global or pool=local"
        )
    return size


def num_pools(pool: Pool) -> int:
    """Count the pools of all ranks; all have to call. Raises UserError, on all, as `ranks_of`."""
    if pool == "node":
        sizes = gather_objects(os.environ.get("LOCAL_WORLD_SIZE"))
        if len(set(sizes)) > 1:
            raise UserError(
                "pools per node need equally many processes on each node, and they have "
                f"{' and '.join(sorted(set(map(str, sizes))))}: take pool=global or pool=local"
            )
    return num_ranks() // ranks_of(pool)


def pooled_attention(
    q: Float[Tensor, "S M D"],
    pool: Float[Tensor, "T E"],
    w_k: Float[Tensor, "S D E"],
    w_v: Float[Tensor, "S D E"],
    bottleneck: int | None,
    ranks: int,
) -> Pooled:
    """Let the priors attend to the tokens of this rank and its neighbours in the pool.

    `ranks`: how many ranks a pool has. Measures too how evenly its tokens are used.
    """
    num_heads, num_priors, width = q.shape
    num_tokens = ranks * len(pool)
    limit = min(bottleneck or num_tokens, num_tokens)
    q, pool, w_k, w_v = sparse.in_autocast(q, pool, w_k, w_v)
    q = q / math.sqrt(width)
    asked = (q @ w_k).flatten(0, 1)  # (R, E)
    with torch.no_grad():
        similarity, chosen = sparse.choose(q, w_k, pool, min(limit, len(pool)))
        wins, largest = _compare(similarity, limit, ranks)
    similarity = similarity.masked_fill(~wins, -torch.inf)
    weight, taken = sparse.take(asked, pool, similarity, chosen, largest)
    value = rearrange(taken, "(s m) e -> s m e", s=num_heads) @ w_v.mT
    weight = rearrange(weight, "(s m) k -> s m k", s=num_heads)
    sums = torch.cat([value.to(weight.dtype), weight.sum(dim=-1, keepdim=True)], dim=-1)
    sums = add(sums, ranks)
    score = weight / sums[..., -1:]
    chosen, wins = (x.view(score.shape) for x in (chosen, wins))
    unused = score.new_zeros(num_heads, len(pool))
    importance = unused.scatter_add(1, chosen.flatten(1), score.flatten(1))
    load = unused.scatter_add(1, chosen.flatten(1), wins.flatten(1).to(score.dtype))
    # the mean of either is known: a row of the scores sums to 1, and has `limit` winners
    mean = score.new_tensor([num_priors / num_tokens, num_priors * limit / num_tokens])
    squares = (torch.stack([importance, load], dim=-1) - mean).square().sum(dim=(0, 1))
    variance = add(squares, ranks) / max(num_tokens - 1, 1)  # of each head, summed over the heads
    unevenness = (variance / (mean.square() + 1e-10)).sum()
    value = (sums[..., :-1] / sums[..., -1:]).to(w_v.dtype)
    return Pooled(Selection(value, score, chosen), unevenness)


def _compare(
    similarity: Float[Tensor, "R K"], limit: int, ranks: int
) -> tuple[Bool[Tensor, "R K"], Float[Tensor, " R"]]:
    """Tell which similarities are among the `limit` largest of the pool, and the largest of all.

    Of equal ones the first in the order of ranks wins.
    """
    dtype = torch.promote_types(similarity.dtype, torch.float32)
    everyone = rearrange(gather(similarity.to(dtype), ranks), "w r k -> r (w k)")
    if limit >= everyone.shape[1]:
        return torch.ones_like(similarity, dtype=torch.bool), everyone.amax(dim=-1)
    order = everyone.argsort(dim=-1, descending=True, stable=True)[:, :limit]
    wins = torch.zeros_like(everyone, dtype=torch.bool).scatter(1, order, True)
    first = rank() % ranks * similarity.shape[1]
    return wins[:, first : first + similarity.shape[1]], everyone.amax(dim=-1)


@torch.library.custom_op(
    "associative_transformer::gather",
    mutates_args=(),
    schema="(Tensor x, int? ranks=None) -> Tensor",
)
def gather(x: Float[Tensor, "..."], ranks: int | None = None) -> Float[Tensor, "W ..."]:
    """Give what each rank holds, in their order; every rank has to call.

    `ranks`: of so many neighbours, not of all.
    """
    ranks = ranks or num_ranks()
    found = x.new_empty(ranks, *x.shape)
    if ranks == 1:
        return found.copy_(x)
    dist.all_gather(list(found.unbind()), x.contiguous(), _neighbours(ranks))
    return found


@gather.register_fake
def _(x: Tensor, ranks: int | None = None) -> Tensor:
    return x.new_empty(ranks or num_ranks(), *x.shape)


# of each process group; a reference to one would keep its threads beyond its end
_subgroups: WeakKeyDictionary[Any, dict[int, Any]] = WeakKeyDictionary()


def _neighbours(ranks: int) -> Any:  # noqa: ANN401
    """Form groups of so many ranks, once, and give that of this rank."""
    world = dist.group.WORLD
    if ranks == num_ranks():
        return world
    formed = _subgroups.setdefault(world, {})
    if ranks not in formed:
        formed[ranks] = dist.new_subgroups(ranks)[0]
    return formed[ranks]


@torch.library.custom_op(
    "associative_transformer::add", mutates_args=(), schema="(Tensor x, int? ranks=None) -> Tensor"
)
def add(x: Float[Tensor, "..."], ranks: int | None = None) -> Float[Tensor, "..."]:
    """Add what the ranks hold, in their order; the gradients of the copies are added likewise."""
    return gather(x, ranks).sum(dim=0)


@add.register_fake
def _(x: Tensor, ranks: int | None = None) -> Tensor:
    return torch.empty_like(x)


def _keep_ranks(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401
    ctx.ranks = inputs[1]


def _add_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
    return add(gradient, ctx.ranks), None


add.register_autograd(_add_backward, setup_context=_keep_ranks)


def mean(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Average what the ranks hold."""
    return x if num_ranks() == 1 else add(x) / num_ranks()


def replicate(model: nn.Module, device: torch.device, has_unused: bool) -> nn.Module:
    """Let the ranks average the gradients of the model; a single one gets the model back.

    `has_unused`: some weights get no gradient, as in a detached write. Buffers are not sent: the
    memory is the same everywhere by itself.
    """
    if num_ranks() == 1:
        return model
    is_renamed = "forward_sync_buffers" in signature(DistributedDataParallel).parameters  # 2.14
    keep_buffers: dict[str, Any] = {
        "forward_sync_buffers" if is_renamed else "broadcast_buffers": False
    }
    return DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=has_unused,
        gradient_as_bucket_view=True,
        **keep_buffers,
    )


def without_exchange(model: nn.Module) -> AbstractContextManager[None]:
    """Keep the gradients of a replicated model on their ranks: more of them will follow."""
    if not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return cast(AbstractContextManager[None], model.no_sync())


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Let the processes of a launcher work together in a block; gives the device of this one."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=INIT_METHOD)
    yield device
    dist.destroy_process_group()  # not after an error: it could wait for the others


def gather_objects(value: T) -> list[T]:
    """Give what each rank holds, in their order; every rank has to call. They trust each other."""
    if num_ranks() == 1:
        return [value]
    values: list[Any] = [None] * num_ranks()
    dist.all_gather_object(values, value)
    return values


def check_same(value: object) -> None:
    """Raise UserError where the ranks found different values in the run folder or the data."""
    values = gather_objects(value)
    if any(other != values[0] for other in values):
        raise UserError("the processes have to share the run folder and the data")


@contextmanager
def first_alone() -> Iterator[None]:
    """Run a block on rank 0, and on the others when it is through."""
    if rank():
        gather_objects(None)
    yield
    if not rank():
        gather_objects(None)
