"""Ranks find each other in a store that contains keys of earlier groups, and compare devices."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from associative_transformer import rendezvous
from associative_transformer.interface import UserError
from associative_transformer.rendezvous import agree_on_name, check_same_device

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


def meet(store: dist.Store, devices: list[str]) -> list[str]:
    """Let each rank compare its device with those of the others; return their errors."""

    def run(rank: int) -> str:
        try:
            check_same_device(store, rank, len(devices), TIMEOUT, devices[rank])
        except UserError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(devices)) as pool:
        return list(pool.map(run, range(len(devices))))


def test_ranks_with_the_same_device_meet() -> None:
    assert meet(dist.HashStore(), ["cuda", "cuda", "cuda"]) == ["", "", ""]


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        (["cuda", "cpu"], ["process 0 on ", "process 1 on ", "devices (cuda and cpu)"]),
        (["cpu", "cpu", "cuda"], ["process 0 on ", "process 2 on ", "devices (cpu and cuda)"]),
    ],
    ids=str,
)
def test_different_devices_are_named_on_every_rank(devices: list[str], words: list[str]) -> None:
    started_at = time.monotonic()
    (sentence,) = set(meet(dist.HashStore(), devices))
    assert [word for word in words if word not in sentence] == []
    assert time.monotonic() - started_at < 2


def test_a_rank_that_cannot_join_leaves_only_when_all_others_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = dist.HashStore()
    store.set("device/1", "cpu node1")
    monkeypatch.setattr(rendezvous, "PARTING", timedelta(seconds=0.3))
    started_at = time.monotonic()
    with pytest.raises(UserError, match="process 1 on node1"):
        check_same_device(store, 0, 2, TIMEOUT, "cuda")
    assert 0.3 <= time.monotonic() - started_at < 2


def test_a_rank_that_does_not_report_its_device_is_named() -> None:
    store = dist.HashStore()
    store.set("device/2", "cpu node2")
    with pytest.raises(TimeoutError, match=r"rank 1 of 3 did not join within 0:00:00\.2"):
        check_same_device(store, 0, 3, timedelta(seconds=0.2), "cpu")
