"""The model card: `README.md` of a saved model, which the hub shows."""

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
