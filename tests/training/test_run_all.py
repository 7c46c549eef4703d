"""Training planned runs: one process per run, failures and signals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from associative_transformer.experiment import fingerprint
from associative_transformer.recipes import RECIPES
from associative_transformer.runs.plan import PlannedRun, plan_runs
from associative_transformer.training.loop import train
from associative_transformer.training.run_all import (
    FailedRun,
    announce_run,
    estimate_seconds,
    train_runs,
)
from associative_transformer.training.signals import Interrupted
from associative_transformer.workspace_config import WorkspaceConfig
from making.commands import Child
from making.plant import put_run, result_of

PYTHON = sys.executable
A, B, C = "triangle-vit-small", "triangle-ait-small", "triangle-luna-small"


# --- one process for each run, replaced by a small script ---


def plan(*names: str, seeds: tuple[int, ...] = (0,), root: Path) -> list[PlannedRun]:
    return plan_runs(names, "paper", seeds, root / "runs", {})


Announced = list[tuple[int, str]]  # position and title of each run


def train_and_record(runs: list[PlannedRun]) -> tuple[list[FailedRun], Announced]:
    announced: Announced = []
    failed = train_runs(runs, lambda position, run: announced.append((position, run.title)))
    return failed, announced


def test_runs_are_trained_one_after_another_and_announced_before_they_start(
    child: Child, tmp_path: Path
) -> None:
    log = child("")
    runs = plan(A, B, seeds=(0, 1), root=tmp_path)
    seen: list[tuple[int, str, int]] = []

    def on_start(position: int, run: PlannedRun) -> None:
        lines = log.read_text().splitlines() if log.exists() else []
        seen.append((position, run.title, len(lines)))

    assert train_runs(runs, on_start) == []
    assert seen == [
        (1, f"{A}, seed 0", 0),
        (2, f"{B}, seed 0", 1),
        (3, f"{A}, seed 1", 2),
        (4, f"{B}, seed 1", 3),
    ]
    assert log.read_text().splitlines() == [
        f"train {name}{seed} --runs {tmp_path}/runs"
        for seed in ("", " --train.seed 1")
        for name in (A, B)
    ]


def test_the_time_left_follows_from_complete_runs_of_the_experiment_or_of_all(
    tmp_path: Path,
) -> None:
    runs = plan(A, B, seeds=(0, 1), root=tmp_path)
    assert estimate_seconds(runs) is None
    assert announce_run(1, runs) == f"[1/4] {A}, seed 0"
    a, b = runs[0].experiment, runs[1].experiment
    timing = {"timing": {"seconds": 100.0, "samples_per_second": 5.0}}
    put_run(tmp_path / "runs", a, 0, result_of(a, **timing))
    per_epoch = 100 / a.train.epochs
    expected = 2 * per_epoch * b.train.epochs + 100  # both of B, and the other seed of A
    assert estimate_seconds(runs) == pytest.approx(expected)
    timing = {"timing": {"seconds": 7_000.0, "samples_per_second": 5.0}}
    put_run(tmp_path / "runs", b, 0, result_of(b, **timing))
    assert estimate_seconds(runs) == pytest.approx(7_100)
    assert announce_run(3, runs) == f"[3/4] {A}, seed 1, 1:58:20 left for all"


def test_complete_runs_are_skipped_and_unfinished_runs_are_resumed(
    child: Child, tmp_path: Path
) -> None:
    log = child("")
    runs = plan(A, B, C, root=tmp_path)
    put_run(tmp_path / "runs", runs[0].experiment, 0, result_of(runs[0].experiment))
    put_run(tmp_path / "runs", runs[1].experiment, 0)
    failed, announced = train_and_record(runs)
    assert failed == []
    assert announced == [(2, runs[1].title), (3, runs[2].title)]
    first, second = log.read_text().splitlines()
    assert first.startswith(f"train {B} ")
    assert first.endswith(" --resume")
    assert second.startswith(f"train {C} ")
    assert "--resume" not in second
    assert train_and_record(runs) == ([], [])


def test_a_run_that_fails_or_is_killed_does_not_affect_the_others_and_is_retried(
    child: Child, tmp_path: Path
) -> None:
    log = child(f"case $name in {A}) exit 3;; {B}) kill -9 $$;; esac")
    runs = plan(A, B, C, root=tmp_path)
    failed, announced = train_and_record(runs)
    assert failed == [FailedRun(runs[0], 3), FailedRun(runs[1], -9)]
    assert [str(run) for run in failed] == [
        f"{A}, seed 0 (exit code 3)",
        f"{B}, seed 0 (killed by signal 9)",
    ]
    assert [title for _, title in announced] == [run.title for run in runs]
    assert [run.is_complete for run in runs] == [False, False, True]
    child("")
    assert train_and_record(runs)[0] == []
    again = log.read_text().splitlines()[3:]
    assert [line.split()[1] for line in again] == [A, B]
    assert all(line.endswith("--resume") for line in again)


@contextmanager
def send_signals_once_created(path: Path, *signals: signal.Signals) -> Iterator[None]:
    """Send signals to this process as soon as a file exists."""

    def send() -> None:
        deadline = time.monotonic() + 20
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        for signum in signals:
            os.kill(os.getpid(), signum)
            time.sleep(0.2)

    thread = threading.Thread(target=send)
    thread.start()
    yield
    thread.join()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_once_and_training_stops_when_the_run_has_saved_itself(
    signum: signal.Signals, child: Child, tmp_path: Path
) -> None:
    received, saved = tmp_path / "received", tmp_path / "saved"
    log = child(
        f"trap 'echo {signum.name} >> {received}' {signum.name[3:]}\ntouch {tmp_path}/trap\n"
        f"while [ ! -s {received} ]; do sleep 0.02; done\nsleep 0.3\ntouch {saved}\nexit 130"
    )
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with (
        send_signals_once_created(tmp_path / "trap", signum),
        pytest.raises(Interrupted) as stopped,
    ):
        train_and_record(plan(A, B, root=tmp_path))
    assert stopped.value.signum == signum
    assert saved.exists()  # it was not killed before that
    assert received.read_text() == f"{signum.name}\n"
    assert len(log.read_text().splitlines()) == 1  # B was not started
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_second_interrupt_does_not_wait_for_the_run(child: Child, tmp_path: Path) -> None:
    child(
        f"trap '' INT\necho $$ > {tmp_path}/trap\nsleep 0.1\n"
        f"for i in $(seq 100); do sleep 0.05; touch {tmp_path}/alive; done"
    )
    with (
        send_signals_once_created(tmp_path / "trap", signal.SIGINT, signal.SIGINT),
        pytest.raises(KeyboardInterrupt),
    ):
        train_and_record(plan(A, B, root=tmp_path))
    (tmp_path / "alive").unlink(missing_ok=True)
    time.sleep(0.3)
    assert not (tmp_path / "alive").exists()


def test_a_run_gets_the_signals_of_a_terminal_only_from_its_parent(
    child: Child, tmp_path: Path
) -> None:
    log = tmp_path / "session"
    child(f"{PYTHON} -c 'import os; print(os.getsid(0))' > {log}")
    assert train_and_record(plan(A, root=tmp_path))[0] == []
    assert int(log.read_text()) != os.getsid(0)


# --- real processes ---


def tiny(root: Path, epochs: int) -> PlannedRun:
    """Return a run that takes a few seconds, as `plan_runs` would for a budget."""
    recipe = RECIPES["triangle-ait-tiny"]
    workspace = WorkspaceConfig(num_priors=4, prior_dim=8, num_heads=2, bottleneck=16)
    sizes = {"embed_dim": 16, "depth": 1, "num_heads": 2, "head_dim": 8}
    small = replace(
        recipe,
        data=replace(recipe.data, num_train=64, num_test=20),
        model=replace(recipe.model, **sizes, workspace=workspace),
        train=replace(recipe.train, epochs=epochs, batch_size=16),
    )
    small = replace(small, name=f"{recipe.name}+{fingerprint(small)}")
    return PlannedRun(recipe.name, small, root)


TRAIN_ALL = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from training.test_run_all import tiny
from associative_transformer.training.signals import Interrupted
from associative_transformer.training.run_all import train_runs
runs = [tiny(Path("runs"), 60)]
try:
    failed = train_runs(runs, lambda position, run: print(position, flush=True))
except Interrupted as stopped:
    sys.exit(100 + stopped.signum)
sys.exit(len(failed))
"""


@pytest.mark.slow
def test_when_stopped_the_current_run_saves_itself_and_a_second_call_completes_it(
    tmp_path: Path,
) -> None:
    code = TRAIN_ALL.format(tests=str(Path(__file__).parents[1]))

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    process = start()
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/*/0/checkpoint/previous")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)  # to its whole group, as a terminal does
    out, err = process.communicate(timeout=120)
    assert process.returncode == 100 + signal.SIGTERM, err
    assert out == "1\n"
    assert "Traceback" not in err
    assert "saved; continue with" in err  # printed by the run
    (folder,) = tmp_path.glob("runs/*/0")
    assert not (folder / "result.json").exists()
    before = len((folder / "metrics.jsonl").read_text().splitlines())
    assert before >= 1

    process = start()
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert out.startswith("1\n")
    epochs = [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").open()]
    assert epochs == list(range(1, 61))
    assert (folder / "result.json").exists()


@pytest.mark.slow
def test_a_run_is_written_to_its_planned_folder_and_fails_if_that_is_not_a_run_folder(
    tmp_path: Path,
) -> None:
    good, bad = tiny(tmp_path, 1), tiny(tmp_path, 2)
    bad.folder.mkdir(parents=True)
    (bad.folder / "notes").touch()
    failed = train_runs([bad, good], lambda position, run: None)
    assert failed == [FailedRun(bad, 2)]
    assert good.is_complete
    seconds = json.loads((good.folder / "result.json").read_text())["timing"]["seconds"]
    assert seconds > 0


@pytest.mark.slow
def test_a_damaged_result_is_named_and_restored_or_the_run_fails_with_a_remedy(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tiny(tmp_path, 1)
    train(run.experiment, run.folder)
    path = run.folder / "result.json"
    before = json.loads(path.read_text())
    path.write_text("{")
    assert train_runs([run], lambda position, run: None) == []
    assert {**json.loads(path.read_text()), "timing": 0} == {**before, "timing": 0}
    (line,) = [line for line in capfd.readouterr().err.splitlines() if str(path) in line]
    assert line.endswith("it is written again from the last checkpoint")

    path.write_text("{")
    shutil.rmtree(run.folder / "checkpoint")
    assert train_runs([run], lambda position, run: None) == [FailedRun(run, 2)]
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"ait: {path} is damaged")
    assert line.endswith("or train the run again with --overwrite")
    assert path.read_text() == "{"


FOLLOWER = """
import sys
from pathlib import Path
from associative_transformer.runs.plan import plan_runs
from associative_transformer.training import run_all
run_all.sys.executable = sys.argv[1]
run_all.train_runs(plan_runs(["triangle-ait-tiny"], "smoke", [0], Path("runs"), {}), print)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of this")
def test_a_run_is_stopped_if_the_process_that_started_it_is_killed(tmp_path: Path) -> None:
    script, started, stopped = (tmp_path / name for name in ("child", "started", "stopped"))
    script.write_text(
        f"#!/bin/sh\ntrap 'touch {stopped}; exit' TERM\ntouch {started}\n"
        "for i in $(seq 600); do sleep 0.1; done\n"
    )
    script.chmod(0o755)
    parent = subprocess.Popen([PYTHON, "-c", FOLLOWER, str(script)], cwd=tmp_path)
    try:
        wait_until(started.exists)
        assert not stopped.exists()
    finally:
        parent.kill()
    parent.wait()
    wait_until(stopped.exists)


def wait_until(is_done: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not is_done():
        assert time.monotonic() < end
        time.sleep(0.02)
