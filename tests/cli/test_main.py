"""The command line as a whole: help, usage errors, and how a run is stopped and continued."""

import contextlib
import io
import json
import os
import re
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
from making.mistakes import make_mistakes

TRAIN = "associative_transformer.training.loop.train"


# --- help and usage ---


def test_help_lists_every_command_with_its_summary(ait: Ait) -> None:
    done = ait("--help")
    assert done.code == 0
    _, below = done.out.split("commands:\n")
    lines = [line.split(maxsplit=1) for line in below.splitlines() if line.startswith("  ")]
    assert lines == [list(command) for command in COMMANDS.items()]


def test_each_file_except_those_behind_commands_is_a_command() -> None:
    files = {path.stem for path in Path(cli.__file__).parent.glob("*.py")}
    assert files == {name.replace("-", "_") for name in COMMANDS} | {
        "__init__",
        "mistakes",
        "options",
        "self_test",
    }


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
    assert_refused(ait("tarin"), "'tarin': did you mean train?", *COMMANDS)
    assert_refused(ait(), "COMMAND", *COMMANDS)


# --- mistakes ---

MISTAKES = list(make_mistakes())
FRAME = re.compile(r"[─│╭╮╰╯]|-{9}|usage:|Traceback")


def test_every_bad_command_line_is_answered_by_one_sentence_that_names_the_option(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong: dict[str, str] = {}
    for line, named in MISTAKES:
        monkeypatch.setattr(sys, "argv", ["ait", *line.split()])
        try:
            code: object = cli.main()
        except SystemExit as stopped:
            code = stopped.code
        out, err = capfd.readouterr()
        is_sentence = err.startswith("ait: ") and len(err.splitlines()) == 1
        is_named = all(word in err for word in named)
        if code != 2 or out or not is_sentence or not is_named or FRAME.search(err):
            wrong[line] = f"{code}: {out}{err}"
    assert not wrong
    assert not list(tmp_path.iterdir())
    assert len({mistake.line for mistake in MISTAKES}) == len(MISTAKES) >= 187
    assert {mistake.line.partition(" ")[0] for mistake in MISTAKES} >= {*COMMANDS}
    docs = Path(__file__).parents[2] / "docs" / "explanation" / "reliability.md"
    row = f"| bad command lines of all commands | {len(MISTAKES)} |"
    assert row in docs.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "train triangle-ait-tiny --lr 1",
            "`ait train triangle-ait-tiny` has no option --lr: did you mean --train.lr? "
            "See `ait train triangle-ait-tiny --help`",
        ),
        (
            "train triangle-ait-tiny --train.detect-anomaly yes",
            "--train.detect-anomaly takes no value, not 'yes': pass --train.detect-anomaly or "
            "--train.no-detect-anomaly",
        ),
        (
            "train triangle-ait-tiny --model.workspace.num-heads 0 --model.num-heads 2",
            "--model.workspace.num-heads must be at least 1, not 0",
        ),
        (
            "train triangle-ait-tiny --name a/b",
            "--name must be a valid folder name, not 'a/b'",
        ),
        ("train triangle-ait-tiny --train.lr x", "--train.lr takes a number, not 'x'"),
        (
            "table classifcation",
            "TABLE must be classification, ablations or relational, not 'classifcation': "
            "did you mean classification?",
        ),
        (
            "train mine",
            "there is no recipe 'mine'; closest first: triangle-brims, triangle-vit-base, "
            "triangle-ait-base; `ait list` shows all recipes",
        ),
    ],
)
def test_the_sentence_about_a_mistake_says_what_to_do(line: str, sentence: str, ait: Ait) -> None:
    assert ait(*line.split()).err == f"ait: {sentence} "


def test_a_value_with_control_characters_is_shown_with_escapes(ait: Ait) -> None:
    done = ait("train", "triangle-ait-tiny", "--train.lr", "\x1b[31m\u202e")
    assert r"\x1b[31m\u202e" in done.err
    assert_refused(ait("tr\x1b[2Jain"), r"tr\x1b[2Jain")


def test_a_version_of_tyro_that_reports_no_events_gives_a_sentence_too(
    ait: Ait, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("tyro._errors.on_parse_error")
    for line, words in {
        "eval RUN --batch-size many": ("Error parsing --batch-size", "'many'"),
        "eval RUN --bacth-size 1": ("Unrecognized options: --bacth-size",),
        "table tables": ("invalid choice 'tables'",),
        "eval": ("Missing",),
    }.items():
        done = ait(*line.split())
        assert_refused(done, *words, "--help`")
        assert not FRAME.search(done.err)


# --- encodings ---


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8", "latin-1"])
def test_a_terminal_that_lacks_a_character_gets_an_escape(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["Café", "猫", "\udce9", "\ud800", "─"]  # a byte of a file name; half a character
    greet = ModuleType("greet")
    greet.run = lambda _: print(*names) or print(*names, file=sys.stderr)
    monkeypatch.setitem(sys.modules, "associative_transformer.cli.say_hello", greet)
    monkeypatch.setitem(COMMANDS, "say-hello", "greet somebody")
    monkeypatch.setattr(sys, "argv", ["ait", "say-hello"])
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert cli.main() == 0
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        shown = stream.buffer.getvalue()
        assert rb"\ud800" in shown
        if stream is sys.stdout:
            assert b" \xe9 " in shown  # the byte of the file name is exact
        assert "猫".encode(encoding, errors="backslashreplace") in shown
        assert "Café".encode(encoding, errors="backslashreplace") in shown


@pytest.mark.parametrize("arguments", [["list"], ["--help"], ["table", "relational"], ["show"]])
def test_a_command_prints_to_an_ascii_terminal(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ait", *arguments])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    with contextlib.suppress(SystemExit):
        assert cli.main() == 0
    sys.stdout.flush()
    assert sys.stdout.buffer.getvalue().isascii()


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
    [
        (signal.SIGINT, 130, "images from workers"),
        pytest.param(signal.SIGTERM, 143, "triangle", marks=pytest.mark.thorough),
    ],
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


@pytest.mark.thorough
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
