"""Recipes on WSJ, the Wall Street Journal read aloud."""
