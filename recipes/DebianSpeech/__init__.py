"""Recipes on the recorded speech that Debian's packages carry."""
