"""The language model of docs/how-to/workspace.md: what later tokens tell earlier ones."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from associative_transformer import WorkspaceConfig

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "workspace.md"


@pytest.fixture(scope="module")
def language_model() -> Any:  # noqa: ANN401
    """Return the class that the page shows."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (code,) = (block for block in blocks if "class LanguageModel" in block)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/how-to/workspace.md", "exec"), names)
    return names["LanguageModel"]


def change_of_earlier_logits(model: Any) -> float:  # noqa: ANN401
    """Return by how much the logits change if only the tokens after them do."""

    def logits(text: Tensor) -> Tensor:
        torch.manual_seed(0)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        with torch.no_grad():
            result = model(text)
        model.load_state_dict(state)  # the memory may have moved
        return result

    first = torch.randint(100, (4, 12), generator=torch.manual_seed(1))
    second = first.clone()
    second[:, 6:] = (second[:, 6:] + 1) % 100
    return float((logits(first) - logits(second))[:, :6].abs().max())


def test_in_evaluation_no_token_learns_of_a_later_one(language_model: Any) -> None:  # noqa: ANN401
    torch.manual_seed(0)
    assert change_of_earlier_logits(language_model().eval()) == 0


def test_in_training_tokens_read_what_later_ones_have_written(language_model: Any) -> None:  # noqa: ANN401
    torch.manual_seed(0)
    assert change_of_earlier_logits(language_model().train()) > 1e-6


def test_a_frozen_memory_leaks_nothing_in_training_either(language_model: Any) -> None:  # noqa: ANN401
    torch.manual_seed(0)
    model = language_model().train()
    model.workspace.freeze()
    assert change_of_earlier_logits(model) == 0


def test_a_memory_for_each_sequence_is_refused(language_model: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match="would let tokens read later ones"):
        language_model(memory=WorkspaceConfig(scope="image"))
