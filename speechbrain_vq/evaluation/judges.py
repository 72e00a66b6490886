"""Judges: pretrained models that score speech. None is used by default.

A judge is a callable ``judge(audio, sample_rate, entry)`` that returns scores
by name. ``audio`` is a dictionary of waveforms [samples]: ``source``,
``output`` and, for conversions, ``target``. ``entry`` is the manifest entry.
The report shows the mean of scores that are numbers. For scores that are pairs
(numerator, denominator), such as errors and words, it shows the ratio of the
sums. A judge may have the attributes ``name`` and ``weights`` for the report,
and ``quantities``.
"""

import importlib.metadata
import pkgutil
import re
from collections.abc import Callable, Iterable

import torch

from .intervals import WeightedRatios
from .metric import NON_NEGATIVE, SHARE, Estimate, Metric, Quantity
from .utterances import EvaluatedModel

_INSTALL = 'It needs pip install "speechbrain-vq[judges]", or: pip install'
_CLOSER = Quantity("closer to the target", "share of pairs", SHARE)


def load_judges(judges: Iterable[str | Callable]) -> dict[str, Callable]:
    """Load judges, and return them by their names in the report; see
    ``load_judge``."""
    judges = [load_judge(judge) for judge in judges]
    names = [_name(judge) for judge in judges]
    if len(set(names)) < len(names):
        raise ValueError(f"Judges must have different names, not {names}.")
    return dict(zip(names, judges, strict=True))


def load_judge(name: str | Callable) -> Callable:
    """Load a judge: ``resemblyzer``, ``whisper``, ``whisper:WEIGHTS``, or your
    own as ``module:callable``. ``WEIGHTS`` is a folder, or a name that
    faster-whisper downloads. Callables are returned unchanged.

    Raises
    ------
    ValueError
        If there is no such judge.
    ImportError
        If the judge's package or weights are missing.
    """
    if not isinstance(name, str):
        return name
    kind, _, weights = name.partition(":")
    if kind in JUDGES:
        try:
            return JUDGES[kind](weights) if weights else JUDGES[kind]()
        # Third-party packages may raise any error.
        except Exception as error:
            raise ImportError(
                f"The judge '{kind}' cannot be used: {error}. "
                f"{JUDGES[kind].install}"
            ) from error
    try:
        return pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"There is no judge '{name}' ({error}): choose "
            f"{' or '.join(JUDGES)}, or give your own as module:callable."
        ) from error


def _name(judge):
    default = getattr(judge, "__name__", type(judge).__name__)
    return getattr(judge, "name", default)


def judge_settings(judges: dict[str, Callable]) -> dict:
    """Return the names and weights of judges, for the report."""
    settings: dict = {"judges": list(judges)}
    for name, judge in judges.items():
        if hasattr(judge, "weights"):
            settings.setdefault("judge_weights", {})[name] = judge.weights
    return settings


class JudgedSpeech(Metric):
    """Base class of metrics on decoded speech, including judges' scores."""

    quantities: dict[str, Quantity] = {}

    def __init__(self, model: EvaluatedModel, judges: dict[str, Callable]):
        self.model, self.judges = model, judges
        self.quantities = dict(self.quantities)
        self.number, self._ratios = 0, WeightedRatios()

    def judge(
        self, audio: dict[str, torch.Tensor], entry: dict, weights: torch.Tensor
    ) -> None:
        """Add the scores of all judges, under names such as ``judge:key``.

        If a judge returns ``to_source`` and ``to_target``, ``closer_to_target``
        is 1 if the latter is greater, else 0.
        """
        self.number += 1
        for name, judge in self.judges.items():
            scores = judge(audio, self.model.sample_rate, entry)
            quantities = {"closer_to_target": _CLOSER}
            quantities |= getattr(judge, "quantities", {})
            scores = {
                key: score if isinstance(score, tuple | list) else (score, 1)
                for key, score in scores.items()
            }
            if {"to_source", "to_target"} <= {*scores}:
                target, source = scores["to_target"], scores["to_source"]
                closer = target[0] * source[1] > source[0] * target[1]
                scores["closer_to_target"] = closer, 1
            for key, (over, under) in scores.items():
                quantity = quantities.get(key, Quantity(key.replace("_", " ")))
                quantity = quantity._replace(label=f"{name}: {quantity.label}")
                self.quantities[f"{name}:{key}"] = quantity
                self._ratios.add(f"{name}:{key}", over, under, weights)

    def compute(self) -> dict[str, Estimate]:
        """Compute the results, see ``Metric``."""
        return self._ratios.estimates(self.quantities)


class Resemblyzer:
    """Cosine similarities between the speaker embedding of the output and those
    of source and target, by Resemblyzer."""

    name = "resemblyzer"
    install = (
        f'{_INSTALL} resemblyzer "setuptools<81" (its dependency webrtcvad '
        "imports pkg_resources, which newer setuptools lack)."
    )

    def __init__(self):
        from resemblyzer import VoiceEncoder

        self._encoder = VoiceEncoder("cpu", verbose=False)
        self.weights = f"of resemblyzer {_version('resemblyzer')}"

    def __call__(
        self, audio: dict[str, torch.Tensor], sample_rate: int, entry: dict
    ) -> dict[str, float]:
        """Return ``to_source`` and, in conversions, ``to_target``."""
        from resemblyzer import preprocess_wav

        vectors = {}
        for name, wav in audio.items():
            wav = preprocess_wav(wav.numpy(), source_sr=sample_rate)
            vectors[name] = self._encoder.embed_utterance(wav)
        output = vectors.pop("output")
        return {f"to_{k}": float(output @ v) for k, v in vectors.items()}


class Whisper:
    """Word error rates of source and output against the English ``words`` of
    the manifest, by faster-whisper. ``weights`` is a folder, or a name to
    download. Whisper fails to recognize espeak's voices."""

    name = "whisper"
    install = (
        f"{_INSTALL} faster-whisper jiwer. It also needs weights: a folder "
        "(--judges=whisper:PATH), or a connection to download them."
    )
    quantities = {
        "wer_source": Quantity(
            "word error rate of the source", bounds=NON_NEGATIVE
        ),
        "wer_output": Quantity(
            "word error rate of the output", bounds=NON_NEGATIVE
        ),
    }

    def __init__(self, weights: str = "tiny.en"):
        import jiwer  # noqa: F401
        from faster_whisper import WhisperModel

        self._model = WhisperModel(weights, device="cpu", compute_type="int8")
        self.weights = (
            f"{weights} (faster-whisper {_version('faster-whisper')})"
        )

    def __call__(
        self, audio: dict[str, torch.Tensor], sample_rate: int, entry: dict
    ) -> dict[str, tuple[int, int]]:
        """Return the numbers of errors and words for ``wer_source`` and
        ``wer_output``; empty if the entry has no words."""
        import jiwer

        words = _plain(entry.get("words") or "")
        if not words:
            return {}
        scores = {}
        for name in ("source", "output"):
            transcript = _plain(self.transcribe(audio[name], sample_rate))
            result = jiwer.process_words(words, transcript)
            errors = result.substitutions + result.deletions + result.insertions
            scores[f"wer_{name}"] = errors, len(words.split())
        return scores

    def transcribe(self, wav: torch.Tensor, sample_rate: int) -> str:
        """Transcribe samples [samples]."""
        from torchaudio.functional import resample

        wav = resample(wav, sample_rate, 16000).numpy()
        segments, _ = self._model.transcribe(wav, language="en")
        return " ".join(segment.text for segment in segments)


def _plain(text):
    text = text.lower().replace("’", "'")
    return " ".join(re.sub(r"[^\w' ]+", " ", text).split())


def _version(package):
    return importlib.metadata.version(package)


JUDGES = {judge.name: judge for judge in (Resemblyzer, Whisper)}
