"""`ait predict`: classify image files with a trained model, or ask a question about them."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from associative_transformer.cli.options import (
    check_counts,
    check_output,
    choose_device,
    open_output,
    parse,
    say,
)
from associative_transformer.data.listing import write_skipped
from associative_transformer.data.questions import (
    Questions,
    answer_words,
    describe_questions,
    list_questions,
    parse_question,
)
from associative_transformer.decoding import UnreadableImage
from associative_transformer.files import write_file
from associative_transformer.interface import SHOWN, UserError
from associative_transformer.progress import WorkProgress

if TYPE_CHECKING:
    from associative_transformer.predict import Prediction
    from associative_transformer.report.contact_sheet import ContactSheet
    from associative_transformer.runs.saved import SavedModel


@dataclass(frozen=True)
class PredictOptions:
    """Classify image files and all images in folders, or ask a question about each."""

    run: Path
    """Folder of the run, such as runs/cifar10-ait-tiny/0, or of a saved model."""
    paths: Annotated[
        tuple[Path, ...],
        tyro.conf.arg(metavar="IMAGES [IMAGES ...]", help_behavior_hint="(required)"),
    ]
    """Image files, and folders to search for images."""
    question: str | None = None
    """Question to ask about each image, such as "shape of the red object"; None: classify."""
    top: int = 5
    """Number of classes to write for each image, the most probable first."""
    format: Literal["csv", "json", "jsonl"] | None = None
    """CSV, a JSON array, or one JSON object per line; None: by the extension of OUTPUT, or CSV."""
    output: Path | None = None
    """File to write, not a link; None: print to the terminal."""
    sheet: Path | None = None
    """HTML page to write, too, with picture, answer and confidence of each image; images in
    folders named after classes can be filtered by wrong answers."""
    on_error: Literal["stop", "skip"] = "stop"
    """What to do with an unreadable image; skip: leave it out and list it, with the reason, in
    OUTPUT.skipped.jsonl."""
    batch_size: int = 64
    """Images per batch."""
    num_workers: int | None = None
    """Processes that decode images; None: one per core if there is more than one batch."""
    device: str = "auto"
    """cpu, cuda, or another device that torch knows; auto: a GPU if there is one."""

    def __post_init__(self) -> None:
        check_counts(top=self.top, batch_size=self.batch_size)
        if self.num_workers is not None and self.num_workers < 0:
            raise ValueError(f"--num-workers must not be negative, not {self.num_workers}")

    @property
    def file_format(self) -> Literal["csv", "json", "jsonl"]:
        """The format of the output."""
        if self.format is not None:
            return self.format
        suffix = "" if self.output is None else self.output.suffix.lower()
        by_suffix: dict[str, Literal["json", "jsonl"]] = {".json": "json", ".jsonl": "jsonl"}
        return by_suffix.get(suffix, "csv")

    @property
    def skip_list(self) -> Path | None:
        """The file that lists skipped images; None without an output or if none are skipped."""
        if self.output is None or self.on_error == "stop":
            return None
        return self.output.with_name(f"{self.output.name}.skipped.jsonl")


def run(arguments: list[str]) -> None:
    """Write the most probable classes, or answers, for each image."""
    options = parse(PredictOptions, arguments, "predict")
    from associative_transformer.predict import write_predictions
    from associative_transformer.runs.saved import load_saved

    if not options.paths:
        raise UserError(
            "there are no image files or folders to classify: pass IMAGES after the run folder"
        )
    check_output(options.output, *options.paths)
    check_output(options.sheet, *options.paths, flag="--sheet")
    if options.skip_list is not None:
        check_output(options.skip_list, *options.paths)
    device = choose_device(options.device)
    saved = load_saved(options.run)
    question = _parse_question(options.question, saved.preprocessing.question_types)
    classes, sentence = saved.classes, None
    if question is not None:
        (sentence,), classes = describe_questions(question), answer_words(int(question.kind[0]))
    if saved.model.temperature is not None:
        say(
            f"ait: probabilities are calibrated at temperature {saved.model.temperature:.3f}, "
            "which was fitted on the validation split",
            file=sys.stderr,
        )
    saved.model.to(device)
    sheet = _open_sheet(options, classes, sentence)
    skipped: list[UnreadableImage] = []
    with _show_progress(options) as progress:
        predictions = _predict(options, saved, question, skipped, progress)
        if sheet is not None:
            predictions = sheet.collect(predictions)
        with open_output(options.output) as file:
            kind = options.file_format
            write_predictions(predictions, classes, options.top, kind, file, sentence)
    if sheet is not None and options.sheet is not None:
        names = ", ".join(path.absolute().name for path in options.paths)
        write_file(options.sheet, sheet.render(f"Predictions for {names}").encode(errors=SHOWN))
        say(f"written: {options.sheet}", file=sys.stderr)
    if options.skip_list is not None:
        write_skipped(skipped, options.skip_list)


def _open_sheet(
    options: PredictOptions, classes: Sequence[str], question: str | None
) -> "ContactSheet | None":
    """Return an empty contact sheet if one is wanted; its file is slow to import."""
    if options.sheet is None:
        return None
    from associative_transformer.report.contact_sheet import ContactSheet

    return ContactSheet(classes, question)


def _show_progress(options: PredictOptions) -> WorkProgress:
    """Return a progress bar, unless it would get in the way of predictions on the terminal."""
    is_free = options.output is not None or not sys.stdout.isatty()
    return WorkProgress("predicting", "images", is_shown=is_free)


def _predict(
    options: PredictOptions,
    saved: "SavedModel",
    question: Questions | None,
    skipped: list[UnreadableImage],
    progress: WorkProgress,
) -> "Iterable[Prediction]":
    from associative_transformer.predict import predict_files

    return predict_files(
        saved.model,
        options.paths,
        saved.preprocessing,
        options.batch_size,
        options.on_error,
        question,
        skipped,
        saved.precision,
        options.num_workers,
        progress.show,
    )


def _parse_question(sentence: str | None, types: tuple[str, ...]) -> Questions | None:
    """Return the parsed question, or None if the model was trained without questions."""
    if not types:
        if sentence is not None:
            raise UserError("this model was trained without questions: leave --question out")
        return None
    if sentence is None:
        allowed = list_questions(types)
        raise UserError(f"this model answers questions: pass --question with one of\n{allowed}")
    return parse_question(sentence, types)
