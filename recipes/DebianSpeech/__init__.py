"""Recipes on the recorded speech in Debian packages."""
