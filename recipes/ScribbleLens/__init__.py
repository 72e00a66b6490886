"""Recipes on ScribbleLens, lines of Dutch handwriting, 1600 to 1725."""
