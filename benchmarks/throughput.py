"""Compare the images per second of two versions of the package, end to end.

    python benchmarks/throughput.py train cifar10-ait-192 cifar10-vit-192 --source PATH/TO/cifar10

compares the working tree with `--baseline COMMIT`, which is checked out in a temporary folder. The
two take turns, each measurement runs in a new process, and both are timed by the same code:

- `train` runs `ait train` until `--seconds` have passed since the end of the first step. The time
  from then to the end of the last step counts. It includes loading batches and saving checkpoints,
  but not compilation before the first step or the scoring of validation images.
- `eval` runs `ait eval` on `--images` test images and times the scoring. Images that fit in memory
  are decoded before that.
- `predict` runs `ait predict` on a folder of `--images` JPEG files of about 512x384 pixels, each a
  mosaic of test images. An untimed first call with one file warms everything up. For comparison,
  two processes read, decode, resize and crop the same files with torchvision.

Arguments after `--` are passed to `ait train`, for example `-- --train.batch-size 64`.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from torch.optim.optimizer import register_optimizer_step_post_hook

ROOT = Path(__file__).resolve().parents[1]
CHANGES = {"cifar10-ait-192": "cifar10-ait-small", "cifar10-vit-192": "cifar10-vit-small"}
# recipes that the default baseline does not have, and the recipes that they modify
PICTURE = (384, 512)  # largest height and width of a JPEG file, which holds whole test images


# The code up to `run_task` runs in the process of one measurement, with either version of the
# package, and uses only what both have.
def run_ait(*arguments: object) -> None:
    """Run a command of `ait` in this process."""
    from associative_transformer.cli import main

    sys.argv = ["ait", *map(str, arguments)]
    if code := main():
        raise SystemExit(code)


def time_scoring() -> dict[str, float]:
    """Replace `evaluate_split`; return the images and seconds of all calls, updated by each."""
    from associative_transformer import evaluate

    done, score = {"images": 0.0, "seconds": 0.0}, evaluate.evaluate_split

    def timed(model: Any, split: Any, *others: Any, **named: Any) -> Any:  # noqa: ANN401
        start = time.perf_counter()
        result = score(model, split, *others, **named)
        done["seconds"] += time.perf_counter() - start
        done["images"] += len(split)
        return result

    evaluate.evaluate_split = timed
    return done


class _EnoughSteps(BaseException):
    """Ends training when it has run long enough."""


def measure_training(arguments: list[str], seconds: float) -> float:
    """Train until `seconds` have passed since the end of the first step."""
    scoring, ends = time_scoring(), []

    def stamp(*_: object) -> None:
        is_over = bool(ends) and time.perf_counter() - ends[0] - scoring["seconds"] >= seconds
        if torch.cuda.is_initialized() and (is_over or not ends):
            torch.cuda.synchronize()
        ends.append(time.perf_counter())
        if is_over:
            raise _EnoughSteps

    register_optimizer_step_post_hook(stamp)
    with tempfile.TemporaryDirectory() as runs:
        try:
            run_ait("train", *arguments, "--runs", runs)
        except _EnoughSteps:
            (saved,) = Path(runs).glob("*/*/experiment.yaml")
            batch_size = yaml.safe_load(saved.read_text())["train"]["batch_size"]
            return batch_size * (len(ends) - 1) / (ends[-1] - ends[0] - scoring["seconds"])
    raise SystemExit(f"training ended within {seconds} s: pass a lower --seconds")


def measure_scoring(run: str) -> float:
    """Score the test images of a run."""
    scoring = time_scoring()
    run_ait("eval", run)
    return scoring["images"] / scoring["seconds"]


def measure_prediction(run: str, pictures: str) -> float:
    """Classify a folder of image files, after an untimed call with one of them."""
    files, output = sorted(Path(pictures).iterdir()), Path(run) / "predictions.csv"
    run_ait("predict", run, files[0], "--output", output)
    start = time.perf_counter()
    run_ait("predict", run, pictures, "--output", output)
    return len(files) / (time.perf_counter() - start)


def measure_torchvision(pictures: str, side: int) -> float:
    """Prepare image files for a model in two processes, each of which takes every other file."""
    files = sorted(Path(pictures).iterdir())
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        halves = [(files[i::2], side) for i in range(2)]
        return len(files) / max(pool.starmap(prepare_files, halves, chunksize=1))


def prepare_files(files: list[Path], side: int) -> float:
    """Read, decode, resize and crop files; return the seconds."""
    from torchvision.io import decode_image
    from torchvision.transforms.v2 import InterpolationMode, functional

    torch.set_num_threads(1)
    start = time.perf_counter()
    for file in files:
        image = decode_image(str(file), mode="RGB")
        image = functional.resize(image, [side], InterpolationMode.BICUBIC, antialias=True)
        functional.center_crop(image, [side, side])
    return time.perf_counter() - start


TASKS: dict[str, Callable[..., float | None]] = {  # they return images per second
    "prepare": run_ait,
    "train": measure_training,
    "eval": measure_scoring,
    "predict": measure_prediction,
    "torchvision": measure_torchvision,
}


def run_task(task: dict[str, Any]) -> None:
    """Run a task and write the images per second that it measured."""
    rate = TASKS[task["name"]](*task["values"])
    package = sys.modules.get("associative_transformer")
    if package and Path(task["source"]) not in Path(package.__file__).parents:
        raise SystemExit(f"imported {package.__file__}, which is not in {task['source']}")
    Path(task["output"]).write_text(json.dumps(rate))


def measure(source: Path, name: str, *values: object) -> float:
    """Run a task in a new process that imports the package from `source`."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "rate.json"
        task = {"name": name, "values": values, "source": source, "output": output}
        done = subprocess.run(
            [sys.executable, __file__, "--task", json.dumps(task, default=str)],
            env=os.environ | {"PYTHONPATH": str(source)},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{name} failed with the package in {source}:\n{done.stderr[-2000:]}")
        return json.loads(output.read_text())


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """Check out a commit in a temporary folder and yield the folder of its package."""
    git = ["git", "-C", str(ROOT), "worktree"]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "baseline"
        subprocess.run([*git, "add", "--quiet", "--detach", tree, commit], check=True)
        try:
            yield tree / "src"
        finally:
            subprocess.run([*git, "remove", "--force", tree], check=True)


def write_recipe(name: str, options: argparse.Namespace) -> list[str]:
    """Return the arguments of `ait train` for a recipe, in a form that both versions accept."""
    from associative_transformer.recipes import RECIPES
    from associative_transformer.recipes.commands import train_arguments

    _, *arguments = train_arguments(RECIPES[name], RECIPES[CHANGES.get(name, name)])
    source = [] if options.source is None else ["--data.source", options.source]
    return [*arguments, *source, *options.passed]


def write_pictures(name: str, options: argparse.Namespace, folder: Path) -> int:
    """Write JPEG files made of test images; return the image size of the recipe."""
    from einops import rearrange
    from torchvision.io import write_jpeg

    from associative_transformer.recipes import RECIPES

    data = RECIPES[name].data.with_storage(options.source)
    test = data.load_test(torch.device("cpu")).test
    images = torch.cat([chunk.images for chunk in test.loader.decode(test.rows[:1000])])
    rows, columns = (max(1, side // images.shape[-1]) for side in PICTURE)
    folder.mkdir()
    for i in range(options.images):
        tiles = images[torch.randint(len(images), (rows, columns))]
        picture = rearrange(tiles, "r q c h w -> c (r h) (q w)")
        write_jpeg(picture, str(folder / f"{i:06}.jpg"), quality=90)
    return images.shape[-1]


def prepare_run(source: Path, folder: Path, recipe: list[str], num_images: int) -> Path:
    """Train a recipe on ten images; return its run, changed to have `num_images` test images."""
    few = ["--data.limit", 10, "--train.batch-size", 10, "--train.epochs", 1]
    measure(source, "prepare", "train", *recipe, *few, "--runs", folder)
    (saved,) = folder.glob("*/*/experiment.yaml")
    experiment = yaml.safe_load(saved.read_text())
    experiment["data"]["limit"] = num_images
    saved.write_text(yaml.safe_dump(experiment))
    return saved.parent


def plan(
    name: str, sources: dict[str, Path], options: argparse.Namespace, folder: Path
) -> dict[str, Callable[[], float]]:
    """Return the measurements of a recipe, by version."""
    recipe, tasks = write_recipe(name, options), {}
    pictures = folder / "pictures"
    for version, source in sources.items():
        if options.what == "train":
            tasks[version] = partial(measure, source, "train", recipe, options.seconds)
        else:
            run = prepare_run(source, folder / version, recipe, options.images)
            files = [pictures] if options.what == "predict" else []
            tasks[version] = partial(measure, source, options.what, run, *files)
    if options.what == "predict":
        side = write_pictures(name, options, pictures)
        tasks["torchvision"] = partial(measure, ROOT / "src", "torchvision", pictures, side)
    return tasks


def compare(
    name: str, sources: dict[str, Path], options: argparse.Namespace
) -> dict[str, list[float]]:
    """Return the images per second of each version in each round."""
    with tempfile.TemporaryDirectory() as folder:
        tasks = plan(name, sources, options, Path(folder))
        rounds = [{v: task() for v, task in tasks.items()} for _ in range(options.rounds)]
    return {version: [rates[version] for rates in rounds] for version in tasks}


def parse() -> argparse.Namespace:
    """Read the arguments; those after `--` are in `passed`."""
    from associative_transformer.recipes import RECIPES

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("train", "eval", "predict"))
    parser.add_argument("recipes", nargs="+", choices=RECIPES, metavar="RECIPE")
    parser.add_argument("--source", help="local copy of the data set")
    parser.add_argument("--baseline", default="9fc8e7b", help="commit to compare with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60, help="duration of each training")
    parser.add_argument("--images", type=int, default=2000, help="images to score or to classify")
    parser.add_argument("--json", type=Path, help="file to write")
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options = parser.parse_args(sys.argv[1:end], argparse.Namespace(passed=sys.argv[end + 1 :]))
    if options.what != "train" and any(RECIPES[x].data.kind != "images" for x in options.recipes):
        parser.error(f"`{options.what}` needs recipes with images from files")
    return options


def main() -> None:
    if sys.argv[1:2] == ["--task"]:
        run_task(json.loads(sys.argv[2]))
        return
    from associative_transformer.runs.environment import describe_environment

    options = parse()
    with checked_out(options.baseline) as baseline:
        sources = {"now": ROOT / "src", options.baseline: baseline}
        rates = {name: compare(name, sources, options) for name in options.recipes}
    print("| recipe | version | images/s | times baseline | rounds |")
    print("| --- | --- | ---: | ---: | --- |")
    for name, of_recipe in rates.items():
        for version, rounds in of_recipe.items():
            ratio = median(rounds) / median(of_recipe[options.baseline])
            listed = ", ".join(f"{rate:.1f}" for rate in rounds)
            print(f"| `{name}` | {version} | {median(rounds):.1f} | {ratio:.2f} | {listed} |")
    if options.json:
        settings = {k: v for k, v in vars(options).items() if k not in ("json", "source")}
        environment = asdict(describe_environment(torch.device("cpu")))
        content = {"rates": rates, **settings, "date": date.today().isoformat(), **environment}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
