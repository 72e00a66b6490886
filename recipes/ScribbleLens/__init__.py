"""Recipes on ScribbleLens, lines of Dutch handwriting from 1600 to 1725."""
