"""Settings, options and fixtures for all tests.

Every test starts with the same random seed and runs on at most two threads. Modules of the package
are imported inside fixtures, because this file is loaded before shape checks are switched on.
"""

import os
import random
import re
import signal
import stat
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from making.commands import Ait, Child, CommandResult

torch.set_num_threads(min(2, torch.get_num_threads()))
# a shell starts background jobs with SIGINT ignored
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("default", deadline=None, derandomize=True, database=None)
settings.register_profile("thorough", deadline=None)  # new cases in each run
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="session", autouse=True)
def same_on_every_cpu() -> Iterator[None]:
    """Let the precision "auto" be float32; keep threads and denormals, which hypothesis needs."""
    compute = import_module("associative_transformer.compute")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compute, "CPU_BFLOAT16", ())
        patch.setattr(compute, "set_up_cpu", lambda: None)
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tally", action="store_true", help="count the hostile inputs, by group")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if marker := item.get_closest_marker("hostile"):
            item.user_properties.append(("hostile", marker.args[0]))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the table of reliability.md: inputs tried, and inputs handled as expected."""
    if not config.getoption("--tally"):
        return
    tally: dict[str, list[int]] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            properties = dict(report.user_properties)
            if group := properties.get("hostile"):
                tried, handled = tally.setdefault(group, [0, 0])
                count = properties.get("cases", 1)
                tally[group] = [tried + count, handled + count * (outcome == "passed")]
    terminalreporter.write_line("")
    for group, (tried, handled) in tally.items():
        terminalreporter.write_line(f"| {group} | {tried:,} | {handled:,} |")


@pytest.fixture(autouse=True)
def seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def ait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Ait:
    """Return a function that runs a command of `ait` in an empty folder."""
    main = import_module("associative_transformer.cli").main  # after shape checks are switched on
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> CommandResult:
        monkeypatch.setattr(sys, "argv", ["ait", *map(str, arguments)])
        capfd.readouterr()
        try:
            code = main()
        except SystemExit as stopped:
            code = stopped.code
        captured = capfd.readouterr()
        err = re.sub(r"[\s─│╭╮╰╯]+", " ", captured.err)
        assert "Traceback" not in captured.err
        assert isinstance(code, int)
        return CommandResult(code, captured.out, err)

    return run


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Child:
    """Return a function that replaces `python -m associative_transformer` with a shell script.

    The script appends its arguments to a log and completes the run; the function returns the path
    of the log. `body` runs just before the run is complete, and can use the variables `name`,
    `seed` and `folder`.
    """
    run_all = import_module("associative_transformer.training.run_all")
    plant = import_module("making.plant")
    recipes = import_module("associative_transformer.recipes").RECIPES
    log, complete = tmp_path / "log", tmp_path / "complete"
    for name in ("triangle-vit-small", "triangle-ait-small", "triangle-luna-small"):
        for number in (0, 1):
            plant.put_run(complete, recipes[name], number, plant.result_of(recipes[name]))

    def write(body: str = "") -> Path:
        script = tmp_path / "child"
        script.write_text(
            f"#!/bin/sh\nshift 2\necho $* >> {log}\n"
            'name=$2 seed=$(echo $* | sed -n "s/.*seed \\([0-9]*\\).*/\\1/p")\n'
            f"folder={tmp_path}/runs/$name/${{seed:-0}}\nmkdir -p $folder\n"
            f"from={complete}/$name/${{seed:-0}}\n"
            f"cp $from/experiment.yaml $folder\n{body}\ncp $from/result.json $folder\n"
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(run_all.sys, "executable", str(script))
        return log

    monkeypatch.setattr(run_all, "POLL_SECONDS", 0.01)
    return write


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `images` and the complete runs `ait` and `vit`, both with reports."""
    return import_module("making.reports").make_reported_runs(tmp_path_factory.mktemp("reported"))


@pytest.fixture(scope="session")
def per_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the complete run of `making.trained.PER_IMAGE`, which tests must not change."""
    folder = tmp_path_factory.mktemp("per-image") / "run"
    import_module("associative_transformer.training.loop").train(
        import_module("making.trained").PER_IMAGE, folder
    )
    return folder


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the complete run of `making.trained.EXPERIMENT`, which tests must not change."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    import_module("associative_transformer.training.loop").train(
        import_module("making.trained").EXPERIMENT, folder
    )
    return folder
