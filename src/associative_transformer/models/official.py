"""Checkpoints of the official code (github.com/yuweisunn/associative-transformer)."""

from collections.abc import Mapping
from math import isqrt

import torch
from einops import rearrange
from torch import Tensor

from associative_transformer.interface import UserError
from associative_transformer.models.ait import AiT, AiTConfig
from associative_transformer.workspace_config import WorkspaceConfig


def load_official(
    state_dict: Mapping[str, Tensor], bottleneck: int = 512, beta: float = 1.0
) -> AiT:
    """Build an AiT from a checkpoint of the official code (yuweisunn/associative-transformer).

    Checkpoints for Sort-of-CLEVR, whose models take questions, are read too. All sizes follow from
    the shapes, except for `bottleneck` and `beta`, which a state dict does not contain. The write
    is detached, as in that code, and the model is in evaluation mode. Raises UserError if a key is
    unknown or missing, or a value does not fit.
    """
    state_dict = {key.removeprefix("module."): value for key, value in state_dict.items()}
    for key, value in state_dict.items():
        if not value.is_floating_point() or value.nbytes > value.untyped_storage().nbytes():
            raise UserError(f"{key!r} of the official checkpoint does not hold all its numbers")
    try:
        config = _official_config(state_dict, bottleneck, beta)
        with torch.device("meta"):  # whose weights take no memory: the sizes may be wrong
            outline = AiT(config)
            renamed = _rename_official(state_dict, outline)
            outline.load_state_dict(renamed, assign=True)
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"the official checkpoint lacks {error}") from None
    except Exception as error:  # shapes of another model can raise nearly anything
        reason = " ".join(str(error).split())
        raise UserError(f"the shapes of the official checkpoint do not fit: {reason}") from error
    model = AiT(config)
    model.load_state_dict(renamed)
    return model.eval()


def _rename_official(state_dict: Mapping[str, Tensor], model: AiT) -> dict[str, Tensor]:
    """Return the weights of an official checkpoint under our names."""
    wanted = model.state_dict().keys()
    renamed: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        name = _official_name(key)
        if name is None:
            continue
        if name not in wanted:
            raise UserError(f"{key!r} is not a weight of the official Associative Transformer")
        if name.endswith("workspace.to_prior.weight"):  # heads merge as (D, S) there, (S, D) here
            value = rearrange(value, "o (d s) -> o (s d)", s=model.config.workspace.num_heads)
        renamed[name] = value
    if missing := wanted - renamed.keys():
        raise UserError(
            f"the official checkpoint lacks the weights for {', '.join(sorted(missing))}"
        )
    return renamed


def _official_config(state_dict: Mapping[str, Tensor], bottleneck: int, beta: float) -> AiTConfig:
    shape = {key: tuple(value.shape) for key, value in state_dict.items()}
    block, head_dim = "transformer.layers.0.1.fn.", 64
    num_classes, width = shape["mlp_head.1.weight"]
    embed_dim, patch = shape["to_patch_embedding.2.weight"]
    num_channels = 3 if patch % 3 == 0 and isqrt(patch // 3) ** 2 == patch // 3 else 1
    patch_size = isqrt(patch // num_channels)
    num_priors, prior_dim = shape[block + "memoryupdate.memory"]
    old_share = float(state_dict[block + "memoryupdate.beta"])
    question_dim = shape.get("question_to_embedding.1.weight", (0, 0))[1]
    num_patches = width // embed_dim - (question_dim > 0)
    return AiTConfig(
        image_size=isqrt(num_patches) * patch_size,
        patch_size=patch_size,
        num_channels=num_channels,
        num_classes=num_classes,
        question_dim=question_dim,
        embed_dim=embed_dim,
        depth=len({key.split(".")[2] for key in shape if key.startswith("transformer.layers.")}),
        num_heads=shape["transformer.layers.0.0.fn.to_qkv.weight"][0] // (3 * head_dim),
        mlp_ratio=shape[block + "fc1.weight"][0] / embed_dim,
        workspace=WorkspaceConfig(
            num_priors=num_priors,
            prior_dim=prior_dim,
            num_heads=shape[block + "memoryupdate.mha.w_qs.weight"][0] // prior_dim,
            bottleneck=bottleneck,
            beta=beta,
            smoothing=round(1 - old_share, 6),
            differentiable_write=False,
            dropout=0.0,
        ),
    )


_OFFICIAL_ENDS = {
    "to_patch_embedding.1": "embed.patches.0",
    "to_patch_embedding.2": "embed.patches.1",
    "to_patch_embedding.3": "embed.patches.2",
    "question_to_embedding.0": "embed.question.0",
    "question_to_embedding.1": "embed.question.1",
    "question_to_embedding.2": "embed.question.2",
    "mlp_head.0": "head.1",
    "mlp_head.1": "head.2",
}
_OFFICIAL_BLOCK = {
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
    "1.fn.memoryupdate": "workspace",
    "1.fn.fc3": "workspace.to_attractor",
}


def _official_name(key: str) -> str | None:
    """Translate a key of the official state dict; return None if that code never uses it."""
    module, _, leaf = key.rpartition(".")
    if key in ("pos_embedding", "cls_token") or module == "to_patch_embedding_cnn.0":
        return None
    if module in _OFFICIAL_ENDS:
        return f"{_OFFICIAL_ENDS[module]}.{leaf}"
    layer, _, part = module.removeprefix("transformer.layers.").partition(".")
    if part == "1.fn.memoryupdate":
        if leaf == "beta":  # share of the old memory: `smoothing` in our configuration
            return None
        leaf = {"memory": "priors"}.get(leaf, leaf)
    return f"blocks.{layer}.{_OFFICIAL_BLOCK.get(part, part)}.{leaf}"
