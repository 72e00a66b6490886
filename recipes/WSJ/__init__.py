"""Recipes on WSJ, the Wall Street Journal corpus of read English."""
