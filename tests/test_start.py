"""The slow modules that each command imports before it does any work.

Modules are counted instead of seconds, which vary. A step may import the slow modules in its
allowance and no others. The steps run in one process, from the smallest allowance to the largest,
so each module counts for the first step that imports it.
"""

import json
import subprocess
import sys

import pytest

from associative_transformer.cli import COMMANDS

SLOW_TO_IMPORT = {
    "accelerate",
    "datasets",
    "jinja2",
    "matplotlib",
    "numpy",
    "pandas",
    "pyarrow",
    "rich",
    "scipy",
    "sympy",
    "torch",
    "torch._dynamo",
    "torch._inductor",
    "torchvision",
    "transformers",
    "triton",
    "tyro",
}
NOTHING: set[str] = set()
OPTIONS = {"tyro", "rich"}  # to parse options, and to print a table in the terminal
TORCH = {"torch", "numpy"}  # for the types of the options, and for the public names
STEPS = {
    "import associative_transformer": NOTHING,
    "ait": NOTHING,
    "ait --help": NOTHING,
    "ait --version": NOTHING,
    "ait list": OPTIONS,
    "ait list --help": OPTIONS,
    "ait doctor --help": OPTIONS,
    "ait export --help": OPTIONS,
    "ait report --help": OPTIONS,
    "ait table --help": OPTIONS,
    "ait runs --help": OPTIONS,
    "ait eval --help": TORCH,
    "ait predict --help": TORCH,
    "ait run-table --help": TORCH,
    "ait train --help": TORCH,
    "ait train triangle-ait-tiny --help": TORCH,
    "ait fit --help": TORCH,
    "ait sweep --help": TORCH,
    "ait sweep triangle-ait-tiny --help": TORCH,
    "ait check-data --help": TORCH,
    "ait show --help": TORCH,
    "ait show sort-of-clevr --help": TORCH,
    "ait analyze --help": TORCH,
    "ait bench --help": TORCH,
    "ait bench step --help": TORCH,
    "from associative_transformer import GlobalWorkspace": TORCH,
    "from associative_transformer import AiT, build_model, functional": TORCH,
}

RUN = """
import contextlib, io, json, sys
for step in json.loads(sys.argv[1]):
    before = set(sys.modules)
    if step.startswith("ait"):
        from associative_transformer.cli import main
        sys.argv = step.split()
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
            with contextlib.redirect_stderr(io.StringIO()):
                main()
    else:
        exec(step)
    print(json.dumps(sorted(set(sys.modules) - before)))
"""


@pytest.fixture(scope="module")
def imported() -> dict[str, set[str]]:
    """Return the slow modules that each step imports."""
    command = [sys.executable, "-c", RUN, json.dumps(list(STEPS))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    modules = [set(json.loads(line)) for line in done.stdout.splitlines()]
    return {step: names & SLOW_TO_IMPORT for step, names in zip(STEPS, modules, strict=True)}


@pytest.mark.parametrize("step", STEPS)
def test_a_step_imports_no_slow_module_beyond_its_allowance(
    step: str, imported: dict[str, set[str]]
) -> None:
    assert imported[step] <= STEPS[step]


def test_each_allowance_is_needed(imported: dict[str, set[str]]) -> None:
    assert set().union(*imported.values()) == OPTIONS | TORCH


def test_the_help_of_every_command_is_a_step() -> None:
    assert {f"ait {command} --help" for command in COMMANDS} <= set(STEPS)
