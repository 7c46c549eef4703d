"""Measure the seconds that BRIMs and a plain implementation of them take for 1,000 images.

`python benchmarks/brims.py` prints a table in Markdown; docs/explanation/performance.md quotes it.
The variants take turns, and the fastest of four turns counts. Two of them are compiled, so the
first turn takes minutes.
"""

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout, scaled_dot_product_attention

from associative_transformer.models.brims import (
    BRIMS,
    BRIMs,
    BRIMsConfig,
    BRIMsLayer,
    LSTMState,
)

BATCH, TURNS = 64, 4


class PlainLayer(BRIMsLayer):
    """A layer with one product for each weight and torch's dropout and attention; batch first."""

    def forward(self, sources: Tensor, state: LSTMState, kept: None) -> LSTMState:
        c, (h, old_c) = self.config, state
        widths = [c.key_dim, 4 * c.module_dim]
        to_q, h_to_gates = self.h_to_q_gates.split(widths, dim=-1)
        k, v = sources.split(widths, dim=-1)
        q = torch.einsum("bns,nsk->bnk", h, to_q)
        attention = (q @ k.mT / math.sqrt(c.key_dim)).softmax(dim=-1)
        u = dropout(attention @ v, c.attention_dropout, self.training)
        active = attention[..., 0].argsort(dim=1, stable=True)[:, : c.num_active]
        mask = torch.zeros_like(attention[..., 0]).scatter(1, active, 1)[..., None]
        gates = torch.einsum("bnv,nvg->bng", u, self.u_to_gates) + self.biases.sum((0, 2))
        gates = gates + torch.einsum("bns,nsg->bng", h, h_to_gates)
        i, f, g, o = gates.chunk(4, dim=-1)
        new_c = f.sigmoid() * old_c + i.sigmoid() * g.tanh()
        new_h = o.sigmoid() * new_c.tanh()
        new_h = new_h + self.communicate(mask * new_h + (1 - mask) * new_h.detach())
        return LSTMState(mask * new_h + (1 - mask) * h, mask * new_c + (1 - mask) * old_c)

    def communicate(self, h: Tensor, kept: None = None) -> Tensor:
        c = self.config
        q, k, v = (
            torch.einsum("bns,nsd->bnd", h, weight)
            .unflatten(-1, (c.num_comm_heads, c.comm_dim))
            .transpose(1, 2)
            for weight in self.to_qkv.chunk(3, dim=-1)
        )
        y = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        weights, biases = self.to_gate_out.weight.chunk(2), self.to_gate_out.bias.chunk(2)
        gate, out = (y @ w.T + b for w, b in zip(weights, biases, strict=True))
        return gate.sigmoid() * dropout(out, c.attention_dropout, self.training).tanh()


class PlainBRIMs(BRIMs):
    """A loop over the pixels that computes everything in each step."""

    def __init__(self, config: BRIMsConfig) -> None:
        super().__init__(config)
        self.recurrence.layers = nn.ModuleList(PlainLayer(config) for _ in range(config.depth))

    def forward(self, images: Tensor) -> list[Tensor]:
        c = self.config
        pixels = dropout(self.embed(self.read(images)).flatten(2), c.dropout, self.training)
        zeros = pixels.new_zeros(len(images), c.num_modules, c.module_dim)
        states = [LSTMState(zeros, zeros)] * c.depth
        for below in pixels:
            for i, layer in enumerate(self.recurrence.layers):
                sources = [torch.zeros_like(below), below]
                sources += [state.h.flatten(1) for state in states[i + 1 : i + 2]]
                stacked = torch.stack(sources, dim=1)
                kv = torch.einsum("bse,sea->bsa", stacked, self.recurrence.to_kv[i])
                states[i] = layer(kv, states[i], None)
                below = states[i].h.flatten(1)
        return [self.head(dropout(below, c.dropout, self.training))]


def train(model: BRIMs, images: Tensor, labels: Tensor) -> None:
    cross_entropy(model.train()(images)[0], labels).backward()
    model.zero_grad()


@torch.no_grad()
def predict(model: BRIMs, images: Tensor, labels: Tensor) -> Tensor:
    return model.eval()(images)[0]


def seconds(run: Callable[..., object], *arguments: object) -> float:
    """Return the seconds that a batch takes, scaled to 1,000 images."""
    start = time.perf_counter()
    run(*arguments)
    return (time.perf_counter() - start) * 1000 / BATCH


def build_variants(config: BRIMsConfig = BRIMS) -> dict[str, BRIMs]:
    """Build all variants with the same weights."""
    variants: dict[str, BRIMs] = {"plain": PlainBRIMs(config)}
    for name in ("ours", "ours, recomputing", "ours, compiled", "ours, compiled and recomputing"):
        model = variants[name] = BRIMs(config)
        model.load_state_dict(variants["plain"].state_dict())
        model.set_grad_checkpointing("recomputing" in name)
        if "compiled" in name:
            model.compile()
    return variants


def main() -> None:
    images, labels = torch.rand(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))
    variants = build_variants()
    best: dict[str, list[float]] = {}
    for turn in range(TURNS + 1):
        for name, model in variants.items():
            times = [seconds(run, model, images, labels) for run in (train, predict)]
            if turn == 0:  # includes compilation
                print(f"first batch, {name}: {sum(times) * BATCH / 1000:.0f} s", flush=True)
            else:
                best[name] = list(map(min, times, best.get(name, times)))
    print("| variant | training | times faster | prediction | times faster |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, times in best.items():
        pairs = zip(times, best["plain"], strict=True)
        columns = [f"{own:.1f} | {plain / own:.2f}" for own, plain in pairs]
        print(f"| {name} | {' | '.join(columns)} |")
    plain, *others = (predict(model, images, labels) for model in variants.values())
    print("largest difference of a logit:", max((x - plain).abs().max().item() for x in others))


if __name__ == "__main__":
    main()
