"""`ait predict`: classify image files with a trained model, or ask a question about them."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

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
from associative_transformer.interface import UserError


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
    from associative_transformer.predict import predict_files, write_predictions
    from associative_transformer.runs.saved import load_saved

    if not options.paths:
        raise UserError(
            "there are no image files or folders to classify: pass IMAGES after the run folder"
        )
    check_output(options.output, *options.paths)
    if options.skip_list is not None:
        check_output(options.skip_list, *options.paths)
    device = choose_device(options.device)
    model, preprocessing, classes, precision = load_saved(options.run)
    question = _parse_question(options.question, preprocessing.question_types)
    sentence = None
    if question is not None:
        (sentence,), classes = describe_questions(question), answer_words(int(question.kind[0]))
    if model.temperature is not None:
        say(
            f"ait: probabilities are calibrated at temperature {model.temperature:.3f}, which was "
            "fitted on the validation split",
            file=sys.stderr,
        )
    skipped: list[UnreadableImage] = []
    predictions = predict_files(
        model.to(device),
        options.paths,
        preprocessing,
        options.batch_size,
        options.on_error,
        question,
        skipped,
        precision,
        options.num_workers,
    )
    with open_output(options.output) as file:
        write_predictions(predictions, classes, options.top, options.file_format, file, sentence)
    if options.skip_list is not None:
        write_skipped(skipped, options.skip_list)


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
