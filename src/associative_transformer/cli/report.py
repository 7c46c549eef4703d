"""`ait report`: write a page that shows what a run has learned, or two runs side by side."""

from dataclasses import dataclass
from pathlib import Path

from associative_transformer.cli.options import check_counts, check_output, choose_device, parse
from associative_transformer.interface import UserError
from associative_transformer.report import AnalysisOptions, write_comparison, write_report


@dataclass(frozen=True)
class ReportOptions:
    """Write a page about a run, or about two, as one HTML file that needs no network."""

    runs: tuple[Path, ...]
    """Folder of the run, such as runs/triangle-ait-tiny/0, or two of them to compare."""
    output: Path | None = None
    """File to write; None: report.html in the run folder, comparison.html in the first of two."""
    images: int = 1_000
    """Test images to analyze, or questions about them, where that was not done before."""
    again: bool = False
    """Analyze anew."""
    source: str | None = None
    """Folder of the images, where they no longer lie where they lay in training."""
    device: str = "auto"
    """auto, cpu, cuda, or another device that torch knows."""

    def __post_init__(self) -> None:
        check_counts(images=self.images)


def run(arguments: list[str]) -> None:
    """Write a page about one run or two."""
    options = parse(ReportOptions, arguments, "report")
    if not 1 <= len(options.runs) <= 2:
        raise UserError(f"ait report takes one run or two to compare, not {len(options.runs)}")
    check_output(options.output)
    device = str(choose_device(options.device))
    effort = AnalysisOptions(options.images, options.again, options.source, device)
    if len(options.runs) == 1:
        path = write_report(options.runs[0], options.output, effort)
    else:
        first, second = options.runs
        path = write_comparison(first, second, options.output, effort)
    print(f"written: {path}")
