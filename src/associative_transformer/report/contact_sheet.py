"""Predictions for image files as a web page: picture, answer and confidence of each.

If the images are in folders named after classes, wrong answers are marked and can be filtered.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from associative_transformer.data.parquet import find_classes
from associative_transformer.decoding import UnreadableImage, open_image
from associative_transformer.interface import format_count
from associative_transformer.predict import Prediction
from associative_transformer.progress import WorkProgress
from associative_transformer.report.gallery import encode_picture
from associative_transformer.scores import wilson_interval
from associative_transformer.webpage import frame, open_templates

FOLDER = Path(__file__).parent  # of the template, the script and the style sheet
SIDE = 192  # pixels; larger images are scaled down
NUM_ANSWERS = 3  # on the page, for each image
MAX_PICTURES = 2_000  # on a page, about 15 MB


@dataclass(frozen=True)
class Shot:
    """One image of the sheet: its answers, the most probable first, and its true class."""

    path: Path
    answers: list[tuple[str, float]]  # name and probability
    truth: str | None  # None: not known

    @property
    def verdict(self) -> Literal["right", "wrong", "unknown"]:
        """Whether the first answer is the true class."""
        if self.truth is None:
            return "unknown"
        return "right" if self.answers[0][0] == self.truth else "wrong"

    @property
    def confidence(self) -> float:
        """Probability of the first answer."""
        return self.answers[0][1]


class ContactSheet:
    """Collects predictions while they are written elsewhere, then renders a page of them."""

    def __init__(self, classes: Sequence[str], question: str | None = None) -> None:
        """Take the names of the answers, and the question that they answer, if any."""
        self.classes, self.question = classes, question
        self.shots: list[Shot] = []

    def collect(self, predictions: Iterable[Prediction]) -> Iterable[Prediction]:
        """Yield the predictions unchanged, and remember them."""
        for prediction in predictions:
            top = min(NUM_ANSWERS, len(self.classes))
            values, indices = torch.topk(prediction.probabilities, top)
            names = [self.classes[i] for i in indices.tolist()]
            answers = list(zip(names, values.tolist(), strict=True))
            self.shots.append(Shot(prediction.path, answers, self._find_truth(prediction.path)))
            yield prediction

    def _find_truth(self, path: Path) -> str | None:
        """Return the class that the folder of an image is named after, if there is one."""
        if self.question is not None:
            return None
        (index,) = find_classes([path.absolute().parent.name], self.classes)
        return None if index < 0 else self.classes[index]

    def render(self, title: str) -> str:
        """Return the page. If there are too many images, wrong and unsure answers are kept."""
        shown = sorted(self.shots, key=_by_interest)[:MAX_PICTURES]
        kept, pictures = set(map(id, shown)), []
        with WorkProgress("drawing the sheet", "images") as progress:
            for shot in self.shots:
                if id(shot) in kept:
                    pictures.append((shot, _thumbnail(shot.path)))
                    progress.show(len(pictures), len(shown))
        counts: Counter[str] = Counter(shot.verdict for shot in self.shots)
        template = open_templates(FOLDER).get_template("contact_sheet.html")
        body = template.render(
            title=title,
            question=self.question,
            summary=self._summarize(counts, len(shown)),
            counts=counts,
            pictures=pictures,
            classes=sorted({shot.answers[0][0] for shot in self.shots}),
        )
        script, style = (
            (FOLDER / f"contact_sheet.{ending}").read_text(encoding="utf-8")
            for ending in ("js", "css")
        )
        return frame(title, body, style, script)

    def _summarize(self, counts: Mapping[str, int], num_shown: int) -> str:
        total, labeled = len(self.shots), counts["right"] + counts["wrong"]
        parts = [f"{format_count(total, 'image')}."]
        if labeled:
            low, high = wilson_interval(counts["right"] / labeled, labeled)
            parts.append(
                f"{labeled:,} are in folders named after classes: {counts['right']:,} answers are "
                f"right, {counts['wrong']:,} are wrong. Accuracy: "
                f"{100 * counts['right'] / labeled:.2f} % (95 % interval {low:.2f} to {high:.2f})."
            )
        if num_shown < total:
            parts.append(f"Shown: {num_shown:,}, wrong answers first, then the least confident.")
        return " ".join(parts)


def _by_interest(shot: Shot) -> tuple[bool, float]:
    """Order wrong answers first, then unsure ones."""
    return shot.verdict != "wrong", shot.confidence


def _thumbnail(path: Path) -> str | None:
    """Return a small copy of an image file as a data URL; None if it has disappeared."""
    try:
        picture = open_image(path, "RGB")
    except UnreadableImage:
        return None
    return encode_picture(picture, SIDE)
