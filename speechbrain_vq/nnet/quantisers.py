"""Deprecated name of ``quantizers``, which published yaml files contain."""

from .quantizers import ResidualVectorQuantizer, VectorQuantizer, VQOutput

__all__ = ["ResidualVectorQuantizer", "VQOutput", "VectorQuantizer"]
