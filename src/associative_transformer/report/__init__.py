"""A run as a page, or two side by side: one HTML file that needs no network and no other file."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from associative_transformer.analysis import Analysis, analyze, load_analysis, sample
from associative_transformer.analysis.selection import Selected
from associative_transformer.data import Split
from associative_transformer.files import write_file
from associative_transformer.models import AiT
from associative_transformer.report.answers import answers_section
from associative_transformer.report.attention import competition_section
from associative_transformer.report.charts import Section
from associative_transformer.report.comparison import differences_section, results_section
from associative_transformer.report.facts import Facts, cost_section, read_facts, run_section
from associative_transformer.report.gallery import Gallery, load_gallery, show_mistakes
from associative_transformer.report.images import follow, images_section, list_images
from associative_transformer.report.memory import memory_section
from associative_transformer.report.page import render
from associative_transformer.report.priors import list_cards, priors_section, winning_items
from associative_transformer.report.retrieval import retrieval_section
from associative_transformer.report.training import training_section
from associative_transformer.runs.saved import SavedRun, load_run, load_test_of

__all__ = ["AnalysisOptions", "write_comparison", "write_report"]

NUM_SHOWN = 48  # test images or questions in the image view, at most
UNFINISHED = "This comes when the run is complete."


@dataclass(frozen=True)
class AnalysisOptions:
    """What to analyze of a run, and where."""

    num_images: int | None = 1_000  # of the test split; None: all
    again: bool = False  # also where an analysis is stored
    source: str | None = None  # of the images, where they don't lie where they lay in training
    device: str = "cpu"


@dataclass(frozen=True)
class AnalyzedRun:
    """A run with all that is shown of it."""

    facts: Facts
    analysis: Analysis
    gallery: Gallery
    run: SavedRun | None = None  # this and the next: None where it is not complete
    split: Split | None = None  # of the test, in the order of the analysis


def write_report(
    folder: Path, output: Path | None = None, effort: AnalysisOptions | None = None
) -> Path:
    """Write the page of a run to its report.html, or elsewhere, and return where it is.

    A run that is not complete is shown as far as it got, without its model. Raises UserError
    where the folder holds no run, and for what `load_run` and `load_test_of` raise it.
    """
    studied = _analyze_run(folder, effort or AnalysisOptions())
    rows = [[section] for section in _sections(studied)]
    facts = studied.facts
    page = render(facts.name, facts.summary, rows, _list_widgets(studied))
    return _write(output or folder / "report.html", page)


def write_comparison(
    folder: Path, other: Path, output: Path | None = None, effort: AnalysisOptions | None = None
) -> Path:
    """Write a page with two runs side by side to the first one's comparison.html, or elsewhere.

    Raises UserError like `write_report`.
    """
    both = [_analyze_run(each, effort or AnalysisOptions()) for each in (folder, other)]
    a, b = (studied.facts for studied in both)
    columns = [{section.name: section for section in _sections(studied)} for studied in both]
    shared = ("competition", "memory", "beta", "evaluation", "cost")
    rows = [
        [column["run"] for column in columns],
        [results_section({"A": a.result, "B": b.result})],
        [differences_section(a.experiment, b.experiment)],
        [_draw_training({"A ": a, "B ": b})],
        *([column[name] for column in columns] for name in shared),
    ]
    title = f"{a.name} (A) and {b.name} (B)"
    page = render(title, f"A: {a.summary} B: {b.summary}", rows, {})
    return _write(output or folder / "comparison.html", page)


def _analyze_run(folder: Path, effort: AnalysisOptions) -> AnalyzedRun:
    """Read a run, and analyze it where it is complete and that was not done before."""
    facts = read_facts(folder)
    if facts.result is None:
        return AnalyzedRun(facts, Analysis(), Gallery())
    run = load_run(folder)
    run.model.to(effort.device)
    data = load_test_of(run, effort.source, torch.device(effort.device))
    analysis = None if effort.again else load_analysis(folder)
    if analysis is None:
        analysis = analyze(run, folder, data, effort.num_images)
    split = sample(data.test)
    answers, selection = analysis.answers, analysis.selection
    needed: list[int] = [] if answers is None else answers.worst.tolist()
    wanted: list[int] = []
    if selection is not None:
        needed += range(_num_shown(selection))
        wanted = list(winning_items(selection))
    shown = data._replace(test=split)
    gallery = load_gallery(shown, run.experiment.data, needed, wanted)
    return AnalyzedRun(facts, analysis, gallery, run, split)


def _sections(studied: AnalyzedRun) -> list[Section]:
    """Say everything about one run."""
    facts, found = studied.facts, studied.analysis
    result = facts.result or {}
    mistakes = [] if found.answers is None else show_mistakes(found.answers, studied.gallery)
    shown = 0 if found.selection is None else _num_shown(found.selection)
    analyzed = {
        section.name: section
        for section in (
            competition_section(found.competition, facts.items),
            priors_section(found.selection, found.specialization, facts.items),
            images_section(found.selection, shown, facts.items),
            retrieval_section(found.basins, found.reconstruction, facts.items),
            answers_section(found.answers, result.get("test_kinds", []), mistakes, facts.items),
        )
    }
    if facts.result is None:
        analyzed = {name: replace(each, note=UNFINISHED) for name, each in analyzed.items()}
    return [
        run_section(facts),
        _draw_training({"": facts}),
        analyzed["competition"],
        analyzed["priors"],
        analyzed["images"],
        memory_section(facts.memory, facts.epoch, found.capacity),
        analyzed["beta"],
        analyzed["evaluation"],
        cost_section(facts),
    ]


def _draw_training(runs: Mapping[str, Facts]) -> Section:
    results = {prefix: facts.result or {} for prefix, facts in runs.items()}
    tests = {prefix: result.get("test_accuracy") for prefix, result in results.items()}
    return training_section({name: facts.history.metrics for name, facts in runs.items()}, tests)


def _list_widgets(studied: AnalyzedRun) -> dict[str, Any]:
    """Give what the script makes the cards and the image view of."""
    found, gallery = studied.analysis.selection, studied.gallery
    items = {
        place: {"row": item.row, "text": item.text, "question": item.question}
        for place, item in gallery.items.items()
    }
    noun = studied.facts.items.removesuffix("s")
    data: dict[str, Any] = {"items": items, "noun": noun, "sources": gallery.sources}
    if found is not None and studied.run is not None and studied.split is not None:
        places = list(range(_num_shown(found)))
        model = cast(AiT, studied.run.model)
        followed = follow(model, studied.split.take(torch.tensor(places)))
        classes = [gallery.items[place].classes for place in places]
        data |= {
            "side": round(model.embed.num_patches**0.5),  # patches
            "priors": list_cards(found, studied.analysis.specialization),
            "images": list_images(found, followed, classes),
        }
    return data


def _num_shown(found: Selected) -> int:
    return min(found.taken.shape[3], NUM_SHOWN)


def _write(path: Path, page: str) -> Path:
    write_file(path, page.encode())
    return path
