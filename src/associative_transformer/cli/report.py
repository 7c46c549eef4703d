"""`ait report`: write a page about what a run has learned, or about two runs side by side."""

import sys
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from associative_transformer.cli.options import (
    check_counts,
    check_output,
    choose_device,
    parse,
    say,
)
from associative_transformer.files import check_writable
from associative_transformer.interface import UserError


@dataclass(frozen=True)
class ReportOptions:
    """Write an HTML page about one run, or about two side by side, that needs no network."""

    runs: Annotated[
        tuple[Path, ...],
        tyro.conf.arg(metavar="RUN [RUN]", help_behavior_hint="(required)"),
    ]
    """Folder of the run, such as runs/triangle-ait-tiny/0, or the folders of two to compare."""
    output: Path | None = None
    """File to write; None: report.html in the run folder, or comparison.html in the first one."""
    images: int = 1_000
    """Number of test images, or questions about them, to analyze if no analysis is stored."""
    again: bool = False
    """Repeat the analysis even if one is stored."""
    source: str | None = None
    """Folder of the images, if they have moved since training."""
    device: str = "auto"
    """cpu, cuda, or another device that torch knows; auto: a GPU if there is one."""
    open: bool = False
    """Show the page in a web browser when it is written."""

    def __post_init__(self) -> None:
        check_counts(images=self.images)


def run(arguments: list[str]) -> None:
    """Write a page about one or two runs."""
    options = parse(ReportOptions, arguments, "report")
    if not 1 <= len(options.runs) <= 2:
        raise UserError(
            f"`ait report` needs RUN [RUN], the folders of 1 or 2 runs, not {len(options.runs)}"
        )
    check_output(options.output, replaces=("report.html", "comparison.html"))
    if options.output is None and options.runs[0].is_dir():
        check_writable(options.runs[0])
    from associative_transformer.report import AnalysisOptions, write_comparison, write_report

    device = str(choose_device(options.device))
    analysis = AnalysisOptions(options.images, options.again, options.source, device)
    if len(options.runs) == 1:
        path = write_report(options.runs[0], options.output, analysis)
    else:
        first, second = options.runs
        path = write_comparison(first, second, options.output, analysis)
    say(f"written: {path}")
    if options.open and not webbrowser.open_new_tab(path.resolve().as_uri()):
        say(f"ait: no web browser was found: open {path} yourself", sys.stderr)
