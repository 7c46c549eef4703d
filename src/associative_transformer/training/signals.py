"""Stop a run when a signal arrives, but not in the middle of a step."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class Interrupted(BaseException):
    """A signal stopped the run. Not an Exception, so that nothing handles it as an error."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class StopSignals:
    """Handlers of SIGINT and SIGTERM that stop a run at the next point that allows it.

    Such a point is a call of `check` or an `interruptible` block; both raise Interrupted. A second
    signal acts at once, as if the handlers had not been set.

    If several processes train together, `agree` must return the same signal on all of them, given
    the signal of this process (0: none). All of them must then reach the same points, and a
    signal within an `interruptible` block waits for the next point.
    """

    def __init__(self, agree: Callable[[int], int] | None = None) -> None:
        self.agree = agree
        self.signum: int | None = None
        self.previous_handlers: dict[signal.Signals, Any] = {}
        self.process = os.getpid()
        self.acts_at_once = False

    def __enter__(self) -> "StopSignals":
        signals: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)
        if threading.current_thread() is not threading.main_thread():
            signals = ()  # Python delivers signals to the main thread only
        self.previous_handlers = {s: signal.signal(s, self._catch) for s in signals}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore_handlers()

    def check(self) -> None:
        """Raise Interrupted if a signal has arrived."""
        signum = self.signum or 0
        if self.agree is not None:
            signum = self.agree(signum)
        if signum:
            raise Interrupted(signum)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Raise Interrupted if a signal has arrived, or arrives during the block.

        Meant for slow work that does not change the run, such as scoring.
        """
        try:
            self.acts_at_once = self.agree is None
            self.check()
            yield
        finally:
            self.acts_at_once = False

    def _catch(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        self._restore_handlers()
        # data workers inherit the handler but must not raise
        if self.acts_at_once and os.getpid() == self.process:
            raise Interrupted(signum)

    def _restore_handlers(self) -> None:
        for signum, handler in self.previous_handlers.items():
            signal.signal(signum, handler)
