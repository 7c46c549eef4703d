"""The learning rate of each epoch."""

import math

from associative_transformer.experiment import TrainConfig


def learning_rate(train: TrainConfig, epoch: int) -> float:
    """Return the learning rate of an epoch, counted from 0.

    During the warm-up it rises from `warmup_lr` to `lr`, linearly or, for `one_cycle`, along half
    a cosine. Then, t epochs after the warm-up and with a cosine of length T:

        cosine, one_cycle   min_lr + (lr - min_lr) (1 + cos(pi t / T)) / 2
        inverse_sqrt        lr sqrt(warmup_epochs / epoch)

    `one_cycle` reaches `min_lr` in the last epoch, as torch's OneCycleLR does. `cosine` has
    T = epochs, as in the official code, so the warm-up cuts off its end.
    """
    s = train.schedule
    if epoch < s.warmup_epochs:
        progress = epoch / s.warmup_epochs
        if s.shape == "one_cycle":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return s.warmup_lr + progress * (train.lr - s.warmup_lr)
    if s.shape == "inverse_sqrt":
        return train.lr * math.sqrt(max(s.warmup_epochs, 1) / max(epoch, 1))
    length = train.epochs
    if s.shape == "one_cycle":
        length = max(train.epochs - s.warmup_epochs - 1, 1)
    cosine = math.cos(math.pi * (epoch - s.warmup_epochs) / length)
    return s.min_lr + (train.lr - s.min_lr) * (1 + cosine) / 2
