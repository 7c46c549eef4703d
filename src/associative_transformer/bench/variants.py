"""Models to measure: recipes, and variants of the same shape to compare them with.

Dims     B batch   C channels   H W image side   Q question features   O classes
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any, Literal, NamedTuple

import torch
from accelerate.utils import ProjectConfiguration
from jaxtyping import Float
from torch import Tensor, nn

from associative_transformer import functional
from associative_transformer.compute import Precision, autocast, choose_precision
from associative_transformer.experiment import Experiment, TrainConfig
from associative_transformer.interface import ModelOutput, UserError
from associative_transformer.kernels import PoolAttention
from associative_transformer.models import build_model
from associative_transformer.models.ait import AiT, AiTConfig
from associative_transformer.models.vit import ViTConfig
from associative_transformer.recipes import find_recipe
from associative_transformer.training.computing import random_batch
from associative_transformer.training.launch import make_accelerator
from associative_transformer.training.step import TrainingStep

Workload = Literal["step", "infer"]


class Variant(NamedTuple):
    """An experiment, and the function that builds its model."""

    experiment: Experiment  # its name is that of the variant
    build: Callable[[Any], nn.Module] = build_model


def find_variant(name: str, train: TrainConfig, batch_size: int) -> Variant:
    """Return a recipe, or a variant of one, with the precision, compilation and device of `train`.

    `plain:NAME` is an AiT with the plain implementation in `functional`, `triton:NAME` one with
    the Triton kernels, `dense:NAME` one whose priors attend to all tokens, without top-k, and
    `timm:NAME` timm's ViT in the shape of one of ours. Raises UserError if the name is unknown or
    if the variant is not available.
    """
    prefix, _, recipe_name = name.rpartition(":")
    recipe = find_recipe(recipe_name)
    if prefix not in BUILD:
        raise UserError(
            f"unknown prefix '{prefix}:' in {name!r}: use 'plain:', 'triton:', 'dense:', 'timm:' "
            "or no prefix"
        )
    model = recipe.model
    if not isinstance(model, NEEDED[prefix]):
        needed = "a ViT" if prefix == "timm" else "an AiT"
        raise UserError(
            f"'{prefix}:' needs a recipe of {needed}, but {recipe_name} is not one: choose "
            "another recipe"
        )
    if prefix == "dense" and isinstance(model, AiTConfig):
        model = replace(model, workspace=replace(model.workspace, bottleneck=None))
    if prefix == "triton" and (train.device == "cpu" or not torch.cuda.is_available()):
        raise UserError("'triton:' needs a CUDA GPU: use 'plain:' or no prefix on this machine")
    if prefix == "timm" and isinstance(model, ViTConfig):
        check_timm(model)
    train = replace(
        recipe.train,
        batch_size=batch_size,
        precision=train.precision,
        compile=train.compile,
        device=train.device,
    )
    return Variant(replace(recipe, name=name, model=model, train=train), BUILD[prefix])


def build_plain(config: AiTConfig) -> AiT:
    """Build an AiT whose priors attend with the plain implementation."""
    return AiT(config, PoolAttention(functional.pooled_attention))


def build_triton(config: AiTConfig) -> AiT:
    """Build an AiT whose priors attend, and whose tokens read, with the Triton kernels."""
    write, read = (
        import_module(f"associative_transformer.kernels.triton_{name}")
        for name in ("write", "read")
    )
    return AiT(config, PoolAttention(write.pooled_attention), read.hopfield_retrieve)


class TimmViT(nn.Module):
    """timm's VisionTransformer in the shape of our ViT; needs `pip install timm`.

    Image, patch, width, depth, heads and feed-forward are the same, queries, keys and values have
    no bias, and class token and positions are used if our ViT uses them. There are two
    differences: for `head="flatten"`, timm takes the mean of the tokens, with fewer weights in the
    head, and it does not normalize patches before or after their linear map.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        c, by_class_token = config, config.head == "cls"
        self.vit = import_module("timm.models.vision_transformer").VisionTransformer(
            img_size=c.image_size,
            patch_size=c.patch_size,
            in_chans=c.num_channels,
            num_classes=c.num_classes,
            global_pool="token" if by_class_token else "avg",
            embed_dim=c.embed_dim,
            depth=c.depth,
            num_heads=c.num_heads,
            mlp_ratio=c.mlp_ratio,
            qkv_bias=False,
            class_token=by_class_token,
            pos_embed="learn" if c.pos == "learned" else "none",
        )

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        questions: Float[Tensor, "B Q"] | None = None,
    ) -> ModelOutput:
        return ModelOutput(self.vit(images), torch.zeros((), device=images.device))


def check_timm(config: ViTConfig) -> None:
    """Raise UserError if timm is not installed or has no ViT of this shape."""
    try:
        import_module("timm.models.vision_transformer")
    except ModuleNotFoundError:
        raise UserError("timm is not installed: pip install timm") from None
    if config.question_dim:
        raise UserError("timm's ViT takes no questions: choose a recipe without questions")
    if config.num_heads * config.head_dim != config.embed_dim:
        raise UserError(
            f"timm's ViT needs num_heads * head_dim = embed_dim, but {config.num_heads} * "
            f"{config.head_dim} is not {config.embed_dim}: choose another recipe"
        )


BUILD: dict[str, Callable[[Any], nn.Module]] = {
    "": build_model,
    "plain": build_plain,
    "triton": build_triton,
    "dense": build_model,
    "timm": TimmViT,
}
NEEDED: dict[str, type] = {
    "": object,
    "plain": AiTConfig,
    "triton": AiTConfig,
    "dense": AiTConfig,
    "timm": ViTConfig,
}


def prepare_model(variant: Variant, workload: Workload) -> Callable[[], object]:
    """Build the model on its device and return the function to time."""
    experiment = variant.experiment
    train = experiment.train
    accelerator = make_accelerator(train, ProjectConfiguration())
    model = variant.build(experiment.model)
    batch = random_batch(experiment, train.batch_size, accelerator.device)
    if workload == "step":
        step = TrainingStep(model, train, accelerator)
        if train.compile == "on":
            step.compile()
        return partial(step, batch)
    model = model.to(accelerator.device).eval()
    if train.compile == "on":
        model.compile()

    @torch.inference_mode()
    def infer() -> object:
        with autocast(accelerator.device, find_precision(train)):
            return model(batch.images, batch.questions)

    return infer


def find_precision(train: TrainConfig) -> Precision:
    """Return the precision of `train`; "auto" is replaced by the one it selects on the device."""
    device = make_accelerator(train, ProjectConfiguration()).device
    return choose_precision(train.precision, device, None).precision
