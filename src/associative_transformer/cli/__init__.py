"""The command line, `ait`.

Nothing heavy is imported before a command needs it: `ait --help` does not wait for torch.
"""

import argparse
import io
import os
import sys
from importlib import import_module

from associative_transformer import __version__

COMMANDS = {  # each is a file in this folder
    "list": "show the recipes",
    "train": "train a recipe, or go on with it",
    "eval": "score a trained model on its test images",
    "predict": "classify image files with a trained model, or ask about them",
    "analyze": "measure what a trained model has learned, and draw it",
    "report": "write a page that shows what a run has learned, or two runs side by side",
    "bench": "measure speed and memory, side by side",
    "show": "draw images of a data set, with their classes or their questions and answers",
    "run-table": "train all runs of a table that are missing",
    "table": "put finished runs beside the published results",
    "doctor": "show what a bug report needs",
}


def main() -> int:
    """Run the command that the arguments name and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="ait",
        description="Associative Transformer: train, evaluate and use it.",
        epilog="commands:\n"
        + "\n".join(f"  {name:9} {summary}" for name, summary in COMMANDS.items())
        + "\n\nait COMMAND --help tells more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="what the command takes")
    given = parser.parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):  # the bytes of a file's name that is not UTF-8
        sys.stdout.reconfigure(errors="surrogateescape")
    return _guarded(given.command, given.arguments)


def _guarded(name: str, arguments: list[str]) -> int:
    """Turn what the user can mend into one sentence and exit code 2."""
    from associative_transformer import distributed
    from associative_transformer.cli.options import write_command
    from associative_transformer.interface import UserError
    from associative_transformer.training.signals import Interrupted

    try:
        module = import_module(f"associative_transformer.cli.{name.replace('-', '_')}")
        module.run(arguments)
    except UserError as error:
        print(f"ait: {_printable(str(error))}", file=sys.stderr)
        return 2
    except Interrupted as stopped:
        again = [word for word in arguments if word not in ("--overwrite", "--resume")]
        how = write_command(name, *again, *["--resume"] * (name == "train"))
        if distributed.is_first():
            print(f"ait: {stopped} and saved; go on with {how}", file=sys.stderr)
        return 128 + stopped.signum
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # nobody reads on: `ait list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (MemoryError, RuntimeError) as error:
        if "out of memory" not in str(error) and "DefaultCPUAllocator" not in str(error):
            raise
        print("ait: out of memory: lower --train.batch-size or --batch-size", file=sys.stderr)
        return 2
    return 0


def _printable(sentence: str) -> str:
    """Write what commands a terminal as its escape: names of files and classes may hold it."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in sentence)
