"""Experiments with the workspace per image, which is not part of the paper, and alternatives.

For example: `ait train cifar10-ait-image-tiny`. All models except those named `-small` have two
layers of width 128, 4 heads of width 32, learned positions and, in an AiT, 16 priors of width 32.
On each data set, they are trained with the same settings. The head takes the mean of the tokens,
or all tokens concatenated (`flatten`), which mixes them; for questions, it takes the token of the
question.

- `vit`: self-attention alone; `norm`: with a LayerNorm after the feed-forward, as in AiT
- `ait`: self-attention and a memory of the batch, as published; `nodropout`: without the dropout
  of the write; `competition`: with competing priors and centered values; `unread`: the tokens
  write but do not read; `bare`: the same without the LayerNorm
- `ait-image`: a memory for each image, without self-attention; `attention`: with it
"""

from dataclasses import replace

from associative_transformer.data import ImagesConfig
from associative_transformer.experiment import Experiment, TrainConfig
from associative_transformer.models.ait import AIT_SMALL, AiTConfig
from associative_transformer.models.vit import ViTConfig
from associative_transformer.optimization import Schedule
from associative_transformer.recipes.relational import SMALL_SET, clevr
from associative_transformer.workspace_config import WorkspaceConfig

CIFAR10 = ImagesConfig("cifar10")
PER_STEP = Schedule(warmup_epochs=1, warmup_lr=0.0, min_lr=0.0, shape="one_cycle", per="step")
FAST = TrainConfig(
    epochs=8, batch_size=128, lr=1e-3, weight_decay=0.05, clip_norm=1.0, schedule=PER_STEP
)
STANDARD = TrainConfig(epochs=100, batch_size=512, lr=1e-4, weight_decay=0.01)

PER_IMAGE = WorkspaceConfig(num_priors=16, num_heads=4, scope="image")
PER_BATCH = WorkspaceConfig(num_priors=16, num_heads=4, bottleneck=128)  # of 8,192 tokens
COMPETING = replace(PER_BATCH, competition="priors", center_values=True)

VIT = ViTConfig(pos="learned", embed_dim=128, num_heads=4, head_dim=32, mlp_ratio=2.0, head="mean")
AIT = AiTConfig(
    pos="learned",
    embed_dim=128,
    num_heads=4,
    head_dim=32,
    mlp_ratio=2.0,
    head="mean",
    workspace=PER_BATCH,
)
VIT_NORM = replace(VIT, use_output_norm=True)
UNREAD = replace(AIT, read="none")
BARE = replace(UNREAD, use_output_norm=False)
NO_DROPOUT = replace(AIT, workspace=replace(PER_BATCH, dropout=0.0))
HEALTHY = replace(AIT, workspace=COMPETING)
IMAGE = replace(AIT, workspace=PER_IMAGE, use_self_attention=False)
BOTH = replace(IMAGE, use_self_attention=True)
IMAGE_SMALL = replace(
    AIT_SMALL,
    pos="learned",
    head="mean",
    use_self_attention=False,
    workspace=WorkspaceConfig(scope="image"),
)
VIT_SMALL = ViTConfig(pos="learned", head="mean")

VIT_CLEVR = replace(clevr(VIT, 15), head="question")
VIT_NORM_CLEVR = replace(VIT_CLEVR, use_output_norm=True)
IMAGE_CLEVR = replace(clevr(IMAGE, 15), head="question")

TWELVE = replace(FAST, epochs=12)


def _flatten(model: AiTConfig | ViTConfig) -> AiTConfig | ViTConfig:
    return replace(model, head="flatten")


# fmt: off
EXPERIMENTS = [
    Experiment("cifar10-ait-image-tiny",             CIFAR10,   IMAGE,                FAST),
    Experiment("cifar10-ait-image-attention-tiny",   CIFAR10,   BOTH,                 FAST),
    Experiment("cifar10-vit-mean-tiny",              CIFAR10,   VIT,                  FAST),
    Experiment("cifar10-vit-norm-tiny",              CIFAR10,   VIT_NORM,             FAST),
    Experiment("cifar10-ait-mean-tiny",              CIFAR10,   AIT,                  FAST),
    Experiment("cifar10-ait-nodropout-tiny",         CIFAR10,   NO_DROPOUT,           FAST),
    Experiment("cifar10-ait-competition-tiny",       CIFAR10,   HEALTHY,              FAST),
    Experiment("cifar10-ait-unread-tiny",            CIFAR10,   UNREAD,               FAST),
    Experiment("cifar10-ait-bare-tiny",              CIFAR10,   BARE,                 FAST),
    Experiment("cifar10-ait-image-flatten",          CIFAR10,   _flatten(IMAGE),      FAST),
    Experiment("cifar10-ait-image-attention-flatten", CIFAR10,  _flatten(BOTH),       FAST),
    Experiment("cifar10-vit-flatten",                CIFAR10,   _flatten(VIT),        FAST),
    Experiment("cifar10-vit-norm-flatten",           CIFAR10,   _flatten(VIT_NORM),   FAST),
    Experiment("cifar10-ait-flatten",                CIFAR10,   _flatten(AIT),        FAST),
    Experiment("cifar10-ait-nodropout-flatten",      CIFAR10,   _flatten(NO_DROPOUT), FAST),
    Experiment("cifar10-ait-competition-flatten",    CIFAR10,   _flatten(HEALTHY),    FAST),
    Experiment("cifar10-ait-unread-flatten",         CIFAR10,   _flatten(UNREAD),     FAST),
    Experiment("cifar10-ait-bare-flatten",           CIFAR10,   _flatten(BARE),       FAST),
    Experiment("cifar10-ait-image-small",            CIFAR10,   IMAGE_SMALL,          STANDARD),
    Experiment("cifar10-vit-mean-small",             CIFAR10,   VIT_SMALL,            STANDARD),
    Experiment("sort-of-clevr-ait-image-tiny",       SMALL_SET, IMAGE_CLEVR,          TWELVE),
    Experiment("sort-of-clevr-vit-question-tiny",    SMALL_SET, VIT_CLEVR,            TWELVE),
    Experiment("sort-of-clevr-vit-norm-tiny",        SMALL_SET, VIT_NORM_CLEVR,       TWELVE),
]
# fmt: on
