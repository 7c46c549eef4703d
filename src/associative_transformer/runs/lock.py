"""A lock that lets only one process at a time train in a run folder.

`filelock` is not used: its locks (flock) are inherited by data workers, so a killed run would
block its folder until they have ended too. It also does not record which process holds the lock,
and it leaves its file behind.
"""

import errno
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from associative_transformer.files import make_folder
from associative_transformer.interface import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
HELD = (errno.EACCES, errno.EAGAIN)  # another process holds the lock
FLAGS = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Keep other processes from training in `folder`, which is created if it does not exist.

    The lock is released when the process ends, even if it is killed. It is a record lock, which
    belongs to the process and not to the open file, so workers that outlive the process do not
    hold it.

    Raises UserError if another process holds the lock or the folder cannot be written. Windows
    and some network file systems have no record locks: a line on stderr says so, and the run
    starts without one.
    """
    path = folder / LOCK
    make_folder(folder)
    try:
        file = _open_locked(path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"cannot lock the run folder {folder}: {reason}; check its permissions"
        ) from error
    with suppress(OSError):  # the holder is only needed for an error message
        os.truncate(file, 0)
        os.write(file, f"{os.getpid()} on {socket.gethostname()}".encode())
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # while locked: later it could be another process's
        os.close(file)


def check_free(folder: Path) -> None:
    """Raise UserError if another process is training in `folder`; write nothing."""
    with suppress(OSError):
        file = os.open(folder / LOCK, FLAGS)
        try:
            _lock(file, folder)
        finally:
            os.close(file)  # releases the lock as well


def _open_locked(path: Path) -> int:
    """Open the file and lock it; try again if its previous holder has just removed it."""
    while True:
        file = os.open(path, FLAGS | os.O_CREAT, 0o666)
        try:
            _lock(file, path.parent)
            if os.path.samestat(os.fstat(file), path.stat()):
                return file
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _lock(file: int, folder: Path) -> None:
    try:
        if fcntl is None:
            raise OSError(errno.ENOLCK, "this system has no record locks")
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            holder = os.read(file, 100).decode(errors="replace") or "just starting"
            raise UserError(
                f"another process ({holder}) is training in {folder}: wait until it ends, or "
                "choose another --name"
            ) from error
        print(
            f"{folder} cannot be locked ({error.strerror}): do not start a second run in it",
            file=sys.stderr,
        )
