"""Ranks find each other in a store full of what earlier groups have left."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from associative_transformer.distributed import agree

SOON = timedelta(seconds=5)


class LostError(Exception):
    """A rank was killed."""


class Mortal(dist.Store):
    """The store of a rank that is killed at its n-th call, or when the launcher says so."""

    def __init__(self, store: dist.Store, calls: int, killed: threading.Event) -> None:
        super().__init__()
        self.store, self.calls, self.killed = store, calls, killed

    def _live(self) -> None:
        self.calls -= 1
        if self.calls < 0:
            self.killed.set()  # the launcher ends the others
        if self.killed.is_set():
            raise LostError

    def set(self, key: str, value: str) -> None:
        self._live()
        self.store.set(key, value)

    def check(self, keys: list[str]) -> bool:
        self._live()
        return self.store.check(keys)

    def wait(self, keys: list[str], timeout: timedelta) -> None:
        self._live()
        end = time.monotonic() + timeout.total_seconds()
        while not self.store.check(keys):
            if self.killed.is_set():
                raise LostError
            if time.monotonic() > end:
                raise dist.DistStoreError(keys)
            time.sleep(0.001)

    def get(self, key: str) -> bytes:
        self._live()
        return self.store.get(key)


def start_group(store: dist.Store, lives: list[int], order: list[int]) -> list[str | None]:
    """Let ranks with so many calls to live agree; None for those that were lost."""
    killed = threading.Event()

    def run(rank: int) -> str | None:
        time.sleep(order[rank] * 0.01)
        try:
            return agree(Mortal(store, lives[rank], killed), rank, len(lives), SOON)
        except LostError:
            return None

    with ThreadPoolExecutor(len(lives)) as pool:
        return list(pool.map(run, range(len(lives))))


@pytest.mark.parametrize("seed", range(20))
def test_a_group_agrees_on_a_new_name_whenever_ranks_of_earlier_ones_were_lost(seed: int) -> None:
    rng = random.Random(seed)
    store, earlier = dist.HashStore(), set()
    for _ in range(4):
        ranks = rng.randint(2, 5)
        order = rng.sample(range(ranks), ranks)
        lives = [rng.choice([1, 2, 3, 4, 6, 1000]) for _ in range(ranks)]
        earlier |= set(start_group(store, lives, order))
    ranks = rng.randint(1, 5)
    names = set(start_group(store, [1000] * ranks, rng.sample(range(ranks), ranks)))
    assert len(names) == 1
    assert not names & (earlier | {None})


@pytest.mark.parametrize("left", [{}, {"word/1": "of a rank that is gone"}], ids=["new", "old"])
@pytest.mark.parametrize(("rank", "missing"), [(0, 1), (1, 0)])
def test_a_rank_that_does_not_come_is_named(left: dict[str, str], rank: int, missing: int) -> None:
    store = dist.HashStore()
    for key, value in left.items():
        store.set(key, value)
    late = rf"rank {missing} of 2 did not come within 0:00:00\.2"
    with pytest.raises(TimeoutError, match=late):
        agree(store, rank, 2, timedelta(seconds=0.2))
