"""Bad command lines of every command, each with the words that its error must contain.

The runs and images that they name need not exist: a command reads its options first.
"""

from collections.abc import Iterator
from typing import NamedTuple

COUNT, NUMBER, CHOICE, OTHER = "count", "number", "choice", "other"
SWITCH, WORD = "switch", "switch before arguments"


class Mistake(NamedTuple):
    """A bad command line, and what its error must name."""

    line: str
    named: tuple[str, ...]


OPTIONS = {  # words before the options: names of options by what they take
    "train triangle-ait-tiny": {
        COUNT: "model.workspace.num-priors",
        NUMBER: "train.lr",
        CHOICE: "train.schedule.shape",
        SWITCH: "train.detect-anomaly",
    },
    "train cifar10-ait-tiny": {
        COUNT: "data.image-size",
        SWITCH: "dry-run",
        OTHER: "data.source config seeds",
    },
    "sweep triangle-ait-tiny": {COUNT: "trials", OTHER: "config seeds runs"},
    "fit PATH": {
        NUMBER: "data.test-fraction",
        CHOICE: "device",
        SWITCH: "resume",
        OTHER: "time seed name runs init",
    },
    "eval RUN": {COUNT: "batch-size", OTHER: "source device"},
    "predict RUN IMAGE": {
        COUNT: "top batch-size",
        CHOICE: "on-error",
        OTHER: "question output sheet device",
    },
    "export RUN": {NUMBER: "opset", CHOICE: "format", SWITCH: "speed", OTHER: "output"},
    "analyze RUN": {COUNT: "images batch-size", OTHER: "source device"},
    "report RUN": {COUNT: "images", SWITCH: "again open", OTHER: "output source device"},
    "bench step": {
        COUNT: "rounds batch-size",
        CHOICE: "precision device format",
        WORD: "compile",
        OTHER: "rival output",
    },
    "bench write": {COUNT: "tokens bottleneck", CHOICE: "rival", OTHER: "output"},
    "bench data": {COUNT: "batches", WORD: "compile", OTHER: "source"},
    "bench --check": {CHOICE: "device", WORD: "update"},
    "check-data PATH": {NUMBER: "data.test-fraction", OTHER: "output"},
    "show triangle": {COUNT: "num-images data.num-test", SWITCH: "data.raw", OTHER: "pictures"},
    "run-table relational": {CHOICE: "budget", OTHER: "runs sources rows seeds"},
    "runs": {CHOICE: "sort", OTHER: "runs output"},
    "table relational": {CHOICE: "format", OTHER: "runs output"},
    "doctor": {OTHER: "runs output"},
}

OTHERS = {  # command line: words of its error
    "": "COMMAND",
    "tarin triangle-ait-tiny": "'tarin' train",
    "Train": "'Train' train",
    "runtable": "'runtable' run-table",
    "--verson": "--verson --version",
    "--verbose list": "--verbose",
    "train --train.lr 1": "RECIPE --train.lr",
    "train mine": "'mine' `ait list`",
    "train cifar10-ait-smal": "'cifar10-ait-smal' cifar10-ait-small `ait list`",
    "train triangle-ait-tiny triangle-ait-tiny": "'triangle-ait-tiny'",
    "train triangle-ait-tiny --epochs 3": "--epochs --train.epochs",
    "train triangle-ait-tiny --lr 3": "--lr --train.lr",
    "train triangle-ait-tiny --num-priors 3": "--num-priors --model.workspace.num-priors",
    "train triangle-ait-tiny --data.numtrain 3": "--data.numtrain --data.num-train",
    "train triangle-ait-tiny --train.lr 1e-3 1e-2": "'1e-2' --train.lr",
    "train triangle-ait-tiny --train.betas 0.9": "--train.betas '0.9'",
    "train triangle-ait-tiny --train.betas 0.9 x": "--train.betas '0.9 x'",
    "train triangle-ait-tiny --train.betas 0.9 2": "--train.betas 2",
    "train triangle-ait-tiny --train.lr -1": "--train.lr -1",
    "train triangle-ait-tiny --train.lr nan": "--train.lr nan",
    "train triangle-ait-tiny --train.lr=inf": "--train.lr inf",
    "train triangle-ait-tiny --train.weight-decay -1": "--train.weight-decay -1",
    "train triangle-ait-tiny --train.seed -1": "--train.seed -1",
    "train triangle-ait-tiny --train.clip-norm 0": "--train.clip-norm 0",
    "train triangle-ait-tiny --train.schedule.warmup-epochs -1": "--train.schedule.warmup-epochs",
    "train triangle-ait-tiny --data.val-fraction 2": "--data.val-fraction 2",
    "train triangle-ait-tiny --model.workspace.smoothing 2": "--model.workspace.smoothing 2",
    "train triangle-ait-tiny --model.workspace.dropout 1.5": "--model.workspace.dropout 1.5",
    "train triangle-ait-tiny --model.workspace.num-heads 0": "--model.workspace.num-heads 0",
    "train triangle-ait-tiny --model.patch-size 7": "--model.patch-size 7",
    "train triangle-ait-tiny --model.num-channels 3": "--model.num-channels 3",
    "train triangle-ait-tiny --name a/b": "--name a/b",
    "train triangle-ait-tiny --data.kind images": "--data.kind 'images' triangle",
    "train cifar10-ait-tiny --data.limit 0": "--data.limit 0",
    "train cifar10-ait-tiny --data.num-workers -1": "--data.num-workers -1",
    "train cifar10-ait-tiny --data.std 0 1 1": "--data.std 0",
    "train triangle-ait-tiny --config gone.yaml": "gone.yaml YAML",
    "train triangle-ait-tiny --config .": "cannot read .",
    "train triangle-ait-tiny --seeds -1": "--seeds -1",
    "train triangle-ait-tiny --seeds 0 1 0": "--seeds 0 1 0",
    "train triangle-ait-tiny --seeds 0 --train.seed 1": "--seeds --train.seed",
    "train triangle-ait-tiny --dry-run --print-config": "--dry-run --print-config",
    "sweep --grid train.lr=1": "RECIPE --grid",
    "sweep mine": "'mine' `ait list`",
    "sweep triangle-ait-tiny": "--grid --search",
    "sweep triangle-ait-tiny --grid": "--grid --search",
    "sweep triangle-ait-tiny --grid train.lr": "--grid train.lr FIELD=VALUE",
    "sweep triangle-ait-tiny --grid train.lr=": "--grid train.lr= VALUE",
    "sweep triangle-ait-tiny --grid train.lr=1,x": "--grid train.lr 'x'",
    "sweep triangle-ait-tiny --grid train.lr=1,1.0": "--grid train.lr=1,1.0 twice",
    "sweep triangle-ait-tiny --grid train.lr=1 train.lr=2": "--grid train.lr twice",
    "sweep triangle-ait-tiny --grid train.lrs=1": "--grid train.lrs train.lr",
    "sweep triangle-ait-tiny --grid train.seed=0,1 --seeds 0": "--grid train.seed --seeds",
    "sweep triangle-ait-tiny --grid train.lr=1e-3": "--data.val-fraction",
    "sweep triangle-ait-tiny --grid train.lr=1 --search train.lr=1..2": "--grid --search",
    "sweep triangle-ait-tiny --search train.lr=1..2 --seeds 0 1": "--search --seeds --grid",
    "fit": "PATH",
    "fit PATH PATH2": "'PATH2'",
    "fit PATH --time 10": "--time '10'",
    "fit PATH --time 0m": "--time '0m'",
    "fit PATH --time 5 minutes": "'minutes'",
    "fit PATH --name a/b": "name 'a/b'",
    "fit PATH --seed -1": "--seed -1",
    "fit PATH --train.epochs 3": "--train.epochs",
    "list --all": "--all",
    "list nothing-like-it": "nothing-like-it",
    "eval": "RUN",
    "eval --source x": "RUN",
    "eval RUN RUN2": "'RUN2'",
    "eval RUN --batchsize 3": "--batchsize --batch-size",
    "predict": "RUN",
    "predict RUN": "IMAGES",
    "predict RUN IMAGE --format xml": "--format 'xml'",
    "analyze": "RUN",
    "analyze RUN RUN2 RUN3": "'RUN2'",
    "report": "RUN",
    "report RUN RUN RUN": "RUN 3",
    "bench": "step infer write data",
    "bench stpe": "'stpe' step",
    "bench --rounds 3": "--rounds step",
    "bench write cifar10-ait-small": "'cifar10-ait-small'",
    "bench data --num-workers -1": "--num-workers -1",
    "bench --check a.json b.json": "'b.json'",
    "show mnist": "'mnist' triangle",
    "show --num-images 3": "DATA --num-images",
    "show triangle --num-images 65": "--num-images 64 65",
    "show triangle surplus": "'surplus'",
    "run-table": "TABLE",
    "run-table ablation": "TABLE 'ablation' ablations",
    "run-table relational --seeds -1": "--seeds -1",
    "run-table relational --seeds 0.5": "--seeds '0.5'",
    "run-table relational --rows nosuch-row": "--rows 'nosuch-row'",
    "run-table relational --sources cifar10": "--sources 'cifar10'",
    "run-table relational --sources mnist x": "--sources 'mnist'",
    "table": "TABLE",
    "runs --runs gone": "--runs gone",
    "table ablation": "TABLE 'ablation' ablations",
    "table relational extra": "'extra'",
    "table relational --runs gone": "--runs gone",
    "doctor extra": "'extra'",
}


def make_mistakes() -> Iterator[Mistake]:
    """Yield every bad command line once: from the options of each command, and single ones."""
    for words, options in OPTIONS.items():
        for kind, names in options.items():
            for option in (f"--{name}" for name in names.split()):
                yield from _mistakes_with(words, kind, option)
    for line, named in OTHERS.items():
        yield Mistake(line, tuple(named.split()))


def _mistakes_with(words: str, kind: str, option: str) -> Iterator[Mistake]:
    """Yield command lines that misspell an option or give it a value that it cannot take."""
    typed = option[:-2] + option[-1] + option[-2]  # two letters change places
    yield Mistake(f"{words} {typed} 1", (typed, option))
    if kind == WORD:
        return
    if kind == SWITCH:
        yield Mistake(f"{words} {option} yes", (option, "'yes'"))
        yield Mistake(f"{words} {option}=1", (option, "'1'"))
        return
    if option not in ("--rows", "--seeds", "--sources"):  # take any number of values
        yield Mistake(f"{words} {option}", (option,))
    if kind == CHOICE:
        yield Mistake(f"{words} {option} nosuch", (option, "'nosuch'"))
    if kind in (COUNT, NUMBER):
        yield Mistake(f"{words} {option} many", (option, "'many'"))
    if kind == COUNT:
        yield Mistake(f"{words} {option} 1.5", (option, "'1.5'"))
        yield Mistake(f"{words} {option} 0", (option, "0"))
        yield Mistake(f"{words} {option}=-3", (option, "-3"))
