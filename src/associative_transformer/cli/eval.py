"""`ait eval`: evaluate the model of a run on its test images."""

import hashlib
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from associative_transformer import distributed
from associative_transformer.cli.options import check_counts, choose_device, parse, say
from associative_transformer.interface import UserError, printable

if TYPE_CHECKING:
    from associative_transformer.evaluate import Evaluation, Summary


@dataclass(frozen=True)
class EvalOptions:
    """Evaluate a trained model on all test images; write evaluation.json and confusion.csv.

    Under torchrun or accelerate, the processes share the images.
    """

    run: Path
    """Folder of the run, such as runs/triangle-ait-tiny/0."""
    source: str | None = None
    """Folder of the images, if they have moved since training."""
    batch_size: int = 512
    """Images per batch in each process; a single GPU uses as many as fit in its memory."""
    device: str = "auto"
    """cpu, cuda, or another device that torch knows; auto: a GPU if there is one."""

    def __post_init__(self) -> None:
        check_counts(batch_size=self.batch_size)


def run(arguments: list[str]) -> None:
    """Evaluate the model of a run, print the scores and write them to the run folder."""
    options = parse(EvalOptions, arguments, "eval")
    from associative_transformer.evaluate import evaluate_split, save_evaluation, summarize
    from associative_transformer.runs.checkpoint import WEIGHTS
    from associative_transformer.runs.saved import load_run, load_test_split

    with distributed.joined(choose_device(options.device)) as device:
        saved = load_run(options.run)
        data = load_test_split(saved, options.source, device)
        weights, labels = (options.run / WEIGHTS).read_bytes(), data.test.labels.numpy().tobytes()
        distributed.check_same([hashlib.sha256(x).hexdigest() for x in (weights, labels)])
        ranks = distributed.num_ranks()
        batch_size = ranks * min(options.batch_size, math.ceil(len(data.test) / ranks))
        model, precision = saved.model.to(device), saved.precision
        scores = evaluate_split(model, data.test, batch_size, len(saved.classes), precision)
    if not distributed.is_first():
        return
    summary = summarize(scores, data)
    source = options.source or saved.experiment.data.source
    context = {
        "source": source and Path(source).name,  # no path of this machine
        "skipped_images": data.num_skipped,
        "data": data.digest,
    }
    known = saved.result and saved.result.data_of_test  # None in early runs
    is_own = options.source is None if known is None else data.digest == known
    suffix = "" if is_own else f"-{data.digest[:8]}"
    written = "not stored"
    try:
        content = {**summary.to_dict(), **context}
        paths = save_evaluation(scores, content, saved.classes, options.run, suffix)
        written = f"written: {paths[0]}, {paths[1]}"
    except UserError as error:  # of a run that is only read
        say(f"ait: {error}", file=sys.stderr)
    _print_scores(scores, summary, saved.classes)
    if suffix:
        say("these are not the test images that the run was scored on after training")
    say(written)


def _print_scores(scores: "Evaluation", summary: "Summary", classes: tuple[str, ...]) -> None:
    """Print the accuracy of each kind of question or of each class, and that of all items."""
    from associative_transformer.evaluate import describe_kinds, untested_classes

    if summary.kinds is not None:
        say(describe_kinds(summary.kinds))
        items = "test questions"
    else:
        for name, accuracy in zip(classes, scores.class_accuracy, strict=True):
            share = f"{'-':>6}  " if math.isnan(accuracy) else f"{accuracy:6.2f} %"
            say(f"{share}  {printable(name)}")
        items = "test images"
        if untested := untested_classes(scores, classes):
            say(f"ait: no test images of {', '.join(untested)}", file=sys.stderr)
    say(f"{scores.accuracy:6.2f} %  of all {len(scores.predicted):,} {items}")
