"""Permissions of files, and a process to which they apply even if root started it.

A process of another user cannot be used, because the interpreter may be in the home of root.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NOBODY = 65534
IGNORING = 1 << 1 | 1 << 2 | 1 << 3
"""Capabilities of root on Linux: DAC_OVERRIDE, DAC_READ_SEARCH and FOWNER."""
VERSION = 0x20080522  # of the call, with two words for each set
EFFECTIVE, PERMITTED = 0, 1  # places in the first words


@contextmanager
def permissions_apply() -> Iterator[None]:
    """Let this thread access only what the permissions of files allow, even if it is root's."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "capset"):
        pytest.skip("root ignores permissions, and this system cannot change that")
    header, sets = (ctypes.c_uint32 * 2)(VERSION, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    before = sets[EFFECTIVE]
    sets[EFFECTIVE] &= ~IGNORING
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[EFFECTIVE] = before
        assert libc.capset(header, sets) == 0


@contextmanager
def of_another_user(path: Path, folders: int = 0o555, files: int = 0o444) -> Iterator[Path]:
    """Change the modes of a path and everything below it; root gives them to another user, too."""
    paths = [path, *path.rglob("*")]
    before = {each: each.stat().st_mode for each in paths}
    for each in reversed(paths):
        if os.geteuid() == 0:
            os.chown(each, NOBODY, NOBODY)
        each.chmod(folders if each.is_dir() else files)
    try:
        yield path
    finally:
        for each, mode in before.items():
            each.chmod(mode)
            if os.geteuid() == 0:
                os.chown(each, 0, 0)


@contextmanager
def closed(path: Path, mode: int = 0) -> Iterator[Path]:
    """Remove the permissions of one file or folder, but not those of its contents."""
    before = path.stat().st_mode
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY)
    path.chmod(mode)
    try:
        yield path
    finally:
        path.chmod(before)
        if os.geteuid() == 0:
            os.chown(path, 0, 0)
