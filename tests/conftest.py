"""Every test starts from the same random numbers, on at most two threads.

And what several tests of the command line need, and the count of hostile input.
"""

import os
import random
import re
import signal
import stat
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from making.commands import Ait, Child, Said

torch.set_num_threads(min(2, torch.get_num_threads()))
# a shell's background jobs are started with SIGINT ignored
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("default", deadline=None, derandomize=True, database=None)
settings.register_profile("thorough", deadline=None)  # other cases each time, and more of them
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--tally", action="store_true", help="say how many hostile inputs were met")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if marker := item.get_closest_marker("hostile"):
            item.user_properties.append(("hostile", marker.args[0]))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Write the figures of docs/reliability.md: what was tried, and what went as it should."""
    if not config.getoption("--tally"):
        return
    tally: dict[str, list[int]] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            told = dict(report.user_properties)
            if "hostile" in told:
                tried, handled = tally.setdefault(told["hostile"], [0, 0])
                count = told.get("cases", 1)
                tally[told["hostile"]] = [
                    tried + count,
                    handled + count * (outcome == "passed"),
                ]
    terminalreporter.write_line("")
    for what, (tried, handled) in tally.items():
        terminalreporter.write_line(f"| {what} | {tried:,} | {handled:,} |")


@pytest.fixture(autouse=True)
def seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def ait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Ait:
    """Run a command in an empty folder."""
    main = import_module("associative_transformer.cli").main  # once its shapes are checked
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["ait", *map(str, arguments)])
        capfd.readouterr()
        try:
            code = main()
        except SystemExit as stopped:
            code = stopped.code
        said = capfd.readouterr()
        err = re.sub(r"[\s─│╭╮╰╯]+", " ", said.err)
        assert "Traceback" not in said.err
        assert isinstance(code, int)
        return Said(code, said.out, err)

    return call


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Child:
    """Put a shell script in the place of `python -m associative_transformer`, and give its log.

    It notes its arguments, in $*, and completes the run FOLDER. The body may do otherwise.
    """
    sweep = import_module("associative_transformer.tables.run_all")
    log = tmp_path / "log"

    def write(body: str = "") -> Path:
        script = tmp_path / "child"
        script.write_text(
            f"#!/bin/sh\nshift 2\necho $* >> {log}\n"
            'name=$2 seed=$(echo $* | sed "s/.*seed \\([0-9]*\\).*/\\1/")\n'
            f"folder={tmp_path}/runs/$name/$seed\nmkdir -p $folder\n"
            f"touch $folder/experiment.yaml\n{body}\ntouch $folder/result.json\n"
        )
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(sweep.sys, "executable", str(script))
        return log

    monkeypatch.setattr(sweep, "SECONDS_BETWEEN_LOOKS", 0.01)
    monkeypatch.setattr(sweep, "count_operations", lambda model: 1_000)
    return write


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `images` and the complete runs `ait` and `vit`, both with reports."""
    return import_module("making.reports").make_reported_runs(tmp_path_factory.mktemp("reported"))
