"""Encode held-out recordings for a report: code usage, phones, examples."""

import collections
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
from speechbrain_vq.dataio.manifests import manifest_path, read_manifest
from speechbrain_vq.evaluation.bitrate import BitRate
from speechbrain_vq.evaluation.ipa import to_ipa
from speechbrain_vq.evaluation.phone_units import PhoneInformation
from speechbrain_vq.evaluation.reconstruction import (
    mel_cepstra,
    mel_cepstral_distortion,
)
from speechbrain_vq.evaluation.utterances import EvaluatedModel

from .images import audio, mel_spectrogram, png
from .summary import Summary

# Enough speech to estimate the usage of a few thousand codes in a minute.
MAX_MINUTES = 10.0
MAX_EXAMPLES = 6
# Duration of an example. Twelve FLAC clips make up a third of a 10 MB page.
MIN_SECONDS, MAX_SECONDS = 2.0, 8.0


class Example(NamedTuple):
    """Utterance to listen to: its manifest entry, durations of the excerpt and
    the whole recording in seconds, tokens [T, C], phones (start, end, name) in
    IPA, and name, audio and mel spectrogram of original and reconstruction.
    """

    name: str
    entry: dict
    seconds: float
    whole: float
    tokens: torch.Tensor
    phones: list[tuple[float, float, str]]
    clips: list[tuple[str, str, str]]


class Measured(NamedTuple):
    """Measurements of a model on recordings: number of utterances, their total
    duration in seconds, counts of codes [C, K], counts of phones and units
    [P, K] of the first codebook, phone names in IPA, metrics by their names in
    a ``Summary``, and examples."""

    utterances: int
    seconds: float
    counts: torch.Tensor
    phone_units: torch.Tensor
    phones: list[str]
    values: dict[str, float]
    examples: list[Example]


def read_recordings(
    data: str | pathlib.Path, data_root: str | pathlib.Path | None = None
) -> dict[str, dict]:
    """Read a manifest, or create one for an audio file or a folder of audio.
    The manifest of a prepared corpus is its ``test.json``, or ``test.csv``."""
    path = pathlib.Path(data)
    if path.is_dir() and manifest_path(path, "test").is_file():
        path = manifest_path(path, "test")
    if path.suffix in (".json", ".csv"):
        return read_manifest(path, data_root)
    return {
        str(part.with_suffix("")): {"wav": str(file), "phones": []}
        for file, part in find_audio([path]).items()
    }


def held_out(summary: Summary) -> pathlib.Path | None:
    """Find the test manifest of a run or the example of a model, if any."""
    run = summary.run
    if run is None:
        paths = [summary.model / "example.wav"]
    else:
        folders = [run.folder / "manifests", *run.manifest_folders()]
        paths = [manifest_path(folder, "test") for folder in folders]
    return next((path for path in paths if path.is_file()), None)


def measure(tokenizer: Any, entries: dict[str, dict]) -> Measured:
    """Encode up to ten minutes of the recordings in a manifest, and decode up
    to six utterances. Raises ValueError if no recording can be encoded."""
    model = EvaluatedModel(tokenizer)
    information, rate = PhoneInformation(), BitRate(tokenizer.codebook_size)
    seconds, weight = {}, torch.ones(1, dtype=torch.int32)
    for utterance in model.utterances(_sample(entries, 60 * MAX_MINUTES)):
        if len(utterance.tokens):
            information.update(utterance, weight)
            rate.update(utterance, weight)
            seconds[utterance.name] = utterance.seconds
    if not seconds:
        reason = next(iter(model.errors.values()), "there are none")
        raise ValueError(f"No recording can be encoded: {reason}")
    tables, counts = information.tables(), rate.tables()["code_counts"]
    ipa = to_ipa(tables["phones"])
    number = collections.Counter(ipa.values())
    # The same symbol for two phones, such as AH0 and AH1, would be ambiguous.
    ipa = {p: symbol if number[symbol] == 1 else p for p, symbol in ipa.items()}
    examples, distortions = [], []
    for name in _choose_examples(entries, seconds):
        example, distortion = _example(
            tokenizer, name, entries[name], seconds[name], ipa
        )
        examples.append(example)
        distortions.append(distortion)
    rates, phones = rate.compute(), information.compute()
    values = {
        "used_codes_percent": rates["used_codes_percent"].value,
        "perplexity": rates["perplexity"].value,
        "bits_per_second": rates["bits_per_second_entropy"].value,
        "vectors": int(counts[0].sum()),
        "mel_cepstral_distortion": sum(distortions) / len(distortions),
    }
    pnmi = phones.get("pnmi", phones.get("pnmi_codebook_1"))
    if pnmi is not None:
        values["pnmi"] = pnmi.value
    return Measured(
        len(seconds),
        sum(seconds.values()),
        counts,
        tables["phone_units"],
        list(ipa.values()),
        values,
        examples,
    )


def _sample(entries, max_seconds):
    """Draw utterances at random until ``max_seconds`` is exceeded."""
    names, sample, total = sorted(entries), {}, 0.0
    random.Random(0).shuffle(names)
    for name in names:
        sample[name] = entries[name]
        try:
            total += check_audio(entries[name]["wav"], decode=False)
        except AudioError:
            continue
        if total > max_seconds:
            break
    return sample


def _choose_examples(entries, seconds):
    """Choose utterances of different speakers to decode. Those of 2 to 8 s,
    which need no trimming, come first. Names are spread out, as neighbors often
    begin with the same words."""
    by_speaker: dict[str, list[tuple]] = {}
    for name in sorted(seconds):
        ranked = by_speaker.setdefault(entries[name].get("spk_id", ""), [])
        unfit = not MIN_SECONDS <= seconds[name] <= MAX_SECONDS
        # Multiples of the golden ratio modulo 1 are spread evenly.
        ranked.append((unfit, len(ranked) * 0.618034 % 1, name))
    rounds = itertools.zip_longest(*map(sorted, by_speaker.values()))
    chosen = [rank[-1] for ranks in rounds for rank in ranks if rank]
    return chosen[:MAX_EXAMPLES]


def _example(tokenizer, name, entry, whole, ipa):
    """Return an example and its mel-cepstral distortion in dB."""
    rate = tokenizer.sample_rate
    # Limit the number of samples at sampling rates above 24 kHz.
    longest = MAX_SECONDS * min(1, 24_000 / rate)
    wav = read_audio(entry["wav"], rate, duration=longest)
    with tempfile.TemporaryDirectory() as folder:
        paths = [pathlib.Path(folder, f"{n}.flac") for n in ("x", "y")]
        soundfile.write(paths[0], wav.numpy(), rate)
        # `reconstruct_file` matches the level of the original.
        tokens = tokenizer.unfold(tokenizer.reconstruct_file(*paths).cpu())
        decoded = torch.from_numpy(soundfile.read(paths[1], dtype="float32")[0])
        sounds = [audio(path) for path in paths]
    images = [png(mel_spectrogram(w, rate)) for w in (wav, decoded)]
    names = ("Original", "Reconstruction")
    clips = list(zip(names, sounds, images, strict=True))
    seconds = len(wav) / rate
    phones = [
        (start, min(end, seconds), ipa.get(phone, phone))
        for start, end, phone in entry.get("phones") or ()
        if start < seconds
    ]
    cepstra = [mel_cepstra(w, rate) for w in (wav, decoded)]
    example = Example(name, entry, seconds, whole, tokens, phones, clips)
    return example, mel_cepstral_distortion(*cepstra)
