"""tests/drivers/kill.py in short: it runs, and it notices a run that has lost something."""

import subprocess
import sys
from pathlib import Path

import pytest

KILL = Path(__file__).parents[1] / "drivers" / "kill.py"

FORGETFUL = """
import sys
sys.path.insert(0, {tests!r})
from drivers import kill
from associative_transformer import train
restore = train.restore_checkpoint
def forget(folder, model, optimizer):
    saved = restore(folder, model, optimizer)
    {what}
    return saved
train.restore_checkpoint = forget
sys.argv = ["kill.py", "--kills", "2", "--real", "0", "--no-stops"]
sys.exit(kill.main())
"""


def run(*command: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, timeout=600
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_runs_killed_at_random_moments_lose_nothing() -> None:
    code, said = run(str(KILL), "--kills", "8", "--real", "1", "--no-stops")
    assert code == 0, said
    assert "8 kills (1 of processes started anew)" in said
    assert said.endswith("nothing was lost\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    "what",
    [
        "optimizer.state.clear()",
        "if saved: saved['sums'][0] += 1e-9",
        "model.blocks[0].workspace.reset()",
    ],
    ids=["moments", "sums", "memory"],
)
def test_the_driver_notices_a_run_that_loses(what: str) -> None:
    code, said = run("-c", FORGETFUL.format(tests=str(KILL.parent), what=what))
    assert code == 1, said
    assert "differs" in said
