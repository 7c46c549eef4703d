"""Our weights under the names of the official code."""

import torch
from torch import Tensor

from associative_transformer.models.ait import AiT

WRITE = "transformer.layers.{}.1.fn.memoryupdate."
OUTSIDE_BLOCKS = {
    "to_patch_embedding.1": "embed.patches.0",
    "to_patch_embedding.2": "embed.patches.1",
    "to_patch_embedding.3": "embed.patches.2",
    "question_to_embedding.0": "embed.question.0",
    "question_to_embedding.1": "embed.question.1",
    "question_to_embedding.2": "embed.question.2",
    "mlp_head.0": "head.1",
    "mlp_head.1": "head.2",
}
INSIDE_BLOCKS = {  # names of our parameters by their official names
    "0.norm": "norm1",
    "0.fn.to_qkv": "attention.to_qkv",
    "0.fn.to_out.0": "attention.to_out",
    "1.norm": "norm2",
    "1.fn.fc1": "feed_forward.0",
    "1.fn.fc2": "feed_forward.2",
    "1.fn.norm": "norm3",
    "1.fn.memoryupdate.mha.w_qs": "workspace.to_q",
    "1.fn.memoryupdate.mha.w_ks": "workspace.to_k",
    "1.fn.memoryupdate.mha.w_vs": "workspace.to_v",
    "1.fn.memoryupdate.mha.fc": "workspace.to_prior",
    "1.fn.memoryupdate.mha.layer_norm": "workspace.norm",
    "1.fn.fc3": "workspace.to_attractor",
}


def official_names(model: AiT) -> dict[str, str]:
    """Map the name of each of our parameters and memories to the official one."""
    modules = {mine: official for official, mine in OUTSIDE_BLOCKS.items()}
    for i in range(len(model.blocks)):
        for official, mine in INSIDE_BLOCKS.items():
            modules[f"blocks.{i}.{mine}"] = f"transformer.layers.{i}.{official}"
    names = {
        f"blocks.{i}.workspace.priors": f"{WRITE.format(i)}memory"
        for i in range(len(model.blocks))
    }
    for key, _ in model.named_parameters():
        module, _, leaf = key.rpartition(".")
        names[key] = f"{modules[module]}.{leaf}"
    return names


def split_by_token(weight: Tensor, num_heads: int) -> Tensor:
    """Reorder our W^O, with columns (S, D), as in the official code: (D, S)."""
    out, width = weight.shape
    permuted = torch.empty_like(weight)
    for head in range(num_heads):
        for d in range(width // num_heads):
            permuted[:, d * num_heads + head] = weight[:, head * (width // num_heads) + d]
    assert out == len(permuted)
    return permuted


def to_official(model: AiT) -> dict[str, Tensor]:
    """Return the state dict of the official code, without what it never uses."""
    names, state = official_names(model), {}
    for key, value in model.state_dict().items():
        if key.endswith("to_prior.weight"):
            value = split_by_token(value, model.config.workspace.num_heads)
        state[names[key]] = value.clone()
    for i in range(len(model.blocks)):
        state[f"{WRITE.format(i)}beta"] = torch.tensor(1 - model.config.workspace.smoothing)
    return state
