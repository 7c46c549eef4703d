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

from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

INIT_METHOD = "associative-transformer://"  # of `init_process_group` and accelerate
LOOK_AGAIN = 0.05  # seconds


def agree(store: Store, rank: int, num_ranks: int, timeout: timedelta) -> str:
    """Give all ranks a name that no earlier group of this store has had.

    Every rank leaves a word of its own, and rank 0 answers each word it finds with the name. The
    words of ranks that are gone are answered too, but nobody reads that; rank 0 looks again until
    the word of every rank is confirmed. Raises TimeoutError where one is not.
    """
    own, end = uuid4().hex, time.monotonic() + timeout.total_seconds()
    store.set(f"word/{rank}", own)
    if rank:
        name = store.get(f"answer/{own}").decode()
        store.set(f"known/{name}/{own}", "")
        return name

    def word(other: int) -> str:
        return store.get(f"word/{other}").decode()

    missing = list(range(1, num_ranks))
    while missing:
        if time.monotonic() > end:
            raise TimeoutError(f"rank {missing[0]} of {num_ranks} did not come within {timeout}")
        for other in missing:
            store.set(f"answer/{word(other)}", own)
        time.sleep(LOOK_AGAIN)
        missing = [other for other in missing if not store.check([f"known/{own}/{word(other)}"])]
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
