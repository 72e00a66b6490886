"""Vector quantizers and their parts, in PyTorch without SpeechBrain."""

from .codebooks import Codebook, EMACodebook
from .estimators import rotation_trick, straight_through
from .kmeans import KMeansResult, kmeans
from .normalization import MaskedBatchNorm
from .quantizers import ResidualVectorQuantizer, VectorQuantizer, VQOutput
from .reservoir import Reservoir
from .search import InvertedLists, nearest

__all__ = [
    "Codebook",
    "EMACodebook",
    "InvertedLists",
    "KMeansResult",
    "MaskedBatchNorm",
    "Reservoir",
    "ResidualVectorQuantizer",
    "VQOutput",
    "VectorQuantizer",
    "kmeans",
    "nearest",
    "rotation_trick",
    "straight_through",
]
