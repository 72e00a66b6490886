"""Moved to ``speechbrain_vq.dataio.audio``; kept for one release."""

from .audio import AudioError, check_audio

__all__ = ["AudioError", "check_audio"]
