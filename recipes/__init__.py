"""Recipes: one folder per dataset, one subfolder per task."""
