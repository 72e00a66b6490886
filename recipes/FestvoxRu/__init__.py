"""Recipes on festvox-ru, the Russian voice of Festival in Debian."""
