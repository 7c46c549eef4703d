"""Find the operation behind a number that is not finite."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from associative_transformer.interface import UserError

LIBRARY = str(Path(torch.__file__).parent)
OPERATION = re.compile(r"Function '(\w+)' returned nan values")
CALL = re.compile(r'File "(.+)", line (\d+), in (.+)\n\s*(.+)')
REMEDY = "start again with a lower --train.lr, or with --train.clip-norm 1.0"


@contextmanager
def find_anomaly(model: nn.Module) -> Iterator[None]:
    """Raise UserError with what gave the first value or gradient that is not finite.

    Forward, it is a module; backward, an operation and where it was called. Looking at all of
    them takes time.
    """
    hooks = [
        module.register_forward_hook(partial(_look, name or "the model"))
        for name, module in model.named_modules()
    ]
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with torch.autograd.set_detect_anomaly(True):
                yield
    except RuntimeError as error:
        if (found := OPERATION.match(str(error))) is None:
            raise
        place = _last_call("".join(str(warning.message) for warning in said))
        raise UserError(
            f"the operation {found[1]}{place} gave a gradient that is not a number: {REMEDY}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            raise UserError(f"the gradient of {name} is not finite: {REMEDY}")


def _look(name: str, module: nn.Module, given: object, output: object) -> None:
    if all(tensor.isfinite().all() for tensor in _tensors(output)):
        return
    is_given = not all(tensor.isfinite().all() for tensor in _tensors(given))
    cause = "got and gave" if is_given else "gave"
    raise UserError(
        f"{name} ({type(module).__name__}) {cause} values that are not finite: "
        + ("look at the images, or " * is_given)
        + REMEDY
    )


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _last_call(trace: str) -> str:
    """Say where the innermost line outside of torch stands, from the trace of a warning."""
    calls = [call for call in CALL.findall(trace) if not call[0].startswith(LIBRARY)]
    if not calls:
        return ""
    file, line, function, text = calls[-1]
    return f", called in {Path(file).name}, line {line}, {function} (`{text.strip()}`),"
