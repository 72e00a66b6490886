"""Former name of ``speechbrain_vq.dataio.manifests``, kept for one release."""

import warnings

from speechbrain_vq.dataio.manifests import read_manifest

__all__ = ["read_manifest"]

warnings.warn(
    "speechbrain_vq.evaluation.manifest has moved to speechbrain_vq.dataio.manifests.",
    DeprecationWarning,
    stacklevel=2,
)
