"""Ratios on record: what `ait bench --check` compares with."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from associative_transformer.files import first_error, write_file
from associative_transformer.interface import UserError
from associative_transformer.tabular import RowGroup, Table

COLUMNS = ("form", "recorded", "now", "change", "verdict")
ATTEMPTS = 3


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Entry:
    """A command that measures, and what it gave."""

    command: str
    """What follows `ait bench`."""
    device: Literal["cpu", "cuda"]
    """The kind of device that it was measured on; no other kind is compared with it."""
    ratios: dict[str, float]
    """Time of each row in its fastest round, divided by that of the rival."""
    where: str = ""
    """Device, threads, torch and commit of that measurement."""


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Ratios:
    """The file."""

    tolerance: float
    """How much larger a ratio may get, as a share of the recorded one."""
    reason: str
    """Why that much."""
    entries: list[Entry]
    """In the order in which they are measured."""


class Verdict(NamedTuple):
    """What became of a ratio."""

    command: str
    name: str
    recorded: float | None
    now: float
    words: Literal["as recorded", "faster", "slower", "not on record"]

    @property
    def is_good(self) -> bool:
        """Say whether the ratio is no worse than the tolerance allows."""
        return self.words in ("as recorded", "faster")


_ADAPTER: TypeAdapter[Ratios] = TypeAdapter(Ratios)


def read_ratios(path: Path) -> Ratios:
    """Read the file, strictly. Raises UserError where it is missing or damaged."""
    try:
        return _ADAPTER.validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"can't read {path}: {error.strerror}; run this in the repository, or name the file"
        ) from error
    except ValidationError as error:
        raise UserError(first_error(error, str(path))) from None


def write_ratios(path: Path, ratios: Ratios) -> None:
    """Write the file whole."""
    write_file(path, _ADAPTER.dump_json(ratios, indent=2) + b"\n")


def measure_again(
    ratios: Ratios, device: str, measure: Callable[[str], dict[str, float]], where: str
) -> tuple[Ratios, list[Verdict]]:
    """Measure the entries of this kind of device; give the new record and a verdict a ratio.

    `measure` gives the ratios of a command. An entry with a ratio that is worse than the record is
    measured up to `ATTEMPTS` times, and the least counts: what is slower stays slower, other load
    does not. Raises UserError where no entry is of this kind.
    """
    entries, verdicts = list(ratios.entries), []
    for i, entry in enumerate(entries):
        if entry.device == device:
            told = _measure_entry(entry, measure, ratios.tolerance)
            now = {verdict.name: round(verdict.now, 3) for verdict in told}
            entries[i] = replace(entry, ratios=now, where=where)
            verdicts += told
    if not verdicts:
        raise UserError(f"no ratio is on record for {device}: add an entry with its command")
    return replace(ratios, entries=entries), verdicts


def _measure_entry(
    entry: Entry, measure: Callable[[str], dict[str, float]], tolerance: float
) -> list[Verdict]:
    now: dict[str, float] = {}
    for _ in range(ATTEMPTS):
        again = measure(entry.command)
        now = {name: min(ratio, now.get(name, ratio)) for name, ratio in again.items()}
        told = [
            judge(entry.command, name, entry.ratios.get(name), ratio, tolerance)
            for name, ratio in now.items()
        ]
        if not any(verdict.words == "slower" for verdict in told):
            break
    return told


def judge(
    command: str, name: str, recorded: float | None, now: float, tolerance: float
) -> Verdict:
    """Compare a ratio with that on record: it may be smaller, or larger within the tolerance."""
    if recorded is None:
        return Verdict(command, name, recorded, now, "not on record")
    change = now / recorded - 1
    if abs(change) <= tolerance:
        return Verdict(command, name, recorded, now, "as recorded")
    return Verdict(command, name, recorded, now, "slower" if change > 0 else "faster")


def tabulate_verdicts(title: str, verdicts: list[Verdict]) -> Table:
    """Put what is on record beside what is measured now, a section a command, in order."""
    rows: dict[str, list[tuple[str, ...]]] = {}
    for command, name, recorded, now, words in verdicts:
        old = "-" if recorded is None else f"{recorded:.2f}"
        change = "-" if recorded is None else f"{now / recorded - 1:+.0%}"
        rows.setdefault(command, []).append((name, old, f"{now:.2f}", change, words))
    sections = [RowGroup(command.split()[0], cells) for command, cells in rows.items()]
    return Table(title, COLUMNS, sections, [f"ait bench {command}" for command in rows])
