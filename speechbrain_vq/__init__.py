"""A vector-quantized bottleneck for SpeechBrain that does not collapse."""

import importlib.metadata
from typing import TYPE_CHECKING

from ._lazy import attach

if TYPE_CHECKING:
    from .hub import register_module
    from .inference import VoiceConverter, VQTokenizer
    from .nnet import (
        KMeansResult,
        MaskedBatchNorm,
        Reservoir,
        ResidualVectorQuantizer,
        VectorQuantizer,
        VQOutput,
        kmeans,
        nearest,
    )
    from .presets import bundled, preset_names, preset_path
    from .publish import export_pretrained, push_to_hub
    from .training import (
        CodebookTrainer,
        ReinitSchedule,
        VQBrain,
        VQMixin,
    )

__version__ = importlib.metadata.version("speechbrain-vq")

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "hub": ["register_module"],
        "inference": ["VQTokenizer", "VoiceConverter"],
        "nnet": [
            "KMeansResult",
            "MaskedBatchNorm",
            "Reservoir",
            "ResidualVectorQuantizer",
            "VQOutput",
            "VectorQuantizer",
            "kmeans",
            "nearest",
        ],
        "presets": ["bundled", "preset_names", "preset_path"],
        "publish": ["export_pretrained", "push_to_hub"],
        "training": [
            "CodebookTrainer",
            "ReinitSchedule",
            "VQBrain",
            "VQMixin",
        ],
    },
)
__all__ += ["__version__"]
