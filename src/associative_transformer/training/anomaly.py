"""Find the operation that returned a value that is not finite."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from associative_transformer.interface import UserError

LIBRARY = str(Path(torch.__file__).parent)
OPERATION = re.compile(r"Function '(\w+)' returned nan values")
CALL = re.compile(r'File "(.+)", line (\d+), in (.+)\n\s*(.+)')
REMEDY = "start again with a lower --train.lr, or with --train.clip-norm 1.0"


@contextmanager
def find_anomaly(model: nn.Module) -> Iterator[None]:
    """Raise UserError naming the source of the first value or gradient that is not finite.

    In the forward pass the source is a module, in the backward pass an operation and the line that
    called it, or the parameter whose gradient is not finite. These checks make a step slow.
    """
    names = {module: name or "the model" for name, module in model.named_modules()}
    # a hook of all modules: a layer with a hook of its own may be computed differently
    hook = register_module_forward_hook(partial(_check_output, names))
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with torch.autograd.set_detect_anomaly(True):
                yield
    except RuntimeError as error:
        if (match := OPERATION.match(str(error))) is None:
            raise
        call = _last_call("".join(str(warning.message) for warning in caught))
        raise UserError(
            f"the operation {match[1]}{call} returned a gradient that is not a number: {REMEDY}"
        ) from error
    finally:
        hook.remove()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            raise UserError(f"the gradient of {name} is not finite: {REMEDY}")


def _check_output(
    names: dict[nn.Module, str], module: nn.Module, inputs: object, output: object
) -> None:
    """Raise UserError if a module of the model returned a value that is not finite."""
    if module not in names or _is_finite(output):
        return
    module_name = f"{names[module]} ({type(module).__name__})"
    if _is_finite(inputs):
        raise UserError(f"{module_name} returned values that are not finite: {REMEDY}")
    raise UserError(
        f"{module_name} received and returned values that are not finite: check the images, or "
        + REMEDY
    )


def _is_finite(value: object) -> bool:
    return all(tensor.isfinite().all() for tensor in _tensors(value))


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _last_call(trace: str) -> str:
    """Describe the last call in a trace that is not in torch itself; empty if there is none."""
    calls = [call for call in CALL.findall(trace) if not call[0].startswith(LIBRARY)]
    if not calls:
        return ""
    file, line, function, text = calls[-1]
    return f", called in {Path(file).name}, line {line}, {function} (`{text.strip()}`),"
