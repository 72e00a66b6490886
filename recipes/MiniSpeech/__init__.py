"""Recipes on MiniSpeech, a small corpus that the demo makes for itself."""
