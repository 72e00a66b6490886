"""Recipes for VCTK."""
