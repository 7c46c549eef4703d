"""How a run computes: its precision, and whether its model is compiled.

Both are chosen before the first step, and a resumed run keeps them. Compiling takes from half a
minute to several minutes, and pays off if the remaining steps save more time than that.
"""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import torch

from associative_transformer import distributed
from associative_transformer.arguments import image_shape
from associative_transformer.compute import CompileSetting, choose_precision
from associative_transformer.experiment import Experiment
from associative_transformer.interface import Batch
from associative_transformer.runs.checkpoint import TrainingState
from associative_transformer.training.step import TrainingStep

MIN_SECONDS = 600.0
"""A shorter run is not compiled. Finding out whether that pays takes a minute or more."""
MIN_STEPS = 10
"""A run with fewer steps is not worth a trial."""
TRIALS = 2  # the faster one counts
BEFORE = "as before"


class Compilation(NamedTuple):
    """Whether the model of a run is compiled, and why."""

    is_on: bool
    reason: str


@runtime_checkable
class Compilable(Protocol):
    """A step whose model can be compiled."""

    def compile(self) -> None:
        """Compile the model when it is called next."""

    def undo_compile(self) -> None:
        """Return to the model as it was before `compile`."""


def prepare_step(
    step: TrainingStep,
    state: TrainingState,
    experiment: Experiment,
    num_steps: int,
    write: Callable[[str], None],
) -> None:
    """Choose how a run with `num_steps` steps left computes, or keep what its state contains.

    `write` gets a line that says what was chosen and why.
    """
    config, device = experiment.train, step.accelerator.device
    if state.precision:
        why = BEFORE
    else:
        mine = choose_precision(config.precision, device, experiment.model)
        choices = distributed.gather_objects(tuple(mine))
        # bfloat16 only if all processes have instructions for it
        full = [choice for choice in choices if choice[0] == "float32"]
        state.precision, why = (full or choices)[0]
    step.precision = "bfloat16" if state.precision == "bfloat16" else "float32"
    if num_steps == 0:
        return
    if config.detect_anomaly:
        chosen = Compilation(False, "--train.detect-anomaly")
    elif state.compiled is False:
        chosen = Compilation(False, BEFORE)
    else:
        setting = "on" if state.compiled else config.compile
        batch = random_batch(experiment, config.batch_size // distributed.num_ranks(), device)
        chosen = choose_compilation(setting, step, partial(step.try_out, batch), num_steps, write)
        state.compiled = chosen.is_on
    compiled = "compiled" if chosen.is_on else "not compiled"
    write(f"{state.precision}: {why}; {compiled}: {chosen.reason}")


def choose_compilation(
    setting: CompileSetting,
    step: Compilable,
    try_out: Callable[[], None],
    num_steps: int,
    write: Callable[[str], None],
    clock: Callable[[], float] = time.perf_counter,
) -> Compilation:
    """Compile the model of a run with `num_steps` steps left if that is set or pays off.

    With "auto", a step is timed (`try_out`). If the run is long enough, the model is compiled and
    timed again, and stays compiled if the remaining steps save more time than compiling took. If
    torch cannot compile on this machine, the model stays as it is.
    """

    def seconds() -> float:
        start = clock()
        try_out()
        return max(distributed.gather_objects(clock() - start))

    if setting == "off":
        return Compilation(False, "--train.compile off")
    if setting == "auto" and (num_steps < MIN_STEPS or num_steps * seconds() < MIN_SECONDS):
        return Compilation(False, "the run is too short for it to pay off")
    plain = min(seconds() for _ in range(TRIALS)) if setting == "auto" else 0.0
    write("compiling the model, which takes a minute or more")
    start = clock()
    if reason := _compile(step, try_out):
        return Compilation(False, f"torch cannot compile here ({reason})")
    duration = max(distributed.gather_objects(clock() - start))
    if setting == "on":
        return Compilation(True, f"compiling took {duration:.0f} s")
    compiled = min(seconds() for _ in range(TRIALS))
    change = f"a step takes {1e3 * compiled:,.0f} ms instead of {1e3 * plain:,.0f} ms"
    if num_steps * (plain - compiled) > duration:
        return Compilation(True, f"{change}; compiling took {duration:.0f} s")
    step.undo_compile()
    reason = f"it does not pay off: {change}, and compiling took {duration:.0f} s"
    return Compilation(False, reason)


def _compile(step: Compilable, try_out: Callable[[], None]) -> str | None:
    """Compile the model and try it out; if that fails anywhere, undo it and return the reason."""
    step.compile()
    reason = None
    log_level = logging.root.manager.disable
    logging.disable()  # the compiler logs pages about an error, which is summed up in one line
    try:
        try_out()
    except RuntimeError as error:
        if not isinstance(error, torch._dynamo.exc.BackendCompilerFailed):
            raise
        reason = str(error).splitlines()[0]
        step.undo_compile()
        try_out()  # other processes wait for this one
    finally:
        logging.disable(log_level)
    reasons = [each for each in distributed.gather_objects(reason) if each]
    if not reasons:
        return None
    step.undo_compile()
    return reasons[0]


def random_batch(experiment: Experiment, size: int, device: torch.device) -> Batch:
    """Return a batch of random pixels from 0 to 1, random questions and random labels."""
    model = experiment.model
    shape, question_dim = image_shape(model.image_size), getattr(model, "question_dim", 0)
    with torch.random.fork_rng():
        images = torch.rand(size, model.num_channels, *shape, device=device)
        questions = torch.rand(size, question_dim, device=device) if question_dim else None
        labels = torch.randint(model.num_classes, (size,), device=device)
    return Batch(images, questions, labels)
