"""Recipes, with one folder per dataset and one subfolder per task."""
