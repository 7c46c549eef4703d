"""Stop a run where it can save itself, not in the middle of a step."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupted(Exception):
    """A signal asked the run to stop, and it has saved itself."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class StopSignals:
    """Note SIGINT and SIGTERM instead of acting on them; a second one acts at once."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.former: dict[signal.Signals, Any] = {}

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

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self.former.items():
            signal.signal(signum, handler)
