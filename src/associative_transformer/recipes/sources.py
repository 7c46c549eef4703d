"""The models of Table 1, trained as in their own sources if that training is known.

`ait train cifar10-brims-source`. There are two differences: learning rates change once per epoch,
and Triangle has two classes; the sources of Coordination and Set Transformer give it four, two of
which never occur.
"""

from dataclasses import replace

from associative_transformer.data import ImagesConfig, TriangleConfig
from associative_transformer.experiment import Experiment, TrainConfig
from associative_transformer.models.brims import BRIMS
from associative_transformer.models.coordination import COORDINATION
from associative_transformer.models.luna import LUNA_LRA
from associative_transformer.models.perceiver import FourierConfig, PerceiverConfig
from associative_transformer.models.set_transformer import SET_TRANSFORMER
from associative_transformer.optimization import Schedule

TRIANGLE = TriangleConfig(channels=1, raw=True)
CIFAR10 = ImagesConfig("cifar10")
PIXELS = replace(CIFAR10, augment="none", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
FOUR_FIFTHS = replace(PIXELS, val_fraction=0.2)

SHARED_WORKSPACE = TrainConfig(
    epochs=200,
    batch_size=64,
    lr=1e-4,
    weight_decay=0.0,
    schedule=Schedule(warmup_epochs=0, min_lr=0.0),
)
PERCEIVER_PACKAGE = TrainConfig(
    epochs=20,
    batch_size=128,
    lr=1e-3,
    weight_decay=1e-4,
    clip_norm=1.0,
    schedule=Schedule(warmup_epochs=6, warmup_lr=4e-5, min_lr=4e-9, shape="one_cycle"),
)
LONG_RANGE_ARENA = TrainConfig(  # 35,000 updates, the first 4,000 of them a warm-up
    epochs=180,
    batch_size=256,
    lr=5e-3,
    betas=(0.9, 0.98),
    weight_decay=0.0,
    schedule=Schedule(warmup_epochs=20, warmup_lr=0.0, shape="inverse_sqrt"),
)
MODULES = TrainConfig(
    epochs=100,
    batch_size=64,
    lr=1e-3,
    weight_decay=0.0,
    clip_norm=1.0,
    schedule=Schedule(warmup_epochs=0, min_lr=1e-3),
)

SMALL_PERCEIVER = PerceiverConfig(
    fourier=FourierConfig(num_bands=6, max_freq=10.0),
    num_latents=128,
    latent_dim=128,
    depth=3,
    num_selfs=2,
    num_heads=4,
    dropout=0.1,
)
SLOTS = replace(COORDINATION, image_size=64, num_channels=1, num_classes=2, mlp_ratio=2.0)
INDUCING = replace(SET_TRANSFORMER, image_size=64, num_channels=1, num_classes=2)

# fmt: off
EXPERIMENTS = [
    Experiment("triangle-coordination-source",    TRIANGLE,    SLOTS,           SHARED_WORKSPACE),
    Experiment("triangle-set-transformer-source", TRIANGLE,    INDUCING,        SHARED_WORKSPACE),
    Experiment("cifar10-perceiver-source",        CIFAR10,     SMALL_PERCEIVER, PERCEIVER_PACKAGE),
    Experiment("cifar10-brims-source",            FOUR_FIFTHS, BRIMS,           MODULES),
    Experiment("cifar10-luna-lra",                PIXELS,      LUNA_LRA,        LONG_RANGE_ARENA),
]
# fmt: on
