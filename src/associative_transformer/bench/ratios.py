"""The recorded ratios that `ait bench --check` compares with new measurements."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from associative_transformer.files import first_error, write_file
from associative_transformer.interface import UserError
from associative_transformer.tabular import RowGroup, Table

COLUMNS = ("variant", "recorded", "measured", "change", "verdict")
ATTEMPTS = 3


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Entry:
    """A benchmark command and the ratios that it measured."""

    command: str
    """The arguments of `ait bench`."""
    device: Literal["cpu", "cuda"]
    """Kind of device it was measured on; it is compared only with measurements on this kind."""
    ratios: dict[str, float]
    """Time of the fastest round of each variant, divided by that of the rival."""
    where: str = ""
    """Device, its instructions for bfloat16, threads, torch version and commit."""
    needs_bfloat16: bool = False
    """Skip this entry on a device without instructions for bfloat16."""


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Ratios:
    """The contents of benchmarks/ratios.json."""

    tolerance: float
    """How much larger a ratio may become, as a share of the recorded ratio."""
    reason: str
    """The reason for this tolerance."""
    entries: list[Entry]
    """The entries in the order in which they are measured."""


class Verdict(NamedTuple):
    """The comparison of a ratio with its record."""

    command: str
    name: str
    recorded: float | None
    measured: float
    outcome: Literal["as recorded", "faster", "slower", "not on record"]

    @property
    def is_good(self) -> bool:
        """Whether the ratio is on record and no worse than the tolerance allows."""
        return self.outcome in ("as recorded", "faster")


_ADAPTER: TypeAdapter[Ratios] = TypeAdapter(Ratios)


def read_ratios(path: Path) -> Ratios:
    """Read recorded ratios. Raises UserError if the file is missing or damaged."""
    try:
        return _ADAPTER.validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({error.strerror}): run this command in the repository, or pass "
            "the path of the file"
        ) from error
    except ValidationError as error:
        raise UserError(first_error(error, str(path))) from None


def write_ratios(path: Path, ratios: Ratios) -> None:
    """Write recorded ratios to a file."""
    write_file(path, _ADAPTER.dump_json(ratios, indent=2) + b"\n")


def measure_again(
    ratios: Ratios,
    device: str,
    measure: Callable[[str], dict[str, float]],
    where: str,
    has_bfloat16: bool = True,
) -> tuple[Ratios, list[Verdict]]:
    """Measure the entries for a kind of device; return the new record and one verdict per ratio.

    `measure` returns the ratios of a command. An entry with a ratio that is worse than recorded is
    measured up to `ATTEMPTS` times, and the smallest ratio counts: a slower implementation is slow
    every time, a busy machine is not. Raises UserError without an entry for this kind of device.
    """
    entries, verdicts = list(ratios.entries), []
    for i, entry in enumerate(entries):
        if entry.device == device and (has_bfloat16 or not entry.needs_bfloat16):
            of_entry = _measure_entry(entry, measure, ratios.tolerance)
            measured = {verdict.name: round(verdict.measured, 3) for verdict in of_entry}
            entries[i] = replace(entry, ratios=measured, where=where)
            verdicts += of_entry
    if not verdicts:
        raise UserError(f"no ratio is on record for {device}: add an entry with a command for it")
    return replace(ratios, entries=entries), verdicts


def _measure_entry(
    entry: Entry, measure: Callable[[str], dict[str, float]], tolerance: float
) -> list[Verdict]:
    smallest: dict[str, float] = {}
    for _ in range(ATTEMPTS):
        measured = measure(entry.command)
        smallest = {
            name: min(ratio, smallest.get(name, ratio)) for name, ratio in measured.items()
        }
        verdicts = [
            judge(entry.command, name, entry.ratios.get(name), ratio, tolerance)
            for name, ratio in smallest.items()
        ]
        if not any(verdict.outcome == "slower" for verdict in verdicts):
            break
    return verdicts


def judge(
    command: str, name: str, recorded: float | None, measured: float, tolerance: float
) -> Verdict:
    """Compare a ratio with the recorded one, which it may exceed by the tolerance."""
    if recorded is None:
        return Verdict(command, name, recorded, measured, "not on record")
    change = measured / recorded - 1
    if abs(change) <= tolerance:
        return Verdict(command, name, recorded, measured, "as recorded")
    return Verdict(command, name, recorded, measured, "slower" if change > 0 else "faster")


def tabulate_verdicts(title: str, verdicts: list[Verdict]) -> Table:
    """Return a table of recorded and measured ratios, with a group of rows for each command."""
    rows: dict[str, list[tuple[str, ...]]] = {}
    for command, name, recorded, measured, outcome in verdicts:
        old = "-" if recorded is None else f"{recorded:.2f}"
        change = "-" if recorded is None else f"{measured / recorded - 1:+.0%}"
        rows.setdefault(command, []).append((name, old, f"{measured:.2f}", change, outcome))
    groups = [RowGroup(command.split()[0], cells) for command, cells in rows.items()]
    return Table(title, COLUMNS, groups, [f"ait bench {command}" for command in rows])
