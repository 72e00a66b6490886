"""Recipes on VCTK, English sentences read by 110 speakers."""
