"""Removed: ``CodebookTrainer`` gives codebooks their parameter groups."""


def __getattr__(name):
    if name == "CodebookOptimizer":
        raise ImportError("It is now CodebookTrainer(model, optimizer).")
    raise AttributeError(name)
