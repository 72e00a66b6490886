"""Recipes on LibriSpeech, a thousand hours of read English."""
