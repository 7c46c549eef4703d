"""Start a training process: device, processes of a launcher, tracker."""

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs, LoggerType, ProjectConfiguration

from associative_transformer.experiment import Experiment, TrainConfig, identifying_fields
from associative_transformer.interface import UserError
from associative_transformer.rendezvous import init_method
from associative_transformer.training.variables import hidden_variables


def make_accelerator(train: TrainConfig, project: ProjectConfiguration) -> Accelerator:
    """Choose device and tracker, and join the processes of a launcher.

    Raises UserError if the tracker is not installed, if there is no GPU although one is
    requested, or if the variables of a launcher are incomplete.
    """
    has_gpu = train.device != "cpu" and torch.cuda.is_available()
    if train.device == "cuda" and not has_gpu:
        raise UserError(
            "--train.device cuda: torch finds no GPU on this machine; pass --train.device auto"
        )
    tracker = None if train.tracker == "none" else train.tracker
    if tracker and LoggerType(tracker) not in get_available_trackers():
        raise UserError(f"the tracker {tracker} is not installed: pip install {tracker}")
    AcceleratorState._reset_state(reset_partial_state=True)  # of an earlier run in this process
    address = init_method("cuda" if has_gpu else "cpu")
    with hidden_variables():
        return Accelerator(
            cpu=not has_gpu,
            mixed_precision="no",  # the step itself turns autocast on
            log_with=tracker,
            project_config=project,
            kwargs_handlers=[InitProcessGroupKwargs(init_method=address)],
        )


def start_tracker(accelerator: Accelerator, experiment: Experiment, steps_done: int) -> None:
    """Start the tracker of an experiment, if it has one, and log its configuration.

    What a killed process has logged beyond `steps_done` is hidden, since it is logged again.
    """
    if experiment.train.tracker != "none":
        fields = {  # TensorBoard accepts neither lists nor None
            name: value if isinstance(value, int | float | str) else str(value)
            for name, value in identifying_fields(experiment).items()
        }
        kept = {"tensorboard": {"purge_step": steps_done + 1}}
        accelerator.init_trackers("associative_transformer", fields, kept)
