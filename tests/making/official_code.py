"""Files with the layout and the names of the official code, but our own implementation."""

from pathlib import Path

ATTENTION = """
import torch
from torch import nn

class MultiHeadAttention(nn.Module):
    def __init__(self, n_head, d_model, d_k, d_v, dropout=0.1):
        super().__init__()
        self.n_head, self.d_k = n_head, d_k
        self.w_qs = nn.Linear(d_k, n_head * d_k, bias=False)
        self.w_ks = nn.Linear(d_model, n_head * d_k, bias=False)
        self.w_vs = nn.Linear(d_model, n_head * d_v, bias=False)
        self.fc = nn.Linear(n_head * d_v, d_v, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.layer_norm = nn.LayerNorm(d_v, eps=1e-6)

    def forward(self, q, k, v, bottleneck, mask=None):
        split = lambda x: x.unflatten(-1, (self.n_head, -1)).transpose(1, 2)[0]
        queries, keys, values = split(self.w_qs(q)), split(self.w_ks(k)), split(self.w_vs(v))
        scores = queries @ keys.mT / self.d_k**0.5
        best, chosen = scores.topk(min(bottleneck, scores.shape[-1]), dim=-1)
        gates = torch.zeros_like(scores).scatter(-1, chosen, best.softmax(dim=-1).to(scores.dtype))
        importance, load = gates.sum(1).float(), (gates > 0).sum(1).float()
        loss = 0.01 * sum(
            (x.var(-1) / (x.mean(-1) ** 2 + 1e-10)).sum() for x in (importance, load)
        )
        merged = (gates @ values).movedim(0, -1).flatten(-2)[None]  # by width, then by head
        update = self.dropout(self.fc(merged))
        return self.layer_norm(q + update), gates.transpose(0, 1), loss
"""

VIT = """
import torch
from einops import rearrange
from einops.layers.torch import Rearrange
from torch import nn

class PreNorm(nn.Module):
    def __init__(self, dim, fn):
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(dim), fn

    def forward(self, x):
        return self.fn(self.norm(x))

class Attention(nn.Module):
    def __init__(self, dim, heads, dim_head):
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(dim, 3 * heads * dim_head, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * dim_head, dim), nn.Dropout(0.0))

    def forward(self, x):
        q, k, v = rearrange(self.to_qkv(x), "b n (c h d) -> c b h n d", c=3, h=self.heads)
        attended = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1) @ v
        return self.to_out(rearrange(attended, "b h n d -> b n (h d)"))

class Transformer(nn.Module):
    def __init__(self, dim, depth, heads):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList([PreNorm(dim, Attention(dim, heads, 64)), PreNorm(dim, nn.Identity())])
            for _ in range(depth)
        )

    def forward(self, x):
        aux_loss = torch.zeros(1).cuda()
        for attention, workspace in self.layers:
            x = attention(x) + x
            written, aux = workspace(x)
            x, aux_loss = written + x, aux_loss + aux
        return x, aux_loss

class ViT(nn.Module):
    def __init__(self, *, image_size, patch_size, num_classes, dim, depth, heads, mlp_dim, sparse):
        super().__init__()
        self.to_patch_embedding = nn.Sequential(
            Rearrange("b c (h p) (w q) -> b (h w) (p q c)", p=patch_size, q=patch_size),
            nn.LayerNorm(3 * patch_size**2),
            nn.Linear(3 * patch_size**2, dim),
            nn.LayerNorm(dim),
        )
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.transformer = Transformer(dim, depth, heads)
        width = dim * (image_size // patch_size) ** 2
        self.mlp_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_classes))

    def forward(self, images):
        x, aux_loss = self.transformer(self.to_patch_embedding(images))
        return self.mlp_head(x.flatten(1)), aux_loss
"""

SCRIPT = """
import torch
import torch.nn as nn
from hflayers import Hopfield
from MHA import *
from another_package_that_is_not_installed import mha

class MemoryUpdate(nn.Module):
    def __init__(self, hidden_dim, l):
        super().__init__()
        self.mha = MultiHeadAttention(memory_head, hidden_dim, memory_dim, memory_dim)
        self.memory = nn.Parameter(torch.randn(pattern_size, memory_dim), requires_grad=False)
        self.register_buffer("beta", torch.tensor(0.9))

    def forward(self, mem, moe):
        out, _, loss = self.mha(mem[None], moe[None], moe[None], bottleneck)
        moved = self.beta * self.memory.data + (1 - self.beta) * out[0].data
        self.memory.data = moved / moved.norm(dim=1, keepdim=True)
        return self.memory.data, loss

class ModularNN(nn.Module):
    def __init__(self, beta, l):
        super().__init__()
        self.memoryupdate = MemoryUpdate(hidden_dim, l)
        self.fc1, self.fc2 = nn.Linear(hidden_dim, mlp_dim), nn.Linear(mlp_dim, hidden_dim)
        self.fc3 = nn.Linear(memory_dim, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)
        assert HN and static
        self.hopfield = Hopfield(scaling=beta)

    def forward(self, x):
        u = self.norm(self.fc2(nn.functional.gelu(self.fc1(x.reshape(-1, hidden_dim)))))
        memory, aux_loss = self.memoryupdate(self.memoryupdate.memory.data, u)
        u = u.reshape(-1, dim, hidden_dim)
        stored = self.fc3(memory).expand(len(u), -1, -1)
        return self.hopfield((stored, u, stored)) + u, aux_loss

raise RuntimeError("the script must not run: it downloads data and trains")
"""

HOPFIELD = """
from torch import nn

class Hopfield(nn.Module):
    def __init__(self, scaling):
        super().__init__()
        self.scaling = scaling

    def forward(self, patterns):
        stored, state, projected = patterns
        return (self.scaling * state @ stored.mT).softmax(dim=-1) @ projected
"""


def write_official(folder: Path) -> Path:
    """Write the files of the official code that a model needs."""
    folder.mkdir()
    for name, text in {"MHA.py": ATTENTION, "vit_hn.py": VIT, "ait.py": SCRIPT}.items():
        (folder / name).write_text(text)
    return folder


def write_hopfield(folder: Path) -> Path:
    """Write the package that the official code imports."""
    (folder / "hflayers").mkdir(parents=True)
    (folder / "hflayers" / "__init__.py").write_text(HOPFIELD)
    return folder
