"""`ait train` under torchrun or accelerate: any number of processes train the same run as one."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
LAUNCHED = str(Path(__file__).parents[1] / "drivers" / "launched.py")
RUN = [
    *("train", "triangle-ait-tiny", "--train.epochs", "2", "--train.batch-size", "24"),
    *("--data.num-train", "400", "--data.num-test", "103", "--data.val-fraction", "0.1"),
    *("--train.device", "cpu", "--train.log-every", "2", "--train.checkpoint-every", "4"),
    *("--train.precision", "float32"),  # so that differences by rounding are small
]
TIMEOUT = 150  # seconds; a launcher gives its workers 30 to end


@contextmanager
def started(*command: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Start a launcher, and kill it and its workers if they are still alive at the end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment}
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [str(BIN / command[0]), *command[1:]], env=environment, stdout=pipe, stderr=pipe, text=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            for worker in children(process.pid):
                os.kill(worker, signal.SIGKILL)
            process.kill()


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=TIMEOUT)
    return process.returncode, out, err


def children(process: int) -> list[int]:
    return [
        int(child)
        for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()
    ]


def environment_of(process: int) -> list[str]:
    return Path(f"/proc/{process}/environ").read_text().split("\0")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def torchrun(ranks: int, *options: str) -> list[str]:
    return [
        "torchrun",
        "--nproc-per-node",
        str(ranks),
        "--master-port",
        str(free_port()),
        *options,
    ]


def node_command(port: int) -> list[str]:
    """Return the command that starts each of two nodes, with one worker per node."""
    command = ["torchrun", "--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "1"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}"]
    return [*command, "--rdzv-id", "two", LAUNCHED, *RUN, "--resume"]


def folder_in(runs: Path) -> Path:
    (folder,) = runs.glob("*/0")
    return folder


def wait_for_checkpoint(runs: Path, *launchers: subprocess.Popen[str]) -> None:
    """Wait until a run has saved a checkpoint within an epoch."""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        for path in runs.glob("*/0/checkpoint/last/state.json"):
            if json.loads(path.read_text())["step"] > 0:
                return
        for launcher in launchers:
            assert launcher.poll() is None, launcher.communicate()[1]
        time.sleep(0.02)
    raise TimeoutError(f"no checkpoint in {runs}")


def wait_for_listener(port: int) -> None:
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        with socket.socket() as caller:
            if caller.connect_ex(("localhost", port)) == 0:
                return
        time.sleep(0.02)
    raise TimeoutError(f"no process listens on port {port}")


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that was trained in one process."""
    runs = tmp_path_factory.mktemp("single")
    with started("ait", *RUN, "--runs", str(runs)) as process:
        code, _, err = finish(process)
    assert code == 0, err
    return folder_in(runs)


def assert_same_run(ours: Path, theirs: Path) -> None:
    for mine, other in zip(read_metrics(ours), read_metrics(theirs), strict=True):
        assert mine.keys() == other.keys()
        layers = zip(mine.pop("health"), other.pop("health"), strict=True)
        for one, two in [*layers, (mine, other)]:
            for name, value in two.items():
                assert one[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
    with np.load(ours / "memory.npz") as mine, np.load(theirs / "memory.npz") as other:
        np.testing.assert_allclose(mine["priors"], other["priors"], rtol=1e-4, atol=1e-5)
    for file in ("model.safetensors", "checkpoint/last/model.safetensors"):
        mine, other = load_file(ours / file), load_file(theirs / file)
        assert mine.keys() == other.keys()
        for name, weight in other.items():
            torch.testing.assert_close(mine[name], weight, rtol=1e-4, atol=1e-5, msg=name)
    mine, other = (json.loads((x / "result.json").read_text()) for x in (ours, theirs))
    assert mine["test_images"] == 103
    assert mine["test_accuracy"] == other["test_accuracy"]
    assert {path.name for path in ours.iterdir()} == {path.name for path in theirs.iterdir()}


def read_metrics(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {
            **{name: x for name, x in row.items() if name not in ("timing", "validation")},
            **row["validation"],
        }
        for row in rows
    ]


def test_three_processes_train_the_same_run_as_one_and_only_one_prints(
    single: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    command = torchrun(3, "-m", "associative_transformer", *RUN, "--runs", str(runs))
    with started(*command) as launcher:
        code, out, err = finish(launcher)
    assert code == 0, err
    assert_same_run(folder_in(runs), single)
    assert out.count("test accuracy") == out.count("next ") == 1
    assert err.count("epoch 1/2") == err.count("epoch 2/2") == 1


@pytest.mark.thorough
def test_three_processes_share_the_images_of_an_evaluation(single: Path, tmp_path: Path) -> None:
    commands = ["ait"], torchrun(3, LAUNCHED)
    outputs, losses, files = [], [], []
    for command in commands:
        folder = tmp_path / command[0]
        shutil.copytree(single, folder)
        with started(*command, "eval", str(folder), "--batch-size", "10") as process:
            code, out, err = finish(process)
        assert code == 0, err
        assert err.count("shared by 3") == (3 if command[0] == "torchrun" else 0)
        outputs.append(out.replace(str(folder), "RUN"))
        scores = json.loads((folder / "evaluation.json").read_text())
        losses.append(scores.pop("loss"))
        files.append((scores, (folder / "confusion.csv").read_text()))
    assert outputs[0] == outputs[1]
    assert "of all 103 test images" in outputs[0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert files[0] == files[1]


@pytest.mark.thorough
def test_a_stopped_run_can_be_resumed_with_a_different_number_of_processes(
    single: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    command = [*torchrun(2), LAUNCHED, *RUN, "--runs", str(runs)]
    with started(*command, SECONDS_PER_STEP="0.1") as launcher:
        wait_for_checkpoint(runs, launcher)
        launcher.send_signal(signal.SIGTERM)
        code, _, err = finish(launcher)
    assert code != 0
    assert err.count("stopped by SIGTERM and saved") == 1
    assert not (folder_in(runs) / "result.json").exists()
    command = ["accelerate", "launch", "--multi_gpu", "--num_processes", "3"]
    command += ["--main_process_port", str(free_port()), "-m", "associative_transformer"]
    with started(*command, *RUN, "--runs", str(runs), "--resume") as launcher:
        code, out, err = finish(launcher)
    assert code == 0, err
    assert out.count("test accuracy") == 1
    assert_same_run(folder_in(runs), single)


def test_if_one_rank_fails_the_others_end_and_its_message_is_shown(tmp_path: Path) -> None:
    started_at = time.monotonic()
    command = [*torchrun(2), LAUNCHED, *RUN, "--runs", str(tmp_path / "runs")]
    with started(*command, FAILING_RANK="1") as launcher:
        code, _, err = finish(launcher)
    assert code != 0
    assert "RuntimeError: rank 1 fails on purpose" in err
    assert time.monotonic() - started_at < 60


@pytest.mark.thorough
def test_two_launchers_joined_as_two_nodes_train_one_run(single: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    command = [*node_command(free_port()), "--runs", str(runs)]
    with started(*command) as first, started(*command) as second:
        codes, outputs, errors = zip(*map(finish, (first, second)), strict=True)
    assert codes == (0, 0), "".join(errors)
    assert "".join(outputs).count("test accuracy") == 1
    assert_same_run(folder_in(runs), single)


@pytest.mark.thorough
def test_nodes_with_different_options_are_refused_on_both_with_the_field_and_its_values(
    tmp_path: Path,
) -> None:
    runs, port = tmp_path / "runs", free_port()
    command = [*node_command(port), "--runs", str(runs), "--train.lr"]
    command[command.index("--max-restarts") + 1] = "0"
    started_at = time.monotonic()
    with started(*command, "1e-3") as first, started(*command, "1e-2") as second:
        codes, _, errors = zip(*map(finish, (first, second)), strict=True)
    assert 0 not in codes
    sentence = r"differ in .*--train\.lr \((0\.001 and 0\.01|0\.01 and 0\.001)\)"
    for error in errors:
        assert re.search(sentence, error), error
        assert "UserError" not in error
    assert not runs.exists()
    assert time.monotonic() - started_at < 100


@pytest.mark.thorough
def test_a_node_with_a_gpu_and_one_without_are_refused_on_both(tmp_path: Path) -> None:
    runs, port = tmp_path / "runs", free_port()
    command = [*node_command(port), "--runs", str(runs)]
    command[command.index("--max-restarts") + 1] = "0"
    command += ["--train.device", "auto"]
    started_at = time.monotonic()
    with started(*command, HAS_GPU="1") as first, started(*command) as second:
        codes, _, errors = zip(*map(finish, (first, second)), strict=True)
    assert 0 not in codes
    for error in errors:
        assert re.search(r"use different devices \((cuda and cpu|cpu and cuda)\)", error), error
        assert "UserError" not in error
    assert not runs.exists()
    assert time.monotonic() - started_at < 60


def of_a_group(rank: int, port: int) -> dict[str, str]:
    """Return the variables that a launcher without its own store sets for one of two ranks."""
    numbers = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_PORT": port}
    return {"MASTER_ADDR": "localhost", **{name: str(x) for name, x in numbers.items()}}


@pytest.mark.parametrize(("command", "gpu"), [("train", 0), ("eval", 1)])
def test_processes_with_different_devices_are_named_on_both(
    command: str, gpu: int, tmp_path: Path
) -> None:
    words = [*RUN, "--train.device", "auto"]
    arguments = words if command == "train" else ["eval", str(tmp_path / "run")]
    port, devices = free_port(), {gpu: "cuda", 1 - gpu: "cpu"}
    variables = [of_a_group(rank, port) for rank in range(2)]
    variables[gpu]["HAS_GPU"] = "1"
    line = ["python", LAUNCHED, *arguments]
    with started(*line, **variables[0]) as first, started(*line, **variables[1]) as second:
        outcomes = [finish(first), finish(second)]
    host = socket.gethostname()
    for code, _, error in outcomes:
        assert code == 2, error
        assert (
            f"ait: process 0 on {host} and process 1 on {host} use different devices "
            f"({devices[0]} and {devices[1]}): choose the same device" in error
        )
        assert "Traceback" not in error


@pytest.mark.parametrize(
    ("command", "rank"), [("train", 0), pytest.param("eval", 1, marks=pytest.mark.thorough)]
)
def test_a_process_that_never_finds_the_other_ends_within_its_timeout(
    command: str, rank: int, tmp_path: Path
) -> None:
    arguments = RUN if command == "train" else ["eval", str(tmp_path), "--device", "cpu"]
    variables = {**of_a_group(rank, free_port()), "SECONDS_TO_JOIN": "2"}
    with started("python", LAUNCHED, *arguments, **variables) as process:
        code, _, error = finish(process)
    assert code == 2, error
    address = f"{variables['MASTER_ADDR']}:{variables['MASTER_PORT']}"
    assert f"ait: process {rank} of 2 could not join the others at {address} (" in error
    assert "Traceback" not in error


@pytest.mark.thorough
def test_processes_started_by_mpi_are_not_joined(single: Path, tmp_path: Path) -> None:
    results = []
    for rank in range(2):
        variables = {"PMI_SIZE": "2", "PMI_RANK": str(rank), "MPI_LOCALNRANKS": "2"}
        variables |= {"MPI_LOCALRANKID": str(rank), "MASTER_ADDR": "localhost"}
        runs = tmp_path / str(rank)
        with started("ait", *RUN, "--runs", str(runs), **variables) as process:
            results.append(finish(process))
        assert_same_run(folder_in(runs), single)
    for code, out, err in results:
        assert code == 0, err
        assert out.count("test accuracy") == 1
        assert err.count("PMI_SIZE=2 has no effect on this run: use torchrun") == 1


def test_a_lost_worker_is_replaced_and_the_run_continues_from_its_last_checkpoint(
    single: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    command = [
        *torchrun(2, "--max-restarts", "1"),
        LAUNCHED,
        *RUN,
        "--runs",
        str(runs),
        "--resume",
    ]
    with started(*command, SECONDS_PER_STEP="0.1") as launcher:
        wait_for_checkpoint(runs, launcher)
        lost = children(launcher.pid)[1]
        os.kill(lost, signal.SIGKILL)
        code, out, errors = finish(launcher)
    assert code == 0, errors
    assert str(lost) in errors  # it was a worker, not a helper of the launcher
    assert out.count("test accuracy") == 1
    assert_same_run(folder_in(runs), single)


@pytest.mark.thorough
@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_lost_on_one_of_two_nodes_is_replaced(
    single: Path, tmp_path: Path, rank: int
) -> None:
    runs = tmp_path / "runs"
    command, slow = (
        [*node_command(free_port()), "--runs", str(runs)],
        {"SECONDS_PER_STEP": "0.1"},
    )
    with started(*command, **slow) as first, started(*command, **slow) as second:
        wait_for_checkpoint(runs, first, second)
        workers = [*children(first.pid), *children(second.pid)]
        (lost,) = (worker for worker in workers if f"RANK={rank}" in environment_of(worker))
        os.kill(lost, signal.SIGKILL)
        codes, outputs, errors = zip(*map(finish, (first, second)), strict=True)
    assert codes == (0, 0), "".join(errors)
    assert str(lost) in "".join(errors)
    assert "".join(outputs).count("test accuracy") == 1
    assert_same_run(folder_in(runs), single)


@pytest.mark.thorough
def test_a_lost_node_is_replaced_by_another_launcher(single: Path, tmp_path: Path) -> None:
    runs, port = tmp_path / "runs", free_port()
    command = [*node_command(port), "--runs", str(runs)]
    # otherwise torch's launcher does not give the address of a store to a new launcher
    slow = {"SECONDS_PER_STEP": "0.1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with started(*command, **slow) as first:
        wait_for_listener(port)  # where the launchers meet
        with started(*command, **slow) as second:
            wait_for_checkpoint(runs, first, second)
            (worker,) = children(second.pid)
            second.kill()
            os.kill(worker, signal.SIGKILL)
        with started(*command, **slow) as third:
            codes, outputs, errors = zip(*map(finish, (first, third)), strict=True)
    assert codes == (0, 0), "".join(errors)
    assert "".join(outputs).count("test accuracy") == 1
    assert_same_run(folder_in(runs), single)
