"""A page about one run, or about two side by side: a single HTML file that needs no network.

Each section of the page is returned by one function, which `list_sections` calls.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from associative_transformer.analysis import Analysis, analyze, load_analysis, sample
from associative_transformer.data import Split
from associative_transformer.files import write_file
from associative_transformer.interface import SHOWN, UserError
from associative_transformer.models.ait import AiT, AiTConfig
from associative_transformer.models.vit import ViTConfig
from associative_transformer.report.answers import answers_section
from associative_transformer.report.attention import competition_section
from associative_transformer.report.charts import Section
from associative_transformer.report.comparison import differences_section, results_section
from associative_transformer.report.difference import compare_numbers
from associative_transformer.report.facts import (
    Facts,
    cost_section,
    data_section,
    read_facts,
    run_section,
)
from associative_transformer.report.gallery import Gallery, load_gallery, show_mistakes
from associative_transformer.report.images import (
    count_shown,
    images_section,
    list_images,
    trace_retrieval,
)
from associative_transformer.report.memory import memory_section
from associative_transformer.report.page import render
from associative_transformer.report.priors import list_cards, priors_section, winning_items
from associative_transformer.report.recall import recall_section
from associative_transformer.report.retrieval import retrieval_section
from associative_transformer.report.roles import roles_section
from associative_transformer.report.training import LOST, training_section
from associative_transformer.runs.saved import SavedRun, load_run, load_test_split

__all__ = ["AnalysisOptions", "list_sections", "write_comparison", "write_report"]

NOT_COMPARED = {"priors", "images"}  # sections whose widget shows a single run
UNFINISHED = "Available once the run is complete."


@dataclass(frozen=True)
class AnalysisOptions:
    """How to analyze a run for its page."""

    num_images: int | None = 1_000  # of the test split; None: all
    again: bool = False  # repeat an analysis that is already stored
    source: str | None = None  # of the images, if they have moved since training
    device: str = "cpu"


@dataclass(frozen=True)
class AnalyzedRun:
    """A run and everything that its page shows."""

    facts: Facts
    analysis: Analysis
    gallery: Gallery
    run: SavedRun | None = None  # None if the run is not complete, as is `split`
    split: Split | None = None  # the test split in the order of the analysis


def write_report(
    folder: Path, output: Path | None = None, options: AnalysisOptions | None = None
) -> Path:
    """Write the page of a run to `output` (default: its report.html) and return the path.

    If the run is not complete, the page shows its progress, but not its model. Raises UserError if
    the folder is not a run folder, or if `load_run` or `load_test_split` raises it.
    """
    analyzed = _analyze_run(folder, options or AnalysisOptions())
    rows = [[section] for section in list_sections(analyzed)]
    facts = analyzed.facts
    page = render(facts.name, facts.summary, rows, _list_widgets(analyzed))
    return _write(output or folder / "report.html", page)


def write_comparison(
    folder: Path, other: Path, output: Path | None = None, options: AnalysisOptions | None = None
) -> Path:
    """Write a page with two runs side by side to `output` and return the path.

    `output` is comparison.html in the folder of the first run by default. Raises UserError like
    `write_report`.
    """
    both = [_analyze_run(each, options or AnalysisOptions()) for each in (folder, other)]
    a, b = (analyzed.facts for analyzed in both)
    pairs = {pair[0].name: list(pair) for pair in zip(*map(list_sections, both), strict=True)}
    rows = [
        pairs.pop("run"),
        [replace(results_section({"A": a.result, "B": b.result}), tables=[compare_numbers(a, b)])],
        [differences_section(a.experiment, b.experiment)],
        [_training_section({"A ": a, "B ": b})],
        *(pair for name, pair in pairs.items() if name not in {"training", *NOT_COMPARED}),
    ]
    title = f"{a.name} (A) and {b.name} (B)"
    page = render(title, f"A: {a.summary} B: {b.summary}", rows, {})
    return _write(output or folder / "comparison.html", page)


def list_sections(analyzed: AnalyzedRun) -> list[Section]:
    """Return the sections of the page in order; add a new section here."""
    facts, analysis, items = analyzed.facts, analyzed.analysis, analyzed.facts.items
    saved = facts.result and (facts.result.best_validation or facts.result)
    kinds = saved.test_kinds if saved else None
    mistakes = show_mistakes(analysis.answers, analyzed.gallery)
    sections = [
        run_section(facts),
        data_section(facts),
        _training_section({"": facts}),
        competition_section(analysis.competition, items),
        priors_section(analysis.selection, analysis.specialization, items),
        images_section(analysis.selection, items, has_energy=analysis.basins is not None),
        roles_section(analysis.roles, analysis.silencing, items),
        memory_section(
            facts.memory, facts.epoch, analysis.capacity, facts.history.metrics, facts.scope
        ),
        retrieval_section(analysis.basins, analysis.reconstruction, items),
        recall_section(analysis.recall),
        answers_section(analysis.answers, kinds or (), mistakes, items),
        cost_section(facts),
    ]
    notes = _list_missing(facts)
    return [replace(section, note=notes.get(section.name, section.note)) for section in sections]


def _list_missing(facts: Facts) -> dict[str, str]:
    """Return, by section, why sections that the model could have are not available."""
    if facts.result is None:
        return dict.fromkeys(_sections_of_a_complete_run(facts), UNFINISHED)
    has_memory = isinstance(facts.experiment.model, AiTConfig)
    return {"memory": f"metrics.jsonl {LOST}"} if has_memory and not facts.history.metrics else {}


def _sections_of_a_complete_run(facts: Facts) -> set[str]:
    """Return the sections that a run will have when it is complete, and cannot have before."""
    model, names = facts.experiment.model, {"evaluation"}
    if isinstance(model, AiTConfig):
        names |= {"priors", "images"}
        names |= {"beta", "recall"} if model.read == "hopfield" else set()
        names |= {"roles"} if model.read != "none" else set()
        names |= {"memory"} if facts.memory is None else set()
    if isinstance(model, ViTConfig) or getattr(model, "use_self_attention", False):
        names.add("competition")
    return names


def _analyze_run(folder: Path, options: AnalysisOptions) -> AnalyzedRun:
    """Read a run and, if it is complete, analyze it unless its analysis is already stored."""
    facts = read_facts(folder)
    if facts.result is None:
        return AnalyzedRun(facts, Analysis(), Gallery())
    run = load_run(folder)
    run.model.to(options.device)
    data = load_test_split(run, options.source, torch.device(options.device))
    if not facts.result.is_tested_on(data):
        raise UserError(
            f"the test images are not those that the run in {folder} was scored on: pass the "
            "--source that holds them, or score the run on others with ait eval --source"
        )
    analysis = None if options.again else load_analysis(folder, data.digest)
    if analysis is None:
        analysis = analyze(run, folder, data, options.num_images, must_save=False)
    split = sample(data.test)
    answers, selection = analysis.answers, analysis.selection
    required: list[int] = [] if answers is None else answers.worst.tolist()
    optional: list[int] = []
    if selection is not None:
        required += range(count_shown(selection))
        optional = list(winning_items(selection))
    shown = data._replace(test=split)
    gallery = load_gallery(shown, run.experiment.data, required, optional)
    return AnalyzedRun(facts, analysis, gallery, run, split)


def _training_section(runs: Mapping[str, Facts]) -> Section:
    metrics = {prefix: facts.history.metrics for prefix, facts in runs.items()}
    return training_section(metrics, {prefix: facts.result for prefix, facts in runs.items()})


def _list_widgets(analyzed: AnalyzedRun) -> dict[str, Any]:
    """Return the data from which the script draws the cards and the image view."""
    selection, gallery = analyzed.analysis.selection, analyzed.gallery
    items = {
        index: {"row": item.row, "text": item.text, "question": item.question}
        for index, item in gallery.items.items()
    }
    noun = analyzed.facts.items.removesuffix("s")
    data: dict[str, Any] = {"items": items, "noun": noun, "sources": gallery.sources}
    if selection is not None and analyzed.run is not None and analyzed.split is not None:
        indices = list(range(count_shown(selection)))
        model = cast(AiT, analyzed.run.model)
        traced = trace_retrieval(model, analyzed.split.take(torch.tensor(indices)))
        classes = [gallery.items[index].classes for index in indices]
        data |= {
            "side": round(model.embed.num_patches**0.5),  # in patches
            "priors": list_cards(selection, analyzed.analysis.specialization),
            "images": list_images(selection, traced, classes),
        }
    return data


def _write(path: Path, page: str) -> Path:
    write_file(path, page.encode(errors=SHOWN))
    return path
