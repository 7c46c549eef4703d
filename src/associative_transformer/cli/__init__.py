"""The command line, `ait`: one file per command, and the table that lists them.

A command's file is imported when the command runs, and torch only if the command needs it, so
that `ait --help` and `ait list` start quickly.
"""

import argparse
import gc
import io
import os
import sys
from importlib import import_module
from types import ModuleType
from typing import NoReturn

from associative_transformer import __version__
from associative_transformer.interface import SHOWN, UserError, printable_lines

COMMANDS = {  # each has a file in this folder
    "list": "list the recipes",
    "train": "train a recipe, or resume a run",
    "fit": "train a classifier on your own images, in the time that you give",
    "sweep": "train a recipe with several values of some fields, and compare them",
    "eval": "evaluate a trained model on the test images",
    "predict": "classify image files with a trained model, or ask questions about them",
    "export": "export a trained model to one file: ONNX, torch.export or safetensors",
    "analyze": "measure what a trained model has learned, and draw figures",
    "report": "write a web page about a run, or about two runs side by side",
    "bench": "compare the speed and memory of models and kernels",
    "check-data": "look at a data set: classes, sizes, copies, unreadable images",
    "show": "draw images of a data set with their classes, or with questions and answers",
    "runs": "list your runs with recipe, data, accuracy, date and folder",
    "run-table": "train all missing runs of a table",
    "table": "compare finished runs with the published results",
    "doctor": "collect the information that a bug report needs",
}


class _Parser(argparse.ArgumentParser):
    """A parser that describes each mistake in one sentence."""

    def error(self, message: str) -> NoReturn:
        commands = ", ".join(COMMANDS)
        problem = f"`ait` needs a COMMAND: choose from {commands}"
        if word := "".join(sys.argv[1:2]):
            from associative_transformer.cli.mistakes import find_similar, join_or

            kind, known = "command", [*COMMANDS]  # `list` is a module here
            if word.startswith("-"):
                kind, known = "option", ["--help", "--version"]
            similar = find_similar(word, known)
            hint = f"did you mean {join_or(similar)}? Choose" if similar else "choose"
            problem = f"`ait` has no {kind} {word!r}: {hint} from {commands}"
        print(f"ait: {printable_lines(problem)}", file=sys.stderr)
        sys.exit(2)


def main() -> int:
    """Run the command named by the arguments and return the exit code."""
    parser = _Parser(
        prog="ait",
        description="Train, evaluate and analyze the Associative Transformer and its baselines.",
        epilog="commands:\n"
        + "\n".join(f"  {name:9} {summary}" for name, summary in COMMANDS.items())
        + "\n\nRun `ait COMMAND --help` for the arguments of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="see the list below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="arguments of the command")
    for stream, errors in ((sys.stdout, SHOWN), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    parsed = parser.parse_args()
    return _run(parsed.command, parsed.arguments)


def _run(command: str, arguments: list[str]) -> int:
    """Run a command; turn errors that the user can fix into one sentence and exit code 2."""
    from associative_transformer.training.signals import Interrupted

    try:
        _import(command).run(arguments)
    except UserError as error:
        print(f"ait: {printable_lines(str(error))}", file=sys.stderr)
        return 2
    except PermissionError as error:
        from associative_transformer.files import describe_denied

        print(f"ait: {printable_lines(describe_denied(error))}", file=sys.stderr)
        return 2
    except Interrupted as stopped:
        _print_how_to_continue(stopped, command, arguments)
        return 128 + stopped.signum
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader has exited, as in `ait list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (MemoryError, RuntimeError) as error:
        if "out of memory" not in str(error) and "DefaultCPUAllocator" not in str(error):
            raise
        print("ait: out of memory: lower --train.batch-size or --batch-size", file=sys.stderr)
        return 2
    return 0


def _import(command: str) -> ModuleType:
    """Import the file of a command with the garbage collector off, which is a third faster."""
    name = f"{__name__}.{command.replace('-', '_')}"
    if name not in sys.modules:
        gc.disable()
        import_module(name)
        gc.freeze()  # exempt what was imported from collection
        gc.enable()
    return sys.modules[name]


def _print_how_to_continue(stopped: BaseException, command: str, arguments: list[str]) -> None:
    from associative_transformer import distributed
    from associative_transformer.cli.options import format_command

    words = [word for word in arguments if word not in ("--overwrite", "--resume")]
    next_command = format_command(command, *words, *["--resume"] * (command in ("train", "fit")))
    if distributed.is_first():
        print(f"ait: {stopped} and saved; continue with {next_command}", file=sys.stderr)
