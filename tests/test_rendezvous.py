"""Ranks find each other in a store that contains keys of earlier groups."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from associative_transformer.distributed import agree_on_name

TIMEOUT = timedelta(seconds=5)


class KilledError(Exception):
    """A rank was killed."""


class MortalStore(dist.Store):
    """The store of a rank that is killed after some calls, or when another rank is killed."""

    def __init__(self, store: dist.Store, calls: int, killed: threading.Event) -> None:
        super().__init__()
        self.store, self.calls, self.killed = store, calls, killed

    def _count_call(self) -> None:
        self.calls -= 1
        if self.calls < 0:
            self.killed.set()  # the launcher kills the others
        if self.killed.is_set():
            raise KilledError

    def set(self, key: str, value: str) -> None:
        self._count_call()
        self.store.set(key, value)

    def check(self, keys: list[str]) -> bool:
        self._count_call()
        return self.store.check(keys)

    def wait(self, keys: list[str], timeout: timedelta) -> None:
        self._count_call()
        end = time.monotonic() + timeout.total_seconds()
        while not self.store.check(keys):
            if self.killed.is_set():
                raise KilledError
            if time.monotonic() > end:
                raise dist.DistStoreError(keys)
            time.sleep(0.001)

    def get(self, key: str) -> bytes:
        self._count_call()
        return self.store.get(key)


def start_group(store: dist.Store, calls: list[int], order: list[int]) -> list[str | None]:
    """Return the name that each rank got, or None if it was killed after its number of calls."""
    killed = threading.Event()

    def run(rank: int) -> str | None:
        time.sleep(order[rank] * 0.01)
        try:
            return agree_on_name(
                MortalStore(store, calls[rank], killed), rank, len(calls), TIMEOUT
            )
        except KilledError:
            return None

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, range(len(calls))))


@pytest.mark.parametrize("seed", range(20))
def test_a_group_agrees_on_a_new_name_no_matter_when_earlier_ranks_were_killed(seed: int) -> None:
    rng = random.Random(seed)
    store, earlier = dist.HashStore(), set()
    for _ in range(4):
        ranks = rng.randint(2, 5)
        order = rng.sample(range(ranks), ranks)
        calls = [rng.choice([1, 2, 3, 4, 6, 1000]) for _ in range(ranks)]
        earlier |= set(start_group(store, calls, order))
    ranks = rng.randint(1, 5)
    names = set(start_group(store, [1000] * ranks, rng.sample(range(ranks), ranks)))
    assert len(names) == 1
    assert not names & (earlier | {None})


@pytest.mark.parametrize("leftovers", [{}, {"nonce/1": "of a killed rank"}], ids=["new", "old"])
@pytest.mark.parametrize(("rank", "missing"), [(0, 1), (1, 0)])
def test_a_missing_rank_is_named(leftovers: dict[str, str], rank: int, missing: int) -> None:
    store = dist.HashStore()
    for key, value in leftovers.items():
        store.set(key, value)
    message = rf"rank {missing} of 2 did not join within 0:00:00\.2"
    with pytest.raises(TimeoutError, match=message):
        agree_on_name(store, rank, 2, timedelta(seconds=0.2))
