"""Training many recipes: plan, one process each, what failures and signals do, the clock."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from associative_transformer import models
from associative_transformer.data import ImagesConfig, SortOfClevrConfig, TriangleConfig
from associative_transformer.experiment import Experiment, TrainConfig, fingerprint
from associative_transformer.models.dense import DenseConfig
from associative_transformer.models.vit import ViTConfig
from associative_transformer.recipes import RECIPES
from associative_transformer.recipes.budgets import shorten
from associative_transformer.tables import run_all as sweep
from associative_transformer.tables.run_all import (
    Clock,
    Failure,
    Job,
    estimate_work,
    plan,
    run_jobs,
)
from associative_transformer.training.signals import Interrupted
from associative_transformer.workspace import WorkspaceConfig
from making.commands import Child

VIT = ViTConfig(
    image_size=64,
    patch_size=16,
    num_channels=1,
    num_classes=2,
    embed_dim=24,
    depth=2,
    num_heads=2,
    head_dim=8,
    mlp_ratio=2.0,
)
PYTHON = sys.executable
TRIANGLES = TriangleConfig(num_train=40, num_test=30, channels=1)


def experiment(model: ViTConfig | DenseConfig = VIT, **train: int) -> Experiment:
    return Experiment("mine", TRIANGLES, model, TrainConfig(**train))


# --- the plan ---


def test_all_recipes_of_a_seed_come_before_the_next_seed() -> None:
    names = ["triangle-vit-small", "cifar10-luna-lra"]
    jobs = plan(names, "paper", [2, 0], Path("r"), {})
    assert [(job.recipe, job.experiment.train.seed) for job in jobs] == [
        ("triangle-vit-small", 2),
        ("cifar10-luna-lra", 2),
        ("triangle-vit-small", 0),
        ("cifar10-luna-lra", 0),
    ]
    assert jobs[1].folder == Path("r/cifar10-luna-lra/2")
    for job in jobs:
        recipe = RECIPES[job.recipe]
        train = replace(recipe.train, seed=job.experiment.train.seed)
        assert job.experiment == replace(recipe, train=train)
    assert jobs[3].title == "cifar10-luna-lra, seed 0"


@pytest.mark.parametrize("budget", ["short", "smoke"])
def test_a_budget_has_a_folder_of_its_own(budget: str) -> None:
    (job,) = plan(["triangle-vit-small"], budget, [1], Path("r"), {})
    shortened = shorten(RECIPES["triangle-vit-small"], budget)
    assert job.folder == Path("r") / shortened.name / "1"
    assert job.folder.parent.name != "triangle-vit-small"
    assert job.experiment == replace(shortened, train=replace(shortened.train, seed=1))


def test_a_local_copy_goes_to_the_sets_of_its_name() -> None:
    names = ["cifar10-ait-small", "cifar100-ait-small", "triangle-ait-small"]
    sources = {"cifar10": Path("copy")}
    jobs = plan(names, "paper", [0], Path("r"), sources)
    assert [job.source for job in jobs] == [Path("copy"), None, None]
    assert jobs[0].arguments[-2:] == ["--data.source", "copy"]
    assert "--data.source" not in jobs[1].arguments


@pytest.mark.parametrize(
    ("name", "budget", "flags"),
    [
        ("cifar10-ait-small", "paper", ""),
        ("cifar10-ait-small", "short", "--train.epochs 10 --train.schedule.warmup-epochs 1"),
        (
            "cifar10-brims-source",
            "smoke",
            "--data.limit 40 --train.batch-size 20 --train.epochs 1",
        ),
        (
            "sort-of-clevr-cnn-rn",
            "smoke",
            "--data.num-questions 1 --data.num-test 40 --data.num-train 40 "
            "--train.batch-size 20 --train.epochs 1",
        ),
        ("triangle-ait-tiny", "short", ""),
    ],
)
def test_a_job_is_a_command_with_the_overrides_of_its_budget(
    name: str, budget: str, flags: str
) -> None:
    (job,) = plan([name], budget, [3], Path("r"), {})
    seed_and_place = ["--train.seed", "3", "--runs", "r"]
    assert job.arguments == ["train", name, *flags.split(), *seed_and_place]


def test_what_was_begun_is_resumed_and_what_is_complete_is_complete(tmp_path: Path) -> None:
    (job,) = plan(["triangle-ait-tiny"], "paper", [0], tmp_path, {})
    job.folder.mkdir(parents=True)
    assert "--resume" not in job.arguments
    (job.folder / "experiment.yaml").touch()
    assert job.arguments[-1] == "--resume"
    assert not job.is_complete
    (job.folder / "result.json").touch()
    assert job.is_complete


# --- one process for each run, in its place a small script ---


def ready(*names: str, seeds: tuple[int, ...] = (0,), root: Path) -> list[Job]:
    return plan(names, "paper", seeds, root / "runs", {})


Told = list[tuple[int, str, float | None]]


def run_and_tell(jobs: list[Job]) -> tuple[list[Failure], Told]:
    told: Told = []
    failures = run_jobs(
        jobs, lambda number, job, left: told.append((number, job.title, left)), Clock()
    )
    return failures, told


A, B, C = "triangle-vit-small", "triangle-ait-small", "triangle-luna-small"


def test_runs_come_one_after_another_each_announced_before_it_starts(
    child: Child, tmp_path: Path
) -> None:
    log = child("")
    jobs = ready(A, B, seeds=(0, 1), root=tmp_path)
    seen: list[tuple[int, str, bool, int]] = []

    def tell(number: int, job: Job, left: float | None) -> None:
        lines = log.read_text().splitlines() if log.exists() else []
        seen.append((number, job.title, left is None, len(lines)))

    assert run_jobs(jobs, tell, Clock()) == []
    assert seen == [
        (1, f"{A}, seed 0", True, 0),
        (2, f"{B}, seed 0", False, 1),
        (3, f"{A}, seed 1", False, 2),
        (4, f"{B}, seed 1", False, 3),
    ]
    runs = f"--runs {tmp_path}/runs"
    assert log.read_text().splitlines() == [
        f"train {name} --train.seed {seed} {runs}" for seed in (0, 1) for name in (A, B)
    ]


def test_what_is_complete_is_left_alone_and_what_was_begun_goes_on(
    child: Child, tmp_path: Path
) -> None:
    log = child("")
    jobs = ready(A, B, C, root=tmp_path)
    for job, name in zip(jobs, ("result.json", "experiment.yaml"), strict=False):
        job.folder.mkdir(parents=True)
        (job.folder / name).touch()
    failures, told = run_and_tell(jobs)
    assert failures == []
    assert [number for number, _, _ in told] == [2, 3]
    assert [title for _, title, _ in told] == [jobs[1].title, jobs[2].title]
    first, second = log.read_text().splitlines()
    assert first.startswith(f"train {B} ")
    assert first.endswith(" --resume")
    assert second.startswith(f"train {C} ")
    assert "--resume" not in second
    assert run_and_tell(jobs) == ([], [])


def test_a_run_that_fails_or_is_killed_takes_no_other_with_it_and_is_tried_again(
    child: Child, tmp_path: Path
) -> None:
    log = child(f"case $name in {A}) exit 3;; {B}) kill -9 $$;; esac")
    jobs = ready(A, B, C, root=tmp_path)
    failures, told = run_and_tell(jobs)
    assert failures == [Failure(jobs[0], 3), Failure(jobs[1], -9)]
    assert [str(failure) for failure in failures] == [
        f"{A}, seed 0 (exit code 3)",
        f"{B}, seed 0 (killed by signal 9)",
    ]
    assert [title for _, title, _ in told] == [job.title for job in jobs]
    assert [left for _, _, left in told] == [None] * 3  # no run is done yet
    assert [job.is_complete for job in jobs] == [False, False, True]
    child("")
    assert run_and_tell(jobs)[0] == []
    again = log.read_text().splitlines()[3:]
    assert [line.split()[1] for line in again] == [A, B]
    assert all(line.endswith("--resume") for line in again)


@contextmanager
def asked_to_stop(path: Path, *signals: signal.Signals) -> Iterator[None]:
    """Send signals to this process once a file is there."""

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
def test_a_signal_is_passed_on_once_and_the_sweep_stops_when_the_run_has_saved_itself(
    signum: signal.Signals, child: Child, tmp_path: Path
) -> None:
    told, saved = tmp_path / "told", tmp_path / "saved"
    log = child(
        f"trap 'echo {signum.name} >> {told}' {signum.name[3:]}\ntouch {tmp_path}/trap\n"
        f"while [ ! -s {told} ]; do sleep 0.02; done\nsleep 0.3\ntouch {saved}\nexit 130"
    )
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with asked_to_stop(tmp_path / "trap", signum), pytest.raises(Interrupted) as stopped:
        run_and_tell(ready(A, B, root=tmp_path))
    assert stopped.value.signum == signum
    assert saved.exists()  # it was waited for
    assert told.read_text() == f"{signum.name}\n"
    assert len(log.read_text().splitlines()) == 1  # B was not begun
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_second_interrupt_does_not_wait_for_the_run(child: Child, tmp_path: Path) -> None:
    child(
        f"trap '' INT\necho $$ > {tmp_path}/trap\nsleep 0.1\n"
        f"for i in $(seq 100); do sleep 0.05; touch {tmp_path}/alive; done"
    )
    with (
        asked_to_stop(tmp_path / "trap", signal.SIGINT, signal.SIGINT),
        pytest.raises(KeyboardInterrupt),
    ):
        run_and_tell(ready(A, B, root=tmp_path))
    (tmp_path / "alive").unlink(missing_ok=True)
    time.sleep(0.3)
    assert not (tmp_path / "alive").exists()


def test_signals_to_the_terminal_reach_a_run_through_the_sweep_only(
    child: Child, tmp_path: Path
) -> None:
    log = tmp_path / "session"
    child(f"{PYTHON} -c 'import os; print(os.getsid(0))' > {log}")
    assert run_and_tell(ready(A, root=tmp_path))[0] == []
    assert int(log.read_text()) != os.getsid(0)


# --- work and time ---


def test_work_is_three_forward_passes_of_each_training_image_and_one_of_each_test_image() -> None:
    tokens, width, heads = 16, 24, 2 * 8
    embed = tokens * 16 * 16 * width
    attention = tokens * width * 3 * heads + 2 * tokens * tokens * heads + tokens * heads * width
    feed_forward = 2 * tokens * width * 48
    head = tokens * width * 2
    operations = 2 * (embed + 2 * (attention + feed_forward) + head)  # a product and a sum each
    assert estimate_work(experiment(epochs=5, batch_size=8)) == (3 * 5 * 40 + 30) * operations


@pytest.mark.parametrize(
    ("data", "images"),
    [
        (TriangleConfig(num_train=40, num_test=30, channels=1), (40, 30)),
        (SortOfClevrConfig(num_train=7, num_test=5, num_questions=3), (7 * 6, 5 * 6)),
        (SortOfClevrConfig(num_train=7, num_test=5, question_types=("binary",)), (70, 50)),
        (ImagesConfig("cifar10"), (50_000, 10_000)),
        (ImagesConfig("cifar100", limit=100), (100, 100)),
    ],
)
def test_work_counts_every_question_or_image(
    data: TriangleConfig | SortOfClevrConfig | ImagesConfig,
    images: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sweep, "count_operations", lambda model: 1)
    size = {"triangle": 64, "sort-of-clevr": 75, "images": 32}[data.kind]
    model = replace(
        VIT,
        image_size=size,
        patch_size=1,
        num_channels=getattr(data, "channels", 3),
        question_dim=18 if data.kind == "sort-of-clevr" else 0,
        num_classes=10,
    )
    one = Experiment("mine", data, model, TrainConfig(epochs=2))
    assert estimate_work(one) == 3 * 2 * images[0] + images[1]


def test_the_operations_of_a_model_are_counted_once_for_all_its_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built = []

    def build(model: ViTConfig) -> models.PretrainedModel:
        built.append(model)
        return models._CLASSES[type(model)](model)

    monkeypatch.setattr(models, "build_model", build)
    model = replace(VIT, embed_dim=26)
    works = {estimate_work(experiment(model, epochs=2, seed=seed)) for seed in range(3)}
    assert len(works) == 1
    assert built == [model]


def job_of(work: int, kind: str = "vit", recipe: str = A) -> Job:
    """Make a job whose work is told by `counted`."""
    sizes = {"image_size": 64, "num_channels": 1, "num_classes": 2, "patch_size": 16}
    model = (
        ViTConfig(**sizes, embed_dim=work)
        if kind == "vit"
        else DenseConfig(**sizes, embed_dim=work, question_dim=0)
    )
    return Job(recipe, experiment(model), Path("nowhere"), Path("runs"))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the work of a job be the width of its model."""
    monkeypatch.setattr(sweep, "estimate_work", lambda experiment: experiment.model.embed_dim)


@pytest.mark.usefixtures("counted")
def test_no_time_is_guessed_before_a_run_is_done() -> None:
    assert Clock().seconds([job_of(10)]) is None
    assert Clock().seconds([]) is None


@pytest.mark.usefixtures("counted")
def test_the_first_run_stands_for_all_others() -> None:
    clock = Clock()
    clock.add(job_of(10), 20.0)
    assert clock.seconds([job_of(10), job_of(30)]) == 40.0
    assert clock.seconds([]) == 0.0


@pytest.mark.usefixtures("counted")
def test_a_run_takes_a_start_and_a_time_for_its_work_which_differs_between_kinds() -> None:
    clock = Clock()
    clock.add(job_of(10), 5.0)  # the shortest: how long a start takes
    clock.add(job_of(90), 25.0)  # (0 + 20) s for a work of 100
    clock.add(job_of(10, "dense"), 9.0)  # 4 s for one of 10
    assert clock.seconds([job_of(50)]) == pytest.approx(5 + 0.2 * 50)
    assert clock.seconds([job_of(50, "dense")]) == pytest.approx(5 + 0.4 * 50)
    both = clock.seconds([job_of(50), job_of(50, "dense")])
    assert both == pytest.approx(15 + 25)


@pytest.mark.usefixtures("counted")
def test_a_kind_that_was_not_seen_yet_is_guessed_from_all_others() -> None:
    clock = Clock()
    clock.add(job_of(10), 5.0)
    clock.add(job_of(90), 25.0)
    assert clock.seconds([job_of(50, "dense")]) == pytest.approx(5 + 0.2 * 50)


def test_the_time_left_is_that_of_this_run_and_of_all_that_are_not_complete(
    child: Child, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child("")
    passed = iter([0.0, 8.0, 10.0, 13.0, 20.0, 30.0])  # runs take 8, 3 and 10 seconds
    monkeypatch.setattr(sweep.time, "monotonic", lambda: next(passed))
    monkeypatch.setattr(sweep, "estimate_work", lambda experiment: 1)
    jobs = ready(A, B, C, "triangle-vit-base", root=tmp_path)
    jobs[2].folder.mkdir(parents=True)
    (jobs[2].folder / "result.json").touch()
    _, told = run_and_tell(jobs)
    assert [number for number, _, _ in told] == [1, 2, 4]
    # start 8 s for each of two; then start 3 s and, of the same kind, 5 s more
    assert [left for _, _, left in told] == [None, 16.0, 8.0]


def test_a_run_that_failed_is_no_longer_part_of_the_time_left(
    child: Child, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child(f"[ $name != {B} ] || exit 1")
    passed = iter([0.0, 8.0, 10.0, 11.0, 12.0])
    monkeypatch.setattr(sweep.time, "monotonic", lambda: next(passed))
    failures, told = run_and_tell(ready(A, B, C, root=tmp_path))
    assert len(failures) == 1
    assert [left for _, _, left in told] == [None, 16.0, 8.0]


# --- real processes ---


def tiny(root: Path, epochs: int) -> Job:
    """Make a job of a few seconds, as `plan` would if there were such a budget."""
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
    return Job(recipe.name, small, root / small.name / "0", root)


SWEEP = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from tables.test_run_all import tiny
from associative_transformer.training.signals import Interrupted
from associative_transformer.tables.run_all import Clock, run_jobs
jobs = [tiny(Path("runs"), 60)]
try:
    failures = run_jobs(jobs, lambda number, job, left: print(number, flush=True), Clock())
except Interrupted as stopped:
    sys.exit(100 + stopped.signum)
sys.exit(len(failures))
"""


@pytest.mark.slow
def test_a_stopped_sweep_saves_the_run_under_way_and_the_same_sweep_completes_it(
    tmp_path: Path,
) -> None:
    code = SWEEP.format(tests=str(Path(__file__).parents[1]))

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
    os.killpg(process.pid, signal.SIGTERM)  # as a terminal does
    out, err = process.communicate(timeout=120)
    assert process.returncode == 100 + signal.SIGTERM, err
    assert out == "1\n"
    assert "Traceback" not in err
    assert "saved; go on with" in err  # said by the run
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
def test_a_run_goes_to_the_folder_where_the_sweep_looks_for_it_and_one_that_cannot_is_named(
    tmp_path: Path,
) -> None:
    good, bad = tiny(tmp_path, 1), tiny(tmp_path, 2)
    bad.folder.mkdir(parents=True)
    (bad.folder / "notes").touch()
    failures = run_jobs([bad, good], lambda number, job, left: None, Clock())
    assert failures == [Failure(bad, 2)]
    assert good.is_complete
    seconds = json.loads((good.folder / "result.json").read_text())["timing"]["seconds"]
    assert seconds > 0
