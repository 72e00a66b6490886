"""Former name of ``speechbrain_vq.dataio.audio``, kept for one release."""

import warnings

from .audio import AudioError, check_audio

__all__ = ["AudioError", "check_audio"]

warnings.warn(
    "speechbrain_vq.dataio.check has moved to speechbrain_vq.dataio.audio.",
    DeprecationWarning,
    stacklevel=2,
)
