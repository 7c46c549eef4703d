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

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from inspect import signature
from typing import Any, TypeVar, cast
from urllib.parse import urlparse
from uuid import uuid4
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed import DistStoreError
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous
from torch.nn.parallel import DistributedDataParallel

from associative_transformer.interface import UserError

T = TypeVar("T")


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


INIT_METHOD = "associative-transformer://"  # of `init_process_group` and accelerate


LOOK_AGAIN = 0.05  # seconds


def agree(store: Store, rank: int, num_ranks: int, timeout: timedelta) -> str:
    """Give all ranks a name that no earlier group of this store has had.

    Every rank leaves a word of its own, and rank 0 answers each word it finds with the name. The
    words of ranks that are gone are answered too, but nobody reads that; rank 0 looks again until
    the word of every rank is confirmed. The launcher has ended the ranks of the groups before.

    Raises TimeoutError where a rank does not come.
    """

    def read(key: str, whose: int) -> str:
        try:
            store.wait([key], timeout)
        except DistStoreError as error:
            raise TimeoutError(late.format(whose)) from error
        return store.get(key).decode()

    late = f"rank {{}} of {num_ranks} did not come within {timeout}"
    own, end = uuid4().hex, time.monotonic() + timeout.total_seconds()
    store.set(f"word/{rank}", own)
    if rank:
        name = read(f"answer/{own}", 0)
        store.set(f"known/{name}/{own}", "")
        return name
    missing = list(range(1, num_ranks))
    while missing:
        if time.monotonic() > end:
            raise TimeoutError(late.format(missing[0]))
        words = {other: read(f"word/{other}", other) for other in missing}
        for word in words.values():
            store.set(f"answer/{word}", own)
        time.sleep(LOOK_AGAIN)
        missing = [
            other for other, word in words.items() if not store.check([f"known/{own}/{word}"])
        ]
    return own


def _find_ranks(
    url: str,
    timeout: timedelta,
    **_: object,
) -> Iterator[tuple[Store, int, int]]:
    """Do what torch's `env://` does, and share the store of a launcher under a new name."""
    query = urlparse(url).query  # the rank and the number of ranks, where the caller gives them
    for store, rank, num_ranks in rendezvous(f"env://?{query}", timeout=timeout):
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            ours = PrefixStore("associative_transformer", store)
            store = PrefixStore(agree(ours, rank, num_ranks, timeout), ours)
        yield store, rank, num_ranks


register_rendezvous_handler(INIT_METHOD.removesuffix("://"), _find_ranks)  # type: ignore[no-untyped-call]
