"""The model card: `README.md` of a saved model, which the hub shows."""

from pathlib import Path
from typing import NamedTuple

CARD, PICTURE = "README.md", "priors.png"
MAX_CARD = 2**20  # bytes

MODEL_CARD = """---
{{ card_data }}
---

An image model of the Python package `associative_transformer`, a reference implementation of the
[Associative Transformer]({{ paper_url }}). Its sizes are in `config.json`.

```python
from associative_transformer import load_model

model = load_model("PATH")  # this folder, or its name on the hub; in evaluation mode
logits, _ = model(images)   # images (batch, channels, height, width), normalized as in training
# a model with a `question_dim` above 0 takes model(images, questions)
```
"""


class SavedCard(NamedTuple):
    """The card of a saved model, with the picture of its priors if there is one."""

    text: str
    picture: bytes | None

    @classmethod
    def read(cls, folder: Path) -> "SavedCard | None":
        """Read the card in a folder; None if there is none, or if it cannot be read."""
        try:
            if (folder / CARD).stat().st_size > MAX_CARD:
                return None
            text = (folder / CARD).read_text(encoding="utf-8")
            picture = (folder / PICTURE).read_bytes() if (folder / PICTURE).is_file() else None
        except (OSError, ValueError):  # the model can be used without it
            return None
        return cls(text, picture)

    def write_picture(self, folder: Path) -> None:
        """Write the picture, which the card refers to, unless the folder has one."""
        if self.picture is not None and not (folder / PICTURE).exists():
            (folder / PICTURE).write_bytes(self.picture)
