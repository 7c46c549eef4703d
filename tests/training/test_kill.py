"""A short run of tests/drivers/kill.py, which must also notice a run that loses something."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

FORGETFUL = """
import sys
from drivers import kill
from associative_transformer.training import loop
restore = loop.restore_checkpoint
def forget(folder, model, optimizer):
    saved = restore(folder, model, optimizer)
    {loss}
    return saved
loop.restore_checkpoint = forget
sys.argv = ["kill.py", "--kills", "2", "--real", "0", "--no-stops"]
sys.exit(kill.main())
"""


def run(*command: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_runs_killed_at_random_moments_lose_nothing() -> None:
    code, output = run(str(TESTS / "drivers/kill.py"), "--kills", "4", "--real", "1", "--no-stops")
    assert code == 0, output
    assert "4 kills (1 of processes started anew)" in output
    assert output.endswith("nothing was lost\n")


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize(
    "loss",
    [
        "optimizer.state.clear()",
        "if saved: saved['sums'][0] += 1e-9",
        "model.blocks[0].workspace.reset()",
    ],
    ids=["moments", "sums", "memory"],
)
def test_the_driver_notices_a_run_that_loses_something(loss: str) -> None:
    code, output = run("-c", FORGETFUL.format(loss=loss))
    assert code == 1, output
    assert "differs" in output
