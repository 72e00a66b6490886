"""Removed: use ``CodebookTrainer``, which creates the parameter groups."""


def __getattr__(name):
    if name == "CodebookOptimizer":
        raise ImportError(
            "CodebookOptimizer is now CodebookTrainer(model, optimizer)."
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
