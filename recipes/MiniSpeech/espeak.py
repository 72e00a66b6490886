"""Synthesize the voices of MiniSpeech with espeak-ng, with exact phone times.

``speak_all`` runs this file in a new process for every voice, so each import
here costs time once per voice.
"""

import ctypes
import functools
import itertools
import json
import os
import pathlib
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import soundfile as sf
from tqdm import tqdm

from speechbrain_vq.dataio.items import SILENCE
from speechbrain_vq.dataio.manifests import SPLITS, utterance
from speechbrain_vq.recipes.MiniSpeech.sentences import sentences

SAMPLE_RATE = 16000

# espeak-ng variants that sound very different, and their words per minute. None
# has an echo, which would fill the closures of stops.
VOICES = {
    "m3": 160,
    "steph": 165,
    "david": 150,
    "anika": 160,
    "AnxiousAndy": 170,
    "grandma": 155,
    "kaukovalta": 165,
    "belinda": 160,
    "Jacky": 160,
    "Andrea": 170,
    "iven": 150,
    "f1": 165,
    "norbert": 160,
    "Nguyen": 165,
    "Gene2": 165,
    "shelby": 155,
    "klatt": 150,
    "Hugo": 165,
    "marcelo": 160,
    "edward": 155,
    "travis": 165,
    "antonio": 160,
    "ian": 150,
    "sandro": 170,
}
SHARES = {"train": 0.8, "valid": 0.1, "test": 0.1}

# Phones whose start espeak-ng reports at the burst, not at the closure.
STOPS = frozenset("p t k b d g tS dZ t# D T f h ? p# t2 k2".split())


def speak_all(
    audio: pathlib.Path,
    minutes: float,
    seed: int,
    num_speakers: int,
    jobs: int | None = None,
) -> dict[str, dict]:
    """Synthesize a corpus with one process per voice, ``jobs`` at a time (None:
    one per core).

    Uses the first ``num_speakers`` of VOICES, every sixth of them only for the
    test set. Writes ``<speaker>/<utt>.flac``, and returns the utterances of
    each split by id."""
    speakers = list(VOICES)[:num_speakers]
    unseen = speakers[::-6]
    seen = [speaker for speaker in speakers if speaker not in unseen]
    tasks = []
    for speaker in speakers:
        splits, peers = ["train", "valid"], seen
        if speaker in unseen:
            splits, peers = ["test"], unseen
        quotas = {s: 60 * minutes * SHARES[s] / len(peers) for s in splits}
        tasks.append((seed, speaker, quotas, str(audio / speaker)))
    utts = {split: {} for split in SPLITS}
    with ThreadPoolExecutor(jobs or min(os.cpu_count() or 1, 16)) as pool:
        voices = pool.map(_speak_apart, tasks)
        for voice in tqdm(
            voices, "MiniSpeech", len(tasks), unit="voice", disable=None
        ):
            for split, entries in voice.items():
                utts[split].update(entries)
    return utts


def _speak_apart(task: tuple) -> dict[str, dict]:
    """Synthesize one voice in a new process, because espeak-ng keeps state
    between utterances, even after it was terminated."""
    process = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        # The processes of other voices use the other cores.
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
    if process.returncode != 0:
        raise RuntimeError(
            f"espeak-ng failed for voice {task[1]}:\n{process.stderr}"
        )
    return json.loads(process.stdout)


def _speak_voice(
    seed: int, speaker: str, quotas: dict[str, float], folder: str
) -> dict[str, dict]:
    """Synthesize sentences with one voice until each split is long enough."""
    rng = random.Random(f"{seed} {speaker}")
    voice = _Voice(speaker)
    os.makedirs(folder)
    utts = {}
    for split, quota in quotas.items():
        utts[split], spoken = {}, 0.0
        for number, text in enumerate(sentences(rng, split)):
            if number and spoken >= quota:
                break
            utt_id = f"{speaker}-{split}-{number:04d}"
            wave, phones = voice.say(text, rng)
            path = os.path.join(folder, utt_id + ".flac")
            sf.write(path, wave, SAMPLE_RATE, subtype="PCM_16")
            seconds = len(wave) / SAMPLE_RATE
            spoken += seconds
            relative = f"audio/{speaker}/{utt_id}.flac"
            utts[split][utt_id] = utterance(
                relative, seconds, speaker, "en", text, phones
            )
    return utts


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("phone", ctypes.c_char * 8),  # member of a union, for phone events
    ]


_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.POINTER(ctypes.c_short),
    ctypes.c_int,
    ctypes.POINTER(_Event),
)
_END_OF_LIST, _PHONEME = 0, 7  # event types
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4  # parameters
_UP, _DOWN = 320, 441  # resampling from espeak-ng's 22050 Hz to 16 kHz
_REACH = 24  # samples to each side of the resampling filter


def _open_espeak() -> ctypes.CDLL:
    """Load the library of espeakng-loader and declare argument types."""
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    c_int, c_uint = ctypes.c_int, ctypes.c_uint
    c_char_p, c_void_p = ctypes.c_char_p, ctypes.c_void_p
    library.espeak_Initialize.argtypes = [c_int, c_int, c_char_p, c_int]
    library.espeak_SetSynthCallback.argtypes = [_CALLBACK]
    library.espeak_SetSynthCallback.restype = None
    library.espeak_SetVoiceByName.argtypes = [c_char_p]
    library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
    library.espeak_SetParameter.argtypes = [c_int, c_int, c_int]
    text = [c_char_p, ctypes.c_size_t]
    position, flags = [c_uint, c_int, c_uint], [c_uint]
    library.espeak_Synth.argtypes = text + position + flags + [c_void_p] * 2
    data = espeakng_loader.get_data_path()
    parent = os.fsencode(os.path.dirname(data))
    # Synchronous output with phoneme events, and no exit() on errors.
    rate = library.espeak_Initialize(2, 0, parent, 0x8001)
    if rate != 22050:
        raise RuntimeError(f"espeak-ng cannot start on {data} (code {rate})")
    # By default, the time of day seeds breath and roughness.
    library.espeak_ng_SetRandSeed(1)
    return library


class _Voice:
    """One espeak-ng voice; another voice needs another process."""

    def __init__(self, speaker: str):
        self.words_per_minute = VOICES[speaker]
        self.chunks, self.events = [], []
        self.library = _open_espeak()
        # Keep a reference to the callback, since the library does not.
        self.callback = _CALLBACK(self._receive)
        self.library.espeak_SetSynthCallback(self.callback)
        if self.library.espeak_SetVoiceByName(f"en-us+{speaker}".encode()):
            raise RuntimeError(f"espeak-ng has no voice en-us+{speaker}")

    def _receive(self, samples, count, events) -> int:
        """Collect a piece of the waveform, and the phones that start in it."""
        if count > 0:
            self.chunks.append(ctypes.string_at(samples, 2 * count))
        for index in itertools.count():
            event = events[index]
            if event.type == _END_OF_LIST:
                return 0
            if event.type == _PHONEME:
                self.events.append((event.sample, event.phone.decode()))

    def say(self, text: str, rng: random.Random) -> tuple[np.ndarray, list]:
        """Synthesize a text as a waveform at 16 kHz, and return its phones too."""
        self.chunks.clear()
        self.events.clear()
        rate = round(self.words_per_minute * rng.uniform(0.9, 1.1))
        # Some voices clip at the default volume.
        settings = {_RATE: rate, _VOLUME: 50, _RANGE: 50}
        settings[_PITCH] = rng.randint(44, 56)
        for parameter, value in settings.items():
            self.library.espeak_SetParameter(parameter, value, 0)
        raw = text.encode() + b"\0"
        if self.library.espeak_Synth(raw, len(raw), 0, 1, 0, 1, None, None):
            raise RuntimeError(f"espeak-ng cannot synthesize {text!r}")
        native = np.frombuffer(b"".join(self.chunks), np.int16) / 32768
        wave = _resample(native) * 10 ** (rng.uniform(-9, 0) / 20)
        return np.clip(wave, -1, 1), _phones(self.events, wave)


@functools.lru_cache
def _resampler() -> np.ndarray:
    """Return filters [_DOWN + 2 _REACH, _UP] from input to output blocks: a sinc
    with cutoff at 0.94 of the new Nyquist frequency and a Kaiser window."""
    at = np.arange(_DOWN + 2 * _REACH)[:, None] - _REACH
    at = at - np.arange(_UP) * _DOWN / _UP
    cutoff = 0.94 * _UP / _DOWN
    inside = np.sqrt(np.maximum(0, 1 - (at / _REACH) ** 2))
    window = np.i0(8.0 * inside) / np.i0(8.0) * (np.abs(at) < _REACH)
    return cutoff * np.sinc(cutoff * at) * window


def _resample(wave: np.ndarray) -> np.ndarray:
    """Resample from 22050 to 16000 Hz. Implemented here because importing a
    library in every voice's process would take longer than resampling."""
    bank = _resampler()
    count = -(-len(wave) * _UP // _DOWN)
    padded = np.pad(wave, (_REACH, _REACH + _DOWN))
    blocks = np.lib.stride_tricks.sliding_window_view(padded, len(bank))
    return (blocks[::_DOWN] @ bank).reshape(-1)[:count]


def _phones(events: list, wave: np.ndarray) -> list:
    """Convert (sample, mnemonic) events to [start, end, phone] without gaps."""
    starts, names = [0], [SILENCE]
    # Stable sort: events at the same sample stay in espeak-ng's order.
    for sample, name in sorted(events, key=lambda event: event[0]):
        start = min(round(sample * _UP / _DOWN), len(wave))
        # Less than 5 ms (80 samples) before the first phone is not a pause.
        starts.append(start if start > 80 else 0)
        name = name.lstrip("',")
        names.append(SILENCE if name.startswith("_") else name)
    starts = _move_to_closures(starts, names, wave)
    phones = []
    for start, end, name in zip(
        starts, [*starts[1:], len(wave)], names, strict=True
    ):
        if end == start or not name:
            continue
        if phones and phones[-1][2] == name == SILENCE:
            phones[-1][1] = end
        else:
            phones.append([start, end, name])
    return [[a / SAMPLE_RATE, b / SAMPLE_RATE, name] for a, b, name in phones]


def _move_to_closures(
    starts: list[int], names: list[str], wave: np.ndarray
) -> list[int]:
    """Move the starts of stops from the burst to the closure."""
    block, longest, shortest = 64, 1920, 128  # 4, 120 and 8 ms
    min_samples = 160  # 10 ms, kept of the phone before a closure
    quiet = 0.02 * np.percentile(np.abs(wave), 99)
    power = np.concatenate([[0.0], np.cumsum(wave**2)])
    starts = list(starts)
    for i in range(1, len(names)):
        if names[i] not in STOPS:
            continue
        before = starts[i - 1] + min_samples * (names[i - 1] != SILENCE)
        earliest = max(before, starts[i] - longest)
        start = starts[i]
        while (
            start - block >= earliest
            and power[start] - power[start - block] < block * quiet**2
        ):
            start -= block
        if starts[i] - start > shortest:
            starts[i] = start
    return starts


if __name__ == "__main__":
    # Run by _speak_apart: reads the task of one voice, writes manifest entries.
    json.dump(_speak_voice(*json.load(sys.stdin)), sys.stdout)
