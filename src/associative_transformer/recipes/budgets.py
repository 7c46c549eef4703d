"""Budgets: shortened recipes, which a table shows in rows of their own."""

from dataclasses import replace
from typing import Literal

from associative_transformer.experiment import Experiment, fingerprint

Budget = Literal["paper", "short", "smoke"]
BUDGETS: tuple[Budget, ...] = ("paper", "short", "smoke")

SHORT_EPOCHS = 10
SMOKE_IMAGES = 40  # for training, and as many for testing; one per class if there are more classes
SMOKE_BATCH = 20


def shorten(recipe: Experiment, budget: Budget) -> Experiment:
    """Shorten a recipe to a budget and name it as `ait train` names a recipe with overrides.

    paper: the recipe itself. short: at most 10 epochs, of which at most one is warm-up.
    smoke: one epoch of 40 images (at least one per class) in batches of 20, tested on as many
    other images, as a quick check that everything runs.
    """
    train = recipe.train
    if budget == "paper":
        return recipe
    if budget == "short":
        epochs = min(train.epochs, SHORT_EPOCHS)
        schedule = replace(train.schedule, warmup_epochs=min(train.schedule.warmup_epochs, 1))
        short = replace(recipe, train=replace(train, epochs=epochs, schedule=schedule))
    else:
        images = max(SMOKE_IMAGES, recipe.model.num_classes)
        train = replace(train, epochs=1, batch_size=SMOKE_BATCH)
        short = replace(recipe, data=recipe.data.shortened(images), train=train)
    if short == recipe:
        return recipe
    return replace(short, name=f"{recipe.name}+{fingerprint(short)}")
