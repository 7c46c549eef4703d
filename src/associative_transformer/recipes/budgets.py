"""Shorter trainings of a recipe, for a look at it; they never stand in a row of the full one."""

from dataclasses import replace
from typing import Literal

from associative_transformer.data import ImagesConfig, SortOfClevrConfig
from associative_transformer.experiment import Experiment, fingerprint

Budget = Literal["paper", "short", "smoke"]
BUDGETS: tuple[Budget, ...] = ("paper", "short", "smoke")

SHORT_EPOCHS = 10
SMOKE_IMAGES = 40  # in training and again in testing; one of each class where that is more
SMOKE_BATCH = 20


def shorten(recipe: Experiment, budget: Budget) -> Experiment:
    """Give the recipe as the budget trains it, named as `ait train` names one with overrides.

    paper: as it is. short: 10 epochs, one of them to warm up, or the recipe itself where it is no
    longer. smoke: one epoch of 40 images in batches of 20, or of an image for each class where
    that is more, scored on as many others, to see that everything runs.
    """
    data, train = recipe.data, recipe.train
    if budget == "paper":
        return recipe
    if budget == "short":
        epochs = min(train.epochs, SHORT_EPOCHS)
        schedule = replace(train.schedule, warmup_epochs=min(train.schedule.warmup_epochs, 1))
        short = replace(recipe, train=replace(train, epochs=epochs, schedule=schedule))
    else:
        images = max(SMOKE_IMAGES, recipe.model.num_classes)
        if isinstance(data, ImagesConfig):
            data = replace(data, limit=images)
        else:
            data = replace(data, num_train=images, num_test=images)
        if isinstance(data, SortOfClevrConfig):
            data = replace(data, num_questions=1)  # of each type about each picture
        train = replace(train, epochs=1, batch_size=SMOKE_BATCH)
        short = replace(recipe, data=data, train=train)
    if short == recipe:
        return recipe
    return replace(short, name=f"{recipe.name}+{fingerprint(short)}")
