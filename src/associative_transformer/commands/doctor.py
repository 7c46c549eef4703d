"""`ait doctor`: what a bug report needs."""

from dataclasses import dataclass
from pathlib import Path

from associative_transformer.command_line import check_output, open_output, parse
from associative_transformer.doctor import examine, to_markdown


@dataclass(frozen=True)
class DoctorOptions:
    """Show versions, devices, kernels, data, disk and launcher, to paste into a bug report."""

    runs: Path = Path("runs")
    """Folder of the runs, whose free disk space is shown."""
    output: Path | None = None
    """File to write; None: the terminal."""


def run(arguments: list[str]) -> None:
    """Examine the installation and the machine."""
    options = parse(DoctorOptions, arguments, "doctor")
    check_output(options.output)
    text = to_markdown(examine(options.runs))
    with open_output(options.output) as file:
        file.write(text)
