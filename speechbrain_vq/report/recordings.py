"""Encode held-out recordings: usage of the codes, phones, and examples."""

import itertools
import pathlib
import random
import tempfile
from typing import Any, NamedTuple

import soundfile
import torch

from speechbrain_vq.dataio.audio import (
    AudioError,
    check_audio,
    find_audio,
    read_audio,
)
from speechbrain_vq.dataio.manifests import read_manifest
from speechbrain_vq.evaluation.bitrate import BitRate
from speechbrain_vq.evaluation.phone_units import PhoneInformation
from speechbrain_vq.evaluation.reconstruction import (
    mel_cepstra,
    mel_cepstral_distortion,
)
from speechbrain_vq.evaluation.utterances import EvaluatedModel

from .images import audio, mel_spectrogram
from .summary import Summary

# Enough for the usage of a few thousand codes, and a minute of computation.
MAX_MINUTES = 10.0
MAX_EXAMPLES = 6
# Of an example; twelve of them in FLAC are a third of the page's 10 MB.
MIN_SECONDS, MAX_SECONDS = 2.0, 8.0


class Example(NamedTuple):
    """Utterance to listen to: its manifest entry, seconds to hear and of the
    whole, tokens [T, C], the original and its reconstruction, as audio and
    image, and their mel-cepstral distortion in dB."""

    name: str
    entry: dict
    seconds: float
    whole: float
    tokens: torch.Tensor
    audio: tuple[str, str]
    mels: tuple[torch.Tensor, torch.Tensor]
    distortion: float


class Measured(NamedTuple):
    """Measurements of a model on recordings: counts of the codes [C, K] and of
    the phones and units [P, K] of the first codebook, names of the phones,
    values by name, and examples."""

    utterances: int
    seconds: float
    counts: torch.Tensor
    phone_units: torch.Tensor
    phones: list[str]
    values: dict[str, float]
    examples: list[Example]

    @property
    def distortion(self) -> float:
        """Mean mel-cepstral distortion of the examples, in dB."""
        each = [example.distortion for example in self.examples]
        return sum(each) / len(each)


def read_recordings(
    data: str | pathlib.Path, data_root: str | pathlib.Path | None = None
) -> dict[str, dict]:
    """Read a manifest, or list the audio of a file or folder as one; a folder
    with a ``test.json`` is a prepared corpus."""
    path = pathlib.Path(data)
    if path.is_dir() and (path / "test.json").is_file():
        path = path / "test.json"
    if path.suffix == ".json":
        return read_manifest(path, data_root)
    return {
        str(part.with_suffix("")): {"wav": str(file), "phones": []}
        for file, part in find_audio([path]).items()
    }


def held_out(summary: Summary) -> pathlib.Path | None:
    """Find the test set of a run, or the example of a model."""
    if summary.run is None:
        example = summary.model / "example.wav"
        return example if example.is_file() else None
    run = summary.run
    folders = [run.folder / "manifests", *run.manifest_folders()]
    paths = (folder / "test.json" for folder in folders)
    return next((path for path in paths if path.is_file()), None)


def measure(tokenizer: Any, entries: dict[str, dict]) -> Measured:
    """Encode up to ten minutes of the recordings of a manifest, and decode six
    utterances. A ValueError tells if none of them can be encoded."""
    model = EvaluatedModel(tokenizer)
    phones, rate = PhoneInformation(), BitRate(tokenizer.codebook_size)
    seconds, names, once = 0.0, [], torch.ones(1, dtype=torch.int32)
    for utterance in model.utterances(_sample(entries, 60 * MAX_MINUTES)):
        if not len(utterance.tokens):
            continue
        for metric in (phones, rate):
            metric.update(utterance, once)
        seconds += utterance.seconds
        names.append((utterance.name, utterance.seconds))
    if not names:
        reason = next(iter(model.errors.values()), "there are none")
        raise ValueError(f"No recording can be encoded: {reason}")
    counts = rate.tables()["code_counts"]
    tables = phones.tables()
    values = {
        name: one.value
        for metric in (phones, rate)
        for name, one in metric.compute().items()
    }
    return Measured(
        len(names),
        seconds,
        counts,
        tables["phone_units"],
        tables["phones"],
        values,
        _examples(tokenizer, {n: (entries[n], s) for n, s in names}),
    )


def _sample(entries, most_seconds):
    """Draw utterances at random, up to a total length."""
    names, sample, total = sorted(entries), {}, 0.0
    random.Random(0).shuffle(names)
    for name in names:
        sample[name] = entries[name]
        try:
            total += check_audio(entries[name]["wav"], decode=False)
        except AudioError:
            continue
        if total > most_seconds:
            break
    return sample


def _examples(tokenizer, utterances):
    """Choose utterances of different speakers, those first that are heard as a
    whole, and far apart by name: neighbours often begin with the same words."""
    by_speaker: dict[str, list[tuple]] = {}
    for name, (entry, seconds) in sorted(utterances.items()):
        ranked = by_speaker.setdefault(entry.get("spk_id", ""), [])
        unfit = not MIN_SECONDS <= seconds <= MAX_SECONDS
        # Any number of the first multiples of the golden ratio lies evenly.
        ranked.append((unfit, len(ranked) * 0.618034 % 1, name))
    turns = itertools.zip_longest(*map(sorted, by_speaker.values()))
    chosen = [one[-1] for turn in turns for one in turn if one]
    return [
        _example(tokenizer, name, *utterances[name])
        for name in chosen[:MAX_EXAMPLES]
    ]


def _example(tokenizer, name, entry, whole):
    rate = tokenizer.sample_rate
    # Of high sampling rates, as many samples.
    longest = MAX_SECONDS * min(1, 24_000 / rate)
    wav = read_audio(entry["wav"], rate, duration=longest)
    with tempfile.TemporaryDirectory() as folder:
        paths = [pathlib.Path(folder, f"{n}.flac") for n in ("x", "y")]
        soundfile.write(paths[0], wav.numpy(), rate)
        # As loud as the original.
        tokens = tokenizer.unfold(tokenizer.reconstruct_file(*paths).cpu())
        decoded = torch.from_numpy(soundfile.read(paths[1], dtype="float32")[0])
        clips = tuple(audio(path) for path in paths)
    mels = tuple(mel_spectrogram(w, rate) for w in (wav, decoded))
    cepstra = [mel_cepstra(w, rate) for w in (wav, decoded)]
    distortion = mel_cepstral_distortion(*cepstra)
    seconds = len(wav) / rate
    return Example(name, entry, seconds, whole, tokens, clips, mels, distortion)
