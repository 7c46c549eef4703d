"""The learning rate of each epoch, or of each step."""

import math

from associative_transformer.experiment import TrainConfig


def learning_rate(train: TrainConfig, epoch: int | float, steps_per_epoch: int = 1) -> float:
    """Return the learning rate at a moment of the training.

    `epoch` counts the epochs that are complete at this moment: step i of epoch e, both counted
    from 0, is at e + i / n for an epoch of n steps. With `schedule.per` "epoch", all steps of an
    epoch have the rate of its first step, and n is taken as 1.

    During the warm-up it rises from `warmup_lr` to `lr`, linearly or, for `one_cycle`, along half
    a cosine. Then, t epochs after the warm-up and with a cosine of length T:

        cosine, one_cycle   min_lr + (lr - min_lr) (1 + cos(pi t / T)) / 2
        inverse_sqrt        lr sqrt(warmup_epochs / epoch)
        warmup_stable_decay lr, and during the decay of length D = decay_share * epochs at the end
                            min_lr + (lr - min_lr) (epochs - epoch) / D

    Without a warm-up, `inverse_sqrt` has the rate `lr` until the end of the first epoch, and then
    lr / sqrt(epoch). `one_cycle` has T = epochs - warmup_epochs - 1 / n, so that it reaches
    `min_lr` in the last epoch or, per step, in the last step, as torch's OneCycleLR does. `cosine`
    has T = epochs, as in the official code, so the warm-up cuts off its end.
    """
    s = train.schedule
    if s.per == "epoch":
        epoch, steps_per_epoch = math.floor(epoch), 1
    if epoch < s.warmup_epochs:
        progress = epoch / s.warmup_epochs
        if s.shape == "one_cycle":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return s.warmup_lr + progress * (train.lr - s.warmup_lr)
    if s.shape == "inverse_sqrt":
        return train.lr * math.sqrt(max(s.warmup_epochs, 1) / max(epoch, 1))
    if s.shape == "warmup_stable_decay":
        left = (train.epochs - epoch) / (s.decay_share * train.epochs)
        return s.min_lr + (train.lr - s.min_lr) * min(left, 1.0)
    length: float = train.epochs
    if s.shape == "one_cycle":
        step = 1 / steps_per_epoch
        length = max(train.epochs - s.warmup_epochs - step, step)
    cosine = math.cos(math.pi * (epoch - s.warmup_epochs) / length)
    return s.min_lr + (train.lr - s.min_lr) * (1 + cosine) / 2
