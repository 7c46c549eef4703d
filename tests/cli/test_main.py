"""The command line as a whole: help, usage errors, and how a run is stopped and continued."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from associative_transformer import __version__, cli
from associative_transformer.cli import COMMANDS
from associative_transformer.training.signals import Interrupted
from making.commands import (
    IMAGES,
    TRIANGLE,
    Ait,
    assert_refused,
    make_images,
)

TRAIN = "associative_transformer.training.loop.train"


# --- help and usage ---


def test_help_lists_every_command_with_its_summary(ait: Ait) -> None:
    done = ait("--help")
    assert done.code == 0
    _, below = done.out.split("commands:\n")
    lines = [line.split(maxsplit=1) for line in below.splitlines() if line.startswith("  ")]
    assert lines == [list(command) for command in COMMANDS.items()]


def test_each_file_except_the_options_is_a_command() -> None:
    files = {path.stem for path in Path(cli.__file__).parent.glob("*.py")}
    assert files == {name.replace("-", "_") for name in COMMANDS} | {"__init__", "options"}


def test_a_command_is_one_file_and_one_line_in_the_table(
    ait: Ait, monkeypatch: pytest.MonkeyPatch
) -> None:
    greet = ModuleType("greet")
    greet.run = lambda arguments: print("hello", *arguments)
    monkeypatch.setitem(sys.modules, "associative_transformer.cli.say_hello", greet)
    monkeypatch.setitem(COMMANDS, "say-hello", "greet somebody")
    assert ait("say-hello", "Ada", "--loud") == (0, "hello Ada --loud\n", "")
    assert "say-hello greet somebody" in ait("--help").out


def test_the_commands_are_listed_in_the_order_of_a_typical_workflow() -> None:
    in_order = ["list", "train", "eval", "predict", "bench", "show", "run-table", "table"]
    assert [name for name in COMMANDS if name in in_order] == in_order


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "associative_transformer", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == __version__


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, ait: Ait) -> None:
    done = ait(command, "--help")
    assert done.code == 0
    assert done.out


def test_the_help_of_a_recipe_explains_its_fields(ait: Ait) -> None:
    done = ait("train", "triangle-ait-tiny", "--help")
    assert done.code == 0
    for words in ("--train.lr", "--model.workspace.bottleneck", "--data.num-train", "--resume"):
        assert words in done.out
    assert "Number of training images." in done.out


def test_an_unknown_command_is_refused_with_a_list_of_all_commands(ait: Ait) -> None:
    assert_refused(ait("tarin"), "tarin", *COMMANDS)
    assert_refused(ait(), "COMMAND")


# --- stopping ---


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"]
)
def test_a_stopped_run_prints_how_to_continue(
    signum: int, code: int, ait: Ait, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise Interrupted(signum)

    monkeypatch.setattr(TRAIN, stop)
    done = ait("train", *TRIANGLE)
    assert (done.code, done.out) == (code, "")
    assert "saved" in done.err
    assert "--resume" in done.err
    done = ait("train", *TRIANGLE, "--overwrite")
    assert "--resume" in done.err
    assert "--overwrite" not in done.err  # the two exclude each other


def test_ctrl_c_ends_a_command_without_a_traceback(
    ait: Ait, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TRAIN, stop)
    assert ait("train", *TRIANGLE).code == 130


def start(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "associative_transformer", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for(folder: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    for _ in range(600):
        if list(folder.glob(pattern)):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.kill()
    pytest.fail(f"no {pattern} after 30 seconds")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "code", "source"),
    [(signal.SIGINT, 130, "images from workers"), (signal.SIGTERM, 143, "triangle")],
    ids=["int", "term"],
)
def test_a_signal_to_all_processes_saves_the_run_and_resuming_completes_it(
    signum: int, code: int, source: str, tmp_path: Path
) -> None:
    flags = ["--train.epochs", "60"]
    if source == "triangle":
        arguments = ["train", *TRIANGLE, *flags]
    else:
        images = make_images(tmp_path / "images")
        flags = ["--train.epochs", "8", "--data.memory-budget", "0", "--data.num-workers", "1"]
        arguments = ["train", *IMAGES, *flags, "--data.source", str(images)]
    process = start(arguments, tmp_path)
    wait_for(tmp_path, "runs/*/0/checkpoint/previous", process)
    os.killpg(process.pid, signum)  # as a terminal does
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert out == ""
    assert "Traceback" not in err
    assert "saved; continue with python -m associative_transformer train" in err.splitlines()[-1]
    assert err.splitlines()[-1].endswith("--resume")
    (folder,) = tmp_path.glob("runs/*/0")
    assert not (folder / "result.json").exists()

    resumed = start([*arguments, "--resume"], tmp_path)
    out, err = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, err
    assert "test accuracy" in out
    epochs = [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").open()]
    assert epochs == list(range(1, int(flags[1]) + 1))


@pytest.mark.slow
def test_a_killed_run_resumes_and_ends_with_the_same_model(tmp_path: Path) -> None:
    arguments = ["train", *TRIANGLE, "--train.epochs", "25", "--train.checkpoint-every", "1"]
    process = start(arguments, tmp_path)
    wait_for(tmp_path, "runs/*/0/checkpoint/previous", process)
    process.kill()
    process.communicate(timeout=60)
    resumed = start([*arguments, "--resume"], tmp_path)
    _, err = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, err
    undisturbed = start([*arguments, "--runs", "undisturbed"], tmp_path)
    _, err = undisturbed.communicate(timeout=120)
    assert undisturbed.returncode == 0, err
    (killed,), (whole,) = tmp_path.glob("runs/*/0"), tmp_path.glob("undisturbed/*/0")
    name = "model.safetensors"
    assert (killed / name).read_bytes() == (whole / name).read_bytes()
