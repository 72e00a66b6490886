"""Recipes on MiniSpeech, a small synthetic corpus that the demo generates."""
