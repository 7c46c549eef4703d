"""How far long work has come, with the time left: a bar on a terminal, plain lines elsewhere."""

import time
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

Shown = TypeVar("Shown", bound="ShownProgress")
SECONDS_BETWEEN_LINES = 30.0
"""Minimum time between two lines if there is no terminal; shorter work prints nothing."""
SECONDS_BETWEEN_DRAWINGS = 0.1


def format_time(seconds: int | float) -> str:
    """Return a duration as hours, minutes and seconds: 0:01:30."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


class ShownProgress:
    """A bar that is drawn while its object is entered, and lines above it or instead of it."""

    bar: Progress

    def __enter__(self: Shown) -> Shown:
        self.bar.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.__exit__(kind, error, trace)

    def write(self, line: str) -> None:
        """Write one line, above the bar if there is one."""
        self.bar.console.print(line, markup=False, highlight=False, soft_wrap=True)


class WorkProgress(ShownProgress):
    """The progress of one piece of work, shown on stderr while it is entered.

    >>> with WorkProgress("decoding", "images") as progress:
    ...     progress.show(10, 200)
    """

    def __init__(self, title: str, items: str | None = None, is_shown: bool = True) -> None:
        """Take what is being done, and what is counted; None: only the share is shown."""
        self.title, self.items = title, items
        console = Console(stderr=True, quiet=not is_shown)
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[numbers]}", markup=False),
            console=console,
            disable=not console.is_terminal,
            transient=True,
            auto_refresh=False,  # a thread could hold a lock when workers are forked
            redirect_stdout=False,  # stdout may be a file
        )
        self.task = self.bar.add_task(title, total=None, numbers="")
        self.started = self.last = time.monotonic()

    def show(self, done: int | float, total: int | float, detail: str = "") -> None:
        """Update the bar or, without a terminal, write a line at most every 30 seconds.

        `detail` names what is being done at the moment.
        """
        now = time.monotonic()
        pause = SECONDS_BETWEEN_LINES if self.bar.disable else SECONDS_BETWEEN_DRAWINGS
        is_drawn = not self.bar.disable and (bool(detail) or done >= total)
        if now - self.last < pause and not is_drawn:
            return
        self.last = now
        title = f"{self.title}: {detail}" if detail else self.title
        numbers = f"{100 * done / max(total, 1e-9):.0f} %"
        if self.items is not None:
            numbers = f"{done:,} of {total:,} {self.items}"
        if done > 0:
            seconds = (now - self.started) / done * (total - done)
            numbers += f", {format_time(seconds)} left"
        if self.bar.disable:
            self.write(f"{title}  {numbers}")
        else:
            self.bar.update(self.task, total=total, completed=done, description=title)
            self.bar.update(self.task, numbers=numbers, refresh=True)
