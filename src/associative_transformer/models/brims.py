"""BRIMs: recurrent modules that compete for the input (Mittal et al. 2020, arXiv 2006.16981).

An image is read pixel by pixel. A layer is a set of small LSTMs, its modules. In each step the
modules that attend most to the null source, an input of zeros, keep their state; the others are
active and update theirs.

Dims     B batch   C channels   H W image side   T pixels, one a step   L layers   n modules
         s width of a module   E layer width = n * s   K key width   V value width = 4 * s
         A keys and values = K + V   G gates = 4 * s   R columns that dropout acts on = V + s
         D any width   U steps of a chunk   Q question features, which the model rejects
Sizes    T 256 (16 by 16 pixels), L 2, n 6 of which 4 are active, s 50, E 300, K 32, V 200
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from pydantic import ConfigDict, with_config
from torch import Tensor, nn
from torch.nn.functional import dropout, interpolate

from associative_transformer.float32 import Float32Linear
from associative_transformer.interface import ModelOutput
from associative_transformer.models.layers import check_inputs, check_sizes, run_block
from associative_transformer.models.pretrained import PretrainedModel

NUM_SHADES = 256  # values that one channel of a pixel can take
VALUE_RATIO = 4  # value width of the input attention, as a multiple of the width of a module
CHUNK = 4  # U: steps compiled or recomputed together; docs/explanation/performance.md has times


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class BRIMsConfig:
    """Sizes of BRIMs; the defaults are those of the reference code on CIFAR-10."""

    kind: Literal["brims"] = "brims"
    """Name of the model in saved configurations."""
    image_size: int = 32
    """Height and width of the images in pixels."""
    resolution: int = 16
    """Height and width to which the model resizes images; each pixel is a step."""
    num_channels: int = 3
    """C: channels of the images; divides embed_dim."""
    num_classes: int = 10
    """Number of classes."""
    embed_dim: int = 300
    """E: width of an embedded pixel and of a layer; equals num_modules times module_dim."""
    depth: int = 2
    """L: number of layers."""
    num_modules: int = 6
    """n: modules of a layer."""
    module_dim: int = 50
    """s: width of a module."""
    num_active: int = 4
    """Modules of a layer that update their state in a step."""
    key_dim: int = 32
    """K: width of the keys of the input attention."""
    num_comm_heads: int = 4
    """Heads of the attention through which the modules of a layer communicate."""
    comm_dim: int = 32
    """Width of each of these heads."""
    dropout: float = 0.5
    """Dropout rate of the embedded pixels and of the last state."""
    attention_dropout: float = 0.1
    """Dropout rate of the output of both attentions."""

    def __post_init__(self) -> None:
        check_sizes(self)
        n, s, width = self.num_modules, self.module_dim, self.embed_dim
        if self.num_active > n:
            raise ValueError(f"num_active must be at most num_modules {n}, not {self.num_active}")
        if width != n * s:
            raise ValueError(
                f"embed_dim must be num_modules {n} times module_dim {s}, not {width}"
            )
        if width % self.num_channels:
            raise ValueError(f"num_channels {self.num_channels} does not divide embed_dim {width}")

    @property
    def takes_pixels(self) -> bool:
        """Whether images are pixels from 0 to 1, not normalized."""
        return True

    @property
    def is_faster_in_float32(self) -> bool:
        """Whether its matrix products are too small to benefit from bfloat16 on a CPU."""
        return True


class LSTMState(NamedTuple):
    """State of the modules of a layer between two steps."""

    h: Float[Tensor, "n B s"]
    c: Float[Tensor, "n B s"]


class BRIMsLayer(nn.Module):
    """One layer: its modules attend to the sources, compete, run their LSTM, and communicate.

    Each module has its own weights, stored as (n, in, out); the reference has dense LSTM matrices
    and zeroes them outside these blocks. Maps of the same input share one matrix.
    """

    def __init__(self, config: BRIMsConfig) -> None:
        super().__init__()
        c = self.config = config
        n, s, comm_dim = c.num_modules, c.module_dim, c.num_comm_heads * c.comm_dim
        self.h_to_q_gates = nn.Parameter(torch.empty(n, s, c.key_dim + 4 * s))
        self.u_to_gates = nn.Parameter(torch.empty(n, VALUE_RATIO * s, 4 * s))
        self.biases = nn.Parameter(torch.empty(2, n, 1, 4 * s))  # two, as in nn.LSTMCell
        self.to_qkv = nn.Parameter(0.01 * torch.randn(n, s, 3 * comm_dim))
        self.to_gate_out = nn.Linear(comm_dim, 2 * s)  # shared by the modules
        bound = 1 / math.sqrt(c.embed_dim)  # of the reference, whose cell has the width E
        for weight in (self.h_to_q_gates, self.u_to_gates, self.biases):
            nn.init.uniform_(weight, -bound, bound)
        nn.init.normal_(self.h_to_q_gates.data[..., : c.key_dim], std=0.01)

    def forward(
        self,
        sources: Float[Tensor, "S B A"],
        state: LSTMState,
        kept: Bool[Tensor, "n B R"] | None,
    ) -> LSTMState:
        """Take one step, given keys and values of all sources except for the null source."""
        c = self.config
        from_h = torch.bmm(state.h, self.h_to_q_gates)
        q, gates = torch.split(from_h, [c.key_dim, 4 * c.module_dim], dim=-1)
        k, v = torch.split(sources[:, None], [c.key_dim, VALUE_RATIO * c.module_dim], dim=-1)
        attention = self.attend(q.to(state.h.dtype), k)  # bfloat16 would make ties common
        u = (attention[1:, ..., None] * v).sum(dim=0)  # (n, B, V)
        new = self.run_lstm(self.drop(u, kept, first=0), gates, state.c)
        position = attention[0].argsort(dim=0, stable=True).argsort(dim=0)  # the first wins a tie
        is_active = (position < c.num_active)[..., None]  # (n, B, 1)
        # active modules read the inactive ones, but no gradient flows back to these
        visible = torch.where(is_active, new.h, new.h.detach())
        h = new.h + self.communicate(visible, kept)
        return LSTMState(
            torch.where(is_active, h, state.h), torch.where(is_active, new.c, state.c)
        )

    def attend(
        self, q: Float[Tensor, "n B K"], k: Float[Tensor, "S 1 B K"]
    ) -> Float[Tensor, "S+1 n B"]:
        """Compute each module's attention to the null source, whose key is 0, and the others."""
        scores = (q * k).sum(dim=-1) / math.sqrt(q.shape[-1])
        return torch.cat([torch.zeros_like(scores[:1]), scores]).softmax(dim=0)

    def run_lstm(
        self, u: Float[Tensor, "n B V"], gates: Float[Tensor, "n B G"], c: Float[Tensor, "n B s"]
    ) -> LSTMState:
        """Run the LSTM cell of each module; `gates` holds the contribution of h."""
        gates = torch.baddbmm(gates + self.biases.sum(dim=0), u, self.u_to_gates)
        to_input, forget, cell, output = gates.chunk(4, dim=-1)
        c = forget.sigmoid() * c + to_input.sigmoid() * cell.tanh()
        return LSTMState(output.sigmoid() * c.tanh(), c)

    def communicate(
        self, h: Float[Tensor, "n B s"], kept: Bool[Tensor, "n B R"] | None
    ) -> Float[Tensor, "n B s"]:
        """Let each module read from all modules of its layer."""
        qkv = torch.bmm(h, self.to_qkv)
        q, k, v = rearrange(qkv, "n b (z heads d) -> z n b heads d", z=3, d=self.config.comm_dim)
        scores = (q[:, None] * k).sum(dim=-1) / math.sqrt(q.shape[-1])  # (n, n, B, heads)
        y = (scores.softmax(dim=1)[..., None] * v).sum(dim=1)  # (n, B, heads, d)
        gate, out = self.to_gate_out(y.flatten(2)).chunk(2, dim=-1)
        return gate.sigmoid() * self.drop(out, kept, first=self.u_to_gates.shape[1]).tanh()

    def drop(
        self, x: Float[Tensor, "n B D"], kept: Bool[Tensor, "n B R"] | None, first: int
    ) -> Float[Tensor, "n B D"]:
        """Apply the dropout mask; the columns for x start at `first`."""
        if kept is None:
            return x
        return x * kept.narrow(-1, first, x.shape[-1]) / (1 - self.config.attention_dropout)


class Recurrence(nn.Module):
    """All layers over a chunk of pixels; in each step, from the lowest layer to the highest.

    The sources of a layer are the null source, the layer below (the pixel for the lowest), and
    the layer above as it was after the previous step; the highest layer has only the first two.
    """

    def __init__(self, config: BRIMsConfig) -> None:
        super().__init__()
        c, width = config, config.key_dim + VALUE_RATIO * config.module_dim
        self.layers = nn.ModuleList(BRIMsLayer(c) for _ in range(c.depth))
        num_sources = [3] * (c.depth - 1) + [2]
        # one matrix per source; that of the null source has no effect, but the reference has it
        self.to_kv = nn.ParameterList(
            0.01 * torch.randn(n, c.embed_dim, width) for n in num_sources
        )

    def forward(
        self,
        pixels: Float[Tensor, "U B A"],
        states: list[LSTMState],
        kept: Bool[Tensor, "U L n B R"] | None,
    ) -> list[LSTMState]:
        """Return the last state of each layer, given keys and values of the pixels."""
        states, to_kv = list(states), [weight.unbind() for weight in self.to_kv]
        for t, pixel in enumerate(pixels):
            for i, layer in enumerate(self.layers):
                sources = [flat(states[i - 1].h) @ to_kv[i][1] if i else pixel]
                if i + 1 < len(states):
                    sources.append(flat(states[i + 1].h) @ to_kv[i][2])
                mask = None if kept is None else kept[t, i]
                states[i] = layer(torch.stack(sources), states[i], mask)
        return states

    def step(
        self, states: Float[Tensor, "L 2 n B s"], pixel: Float[Tensor, "B A"]
    ) -> tuple[Float[Tensor, "L 2 n B s"], Float[Tensor, "1"]]:
        """Take one step in evaluation; return the states, and an unused value for `scan`."""
        new = self(pixel[None], [LSTMState(*layer) for layer in states], None)
        return torch.stack([torch.stack(layer) for layer in new]), pixel.new_zeros(1)


class BRIMs(PretrainedModel, tags=["brims"]):
    """Image classifier that uses the highest layer's state after the last pixel.

    Takes pixels from 0 to 1, not normalized, and rounds them to integers from 0 to 255.

    >>> images = torch.rand(2, 3, 32, 32)
    >>> logits, _ = BRIMs(BRIMsConfig(resolution=4))(images)
    """

    def __init__(self, config: BRIMsConfig) -> None:
        super().__init__()
        c = self.config = config
        # each channel has its own rows
        self.embed = nn.Embedding(c.num_channels * NUM_SHADES, c.embed_dim // c.num_channels)
        self.recurrence = Recurrence(c)
        self.head = Float32Linear(c.embed_dim, c.num_classes)
        for weight in (self.embed.weight, self.head.weight):
            nn.init.uniform_(weight, -0.1, 0.1)
        nn.init.zeros_(self.head.bias)
        self.recompute = False

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        questions: Float[Tensor, "B Q"] | None = None,
    ) -> ModelOutput:
        c = self.config
        check_inputs(images, questions, c.image_size, c.num_channels)
        x = dropout(self.embed(self.read(images)).flatten(2), c.dropout, self.training)
        x = x @ self.recurrence.to_kv[0][1]  # (T, B, A)
        shape = (c.depth, 2, c.num_modules, images.shape[0], c.module_dim)
        # these require a gradient, as later states do, so that the chunk is compiled only once
        zeros = self.head.weight.new_zeros(shape, requires_grad=torch.is_grad_enabled())
        if torch.compiler.is_exporting() and not self.training:  # the steps would be a huge graph
            last_states, _ = torch._higher_order_ops.scan(self.recurrence.step, zeros, x)
            return ModelOutput(self.head(flat(last_states[-1, 0])), x.new_zeros(()))
        states = [LSTMState(*layer) for layer in zeros]
        for chunk in x.split(CHUNK):
            kept = self.draw(len(chunk), len(images)) if self.training else None
            states = run_block(self.recurrence, chunk, states, kept, recompute=self.recompute)
        last = dropout(flat(states[-1].h), c.dropout, self.training)
        return ModelOutput(self.head(last), torch.zeros((), device=images.device))

    def read(self, images: Float[Tensor, "B C H W"]) -> Int[Tensor, "T B C"]:
        """Resize the images and return the embedding rows of their pixels, in raster order."""
        small = interpolate(images, size=self.config.resolution, mode="nearest")
        shades = rearrange((small * 255).round().clamp(0, 255).long(), "b c h w -> (h w) b c")
        return shades + NUM_SHADES * torch.arange(shades.shape[2], device=shades.device)

    def draw(self, steps: int, batch: int) -> Bool[Tensor, "U L n B R"]:
        """Draw the dropout masks of u and of the communication for the given number of steps."""
        c, device = self.config, self.head.weight.device
        shape = (steps, c.depth, c.num_modules, batch, (VALUE_RATIO + 1) * c.module_dim)
        return torch.rand(shape, device=device) >= c.attention_dropout

    def compile(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Compile a chunk of steps in place; all steps as one graph would take many minutes."""
        self.recurrence.compile(*args, **kwargs)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each chunk of steps in the backward pass, which saves memory."""
        self.recompute = enable

    def reference_parameters(self) -> int:
        """Also count what the reference zeroes (weights outside the blocks) or never uses."""
        c = self.config
        n, s, values = c.num_modules, c.module_dim, VALUE_RATIO * c.module_dim
        outside = n * (n - 1) * (values + s) * 4 * s
        gate, norms = (values + 1) * values, 2 * values + 2 * s
        return super().reference_parameters() + c.depth * (outside + gate + norms)


def flat(h: Float[Tensor, "n B s"]) -> Float[Tensor, "B E"]:
    """Concatenate the modules of a layer."""
    return rearrange(h, "n b s -> b (n s)")


BRIMS = BRIMsConfig()
