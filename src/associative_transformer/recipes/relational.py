"""Table 2 of the paper, relational reasoning on Sort-of-CLEVR, and small recipes without a GPU.

`ait train sort-of-clevr-ait-small`, then `ait table relational`, which shows the accuracies next
to those of `PUBLISHED`; times and devices are in `docs/explanation/reproduce.md`. All rows share
one training, on binary and non-relational questions together: AdamW, 100 epochs, batches of 64
questions (as in the paper; its code uses 512). Recipes that end in `-p5` have patches of 5 pixels
instead of 15. Coordination and Set Transformer have the sizes of their source on this data set;
their `-source` recipes also train like the source, except that it makes three updates at once, one
for each type of question.
"""

from dataclasses import replace
from typing import NamedTuple

from associative_transformer.data import SortOfClevrConfig
from associative_transformer.data.questions import TYPES
from associative_transformer.experiment import Experiment, TrainConfig
from associative_transformer.models import ModelConfig
from associative_transformer.models.ait import AIT_BASE, AIT_MEDIUM, AIT_SMALL
from associative_transformer.models.coordination import COORDINATION, SlotsConfig
from associative_transformer.models.dense import DENSE_BASE, DENSE_SMALL
from associative_transformer.models.relation_network import CNN_MLP, CNN_RN
from associative_transformer.models.set_transformer import SET_TRANSFORMER
from associative_transformer.models.vit import VIT_SMALL
from associative_transformer.optimization import Schedule
from associative_transformer.workspace_config import WorkspaceConfig


class Published(NamedTuple):
    """Published accuracies in percent; the paper calls binary questions relational."""

    binary: float | None
    non_relational: float | None


def clevr(model: ModelConfig, patch_size: int) -> ModelConfig:
    """Return a model with patches for the images, questions and answers of Sort-of-CLEVR."""
    return replace(model, image_size=75, patch_size=patch_size, num_classes=10, question_dim=18)


SLOTS = replace(COORDINATION, mlp_ratio=2.0, slots=SlotsConfig(bottleneck=5, mlp_depth=4))
INDUCING = replace(SET_TRANSFORMER, hidden_dim=512)

FULL_SET = SortOfClevrConfig()
STANDARD = TrainConfig(epochs=100, batch_size=64, lr=1e-4, weight_decay=0.01)

# fmt: off
EXPERIMENTS = [
    Experiment("sort-of-clevr-ait-small",          FULL_SET, clevr(AIT_SMALL, 15),   STANDARD),
    Experiment("sort-of-clevr-ait-medium",         FULL_SET, clevr(AIT_MEDIUM, 15),  STANDARD),
    Experiment("sort-of-clevr-ait-base",           FULL_SET, clevr(AIT_BASE, 15),    STANDARD),
    Experiment("sort-of-clevr-vit-small",          FULL_SET, clevr(VIT_SMALL, 15),   STANDARD),
    Experiment("sort-of-clevr-coordination",       FULL_SET, clevr(SLOTS, 15),       STANDARD),
    Experiment("sort-of-clevr-set-transformer",    FULL_SET, clevr(INDUCING, 15),    STANDARD),
    Experiment("sort-of-clevr-cnn-rn",             FULL_SET, CNN_RN,                 STANDARD),
    Experiment("sort-of-clevr-cnn-mlp",            FULL_SET, CNN_MLP,                STANDARD),
    Experiment("sort-of-clevr-dense-small",        FULL_SET, clevr(DENSE_SMALL, 15), STANDARD),
    Experiment("sort-of-clevr-dense-base",         FULL_SET, clevr(DENSE_BASE, 15),  STANDARD),
    Experiment("sort-of-clevr-ait-small-p5",       FULL_SET, clevr(AIT_SMALL, 5),    STANDARD),
    Experiment("sort-of-clevr-ait-medium-p5",      FULL_SET, clevr(AIT_MEDIUM, 5),   STANDARD),
    Experiment("sort-of-clevr-ait-base-p5",        FULL_SET, clevr(AIT_BASE, 5),     STANDARD),
    Experiment("sort-of-clevr-vit-small-p5",       FULL_SET, clevr(VIT_SMALL, 5),    STANDARD),
    Experiment("sort-of-clevr-coordination-p5",    FULL_SET, clevr(SLOTS, 5),        STANDARD),
    Experiment("sort-of-clevr-set-transformer-p5", FULL_SET, clevr(INDUCING, 5),     STANDARD),
    Experiment("sort-of-clevr-dense-small-p5",     FULL_SET, clevr(DENSE_SMALL, 5),  STANDARD),
    Experiment("sort-of-clevr-dense-base-p5",      FULL_SET, clevr(DENSE_BASE, 5),   STANDARD),
]
# fmt: on

ALL_TYPES = SortOfClevrConfig(question_types=TYPES)
CONSTANT = TrainConfig(
    epochs=100,
    batch_size=64,
    lr=1e-4,
    weight_decay=0.0,
    schedule=Schedule(warmup_epochs=0, min_lr=1e-4),
)

# fmt: off
SOURCES = [
    Experiment("sort-of-clevr-coordination-source",    ALL_TYPES, clevr(SLOTS, 15),    CONSTANT),
    Experiment("sort-of-clevr-set-transformer-source", ALL_TYPES, clevr(INDUCING, 15), CONSTANT),
]
# fmt: on

AIT_TINY = replace(
    clevr(AIT_SMALL, 15),
    pos="learned",
    embed_dim=128,
    num_heads=2,
    mlp_ratio=2.0,
    workspace=WorkspaceConfig(num_priors=16, prior_dim=16, num_heads=4, bottleneck=256),
)
VIT_TINY = replace(clevr(VIT_SMALL, 15), pos="learned", embed_dim=128, num_heads=2, mlp_ratio=2.0)
SLOTS_TINY = replace(clevr(SLOTS, 15), embed_dim=128)
INDUCING_TINY = replace(clevr(INDUCING, 15), embed_dim=128, hidden_dim=128)
RN_TINY = replace(CNN_RN, conv_dim=8, hidden_dim=64, dropout=0.0)
DENSE_TINY = replace(clevr(DENSE_SMALL, 15), embed_dim=128, mlp_ratio=2.0)

SMALL_SET = SortOfClevrConfig(num_train=5_000)
FAST = TrainConfig(
    epochs=6,
    batch_size=128,
    lr=1e-3,
    weight_decay=0.05,
    clip_norm=1.0,
    schedule=Schedule(warmup_epochs=1, warmup_lr=1e-4),
)

# fmt: off
TINY = [
    Experiment("sort-of-clevr-ait-tiny",             SMALL_SET, AIT_TINY,      FAST),
    Experiment("sort-of-clevr-vit-tiny",             SMALL_SET, VIT_TINY,      FAST),
    Experiment("sort-of-clevr-coordination-tiny",    SMALL_SET, SLOTS_TINY,    FAST),
    Experiment("sort-of-clevr-set-transformer-tiny", SMALL_SET, INDUCING_TINY, FAST),
    Experiment("sort-of-clevr-cnn-rn-tiny",          SMALL_SET, RN_TINY,       FAST),
    Experiment("sort-of-clevr-cnn-mlp-tiny",         SMALL_SET, CNN_MLP,       FAST),
    Experiment("sort-of-clevr-dense-tiny",           SMALL_SET, DENSE_TINY,    FAST),
]

PUBLISHED = {  # slides; AiT-Base: the CVPR version; the patch size is not stated
    "sort-of-clevr-ait-small":       Published(76.82, 99.85),
    "sort-of-clevr-ait-base":        Published(80.03, None),
    "sort-of-clevr-coordination":    Published(73.43, 96.31),
    "sort-of-clevr-set-transformer": Published(47.63, 57.65),
    "sort-of-clevr-cnn-rn":          Published(81.07, 98.82),
    "sort-of-clevr-cnn-mlp":         Published(60.08, 99.47),
    "sort-of-clevr-dense-base":      Published(46.93, 57.71),
    "sort-of-clevr-dense-small":     Published(47.28, 57.68),
}
# fmt: on
