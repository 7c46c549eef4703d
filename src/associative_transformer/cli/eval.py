"""`ait eval`: evaluate the model of a run on its test images."""

import hashlib
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from associative_transformer import distributed
from associative_transformer.cli.options import check_counts, choose_device, parse, say
from associative_transformer.interface import UserError

if TYPE_CHECKING:
    from associative_transformer.evaluate import Evaluation, Summary
    from associative_transformer.scores import ClassScore, Interval


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
    from associative_transformer.scores import score_classes

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
    summary = summarize(scores, data, model.temperature)
    classes = score_classes(scores.labels, scores.predicted, data.test.rows, saved.classes)
    source = options.source or saved.experiment.data.source
    context = {
        "source": source and Path(source).name,  # no path of this machine
        "skipped_images": data.num_skipped,
        "data": data.digest,
        "classes": [asdict(score) for score in classes],
        **_reliability(scores, model.temperature),
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
    _print_scores(scores, summary, classes)
    if suffix:
        say("these are not the test images that the run was scored on after training")
    say(written)


def _reliability(scores: "Evaluation", temperature: float | None) -> dict[str, Any]:
    """Return confidence and accuracy by bin, also at the temperature if there is one."""
    from associative_transformer.calibration import measure_reliability

    plain = measure_reliability(scores.logits, scores.labels)
    if temperature is None:
        return {"reliability": plain.to_dict()}
    scaled = measure_reliability(scores.logits, scores.labels, temperature)
    return {"reliability": plain.to_dict(), "scaled_reliability": scaled.to_dict()}


def _print_scores(scores: "Evaluation", summary: "Summary", classes: "list[ClassScore]") -> None:
    """Print the scores of each kind of question or of each class, and those of all items."""
    from associative_transformer.evaluate import describe_kinds
    from associative_transformer.scores import describe_classes

    if summary.kinds is not None:
        say(describe_kinds(summary.kinds))
    else:
        say(describe_classes(classes))
        if untested := [score.name for score in classes if not score.items]:
            say(f"ait: no test images of {', '.join(untested)}", file=sys.stderr)
    items = "test images" if summary.kinds is None else "test questions"
    count = f"all {len(scores.predicted):,} {items}"
    say(f"{scores.accuracy:6.2f} %  of {count}{_between(summary.interval)}")
    if summary.kinds is None:
        if summary.top5_accuracy is not None:
            interval = _between(summary.top5_interval)
            say(f"{summary.top5_accuracy:6.2f} %  among the five most probable classes{interval}")
        say(f"{summary.balanced_accuracy:6.2f} %  balanced accuracy, the mean recall of a class")
    if (calibration := summary.calibration) is not None:
        say(f"{calibration.error:6.2f} %  expected calibration error")
        if calibration.temperature is not None:
            say(
                f"{calibration.scaled_error:6.2f} %  the same at temperature "
                f"{calibration.temperature:.3f}, which was fitted on the validation split"
            )


def _between(interval: "Interval | None") -> str:
    if interval is None:
        return ""
    return f", 95 % interval {interval.low:.2f} to {interval.high:.2f} %"
