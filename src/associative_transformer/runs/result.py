"""The result of a complete run."""

import json
from pathlib import Path
from typing import Any

from associative_transformer.interface import UserError


def read_result(folder: Path) -> dict[str, Any] | None:
    """Read what a complete run has reached; None where it is not complete yet.

    Raises UserError where the file is damaged.
    """
    path = folder / "result.json"
    if not path.exists():
        return None
    try:
        result = json.loads(path.read_text())
        if not isinstance(result, dict):
            raise ValueError("it holds no result")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({error}): remove it, and --resume writes it again"
        ) from error
    return result
