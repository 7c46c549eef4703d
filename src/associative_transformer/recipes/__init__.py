"""The recipes: every experiment that has a name."""

from associative_transformer.recipes import classification

RECIPES = {experiment.name: experiment for experiment in classification.EXPERIMENTS}

PUBLISHED = classification.PUBLISHED
"""Published test accuracy by recipe, in percent."""
