"""How the processes of a launcher find each other, before they form a group.

`INIT_METHOD` is for `torch.distributed.init_process_group` and accelerate. It does what torch's
`env://` does, but a launcher may restart the group, and processes that cannot form one learn why.
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from urllib.parse import parse_qs, urlparse, urlunparse
from uuid import uuid4

from torch.distributed import DistError, DistStoreError
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

from associative_transformer.interface import UserError

INIT_METHOD = "associative-transformer://"
"""The address at which processes find each other."""

MISSING = "rank {} of {} did not join within {}"
POLL_INTERVAL = 0.05  # seconds
PARTING = timedelta(seconds=10)
"""How long a rank that cannot join waits for the others to learn this too."""


def init_method(device: str) -> str:
    """Return the address for a rank that computes on this type of device."""
    return f"{INIT_METHOD}?device={device}"


def agree_on_name(store: Store, rank: int, num_ranks: int, timeout: timedelta) -> str:
    """Return a name that all ranks agree on and that no earlier group of this store has used.

    A launcher keeps its store when it restarts a group, so the store may hold keys of ranks that
    have ended. Each rank therefore stores a random nonce. Rank 0 answers every nonce that it reads
    with the name, until all ranks have confirmed its answer. It also answers nonces of ranks that
    have ended, but nobody reads these answers.

    Raises TimeoutError if a rank is missing.
    """

    def read(key: str, sender: int) -> str:
        try:
            store.wait([key], timeout)
        except DistStoreError as error:
            raise TimeoutError(MISSING.format(sender, num_ranks, timeout)) from error
        return store.get(key).decode()

    own, end = uuid4().hex, time.monotonic() + timeout.total_seconds()
    store.set(f"nonce/{rank}", own)
    if rank:
        name = read(f"answer/{own}", 0)
        store.set(f"confirmed/{name}/{own}", "")
        return name
    missing = list(range(1, num_ranks))
    while missing:
        if time.monotonic() > end:
            raise TimeoutError(MISSING.format(missing[0], num_ranks, timeout))
        nonces = {other: read(f"nonce/{other}", other) for other in missing}
        for nonce in nonces.values():
            store.set(f"answer/{nonce}", own)
        time.sleep(POLL_INTERVAL)
        missing = [
            other
            for other, nonce in nonces.items()
            if not store.check([f"confirmed/{own}/{nonce}"])
        ]
    return own


def check_same_device(
    store: Store, rank: int, num_ranks: int, timeout: timedelta, device: str
) -> None:
    """Raise UserError on all ranks if their types of devices differ: they cannot form a group.

    The store may end with one of the ranks, so each rank waits until all have read the devices.

    Raises TimeoutError if a rank is missing.
    """
    store.set(f"device/{rank}", f"{device} {socket.gethostname()}")
    keys = [f"device/{other}" for other in range(num_ranks)]
    try:
        store.wait(keys, timeout)
    except DistStoreError as error:
        missing = next(other for other, key in enumerate(keys) if not store.check([key]))
        raise TimeoutError(MISSING.format(missing, num_ranks, timeout)) from error
    (first, host), *others = (value.decode().split(" ") for value in store.multi_get(keys))
    for other, (theirs, other_host) in enumerate(others, start=1):
        if theirs != first:
            with suppress(DistError):
                store.set(f"parting/{rank}", "")
                store.wait([f"parting/{other}" for other in range(num_ranks)], PARTING)
            raise UserError(
                f"process 0 on {host} and process {other} on {other_host} use different devices "
                f"({first} and {theirs}): choose the same device for all processes, and check "
                "that torch finds the GPUs of each machine"
            )


def _find_ranks(url: str, timeout: timedelta, **_: object) -> Iterator[tuple[Store, int, int]]:
    """Do what torch's `env://` does, but use the store of a launcher under a new name."""
    parts = urlparse(url)  # with rank and number of ranks, if the caller passes them
    device = parse_qs(parts.query).get("device", ["any"])[0]
    try:
        for store, rank, num_ranks in rendezvous(
            urlunparse(parts._replace(scheme="env")), timeout=timeout
        ):
            if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
                ours = PrefixStore("associative_transformer", store)
                store = PrefixStore(agree_on_name(ours, rank, num_ranks, timeout), ours)
            check_same_device(store, rank, num_ranks, timeout, device)
            yield store, rank, num_ranks
    except (DistError, TimeoutError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        number, size, host, port = (
            os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        )
        raise UserError(
            f"process {number} of {size} could not join the others at {host}:{port} ({reason}): "
            "start all of them, each with the same MASTER_ADDR and MASTER_PORT"
        ) from error


register_rendezvous_handler(INIT_METHOD.removesuffix("://"), _find_ranks)  # type: ignore[no-untyped-call]
