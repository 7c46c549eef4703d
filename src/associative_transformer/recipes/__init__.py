"""The recipes: every experiment that has a name."""

from associative_transformer.recipes import classification, relational

RECIPES = {
    experiment.name: experiment
    for experiment in (*classification.EXPERIMENTS, *relational.EXPERIMENTS)
}

PUBLISHED = {name: f"{accuracy:.2f} %" for name, accuracy in classification.PUBLISHED.items()} | {
    name: f"{binary:.2f} % binary, {other:.2f} % not" if other else f"{binary:.2f} % binary"
    for name, (binary, other) in relational.PUBLISHED.items()
}
"""Published test accuracy by recipe, in words."""
