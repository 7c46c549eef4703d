"""AiT and ViT as models of timm. Importing this file registers them.

>>> import timm
>>> import associative_transformer.integrations.timm
>>> model = timm.create_model("ait_tiny", num_classes=7, img_size=64, in_chans=1)

A model returns logits alone, and its backward pass includes the gradient of the balance loss (see
`balance.attach_loss`), so training code only computes `loss(model(x), y)`. If that code scales the
loss before the backward pass, set `model.loss_scale`: to `scaler.get_scale` of a gradient scaler,
or to 1 / n if the losses of n micro-batches are divided by n.

Dims     B batch   C channels   H W image side   N tokens   E width   Q question   O classes
"""

from dataclasses import fields, replace
from functools import partial
from typing import Any, cast, get_args

from einops import rearrange
from jaxtyping import Float
from timm.models import (
    PretrainedCfg,
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    resolve_pretrained_cfg,
)
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from associative_transformer.arguments import image_shape
from associative_transformer.balance import LossScale, attach_loss
from associative_transformer.interface import UserError
from associative_transformer.models.ait import AiT, AiTConfig, BlockOutput
from associative_transformer.models.heads import FlattenHead, HeadKind
from associative_transformer.models.initialize import initialize
from associative_transformer.models.layers import run_block
from associative_transformer.models.transformer import TransformerModel
from associative_transformer.models.vit import ViT, ViTConfig
from associative_transformer.recipes import RECIPES
from associative_transformer.recipes.classification import CIFAR10

Config = AiTConfig | ViTConfig
Indices = int | list[int] | tuple[int, ...] | None
"""Indices of blocks; an integer n means the last n, and None means all."""
Features = list[Float[Tensor, "B ..."]] | list[tuple[Float[Tensor, "B ..."], ...]]
"""The patch tokens after several blocks, alone or with the prefix tokens."""

REGISTERED = {
    "ait_tiny": "cifar10-ait-tiny",
    "ait_small": "cifar10-ait-small",
    "ait_medium": "cifar10-ait-medium",
    "ait_base": "cifar10-ait-base",
    "ait_image_tiny": "cifar10-ait-image-tiny",
    "ait_image_small": "cifar10-ait-image-small",
    "ait_vit_small": "cifar10-vit-small",
    "ait_vit_medium": "cifar10-vit-medium",
    "ait_vit_base": "cifar10-vit-base",
}
"""The models by their names in timm, with the recipes that define their sizes."""

HEADS = {"avg": "mean", "token": "cls"} | {kind: kind for kind in get_args(HeadKind)}
"""The heads by their names in timm and in this package."""


class TransformerForTimm(TransformerModel):
    """Base class that gives AiT and ViT timm's interface; names of weights do not change."""

    blocks: nn.ModuleList
    loss_scale: LossScale = 1.0
    """The factor of the balance loss; see `balance.attach_loss`."""

    def forward(  # type: ignore[override]  # logits alone
        self, images: Float[Tensor, "B C H W"], questions: Float[Tensor, "B Q"] | None = None
    ) -> Float[Tensor, "B O"]:
        return self.forward_head(self.forward_features(images, questions))

    def forward_features(
        self, images: Float[Tensor, "B C H W"], questions: Float[Tensor, "B Q"] | None = None
    ) -> Float[Tensor, "B N E"]:
        """Return the tokens after the last block, with the balance loss attached."""
        return attach_loss(*self.encode(images, questions), self.loss_scale)

    def forward_intermediates(
        self,
        x: Float[Tensor, "B C H W"],
        indices: Indices = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Features | tuple[Float[Tensor, "B N E"], Features]:
        """Return the tokens after the last block, and a list of those after the chosen blocks.

        `indices` chooses the blocks. In the list, the tokens of the patches form a map (NCHW) or a
        sequence (NLC), normalized like the input of the classifier if `norm` is set; prefix
        tokens are left out unless `return_prefix_tokens` is set. `stop_early` skips the
        blocks after the last chosen one, and `intermediates_only` returns only the list.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be NCHW or NLC, not {output_fmt}")
        chosen, last = feature_take_indices(len(self.blocks), indices)
        tokens, taken = self.embed(x), []
        for i, block in enumerate(self.blocks[: last + 1] if stop_early else self.blocks):
            tokens = run_block(block, tokens, recompute=getattr(self, "recompute", False))
            if isinstance(tokens, BlockOutput):
                tokens = attach_loss(*tokens, self.loss_scale)
            if i in chosen:
                taken.append(self.normalize(tokens) if norm else tokens)
        first = self.embed.num_tokens - self.embed.num_patches
        features: Any = [each[:, first:] for each in taken]
        if output_fmt == "NCHW":
            height = self.embed.grid[0]
            features = [rearrange(each, "b (h w) e -> b e h w", h=height) for each in features]
        if return_prefix_tokens and first:
            features = [(y, each[:, :first]) for y, each in zip(features, taken, strict=True)]
        return features if intermediates_only else (tokens, features)

    def normalize(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
        """Apply the norm of the head."""
        if isinstance(self.head, FlattenHead):
            return self.head.pool(x).view_as(x)
        return self.head.norm(x)

    def prune_intermediate_layers(
        self, indices: Indices = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove layers that the chosen blocks do not need; return the chosen indices."""
        chosen, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        self.replace_config(replace(self.config, depth=last + 1))
        if prune_head:
            self.reset_classifier(0)
        if prune_norm and isinstance(self.head, FlattenHead):
            self.head[1] = nn.Identity()
        elif prune_norm:
            self.head.norm = nn.Identity()
        return list(chosen)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Set a new classifier, or remove it if `num_classes` is 0; see `TransformerModel`."""
        head = None if global_pool is None else find_head(global_pool)
        super().reset_classifier(num_classes, head)

    def no_weight_decay(self) -> set[str]:
        """Return the weights that are not decayed: memories, positions and the class token."""
        return super().no_weight_decay() | {"embed.positions", "embed.class_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return patterns for groups of weights: the embedding and each block, then the rest."""
        return {"stem": r"^embed", "blocks": r"^blocks\.(\d+)"}

    @property
    def num_classes(self) -> int:
        """O: number of classes; 0 if the model returns features."""
        return int(self.config.num_classes)

    @property
    def in_chans(self) -> int:
        """C: channels of the images."""
        return int(self.config.num_channels)

    @property
    def global_pool(self) -> str:
        """The kind of head, as this package calls it."""
        return str(self.config.head)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """The name, width and patch size of each block."""
        sizes = {"num_chs": self.config.embed_dim, "reduction": self.config.patch_size}
        return [sizes | {"module": f"blocks.{i}"} for i in range(len(self.blocks))]


class AiTForTimm(TransformerForTimm, AiT, tags=["associative-transformer"]):
    """AiT as a model of timm."""


class ViTForTimm(TransformerForTimm, ViT, tags=["vision-transformer"]):
    """The ViT of this package as a model of timm."""


CLASSES: dict[type, Any] = {AiTConfig: AiTForTimm, ViTConfig: ViTForTimm}


def find_head(global_pool: str) -> HeadKind:
    """Return the head of that name. Raises ValueError if there is none."""
    if global_pool not in HEADS:
        raise ValueError(
            f"global_pool must be one of {', '.join(HEADS)}, not {global_pool!r}; to get the "
            "tokens, call forward_features"
        )
    return cast(HeadKind, HEADS[global_pool])


def configure(base: Config, source: PretrainedCfg, options: dict[str, Any]) -> Config:
    """Apply timm's `options` to a configuration, and remove those that were used.

    Without options, images and classes are those of `source`. Raises ValueError if one is invalid.
    """
    if rate := options.pop("drop_rate", 0.0):
        raise ValueError(
            f"drop_rate must be 0, not {rate}: the head has no dropout; for the tokens, pass "
            "regularization={'dropout': RATE}"
        )
    if rate := options.pop("drop_path_rate", 0.0):
        depth = {"stochastic_depth": rate}
        options["regularization"] = depth | options.pop("regularization", {})
    channels, *shape = source.input_size
    size = options.pop("img_size", shape)
    changes = {
        "num_classes": source.num_classes,
        "num_channels": options.pop("in_chans", channels),
        "image_size": size if isinstance(size, int) else tuple(size),
        "head": find_head(options.pop("global_pool", base.head)),
    }
    own = [field.name for field in fields(base) if field.name in options]
    return _replace(base, changes | {name: options.pop(name) for name in own})


def _replace(config: Any, changes: dict[str, Any]) -> Any:  # noqa: ANN401
    """Return a configuration with other values; dictionaries change nested configurations."""
    inner = {k: _replace(getattr(config, k), v) for k, v in changes.items() if isinstance(v, dict)}
    return replace(config, **changes | inner)


def describe(config: Config, source: PretrainedCfg) -> PretrainedCfg:
    """Return what timm needs to know about a model with this configuration."""
    channels = config.num_channels
    mean, std = (
        values if len(values) == channels else (sum(values) / len(values),) * channels
        for values in (source.mean, source.std)
    )
    return replace(
        source,
        num_classes=config.num_classes,
        input_size=(channels, *image_shape(config.image_size)),
        mean=mean,
        std=std,
        classifier="head.2" if config.head == "flatten" else "head.to_logits",
    )


def adapt_weights(
    state: dict[str, Any], model: TransformerForTimm, source: PretrainedCfg
) -> dict[str, Any]:
    """Return weights that fit the model, given those of a model for the images of `source`.

    `model.initialization` says which ones were adapted or newly initialized (see
    `models.initialize`). Raises UserError if the weights are of another model.
    """
    shapes = [{k: v.shape for k, v in each.items()} for each in (state, model.state_dict())]
    if shapes[0] == shapes[1]:
        return state
    trained = type(model)(configure(model.config, source, {}))
    try:
        trained.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"these are not the weights of a model with {source.num_classes} classes for images "
            f"of {source.input_size}: pass those of the file in pretrained_cfg_overlay"
        ) from error
    model.initialization = initialize(model, trained)
    return model.state_dict()


def _register(name: str, base: Config) -> None:
    """Define a function of that name, which builds the model, and register it with timm."""

    def build(pretrained: bool = False, **options: Any) -> nn.Module:  # noqa: ANN401
        source = resolve_pretrained_cfg(
            name, options.pop("pretrained_cfg", None), options.pop("pretrained_cfg_overlay", None)
        )
        if pretrained and not (source.has_weights or source.state_dict):
            raise UserError(
                f"no weights are published for {name}: use pretrained=False, or load your own "
                "with checkpoint_path=FILE, or add pretrained_cfg_overlay=dict(file=FILE)"
            )
        config = configure(base, source, options)
        return build_model_with_cfg(
            partial(CLASSES[type(config)], config),
            name,
            pretrained,
            pretrained_cfg=describe(config, source),
            pretrained_filter_fn=partial(adapt_weights, source=source),
            feature_cfg={"out_indices": min(3, config.depth), "feature_cls": "getter"},
            kwargs_filter=("num_classes", "in_chans", "img_size"),  # the configuration has them
            **options,
        )

    build.__name__ = build.__qualname__ = name
    globals()[name] = register_model(build)


DEFAULTS = PretrainedCfg(fixed_input_size=True, crop_pct=1.0, mean=CIFAR10.mean, std=CIFAR10.std)
CONFIGS = {name: cast(Config, RECIPES[recipe].model) for name, recipe in REGISTERED.items()}
default_cfgs = generate_default_cfgs({k: describe(c, DEFAULTS) for k, c in CONFIGS.items()})
for _name, _config in CONFIGS.items():
    _register(_name, _config)
