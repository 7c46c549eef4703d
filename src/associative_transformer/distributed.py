"""Process groups and collectives; only this file and rendezvous.py use torch.distributed.

A collective is a function that every rank has to call. The gradient of a sum over ranks is the
sum of the gradients of its copies. Since DistributedDataParallel averages the gradients over the
ranks, each weight gets the gradient that one process with the whole batch would compute.

Dims     W ranks of a group
"""

import os
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import signature
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # its defaults keep the group that exists at this moment
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from associative_transformer.interface import UserError
from associative_transformer.rendezvous import init_method

T = TypeVar("T")

LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Set by torchrun and accelerate in each process; only all of them together make a group."""

# --- this process and its group ---


def launched_ranks() -> int:
    """Return the number of processes that a launcher started together; 1 without a launcher.

    Raises UserError if WORLD_SIZE is above 1 but another variable is missing or wrong.
    """
    values = {name: os.environ.get(name, "") for name in LAUNCH_VARIABLES}
    if (size := values["WORLD_SIZE"]) in ("", "1"):
        return 1
    is_valid = all(x.isdecimal() or (name == "MASTER_ADDR" and x) for name, x in values.items())
    if not is_valid or int(values["RANK"]) >= int(size) or int(values["MASTER_PORT"]) >= 2**16:
        given = ", ".join(f"{name}={value or '(not set)'}" for name, value in values.items())
        raise UserError(
            f"WORLD_SIZE={size} announces several processes, but not all variables fit ({given}): "
            "start them with torchrun, or unset WORLD_SIZE to use one process"
        )
    return int(size)


def num_ranks() -> int:
    """Return the number of processes that train together, which is 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, counting from 0."""
    return dist.get_rank() if num_ranks() > 1 else 0


def is_first() -> bool:
    """Return whether this is rank 0; works even without a process group."""
    return launched_ranks() == 1 or os.environ["RANK"] == "0"


def is_launched() -> bool:
    """Return whether this process was started by a launcher that restarts it after a failure."""
    return dist.is_available() and dist.is_torchelastic_launched()


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Join the processes of a launcher for the duration of a block; yield the device to use."""
    if launched_ranks() == 1:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=init_method(device.type))
    yield device
    dist.destroy_process_group()  # not after an error, as this could wait for the other ranks


# --- collectives of tensors ---


@torch.library.custom_op(
    "associative_transformer::gather",
    mutates_args=(),
    schema="(Tensor x, int? ranks=None) -> Tensor",
)
def gather(x: Float[Tensor, "..."], ranks: int | None = None) -> Float[Tensor, "W ..."]:
    """Stack the tensors of all ranks in the order of the ranks; a collective.

    With `ranks`, stack only those of this rank's group of that many neighbors.
    """
    ranks = ranks or num_ranks()
    gathered = x.new_empty(ranks, *x.shape)
    if ranks == 1:
        return gathered.copy_(x)
    dist.all_gather(list(gathered.unbind()), x.contiguous(), _neighbors(ranks))
    return gathered


@gather.register_fake
def _(x: Tensor, ranks: int | None = None) -> Tensor:
    return x.new_empty(ranks or num_ranks(), *x.shape)


# by process group; a strong reference would keep a destroyed group and its threads alive
_subgroups: WeakKeyDictionary[Any, dict[int, Any]] = WeakKeyDictionary()


def _neighbors(ranks: int) -> Any:  # noqa: ANN401
    """Return this rank's group of `ranks` neighbors; the first call creates it."""
    world = dist.group.WORLD
    if ranks == num_ranks():
        return world
    groups = _subgroups.setdefault(world, {})
    if ranks not in groups:
        groups[ranks] = dist.new_subgroups(ranks)[0]
    return groups[ranks]


@torch.library.custom_op(
    "associative_transformer::add", mutates_args=(), schema="(Tensor x, int? ranks=None) -> Tensor"
)
def add(x: Float[Tensor, "..."], ranks: int | None = None) -> Float[Tensor, "..."]:
    """Add the tensors of all ranks, or of `ranks` neighbors, in their order; a collective."""
    return gather(x, ranks).sum(dim=0)


@add.register_fake
def _(x: Tensor, ranks: int | None = None) -> Tensor:
    return torch.empty_like(x)


def _save_ranks(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401
    ctx.ranks = inputs[1]


def _add_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
    return add(gradient, ctx.ranks), None


add.register_autograd(_add_backward, setup_context=_save_ranks)


@torch.library.custom_op(
    "associative_transformer::of_first", mutates_args=(), schema="(Tensor x) -> Tensor"
)
def of_first(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return the tensor of rank 0, without a gradient; a collective."""
    shared = x.clone(memory_format=torch.contiguous_format)
    if num_ranks() > 1:
        dist.broadcast(shared, src=0)
    return shared


@of_first.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def mean(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Average the tensors of all ranks; a collective."""
    return x if num_ranks() == 1 else add(x) / num_ranks()


# --- gradients ---


def replicate(model: nn.Module, device: torch.device, has_unused: bool) -> nn.Module:
    """Wrap a model so that the ranks average its gradients; a single rank gets the model itself.

    `has_unused` says that some weights get no gradient, as with a detached write. Buffers are not
    exchanged, because the memory is the same on all ranks anyway.
    """
    if num_ranks() == 1:
        return model
    is_renamed = "forward_sync_buffers" in signature(DistributedDataParallel).parameters  # 2.14
    name = "forward_sync_buffers" if is_renamed else "broadcast_buffers"
    keep_buffers: dict[str, Any] = {name: False}
    return DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=has_unused,
        gradient_as_bucket_view=True,
        **keep_buffers,
    )


def without_exchange(model: nn.Module) -> AbstractContextManager[None]:
    """Accumulate the gradients of a replicated model without averaging them over the ranks."""
    if not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return cast(AbstractContextManager[None], model.no_sync())


# --- collectives of objects ---


def gather_objects(value: T) -> list[T]:
    """Return the values of all ranks in the order of the ranks; a collective.

    Values are pickled, so the ranks have to trust each other.
    """
    if num_ranks() == 1:
        return [value]
    values: list[Any] = [None] * num_ranks()
    dist.all_gather_object(values, value)
    return values


def check_same(value: object) -> None:
    """Raise UserError if the ranks read different values from the run folder or the data."""
    values = gather_objects(value)
    if any(other != values[0] for other in values):
        raise UserError(
            "the processes read different files: they have to share the run folder and the data"
        )


def check_same_settings(settings: dict[str, object]) -> None:
    """Raise UserError on all ranks if their settings differ, naming them with both values."""
    (first, host), *others = gather_objects((settings, socket.gethostname()))
    for rank, (theirs, other_host) in enumerate(others, start=1):
        pairs = {name: (first.get(name), theirs.get(name)) for name in first | theirs}
        wrong = [f"{name} ({a} and {b})" for name, (a, b) in pairs.items() if a != b]
        if wrong:
            raise UserError(
                f"process 0 on {host} and process {rank} on {other_host} differ in "
                f"{', '.join(wrong)}: start all processes with the same options and versions"
            )


@contextmanager
def first_alone() -> Iterator[None]:
    """Run a block on rank 0 first, and then on the other ranks."""
    if rank():
        gather_objects(None)
    yield
    if not rank():
        gather_objects(None)
