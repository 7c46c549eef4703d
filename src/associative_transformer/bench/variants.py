"""Models to time: recipes, and rivals of the same shape.

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
from associative_transformer.experiment import Experiment, TrainConfig
from associative_transformer.interface import Batch, ModelOutput, UserError
from associative_transformer.models import build_model
from associative_transformer.models.ait import AiT, AiTConfig
from associative_transformer.models.vit import ViTConfig
from associative_transformer.recipes import find_recipe
from associative_transformer.training.step import TrainingStep, make_accelerator

Workload = Literal["step", "infer"]


class Variant(NamedTuple):
    """An experiment, and how its model is built."""

    experiment: Experiment  # named as the variant
    build: Callable[[Any], nn.Module] = build_model


def find_variant(name: str, train: TrainConfig, batch_size: int) -> Variant:
    """Find a recipe, or a rival of one, with the precision, compilation and device of `train`.

    `plain:NAME` is an AiT in the plain form of `functional`, `triton:NAME` one with the kernels
    in Triton, `dense:NAME` one whose priors take from all tokens, without top-k, `timm:NAME`
    timm's ViT of the shape of one of ours. Raises UserError where there is none of that name.
    """
    prefix, _, recipe_name = name.rpartition(":")
    recipe = find_recipe(recipe_name)
    if prefix not in BUILD:
        raise UserError(
            f"there is no {prefix}: in front of a recipe, as in {name!r}: "
            "write plain:, triton:, dense: or timm:"
        )
    model = recipe.model
    if not isinstance(model, FOR[prefix]):
        wanted = "ViT" if prefix == "timm" else "AiT"
        raise UserError(f"{prefix}: goes before a recipe of {wanted}, not before {recipe_name}")
    if prefix == "dense" and isinstance(model, AiTConfig):
        model = replace(model, workspace=replace(model.workspace, bottleneck=None))
    if prefix == "triton" and (train.device == "cpu" or not torch.cuda.is_available()):
        raise UserError("the kernels in Triton need a CUDA GPU: take plain: or no prefix here")
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
    """Build an AiT whose priors attend in the plain form."""
    return AiT(config, functional.pooled_attention)


def build_triton(config: AiTConfig) -> AiT:
    """Build an AiT whose priors attend, and whose tokens read, in Triton."""
    write, read = (
        import_module(f"associative_transformer.kernels.triton_{name}")
        for name in ("write", "read")
    )
    return AiT(config, write.pooled_attention, read.hopfield_retrieve)


class TimmViT(nn.Module):
    """Run timm's VisionTransformer in the sizes of our ViT; `pip install timm`.

    The same: image, patch, width, depth, heads, feed-forward, no bias of queries, keys and
    values, class token and positions or none. What timm has no twin of: for `head="flatten"` it
    takes the mean of the tokens, with fewer weights in the head, and it does not normalize
    patches before or after their linear map.
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
    """Raise UserError where timm is not installed or has no ViT of this shape."""
    try:
        import_module("timm.models.vision_transformer")
    except ModuleNotFoundError:
        raise UserError("timm is not installed: pip install timm") from None
    if config.question_dim:
        raise UserError("timm's ViT takes no questions: choose a recipe without any")
    if config.num_heads * config.head_dim != config.embed_dim:
        raise UserError(
            f"timm's ViT wants num_heads * head_dim = embed_dim, but {config.num_heads} * "
            f"{config.head_dim} is not {config.embed_dim}: choose another recipe"
        )


BUILD: dict[str, Callable[[Any], nn.Module]] = {
    "": build_model,
    "plain": build_plain,
    "triton": build_triton,
    "dense": build_model,
    "timm": TimmViT,
}
FOR: dict[str, type] = {
    "": object,
    "plain": AiTConfig,
    "triton": AiTConfig,
    "dense": AiTConfig,
    "timm": ViTConfig,
}


def prepare_model(variant: Variant, what: Workload) -> Callable[[], object]:
    """Build the model on its device and give the function to time."""
    experiment = variant.experiment
    train = experiment.train
    accelerator = make_accelerator(train, ProjectConfiguration())
    model = variant.build(experiment.model)
    batch = random_batch(experiment, accelerator.device)
    if what == "step":
        return partial(TrainingStep(model, train, accelerator), batch)
    model = model.to(accelerator.device).eval()
    if train.compile:
        model.compile()

    @torch.inference_mode()
    def infer() -> object:
        with accelerator.autocast():
            return model(batch.images, batch.questions)

    return infer


def random_batch(experiment: Experiment, device: torch.device) -> Batch:
    """Make up a batch: pixels from 0 to 1, questions and labels."""
    model, size = experiment.model, experiment.train.batch_size
    side, question_dim = model.image_size, getattr(model, "question_dim", 0)
    images = torch.rand(size, model.num_channels, side, side, device=device)
    questions = torch.rand(size, question_dim, device=device) if question_dim else None
    return Batch(images, questions, torch.randint(model.num_classes, (size,), device=device))


def choose_precision(train: TrainConfig) -> Literal["float32", "bfloat16"]:
    """Say what "auto" comes to on this device."""
    mixed = make_accelerator(train, ProjectConfiguration()).mixed_precision
    return "bfloat16" if mixed == "bf16" else "float32"
