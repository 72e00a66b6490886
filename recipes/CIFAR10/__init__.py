"""Recipes on CIFAR-10, and on other small images of the same layout."""
