"""Kill runs at random moments, resume them, and report anything that was lost.

    PYTHONPATH=tests python tests/drivers/kill.py --kills 100 --real 10 --seed 0

Each run is killed (SIGKILL) several times and resumed each time. At the end, its weights, memory,
moments, metrics and result must equal those of an undisturbed run, bit for bit, except for values
under `timing`. Most processes are forked from this one, which has imported everything, and call
the `main` of `ait`; `--real` of the kills hit processes started in the same way as by a user.
Finally, one run is stopped by SIGINT and one by SIGTERM.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import torch

from associative_transformer.cli import main as ait
from making.trained import outcome

NAME, EPOCHS = "killed", 8  # of 6 steps, each followed by a checkpoint
COMMAND = (
    f"train triangle-ait-tiny --name {NAME} --data.num-train 64 --data.num-test 20 "
    f"--data.val-fraction 0.25 --train.batch-size 8 --train.epochs {EPOCHS} "
    "--train.checkpoint-every 1 --train.device cpu --model.embed-dim 16 --model.depth 1 "
    "--model.num-heads 2 --model.head-dim 8 --model.workspace.num-priors 4 "
    "--model.workspace.prior-dim 8 --model.workspace.num-heads 2 --model.workspace.bottleneck 16 "
    "--model.workspace.dropout 0.1"
).split()
KILLS_PER_RUN = 8
TIMEOUT = 120.0  # seconds after which a process is assumed to hang
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


@dataclass
class Tally:
    """What was tried and what happened."""

    moments: Counter[str] = field(default_factory=Counter)  # what each kill interrupted
    real_kills: int = 0
    runs: int = 0
    lost: list[str] = field(default_factory=list)  # differences, by run
    stops: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return self.moments.total()


class Child:
    """A process of `ait` in its own folder, forked or started anew."""

    def __init__(self, root: Path, arguments: list[str], is_real: bool) -> None:
        self.log = root / "log"
        self.started = time.monotonic()
        if is_real:
            with self.log.open("w") as log:
                self.pid = subprocess.Popen(
                    [sys.executable, "-m", "associative_transformer", *arguments],
                    cwd=root,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                ).pid
        else:
            self.pid = os.fork()
            if self.pid == 0:
                self._run_ait(root, arguments)
        self.code: int | None = None  # negative: the signal that ended the process

    def _run_ait(self, root: Path, arguments: list[str]) -> None:
        code = 1
        try:
            os.chdir(root)
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.argv = ["ait", *arguments]
            code = ait()
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def is_over(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def wait(self) -> int:
        end = time.monotonic() + TIMEOUT
        while not self.is_over():
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                raise TimeoutError(f"{self.pid} hangs: {self.log.read_text()}")
            time.sleep(0.002)
        assert self.code is not None
        return self.code

    def watch(self, condition: Callable[[], bool], seconds: float = TIMEOUT) -> None:
        """Poll without a pause until the condition holds, the process ends or time is up."""
        end = time.monotonic() + seconds
        while not condition() and not self.is_over() and time.monotonic() < end:
            pass

    def halt_when(self, condition: Callable[[], bool], seconds: float) -> None:
        """Halt the process repeatedly until the condition holds while it is halted."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.is_over():
            os.kill(self.pid, signal.SIGSTOP)
            _, status = os.waitpid(self.pid, os.WUNTRACED)
            if not os.WIFSTOPPED(status):
                self.code = os.waitstatus_to_exitcode(status)
            elif condition():
                return
            else:
                os.kill(self.pid, signal.SIGCONT)

    def kill(self, signum: int = signal.SIGKILL) -> None:
        if not self.is_over():
            os.kill(self.pid, signum)


class Killer:
    """Kills runs and compares their outcome with that of an undisturbed one."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.random, self.tally = root, random.Random(seed), Tally()
        child = self._start("undisturbed", is_real=True)
        assert child.wait() == 0, child.log.read_text()
        started = time.monotonic()  # to measure how long a forked run takes
        child = self._start("forked", is_real=False)
        assert child.wait() == 0, child.log.read_text()
        self.seconds = time.monotonic() - started
        self._compare("forked")

    def kill_a_run(self, name: str, kills: int, is_real: bool) -> int:
        """Kill a run up to `kills` times, let it end, and return the number of kills."""
        num_killed = 0
        while True:
            child = self._start(name, is_real)
            if num_killed < kills:
                self._aim(child, self._folder(name), is_real)
                child.kill()
            code = child.wait()
            log = child.log.read_text()
            if "Traceback" in log or code not in (0, -signal.SIGKILL):
                self.tally.lost.append(f"{name}: exit code {code}: {log}")
                return num_killed
            if code == 0:
                self._compare(name)
                return num_killed
            self.tally.moments[self._moment(self._folder(name))] += 1
            num_killed += 1

    def stop_a_run(self, signum: signal.Signals) -> None:
        """Send a signal to a run in training, measure how long it takes to end, and resume it."""
        name = signum.name
        child = self._start(name, is_real=True)
        child.watch((self._folder(name) / "checkpoint" / "previous").exists)
        time.sleep(self.random.uniform(0, self.seconds / 4))
        started = time.monotonic()
        child.kill(signum)
        code = child.wait()
        seconds = time.monotonic() - started
        log = child.log.read_text()
        outcome = f"{name}: exit code {code} after {seconds:.2f} s"
        self.tally.stops.append(outcome)
        if code != EXIT_CODES[signum] or seconds > 10 or "saved; continue with" not in log:
            self.tally.lost.append(f"{outcome}: {log}")
        elif self._start(name, is_real=True).wait() == 0:
            self._compare(name)
        else:
            self.tally.lost.append(f"{name}: it cannot be resumed")

    def _start(self, name: str, is_real: bool) -> Child:
        root = self.root / name
        root.mkdir(exist_ok=True)
        has_begun = (self._folder(name) / "experiment.yaml").exists()
        return Child(root, [*COMMAND, *["--resume"] * has_begun], is_real)

    def _folder(self, name: str) -> Path:
        return self.root / name / "runs" / NAME / "0"

    def _aim(self, child: Child, folder: Path, is_real: bool) -> None:
        """Wait for the moment to kill: a random one, or one in which a file is written."""
        checkpoint = folder / "checkpoint"
        last, partial = checkpoint / "last", checkpoint / ".partial"
        others = [folder / f".{name}.partial" for name in ("metrics.jsonl", "memory.npz")]
        others += [folder / ".result.json.partial"]
        others += [checkpoint / "best" / ".model.safetensors.partial"]
        kind = self.random.choice(("start", "any", "writing", "writing", "renaming", "other"))
        if not checkpoint.exists() and self.random.random() < 0.5:
            kind = "start"
        if kind == "start":
            time.sleep(self.random.uniform(0, 10.0 if is_real else self.seconds / 2))
        elif kind == "any":
            child.watch(checkpoint.exists)
            time.sleep(self.random.uniform(0, self.seconds / 4))
        elif kind == "writing":
            for _ in range(self.random.randint(1, 6)):
                child.watch(lambda: not partial.exists())
                child.watch(partial.exists)
            end = time.monotonic() + self.random.uniform(0, 0.01)  # writing takes this long
            child.watch(lambda: time.monotonic() > end)
        elif kind == "renaming":
            child.watch((partial / "state.json").exists)
            child.halt_when(lambda: partial.exists() and not last.exists(), seconds=1.0)
        else:
            child.watch(lambda: any(path.exists() for path in others))

    def _moment(self, folder: Path) -> str:
        """Describe what a kill interrupted, judging by the files that it left."""
        checkpoint = folder / "checkpoint"
        if not (folder / "experiment.yaml").exists():
            return "before anything was written"
        if (folder / "result.json").exists():
            return "after the result"
        if (checkpoint / ".partial").exists():
            has_last, has_previous = (
                (checkpoint / name).exists() for name in ("last", "previous")
            )
            if has_previous and not has_last:
                return "writing a checkpoint, between its two renames"
            return "writing a checkpoint"
        if list(folder.rglob(".*.partial")):
            return "writing another file"
        if not (checkpoint / "last").exists():
            return "before the first checkpoint"
        return "between checkpoints"

    def _compare(self, name: str) -> None:
        self.tally.runs += 1
        ours, theirs = self._folder(name), self._folder("undisturbed")
        a, b = outcome(ours), outcome(theirs)
        self.tally.lost += [f"{name}: {key} differs" for key in a if a[key] != b[key]]
        files = [{p.relative_to(x) for p in x.rglob("*")} for x in (ours, theirs)]
        if files[0] != files[1]:
            self.tally.lost.append(f"{name}: different files: {files[0] ^ files[1]}")


def kill_runs(root: Path, kills: int, real_kills: int, seed: int, use_stops: bool) -> Tally:
    """Kill runs `kills` times in total; if `use_stops`, also stop one run with each signal."""
    killer = Killer(root, seed)
    tally = killer.tally
    while tally.kills < real_kills and not tally.lost:
        name, num_wanted = f"real {tally.runs}", min(KILLS_PER_RUN, real_kills - tally.kills)
        tally.real_kills += killer.kill_a_run(name, num_wanted, is_real=True)
    while tally.kills < kills and not tally.lost:
        num_wanted = min(KILLS_PER_RUN, kills - tally.kills)
        killer.kill_a_run(f"run {tally.runs}", num_wanted, is_real=False)
    for signum in EXIT_CODES if use_stops else ():
        killer.stop_a_run(signum)
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="number of kills")
    parser.add_argument("--real", type=int, default=10, help="kills of processes started anew")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stops", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    torch.set_num_threads(1)  # a fork would lose the other threads
    import_module("associative_transformer.cli.train")  # once, for all children
    root = Path(tempfile.mkdtemp())
    started, num_real = time.monotonic(), min(options.real, options.kills)
    try:
        tally = kill_runs(root, options.kills, num_real, options.seed, options.stops)
    finally:
        with suppress(OSError):
            shutil.rmtree(root)
    print(f"{tally.kills} kills ({tally.real_kills} of processes started anew)")
    for moment, count in tally.moments.most_common():
        print(f"  {count:3} {moment}")
    print(*tally.stops, sep="\n")
    print(f"{tally.runs} runs compared, in {time.monotonic() - started:.0f} s")
    print(*(tally.lost or ["nothing was lost"]), sep="\n")
    return 1 if tally.lost else 0


if __name__ == "__main__":
    sys.exit(main())
