"""Former name of ``speechbrain_vq.inference.tokens``, kept for one release."""

from speechbrain_vq._compat import moved

__getattr__ = moved(__name__, "speechbrain_vq.inference.tokens")
