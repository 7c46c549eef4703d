"""Compare a training step of AiT-Small with that of the official code, on this CPU.

    python benchmarks/official.py PATH/TO/OFFICIAL --hopfield PATH/TO/HOPFIELD

The paths are checkouts of github.com/yuweisunn/associative-transformer (commit 107ae93 was read
for this script) and, unless the package is installed, of github.com/ml-jku/hopfield-layers. Both
implementations are timed in float32 and in bfloat16 autocast, with the same batch; they take
turns. The peak memory of each is measured in a separate process.

`ait.py` is a script that downloads data and trains, so only the classes that it defines are used.
`.cuda()` is replaced and returns its tensor or module unchanged. The step is that of the script's
loop, including reading the accuracy and the loss. Our step does more: the gradient also flows
through the write, and a step whose gradient is not finite is skipped.
"""

import argparse
import ast
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import date
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from associative_transformer.bench import Variant
from associative_transformer.bench.timing import measure_memory, time_in_turn
from associative_transformer.bench.variants import prepare_model
from associative_transformer.interface import UserError
from associative_transformer.models.ait import AIT_SMALL, AiTConfig
from associative_transformer.models.official import load_official
from associative_transformer.recipes import RECIPES
from associative_transformer.runs.environment import describe_environment

CPU = torch.device("cpu")
PRECISIONS = ("float32", "bfloat16")


def build_official(folder: Path, hopfield: Path | None, config: AiTConfig) -> nn.Module:
    """Build the model of the official code. Raises UserError if a file or package is missing."""
    sys.path[:0] = [str(path) for path in (folder, hopfield) if path is not None]
    try:
        names = dict(vars(import_module("MHA")))  # imported by ait.py with *
        names["Hopfield"] = import_module("hflayers").Hopfield
        official_vit = import_module("vit_hn").ViT
        script = ast.parse((folder / "ait.py").read_text(encoding="utf-8"))
    except (ImportError, OSError) as error:
        raise UserError(
            f"the official code cannot be imported ({error}): pass the folder that contains its "
            "ait.py, and --hopfield with the folder that contains the package hflayers"
        ) from error
    c, w = config, config.workspace
    names |= {"hidden_dim": c.embed_dim, "mlp_dim": round(c.embed_dim * c.mlp_ratio)}
    names |= {"memory_head": w.num_heads, "memory_dim": w.prior_dim, "pattern_size": w.num_priors}
    names |= {"bottleneck": w.bottleneck, "dim": (c.image_size // c.patch_size) ** 2}
    names |= {"HN": True, "static": True}  # its defaults: a Hopfield network without weights
    classes = [statement for statement in script.body if isinstance(statement, ast.ClassDef)]
    exec(compile(ast.Module(classes, []), str(folder / "ait.py"), "exec"), names)
    model = official_vit(
        image_size=c.image_size,
        patch_size=c.patch_size,
        num_classes=c.num_classes,
        dim=c.embed_dim,
        depth=c.depth,
        heads=c.num_heads,
        mlp_dim=names["mlp_dim"],
        sparse=True,
    )
    for i, layer in enumerate(model.transformer.layers):
        layer[1].fn = names["ModularNN"](w.beta, i)
    return model


def ignore_cuda() -> None:
    """Make `.cuda()` return tensors and modules unchanged."""
    torch.Tensor.cuda = nn.Module.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]


def random_batch(config: AiTConfig, size: int) -> tuple[Tensor, Tensor]:
    side = config.image_size
    return torch.rand(size, 3, side, side), torch.randint(config.num_classes, (size,))


def prepare_official(
    folder: Path, hopfield: Path | None, config: AiTConfig, size: int, precision: str
) -> Callable[[], object]:
    """Build the official model and return its training step."""
    ignore_cuda()
    model = build_official(folder, hopfield, config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    images, labels = random_batch(config, size)

    def step() -> tuple[float, int]:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits, aux_loss = model(images)
            loss = cross_entropy(logits, labels) + aux_loss.mean()
        correct = (logits.argmax(dim=1) == labels).sum().item()
        loss.backward()
        optimizer.step()
        return loss.item(), correct

    return step


def prepare_ours(config: AiTConfig, size: int, precision: str) -> Callable[[], object]:
    """Build our model and return its training step."""
    recipe = RECIPES["cifar10-ait-small"]
    train = replace(recipe.train, batch_size=size, precision=precision, device="cpu")
    return prepare_model(Variant(replace(recipe, model=config, train=train)), "step")


@torch.no_grad()
def compare_logits(folder: Path, hopfield: Path | None, config: AiTConfig) -> float:
    """Return the largest difference between logits of the two implementations with equal weights.

    The official code also writes to its memory in evaluation mode, in which it has no dropout.
    """
    official = build_official(folder, hopfield, config).eval()
    w = config.workspace
    ours = load_official(official.state_dict(), w.bottleneck, w.beta).train()
    images, _ = random_batch(config, 8)
    return (ours(images).logits - official(images)[0]).abs().max().item()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkout", type=Path, help="folder with the official ait.py")
    parser.add_argument("--hopfield", type=Path, help="folder with the package hflayers")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--embed-dim", type=int, default=768, help="multiple of 64, at least 128")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file to write")
    return parser.parse_args()


def main() -> None:
    options = parse()
    width, size = options.embed_dim, options.batch_size
    config = replace(AIT_SMALL, embed_dim=width, num_heads=width // 64)
    code = (options.checkout, options.hopfield, config)
    ignore_cuda()
    try:
        difference = compare_logits(*code)
    except UserError as error:
        raise SystemExit(f"official.py: {error}") from None
    prepare: dict[str, Callable[[], Callable[[], object]]] = {}
    for precision in PRECISIONS:
        prepare[f"official, {precision}"] = partial(prepare_official, *code, size, precision)
        prepare[f"ours, {precision}"] = partial(prepare_ours, config, size, precision)
    runs = {name: each() for name, each in prepare.items()}
    seconds = time_in_turn(runs, options.rounds, CPU)
    rows = []
    for name, times in seconds.items():
        ours = median(seconds[f"ours, {name.split()[-1]}"])
        memory = measure_memory(name, prepare[name], CPU)
        rows.append(
            (name, 1e3 * median(times), size / median(times), median(times) / ours, memory)
        )
    print("| code, precision | step, ms | images/s | times ours | peak memory, GiB |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, milliseconds, rate, ratio, memory in rows:
        print(f"| {name} | {milliseconds:.0f} | {rate:.1f} | {ratio:.2f} | {memory:.2f} |")
    print(f"largest difference between logits with the same weights: {difference:.1g}")
    if options.json:
        settings = {"batch_size": size, "embed_dim": width, "rounds": options.rounds}
        content = {"seconds": seconds, "memory": {row[0]: row[-1] for row in rows}, **settings}
        environment = asdict(describe_environment(CPU))
        content |= {"difference": difference, "date": date.today().isoformat(), **environment}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
