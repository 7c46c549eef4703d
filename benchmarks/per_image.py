"""Time the workspace per image against self-attention: python benchmarks/per_image.py

Times the forward and backward pass of the layers alone (tokens of width 192, 8,192 tokens in a
batch, 3 heads of self-attention, 16 priors and 4 heads of the write) and whole training steps of
two-layer models, for images of 64, 256, 1,024 and 4,096 tokens, and measures what each layer adds
to the peak memory. All variants of a size take turns; times are medians of the rounds. Attention
is `kernels/attention.py`, which takes the faster form for the precision and the length.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import nn

from associative_transformer import GlobalWorkspace, WorkspaceConfig
from associative_transformer.bench import Variant
from associative_transformer.bench.timing import measure_memory, time_in_turn
from associative_transformer.bench.variants import prepare_model
from associative_transformer.compute import Precision, autocast, set_up_cpu
from associative_transformer.data import ImagesConfig
from associative_transformer.experiment import Experiment, TrainConfig
from associative_transformer.models.ait import AiTConfig
from associative_transformer.models.layers import SelfAttention
from associative_transformer.models.vit import ViTConfig
from associative_transformer.runs.environment import describe_environment
from associative_transformer.tabular import RowGroup, Table

CPU = torch.device("cpu")
WIDTH, HEADS, PATCH = 192, 3, 4
IMAGES = {64: 32, 256: 64, 1_024: 128, 4_096: 256}  # side of the image by number of tokens
EVERY, SHARE = "all tokens", "a quarter"
WORKSPACES = {
    EVERY: WorkspaceConfig(num_priors=16, num_heads=4, scope="image", bottleneck=None),
    SHARE: WorkspaceConfig(num_priors=16, num_heads=4, scope="image", bottleneck=0.25),
}
VIT = ViTConfig(pos="learned", embed_dim=WIDTH, num_heads=HEADS, mlp_ratio=2.0, head="mean")
AIT = AiTConfig(
    pos="learned",
    embed_dim=WIDTH,
    num_heads=HEADS,
    mlp_ratio=2.0,
    head="mean",
    use_self_attention=False,
    workspace=WORKSPACES[SHARE],
)
NORM, BOTH = "ViT with the norm", "both"
MODELS = {
    "ViT": VIT,
    NORM: replace(VIT, use_output_norm=True),
    EVERY: replace(AIT, workspace=WORKSPACES[EVERY]),
    SHARE: AIT,
    BOTH: replace(AIT, use_self_attention=True),
}


class Layer(nn.Module):
    """A layer that mixes tokens: self-attention if the workspace is None."""

    def __init__(self, workspace: WorkspaceConfig | None) -> None:
        super().__init__()
        self.attention = SelfAttention(WIDTH, HEADS, 64) if workspace is None else None
        self.workspace = None if workspace is None else GlobalWorkspace(WIDTH, workspace)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the layer adds to the tokens."""
        if self.attention is not None:
            return self.attention(x)
        assert self.workspace is not None
        return self.workspace(x).read


def prepare_layer(
    workspace: WorkspaceConfig | None,
    length: int,
    tokens: int,
    precision: Precision,
    is_compiled: bool,
) -> Callable[[], object]:
    """Return a function that computes the output and all gradients of a layer."""
    torch.manual_seed(0)
    layer = Layer(workspace)
    x = torch.randn(tokens // length, length, WIDTH, requires_grad=True)
    call = torch.compile(layer, fullgraph=True) if is_compiled else layer

    def run() -> None:
        x.grad = None
        layer.zero_grad()
        with autocast(CPU, precision):
            y = call(x)
        y.float().square().sum().backward()

    return run


def prepare_step(
    model: AiTConfig | ViTConfig, length: int, tokens: int, precision: Precision, compiled: bool
) -> Callable[[], object]:
    """Return a training step of a model."""
    side = IMAGES[length]
    train = TrainConfig(
        batch_size=tokens // length,
        precision=precision,
        compile="on" if compiled else "off",
        device="cpu",
    )
    sized = replace(model, image_size=side, patch_size=PATCH)
    data = ImagesConfig("cifar10", image_size=side)
    return prepare_model(Variant(Experiment("step", data, sized, train)), "step")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--tokens", type=int, default=8_192, help="tokens of a batch")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--lengths", type=int, nargs="+", choices=IMAGES, default=[*IMAGES])
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    set_up_cpu()
    layers: dict[str, WorkspaceConfig | None] = {"self-attention": None, **WORKSPACES}
    found: dict[str, dict[int, dict[str, float]]] = {"layer, ms": {}, "step, ms": {}}
    found["memory of the layer, MiB"] = {}
    for length in options.lengths:
        size = (length, options.tokens, options.precision, options.compile)
        of_layers = {name: prepare_layer(each, *size) for name, each in layers.items()}
        of_models = {name: prepare_step(each, *size) for name, each in MODELS.items()}
        for part, runs in (("layer, ms", of_layers), ("step, ms", of_models)):
            times = time_in_turn(runs, options.rounds, CPU)
            found[part][length] = {name: 1e3 * median(each) for name, each in times.items()}
        found["memory of the layer, MiB"][length] = {
            name: 1024 * measure_memory(name, partial(prepare_layer, each, *size), CPU, 0)
            for name, each in layers.items()
        }
    groups = []
    for part, by_length in found.items():
        for length, values in by_length.items():
            first = next(iter(values.values()))
            rows = [
                (f"{length:,}", name, f"{value:.1f}", f"{value / first:.2f}")
                for name, value in values.items()
            ]
            groups.append(RowGroup(part, rows))
    columns = ("tokens per image", "variant", "value", "relative to first")
    title = f"{options.precision} on {torch.get_num_threads()} threads"
    print(Table(title, columns, groups, []).to_terminal(100), end="")
    if options.json:
        content = {"values": found, "tokens": options.tokens, "rounds": options.rounds}
        content |= {"precision": options.precision, "compile": options.compile}
        content |= {"date": date.today().isoformat(), **asdict(describe_environment(CPU))}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
