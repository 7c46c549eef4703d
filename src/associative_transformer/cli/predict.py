"""`ait predict`: classify image files, or answer a question about them, with a trained model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from associative_transformer.cli.options import (
    check_counts,
    check_output,
    choose_device,
    open_output,
    parse,
)
from associative_transformer.data import DataConfig, SortOfClevrConfig
from associative_transformer.data.questions import (
    Questions,
    answer_words,
    describe_questions,
    list_questions,
    parse_question,
)
from associative_transformer.interface import UserError
from associative_transformer.predict import predict_files, write_predictions
from associative_transformer.runs.saved import load_run


@dataclass(frozen=True)
class PredictOptions:
    """Classify image files, and the images in folders."""

    run: Path
    """Folder of the run, such as runs/cifar10-ait-tiny/0."""
    paths: tuple[Path, ...]
    """Image files, and folders to search for images."""
    question: str | None = None
    """What to ask about each image, of a run that was trained on questions, such as "shape of the
    object closest to the red one"."""
    top: int = 5
    """Classes to give for each image, the most probable first."""
    format: Literal["csv", "jsonl"] = "csv"
    """CSV, or a JSON object per line."""
    output: Path | None = None
    """File to write; None: the terminal."""
    on_error: Literal["stop", "skip"] = "stop"
    """What to do with an unreadable image; skip: count it and go on."""
    batch_size: int = 64
    """Images at a time."""
    device: str = "auto"
    """auto, cpu, cuda, or another device that torch knows."""

    def __post_init__(self) -> None:
        check_counts(top=self.top, batch_size=self.batch_size)


def run(arguments: list[str]) -> None:
    """Write the most probable classes, or answers, of each image."""
    options = parse(PredictOptions, arguments, "predict")
    if not options.paths:
        raise UserError("ait predict needs image files or folders behind the run")
    check_output(options.output)
    device = choose_device(options.device)
    saved = load_run(options.run)
    model, data, classes = saved.model.to(device), saved.experiment.data, saved.classes
    question = _understand(options.question, data)
    words = None
    if question is not None:
        (words,), classes = describe_questions(question), answer_words(int(question.kind[0]))
    found = predict_files(
        model, options.paths, data, options.batch_size, options.on_error, question
    )
    with open_output(options.output) as file:
        write_predictions(found, classes, options.top, options.format, file, words)


def _understand(sentence: str | None, data: DataConfig) -> Questions | None:
    if not isinstance(data, SortOfClevrConfig):
        if sentence is not None:
            raise UserError("this run was trained without questions: leave --question out")
        return None
    if sentence is None:
        allowed = list_questions(data.question_types)
        raise UserError(f"this run answers questions: pass --question with one of\n{allowed}")
    return parse_question(sentence, data.question_types)
