"""Evaluate the bundled codec on distorted recordings: other microphones, rooms,
and noise.

To write speech_channels.md, with the sources and the recognizer of
speech_models.py:

> pip install faster-whisper jiwer pystoi pesq
> python benchmarks/speech_channels.py --sources=sources --whisper=FOLDER
"""

import pathlib
import statistics

import click
import numpy as np
import torch
from report import save, versions_line
from scipy.signal import butter, fftconvolve, lfilter, sosfilt
from speech_models import (
    RATE,
    SPEECH,
    Codec,
    align,
    english,
    word_error_rate,
    word_errors,
)

from speechbrain_vq import VQTokenizer
from speechbrain_vq.evaluation.judges import Whisper
from speechbrain_vq.evaluation.reconstruction import stoi

LEVEL = 0.05  # Root mean square of all recordings
BOOKS = (8, 4)


def passband(low, high):
    """Return a function that limits samples to frequencies in Hz."""
    return lambda wav: sosfilt(
        butter(4, [low, high], "band", fs=RATE, output="sos"), wav
    )


def room(wav, seconds=0.4, ratio_db=3.0, seed=1):
    """Add exponentially decaying reverberation (RT60 in seconds), with a ratio
    of direct to reverberant energy in dB."""
    time = np.arange(round(seconds * RATE)) / RATE
    tail = np.random.default_rng(seed).standard_normal(len(time))
    tail *= 10 ** (-3 * time / seconds) * (time > 0.005)
    tail *= 10 ** (-ratio_db / 20) / np.linalg.norm(tail)
    return wav + fftconvolve(wav, tail)[: len(wav)]


def noise(wav, snr, seed=1):
    """Add white noise at an SNR in dB."""
    samples = np.random.default_rng(seed).standard_normal(len(wav))
    return wav + samples * np.sqrt((wav**2).mean() / 10 ** (snr / 10))


CHANNELS = {
    "as recorded": lambda wav: wav,
    "telephone, 300 to 3400 Hz": passband(300, 3400),
    "small microphone, from 200 Hz": passband(200, 7900),
    "dull, -6 dB per octave above 1.1 kHz": lambda w: lfilter([1], [1, -0.65], w),
    "bright, +6 dB per octave above 1.1 kHz": lambda w: lfilter([1, -0.65], [1], w),
    "room, RT60 of 0.4 s": room,
    "white noise, SNR of 20 dB": lambda wav: noise(wav, 20),
    "white noise, SNR of 10 dB": lambda wav: noise(wav, 10),
    "30 times quieter, offset of 2 %": lambda wav: wav / 30 + 0.02,
}  # fmt: skip


def measure(wav, out, text, whisper):
    """Count word errors and words; compute STOI and PESQ to the channel's
    output."""
    import pesq

    line = word_errors(whisper, out, text)
    if out is not wav:
        out, _ = align(wav, out)
        line["stoi"] = stoi(wav, out, RATE)
        line["pesq"] = pesq.pesq(RATE, wav.numpy(), out.numpy(), "wb")
    return line


@click.command()
@click.option("--sources", type=pathlib.Path, required=True)
@click.option("--whisper", required=True, help="faster-whisper model folder.")
def main(sources, whisper):
    """Measure all channels, print the table and write it."""
    tokenizer, whisper = VQTokenizer.from_hparams("speech"), Whisper(whisper)
    codecs = {"recordings": lambda wav: (wav, 0)}
    for number in BOOKS:
        codecs[SPEECH.format(number)] = Codec(tokenizer, number)
    speech = [(wav, text) for _, _, wav, text in english(sources)]
    rows = ["| channel | codec | WER | STOI | PESQ-WB |", "|---" * 5 + "|"]
    for channel, change in CHANNELS.items():
        lines = {name: [] for name in codecs}
        for wav, text in speech:
            wav = wav.double().numpy()
            wav = change(wav * LEVEL / np.sqrt((wav**2).mean()))
            wav = torch.from_numpy(wav).float()
            # Measures ignore the offset.
            centered = wav - wav.mean()
            for name, codec in codecs.items():
                out = centered if name == "recordings" else codec(wav)[0]
                lines[name].append(measure(centered, out, text, whisper))
        for name, counts in lines.items():
            rate = word_error_rate(dict(enumerate(counts)))[0]
            cells = [channel, name, f"{rate:.3f}"]
            for key, form in (("stoi", ".3f"), ("pesq", ".2f")):
                values = [c[key] for c in counts if key in c]
                cells.append(
                    f"{statistics.median(values):{form}}" if values else ""
                )
            rows.append(f"| {' | '.join(cells)} |")
            click.echo(rows[-1])
    save(
        pathlib.Path(__file__).with_suffix(".md"),
        [
            "# The bundled codec on other channels",
            "",
            f"{len(speech)} recordings of unseen English readers, each changed "
            "by a simulated channel, then coded. STOI and PESQ (medians) "
            "compare the output with the channel's output, not with the clean "
            "recording. Word error rates by faster-whisper (tiny.en, int8). "
            "Training used noise and changes of speed, but no filters and no "
            "reverberation. Command: "
            "`python benchmarks/speech_channels.py --sources=sources "
            "--whisper=FOLDER`.",
            "",
            *rows,
            "",
            versions_line("faster-whisper", "pesq"),
        ],
    )


if __name__ == "__main__":
    main()
