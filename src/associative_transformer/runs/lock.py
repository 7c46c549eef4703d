"""One process at a time trains in a run folder."""

import errno
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from associative_transformer.interface import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
HELD = (errno.EACCES, errno.EAGAIN)  # another process has the lock
FLAGS = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0)


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Keep other processes from training in `folder`, and make it where it is missing.

    The lock ends with the process, however that ends; workers that outlive it for a moment don't
    have it (it is a record lock, of the process and not of the open file). Raises UserError where
    another process has it or the folder can't be written. Where there are no locks, on Windows
    and on some network file systems, a line on stderr says so and the run goes on.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _take(path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"can't make the run folder {folder}: {reason}") from error
    with suppress(OSError):  # who has it: only for the sentence
        os.truncate(file, 0)
        os.write(file, f"{os.getpid()} on {socket.gethostname()}".encode())
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # while it is held, so that it is nobody else's
        os.close(file)


def check_free(folder: Path) -> None:
    """Raise UserError where another process trains in `folder`; write nothing."""
    with suppress(OSError):
        file = os.open(folder / LOCK, FLAGS)
        try:
            _lock(file, folder)
        finally:
            os.close(file)  # and with it the lock


def _take(path: Path) -> int:
    """Open the file and lock it, again where its last holder has removed it in between."""
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
            raise OSError(errno.ENOLCK, "this system has no such locks")
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            holder = os.read(file, 100).decode(errors="replace") or "just starting"
            raise UserError(
                f"another process ({holder}) trains in {folder}: wait for its end, or choose "
                "another --name"
            ) from error
        print(
            f"{folder} can't be locked ({error.strerror}): start no second run there",
            file=sys.stderr,
        )
