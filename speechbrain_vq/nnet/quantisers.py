"""Deprecated name of ``quantizers``, for yaml files that contain it."""

from .quantizers import ResidualVectorQuantizer, VectorQuantizer, VQOutput

__all__ = ["ResidualVectorQuantizer", "VQOutput", "VectorQuantizer"]
