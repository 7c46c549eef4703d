"""Grids and searches over fields of a recipe, scored on validation images."""
