"""How the processes of a launcher find each other, also after some of them were lost.

A launcher of torch keeps one store for all the groups that it starts, and a group leaves there
the addresses of its ranks. Where a group is started again, a rank that is quicker than another
would read the address of one that is gone, and hang or be refused (pytorch issues 135712,
167288). Here the ranks that live agree on a name first, and keep their keys under it.
"""

import os
import time
from collections.abc import Iterator
from datetime import timedelta
from urllib.parse import urlparse
from uuid import uuid4

from torch.distributed import DistStoreError
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

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
