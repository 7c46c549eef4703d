"""Stop a run where it can save itself, not in the middle of a step."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class Interrupted(BaseException):
    """A signal asked the run to stop, and it has saved itself; no error to be caught as one."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class StopSignals:
    """Note SIGINT and SIGTERM instead of acting on them; a second one acts at once.

    A process that is not alone has to agree with the others first, so it is never `interruptible`.
    """

    def __init__(self, is_alone: bool = True) -> None:
        self.is_alone = is_alone
        self.signum: int | None = None
        self.former: dict[signal.Signals, Any] = {}
        self.process = os.getpid()  # workers inherit the handler and leave signals to this one
        self.is_interruptible = False

    def __enter__(self) -> "StopSignals":
        signals: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)
        if threading.current_thread() is not threading.main_thread():
            signals = ()  # Python gives signals to the main thread only
        self.former = {s: signal.signal(s, self._note) for s in signals}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    @contextmanager
    def interruptible(self, save: Callable[[], None] | None = None) -> Iterator[None]:
        """Raise Interrupted at any moment of a block that can be left so, after `save`.

        What takes long and changes nothing, such as scoring, does not keep a signal waiting.
        """
        try:
            self.is_interruptible = self.is_alone
            if self.is_alone and self.signum is not None:
                raise Interrupted(self.signum)
            yield
        except Interrupted:
            self.is_interruptible = False
            if save:
                save()
            raise
        finally:
            self.is_interruptible = False

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        self._restore()
        if self.is_interruptible and os.getpid() == self.process:
            raise Interrupted(signum)

    def _restore(self) -> None:
        for signum, handler in self.former.items():
            signal.signal(signum, handler)
