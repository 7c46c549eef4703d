"""The model card: `README.md` of a saved model, which the hub shows."""

from pathlib import Path
from typing import NamedTuple

from huggingface_hub import ModelCard

from associative_transformer.files import read_file

CARD, PICTURE = "README.md", "priors.png"
MAX_FILE = 2**22  # bytes

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
            text = _read(folder / CARD).decode()
            ModelCard(text)  # its metadata may be damaged
            picture = _read(folder / PICTURE) if (folder / PICTURE).is_file() else None
        except Exception:  # the model can be used without it; parsing raises errors of many types
            return None
        return cls(text, picture)


def _read(path: Path) -> bytes:
    """Read a small file; a link could make the card show a private one."""
    if path.is_symlink():
        raise ValueError(f"{path} is a link")
    return read_file(path, MAX_FILE)
