"""Moved to ``speechbrain_vq.dataio.manifests``; kept for one release."""

from speechbrain_vq.dataio.manifests import read_manifest

__all__ = ["read_manifest"]
