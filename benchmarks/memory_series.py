"""Record how a memory changes in training: python benchmarks/memory_series.py run [VARIANT ...]

    python benchmarks/memory_series.py run --source=PATH/TO/cifar10 --seeds 0 1 2 --jobs=2
    python benchmarks/memory_series.py run official --source=PATH/TO/cifar10 --seeds 0 1 2 \\
      --official=PATH/TO/OFFICIAL --hopfield=PATH/TO/HOPFIELD
    python benchmarks/memory_series.py table
    python benchmarks/memory_series.py figure

The first two commands train AiT-Small on CIFAR-10 for 300 steps, once for each variant and seed,
and write a file for each run to `results/memory/series`; runs whose file exists are skipped. The
variants are those of `memory_series_variants.py`, with batch 64 and bottleneck 64, which is the
paper's share of the tokens. One more run, `paper-batch`, has the paper's batch and bottleneck of
512, and is run only with the first seed; `--steps` sets fewer steps.

Every ten steps, a run records the effective rank, the distinct priors, the overlap of the winners
and the balance loss of each layer, and the cross-entropy. At the end it is scored on the test set,
or on its first images (`--test-images`). The last two commands print a table and draw a figure of
the finished runs.

All variants see the same batches. The optimizer is AdamW with the paper's learning rate of 1e-4
and weight decay of 0.01, but without warm-up; `ait.py` begins with five epochs at lower rates.

The folders of the official code are those that `official.py` takes. Without them, the variant
`official` is skipped.
As shipped, its write has a dropout of 0.1 in the first epoch only, and it also writes in
evaluation, so that its accuracy depends on the batches of the test set; they are as large as those
in training, as in `ait.py`. That script evaluates, and so writes, after every epoch; here, the
only evaluation is the one at the end. With batch 64, all 300 steps are in the first epoch.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

from associative_transformer.compute import choose_precision, count_cores, set_up_cpu
from associative_transformer.files import make_folder, write_file
from associative_transformer.interface import UserError
from memory_series_tables import NO_DATE, draw, tabulate
from memory_series_training import CPU, train
from memory_series_variants import VARIANTS, Official, Ours, Settings, identify

RESULTS = Path(__file__).resolve().parents[1] / "results" / "memory" / "series"
PLACES = {  # instead of the paths of this machine
    "source": "PATH/TO/cifar10",
    "official": "PATH/TO/OFFICIAL",
    "hopfield": "PATH/TO/HOPFIELD",
}
FIGURE = RESULTS.with_suffix(".svg")


class Run(NamedTuple):
    """A run of a variant."""

    variant: str
    seed: int
    results: Path

    @property
    def file(self) -> Path:
        """Where its result is kept."""
        return self.results / f"{self.variant}-{self.seed}.json"

    def read(self) -> dict[str, Any]:
        """Return its result."""
        content: dict[str, Any] = json.loads(self.file.read_text())
        return content


def train_here(run: Run, options: argparse.Namespace) -> None:
    """Train a run in this process and keep its result."""
    set_up_cpu()
    precision = choose_precision(options.precision, CPU, None).precision
    variant = VARIANTS[run.variant]
    settings = Settings(
        steps=options.steps,
        every=options.every,
        batch_size=variant.batch_size,
        test_images=options.test_images,
        num_classes=options.classes,
    )
    settings = settings.small() if options.small else settings
    config = settings.config(variant.workspace)
    torch.manual_seed(run.seed)
    model: Ours | Official
    if variant.is_official:
        model = Official(options.official, options.hopfield, config)
        official = {"official_files": identify(options.official)}
    else:
        model, official = Ours(config), {}
    shown = argparse.Namespace(**{**vars(options), "precision": precision})
    places = {name: PLACES[name] for name in paths_of(run, options)}
    command = ["python benchmarks/memory_series.py run", run.variant, f"--seeds {run.seed}"]
    result = {
        "command": " ".join([*command, *write_flags(shown, places)]),
        **{"variant": run.variant, "title": variant.title, "seed": run.seed, **official},
        **train(model, options.source, settings, run.seed, precision),
    }
    make_folder(run.file.parent)
    write_file(run.file, (json.dumps(result, indent=2) + "\n").encode())


def paths_of(run: Run, options: argparse.Namespace) -> dict[str, str]:
    """Return the folders that a run reads, by their flags."""
    names = PLACES if VARIANTS[run.variant].is_official else ("source",)
    return {name: str(getattr(options, name)) for name in names if getattr(options, name)}


def write_flags(options: argparse.Namespace, paths: dict[str, str]) -> list[str]:
    """Return the flags of a run, with these paths."""
    flags = [f"--{name}={path}" for name, path in paths.items()]
    flags += [f"--steps={options.steps}", f"--every={options.every}"]
    flags += [f"--precision={options.precision}"]
    if options.test_images is not None:
        flags.append(f"--test-images={options.test_images}")
    return [*flags, *["--small", f"--classes={options.classes}"] * options.small]


def train_in_process(run: Run, options: argparse.Namespace) -> bool:
    """Train a run in a process of its own; return whether it succeeded."""
    if run.file.exists():
        return True
    words = [__file__, "train", run.variant, f"--seeds={run.seed}"]
    words += [f"--results={run.results}", *write_flags(options, paths_of(run, options))]
    threads = max(1, count_cores() // options.jobs)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        print(done.stdout + done.stderr, file=sys.stderr, flush=True)
        print(f"{run.file.name}: failed", flush=True)
        return False
    result = run.read()
    accuracy, seconds = result["accuracy"], result["timing"]["seconds"]
    print(f"{run.file.name}: {accuracy:.2f} % in {seconds:.0f} s", flush=True)
    return True


def parse_options(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Record how a memory changes in training.")
    parser.add_argument("action", choices=["run", "table", "figure", "train"])
    parser.add_argument("variants", nargs="*", help="names of variants; default: all")
    parser.add_argument("--source", help="folder of CIFAR-10")
    parser.add_argument("--official", type=Path, help="folder with the official ait.py")
    parser.add_argument("--hopfield", type=Path, help="folder with the package hflayers")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=10, help="steps between two records")
    parser.add_argument(
        "--test-images", type=int, help="number of test images to score; default: all"
    )
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--output", type=Path, default=FIGURE, help="figure to write")
    parser.add_argument("--classes", type=int, default=10, help="of the data, with --small")
    parser.add_argument("--small", action="store_true", help="sizes for a test")
    options = parser.parse_args(words)
    if unknown := set(options.variants) - set(VARIANTS):
        parser.error(f"there are no variants {', '.join(sorted(unknown))}")
    if options.source is None and options.action in ("run", "train"):
        parser.error("pass the folder of CIFAR-10 as --source")
    if "official" in options.variants and options.official is None:
        parser.error("pass the folder with the official ait.py as --official")
    if options.output.suffix not in NO_DATE:
        parser.error(f"--output must end in {' or '.join(NO_DATE)}, not {options.output.name}")
    return options


def choose_runs(options: argparse.Namespace) -> list[Run]:
    """Return the runs to train, all variants with the first seed first."""
    names = options.variants or list(VARIANTS)
    if options.official is None:
        names = [name for name in names if not VARIANTS[name].is_official]
    first = options.seeds[0]
    return [
        Run(name, seed, options.results)
        for seed in options.seeds
        for name in names
        if seed == first or not VARIANTS[name].has_one_run
    ]


def main(words: list[str] | None = None) -> None:
    """Train the missing runs, print the table or draw the figure."""
    options = parse_options(words)
    try:
        if options.action == "table":
            print(tabulate(options.results).to_markdown(), end="")
        elif options.action == "figure":
            draw(options.results, options.output)
        elif options.action == "train":
            train_here(choose_runs(options)[0], options)
        else:
            with ThreadPoolExecutor(options.jobs) as pool:
                runs = choose_runs(options)
                done = list(pool.map(lambda run: train_in_process(run, options), runs))
            if not all(done):
                sys.exit(1)
    except UserError as error:
        raise SystemExit(f"memory_series.py: {error}") from None


if __name__ == "__main__":
    main()
