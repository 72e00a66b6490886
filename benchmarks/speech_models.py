"""How intelligible speech is from the tokens of a model, over its codebooks.

To make speech_models.md (recipes/DebianSpeech/speech-codec says how to get
the corpus; the whisper weights are those of any English faster-whisper):

> pip install faster-whisper jiwer pystoi av pycodec2
> pip download --no-deps --no-binary :all: pocketsphinx moonshine-voice
> python benchmarks/speech_models.py --corpus=MANIFESTS \
    --librivox=pocketsphinx-5.1.1/test/data/librivox \
    --cards=pocketsphinx-5.1.1/test/data/cards \
    --cities=moonshine_voice/assets/two_cities.wav --whisper=FOLDER \
    --output=benchmarks/speech_models.md
"""

import importlib.metadata
import io
import itertools
import json
import pathlib
import re
import time
from collections import defaultdict

import click
import jiwer
import soundfile
import torch

from speechbrain_vq import VQTokenizer
from speechbrain_vq.dataio.audio import read_audio
from speechbrain_vq.dataio.manifests import read_manifest
from speechbrain_vq.evaluation.judges import Whisper, _plain
from speechbrain_vq.evaluation.reconstruction import sample_names, stoi
from speechbrain_vq.inference.tokenizer import _with_level_of
from speechbrain_vq.lobes.features import LogMel
from speechbrain_vq.versions import versions

RATE = 16000
# The beginning of Dickens's novel (1859).
CITIES = """It was the best of times, it was the worst of times, it was the age
of wisdom, it was the age of foolishness, it was the epoch of belief, it was the
epoch of incredulity, it was the season of light, it was the season of darkness,
it was the spring of hope, it was the winter of despair, we had everything
before us, we had nothing before us, we were all going direct to heaven, we were
all going direct the other way, in short, the period was so far like the present
period, that some of its noisiest authorities insisted on its being received,
for good or for evil, in the superlative degree of comparison only."""
DIGITS = dict(enumerate("zero one two three four five six seven eight nine".split()))  # fmt: skip
UNSEEN = "unseen English readers"
# By speaker in the corpus; the last two are not in its training.
GROUPS = {
    "Allison": "English voice of the training",
    "June": "French voice of the training",
    "nsh": "Russian voice of the training",
    "tux_es": "unseen voices, Spanish",
    "Carlo": "unseen voice and language, Italian",
}
PER_GROUP = 16


def recordings(librivox, cards, cities, corpus):
    """Yield group, samples, and the English words or None."""
    for path in sorted(librivox.glob("*.wav")):
        text = path.with_suffix(".txt").read_text("utf-8")
        yield UNSEEN, read_audio(path, RATE), text
    lines = (cards / "cards.transcription").read_text("utf-8").splitlines()
    for line in lines:
        text, name = re.fullmatch(r"<s> (.*?)\s*</s> \((\w+)\)", line).groups()
        yield UNSEEN, read_audio(cards / f"{name}.wav", RATE), text
    yield UNSEEN, read_audio(cities, RATE), CITIES
    by_speaker = defaultdict(dict)
    for split in ("valid", "test"):
        for name, entry in read_manifest(corpus / f"{split}.json").items():
            spanish = entry["spk_id"] == "Allison" and entry["lang"] != "en"
            if entry["length"] > 1.0 and not spanish:
                by_speaker[entry["spk_id"]][name] = entry
    for speaker, group in GROUPS.items():
        entries = by_speaker[speaker]
        for name in sorted(sample_names(list(entries), PER_GROUP)):
            entry = entries[name]
            words = entry["words"] if speaker == "Allison" else None
            yield group, read_audio(entry["wav"], RATE), words


def words_of(text):
    """Plain words, numbers spoken."""
    text = re.sub(r"\d", lambda d: f" {DIGITS[int(d[0])]} ", text)
    return _plain(text.replace("Mr.", "mister").replace("-", " "))


def opus(wav, bits):
    """Code and decode by Opus, as speech."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="ogg") as out:
        stream = out.add_stream("libopus", rate=RATE, layout="mono")
        stream.bit_rate = bits
        stream.options = {"application": "voip", "vbr": "off"}
        samples = (wav.clamp(-1, 1) * 32767).short().numpy()[None]
        frame = av.AudioFrame.from_ndarray(samples, "s16", "mono")
        frame.sample_rate = RATE
        for packet in itertools.chain(stream.encode(frame), stream.encode()):
            out.mux(packet)
    file.seek(0)
    decoded, rate = soundfile.read(file, dtype="float32")
    from scipy.signal import resample_poly

    decoded = torch.from_numpy(resample_poly(decoded, RATE, rate)).float()
    return torch.nn.functional.pad(decoded, (0, max(len(wav) - len(decoded), 0)))[: len(wav)]  # fmt: skip


def codec2(wav, bits):
    """Code and decode by codec2, at its 8 kHz."""
    import numpy as np
    import pycodec2
    from scipy.signal import resample_poly

    codec = pycodec2.Codec2(bits)
    size = codec.samples_per_frame()
    samples = resample_poly(wav.numpy(), 1, 2)
    samples = np.pad(samples, (0, -len(samples) % size))
    samples = (samples.clip(-1, 1) * 32767).astype(np.int16)
    frames = samples.reshape(-1, size)
    out = np.concatenate([codec.decode(codec.encode(f)) for f in frames])
    out = torch.from_numpy(resample_poly(out / 32768, 2, 1)).float()
    return out[: len(wav)]


class Codec:
    """The model with the first codebooks of it, and Griffin-Lim."""

    def __init__(self, tokenizer, books):
        self.tokenizer, self.books, self.seconds = tokenizer, books, [0, 0]

    @torch.no_grad()
    def __call__(self, wav):
        start = time.perf_counter()
        tokens, _ = self.tokenizer.encode_batch(wav)
        speaker = self.tokenizer.speaker_batch(wav)
        middle = time.perf_counter()
        books = None if self.tokenizer.is_folded else self.books
        out = self.tokenizer.decode_batch(
            tokens, speaker=speaker, num_codebooks=books
        )[0]
        self.seconds[0] += middle - start
        self.seconds[1] += time.perf_counter() - middle
        out = torch.nn.functional.pad(out, (0, len(wav) - len(out)))
        return _with_level_of(wav, out)


def log_mel_error(features, wav, out):
    """Mean absolute error of log-mels where the recording is not silent,
    less the difference of levels."""
    one = torch.ones(1)
    x, y = (
        features.denormalize(features(w[None], one)[0])[0] for w in (wav, out)
    )
    loud = x.exp().mean(1) > 1e-3 * x.exp().mean(1).max()
    difference = (y - x)[loud]
    return float((difference - difference.mean()).abs().mean())


def measure(codec, items, judge, features):
    """Return the word error rate, or None without words, and the means of
    STOI and the log-mel error."""
    said, heard, values = [], [], []
    for wav, words in items:
        out = codec(wav)
        if words:
            said.append(words_of(words))
            heard.append(words_of(judge.transcribe(out, RATE)))
        values.append((stoi(wav, out, RATE), log_mel_error(features, wav, out)))
    means = torch.tensor(values).nanmean(0).tolist()
    return jiwer.wer(said, heard) if said else None, means


@click.command()
@click.option("--model", default="speech")
@click.option("--other", "others", multiple=True)
@click.option("--librivox", required=True, type=pathlib.Path)
@click.option("--cards", required=True, type=pathlib.Path)
@click.option("--cities", required=True, type=pathlib.Path)
@click.option("--corpus", required=True, type=pathlib.Path)
@click.option("--whisper", required=True)
@click.option("--opus", "rates", multiple=True, type=int, default=[6000])
@click.option("--codebooks", "numbers", multiple=True, type=int)
@click.option("--output", type=pathlib.Path)
@click.option("--cache", type=pathlib.Path, help="Rows that were measured.")
@click.option("--unseen-english", is_flag=True, help="That group alone.")
def main(
    model,
    others,
    whisper,
    rates,
    numbers,
    output,
    cache,
    unseen_english,
    **places,
):
    """Measure, and write the tables."""
    judge = Whisper(whisper)
    tokenizer = VQTokenizer.from_hparams(model)
    features = LogMel()
    codecs = {"recordings": (None, lambda wav: wav)}

    def mels(wav):
        return features.inverse(features(wav[None], torch.ones(1))[0])[0]

    codecs["log-mels, Griffin-Lim"] = (None, lambda w: _padded(mels(w), w))
    total = tokenizer.num_codebooks
    timed = Codec(tokenizer, total)
    bits = (tokenizer.codebook_size - 1).bit_length() * tokenizer.token_rate
    for number in numbers or sorted({8, 4, 2, 1} & set(range(1, total + 1)))[::-1]:  # fmt: skip
        codec = Codec(tokenizer, number)
        codecs[f"{model}, {number} codebooks"] = (number * bits, codec)
    for name in others:
        other = VQTokenizer.from_hparams(name)
        rate = other.token_rate * (other.codebook_size - 1).bit_length()
        codecs[name] = (rate * other.num_codebooks, Codec(other, None))
    for rate in (3200, 1200):
        codecs[f"codec2 at {rate} bit/s"] = (
            rate,
            lambda w, r=rate: codec2(w, r),
        )
    for rate in rates:
        codecs[f"Opus at {rate} bit/s"] = (
            rate,
            lambda w, r=rate: opus(w, r),
        )
    data = list(recordings(**places))
    rows, groups = [], list(dict.fromkeys(g for g, _, _ in data))
    cached = json.loads(cache.read_text()) if cache and cache.exists() else {}
    counts = {
        g: sum(len(words_of(w).split()) for h, _, w in data if h == g and w)
        for g in (UNSEEN, GROUPS["Allison"])
    }
    wanted = [UNSEEN] if unseen_english else groups
    for name, (rate, codec) in codecs.items():
        errors, means = cached.setdefault(name, ({}, {}))
        for group in wanted:
            if group in errors or group in means:
                continue
            if name == "recordings" and group not in counts:
                continue
            items = [(wav, words) for g, wav, words in data if g == group]
            error, values = measure(codec, items, judge, features)
            if error is not None:
                errors[group] = error
            if name != "recordings":
                means[group] = values
            click.echo(f"{name}, {group}: {error} {values}")
            if cache:
                cache.write_text(json.dumps(cached))
        rows.append((name, rate, errors, means))
    spoken = [wav for group, wav, _ in data if group == UNSEEN]
    for wav in spoken:
        timed(wav)
    seconds = sum(map(len, spoken)) / RATE
    spent = timed.seconds
    text = report(rows, groups, counts, seconds / spent[0], seconds / spent[1])
    if output:
        output.write_text(text, "utf-8")
    else:
        click.echo(text)


def _padded(out, wav):
    return torch.nn.functional.pad(out, (0, len(wav) - len(out)))


def report(rows, groups, counts, encoding, decoding):
    """Format the tables as Markdown."""
    (first, words), (second, more) = counts.items()
    lines = [
        "# Speech from tokens of the bundled model",
        "",
        "The docstring of `benchmarks/speech_models.py` has the command, and",
        "where the recordings are from. Word error rates by faster-whisper",
        f"(tiny.en, int8): {first}, {words} words; {second}, {more} words.",
        "",
        f"{versions()}, faster-whisper "
        f"{importlib.metadata.version('faster-whisper')}.",
        f"On one CPU thread, encoding is {encoding:.0f} times as fast as real "
        f"time, decoding {decoding:.1f} times.",
        "",
        "The unseen English readers are three: a LibriVox reader and the",
        "speaker of playing cards of the sdist of pocketsphinx, and the",
        "recording of A Tale of Two Cities of moonshine-voice. Other groups",
        f"are up to {PER_GROUP} utterances of the corpus each, validation and",
        "test. The voices of tuxpaint's Spanish and of Carlo, the only Italian,",
        "are not in the training. codec2 works at 8 kHz, so that its STOI",
        "counts what it cannot carry.",
        "",
        f"| | bit/s | WER, {first} | WER, {second} |",
        "|---|---|---|---|",
    ]
    for name, rate, errors, _ in rows:
        rate = f"{rate:.0f}" if rate else ""
        values = " | ".join(
            f"{errors[g]:.3f}" if g in errors else "" for g in counts
        )
        lines.append(f"| {name} | {rate} | {values} |")
    for index, title in enumerate(("STOI", "log-mel error, nats")):
        lines += ["", f"| {title} | {' | '.join(groups)} |"]
        lines.append("|---" * (len(groups) + 1) + "|")
        for name, _, _, means in rows[1:]:
            values = " | ".join(
                f"{means[g][index]:.3f}" if g in means else "" for g in groups
            )
            lines.append(f"| {name} | {values} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
